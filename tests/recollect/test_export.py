"""Exports: what they give against the bundle, on unlike pictures and sizes; what is refused; the card of a hub."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from PIL import Image

from recollect import bundle
from recollect.batch import Domains, Guide
from recollect.bundle import Bundle, open_bundle
from recollect.cli import app
from recollect.config import find_method, preset
from recollect.data.transforms import decode, to_unit
from recollect.export import hub, program, write
from recollect.export.graph import traceable
from recollect.export.parity import TOLERANCE, Parity, compare, real_pictures
from recollect.pipeline import Pipeline
from trainables.gmm_unit import CELEBA

NAMES, CLASSES = ("sunny", "night"), ("background", "car")
SMALL: dict[str, dict[str, Any]] = {
    "mguit": {"width": 8, "content_blocks": 1, "generator_blocks": 1, "memory": {"value_dim": 8}},
    "munit": {"width": 8, "content_blocks": 1, "generator_blocks": 1},
    "drit": {"width": 8, "content_blocks": 1, "generator_blocks": 2},
    "unit": {"width": 8},
    "cyclegan": {"width": 8},
    "gmm_unit": {"width": 8, "content_blocks": 1, "generator_blocks": 1, "dims": 2},
    "rg_unit": {
        "attributes": CELEBA,
        "exclusive": (CELEBA[:3],),
        "width": 8,
        "content_blocks": 1,
        "generator_blocks": 1,
        "dims": 2,
        "neighbours": 2,
        "embedding": {"widths": (8, 8, 8), "hidden": 16, "dim": 6},
    },
}
HISTORY = [{"step": 5, "rate": 0.1, "loss/cyc_rec": 0.3}, {"step": 10, "scene_error": 0.25, "class_found/car": 0.5}]


def write_bundle(path: Path, method: str, **run: Any) -> Bundle:
    """An untrained bundle of a published method, at its smallest; its random weights give unlike pictures."""
    domains = Domains(NAMES, CLASSES, CELEBA)
    wanted = preset(f"{method}:tiny", name=f"small {method}", data={"domains": NAMES}, model=SMALL[method], **run)
    wanted = wanted.model_copy(update={"model": wanted.model.suited_to(CLASSES)})
    torch.manual_seed(0)
    model = find_method(method)(wanted.model, domains)
    return bundle.write(path, wanted, domains, model.state_dict(), metrics=HISTORY, parents={"data": "ab" * 32}, card="# small\n")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs' stand-ins of unlike, odd sizes: gradients with noise."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, (width, height) in enumerate([(37, 30), (32, 48), (50, 41)]):
        y, x = np.mgrid[:height, :width]
        noise = np.random.default_rng(number).normal(0, 20, (height, width, 3))
        image = np.stack([x * 5, y * 5, (x + y) * 3], axis=-1) + noise
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


RUN_ALONE = """
import sys, types
for name in ("recollect", "trainables", "torch"):
    sys.modules[name] = None                      # importing them fails here
import json, numpy, onnxruntime
from PIL import Image
path, picture, out = sys.argv[1:]
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
images = numpy.asarray(Image.open(picture).convert("RGB")).transpose(2, 0, 1)[None].astype("float32") / 127.5 - 1
given = {"images": images}
if "style" in {value.name for value in session.get_inputs()}:
    given["style"] = numpy.load(path.replace("model.onnx", "stored_style.npy"))[None]
numpy.save(out, session.run(["translation"], given)[0])
"""


@pytest.mark.parametrize("method", ["cyclegan", pytest.param("mguit", marks=pytest.mark.slow)])
def test_an_onnx_model_runs_where_there_is_no_recollect(method: str, pictures: Path, tmp_path: Path) -> None:
    opened = write_bundle(tmp_path / "bundle", method)
    pipeline, inputs = Pipeline.open(opened), ["style"] if method == "mguit" else []
    parity = write.export(
        opened, pipeline, "onnx", tmp_path / "out", target="night", source="sunny", inputs=inputs, pictures=[pictures]
    )
    assert parity.pictures == 3 and parity.worst["translation"] < 1e-4 and parity.worst.get("memory_map", 0.0) < 0.005
    picture = pictures / "1.png"  # of a size that needs no padding
    command = [sys.executable, "-c", RUN_ALONE, str(tmp_path / "out" / "model.onnx"), str(picture), str(tmp_path / "made.npy")]
    subprocess.run(command, check=True, cwd=tmp_path)
    wanted = pipeline(to_unit(decode(picture.read_bytes()))[None], "night", "sunny").images.numpy()
    assert np.abs(np.load(tmp_path / "made.npy") - wanted).max() < 1e-4, "a stored style is the deterministic one"
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    axes = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
    assert axes.get("style", ["B"])[0] == axes["images"][0] == axes["translation"][0] == "B"
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert about["bundle"] == opened.digest and about["target"] == "night" and set(about["inputs"]) == {"images", *inputs}
    assert "onnxruntime" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "torch-export"])
@pytest.mark.parametrize("method", list(SMALL))
def test_every_method_gives_what_its_bundle_gives(method: str, kind: write.Kind, pictures: Path, tmp_path: Path) -> None:
    opened = write_bundle(tmp_path / "bundle", method)
    pipeline = Pipeline.open(opened)
    inputs = ["style"] if pipeline.random_styles else []
    parity = write.export(opened, pipeline, kind, tmp_path / "out", target="night", inputs=inputs, pictures=[pictures])
    assert parity.worst["translation"] < (1e-6 if kind == "torch-export" else 1e-4)
    if method == "rg_unit":
        assert set(json.loads((tmp_path / "out" / "export.json").read_text())["inputs"]) == {
            *("images", "attributes", "neighbours", "style")
        }


@pytest.mark.slow
def test_a_program_runs_with_torch_alone(pictures: Path, tmp_path: Path) -> None:
    opened = write_bundle(tmp_path / "bundle", "cyclegan")
    write.export(opened, Pipeline.open(opened), "torch-export", tmp_path / "out", target="sunny", pictures=[pictures])
    code = """
import sys
sys.modules["recollect"] = sys.modules["trainables"] = None
import torch
translation, = torch.export.load(sys.argv[1]).module()(torch.zeros(3, 3, 40, 32))
assert translation.shape == (3, 3, 40, 32)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out" / "model.pt2")], check=True, cwd=tmp_path)


def test_a_wrong_export_is_noticed_and_leaves_nothing(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = write_bundle(tmp_path / "bundle", "cyclegan")
    pipeline = Pipeline.open(opened)
    traced = traceable(pipeline, "night")
    images = real_pictures([pictures], "", "sunny")

    def off(by: float) -> Parity:
        def run(inputs: Any) -> list[torch.Tensor]:
            made = list(traced.graph(*(inputs[name] for name in traced.inputs)))
            made[0] = made[0].detach() + by
            return made

        return compare(pipeline, traced, run, images)

    off(0).check()
    assert off(2 * TOLERANCE).worst["translation"] == pytest.approx(2 * TOLERANCE, rel=0.01)
    for by in (2 * TOLERANCE, float("nan")):
        with pytest.raises(ValueError, match="does not give what the bundle gives"):
            off(by).check()
    monkeypatch.setattr(program, "runner", lambda folder, traced: lambda inputs: [torch.zeros(1)])
    with pytest.raises(ValueError, match="differs in translation"):
        write.export(opened, pipeline, "torch-export", tmp_path / "out", target="night", pictures=[pictures])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


@pytest.mark.parametrize(
    ("method", "wanted", "says"),
    [
        ("cyclegan", ["style"], "one translation of a picture and no style"),
        ("munit", ["attributes"], "munit has no input 'attributes'; it can have: images, style"),
        ("rg_unit", ["colour"], "it can have: images, attributes, neighbours, style"),
    ],
)
def test_inputs_that_a_method_has_no_use_for(method: str, wanted: list[str], says: str, tmp_path: Path) -> None:
    pipeline = Pipeline.open(write_bundle(tmp_path / "bundle", method))
    with pytest.raises(ValueError, match=says):
        traceable(pipeline, "night", wanted=wanted)


def test_what_a_graph_takes(tmp_path: Path) -> None:
    made = traceable(Pipeline.open(write_bundle(tmp_path / "a", "rg_unit")), "night", wanted=["style"])
    assert made.inputs == ("images", "attributes", "neighbours", "style") and made.outputs == ("translation", "mask")
    assert made.shapes["neighbours"].startswith("(B, 2, 3, H, W)") and made.shapes["style"] == "(B, 10)"
    domains = traceable(
        Pipeline.open(
            write_bundle(
                tmp_path / "b",
                "gmm_unit",
            )
        ),
        "night",
    )
    assert domains.inputs == ("images", "attributes")


def test_places_and_pictures_are_checked_first(pictures: Path, tmp_path: Path) -> None:
    opened = write_bundle(tmp_path / "bundle", "cyclegan")
    pipeline = Pipeline.open(opened)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="is no export"):
        write.export(opened, pipeline, "onnx", tmp_path / "taken", target="night", pictures=[pictures])
    with pytest.raises(ValueError, match="name some with --pictures"):
        write.export(opened, pipeline, "onnx", tmp_path / "out", target="night")
    with pytest.raises(ValueError, match="there are no pictures"):
        real_pictures([tmp_path / "taken"], "", "sunny")
    assert (tmp_path / "taken" / "thesis.txt").exists() and not (tmp_path / "out").exists()


def test_a_folder_for_a_hub_is_a_bundle_with_a_card(tmp_path: Path) -> None:
    opened = write_bundle(tmp_path / "bundle", "mguit")
    made = hub.export(opened, tmp_path / "hub", "apache-2.0")
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    one, two = Pipeline.open(opened), Pipeline.open(tmp_path / "hub")
    assert torch.equal(one(images, "night").images, two(images, "night", guide=Guide()).images)
    assert made.manifest["parents"] == {"data": "ab" * 32, "exported": opened.digest}
    assert {path.suffix for path in (tmp_path / "hub").iterdir()} == {".json", ".jsonl", ".md", ".safetensors"}
    _, front, text = (tmp_path / "hub" / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(front)
    assert (card["license"], card["library_name"], card["pipeline_tag"]) == ("apache-2.0", "recollect", "image-to-image")
    (index,) = card["model-index"]
    metrics = {metric["type"]: metric["value"] for metric in index["results"][0]["metrics"]}
    assert index["name"] == "small mguit" and metrics == {"scene_error": 0.25, "class_found/car": 0.5}
    assert text.lstrip().startswith("# small") and opened.digest in text and 'translate(images, "night", "sunny")' in text
    with pytest.raises(ValueError, match="SPDX"):
        hub.export(opened, tmp_path / "hub", "mine\nevil: true")
    bare = yaml.safe_load(hub.card(open_bundle(tmp_path / "bundle")).split("---\n", 2)[1])
    assert "license" not in bare


def test_the_command_says_what_goes_with_what(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_bundle(tmp_path / "bundle", "cyclegan")

    def told(*words: object) -> str:
        with pytest.raises(ValueError) as raised:
            app([*map(str, ("export", tmp_path / "bundle", *words))], standalone_mode=False)
        return str(raised.value)

    assert "--target is for a graph" in told("--to", "hub-folder", tmp_path / "out", "--target", "night")
    assert "--license is for a hub's card" in told("--to", "onnx", tmp_path / "out", "--license", "mit")
    assert "there is no domain 'nigth'; did you mean 'night'" in told("--to", "onnx", tmp_path / "out", "--target", "nigth")
    app(["export", str(tmp_path / "bundle"), "--to", "hub-folder", str(tmp_path / "out")], standalone_mode=False)
    assert "a bundle with a model card" in capsys.readouterr().out
