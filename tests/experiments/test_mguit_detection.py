"""The detection protocol from one end to the other, small; what it compares; and its page."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from experiments import mguit_detection
from experiments.detection_page import ORACLE, SOURCE_ONLY, page, spread_of
from experiments.mguit_detection import detector_run, main, translator_run
from recollect.bundle import open_bundle
from recollect.data.store import Store
from recollect.data.worlds import build_streets

DETECTOR = [
    "data.size=32",
    "model.width=8",
    "model.head_width=16",
    "model.proposals=10",
    "engine.batch_size=2",
    "engine.threads=1",
]
MGUIT = [
    "data.size=32",
    "model.width=8",
    "model.critic_width=8",
    "model.critic_layers=2",
    "engine.threads=1",
    "engine.batch_size=1",
]
MGUIT += ["evaluation.pictures=2"]
SMALL = ["--steps", "2", "--translator-steps", "2", "--seeds", "0", "1", "--set", "model.score_floor=0.0"]
SMALL += [word for change in DETECTOR for word in ("--set", change)]
SMALL += [word for change in MGUIT for word in ("--set-translator", change)]


def test_the_protocol_and_that_it_goes_on_where_it_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build_streets(tmp_path / "store", size=32, train=6, val=2, test=3, references=2)
    words = ["--small", "--store", str(tmp_path / "store"), "--storage", str(tmp_path / "out"), *SMALL]
    assert main(words) == 0, capsys.readouterr()
    frame = pd.read_parquet(tmp_path / "out" / "table.parquet")
    arms = ["source only", "mguit: pictures adapted", "mguit: detector adapted", "target oracle"]
    assert set(frame["arm"]) == set(arms) and set(frame["seed"]) == {0, 1}
    one = frame[(frame["seed"] == 0) & (frame["metric"] == "detection_map")].set_index("arm")
    assert one.loc[arms[0], "detector"] == one.loc[arms[1], "detector"]  # only its test pictures differ
    translator = one.loc[arms[1], "translator"]
    assert translator and one["translator"].drop(arms[1]).eq("").all() and frame["value"].between(0, 1).all()
    assert one["detector"].nunique() == 3 and one["data"].nunique() == 1  # all are tested on the real store's pictures
    made = Store.open(next((tmp_path / "out" / "translated").iterdir()))
    assert translator in made.manifest.source and made.domains.names == ("sunny-by-mguit",)
    folders = {path.name.rpartition("-")[2] for path in (tmp_path / "out" / "detectors").iterdir()}
    assert folders == {"sunny", "mguit", "night"}
    text = (tmp_path / "out" / "table.md").read_text()
    assert all(arm in text for arm in arms) and "AP car" in text and "--small" in text
    capsys.readouterr()
    measured: list[object] = []
    monkeypatch.setattr(mguit_detection, "_measure", lambda *given: measured.append(given))
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "6 runs: 6 finished" in out and not measured and (tmp_path / "out" / "table.md").read_text() == text


def test_given_bundles_are_used_and_mistakes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--storage", str(tmp_path)]) == 2
    assert "--store URI" in capsys.readouterr().err
    build_streets(tmp_path / "store", size=32, train=2, val=1, test=1, references=1)
    words = ["--small", "--store", str(tmp_path / "store"), "--storage", str(tmp_path / "out")]
    assert main([*words, "--translator", "mguit"]) == 2
    assert "NAME=BUNDLE" in capsys.readouterr().err
    assert main([*words, "--translator", "a=x", "--translator", "a=y"]) == 2
    assert "one name" in capsys.readouterr().err


def test_the_papers_settings() -> None:
    """Section 4.2: three items for each of the four classes, eight of the background."""
    run = translator_run("store", "kitti", "cityscapes", "paper")
    items = run.model.model_dump()["memory"]["items_per_class"]
    assert items == {"background": 8, "person": 3, "car": 3, "truck": 3, "bicycle": 3}
    assert detector_run("store", "paper").model.model_dump()["backbone"] == "resnet50_fpn"
    assert detector_run("store", "world").data.size == translator_run("s", "sunny", "night", "world").data.size == 128


def test_intervals_hold_both_chances_and_differences_are_paired() -> None:
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(1000, generator=generator) * 0.05  # what pictures do to every arm and seed
    values = {(SOURCE_ONLY, 0): 0.20, (SOURCE_ONLY, 1): 0.22, (ORACLE, 0): 0.50, (ORACLE, 1): 0.52}
    resamples = {(arm, seed, "detection_map"): value + common for (arm, seed), value in values.items()}
    low, high = spread_of([0.20], [resamples[SOURCE_ONLY, 0, "detection_map"]])
    assert low == pytest.approx(0.2 - 0.098, abs=0.01) and high == pytest.approx(0.2 + 0.098, abs=0.01)
    wide = spread_of([0.20, 0.22], [resamples[SOURCE_ONLY, seed, "detection_map"] for seed in (0, 1)])
    assert wide[0] < 0.21 - 0.098 and wide[1] > 0.21 + 0.098
    rows = [{"arm": arm, "seed": seed, "metric": "detection_map", "value": value} for (arm, seed), value in values.items()]
    text = page(pd.DataFrame(rows), resamples, "sunny", "night", "make table")
    gained = next(line for line in text.splitlines() if line.startswith(f"| {ORACLE} | +"))
    assert gained.startswith(f"| {ORACLE} | +30.0 (+30.0 to +30.0)")  # what the pictures have in common cancels
    assert f"| {SOURCE_ONLY} | 2 | 21.0" in text and "`make table`" in text


def test_a_given_bundle_must_translate_between_the_domains(tmp_path: Path) -> None:
    from recollect.translated import translate_store
    from tests.recollect.test_detection import translator  # a small MGUIT of a store

    build_streets(tmp_path / "store", size=32, train=2, val=1, test=1, references=1)
    store = Store.open(tmp_path / "store")
    bundle = open_bundle(translator(store, tmp_path / "bundle"))
    with pytest.raises(ValueError, match="rainy"):
        translate_store(bundle, store, tmp_path / "out", source="sunny", target="rainy")
