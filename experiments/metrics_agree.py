"""Do FID and KID in features trained on the data agree with the exact error? MGUIT, DRIT, MUNIT and CycleGAN on streets.

    python -m experiments.metrics_agree --small --seeds 0 --parallel 1
    python -m experiments.metrics_agree --help

Held-out true pictures are to be nearer to the target's than translations are, and these nearer than the other domain; and where
one method has the lower error to the true renders, it is to have the lower distance. `metrics_agree_faces` asks the same of
GMM-UNIT and RG-UNIT.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Self

from experiments import tables
from experiments.agreement import FID, HELD_OUT, KID, TEST, agreement, distances, features_for
from experiments.mguit_ablation import scaled
from experiments.tables import Arm, Claim, Table
from experiments.tables.suites import DirectionSuite, Setting
from recollect.config import Run

if TYPE_CHECKING:  # a recipe is imported for its help as well, which should not take the seconds that torch takes
    from torch import Tensor

    from recollect.evaluation.baselines import Row
    from recollect.evaluation.extractors import Extractor
    from recollect.evaluation.validate import Cases

METHODS = {"mguit": "MGUIT", "drit": "DRIT", "munit": "MUNIT", "cyclegan": "CycleGAN"}
INPUT = "the input itself"
MAPS = ("best colour map", "best colour map per region")


@dataclass(frozen=True)
class AgreeSuite(DirectionSuite):
    """Translations between two domains by the truth, and by the distance to validation pictures of the target in own features.

    Args:
        features: the bundle that `equipped` trains, and its digest; `store` is what they are for.
    """

    features: str = ""
    digest: str = ""
    store: str = ""

    @property
    def version(self) -> str:
        return f"agree 1 + {super().version}"

    def equipped(self, place: str, run: Run, say: Callable[[str], None]) -> Self:
        features, digest = features_for(place, run, say)
        return replace(self, features=features, digest=digest, store=run.data.store)

    def instrument(self, setting: str) -> str | None:
        return f"features {self.digest}" if self.digest else None

    def of_sets(self, pictures: Tensor, cases: Cases) -> dict[str, float]:
        """Distances to validation pictures of the target, which show other scenes than the pictures that are translated."""
        features, real = _judging(self.features, self.store, cases.source, cases.target, cases.images.shape[-1])
        return distances(real, pictures, features)

    def baselines(self, run: Run, setting: Setting, cases: Cases) -> list[Row]:
        """Those of translations, and true pictures of the test split as if they were translations."""
        from recollect.evaluation.baselines import Row
        from recollect.evaluation.validate import Judgement

        true = Judgement(self.of_sets(cases.targets.float() / 255, cases), {})
        return [*super().baselines(run, setting, cases), Row(HELD_OUT, "ceiling", "test pictures of the target", true)]


@lru_cache(maxsize=4)
def _judging(bundle: str, store: str, source: str, target: str, size: int) -> tuple[Extractor, Tensor]:
    """The features, once they have passed the darkening test here, and the real pictures (N, 3, S, S) uint8 of a direction."""
    from recollect.data.store import Store
    from recollect.evaluation.darkening import Cut, check, pictures_of
    from recollect.evaluation.own_features import OwnFeatures
    from recollect.evaluation.validate import spread

    opened, features = Store.open(store), OwnFeatures(bundle, target=target)
    cut = Cut(size=size, split="val")
    check(features, opened, target, source, cut)
    return features, pictures_of(opened, spread(opened.ids("val", target), TEST), cut)


TABLE = Table(
    name="metrics-agree",
    title="Own features and the truth: streets",
    about="Fréchet's and the kernel distance in features trained on the data, beside the exact error to the true renders.",
    suite=AgreeSuite((("sunny", "night"), ("night", "sunny"))),
    reference="MGUIT",
    claims=(
        *(Claim(f"true pictures are nearer than {name}'s", HELD_OUT, name, FID) for name in METHODS.values()),
        *(Claim(f"{name} is nearer than the other domain", name, INPUT, FID) for name in METHODS.values()),
        *(Claim(f"{name}'s error is below the other domain's", name, INPUT, "scene_error") for name in METHODS.values()),
        *(Claim(f"{name} is nearer than the other domain", name, INPUT, KID) for name in METHODS.values()),
    ),
    more=agreement("scene_error", (INPUT, *MAPS)),
)


def arms(store: str = "", small: bool = False, world: bool = False) -> list[Arm]:
    """The four methods at one size and one length."""
    return [Arm(title, scaled(name, ("sunny", "night"), store, small, world), name) for name, title in METHODS.items()]


def streets(storage: str, small: bool) -> str:
    """The streets world with more test scenes than other tables have; returns its URI."""
    from experiments.stores import judged_streets_store

    return judged_streets_store(f"{storage}/streets-{64 if small else 128}-{TEST}", 64 if small else 128, TEST)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return tables.main(TABLE, arms, "experiments.metrics_agree", argv, streets)


if __name__ == "__main__":
    sys.exit(main())
