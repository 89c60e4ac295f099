"""The final table: baselines against brute force, intervals, and that the world needs classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from torch import Tensor
from torchvision import tv_tensors

from recollect.bundle import Bundle, write
from recollect.config import preset
from recollect.data.store import Store, write_store
from recollect.data.transforms import Sample
from recollect.data.worlds import streets
from recollect.evaluation.baselines import apply_maps, best_constant, exchanged, fit_colour_maps, leave_one_out, rows
from recollect.evaluation.evaluate import COLUMNS, append, bootstrap, evaluate, show, table
from recollect.evaluation.metrics import region_errors, scene_error
from recollect.evaluation.validate import ByPicture, Cases, Judgement, Truth, gather, judge
from trainables.mguit import MGUIT

DOMAINS = ("sunny", "night")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("streets")
    drawn = streets.records(64, train=1, val=12, test=6, references=4, domains=DOMAINS)
    write_store(path, drawn, domains=DOMAINS, classes=streets.CLASSES, regions=streets.REGIONS)
    return Store.open(path)


@pytest.fixture(scope="module")
def bundle(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    run = preset("mguit:tiny", data={"store": store.uri, "domains": DOMAINS})
    assert isinstance(run.model, MGUIT.Config)
    torch.manual_seed(0)
    domains = store.domains.only(DOMAINS)
    return write(tmp_path_factory.mktemp("runs") / "untrained", run, domains, MGUIT(run.model, domains).state_dict())


@pytest.fixture(scope="module")
def frame(store: Store, bundle: Bundle) -> pd.DataFrame:
    return evaluate(bundle, store.uri)


def made_up(images: Tensor, references: Tensor, regions: Tensor, count: int) -> Cases:
    """Cases from given uint8 tensors: (B, 3, S, S), (B, K, 3, S, S), (B, S, S)."""
    size, nothing = images.shape[-1], torch.zeros(0, 4)
    boxes = tv_tensors.BoundingBoxes(nothing, format="XYXY", canvas_size=(size, size))
    samples = tuple(Sample(tv_tensors.Image(image), boxes, torch.zeros(0, dtype=torch.long)) for image in images)
    names = tuple("abcdef"[:count])
    modes = torch.arange(references.shape[1]).expand(len(images), -1)
    ids = tuple(f"{names}{row}" for row in range(len(images)))
    truth = Truth(references, modes, regions)
    return Cases("day", "night", ids, images, samples, references[:, 0], truth, ("background",), names, False)


def levels(*shape: int, seed: int = 0, high: int = 256) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def error_of(translations: Tensor, cases: Cases) -> float:
    assert cases.truth is not None
    errors = region_errors(translations, cases.truth.references / 255, cases.truth.regions, len(cases.regions))
    return scene_error(errors, cases.regions)["scene_error"]


@pytest.mark.parametrize("seed", [0, 7, 9])
def test_the_best_constant_is_the_best_of_all_constants(seed: int) -> None:
    """An optimum lies on the renders' levels (medians do), so with 8 levels a channel 512 colours are all there is to try."""
    references = levels(3, 6, 3, 3, 3, seed=seed, high=8) * 36
    cases = made_up(levels(3, 3, 3, 3), references, levels(3, 3, 3, seed=seed, high=3), 3)
    found = error_of(best_constant(cases).view(1, 3, 1, 1).expand(3, 3, 3, 3), cases)
    grid = torch.cartesian_prod(*[torch.arange(0, 256, 36) / 255] * 3)
    assert found == pytest.approx(min(error_of(colour.view(1, 3, 1, 1).expand(3, 3, 3, 3), cases) for colour in grid), abs=1e-6)


def test_the_best_constant_of_one_render_is_the_weighted_median_of_each_channel() -> None:
    references, regions = levels(2, 1, 3, 5, 5), torch.zeros(2, 5, 5, dtype=torch.uint8)
    found = best_constant(made_up(levels(2, 3, 5, 5), references, regions, 1)) * 255
    medians = np.sort(references[:, 0].movedim(1, 0).flatten(1).numpy(), axis=1)[:, 24:26]  # 50 values: any level between these
    assert all(low <= float(value) <= high for value, (low, high) in zip(found, medians, strict=True))


def test_planted_colour_maps_are_recovered() -> None:
    images, regions = levels(4, 3, 12, 12), levels(4, 12, 12, seed=1, high=3)
    maps = torch.tensor(
        [
            [[0.5, 0.1, 0.0], [0.0, 0.3, 0.1], [0.1, 0.0, 0.4], [0.1, 0.2, 0.0]],
            [[0.2, 0, 0], [0, 0.2, 0], [0, 0, 0.2], [0.5, 0.1, 0.3]],
        ]
    )
    one = apply_maps(images / 255, maps[:1])
    three = apply_maps(images / 255, torch.cat([maps, maps[:1]]), regions)
    for planted, of in ((one, slice(0, 1)), (three, slice(1, None))):
        far = levels(4, 3, 12, 12, seed=9)  # a second render that no map explains
        cases = made_up(images, torch.stack([far, (planted * 255).round().to(torch.uint8)], dim=1), regions, 3)
        fitted = fit_colour_maps(cases)[of]
        expected = maps[:1] if len(fitted) == 1 else torch.cat([maps, maps[:1]])
        assert torch.allclose(fitted, expected, atol=0.01)


def test_the_global_map_is_the_balanced_least_squares_solution() -> None:
    images, references, regions = levels(3, 3, 8, 8), levels(3, 1, 3, 8, 8, seed=1), levels(3, 8, 8, seed=2, high=2)
    regions[:, 2:] = 0  # region 1 is small, and must count as much as region 0
    fitted = fit_colour_maps(made_up(images, references, regions, 2))
    x = np.concatenate([images.movedim(1, -1).reshape(-1, 3) / 255, np.ones((192, 1))], axis=1)
    y, region = references[:, 0].movedim(1, -1).reshape(-1, 3).numpy() / 255, regions.flatten().numpy()
    weight = np.sqrt(1 / np.bincount(region))[region][:, None]
    assert np.allclose(fitted[0], np.linalg.lstsq(x * weight, y * weight, rcond=None)[0], atol=1e-3)
    for r in range(2):
        assert np.allclose(fitted[1 + r], np.linalg.lstsq(x[region == r], y[region == r], rcond=None)[0], atol=1e-3)


def test_exchanged_class_maps_cost_what_separates_the_classes() -> None:
    """Cars are drawn about 64, the rest about 192, whatever the input; exchanged, each is off by the distance between."""
    regions = levels(8, 9, 9, high=3)  # road, car, sky
    grey = torch.where(regions == 1, 64, 192)[:, None, None].expand(8, 1, 3, 9, 9)
    noise = levels(8, 1, 3, 9, 9, seed=1, high=33).int() - 16
    cases = made_up(levels(8, 3, 9, 9, seed=2), (grey.int() + noise).to(torch.uint8), regions, 3)
    cases = replace(cases, classes=("background", "car"), regions=("road", "car", "sky"))
    values = exchanged(cases, cases).judgement.values
    spread = noise.abs().float().mean()
    for name in cases.classes:
        assert values[f"memory_use/shuffled/{name}"] == pytest.approx(float(128 / spread - 1), rel=0.1)


def test_a_region_that_was_never_seen_has_the_global_map() -> None:
    fitted = fit_colour_maps(made_up(levels(2, 3, 6, 6), levels(2, 2, 3, 6, 6, seed=1), levels(2, 6, 6, seed=2, high=2), 3))
    assert torch.equal(fitted[3], fitted[0]) and not torch.equal(fitted[2], fitted[0])
    assert fitted.isfinite().all()


def test_the_ceiling_is_judged_by_the_other_renders(store: Store) -> None:
    cases = gather(store, DOMAINS, "test", 64)
    assert cases.truth is not None
    renders, rest = leave_one_out(cases)
    assert rest.truth is not None and rest.truth.references.shape[1] == 3
    for row in range(len(cases)):
        out = row % 4
        assert torch.equal(renders[row] * 255, cases.truth.references[row, out].float())
        kept = [k for k in range(4) if k != out]
        assert torch.equal(rest.truth.references[row], cases.truth.references[row, kept])
        assert torch.equal(rest.truth.modes[row], cases.truth.modes[row, kept])
    assert judge(renders, rest).values["scene_error"] > 1e-3  # it does not find itself


def test_streets_cannot_be_solved_without_classes(frame: pd.DataFrame) -> None:
    error = table(frame)["scene_error"].droplevel("kind")
    assert error["best colour map"] >= 2 * error["best colour map per region"]
    assert error["another true render"] < error["best colour map per region"]
    assert error["best colour map"] < error["best constant colour"] < error["black"] < error["the input itself"]


def test_two_evaluations_are_equal_and_say_where_they_come_from(frame: pd.DataFrame, store: Store, bundle: Bundle) -> None:
    told: list[str] = []
    again = evaluate(bundle.path, store.uri, progress=told.append)
    pd.testing.assert_frame_equal(frame, again)
    assert told[0] == "translating 6 pictures from sunny to night"
    assert list(frame.columns) == COLUMNS
    method = frame[frame["kind"] == "method"]
    assert set(method["bundle"]) == {bundle.digest} and set(frame["data"]) == {store.digest} and set(frame["pictures"]) == {6}
    assert set(frame[frame["metric"] == "feature_distance@pyramid"]["features"]) == {"pyramid"}
    assert set(frame[frame["kind"] == "baseline"]["name"]) == {
        *("the input itself", "black", "best constant colour", "best colour map", "best colour map per region")
    }
    kept = frame[(frame["name"] == "the input itself") & (frame["metric"] == "content_kept")]["value"].item()
    assert kept == pytest.approx(1)
    fitted = frame[frame["name"] == "best colour map"]["about"].iloc[0]
    assert fitted == "had the truth of 12 other pictures in hand"


def test_validation_baselines_are_fitted_on_the_other_half(bundle: Bundle, store: Store) -> None:
    found = evaluate(bundle, store.uri, split="val")
    assert set(found["pictures"]) == {6}
    assert found[found["name"] == "best colour map"]["about"].iloc[0] == "had the truth of 6 other pictures in hand"
    judged, fitting = (gather(store, DOMAINS, "val", 64, half=half) for half in (0, 1))
    places = [{store.record(id).scene for id in cases.ids} for cases in (judged, fitting)]
    assert not places[0] & places[1]
    with pytest.raises(AssertionError, match="other pictures"):
        rows(judged, judged)
    with pytest.raises(ValueError, match="it is val or test"):
        evaluate(bundle, store.uri, split="train")


def test_without_truth_only_what_needs_none_is_left(store: Store) -> None:
    cases = replace(gather(store, DOMAINS, "test", 64), truth=None)
    found = rows(cases, None)
    assert [row.name for row in found] == ["the input itself", "black"]
    assert set(found[0].judgement.values) == {"content_kept", "feature_distance@pyramid"}


def test_bootstrap_intervals_equal_a_plain_bootstrap() -> None:
    generator = np.random.default_rng(0)
    error, pixels = generator.random((20, 2)), generator.integers(1, 50, (20, 2)).astype(float)
    pixels[::2, 1] = 0
    kept = generator.random(20)
    parts = {"content_kept": ByPicture(torch.tensor(kept), torch.ones(20))}
    parts |= {f"scene_error/{r}": ByPicture(torch.tensor(error)[:, k], torch.tensor(pixels)[:, k]) for k, r in enumerate("ab")}
    judgement = Judgement(dict.fromkeys((*parts, "scene_error", "modes_hit"), 0.0), parts)
    found = bootstrap(judgement)
    assert set(found) == {*parts, "scene_error"}  # modes belong to the whole set
    means: dict[str, list[float]] = {"content_kept": [], "scene_error": [], "scene_error/b": []}
    for _ in range(4000):
        draw = generator.integers(0, 20, 20)
        by_region = (error[draw] * pixels[draw]).sum(0) / pixels[draw].sum(0)
        means["content_kept"].append(kept[draw].mean())
        means["scene_error"].append(by_region.mean())
        means["scene_error/b"].append(by_region[1])
    for name, values in means.items():
        low, high = np.nanquantile(values, [0.025, 0.975])
        assert found[name] == pytest.approx((low, high), abs=0.06 * (high - low)), name


def test_intervals_hold_their_values(frame: pd.DataFrame) -> None:
    bounded = frame.dropna(subset=["low"])
    assert {"scene_error", "content_kept", "scene_error/car"} <= set(bounded["metric"])
    assert ((bounded["low"] <= bounded["value"] + 1e-9) & (bounded["value"] <= bounded["high"] + 1e-9)).all()


def test_appending_replaces_what_was_measured_before(frame: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "results" / "all.parquet"
    assert len(append(path, frame)) == len(frame)
    changed = frame.assign(value=frame["value"] + 1)
    assert len(append(path, changed)) == len(frame)
    pd.testing.assert_frame_equal(pd.read_parquet(path), changed)
    other = frame.assign(split="val")
    assert len(append(path, other)) == 2 * len(frame)
    assert [item.name for item in path.parent.iterdir()] == ["all.parquet"]


def test_the_table_reads_from_the_method_to_the_ceiling(frame: pd.DataFrame) -> None:
    wide = table(frame)
    assert wide.columns[0] == "scene_error" and wide.columns[1].startswith("scene_error/")
    assert [kind for kind, _ in wide.index] == ["method"] + ["baseline"] * 5 + ["ceiling"]
    picked = frame[(frame["name"] == "black") & (frame["metric"] == "scene_error/sign")]["value"].item()
    assert wide.loc[("baseline", "black"), "scene_error/sign"] == picked
    twice = pd.concat([frame, frame[frame["kind"] == "method"].assign(bundle="abcdef0123")])
    assert [name for kind, name in table(twice).index if kind == "method"][1] == "run abcdef"


def test_it_prints(frame: pd.DataFrame) -> None:
    console = Console(record=True, width=200, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    show(frame, console)
    text = console.export_text()
    assert "sunny to night, 6 test pictures" in text and "best colour map per region" in text and "class_found/car" in text
    value = frame[(frame["name"] == "black") & (frame["metric"] == "scene_error")].iloc[0]
    assert f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})" in text
