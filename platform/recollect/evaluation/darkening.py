"""Whether features may be trusted on some data: a darkened day must not pass for a night.

The pictures of another domain, their brightness moved to the target's and nothing else changed, are compared with the target's.
Features pass where these are farther from the target than held-out true pictures of it are

    beyond chance    the excess over the held-out pictures' distance is more than TIMES its spread over random halves
    by far           and at least SHARE of the excess that the other domain has as it is

and a score in features that fail is refused. A classifier of domains has a share of 0.0004 on the streets world, ImageNet's
SqueezeNet 0.58 (docs/metrics.md has more). In data with one domain the target's own pictures at half their brightness stand for
the darkened ones, and the pictures without an attribute, compared with those that have it, for the other domain.

Distances are Frechet's, of equal numbers of pictures on both sides of all of them, so that what it owes to few pictures cancels.

Legend: N pictures on a side, F features, H x W pixels.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from recollect.config import Frozen, Run, did_you_mean
from recollect.data.store import Store
from recollect.data.transforms import joint_crop, to_uint8, to_unit
from recollect.evaluation.grids import picture_grid
from recollect.evaluation.validate import spread

VERSION = 1  # raise it when the test changes: what is kept of older ones is then not looked at
SHARE, TIMES = 0.05, 3.0
MOST, FEWEST = 200, 16  # pictures on a side
HALVES = 8  # random halves that tell the spread
BATCH = 64
HALF = 0.5  # the brightness of darkened pictures where there is no other domain

Describe = Callable[[Tensor], Tensor]  # (B, F) of (B, 3, H, W) in [-1, 1]


class Describes(Protocol):
    """What is tested: `recollect.evaluation.extractors.Extractor`."""

    name: str
    digest: str

    def describe(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Darkening:
    """How features see a pair of domains: distances to the target of its own held-out pictures, darkened others, and others."""

    target: str
    other: str
    held_out: float
    darkened: float
    other_distance: float
    spread: float  # of the held-out distance over random halves, one standard deviation
    pictures: int

    @property
    def share(self) -> float:
        """The excess of darkened pictures in that of the other domain: 0 where they pass for the target, 1 where for the other.

        0 where features do not even tell the other domain from the target.
        """
        whole = self.other_distance - self.held_out
        return (self.darkened - self.held_out) / whole if whole > self.spread else 0.0

    @property
    def passed(self) -> bool:
        """Whether darkened pictures are beyond chance, and by far, farther than held-out true ones."""
        return self.share >= SHARE and self.darkened - self.held_out > TIMES * self.spread

    def __str__(self) -> str:
        return (
            f"to {self.pictures} pictures of {self.target}: {self.held_out:.3g} held-out ones, {self.darkened:.3g} darkened, "
            f"{self.other_distance:.3g} {self.other}; share {self.share:.2g}"
        )


class Cut(Frozen):
    """How pictures are cut to be looked at, and which are held out."""

    size: int
    short_side: int | None = None
    split: str = "test"


def examine(describe: Describe, store: Store, target: str, other: str, cut: Cut, pictures: int = MOST) -> Darkening:
    """The test on two domains of a store; `other` empty: on a store with one domain, by its attributes.

    Args:
        describe: the features.
        cut: `cut.split` is what is held out; the target's reference is of the training pictures.
        pictures: at most so many on a side.

    Raises ValueError where there are fewer than FEWEST pictures on a side, and for one domain without attributes.
    """
    own, held = store.ids("train", target), store.ids(cut.split, target)
    others = store.ids(cut.split, other) if other else held
    count = min(len(own), len(held), len(others), pictures)
    if count < FEWEST:
        raise ValueError(
            f"too few pictures to test features by: {len(own)} training and {len(held)} {cut.split} pictures of {target!r}, "
            f"{len(others)} of {other or target!r} in {store.uri}; it takes {FEWEST} of each"
        )
    reference, true, strange = (_pictures(store, spread(ids, count), cut) for ids in (own, held, others))
    aim = float(reference.mean()) if other else HALF * float(strange.mean())
    features = [_described(describe, images) for images in (reference, true, in_brightness(strange, aim))]
    held_out = frechet_of(features[0], features[1])
    if other:
        far = frechet_of(features[0], _described(describe, strange))
    else:
        far = held_out + _between_attributes(describe, store, target, cut, pictures)
    return Darkening(
        target=target,
        other=other or "pictures without an attribute",
        held_out=held_out,
        darkened=frechet_of(features[0], features[2]),
        other_distance=far,
        spread=_spread(features[0], features[1]),
        pictures=count,
    )


def check(features: Describes, store: Store, target: str, other: str, cut: Cut) -> Darkening:
    """`examine`, once for these features and this data, and kept: raises ValueError where the features fail."""
    place = _kept(features, store, target, other, cut)
    found = Darkening(**json.loads(place.read_text())) if place.is_file() else None
    if found is None:
        found = examine(features.describe, store, target, other, cut)
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = place.with_name(f".{place.name}-{os.getpid()}")
        draft.write_text(json.dumps(asdict(found)))
        draft.replace(place)
    if not found.passed:
        raise ValueError(
            f"the features {features.name} fail the darkening test on this data, so no score in them says anything: {found}, and "
            f"at least {SHARE:g} is needed, beyond {TIMES:g} times the chance of {found.spread:.2g}. {_instead(features.name)}"
        )
    return found


def _instead(name: str) -> str:
    own = "features on this data (`recollect features train STORE --out BUNDLE`)"
    return (
        f"Train {own}"
        if name.startswith("inception")
        else f"Train other {own}, with more pictures or steps, or take --features inception"
    )


def kept_in() -> Path:
    """The folder of what is known of features: `$XDG_CACHE_HOME/recollect/darkening`, by default below `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recollect" / "darkening"


def _kept(features: Describes, store: Store, target: str, other: str, cut: Cut) -> Path:
    known = json.dumps([VERSION, features.digest, store.digest, target, other, cut.model_dump()])
    return kept_in() / f"{features.digest[:12]}-{store.digest[:12]}-{hashlib.sha256(known.encode()).hexdigest()[:12]}.json"


def in_brightness(images: Tensor, mean: float) -> Tensor:
    """Pictures (N, 3, H, W) in [0, 1] of that mean brightness as a set: all darker by one factor, or all lighter.

    >>> in_brightness(torch.tensor([0.2, 0.6]), 0.1), in_brightness(torch.tensor([0.2, 0.6]), 0.7)
    (tensor([0.0500, 0.1500]), tensor([0.6000, 0.8000]))
    """
    now = float(images.mean())
    if mean <= now:
        return images * (mean / max(now, 1e-6))
    return 1 - (1 - images) * ((1 - mean) / max(1 - now, 1e-6))


def frechet_of(one: Tensor, other: Tensor) -> float:
    """Frechet's distance of features (M, F) and (N, F), float64, by way of an M x N matrix: quick where there are many features.

    tr (S T)^1/2 is the nuclear norm of X Y' / sqrt((M - 1)(N - 1)) for centred X and Y.
    """
    x, y = one.double() - one.double().mean(0), other.double() - other.double().mean(0)
    scale: float = ((len(x) - 1) * (len(y) - 1)) ** 0.5
    common = float(torch.linalg.matrix_norm(x @ y.mT, "nuc")) / scale
    own = float(x.square().sum()) / (len(x) - 1) + float(y.square().sum()) / (len(y) - 1)
    return float((one.double().mean(0) - other.double().mean(0)).square().sum()) + own - 2 * common


def _spread(reference: Tensor, held_out: Tensor) -> float:
    """The standard deviation of the distance over random halves of both."""
    generator = torch.Generator().manual_seed(0)
    half = len(reference) // 2
    found = []
    for _ in range(HALVES):
        rows = [torch.randperm(len(side), generator=generator)[:half] for side in (reference, held_out)]
        found.append(frechet_of(reference[rows[0]], held_out[rows[1]]))
    return float(torch.tensor(found, dtype=torch.double).std())


def _between_attributes(describe: Describe, store: Store, domain: str, cut: Cut, pictures: int) -> float:
    """How much farther held-out pictures without an attribute are from training pictures with it than held-out ones with it are.

    The largest over those attributes of which there are pictures enough: what the features tell best.
    """
    names = store.domains.attributes
    if not names:
        raise ValueError(f"{store.uri} has one domain and no attributes: there is nothing between which pictures are translated")
    sides = []
    for split in ("train", cut.split):
        ids = spread(store.ids(split, domain), 4 * pictures)
        sides.append((_described(describe, _pictures(store, ids, cut)), torch.from_numpy(store.attributes(ids)[1])))
    found = []
    for index in range(len(names)):
        (train, known), (held, said) = ((features, table[:, index]) for features, table in sides)
        sets = [train[known == 1], held[said == 1], held[said == 0]]
        count = min(pictures, *map(len, sets))
        if count >= FEWEST:
            reference, same, other = (rows[spread_rows(len(rows), count)] for rows in sets)
            found.append(frechet_of(reference, other) - frechet_of(reference, same))
    if not found:
        raise ValueError(f"no attribute of {store.uri} tells {FEWEST} {cut.split} pictures from as many others")
    return max(found)


def spread_rows(length: int, count: int) -> list[int]:
    """`count` of the numbers below `length`, at even distances."""
    return [row * length // count for row in range(count)]


def pictures_of(store: Store, ids: Sequence[str], cut: Cut) -> Tensor:
    """Pictures (N, 3, size, size) uint8, cut at the centre."""
    samples = [joint_crop(record, cut.size, cut.short_side, classes=store.domains.classes) for record in store.records(ids)]
    return torch.stack([sample.image.as_subclass(Tensor) for sample in samples])


def _pictures(store: Store, ids: Sequence[str], cut: Cut) -> Tensor:
    """The same in [0, 1]."""
    return pictures_of(store, ids, cut).float() / 255


def _described(describe: Describe, images: Tensor) -> Tensor:
    """Features of pictures in [0, 1], which go through 8 bits: what a darkened picture loses by that is lost."""
    eight = to_uint8(images * 2 - 1)
    return torch.cat([describe(to_unit(batch)).double().cpu() for batch in torch.split(eight, BATCH)])


class FeaturesJudge:
    """Judges features that are being trained: by the darkening test on validation pictures, in the worst pair of domains.

    Args:
        store: where the pictures are.
        run: its domains, its size, and how many pictures.

    Raises ValueError for metrics that are none of features.
    """

    metric = "darkening"
    mode: Literal["max"] = "max"

    def __init__(self, store: Store, run: Run, split: str = "val", pictures: int | None = None) -> None:
        if run.evaluation.metric not in ("auto", self.metric):
            raise ValueError(
                f"features are not judged by {run.evaluation.metric!r}{did_you_mean(run.evaluation.metric, [self.metric])}"
            )
        self.store, self.cut = store, Cut(size=run.data.size, short_side=run.data.short_side, split=split)
        self.names, self.pictures = run.data.domains, pictures or run.evaluation.pictures
        self.pairs = [(one, other) for one in self.names for other in self.names if one != other] or [(self.names[0], "")]
        self.about = f"maximises {self.metric} on at most {self.pictures} {split} pictures of each domain"
        self.ids = [id for name in self.names for id in spread(store.ids(split, name), self.pictures)]

    @staticmethod
    def domains(run: Run) -> tuple[str, ...]:
        """The domains that it needs pictures of."""
        return run.data.domains

    def found(self, model: Any) -> list[Darkening]:
        """The test in every pair of domains."""
        describe = describes_by(model)
        return [examine(describe, self.store, target, other, self.cut, self.pictures) for target, other in self.pairs]

    def judgement(self, model: Any) -> Any:
        """`darkening`: the worst share over pairs of domains, and that of each; and the share of pictures named rightly."""
        from recollect.evaluation.validate import ByPicture, Judgement

        found = self.found(model)
        values = {f"{self.metric}/{one.other} for {one.target}": one.share for one in found}
        right = torch.tensor([float(said) for said in self._named(model)])
        by_picture = {"domain_found": ByPicture(right, torch.ones_like(right))}
        return Judgement({self.metric: min(values.values()), **values, "domain_found": float(right.mean())}, by_picture)

    def _named(self, model: Any) -> list[bool]:
        """Of each picture whether its domain is said rightly; "tampered" is an answer, too."""
        describe = describes_by(model)
        truth = self.store.column("domain", self.ids)
        found: list[bool] = []
        for start in range(0, len(self.ids), BATCH):
            features = describe(_pictures(self.store, self.ids[start : start + BATCH], self.cut) * 2 - 1)
            with torch.inference_mode():
                said = model.answers(features.to(next(model.parameters())), "domain").argmax(1).tolist()
            names = [*self.names, ""]
            found += [names[answer] == true for answer, true in zip(said, truth[start : start + BATCH], strict=True)]
        return found

    def baselines(self, model: Any) -> list[Any]:
        """None beside it."""
        return []

    def __call__(self, model: Any) -> dict[str, float]:
        """All metrics by name, and `objective`, the one to steer by."""
        values: dict[str, float] = self.judgement(model).values
        return {**values, "objective": values[self.metric]}

    def grid(self, model: Any, rows: int = 4) -> Tensor:
        """A picture (3, height, width) uint8: for each of some pairs, a target picture | a darkened other | the other itself."""
        columns: dict[str, list[Tensor]] = {"target": [], "other, in its brightness": [], "other": []}
        for target, other in self.pairs[:rows]:
            ids = (self.store.ids(self.cut.split, target)[0], self.store.ids(self.cut.split, other or target)[0])
            true, strange = (_pictures(self.store, [id], self.cut) for id in ids)
            dark = in_brightness(strange, float(true.mean()) if other else HALF * float(strange.mean()))
            for column, image in zip(columns.values(), (true, dark, strange), strict=True):
                column.append(to_uint8(image[0] * 2 - 1))
        return picture_grid({name: torch.stack(images) for name, images in columns.items()})


def describes_by(model: Any) -> Describe:
    """The features of a module that has a method `features`, on its device."""

    def describe(images: Tensor) -> Tensor:
        like: Tensor = next(model.parameters())
        with torch.inference_mode():
            found: Tensor = model.features(images.to(like.device, like.dtype))
        return found.double().cpu()

    return describe
