"""Judging a classifier of attributes, and judging translations by one.

A classifier is trained on the data that the translator was trained on, and its bundle is named by its digest in what is measured
with it: `accuracy@classifier` and `fid@classifier` of two classifiers are two different numbers, and neither is the FID of
Inception's features.

Legend: N pictures, B of them at once, P pixels a side, A attributes of the classifier, S that were asked for, F features.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recollect.bundle import Bundle, open_bundle
from recollect.config import Run, did_you_mean
from recollect.data.store import Store
from recollect.data.transforms import to_unit
from recollect.evaluation.attribute_cases import Pictures, attributes_of, cut, random_targets
from recollect.evaluation.attributes import translate_to
from recollect.evaluation.baselines import Row
from recollect.evaluation.frechet import frechet
from recollect.evaluation.grids import picture_grid
from recollect.evaluation.metrics import find_metric
from recollect.evaluation.validate import ByPicture, Judgement, spread
from recollect.pipeline import Pipeline

BATCH = 64  # pictures classified at once
ACCURACY, FRECHET = "accuracy@classifier", "fid@classifier"


@runtime_checkable
class AttributeClassifier(Protocol):
    """What is judged here, and judges: a module (`trainables.classifier:Classifier`) that tells attributes."""

    attributes: tuple[str, ...]

    @property
    def head(self) -> Callable[[Tensor], Tensor]: ...  # of features: logits
    def features(self, images: Tensor) -> Tensor: ...
    def logits(self, images: Tensor) -> Tensor: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...


class ClassificationJudge:
    """Judges a classifier on validation pictures while it trains: `ClassificationJudge(store, run)(model)["objective"]`.

    Args:
        store: where the pictures are.
        run: its domains, its size, and how many pictures.

    Raises ValueError for metrics that are none of a classifier's.
    """

    metric = "accuracy"
    mode: Literal["max"] = "max"

    def __init__(self, store: Store, run: Run, split: str = "val", pictures: int | None = None) -> None:
        if run.evaluation.metric not in ("auto", self.metric):
            raise ValueError(
                f"a classifier is not judged by {run.evaluation.metric!r}{did_you_mean(run.evaluation.metric, [self.metric])}"
            )
        self.store, self.run = store, run
        every = [id for domain in run.data.domains for id in store.ids(split, domain)]
        self.ids = spread(every, run.evaluation.pictures if pictures is None else pictures)
        self.about = f"maximises {self.metric} ({find_metric(self.metric).about}) on {len(self.ids)} {split} pictures"

    @staticmethod
    def domains(run: Run) -> tuple[str, ...]:
        """The domains that it needs pictures of."""
        return run.data.domains

    def judgement(self, model: AttributeClassifier) -> Judgement:
        """The share of pictures whose attributes it tells: `accuracy`, by attribute and their mean; `majority` beside it.

        `majority` is what the more frequent answer to each attribute would score on the same pictures.
        """
        truth = attributes_of(self.store, self.ids, model.attributes)
        batches = (self.ids[start : start + BATCH] for start in range(0, len(self.ids), BATCH))
        said = torch.cat([answer(model, to_unit(cut(self.store, ids, self.run)))[0] for ids in batches])
        found = accuracy(said, truth, model.attributes, self.metric)
        ones = truth.nanmean(0)  # nan: nothing is known
        rates = torch.maximum(ones, 1 - ones).tolist()
        known = {f"majority/{name}": rate for name, rate in zip(model.attributes, rates, strict=True) if rate == rate}
        return Judgement({**found.values, "majority": sum(known.values()) / len(known), **known}, found.by_picture)

    def baselines(self, model: AttributeClassifier) -> list[Row]:
        """None beside it: `majority` is among its metrics."""
        return []

    def __call__(self, model: AttributeClassifier) -> dict[str, float]:
        """All metrics by name, and `objective`, the one to steer by."""
        values = self.judgement(model).values
        return {**values, "objective": values[self.metric]}

    def grid(self, model: AttributeClassifier, rows: int = 4) -> Tensor:
        """A picture (3, height, width) uint8: pictures | what it says of them rightly | what it says wrongly, or misses."""
        ids = spread(self.ids, rows)
        images, truth = cut(self.store, ids, self.run), attributes_of(self.store, ids, model.attributes).tolist()
        said = answer(model, to_unit(images))[0].tolist()
        columns: dict[str, Tensor | list[str]] = {"picture": images, "said, and right": [], "wrong": []}
        for own, answers in zip(truth, said, strict=True):
            facts = list(zip((name.replace("_", " ") for name in model.attributes), own, answers, strict=True))
            right = [name for name, true, logit in facts if true == 1 and logit > 0]
            wrong = [name if true == 0 else f"no {name}" for name, true, logit in facts if true == float(logit <= 0)]
            for column, names in ((columns["said, and right"], right), (columns["wrong"], wrong)):
                assert isinstance(column, list)
                column.append("\n".join(names))
        return picture_grid(columns)


def answer(model: AttributeClassifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, A) and features (B, F) of pictures (B, 3, H, W) in [-1, 1], on the CPU."""
    like: Tensor = next(model.parameters())
    with torch.inference_mode():
        features = model.features(images.to(like.device, like.dtype))
        return model.head(features).float().cpu(), features.double().cpu()


def accuracy(said: Tensor, truth: Tensor, names: Sequence[str], metric: str) -> Judgement:
    """The share of logits (N, A) that agree with the truth (N, A) where it is not NaN: by attribute, and their plain mean.

    Raises ValueError where nothing is known.

    >>> accuracy(torch.tensor([[3.0, -1.0], [0.5, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, torch.nan]]), ["a", "b"], "acc").values
    {'acc': 0.75, 'acc/a': 0.5, 'acc/b': 1.0}
    """
    known = ~truth.isnan()
    right = ((said > 0) == (truth == 1)).double()
    by_picture = {
        f"{metric}/{name}": ByPicture(right[:, index], known[:, index].double())
        for index, name in enumerate(names)
        if known[:, index].any()
    }
    if not by_picture:
        raise ValueError(f"nobody knows any of {', '.join(names)} of these pictures")
    values = {name: float((rows.values * rows.weights).sum() / rows.weights.sum()) for name, rows in by_picture.items()}
    return Judgement({metric: sum(values.values()) / len(values), **values}, by_picture)


@dataclass(frozen=True)
class ByClassifier:
    """What a classifier says of N pictures."""

    judgement: Judgement
    classifier: str  # the digest of its bundle
    pictures: int


class JudgeByClassifier:
    """Judges translations by a trained classifier: `JudgeByClassifier(bundle, pictures)(pipeline)`.

    Every picture is translated once, to the attributes of another one at random (of a fixed seed), as in the paper.

    The real pictures are classified once: one judge is for all pipelines that are judged on the same pictures.

    Args:
        classifier: a bundle, or where it is.
        pictures: what is translated (`attribute_cases.choose`); with their own attributes they are the real pictures, too.
        device: where the classifier works.

    Raises ValueError for a bundle that is no classifier, and for one that does not tell the attributes that are asked for.
    """

    def __init__(
        self, classifier: str | os.PathLike[str] | Bundle, pictures: Pictures, device: str | torch.device = "cpu", seed: int = 0
    ) -> None:
        opened = classifier if isinstance(classifier, Bundle) else open_bundle(classifier)
        model: Any = opened.build().to(device)
        if not isinstance(model, AttributeClassifier):
            raise ValueError(f"{opened.path} holds {opened.run.model.name!r}, which tells no attributes")
        for name in pictures.names:
            if name not in model.attributes:
                raise ValueError(f"{opened.path} does not tell {name!r}{did_you_mean(name, model.attributes)}")
        self.model, self.digest, self.size, self.pictures = model, opened.digest, opened.run.data.size, pictures
        columns = [[pictures.names.index(name) for name in group] for group in pictures.groups]
        everyone = torch.arange(len(pictures))
        self.wanted = pictures.own[random_targets(pictures.own, everyone, columns, seed)]  # (N, S)
        self._real = self._answers(pictures.images)

    def __call__(self, pipeline: Pipeline) -> ByClassifier:
        """The deterministic translations of the pictures: `accuracy@classifier`, and `fid@classifier` to the real ones."""
        rows = list(enumerate(self.wanted.tolist()))
        return self.judge(translate_to(pipeline, self.pictures, rows))

    def nothing(self) -> ByClassifier:
        """The pictures themselves as their translations: doing nothing."""
        return self._judged(*self._real)

    def judge(self, translations: Tensor) -> ByClassifier:
        """Translations (N, 3, P, P) in [0, 1] of the pictures to what was wanted of them.

        `fid@classifier` compares all translations with all pictures, as the paper does; since the attributes wanted are as
        frequent as those there are, doing nothing scores 0. `fid@classifier/<Attribute>` compares the translations that should
        have it with the pictures that have it.
        """
        return self._judged(*self._answers(translations))

    def _judged(self, said: Tensor, features: Tensor) -> ByClassifier:
        found = self._accuracy(said, self.wanted)
        values = {FRECHET: frechet(self._real[1], features)}
        for index, name in enumerate(self.pictures.names):
            real, fake = self._real[1][self.pictures.own[:, index] == 1], features[self.wanted[:, index] == 1]
            if min(len(real), len(fake)) > 1:
                values[f"{FRECHET}/{name}"] = frechet(real, fake)
        judgement = Judgement({**found.values, **values}, found.by_picture)
        return ByClassifier(judgement, self.digest, len(features))

    def real(self) -> ByClassifier:
        """`accuracy@classifier` of the real pictures: how far it can be trusted."""
        return ByClassifier(self._accuracy(self._real[0], self.pictures.own), self.digest, len(self.pictures))

    def _accuracy(self, said: Tensor, truth: Tensor) -> Judgement:
        columns = [self.model.attributes.index(name) for name in self.pictures.names]
        return accuracy(said[:, columns], truth, self.pictures.names, ACCURACY)

    def _answers(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, A) and features (N, F) of pictures (N, 3, P, P), uint8 or in [0, 1], brought to the classifier's size."""
        found = []
        for start in range(0, len(pictures), BATCH):
            batch = pictures[start : start + BATCH]
            batch = to_unit(batch) if batch.dtype == torch.uint8 else batch * 2 - 1
            if batch.shape[-1] != self.size:
                batch = F.interpolate(batch, (self.size, self.size), mode="bilinear", antialias=True)
            found.append(answer(self.model, batch))
        said, features = zip(*found, strict=True)
        return torch.cat(said), torch.cat(features)
