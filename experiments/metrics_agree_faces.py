"""Do FID and KID in features trained on the data agree with the exact error? GMM-UNIT and RG-UNIT on faces.

    python -m experiments.metrics_agree_faces --small --seeds 0 --parallel 1 --pictures 150 --storage runs/rg-unit
    python -m experiments.metrics_agree_faces --help

Of every attribute: translations of faces that lack it into having it, compared with validation faces that have it. Held-out true
faces are to be nearer than translations, and these nearer than the faces as they are. Stages that other tables of RG-UNIT trained
below the same --storage are taken from there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from experiments import tables
from experiments.agreement import FID, HELD_OUT, KID, agreement, distances, features_for
from experiments.rg_unit import HAIR, STYLE, flips_shown, gmm, guided, pipeline_of, retriever
from experiments.stores import faces
from experiments.tables import Arm, Claim, Table
from experiments.tables.suites import Setting
from recollect.config import Run, overlay

if TYPE_CHECKING:  # a recipe is imported for its help as well, which should not take the seconds that torch takes
    from torch import Tensor

    from recollect.data.store import Store
    from recollect.evaluation.attribute_cases import AttributeCases
    from recollect.evaluation.baselines import Row
    from recollect.evaluation.extractors import Extractor
    from recollect.evaluation.validate import Judgement

INPUT = "the input itself"
TRUTH = "counterpart_error"


@dataclass(frozen=True)
class Faces:
    """Flips of test faces; for each attribute, which of them ask for it, real faces that have it, and held-out ones."""

    flips: AttributeCases
    features: Extractor
    asking: dict[str, list[int]]
    real: dict[str, Tensor]  # (N, 3, P, P) uint8
    held_out: dict[str, Tensor]

    @property
    def ids(self) -> tuple[str, ...]:
        return self.flips.ids


@dataclass(frozen=True)
class FacesSuite:
    """Translations into attributes by exact counterparts, and by distances in own features, the mean over attributes.

    Args:
        features, digest: the bundle that `equipped` trains, and its digest.
    """

    pictures: int | None = None
    features: str = ""
    digest: str = ""
    version = "agree faces 1"
    how = """Each test face is translated by every attribute that it can change in, deterministically. Distances are between as
many pictures on both sides: translations that were asked to have an attribute, and validation faces that have it."""

    def limited(self, pictures: int | None) -> Self:
        return replace(self, pictures=pictures)

    def equipped(self, place: str, run: Run, say: Callable[[str], None]) -> Self:
        features, digest = features_for(place, run, say)
        return replace(self, features=features, digest=digest)

    def instrument(self, setting: str) -> str | None:
        return f"features {self.digest}" if self.digest else None

    def settings(self, run: Run) -> Sequence[Setting]:
        cut = f"test/{run.data.size}/{run.data.short_side or run.data.size}/{self.pictures or 'all'}"
        return (Setting("translation", "Translation: each attribute changed", cut),)

    def cases(self, run: Run, setting: Setting) -> Faces:
        from recollect.data.store import Store
        from recollect.evaluation.attribute_cases import gather
        from recollect.evaluation.darkening import Cut, check
        from recollect.evaluation.own_features import OwnFeatures

        store = Store.open(run.data.store)
        run = overlay(run, {"data.domains": run.data.domains or store.domains.names[:1]})
        features = OwnFeatures(self.features)
        check(features, store, run.data.domains[0], "", Cut(size=run.data.size, short_side=run.data.short_side, split="val"))
        flips = gather(store, run, "test", STYLE, (HAIR,), self.pictures)
        wanting = {
            name: [place for place, flip in enumerate(flips.flips) if flip.attribute == index and flip.wanted[index] == 1]
            for index, name in enumerate(STYLE)
        }
        real, held_out = (
            {name: _having(store, run, split, name, len(places)) for name, places in wanting.items()} for split in ("val", "test")
        )
        return Faces(flips, features, wanting, real, held_out)

    def baselines(self, run: Run, setting: Setting, cases: Faces) -> Sequence[Row]:
        from recollect.evaluation.attributes import inputs_of, judge_inputs
        from recollect.evaluation.baselines import Row
        from recollect.evaluation.validate import Judgement

        nothing = judge_inputs(cases.flips)
        nothing.values.update(_distances(inputs_of(cases.flips), cases))
        true = {name: distances(cases.real[name], cases.held_out[name].float() / 255, cases.features) for name in cases.real}
        return [
            Row(INPUT, "baseline", "nothing is translated", nothing),
            Row(HELD_OUT, "ceiling", "test faces that have the attribute", Judgement(_means(true), {})),
        ]

    def judge(self, bundle: str, cases: Faces) -> Judgement:
        from recollect.bundle import open_bundle
        from recollect.evaluation.attributes import check_neighbours, judge_flips, translate_flips

        pipeline = pipeline_of(bundle)
        check_neighbours(pipeline, "test", open_bundle(bundle).run.data.index)
        translations = translate_flips(pipeline, cases.flips)
        judgement = judge_flips(translations, cases.flips)
        judgement.values.update(_distances(translations, cases))
        return judgement

    def grid(self, cases: Faces, bundles: Mapping[str, str], reference: str) -> Tensor | None:
        return flips_shown(cases.flips, bundles, reference)


def _having(store: Store, run: Run, split: str, name: str, most: int) -> Tensor:
    """At most so many faces (N, 3, P, P) uint8 of a split that have an attribute, evenly spread."""
    from recollect.evaluation.attribute_cases import attributes_of, cut
    from recollect.evaluation.validate import spread

    every = [id for domain in run.data.domains for id in store.ids(split, domain)]
    having = attributes_of(store, every, [name])[:, 0].tolist()
    return cut(store, spread([id for id, value in zip(every, having, strict=True) if value == 1], most), run)


def _distances(translations: Tensor, cases: Faces) -> dict[str, float]:
    """The distances of translations (F, 3, P, P) in [0, 1] of all flips: by attribute, and their mean."""
    own = {name: translations[places] for name, places in cases.asking.items()}
    return _means({name: distances(cases.real[name], own[name], cases.features) for name in own})


def _means(by_attribute: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for metric in (FID, KID):
        parts = {f"{metric}/{name}": own[metric] for name, own in by_attribute.items()}
        found |= {metric: sum(parts.values()) / len(parts), **parts}
    return found


NAMES = ("GMM-UNIT", "RG-UNIT")
TABLE = Table(
    name="metrics-agree-faces",
    title="Own features and the truth: faces",
    about="Fréchet's and the kernel distance in features trained on the data, beside the exact error to each face's counterpart.",
    suite=FacesSuite(),
    reference="GMM-UNIT",
    runs="rg-unit",
    claims=(
        *(Claim(f"true faces are nearer than {name}'s", HELD_OUT, name, FID) for name in NAMES),
        *(Claim(f"{name} is nearer than the faces as they are", name, INPUT, FID) for name in NAMES),
        *(Claim(f"{name}'s error is below the faces' as they are", name, INPUT, TRUTH) for name in NAMES),
        *(Claim(f"{name} is nearer than the faces as they are", name, INPUT, KID) for name in NAMES),
    ),
    more=agreement(TRUTH, (INPUT,)),
)


def arms(store: str = "", small: bool = False, world: bool = False) -> list[Arm]:
    """Stage 1, and stage 3 with the retriever that it needs."""
    size = (store, small, world)
    return [gmm(*size), retriever(*size, shown=False), guided(*size, "RG-UNIT", "retrieved")]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return tables.main(TABLE, arms, "experiments.metrics_agree_faces", argv, faces)


if __name__ == "__main__":
    sys.exit(main())
