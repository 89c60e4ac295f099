"""Does a distance in features trained on the data say what the truth says? What the tables `metrics_agree*.py` share.

The features are trained once for a store, below the runs of the table, as `recollect features train` does; they judge only where
they pass the darkening test on that very data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from recollect.config import Run, preset

if TYPE_CHECKING:  # a recipe is imported for its help as well, which should not take the seconds that torch takes
    from torch import Tensor

    from recollect.evaluation.extractors import Extractor
    from recollect.evaluation.numbers import Numbers

FID, KID = "fid@features", "kid@features"
HELD_OUT = "held-out true pictures"
TEST = 160  # test scenes: as many pictures are on either side of a distance
STEPS = 600  # of the features' training


def features_for(place: str, run: Run, say: Callable[[str], None]) -> tuple[str, str]:
    """The place and the digest of the features for the store of a run; they are trained where they are not there."""
    from recollect.bundle import open_bundle
    from recollect.data.store import Store
    from recollect.training.session import train_instrument

    store = Store.open(run.data.store)
    kept = f"{place}/features-{store.digest[:12]}"
    try:
        return kept, open_bundle(kept).digest
    except (ValueError, OSError):  # they are not there
        engine = {"steps": STEPS, "batch_size": 4 if len(store.domains.names) > 1 else 16, "threads": 1}
        data = {"store": run.data.store, "domains": store.domains.names, "size": run.data.size}
        run = preset("features:tiny", name="features", data=data, engine=engine, model={"width": 16})
        train_instrument(run, kept, "the features that judge", say)
        return kept, open_bundle(kept).digest


def distances(real: Tensor, pictures: Tensor, features: Extractor) -> dict[str, float]:
    """FID and KID of pictures to real ones, both (N, 3, P, P): uint8, or in [0, 1]; of equal numbers, evenly spread."""
    import torch

    from recollect.evaluation.frechet import Stack, fid_and_kid

    true, fake = (Stack(own if own.dtype == torch.uint8 else own * 2 - 1) for own in (real, pictures))
    count = min(len(true), len(fake))
    one, other = fid_and_kid(true, fake, features, count).judgement.values.values()
    return {FID: one, KID: other}


def agreement(truth: str, beside: Sequence[str] = ()) -> Callable[[Numbers, str], str]:
    """A section that says in which pairs of rows the distances order as the exact error does.

    Args:
        truth: the exact error.
        beside: baselines that stand among the arms.
    """

    def section(numbers: Numbers, setting: str) -> str:
        names = [*numbers.names(setting, "method"), *(name for name in numbers.names(setting, "baseline") if name in beside)]
        lines = [f"### Agreement with {truth}", ""]
        for metric in (FID, KID):
            pairs = [(one, other) for place, one in enumerate(names) for other in names[place + 1 :]]
            signs = {pair: _signs(numbers, setting, *pair, metric, truth) for pair in pairs}
            known = {pair: found for pair, found in signs.items() if found is not None}
            same = [pair for pair, (own, exact) in known.items() if own * exact > 0]
            said = f"`{metric}` orders {len(same)} of {len(known)} pairs of rows as `{truth}` does"
            other = [f"{one} and {two}" for one, two in known if (one, two) not in same]
            lines.append(f"- {said}" + (f"; not {', '.join(other)}." if other else "."))
        return "\n".join(lines)

    return section


def _signs(numbers: Numbers, setting: str, one: str, other: str, metric: str, truth: str) -> tuple[float, float] | None:
    """The differences of two rows in a metric and in the truth; None where one of them lacks either."""
    found = [numbers.difference(setting, one, other, name) for name in (metric, truth)]
    return None if found[0] is None or found[1] is None else (found[0][0].value, found[1][0].value)
