"""How much translations of one picture differ: inception scores and pair-wise LPIPS, by the protocols of the papers.

`cis_100x100@<features>` is MUNIT's conditional inception score over 100 inputs with 100 translations each,
`is_100x100@<features>` the inception score of the same translations. Both are in nats, as the formula says; `.../exp` are their
exponentials, as the released codes print. `lpips_100x19` is the mean LPIPS (published AlexNet) over 19 disjoint pairs of
translations of each of 100 inputs; `x10all` compares all pairs of ten, `x50of50` fifty random pairs among fifty. The name of
what was measured with any other network goes on with `@<features>`.

- CIS grows with the number n of samples: with three equally likely modes, each told for sure, its expectation is 0.462 at n = 2,
  0.989 at n = 10, 1.089 at n = 100, and ln 3 = 1.099 in the limit. So n is in the name, and numbers of different n are not
  compared.
- Neither says whether translations are good: noise is diverse. They stand beside FID and what compares with truth.
- Sample j of an input is drawn from a seed of its own, made of (seed, input's id, j). Rank r of R takes every R-th input.

Legend: N inputs, n samples of each, B of them at once, H x W pixels, K classes, Q questions that a classifier answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor

from recollect.config import did_you_mean
from recollect.evaluation.frechet import Measurement
from recollect.evaluation.validate import ByPicture, Judgement
from recollect.pipeline import Pipeline
from recollect.training.sync import Ranks

BATCH = 8  # translations drawn at once


class Classifies(Protocol):
    """What tells class probabilities of pictures: `recollect.evaluation.extractors.Extractor`."""

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def questions(self) -> tuple[str, ...]: ...  # Q; one without a name where there is only one
    @property
    def classes(self) -> int: ...  # K
    def probabilities(self, images: Tensor) -> Tensor: ...  # (B, Q, K) of (B, 3, H, W) in [-1, 1]


class Compares(Protocol):
    """What tells how far pictures are from each other: `recollect.evaluation.extractors.Lpips`."""

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def published(self) -> bool: ...
    @property
    def device(self) -> torch.device: ...
    def between(self, images: Tensor, pairs: Tensor) -> Tensor: ...  # (P,) of (n, 3, H, W) and pairs (P, 2) of their numbers


class Asks(Protocol):
    """Pictures, and what is asked of a translator for each: `validate.Cases`, or `attributes.Asked`."""

    @property
    def ids(self) -> Sequence[str]: ...
    def __len__(self) -> int: ...
    def translate(self, pipeline: Pipeline, chosen: Sequence[int], seeds: Sequence[int] | None = None, /) -> Tensor: ...


@dataclass(frozen=True)
class Sampling:
    """How many inputs (None: all there are), and how many translations of each."""

    inputs: int | None
    samples: int


@dataclass(frozen=True)
class Pairing(Sampling):
    """Which pairs of translations of an input are compared: all, or so many.

    Pairs are disjoint, (0, 1), (2, 3) and so on, where there are samples enough for that; else they are drawn from all pairs.
    """

    pairs: int | Literal["all"] = "all"

    def __post_init__(self) -> None:
        most = self.samples * (self.samples - 1) // 2
        if self.samples < 2 or (self.pairs != "all" and not 1 <= self.pairs <= most):
            raise ValueError(f"of {self.samples} samples there are {most} pairs, not {self.pairs}")

    @property
    def protocol(self) -> str:
        """What the metric's name says of it.

        >>> Pairing(None, 38, 19).protocol, Pairing(None, 10).protocol, Pairing(None, 50, 50).protocol
        ('19', '10all', '50of50')
        """
        if self.pairs == "all":
            return f"{self.samples}all"
        return f"{self.pairs}" if self.samples == 2 * self.pairs else f"{self.pairs}of{self.samples}"

    def choose(self, generator: torch.Generator) -> Tensor:
        """The pairs (P, 2) of numbers of samples."""
        if self.pairs != "all" and 2 * self.pairs <= self.samples:
            return torch.arange(2 * self.pairs).view(-1, 2)
        every = torch.triu_indices(self.samples, self.samples, 1).T
        return every if self.pairs == "all" else every[torch.randperm(len(every), generator=generator)[: self.pairs]]


Protocoled = TypeVar("Protocoled", bound=Sampling)
INCEPTION_PROTOCOLS = {"munit": Sampling(100, 100), "quick": Sampling(20, 10)}
LPIPS_PROTOCOLS = {
    "quick": Pairing(20, 10, "all"),
    "munit": Pairing(100, 38, 19),  # 1,900 pairs; as BicycleGAN
    "stargan_v2": Pairing(None, 10, "all"),  # the mean over ordered pairs of domains is the caller's
    "rg_unit": Pairing(100, 10, "all"),
    "msgan": Pairing(None, 50, 50),  # 50 random pairs among 50
}


class Translations:
    """Translations of the pictures of cases, made when they are asked for; a set of pictures for `frechet`.

    Args:
        pipeline: the translator.
        cases: the pictures and what is asked of them.
        samples: how many of each picture, by seeds; 0: the deterministic one. In order: all of the first picture, then the next.
        seed: changes all draws.
    """

    def __init__(self, pipeline: Pipeline, cases: Asks, samples: int = 0, seed: int = 0) -> None:
        self.pipeline, self.cases, self.samples, self.seed = pipeline, cases, samples, seed

    def __len__(self) -> int:
        return len(self.cases) * max(self.samples, 1)

    def __getitem__(self, rows: Sequence[int]) -> Tensor:
        each = max(self.samples, 1)
        found = []
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            found.append(self._translate([row // each for row in part], [row % each for row in part] if self.samples else None))
        return torch.cat(found)

    def draw(self, case: int, samples: Sequence[int]) -> Tensor:
        """The translations (B, 3, H, W) in [-1, 1] of one picture with these numbers, on the CPU."""
        return self._translate([case] * len(samples), samples)

    def _translate(self, chosen: Sequence[int], samples: Sequence[int] | None) -> Tensor:
        seeds = None
        if samples is not None:
            seeds = [sample_seed(self.seed, self.cases.ids[case], sample) for case, sample in zip(chosen, samples, strict=True)]
        return self.cases.translate(self.pipeline, chosen, seeds)


def sample_seed(seed: int, id: str, sample: int) -> int:
    """The seed of one translation: it depends on nothing else, neither on the other inputs nor on how many samples there are."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{sample}/{id}".encode()).digest()[:7])


def conditional_inception_score(probabilities: Tensor) -> Tensor:
    """CIS by input (N,) in nats of P (N, n, ..., K): mean over samples of KL(P_ij || mean_j P_ij); the score is its mean.

    At most log min(n, K). Shapes in the middle (questions) stay: (N, ...).

    >>> conditional_inception_score(torch.eye(2).repeat(1, 3, 1)).exp()
    tensor([2.])
    """
    return _divergence(probabilities, probabilities.mean(1, keepdim=True)).mean(1)


def inception_score(probabilities: Tensor) -> Tensor:
    """IS in nats of P (N, n, ..., K): mean over inputs and samples of KL(P_ij || mean_ij P_ij); shape (...). At most log K.

    It is CIS plus how much inputs differ from each other, so never less than the mean of CIS.

    >>> one_class_an_input = torch.eye(4)[:, None].repeat(1, 5, 1)
    >>> inception_score(one_class_an_input).exp(), conditional_inception_score(one_class_an_input)
    (tensor(4.), tensor([0., 0., 0., 0.]))
    """
    flat = probabilities.flatten(0, 1)
    return _divergence(flat, flat.mean(0, keepdim=True)).mean(0)


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) over the last axis, in nats; 0 log 0 is 0. Clamped: rounding makes it -1e-17 where both are the same."""
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1).clamp_min(0)


def inception_scores(
    pipeline: Pipeline,
    cases: Asks,
    classifier: Classifies,
    protocol: str | Sampling = "munit",
    seed: int = 0,
    ranks: Ranks = Ranks(),
) -> Measurement:
    """IS and CIS of translations by random styles, in nats and (`/exp`) exponentiated; by question where there are several.

    As published the classifier tells the modes INSIDE the target domain. Of a classifier that answers Q questions (attributes,
    yes or no) the score is the mean over questions, `<name>/<question>` each one's, and `/exp` the exponential of the mean.

    Args:
        pipeline: a translator; one without random styles has one translation a picture, and its CIS is 0 by definition.
        cases: the inputs and what is asked of them.
        protocol: `munit` (100 inputs x 100 samples), `quick` (20 x 10), or numbers of your own, which are then in the name.
        ranks: who shares the work; every rank calls this with the same arguments, and every rank gets the numbers.

    Raises ValueError for unknown protocols, for fewer inputs than the protocol has, for one class only, and for answers
    that are no probabilities.
    """
    sampling = protocol_of(protocol, INCEPTION_PROTOCOLS)
    if classifier.classes < 2:
        raise ValueError(f"{classifier.name} tells {classifier.classes} class; an inception score needs at least 2")
    if sampling.samples < 2:
        raise ValueError(f"an inception score needs at least 2 samples of an input, not {sampling.samples}")
    rows = inputs_of(cases, sampling, protocol)
    several, questions, classes = pipeline.random_styles, len(classifier.questions), classifier.classes
    drawn = Translations(pipeline, cases, sampling.samples if several else 0, seed)
    own = torch.zeros(len(rows), questions, dtype=torch.double)  # CIS by input
    means = torch.zeros(len(rows), questions, classes, dtype=torch.double)
    within = torch.zeros(len(rows), questions, dtype=torch.double)  # the mean of -entropy over an input's samples
    for place in range(ranks.rank, len(rows), ranks.world):
        found = _probabilities(drawn, rows[place], classifier)
        own[place], means[place] = conditional_inception_score(found[None])[0], found.mean(0)
        within[place] = torch.xlogy(found, found).sum(-1).mean(0)
    own, means, within = (ranks.reduce(state.to(classifier.device)).cpu() for state in (own, means, within))
    marginal = means.mean(0)
    whole = (within.mean(0) - torch.xlogy(marginal, marginal).sum(-1)).clamp_min(0)  # (Q,): the mean KL to the marginal
    suffix = inception_name("", len(rows), sampling, classifier)
    by_picture = _by_question(f"cis{suffix}", own, rows, len(cases), classifier.questions)
    values = _scores(f"cis{suffix}", own.mean(0), classifier.questions) | _scores(f"is{suffix}", whole, classifier.questions)
    about = _about(classifier, len(rows), sampling.samples, seed, several) | {"classes": classes, "log_classes": log(classes)}
    return Measurement(Judgement(values, by_picture), about)


def lpips_diversity(
    pipeline: Pipeline,
    cases: Asks,
    distance: Compares,
    protocol: str | Pairing = "munit",
    seed: int = 0,
    ranks: Ranks = Ranks(),
) -> Measurement:
    """The mean LPIPS between pairs of translations of one input, then over inputs.

    Args:
        pipeline: a translator; one without random styles scores 0.
        cases: the inputs and what is asked of them.
        distance: `extractors.open_lpips`. Only the published AlexNet's number has the name without `@`.
        protocol: `munit`, `stargan_v2`, `rg_unit`, `msgan`, `quick`, or a `Pairing` of your own.
        ranks: as of `inception_scores`.

    Raises ValueError for unknown protocols and for fewer inputs than the protocol has.
    """
    pairing = protocol_of(protocol, LPIPS_PROTOCOLS)
    rows = inputs_of(cases, pairing, protocol)
    drawn = Translations(pipeline, cases, pairing.samples, seed)
    several = pipeline.random_styles
    own = torch.zeros(len(rows), dtype=torch.double)
    for place in range(ranks.rank, len(rows), ranks.world) if several else ():
        generator = torch.Generator().manual_seed(sample_seed(seed, cases.ids[rows[place]], -1))
        pairs = pairing.choose(generator)
        images = torch.cat([drawn.draw(rows[place], part) for part in _parts(pairing.samples)])
        own[place] = distance.between(images, pairs).double().mean()
    own = ranks.reduce(own.to(distance.device)).cpu()
    name = lpips_name(len(rows), pairing, distance)
    pairs_each = len(pairing.choose(torch.Generator()))
    about = _about(distance, len(rows), pairing.samples, seed, several) | {"pairs": pairs_each}
    by_picture = _by_question(name, own[:, None], rows, len(cases), ("",))
    return Measurement(Judgement({name: float(own.mean())}, by_picture), about)


def inception_name(kind: str, inputs: int, sampling: Sampling, classifier: Classifies) -> str:
    """What `is` or `cis` of so many inputs is called."""
    return f"{kind}_{inputs}x{sampling.samples}@{classifier.name}"


def lpips_name(inputs: int, pairing: Pairing, distance: Compares) -> str:
    """What the diversity of so many inputs is called: only with the published AlexNet without the network's name."""
    features = "" if distance.published and distance.name == "alex" else f"@{distance.name}"
    return f"lpips_{inputs}x{pairing.protocol}{features}"


def _probabilities(drawn: Translations, case: int, classifier: Classifies) -> Tensor:
    """What the classifier says (n, Q, K) of one picture's translations, float64; n is 1 where they are all the same.

    Raises ValueError for what are no probabilities.
    """
    batches = (drawn.draw(case, part) for part in _parts(drawn.samples)) if drawn.samples else iter([drawn[[case]]])
    found = torch.cat([classifier.probabilities(images) for images in batches]).double().cpu()
    total = found.sum(-1)
    if not bool((found >= 0).all()) or not torch.allclose(total, torch.ones_like(total), atol=1e-4):
        raise ValueError(f"{classifier.name} says no probabilities of the translations of {drawn.cases.ids[case]}")
    return found / total[..., None]


def _parts(samples: int) -> list[range]:
    return [range(start, min(start + BATCH, samples)) for start in range(0, samples, BATCH)]


def protocol_of(protocol: str | Protocoled, known: dict[str, Protocoled]) -> Protocoled:
    """The numbers behind a protocol's name. Raises ValueError for one that is not known."""
    if not isinstance(protocol, str):
        return protocol
    if protocol not in known:
        raise ValueError(f"there is no protocol {protocol!r}{did_you_mean(protocol, known)}")
    return known[protocol]


def inputs_of(cases: Asks, sampling: Sampling, protocol: object = None) -> list[int]:
    """Which of the cases are translated: as many as the protocol says, evenly spread.

    Raises ValueError where there are fewer.
    """
    count = len(cases) if sampling.inputs is None else sampling.inputs
    if not 1 <= count <= len(cases):
        raise ValueError(
            f"{protocol if isinstance(protocol, str) else 'the protocol'} needs {count} inputs, and there are {len(cases)}; "
            f"gather more pictures, or give a protocol with inputs={len(cases)}: the number is then in the name"
        )
    return [index * len(cases) // count for index in range(count)]


def _scores(name: str, nats: Tensor, questions: Sequence[str]) -> dict[str, float]:
    """The mean over questions, its exponential, and each question's where there are several."""
    mean = float(nats.mean())
    parts = {f"{name}/{question}": float(value) for question, value in zip(questions, nats, strict=True) if len(questions) > 1}
    return {name: mean, f"{name}/exp": exp(mean), **parts}


def _by_question(name: str, own: Tensor, rows: Sequence[int], count: int, questions: Sequence[str]) -> dict[str, ByPicture]:
    """Scores (N, Q) of the inputs at `rows` in the order of all cases; the others count 0."""
    values, weights = torch.zeros(count, len(questions), dtype=torch.double), torch.zeros(count, dtype=torch.double)
    values[list(rows)], weights[list(rows)] = own, 1.0
    names = [f"{name}/{question}" for question in questions] if len(questions) > 1 else [name]
    return {part: ByPicture(values[:, index], weights) for index, part in enumerate(names)}


def _about(network: Classifies | Compares, inputs: int, samples: int, seed: int, several: bool) -> dict[str, str | int | float]:
    """What the numbers depend on."""
    counts = {"inputs": inputs, "samples": samples, "seed": seed, "random_styles": int(several)}
    return {"features": network.name, "digest": network.digest, **counts}
