"""Suites of scores by protocol, of translations between two domains or into attributes, and the bench that measures them.

    quick     fid, kid, is and cis 20x10, lpips 20x10all     minutes: for one's own comparisons
    mguit     fid, kid, is and cis 100x100, lpips 100x19     MUNIT's protocols, which DRIT, DUNIT and MGUIT follow
    rg_unit   fid, kid, is and cis 100x100, lpips 100x10all

Sets are compared by the deterministic translation of every picture, because that is what is compared with the truth; between
domains with as many pictures of the target domain. Translations into attributes have a distance for each attribute: of those that
were asked to have it, from real pictures that have it; the score is the mean over attributes.

Everything that a number depends on is in a `Request`, so that any process can open the same bench.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from recollect.bundle import open_bundle
from recollect.config import Run, did_you_mean, find_method
from recollect.data.store import Store
from recollect.evaluation.attribute_cases import Pictures, attributes_of, choose, cut, flips_of
from recollect.evaluation.attributes import Asked, AttributeJudge
from recollect.evaluation.darkening import Cut, check, spread_rows
from recollect.evaluation.diversity import (
    INCEPTION_PROTOCOLS,
    LPIPS_PROTOCOLS,
    Asks,
    Compares,
    Translations,
    inception_name,
    inception_scores,
    inputs_of,
    lpips_diversity,
    lpips_name,
    protocol_of,
)
from recollect.evaluation.extractors import Extractor, features_named, open_extractor, open_lpips
from recollect.evaluation.frechet import Measurement, PictureSet, Stack, fid_and_kid, set_name
from recollect.evaluation.own_features import OwnDistance, OwnFeatures
from recollect.evaluation.validate import Judgement, gather, halved
from recollect.pipeline import Pipeline
from recollect.retrieval.guided import open_pipeline
from recollect.trainable import AttributeWise, Translator
from recollect.training.sync import Ranks

SUITES: dict[str, tuple[str, str]] = {  # the protocol of is and cis, and that of lpips
    "quick": ("quick", "quick"),
    "mguit": ("munit", "munit"),
    "rg_unit": ("munit", "rg_unit"),
}
FEWEST_OF_A_SET = 8
Tick = Callable[[int], object]


@dataclass(frozen=True)
class Request:
    """What is to be measured, in plain values.

    Args:
        bundle, store: paths or URIs.
        suite: one of SUITES.
        pictures: at most so many source pictures; None: all of the split (of those translated by attributes 500).
        features, lpips: as `features_named` takes them; `lpips` empty: own features where `features` are such, else alex.
        download: whether published weights may be downloaded.
        index, library: as `open_pipeline` takes them.
    """

    bundle: str
    store: str
    suite: str
    split: str = "test"
    pictures: int | None = None
    features: str = "inception"
    lpips: str = ""
    download: bool = False
    device: str = "cpu"
    index: str = ""
    library: str = ""


@dataclass(frozen=True)
class Score:
    """One measurement of a bench: the metric that it is known by, how many translations it takes, and how it is measured."""

    metric: str
    translations: int
    measure: Callable[[Ranks], Measurement]


class Bench:
    """Everything opened that a request needs; what cannot be measured is said before anything is.

    Raises ValueError for unknown suites, bundles that do not translate, weights that are not there, features that fail the
    darkening test on this data, and too few pictures for a protocol.
    """

    def __init__(self, request: Request, tick: Tick | None = None) -> None:
        if request.suite not in SUITES:
            raise ValueError(f"there is no suite {request.suite!r}{did_you_mean(request.suite, SUITES)}")
        self.request, self.bundle, self.store = request, open_bundle(request.bundle), Store.open(request.store)
        self.run = self.bundle.run
        if not issubclass(find_method(self.run.model.name), Translator):
            raise ValueError(f"{request.bundle} holds {self.run.model.name!r}; suites are of what translates pictures")
        self.pipeline = watched(open_pipeline(self.bundle, request.device, index=request.index, library=request.library), tick)
        self.left_out: dict[str, str] = {}  # what is not measured, and why
        if isinstance(self.pipeline.model, AttributeWise):
            self.asked, self.sets = self._by_attribute()
            self.source = self.target = "+".join(self.run.data.domains)
        else:
            self.asked, self.sets = self._by_direction()
            self.source, self.target = self.run.direction()
        self.features = self._features()
        self.scores = {score.metric: score for score in self._scores()}

    def measure(self, metric: str, ranks: Ranks = Ranks()) -> Measurement:
        """Measure one of `scores`; with several ranks every one calls this and gets the number."""
        return self.scores[metric].measure(ranks)

    def _by_direction(self) -> tuple[Asks, dict[str, tuple[PictureSet, PictureSet]]]:
        data, request = self.run.data, self.request
        cut = (data.size, request.pictures, data.short_side, halved(self.store, request.split))
        cases = gather(self.store, self.run.direction(), request.split, *cut)
        return cases, {"": (Stack(cases.targets), Translations(self.pipeline, cases))}

    def _by_attribute(self) -> tuple[Asks, dict[str, tuple[PictureSet, PictureSet]]]:
        model: Any = self.pipeline.model
        names, groups = model.style_attributes(), model.exclusive_attributes()
        count = self.request.pictures or AttributeJudge.most
        pictures = choose(self.store, self.run, self.request.split, names, groups, count)
        sets = sets_by_attribute(self.pipeline, self.store, self.run, self.request.split, pictures)
        return Asked.at_random(pictures), sets

    def _features(self) -> Extractor:
        """The features, once they have passed the darkening test wherever pictures are translated to."""
        request, data = self.request, self.run.data
        pairs = [(self.target, self.source)]
        if self.source == self.target:  # into attributes, which may be the domains
            pairs = [(one, other) for one in data.domains for other in data.domains if one != other] or [(data.domains[0], "")]
        target = self.target if self.target != self.source else ""
        found = open_extractor(features_named(request.features, request.download), request.device, "--features", target)
        cut = Cut(size=data.size, short_side=data.short_side, split=request.split)
        for one, other in pairs:
            check(found, self.store, one, other, cut)
        return found

    def _scores(self) -> list[Score]:
        inception, lpips = SUITES[self.request.suite]
        needed = [INCEPTION_PROTOCOLS[inception].inputs or 0, LPIPS_PROTOCOLS[lpips].inputs or 0]
        if len(self.asked) < max(needed):
            other = ", or take --suite quick, which needs 20" if self.request.suite != "quick" else ""
            raise ValueError(
                f"too few pictures for the suite {self.request.suite}: its protocols need {max(needed)} inputs, and there are "
                f"{len(self.asked)} {self.request.split} pictures to translate; bring more{other}"
            )
        return [*self._distances(), *self._inception(inception), *self._diversity(lpips)]

    def _distances(self) -> list[Score]:
        sets, features = self.sets, self.features
        count = min(min(len(real), len(fake)) for real, fake in sets.values())
        if count < FEWEST_OF_A_SET:
            few = min(sets, key=lambda name: min(map(len, sets[name])))
            real, fake = map(len, sets[few])
            raise ValueError(
                f"too few pictures for a distance between sets: {real} real ones{f' with {few}' if few else ''} and {fake} "
                f"translations; it takes {FEWEST_OF_A_SET} of each"
            )
        return [Score(set_name("fid", count, count, features), count * len(sets), _of_sets(sets, features, count))]

    def _inception(self, protocol: str) -> list[Score]:
        sampling = protocol_of(protocol, INCEPTION_PROTOCOLS)
        if self.features.classes < 2:
            why = "the features tell no styles of the target domain and no attributes"
            self.left_out["is, cis"] = why if self.features.classes < 1 else "the features tell one style of the target domain"
            return []
        inputs = len(inputs_of(self.asked, sampling, protocol))
        name = inception_name("cis", inputs, sampling, self.features)
        count = inputs * (sampling.samples if self.pipeline.random_styles else 1)
        return [Score(name, count, lambda r: inception_scores(self.pipeline, self.asked, self.features, protocol, ranks=r))]

    def _diversity(self, protocol: str) -> list[Score]:
        pairing, distance = protocol_of(protocol, LPIPS_PROTOCOLS), self._distance()
        inputs = len(inputs_of(self.asked, pairing, protocol))
        count = inputs * pairing.samples if self.pipeline.random_styles else 0
        name = lpips_name(inputs, pairing, distance)
        return [Score(name, count, lambda r: lpips_diversity(self.pipeline, self.asked, distance, protocol, ranks=r))]

    def _distance(self) -> Compares:
        request = self.request
        if not request.lpips and isinstance(self.features, OwnFeatures):
            return OwnDistance(self.features)
        config = features_named(request.lpips or "alex", request.download)
        if config.name == "features":
            return OwnDistance(OwnFeatures(config.bundle, request.device))
        return open_lpips(config, request.device, "--lpips")


def sets_by_attribute(
    pipeline: Pipeline, store: Store, run: Run, split: str, pictures: Pictures
) -> dict[str, tuple[PictureSet, PictureSet]]:
    """For each attribute: real pictures of the split that have it, and translations of pictures that lack it into having it.

    Where a world draws every scene with every combination, real pictures are of all drawings. Attributes that no flip asks for
    are left out. Raises ValueError where none is left.
    """
    every = [id for domain in run.data.domains for id in store.ids(split, domain)]
    shown = attributes_of(store, every, pictures.names)
    found: dict[str, tuple[PictureSet, PictureSet]] = {}
    for index, name in enumerate(pictures.names):
        asked = [
            (number, wanted)
            for number, own in enumerate(pictures.own.tolist())
            for attribute, wanted in flips_of(own, pictures.names, pictures.groups)
            if attribute == index and wanted[index] == 1
        ]
        having = [id for id, value in zip(every, shown[:, index].tolist(), strict=True) if value == 1]
        count = min(len(asked), len(having))
        if count:
            real = Lazily(store, [having[row] for row in spread_rows(len(having), count)], run)
            found[name] = (real, Translations(pipeline, Asked(pictures, tuple(asked))))
    if not found:
        raise ValueError(f"no {split} picture of {store.uri} can be asked for any of {', '.join(pictures.names)}")
    return found


class Lazily:
    """Pictures of a store as a set, read when they are asked for."""

    def __init__(self, store: Store, ids: Sequence[str], run: Run) -> None:
        self.store, self.ids, self.run = store, ids, run

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Sequence[int]) -> Tensor:
        return cut(self.store, [self.ids[row] for row in rows], self.run).float() / 127.5 - 1


def _of_sets(sets: dict[str, tuple[PictureSet, PictureSet]], features: Extractor, count: int) -> Callable[[Ranks], Measurement]:
    """FID and KID of one pair of sets, or their means over several, with each one's as a part."""

    def measure(ranks: Ranks) -> Measurement:
        found = {name: fid_and_kid(real, fake, features, count, ranks) for name, (real, fake) in sets.items()}
        first = next(iter(found.values()))
        if list(found) == [""]:
            return first
        values: dict[str, float] = {}
        for metric in first.judgement.values:
            parts = {f"{metric}/{name}": own.judgement.values[metric] for name, own in found.items()}
            values |= {metric: sum(parts.values()) / len(parts), **parts}
        return Measurement(Judgement(values, {}), first.about)

    return measure


class Watched(Pipeline):
    """A pipeline that tells how many pictures it has translated."""

    tick: Tick

    def __call__(self, images: Tensor, *arguments: Any, **named: Any) -> Any:
        answer = super().__call__(images, *arguments, **named)
        self.tick(len(images))
        return answer


def watched(pipeline: Pipeline, tick: Tick | None) -> Pipeline:
    """The pipeline, telling `tick` of every batch; the same one where nobody listens."""
    if tick is None:
        return pipeline
    found = Watched(pipeline.model, pipeline.name, pipeline.device, pipeline.search)
    found.tick = tick
    return found
