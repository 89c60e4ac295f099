"""Distances between sets: against scipy, torch-fidelity's formula and by hand; names, subsets and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg  # type: ignore[import-untyped]
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recollect.data.transforms import check_pictures
from recollect.evaluation import classification
from recollect.evaluation.extractors import Extractor
from recollect.evaluation.features import feature_distance
from recollect.evaluation.frechet import Stack, fid, fid_and_kid, frechet, kid
from recollect.evaluation.metrics import find_metric


class Quarters(Extractor):
    """The mean colour of each quarter."""

    name, digest, device, features, classes = "quarters", "1" * 64, torch.device("cpu"), 12, 2

    def describe(self, images: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1).double()

    def probabilities(self, images: Tensor) -> Tensor:
        raise NotImplementedError


def pictures(count: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    tint = torch.randn(count, 3, 2, 2, generator=generator) * 0.2 + shift
    return torch.nn.functional.interpolate(tint.clamp(-1, 1), (8, 8))


REAL, FAKE = pictures(90, 0), pictures(70, 1, 0.3)
FEATURES = Quarters()


def by_scipy(one: Tensor, other: Tensor) -> float:
    first, second = np.cov(one.numpy(), rowvar=False), np.cov(other.numpy(), rowvar=False)
    mean = (one.mean(0) - other.mean(0)).numpy()
    return float(mean @ mean + np.trace(first + second - 2 * np.real(scipy.linalg.sqrtm(first @ second))))


def test_fid_is_frechets_distance_of_the_features() -> None:
    judgement, about = fid(Stack(REAL), Stack(FAKE), FEATURES)
    assert list(judgement.values) == ["fid_70v90@quarters"] and not judgement.by_picture
    one, other = FEATURES.describe(REAL), FEATURES.describe(FAKE)
    value = judgement.values["fid_70v90@quarters"]
    assert value == pytest.approx(by_scipy(one, other), rel=1e-6) and value > 0.5
    assert value == pytest.approx(frechet(one, other), rel=1e-9)
    assert about["real"] == 90 and about["fake"] == 70 and about["digest"] == "1" * 64 and about["rank_deficient"] == 0
    assert vars(classification)["frechet"] is frechet
    statistics = pytest.importorskip(
        "torch_fidelity.metric_fid", reason="torch-fidelity is not installed"
    ).fid_statistics_to_metric
    sides = ({"mu": x.mean(0).numpy(), "sigma": np.cov(x.numpy(), rowvar=False)} for x in (one, other))
    assert value == pytest.approx(statistics(*sides, verbose=False)["frechet_inception_distance"], rel=1e-6)


def test_a_count_takes_so_many_of_each_evenly() -> None:
    judgement, _ = fid(Stack(REAL), Stack(FAKE), FEATURES, count=35)
    rows = [index * 90 // 35 for index in range(35)]
    expected = frechet(FEATURES.describe(REAL[rows]), FEATURES.describe(FAKE[::2]))
    assert judgement.values == {"fid_35@quarters": pytest.approx(expected, rel=1e-9)}
    assert fid(Stack(REAL), Stack(REAL), FEATURES, count=10).about["rank_deficient"] == 1


def test_bytes_and_floats_are_the_same_pictures() -> None:
    coded = ((REAL + 1) * 127.5).round().to(torch.uint8)
    values = [fid(Stack(one), Stack(FAKE), FEATURES).judgement.values for one in (coded, coded / 127.5 - 1)]
    assert values[0] == pytest.approx(values[1])


def cubic(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def test_kid_of_the_whole_sets_is_the_unbiased_discrepancy() -> None:
    judgement, about = kid(Stack(REAL[:60]), Stack(FAKE[:60]), FEATURES)
    one, other = FEATURES.describe(REAL[:60]), FEATURES.describe(FAKE[:60])
    value = judgement.values["kid_60@quarters"]
    assert value == pytest.approx(feature_distance(one, other), rel=1e-9) and value > 0.01
    assert about["subsets"] == 1 and about["subset_size"] == 60 and about["deviation"] == 0
    own, theirs, cross = cubic(one, one), cubic(other, other), cubic(one, other)
    by_hand = (own.sum() - own.trace() + theirs.sum() - theirs.trace()) / (60 * 59) - 2 * cross.mean()
    assert value == pytest.approx(float(by_hand), rel=1e-9)


def test_kid_draws_the_subsets_of_its_seed_and_leaves_other_draws_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    judgement, about = kid(Stack(REAL), Stack(FAKE), FEATURES, subsets=7, size=20, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(judgement.values) == ["kid_70v90_7x20@quarters"]
    one, other = FEATURES.describe(REAL), FEATURES.describe(FAKE)
    torch.manual_seed(3)
    drawn = [feature_distance(one[torch.randperm(90)[:20]], other[torch.randperm(70)[:20]]) for _ in range(7)]
    assert judgement.values["kid_70v90_7x20@quarters"] == pytest.approx(sum(drawn) / 7, rel=1e-9)
    assert about["deviation"] == pytest.approx(float(torch.tensor(drawn).std(correction=0)), rel=1e-5)
    torch.manual_seed(6)
    again = kid(Stack(REAL), Stack(FAKE), FEATURES, subsets=7, size=20, seed=3)
    assert again.judgement.values == judgement.values
    assert kid(Stack(REAL), Stack(FAKE), FEATURES, subsets=7, size=20, seed=4).judgement.values != judgement.values
    assert "kid_70v90@quarters" in kid(Stack(REAL), Stack(FAKE), FEATURES).judgement.values


def test_both_distances_at_once_are_the_two_and_describe_once() -> None:
    asked: list[int] = []

    class Counting(Quarters):
        def describe(self, images: Tensor) -> Tensor:
            asked.append(len(images))
            return super().describe(images)

    values, about = fid_and_kid(Stack(REAL), Stack(FAKE), Counting(), 60)
    assert sum(asked) == 120 and about["rank_deficient"] == 0
    one, other = fid(Stack(REAL), Stack(FAKE), FEATURES, 60), kid(Stack(REAL), Stack(FAKE), FEATURES, 60)
    expected = one.judgement.values | other.judgement.values
    assert values.values.keys() == expected.keys()
    assert all(values.values[name] == pytest.approx(value, rel=1e-9) for name, value in expected.items())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.permutations(range(40)))
def test_the_order_of_pictures_does_not_matter_and_nothing_is_at_distance_zero(seed: int, order: list[int]) -> None:
    one, other = pictures(40, seed), pictures(40, seed + 1, 0.1)
    value = fid(Stack(one), Stack(other), FEATURES).judgement.values["fid_40@quarters"]
    assert value == pytest.approx(fid(Stack(one[order]), Stack(other), FEATURES).judgement.values["fid_40@quarters"], rel=1e-6)
    assert value == pytest.approx(fid(Stack(other), Stack(one), FEATURES).judgement.values["fid_40@quarters"], rel=1e-6)
    assert fid(Stack(one), Stack(one[order]), FEATURES).judgement.values["fid_40@quarters"] == pytest.approx(0, abs=1e-7)


def test_what_cannot_be_compared_is_named() -> None:
    for distance in (fid, kid):
        with pytest.raises(ValueError, match="at least 2 pictures on each side, not 90 and 1"):
            distance(Stack(REAL), Stack(FAKE[:1]), FEATURES)
        with pytest.raises(ValueError, match="80 pictures are to be compared, and there are 90 real ones and 70 translations"):
            distance(Stack(REAL), Stack(FAKE), FEATURES, count=80)
        with pytest.raises(ValueError, match="not finite"):
            distance(Stack(REAL), Stack(FAKE * torch.nan), FEATURES)

        class Mixed(Stack):
            def __getitem__(self, rows: object) -> Tensor:
                assert isinstance(rows, list)
                return torch.zeros(len(rows), 3, 8 + rows[0] // 32, 8)

        with pytest.raises(ValueError, match=r"one size, not \(8, 8\) and \(9, 8\)"):
            distance(Mixed(REAL), Stack(FAKE), FEATURES)
    with pytest.raises(ValueError, match="at least 1 subset of at least 2"):
        kid(Stack(REAL), Stack(FAKE), FEATURES, size=1)
    with pytest.raises(ValueError, match=r"not in \[0, 255\]; to_unit"):
        check_pictures(torch.tensor([0.0, 255.0]).expand(1, 3, 1, 2))


def test_a_process_group_that_others_made_does_not_change_a_number(tmp_path: object) -> None:
    """torchmetrics would gather over it by itself, whatever the caller's ranks are."""
    one, other = FEATURES.describe(REAL), FEATURES.describe(FAKE)
    expected = frechet(one, other)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        gathered = []
        original = dist.all_gather
        dist.all_gather = lambda *args, **kwargs: gathered.append(args) or original(*args, **kwargs)  # type: ignore[func-returns-value]
        assert frechet(one, other) == expected and kid(Stack(REAL), Stack(FAKE), FEATURES, size=20)
        assert not gathered
    finally:
        dist.all_gather = original
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("fid_1000@inception", "fid"),
        ("fid_200v50@classifier:0a1b2c3d", "fid"),
        ("kid_500_50x100@inception", "kid"),
        ("is_20x10@inception/exp", "is"),
        ("cis_100x100@classifier:0a1b2c3d/Male", "cis"),
        ("lpips_100x19", "lpips"),
        ("lpips_100x10all@vgg", "lpips"),
        ("lpips_12x50of50@alex:0a1b2c3d", "lpips"),
        ("fid@classifier/Male", "fid@classifier"),
        ("p_at_10/content", "p_at_10/content"),
    ],
)
def test_a_metric_is_found_by_its_whole_name(name: str, family: str) -> None:
    metric = find_metric(name)
    assert metric.name == family
    assert metric.higher_is_better != family.startswith(("fid", "kid"))


@pytest.mark.parametrize(
    "name", ["fid_", "fid_many@inception", "scene_error_12", "lpips_100x@alex", "fid_10@", "fidd_10@inception"]
)
def test_a_name_that_says_no_protocol_is_unknown(name: str) -> None:
    with pytest.raises(ValueError, match="no metric"):
        find_metric(name)
