"""The metrics, against hand-computed cases, brute force, and what the world `streets` knows."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from recollect.config import Evaluation
from recollect.data.transforms import decode
from recollect.data.worlds import streets
from recollect.evaluation import metrics
from recollect.evaluation.features import feature_distance, pyramid
from recollect.evaluation.metrics import (
    METRICS,
    Metric,
    class_found,
    content_kept,
    effective_items,
    find_metric,
    mode_coverage,
    nearest_modes,
    region_errors,
    register,
    scene_error,
)

REAL = Path(__file__).parents[3] / "shared" / "data" / "day_night"
SCENES = 24


def grey(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows).expand(1, 3, -1, -1)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def lit() -> dict[str, list[Tensor]]:
    """Pictures of the same 24 scenes in every domain, in two styles: domain -> two tensors (24, 3, 64, 64) in [0, 1]."""
    scenes = [streets.draw_scene(1000 + index, 64) for index in range(SCENES)]

    def pictures(domain: str, k: int) -> Tensor:
        styles = [streets.draw_style(domain, np.random.default_rng((scene.seed, k))) for scene in scenes]
        drawn = [streets.render(scene, style) for scene, style in zip(scenes, styles, strict=True)]
        return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 255

    return {domain: [pictures(domain, k) for k in range(2)] for domain in streets.DOMAINS}


def test_each_region_takes_the_render_that_is_nearest_there() -> None:
    translation, regions = grey((0.5, 0.1), (0.5, 1.0)), torch.tensor([[[0, 0], [0, 1]]])
    dark, light = grey((0.5, 0.2), (0.3, 0.0)), grey((0.0, 0.0), (0.0, 0.9))
    found = region_errors(translation, torch.stack([dark, light], dim=1), regions, 3)
    assert found.pixels.tolist() == [[3, 1, 0]]
    assert found.error[0].tolist() == pytest.approx([(0 + 0.1 + 0.2) / 3, 0.1, 0])  # the dark one, the light one, not shown
    values = scene_error(found, ("road", "sign", "sky"))
    assert values == pytest.approx({"scene_error": 0.1, "scene_error/road": 0.1, "scene_error/sign": 0.1})


def test_regions_are_weighted_by_pixels_and_the_mean_over_regions_is_plain() -> None:
    translations = torch.cat([grey((0.0, 0.0), (0.0, 0.0)), grey((1.0, 1.0), (1.0, 1.0))])
    references = torch.full((2, 1, 3, 2, 2), 0.25)
    regions = torch.tensor([[[0, 0], [0, 1]], [[0, 1], [1, 1]]])
    values = scene_error(region_errors(translations, references, regions, 2), ("a", "b"))
    a, b = (3 * 0.25 + 1 * 0.75) / 4, (1 * 0.25 + 3 * 0.75) / 4
    assert values == pytest.approx({"scene_error/a": a, "scene_error/b": b, "scene_error": (a + b) / 2})


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), batch=st.integers(1, 3), renders=st.integers(1, 4), count=st.integers(1, 5))
def test_region_errors_equal_brute_force(seed: int, batch: int, renders: int, count: int) -> None:
    translations, references = random(batch, 3, 5, 7, seed=seed), random(batch, renders, 3, 5, 7, seed=seed + 1)
    regions = torch.randint(count, (batch, 5, 7), generator=torch.Generator().manual_seed(seed))
    found = region_errors(translations, references, regions, count)
    for b in range(batch):
        for r in range(count):
            inside = (regions[b] == r).numpy()
            differences = [np.abs(translations[b].numpy() - references[b, k].numpy())[:, inside] for k in range(renders)]
            assert found.pixels[b, r] == inside.sum()
            assert float(found.error[b, r]) == pytest.approx(min(d.mean() for d in differences) if inside.any() else 0, abs=1e-6)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), permutation=st.permutations(range(4)))
def test_renaming_the_regions_changes_nothing_else(seed: int, permutation: list[int]) -> None:
    translations, references = random(3, 3, 6, 6, seed=seed), random(3, 2, 3, 6, 6, seed=seed + 1)
    regions = torch.randint(4, (3, 6, 6), generator=torch.Generator().manual_seed(seed))
    names = ["sky", "road", "car", "sign"]
    values = scene_error(region_errors(translations, references, regions, 4), names)
    renamed = [names[permutation.index(new)] for new in range(4)]
    again = scene_error(region_errors(translations, references, torch.tensor(permutation)[regions], 4), renamed)
    assert again == pytest.approx(values)


def test_a_true_render_has_no_error_and_hits_its_own_mode() -> None:
    references, regions = random(4, 5, 3, 8, 8), torch.randint(3, (4, 8, 8))
    modes = torch.tensor([0, 1, 2, 1, 0]).expand(4, -1)
    chosen = torch.tensor([3, 0, 2, 4])
    translations = references[torch.arange(4), chosen]
    assert set(scene_error(region_errors(translations, references, regions, 3), "abc").values()) == {0.0}
    assert nearest_modes(translations, references, modes).tolist() == [1, 0, 2, 0]


def test_mode_coverage_counts_modes_and_evenness() -> None:
    modes = torch.tensor([[0, 1, 2], [0, 1, 2]])
    assert mode_coverage(torch.tensor([0, 1, 2]), modes) == {"modes_hit": 1.0, "mode_entropy": pytest.approx(1.0)}
    assert mode_coverage(torch.tensor([1, 1, 1]), modes) == {"modes_hit": pytest.approx(1 / 3), "mode_entropy": 0.0}
    entropy = -(0.75 * log(0.75) + 0.25 * log(0.25)) / log(3)
    assert mode_coverage(torch.tensor([0, 0, 0, 2]), modes)["mode_entropy"] == pytest.approx(entropy)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), height=st.integers(12, 40), width=st.integers(12, 40))
def test_a_picture_keeps_its_own_content_in_any_light(seed: int, height: int, width: int) -> None:
    picture = random(1, 3, height, width, seed=seed)
    assert content_kept(picture, picture).item() == pytest.approx(1, abs=1e-5)
    assert content_kept(picture, 1 - picture).item() == pytest.approx(1, abs=1e-5)
    assert content_kept(picture, 0.2 * picture + 0.3).item() > 0.98
    assert content_kept(picture, torch.full_like(picture, 0.3)).item() < 1e-6
    assert 0 <= content_kept(picture, random(1, 3, height, width, seed=seed + 1)).item() < 0.4


def test_content_is_kept_when_one_half_is_inverted_and_lost_where_it_is_replaced() -> None:
    picture, other = F.avg_pool2d(random(2, 1, 3, 128, 128).flatten(0, 1), 2).chunk(2)
    half_inverted = torch.cat([picture[..., :32], 1 - picture[..., 32:]], dim=-1)
    half_replaced = torch.cat([picture[..., :32], other[..., 32:]], dim=-1)
    assert content_kept(picture, half_inverted).item() > 0.9
    assert 0.35 < content_kept(picture, half_replaced).item() < 0.65
    blank = torch.zeros_like(picture)
    assert content_kept(blank, other).item() == 1  # a blank picture has nothing to lose


def test_a_slope_to_the_right_is_no_chance_match_for_one_to_the_left() -> None:
    rows, columns = torch.meshgrid(torch.linspace(0, 0.5, 32), torch.linspace(0, 0.5, 32), indexing="ij")
    ramp = (rows + columns).expand(1, 3, -1, -1)
    half = torch.cat([ramp[..., :16], torch.full_like(ramp[..., 16:], 0.5)], dim=-1)
    assert 0.25 < content_kept(ramp, half).item() < 0.5
    assert content_kept(ramp, ramp.flip(-1)).item() < 0.05


def test_the_content_floor_lies_between_true_renders_and_everything_that_is_no_translation(lit: dict[str, list[Tensor]]) -> None:
    sunny, floor = lit["sunny"][0], 0.3
    for domain in streets.DOMAINS:
        kept = content_kept(sunny, lit[domain][1])
        assert kept.min() > 1.5 * floor, domain
        assert content_kept(sunny, lit[domain][1].roll(1, 0)).max() < floor / 2, domain
    night = lit["night"][1]
    for nothing in (night.mean(0, keepdim=True).expand_as(night), torch.zeros_like(sunny), random(*sunny.shape)):
        assert content_kept(sunny, nothing).max() < 2 / 3 * floor
    assert 0 < Evaluation().content_floor < content_kept(sunny, night).min()


def test_content_kept_judges_every_picture_by_itself(lit: dict[str, list[Tensor]]) -> None:
    together = content_kept(lit["sunny"][0][:6], lit["night"][0][:6])
    alone = torch.cat([content_kept(lit["sunny"][0][i : i + 1], lit["night"][0][i : i + 1]) for i in range(6)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_effective_items_is_the_perplexity_of_a_read() -> None:
    sharp = F.one_hot(torch.tensor([[[2, 0]]]), 4).movedim(-1, 1).float()
    assert effective_items(sharp) == pytest.approx(1)
    assert effective_items(torch.full((2, 5, 3, 3), 0.2)) == pytest.approx(5, abs=1e-3)
    mixed = torch.tensor([0.5, 0.5, 0, 0]).view(1, 4, 1, 1)
    assert effective_items(torch.cat([mixed, sharp[..., :1]])) == pytest.approx(exp(log(2) / 2), abs=1e-4)


def test_class_found_is_a_share_of_each_class_and_skips_absent_classes() -> None:
    reads = F.one_hot(torch.tensor([[[0, 1, 2, 2, 3]]]), 4).movedim(-1, 1).float()  # items of classes 0, 0, 1, 2
    found = class_found(reads, torch.tensor([[[0, 0, 0, 1, 1]]]), torch.tensor([0, 0, 1, 2]), ("background", "car", "sign"))
    assert found == pytest.approx({"class_found": (2 / 3 + 1 / 2) / 2, "class_found/background": 2 / 3, "class_found/car": 1 / 2})


def test_names_that_do_not_exist_list_those_that_do() -> None:
    with pytest.raises(ValueError, match="did you mean 'scene_error'.*content_kept.*modes_hit"):
        find_metric("scene_eror")
    assert find_metric("class_found/car") is METRICS["class_found"]
    assert all(metric.about and metric.name == name for name, metric in METRICS.items())


def test_families_and_registering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "METRICS", dict(METRICS))
    own = Metric("glow", False, "lumen", "pictures", "how much it glows", parts="lamp")
    register(own)
    register(own)  # a module may be imported twice
    assert metrics.find_metric("glow/left/upper") is own and metrics.find_metric("glow").arrow == "↓"
    with pytest.raises(ValueError, match="'glow' is registered already, with another meaning: how much it glows"):
        register(replace(own, higher_is_better=True))
    assert find_metric("p_at_10/average") is METRICS["p_at_10/average"]  # an entry of its own before its family's
    ups = {
        name: find_metric(f"{name}/Male").higher_is_better for name in ("p_at_10", "lift", "counterpart_error", "fid@classifier")
    }
    assert ups == {"p_at_10": True, "lift": True, "counterpart_error": False, "fid@classifier": False}


def test_feature_distance_equals_the_definition() -> None:
    one, other = random(4, 6).double(), random(5, 6, seed=1).double() + 0.2

    def kernel(x: Tensor, y: Tensor) -> float:
        return (float(x @ y) / 6 + 1) ** 3

    first = np.mean([kernel(one[i], one[j]) for i in range(4) for j in range(4) if i != j])
    second = np.mean([kernel(other[i], other[j]) for i in range(5) for j in range(5) if i != j])
    cross = np.mean([kernel(a, b) for a in one.unbind() for b in other.unbind()])
    assert feature_distance(one, other) == pytest.approx(first + second - 2 * cross)
    with pytest.raises(ValueError, match="at least 2"):
        feature_distance(one[:1], other)


def test_features_are_finite_and_of_the_documented_length_at_any_size() -> None:
    for size in ((20, 33), (64, 64), (160, 100)):
        for picture in (torch.zeros(2, 3, *size), torch.ones(2, 3, *size), random(2, 3, *size)):
            features = pyramid(picture)
            assert features.shape == (2, 191) and features.isfinite().all() and features.abs().max() < 20


def test_features_tell_a_night_from_a_darkened_day(lit: dict[str, list[Tensor]]) -> None:
    half = SCENES // 2
    held_out = pyramid(lit["night"][0][:half])
    night = feature_distance(pyramid(lit["night"][1][half:]), held_out)
    darkened = feature_distance(pyramid(lit["sunny"][0][half:] * 0.15), held_out)
    others = {domain: feature_distance(pyramid(lit[domain][0][half:]), held_out) for domain in ("rainy", "cloudy", "sunny")}
    assert abs(night) < 0.2
    assert min(darkened, *others.values()) > 1.5
    assert darkened < others["sunny"]
    blurred = feature_distance(pyramid(F.avg_pool2d(lit["night"][1][half:], 3, 1, 1)), held_out)
    assert 0.2 < blurred < min(darkened, *others.values())


@pytest.mark.skipif(not REAL.exists(), reason="the photographs are not on this machine")
def test_features_tell_nights_from_darkened_days_on_photographs() -> None:
    def photographs(split: str, domain: str, count: int) -> Tensor:
        files = sorted((REAL / split / domain).glob("*.jpg"))
        chosen = files[:: max(1, len(files) // count)][:count]
        pictures = [F.interpolate(decode(file.read_bytes())[None].float() / 255, (96, 96), mode="area") for file in chosen]
        return torch.cat(pictures)

    held_out, nights, days = photographs("test", "night", 40), photographs("train", "night", 40), photographs("test", "day", 40)
    real = pyramid(held_out)
    night = feature_distance(pyramid(nights), real)
    as_dark = feature_distance(pyramid(days * (held_out.mean() / days.mean())), real)
    assert 5 * max(night, 0.05) < as_dark < feature_distance(pyramid(days), real)
