"""Inception scores and LPIPS diversity: by hand, by torchmetrics, by their bounds, and on any number of processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from math import comb, log
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchmetrics.image.inception import InceptionScore

from recollect.batch import Domains, Guide, Translation
from recollect.config import ModelConfig
from recollect.evaluation.diversity import (
    INCEPTION_PROTOCOLS,
    LPIPS_PROTOCOLS,
    Pairing,
    Sampling,
    Translations,
    conditional_inception_score,
    inception_score,
    inception_scores,
    lpips_diversity,
    sample_seed,
)
from recollect.evaluation.extractors import Extractor, Lpips, lpips_net
from recollect.evaluation.frechet import Stack, fid, fid_and_kid, kid
from recollect.evaluation.metrics import METRICS, find_metric
from recollect.evaluation.validate import Cases
from recollect.pipeline import Pipeline
from recollect.trainable import Translator
from recollect.training.sync import Group, Ranks

SIDE = 32
DOMAINS = Domains(("day", "night"))


class Tinting(Translator):
    """Gives every picture one of `tints` by chance; with one tint it draws nothing by chance, but takes seeds all the same."""

    def __init__(self, tints: Tensor, keep: float = 0.25) -> None:
        super().__init__(ModelConfig(name="tinting"), DOMAINS)
        self.tints, self.keep = nn.Parameter(tints, requires_grad=False), keep

    @property
    def stride(self) -> int:
        return 1

    def translate(self, images: Tensor, source: int, target: int, guide: Guide = Guide()) -> Translation:
        noise = torch.zeros(len(images), 1) if guide.noise is None else guide.noise
        tint = self.tints[(noise[:, 0] * len(self.tints)).long()]
        return Translation(self.keep * images + (1 - self.keep) * tint[:, :, None, None], {})

    def sample_guide(self, target: int, generators: Sequence[torch.Generator]) -> Guide:
        return Guide(noise=torch.stack([torch.rand(1, generator=generator) for generator in generators]))


class Fixed(Tinting):
    """Draws nothing, and says so."""

    def sample_guide(self, target: int, generators: Sequence[torch.Generator]) -> Guide:
        raise NotImplementedError


class Colours(Extractor):
    """Tells red, green and blue pictures apart, and light from dark ones; a network of the same kind as the published ones."""

    name, digest, device, features, classes = "colours", "0" * 64, torch.device("cpu"), 12, 3
    sharpness = 2.0  # so that it is not sure of anything

    def describe(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images, 2).flatten(1).double()

    def probabilities(self, images: Tensor) -> Tensor:
        return (self.sharpness * images.mean((2, 3)).double()).softmax(1)[:, None]


class Attributes(Colours):
    """The same as three questions with yes and no."""

    classes, questions = 2, ("red", "green", "blue")

    def probabilities(self, images: Tensor) -> Tensor:
        yes = super().probabilities(images)[:, 0]
        return torch.stack([1 - yes, yes], 2)


def cases_of(count: int, size: int = SIDE) -> Cases:
    images = torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    ids = tuple(f"picture-{index}" for index in range(count))
    return Cases("day", "night", ids, images, (), images, None, ("background",), (), False)


CASES = cases_of(12)
RGB = torch.eye(3) * 1.6 - 0.8


def squeeze() -> Lpips:
    """LPIPS with drawn weights, the same ones every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        from torchvision.models import squeezenet1_1

        tensors = squeezenet1_1(weights=None).state_dict()
    return Lpips("squeeze", tensors, published=False)


probability = st.integers(0, 2**31).map(
    lambda seed: torch.softmax(
        torch.randn(4, 3, 5, generator=(g := torch.Generator().manual_seed(seed))).double()
        * 10 ** (2 * torch.rand(1, generator=g).double()),
        2,
    )
)


@settings(max_examples=100, deadline=None)
@given(probability)
def test_is_is_never_below_cis_and_both_have_their_bounds(p: Tensor) -> None:
    own, whole = conditional_inception_score(p), float(inception_score(p))
    assert float(own.min()) >= 0 and float(own.max()) <= log(3) + 1e-12  # three samples of five classes
    assert float(own.mean()) - 1e-12 <= whole <= log(5) + 1e-12
    between = torch.special.entr(p.mean((0, 1))).sum() - torch.special.entr(p.mean(1)).sum(1).mean()
    assert whole == pytest.approx(float(own.mean() + between), abs=1e-12)  # what IS adds: inputs that differ
    shuffled = p[:, torch.randperm(3, generator=torch.Generator().manual_seed(0))]
    assert torch.allclose(conditional_inception_score(shuffled), own, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(probability)
def test_one_translation_a_picture_has_no_cis_and_one_for_all_no_is(p: Tensor) -> None:
    deterministic = p[:, :1].expand(4, 7, 5)
    assert float(conditional_inception_score(deterministic).max()) < 1e-12
    assert float(inception_score(deterministic)) == pytest.approx(float(inception_score(p[:, :1])), abs=1e-12)
    collapsed = p[:1, :1].expand(4, 7, 5)
    assert max(float(conditional_inception_score(collapsed).max()), float(inception_score(collapsed))) < 1e-12


def test_inception_score_is_torchmetrics() -> None:
    logits = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)).double()
    theirs = InceptionScore(feature=nn.Identity(), splits=1)
    theirs.update(logits)
    assert float(inception_score(logits.softmax(1).view(8, 5, 6)).exp()) == pytest.approx(float(theirs.compute()[0]), rel=1e-6)


@pytest.mark.parametrize(("samples", "said"), [(2, 0.462), (10, 0.989), (100, 1.089)])
def test_cis_depends_on_the_number_of_samples_as_documented(samples: int, said: float) -> None:
    """Three sure and equally likely modes: the expectation over all outcomes, and what the function says of draws."""
    expected = 0.0
    for first in range(samples + 1):
        for second in range(samples - first + 1):
            shares = [share / samples for share in (first, second, samples - first - second) if share]
            times = comb(samples, first) * comb(samples - first, second) / 3**samples
            expected -= times * sum(share * log(share) for share in shares)
    assert expected == pytest.approx(said, abs=5e-4)
    modes = torch.randint(0, 3, (4000, samples), generator=torch.Generator().manual_seed(1))
    assert float(conditional_inception_score(torch.eye(3).double()[modes]).mean()) == pytest.approx(expected, abs=0.02)


def test_scores_of_a_translator_are_those_of_its_translations() -> None:
    """All pictures drawn at once, every seed by hand, and the formulas as written in the paper."""
    pipeline, protocol = Pipeline(Tinting(RGB)), Sampling(5, 9)
    judgement, about = inception_scores(pipeline, CASES, Colours(), protocol, seed=7)
    rows = [0, 2, 4, 7, 9]
    images = torch.stack([CASES.images[row] for row in rows for _ in range(9)]) / 127.5 - 1
    seeds = [sample_seed(7, CASES.ids[row], sample) for row in rows for sample in range(9)]
    p = Colours().probabilities(pipeline(images, "night", source="day", seeds=seeds).images)[:, 0].view(5, 9, 3)
    by_input = [sum(float((q * (q / p[i].mean(0)).log()).sum()) for q in p[i]) / 9 for i in range(5)]
    whole = sum(float((q * (q / p.mean((0, 1))).log()).sum()) for q in p.flatten(0, 1)) / 45
    assert judgement.values["cis_5x9@colours"] == pytest.approx(sum(by_input) / 5, rel=1e-5) and by_input[0] > 0.1
    assert judgement.values["is_5x9@colours"] == pytest.approx(whole, rel=1e-5)
    for name in ("cis_5x9@colours", "is_5x9@colours"):
        assert judgement.values[f"{name}/exp"] == pytest.approx(torch.tensor(judgement.values[name]).exp().item())
        assert find_metric(name).name == name.partition("_")[0] and find_metric(f"{name}/exp").higher_is_better
    assert about["inputs"] == 5 and about["samples"] == 9 and about["classes"] == 3
    assert about["log_classes"] == pytest.approx(log(3)) and about["features"] == "colours"
    found = judgement.by_picture["cis_5x9@colours"]
    assert found.weights.nonzero().flatten().tolist() == rows and len(found.values) == 12
    assert found.values[rows].tolist() == pytest.approx(by_input, rel=1e-5)


def test_questions_are_scored_one_by_one_and_their_mean_stands_for_all() -> None:
    judgement, about = inception_scores(Pipeline(Tinting(RGB)), CASES, Attributes(), Sampling(6, 8))
    parts = [judgement.values[f"cis_6x8@colours/{name}"] for name in ("red", "green", "blue")]
    assert judgement.values["cis_6x8@colours"] == pytest.approx(sum(parts) / 3) and min(parts) > 0.01
    assert about["log_classes"] == pytest.approx(log(2)) and max(parts) <= log(2)
    assert set(judgement.by_picture) == {f"cis_6x8@colours/{name}" for name in ("red", "green", "blue")}
    measured = judgement.measured("cis_6x8@colours")
    assert measured is not None and float(measured.by_seed()) == pytest.approx(sum(parts) / 3)


def test_who_draws_nothing_scores_nothing() -> None:
    """A method that takes seeds and does not use them, one that takes none, and one that shows the same whatever it is given."""
    for model in (Tinting(RGB[:1]), Fixed(RGB)):
        values = inception_scores(Pipeline(model), CASES, Colours(), Sampling(6, 8)).judgement.values
        assert values["cis_6x8@colours"] == pytest.approx(0, abs=1e-12)
        assert values["cis_6x8@colours/exp"] == pytest.approx(1, abs=1e-12)
        assert lpips_diversity(Pipeline(model), CASES, squeeze(), Pairing(2, 3)).judgement.values.popitem()[1] < 1e-9
    assert inception_scores(Pipeline(Fixed(RGB)), CASES, Colours(), Sampling(6, 8)).about["random_styles"] == 0
    collapsed = inception_scores(Pipeline(Tinting(RGB[:1], keep=0)), CASES, Colours(), Sampling(6, 8)).judgement.values
    assert collapsed["is_6x8@colours"] == pytest.approx(0, abs=1e-12)
    by_input = cases_of(3)
    by_input = replace(by_input, images=(torch.eye(3) * 255).to(torch.uint8)[:, :, None, None].expand(3, 3, SIDE, SIDE))
    sure = Colours()
    sure.sharpness = 20
    values = inception_scores(Pipeline(Fixed(RGB[:1] * 0, keep=1)), by_input, sure, Sampling(3, 4)).judgement.values
    assert values["cis_3x4@colours"] < 1e-12 and values["is_3x4@colours"] == pytest.approx(log(3), abs=1e-6)


def test_a_sample_depends_on_its_own_seed_only() -> None:
    drawn = Translations(Pipeline(Tinting(torch.rand(64, 3, generator=torch.Generator().manual_seed(0)))), CASES, samples=11)
    assert len(drawn) == 132 and len({sample_seed(0, id, j) for id in CASES.ids for j in range(11)}) == 132
    together = drawn.draw(3, range(11))
    assert torch.equal(torch.cat([drawn.draw(3, [j]) for j in range(11)]), together)
    assert torch.equal(drawn[range(33, 44)], together)
    assert not torch.equal(Translations(drawn.pipeline, CASES, 11, seed=1).draw(3, range(11)), together)
    plain = Translations(drawn.pipeline, CASES)
    assert len(plain) == 12 and torch.equal(plain[[5]], drawn.pipeline(CASES.images[5:6] / 127.5 - 1, "night").images)


@pytest.mark.parametrize(("protocol", "name", "pairs"), [
    (Pairing(4, 6, 3), "lpips_4x3", [(0, 1), (2, 3), (4, 5)]),
    (Pairing(None, 3), "lpips_12x3all", [(0, 1), (0, 2), (1, 2)]),
])  # fmt: skip
def test_lpips_diversity_is_the_mean_over_pairs(protocol: Pairing, name: str, pairs: list[tuple[int, int]]) -> None:
    distance, pipeline = squeeze(), Pipeline(Tinting(RGB))
    judgement, about = lpips_diversity(pipeline, CASES, distance, protocol)
    inputs = protocol.inputs or 12
    by_input = []
    for row in range(0, 12, 12 // inputs):
        pictures = Translations(pipeline, CASES, protocol.samples).draw(row, range(protocol.samples))
        by_input.append(sum(float(distance(pictures[i][None], pictures[j][None])) for i, j in pairs) / len(pairs))
    name = f"{name}@{distance.name}"
    assert judgement.values == {name: pytest.approx(sum(by_input) / inputs, rel=1e-4)} and max(by_input) > 0
    weights = judgement.by_picture[name].weights
    assert judgement.by_picture[name].values[weights > 0].tolist() == pytest.approx(by_input, rel=1e-4)
    assert find_metric(name).name == "lpips" and about["pairs"] == len(pairs) and about["digest"] == distance.digest
    distance.published = True
    distance.name = "alex"
    assert list(lpips_diversity(pipeline, CASES, distance, protocol).judgement.values) == [name.partition("@")[0]]
    distance.name = "vgg"
    assert list(lpips_diversity(pipeline, CASES, distance, protocol).judgement.values) == [f"{name.partition('@')[0]}@vgg"]


def test_the_protocols_are_the_papers() -> None:
    pairs = {name: pairing.choose(torch.Generator().manual_seed(0)) for name, pairing in LPIPS_PROTOCOLS.items()}
    assert {name: len(chosen) for name, chosen in pairs.items()} == {
        "quick": 45,
        "munit": 19,
        "stargan_v2": 45,
        "rg_unit": 45,
        "msgan": 50,
    }
    assert len(set(pairs["munit"].flatten().tolist())) == 38, "disjoint"
    for chosen in pairs.values():
        assert len(set(map(tuple, chosen.tolist()))) == len(chosen) and bool((chosen[:, 0] < chosen[:, 1]).all())
    other = LPIPS_PROTOCOLS["msgan"].choose(torch.Generator().manual_seed(1))
    assert not torch.equal(other, pairs["msgan"])
    named = {name: (pairing.inputs, pairing.protocol) for name, pairing in LPIPS_PROTOCOLS.items()}
    assert named.pop("quick") == (20, "10all")  # ours
    assert named == {"munit": (100, "19"), "stargan_v2": (None, "10all"), "rg_unit": (100, "10all"), "msgan": (None, "50of50")}
    assert {"munit": Sampling(100, 100), "quick": Sampling(20, 10)} == INCEPTION_PROTOCOLS


def test_what_a_protocol_cannot_have_is_named() -> None:
    pipeline = Pipeline(Tinting(RGB))
    with pytest.raises(ValueError, match=r"munit needs 100 inputs, and there are 12.*inputs=12"):
        inception_scores(pipeline, CASES, Colours())
    with pytest.raises(ValueError, match="rg_unit needs 100 inputs"):
        lpips_diversity(pipeline, CASES, squeeze(), "rg_unit")
    with pytest.raises(ValueError, match="no protocol 'munti'; did you mean 'munit'"):
        inception_scores(pipeline, CASES, Colours(), "munti")
    with pytest.raises(ValueError, match="at least 2 samples"):
        inception_scores(pipeline, CASES, Colours(), Sampling(2, 1))
    with pytest.raises(ValueError, match="of 3 samples there are 3 pairs, not 4"):
        Pairing(1, 3, 4)
    one = Colours()
    one.classes = 1
    with pytest.raises(ValueError, match="tells 1 class; an inception score needs at least 2"):
        inception_scores(pipeline, CASES, one, Sampling(2, 2))
    with pytest.raises(ValueError, match=r"translations of picture-0 have values that are not finite"):
        inception_scores(Pipeline(Tinting(RGB * torch.nan)), CASES, Colours(), Sampling(2, 2))

    class Logits(Colours):
        def probabilities(self, images: Tensor) -> Tensor:
            return super().probabilities(images) * 3

    with pytest.raises(ValueError, match="colours says no probabilities of the translations of picture-0"):
        inception_scores(pipeline, CASES, Logits(), Sampling(2, 2))
    with pytest.raises(ValueError, match="32 pixels a side"):
        lpips_diversity(pipeline, cases_of(2, 16), squeeze(), Pairing(2, 2))


class Forgetful(Group):
    """Ranks that do not sum: what the test below has to notice."""

    def reduce(self, tensor: Tensor) -> Tensor:
        return tensor


def everything(ranks: Ranks, forget: bool) -> dict[str, float]:
    """All metrics of diversity and of sets."""
    torch.manual_seed(100 + ranks.rank)  # what is drawn by the process's own generator would differ
    pipeline, cases, colours = Pipeline(Tinting(RGB)), cases_of(7), Colours()
    found = [inception_scores(pipeline, cases, colours, Sampling(5, 4), ranks=ranks)]
    found += [lpips_diversity(pipeline, cases, squeeze(), pairing, ranks=ranks) for pairing in (Pairing(3, 4, 3), Pairing(1, 2))]
    real, fake = Stack(cases_of(90).images), Translations(pipeline, cases, samples=12)
    found += [fid(real, fake, colours, ranks=ranks), kid(real, fake, colours, 80, subsets=5, size=20, ranks=ranks)]
    found += [fid_and_kid(real, fake, colours, 70, ranks=ranks)]
    if not forget:  # a batch each, so the second rank has none; it would have nothing to compute with
        found += [fid(Stack(real.images[:30]), Stack(real.images[30:40]), colours, ranks=ranks)]
    values = {name: value for measured in found for name, value in measured.judgement.values.items()}
    rows = {f"{name} by picture": part.values.tolist() for m in found for name, part in m.judgement.by_picture.items()}
    return values | {f"{name} {row}": value for name, numbers in rows.items() for row, value in enumerate(numbers)}


def run_rank(rank: int, world: int, folder: str, forget: bool) -> None:
    """One process of several: what it finds goes to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    Path(folder, f"{rank}.json").write_text(json.dumps(everything(Forgetful() if forget else Group(), forget)))
    dist.destroy_process_group()


@pytest.mark.parametrize("forget", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_say_what_one_says(tmp_path: Path, forget: bool) -> None:
    start = f"import runpy, sys; runpy.run_path({__file__!r})['run_rank'](int(sys.argv[1]), 2, {str(tmp_path)!r}, {forget})"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen([sys.executable, "-c", start, str(rank)], env=environment) for rank in range(2)]
    alone = everything(Ranks(), forget)
    assert [process.wait(120) for process in processes] == [0, 0]
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found.keys() == alone.keys() and len(found) > 12
        same = [name for name in found if found[name] == pytest.approx(alone[name], rel=1e-6, abs=1e-9)]
        assert (len(same) == len(found)) != forget


def test_every_metric_has_its_paragraph() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert [name for name in METRICS if f"`{name}`" not in page] == []
    for name in (*INCEPTION_PROTOCOLS, *LPIPS_PROTOCOLS):
        assert f"`{name}`" in page


def test_the_networks_that_lpips_ships_have_their_heads() -> None:
    heads = lpips_net("alex").lin0.model[1].weight.detach()
    assert float(heads.min()) >= 0 and float(heads.max()) > 0
