"""The detection protocol from one end to the other, small; what it compares; and its page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from experiments import mguit_detection
from experiments.detection_page import ORACLE, SOURCE_ONLY, page, spread_of
from experiments.mguit_detection import adapted_detector, adapted_pictures, detector_run, main, translator_run
from recollect import bundle
from recollect.batch import Detections, Domains, Guide, Translation
from recollect.bundle import open_bundle
from recollect.config import Data, ModelConfig, Run, Weights
from recollect.data.store import Store
from recollect.data.transforms import decode
from recollect.data.worlds import build_streets
from recollect.evaluation import detection
from recollect.evaluation.average_precision import Annotated
from recollect.trainable import Translator
from trainables import catalogue

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


class Shade(Translator):
    """A translator whose answers say which way they were made: night is a quarter as bright, sunny is halfway to white."""

    class Config(ModelConfig):
        name: str = "shade"

    class Weights(Weights):
        rec: float = 1.0

    presets: ClassVar[dict[str, dict[str, Any]]] = {"tiny": {}}

    def __init__(self, config: ModelConfig, domains: Domains) -> None:
        super().__init__(config, domains)
        self.scale = nn.Parameter(torch.tensor([0.5, 0.25]))
        self.shift = nn.Parameter(torch.tensor([0.5, 0.0]))

    @property
    def stride(self) -> int:
        return 1

    def translate(self, images: Tensor, source: int, target: int, guide: Guide = Guide()) -> Translation:
        if source == target:
            return Translation(images, {})
        return Translation(((images + 1) / 2 * self.scale[target] + self.shift[target]) * 2 - 1, {})


METHODS = {**catalogue.METHODS, "shade": f"{__name__}:Shade"}


def shaded(image: bytes, target: str) -> Tensor:
    """What a stored picture looks like in the target domain, by the words above: (3, h, w) uint8."""
    scale, shift = {"sunny": (0.5, 0.5), "night": (0.25, 0.0)}[target]
    return ((decode(image).double() / 255 * scale + shift) * 255).round()


def test_either_protocol_translates_the_right_pictures_the_right_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Detectors learn on source pictures that look like the target; or target pictures that look like the source are tested."""
    monkeypatch.setenv("RECOLLECT_CATALOGUE", f"{__name__}:METHODS")
    build_streets(tmp_path / "store", size=32, train=4, val=2, test=3, references=2)
    store = Store.open(tmp_path / "store")
    run = Run.model_validate({"name": "shade", "model": {"name": "shade"}, "data": Data(domains=("sunny", "night"), size=32)})
    domains = store.domains.only(("sunny", "night"))
    path = bundle.write(tmp_path / "shade", run, domains, Shade(run.model, domains).state_dict()).path

    tested: dict[str, dict[str, Tensor]] = {}  # by arm and id: what the detector is shown
    now: list[str] = []

    def measured(test: mguit_detection.Test, *given: Any) -> list[dict[str, Any]]:
        now.append(test.arm)
        try:
            return measure(test, *given)
        finally:
            now.pop()

    def recorded(model: Any, pictures: Iterable[Annotated]) -> Iterator[tuple[Annotated, Detections]]:
        for picture, found in detect(model, pictures):
            if now:  # else a run is judged while it trains
                tested.setdefault(now[-1], {})[picture.id] = picture.image.as_subclass(Tensor)
            yield picture, found

    measure = mguit_detection._measure
    monkeypatch.setattr(mguit_detection, "_measure", measured)
    detect = detection.detect
    monkeypatch.setattr(detection, "detect", recorded)
    out = tmp_path / "out"
    words = ["--small", "--store", str(store.uri), "--storage", str(out), "--translator", f"shade={path}", "--steps", "2"]
    words += ["--seeds", "0", "--set", "model.score_floor=0.0", *(w for change in DETECTOR for w in ("--set", change))]
    assert main(words) == 0
    arms = [SOURCE_ONLY, adapted_pictures("shade"), adapted_detector("shade"), ORACLE]
    assert list(tested) == arms == list(pd.read_parquet(out / "table.parquet")["arm"].unique())

    for arm, pictures in tested.items():
        assert set(pictures) == set(store.ids("test", "night"))  # all are tested on the target
        for id, image in pictures.items():
            stored = store.record(id).image
            expected = shaded(stored, "sunny") if arm == adapted_pictures("shade") else decode(stored).double()
            assert (image.double() - expected).abs().max() <= 1, arm

    trained = {read.parts[-3]: json.loads(read.read_text()) for read in out.glob("detectors/*/*/run.json")}
    assert {name.rpartition("-")[2] for name in trained} == {"sunny", "shade", "night"}
    (adapted,) = (config for name, config in trained.items() if name.endswith("shade"))
    learnt = Store.open(adapted["data"]["store"])
    assert adapted["data"]["domains"] == list(learnt.domains.names) and learnt.ids("train", *learnt.domains.names)
    for split in ("train", "val"):
        assert learnt.ids(split, *learnt.domains.names) == store.ids(split, "sunny")
        for id in learnt.ids(split, *learnt.domains.names):
            own, origin = learnt.record(id), store.record(id)
            assert (decode(own.image).double() - shaded(origin.image, "night")).abs().max() <= 1
            assert own.boxes == origin.boxes
    (folder,) = out.glob("detectors/shade-detector-adapted-*/*")
    best = open_bundle(folder / json.loads((folder / "done.json").read_text())["bundle"])
    assert best.manifest["parents"]["data"] == learnt.digest  # and these are what it was trained on
