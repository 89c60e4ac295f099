"""Intervals: a case worked out by hand, coverage by simulation, and that pairing is what makes differences sharp."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]
from torch import Tensor

from recollect.evaluation.metrics import RegionErrors, scene_error
from recollect.evaluation.statistics import Interval, Measured, difference, draw_pictures, estimate, student


def plain(values: Tensor) -> Measured:
    """Values (S, B) that count alike."""
    return Measured(values[..., None], torch.ones(values.shape[1], 1))


def test_a_score_is_the_mean_over_groups_of_weighted_means() -> None:
    """By hand: seed 0 has (0.1 * 3 + 0.5 * 1) / 4 = 0.2 and 0.6, mean 0.4; seed 1 has 0.4 and 0.2, mean 0.3."""
    values = torch.tensor([[[0.1, 0.9], [0.5, 0.6]], [[0.4, 0.7], [0.4, 0.2]]])
    weights = torch.tensor([[3.0, 0.0], [1.0, 2.0]])
    assert Measured(values, weights).by_seed().tolist() == pytest.approx([0.4, 0.3])
    assert estimate(Measured(values, weights)).value == pytest.approx(0.35)
    twice_the_second = Measured(values, weights).by_group(torch.tensor([[0.0, 2.0]], dtype=torch.double))
    assert twice_the_second[0].tolist() == [pytest.approx([0.5, 0.6]), pytest.approx([0.4, 0.2])]
    assert math.isnan(float(Measured(values, weights).by_group(torch.tensor([[2.0, 0.0]], dtype=torch.double))[0, 0, 1]))


def test_scores_are_those_of_scene_error() -> None:
    generator = torch.Generator().manual_seed(0)
    error, pixels = torch.rand(9, 4, generator=generator).double(), torch.randint(0, 5, (9, 4), generator=generator).double()
    pixels[:, 3] = 0  # a region that no picture shows
    expected = scene_error(RegionErrors(error, pixels), "abcd")["scene_error"]
    assert float(Measured(error[None], pixels).by_seed()) == pytest.approx(expected, abs=1e-12)


def test_every_resample_has_as_many_pictures_and_they_come_equally_often() -> None:
    times = draw_pictures(7, 4000)
    assert torch.equal(times.sum(1), torch.full((4000,), 7.0, dtype=torch.double))
    assert times.mean(0).sub(1).abs().max() < 0.06 and times.var() == pytest.approx(1 - 1 / 7, abs=0.03)  # binomial(7, 1/7)
    assert torch.equal(times, draw_pictures(7, 4000)) and not torch.equal(times, draw_pictures(7, 4000, seed=1))


@pytest.mark.parametrize("degrees", [1, 2, 4])
def test_student_has_its_quantiles(degrees: int) -> None:
    drawn = student(degrees, 4000)
    for level in (0.6, 0.9, 0.975):
        assert float(drawn.quantile(level)) == pytest.approx(stats.t.ppf(level, degrees), rel=0.04)
    assert float(torch.corrcoef(torch.stack([drawn[1:], drawn[:-1]]).atan())[0, 1]) == pytest.approx(0, abs=0.05)
    assert float(drawn.mean()) == pytest.approx(0, abs=1e-9)


def test_scores_of_whole_sets_have_the_t_interval_of_their_seeds() -> None:
    scores = [0.3, 0.5, 0.1]
    found = estimate(Measured.of_seeds(scores))
    half = stats.t.ppf(0.975, 2) * 0.2 / 3**0.5
    assert list(found) == pytest.approx([0.3, 0.3 - half, 0.3 + half], abs=0.04 * half)
    assert math.isnan(estimate(Measured.of_seeds([0.3])).low)


def test_one_seed_has_the_interval_of_its_pictures() -> None:
    values = torch.randn(1, 400, generator=torch.Generator().manual_seed(0))
    found = estimate(plain(values))
    error = float(values.std()) / 20
    assert [found.low, found.high] == pytest.approx([found.value - 1.96 * error, found.value + 1.96 * error], abs=0.2 * error)


@pytest.mark.parametrize(("seeds", "low", "high"), [(1, 0.90, 0.98), (2, 0.91, 1.0), (3, 0.91, 1.0), (5, 0.91, 0.99)])
@pytest.mark.parametrize("spreads", [(1.0, 0.5, 0.5), (0.13, 1.0, 0.1)])  # seeds, pictures (shared by seeds), their product
def test_intervals_cover_the_truth(seeds: int, low: float, high: float, spreads: tuple[float, float, float]) -> None:
    generator = torch.Generator().manual_seed(seeds)
    spread = (spreads[0] if seeds > 1 else 0.0, *spreads[1:])  # one seed says nothing about others, and claims nothing
    hits, trials = 0, 200
    for _ in range(trials):
        shapes = ((seeds, 1), (1, 60), (seeds, 60))
        parts = [s * torch.randn(shape, generator=generator) for s, shape in zip(spread, shapes, strict=True)]
        found = estimate(plain(parts[0] + parts[1] + parts[2]), resamples=600)
        hits += found.low <= 0 <= found.high
    assert low <= hits / trials <= high


def test_pairing_takes_out_what_both_share() -> None:
    generator = torch.Generator().manual_seed(0)
    hard = 5 * torch.randn(1, 50, generator=generator)  # some pictures are hard for everybody
    one, other = (hard + offset + 0.1 * torch.randn(3, 50, generator=generator) for offset in (0.2, 0.0))
    paired, alone = difference(plain(one), plain(other)), estimate(plain(one))
    assert paired.sign == 1 and paired.low < 0.2 < paired.high
    assert paired.high - paired.low < (alone.high - alone.low) / 10


def test_the_other_difference_has_the_mirrored_interval() -> None:
    generator = torch.Generator().manual_seed(4)
    one, other = (Measured(torch.rand(3, 40, 1, generator=generator), torch.ones(40, 1)) for _ in range(2))
    forth, back = difference(one, other), difference(other, one)
    torch.testing.assert_close((forth.value, forth.low, forth.high), (-back.value, -back.high, -back.low), rtol=0, atol=1e-12)


def test_a_baseline_stands_against_every_seed() -> None:
    values = torch.rand(3, 20, generator=torch.Generator().manual_seed(0))
    once, thrice = plain(values[:1]), plain(values[:1].expand(3, -1))
    assert difference(plain(values), once) == pytest.approx(difference(plain(values), thrice))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(2, 12), st.integers(0, 99), st.floats(-3, 3), st.floats(0.1, 10))
def test_intervals_hold_their_value_and_move_with_it(seeds: int, pictures: int, seed: int, shift: float, scale: float) -> None:
    values = torch.rand(seeds, pictures, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    found, moved = (estimate(plain(x), resamples=500) for x in (values, scale * values + shift))
    assert found.low <= found.value <= found.high
    assert moved == pytest.approx([scale * part + shift for part in found], abs=1e-9)
    assert difference(plain(values), plain(values), resamples=500) == (0, 0, 0)


@pytest.mark.parametrize(("low", "high", "sign"), [(0.1, 0.2, 1), (-0.2, -0.1, -1), (-0.1, 0.1, 0), (math.nan, math.nan, 0)])
def test_a_sign_is_that_of_the_whole_interval(low: float, high: float, sign: int) -> None:
    assert Interval(0.0, low, high).sign == sign
