"""The darkening test: refuses features that take a darkened day for a night, accepts others, and remembers what it found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from recollect.config import overlay, preset
from recollect.data.store import Store
from recollect.data.worlds import build_faces, build_streets
from recollect.evaluation import darkening
from recollect.evaluation.darkening import Cut, Darkening, FeaturesJudge, check, examine, frechet_of, in_brightness, kept_in
from recollect.evaluation.features import pyramid
from recollect.evaluation.frechet import frechet
from recollect.training.session import domains_of
from recollect.training.trainer import build

CUT = Cut(size=32, split="test")


class Seeing:
    """Features by a function, which counts how often it is asked."""

    def __init__(self, name: str, blind: bool) -> None:
        self.name, self.digest, self.blind, self.asked = name, name * 8, blind, 0

    def describe(self, images: Tensor) -> Tensor:
        """Brightness alone (a darkened day is a night then), or what early vision measures."""
        self.asked += 1
        return images.mean((2, 3)).double().mean(1, keepdim=True) if self.blind else pyramid((images + 1) / 2)


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Store:
    uri = tmp_path_factory.mktemp("darkening") / "streets"
    build_streets(uri, size=32, train=40, val=20, test=40, references=1)
    return Store.open(uri)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_brightness_alone_fails_and_what_early_vision_sees_passes(streets: Store) -> None:
    blind = examine(Seeing("blind", True).describe, streets, "night", "sunny", CUT)
    assert blind.pictures == 40 and blind.share < 0.01 and not blind.passed
    seeing = examine(Seeing("seeing", False).describe, streets, "night", "sunny", CUT)
    assert seeing.passed and 0.05 < seeing.share < 1
    assert seeing.held_out < seeing.darkened < seeing.other_distance


def test_what_was_found_is_kept_and_a_failure_is_an_error(streets: Store) -> None:
    seeing, blind = Seeing("seeing", False), Seeing("blind", True)
    first = check(seeing, streets, "night", "sunny", CUT)
    asked = seeing.asked
    assert check(seeing, streets, "night", "sunny", CUT) == first and seeing.asked == asked
    assert check(seeing, streets, "sunny", "night", CUT) != first and seeing.asked > asked
    assert len(list(kept_in().iterdir())) == 2
    for _ in range(2):  # also where it was found before
        with pytest.raises(
            ValueError, match=r"features blind fail the darkening test.*share .* and at least 0.05.*features train"
        ):
            check(blind, streets, "night", "sunny", CUT)


def test_a_share_is_no_pass_within_chance() -> None:
    found = Darkening("night", "sunny", held_out=1.0, darkened=2.0, other_distance=11.0, spread=0.1, pictures=100)
    assert found.share == pytest.approx(0.1) and found.passed and "share 0.1" in str(found)
    assert not replace(found, spread=0.4).passed
    assert not replace(found, darkened=1.4).passed
    assert replace(found, other_distance=1.05).share == 0  # they do not tell the domains


def test_frechet_by_the_small_matrix_is_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    for count, features in ((30, 8), (12, 40)):
        one = torch.randn(count, features, generator=generator, dtype=torch.double)
        other = torch.randn(count + 5, features, generator=generator, dtype=torch.double) * 2 + 1
        assert frechet_of(one, other) == pytest.approx(frechet(one, other), rel=1e-3)


def test_brightness_is_moved_in_either_direction() -> None:
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for mean in (0.05, 0.4, 0.9):
        moved = in_brightness(images, mean)
        assert float(moved.mean()) == pytest.approx(mean, abs=1e-4) and moved.min() >= 0 and moved.max() <= 1
    assert in_brightness(torch.zeros(1, 3, 2, 2), 0.0).isfinite().all()


def test_one_domain_is_tested_by_its_attributes(tmp_path: Path) -> None:
    build_faces(tmp_path / "faces", size=32, train=40, val=2, test=6)
    store = Store.open(tmp_path / "faces")
    assert examine(Seeing("seeing", False).describe, store, "faces", "", CUT).passed
    with pytest.raises(ValueError, match=r"too few pictures to test features by: 40 training and 24 val.*it takes 25"):
        examine_with(25, store)


def examine_with(fewest: int, store: Store) -> Darkening:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(darkening, "FEWEST", fewest)
        return examine(Seeing("seeing", False).describe, store, "faces", "", Cut(size=32, split="val"))


def test_the_judge_of_features_reports_the_worst_pair(streets: Store) -> None:
    data = {"store": streets.uri, "domains": ("sunny", "night", "rainy"), "size": 32}
    run = preset("features:tiny", data=data, model={"width": 8, "features": 8}, evaluation={"pictures": 20})
    judge = FeaturesJudge(streets, run)
    model = build(run, domains_of(run, streets)).eval()
    values = judge(model)
    shares = {name: value for name, value in values.items() if name.startswith("darkening/")}
    assert len(shares) == 6 and values["objective"] == values["darkening"] == min(shares.values())
    assert 0 <= values["domain_found"] <= 1 and judge.mode == "max"
    assert judge.grid(model).dtype == torch.uint8
    with pytest.raises(ValueError, match="darkening"):
        FeaturesJudge(streets, overlay(run, {"evaluation.metric": "scene_error"}))
