"""Scores while a translator trains: `evaluation.metric=fid_quick@features` steers by the FID of the validation pictures.

`evaluation.features` says what in: a bundle of `recollect features train`, or `inception`. FID and KID are of the translations
that are judged anyway, so they are always measured then; IS, CIS and LPIPS translate 20 pictures ten times more (protocol
`quick`), and are measured where they steer. The numbers have their whole names (`fid_24@features:0a1b2c3d`); only to ask for one
the short name will do, because nobody knows a digest by heart.
"""

from __future__ import annotations

from torch import Tensor

from recollect.config import Run, did_you_mean
from recollect.data.store import Store
from recollect.evaluation.darkening import Cut, check
from recollect.evaluation.diversity import (
    INCEPTION_PROTOCOLS,
    LPIPS_PROTOCOLS,
    Asks,
    Compares,
    inception_name,
    inception_scores,
    inputs_of,
    lpips_diversity,
    lpips_name,
)
from recollect.evaluation.extractors import features_named, open_extractor, open_lpips
from recollect.evaluation.frechet import PictureSet, Stack, fid_and_kid, set_name
from recollect.evaluation.own_features import OwnDistance, OwnFeatures
from recollect.evaluation.validate import SHORT
from recollect.pipeline import Pipeline


class Quick:
    """Scores of a fixed set of pictures: `Quick(...)(pipeline, translations)`.

    Args:
        run: its features and its metric.
        store: where the pictures are; features that fail the darkening test on it are refused.
        asked: the pictures, and what is asked of them.
        real: what the translations are to be like.
        direction: the target and the other domain of the darkening test.

    Raises ValueError for features that are not there or fail, and for too few pictures.
    """

    def __init__(self, run: Run, store: Store, split: str, asked: Asks, real: PictureSet, direction: tuple[str, str]) -> None:
        target, other = direction
        features = open_extractor(features_named(run.evaluation.features), target=target if other else "")
        check(features, store, target, other, Cut(size=run.data.size, short_side=run.data.short_side, split=split))
        self.features, self.asked, self.real = features, asked, real
        self.count = min(len(asked), len(real))
        if self.count < 2:
            raise ValueError(f"{self.count} pictures are too few for a distance between sets; raise evaluation.pictures")
        self.kind = run.evaluation.metric.partition("_")[0] if run.evaluation.metric in SHORT else "fid"
        self.metric = self._name()

    def _name(self) -> str:
        """The whole name of the metric that steers."""
        if self.kind in ("fid", "kid"):
            return set_name(self.kind, self.count, self.count, self.features)
        if self.kind == "lpips":
            pairing = LPIPS_PROTOCOLS["quick"]
            return lpips_name(len(inputs_of(self.asked, pairing, "lpips_quick")), pairing, self._distance())
        if self.features.classes < 2:
            raise ValueError(f"{self.features.name} tells no styles and no attributes: {self.kind} cannot steer here")
        sampling = INCEPTION_PROTOCOLS["quick"]
        return inception_name(self.kind, len(inputs_of(self.asked, sampling, f"{self.kind}_quick")), sampling, self.features)

    def _distance(self) -> Compares:
        return OwnDistance(self.features) if isinstance(self.features, OwnFeatures) else open_lpips(features_named("alex"))

    def sets(self, translations: Tensor) -> dict[str, float]:
        """FID and KID of translations (B, 3, H, W) in [0, 1], one of each picture."""
        fakes = Stack(translations * 2 - 1)
        return fid_and_kid(self.real, fakes, self.features, self.count).judgement.values

    def __call__(self, pipeline: Pipeline, translations: Tensor) -> dict[str, float]:
        """The scores by their whole names."""
        found = self.sets(translations)
        if self.kind in ("is", "cis"):
            found |= inception_scores(pipeline, self.asked, self.features, "quick").judgement.values
        if self.kind == "lpips":
            found |= lpips_diversity(pipeline, self.asked, self._distance(), "quick").judgement.values
        return found


def wanted(run: Run) -> bool:
    """Whether a run asks for scores while it trains.

    Raises ValueError where it is to be steered by one and says no features.
    """
    metric = run.evaluation.metric
    if metric.endswith("@features") and metric not in SHORT:
        raise ValueError(f"evaluation.metric {metric!r} is no score to steer by{did_you_mean(metric, SHORT)}")
    if metric in SHORT and not run.evaluation.features:
        raise ValueError(
            f"evaluation.metric {metric!r} needs evaluation.features: a bundle (`recollect features train STORE`), or inception"
        )
    return bool(run.evaluation.features)
