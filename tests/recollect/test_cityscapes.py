"""Cityscapes into stores: boxes from polygons, beside torchvision's reader and the official instance maps."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from torchvision import datasets
from torchvision.ops import masks_to_boxes
from typer.testing import CliRunner

from recollect import cli
from recollect.data.schema import SPLITS, Box
from recollect.data.sources.cityscapes import CLASSES, FOUR_CLASSES, INSTANCES, LABELS, ingest, read_polygons
from recollect.data.sources.kitti import FOUR_CLASSES as KITTI_FOUR_CLASSES
from recollect.data.sources.pictures import Ingest
from recollect.data.store import Store

SIZE = (96, 48)
IDS = {one.name: one.id for one in datasets.Cityscapes.classes}
COUNTED = {one.name for one in datasets.Cityscapes.classes if one.has_instances}
Objects = list[dict[str, Any]]


def rectangle(label: str, x1: int, y1: int, x2: int, y2: int, **more: Any) -> dict[str, Any]:
    return {"label": label, "polygon": [[x1, y1], [x2, y1], [x2, y2], [x1, y2]], **more}


SCENE = [
    {"label": "road", "polygon": [[0, 20], [95, 20], [95, 47], [0, 47]]},
    rectangle("person", 2, 10, 9, 40),
    rectangle("car", 10, 20, 40, 40),
    rectangle("car", 30, 25, 60, 45),  # in front of the first
    {"label": "rider", "polygon": [[70, 5], [80, 12], [75, 30], [66, 28]]},
    {"label": "bicycle", "polygon": [[64, 22], [82, 22], [84, 40], [62, 40]]},
    rectangle("traffic sign", 88, 2, 92, 6),
    rectangle("truck", 90, 10, 120, 30),  # beyond the right side
    rectangle("persongroup", 0, 8, 4, 44),  # hides the left of the person
    rectangle("car", 20, 2, 30, 9, deleted=1),
    rectangle("license plate", 58, 24, 60, 46),  # on the right of the second car, and covers nothing
    rectangle("pole", 50, 0, 52, 47),
]


def write(root: Path, split: str, stem: str, objects: Objects, size: tuple[int, int] = SIZE) -> Path:
    """A picture, its polygons, and its instance map drawn as the official script draws it; the polygons' file."""
    city = stem.split("_")[0]
    picture = root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png"
    label = root / "gtFine" / split / city / f"{stem}_gtFine_polygons.json"
    for path in (picture, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    noise = Image.frombytes("RGB", (4, 4), random.Random(stem).randbytes(48))
    noise.resize(size, Image.Resampling.NEAREST).save(picture)
    label.write_text(json.dumps({"imgHeight": size[1], "imgWidth": size[0], "objects": objects}))
    canvas, counts = Image.new("I", size, 0), dict.fromkeys(COUNTED, 0)
    for item in objects:
        name = item["label"]
        if "deleted" in item:
            continue
        group = name not in IDS
        number = IDS[name.removesuffix("group") if group else name]
        if name in COUNTED:
            number, counts[name] = number * 1000 + counts[name], counts[name] + 1
        if number >= 0:
            ImageDraw.Draw(canvas).polygon([tuple(point) for point in item["polygon"]], fill=number)
    Image.fromarray(np.asarray(canvas).astype(np.uint16)).save(label.with_name(f"{stem}_gtFine_instanceIds.png"))
    return label


def some(root: Path) -> Path:
    for index, city in enumerate(("aachen", "aachen", "bremen", "ulm")):
        objects = (
            SCENE if index == 0 else [rectangle(name, 3 * n, n, 3 * n + 9, n + 20) for n, name in enumerate(CLASSES)][index:]
        )
        write(root, "train", f"{city}_{index:06}_000019", objects)
    for index in range(2):
        write(root, "val", f"munster_{index:06}_000019", SCENE[index + 1 :])
    write(root, "test", "berlin_000000_000019", [rectangle("out of roi", 0, 0, 95, 47)])
    return root


def into(tmp_path: Path, root: Path, **options: Any) -> tuple[Ingest, Store]:
    result = ingest(root, tmp_path / "store", **{"val": 0} | options)
    return result, Store.open(tmp_path / "store", verify=True)


def of_instance_map(instances: Image.Image, names: dict[str, str]) -> list[tuple[Any, ...]]:
    """Label and box of every instance of an official map, by torchvision; its boxes end at the last pixel, ours behind it."""
    pixels = torch.from_numpy(np.array(instances).astype(np.int64))
    found: list[tuple[Any, ...]] = []
    for number in [one for one in np.unique(pixels.numpy()).tolist() if one >= 1000]:
        name = next(name for name, id in IDS.items() if id == number // 1000)
        if name in names:
            x1, y1, x2, y2 = masks_to_boxes((pixels == number)[None])[0].tolist()
            found.append((names[name], x1, y1, x2 + 1, y2 + 1))
    return sorted(found)


def listed(boxes: tuple[Box, ...] | None) -> list[tuple[Any, ...]]:
    return sorted((box.label, box.x1, box.y1, box.x2, box.y2) for box in boxes or ())


def test_the_labels_are_the_official_ones() -> None:
    assert sorted(LABELS) == sorted(IDS) and set(INSTANCES) == COUNTED
    assert sorted(CLASSES) == sorted(
        one.name for one in datasets.Cityscapes.classes if one.has_instances and not one.ignore_in_eval
    )
    assert [name for name, id in IDS.items() if id < 0] == ["license plate"]
    assert set(FOUR_CLASSES.values()) == set(KITTI_FOUR_CLASSES.values()) == {"person", "car", "truck", "bicycle"}


@pytest.mark.parametrize("classes", [FOUR_CLASSES, None])
def test_modal_boxes_are_those_of_the_instance_maps(tmp_path: Path, classes: dict[str, str] | None) -> None:
    root = some(tmp_path)
    store = into(tmp_path, root, classes=classes)[1]
    names = classes or {name: name for name in CLASSES}
    assert store.domains.classes == ("background", *dict.fromkeys(names.values()))
    seen = 0
    for split, ours in {"train": "train", "val": "test"}.items():
        theirs = datasets.Cityscapes(str(root), split=split, mode="fine", target_type=["instance", "polygon"])
        assert len(store.ids(ours, "cityscapes")) == len(theirs)
        for index, path in enumerate(map(Path, theirs.images)):
            picture, (instances, polygons) = theirs[index]
            record = store.record(f"cityscapes/{path.name.removesuffix('_leftImg8bit.png')}")
            assert (polygons["imgWidth"], polygons["imgHeight"]) == picture.size == (record.width, record.height)
            assert listed(record.boxes) == of_instance_map(instances, names)
            assert record.source == f"leftImg8bit/{split}/{path.parent.name}/{path.name}" and record.split == ours
            seen += len(record.boxes or ())
    assert seen > 20


def test_amodal_boxes_are_the_whole_outlines(tmp_path: Path) -> None:
    root = some(tmp_path)
    result, store = into(tmp_path, root, boxes="amodal")
    theirs = datasets.Cityscapes(str(root), split="train", mode="fine", target_type="polygon")
    for index, path in enumerate(map(Path, theirs.images)):
        wanted = []
        for item in theirs[index][1]["objects"]:
            if item["label"] in FOUR_CLASSES and not item.get("deleted"):
                (x1, y1), (x2, y2) = np.min(item["polygon"], 0), np.max(item["polygon"], 0)
                wanted.append((FOUR_CLASSES[item["label"]], x1, y1, min(x2 + 1, SIZE[0]), min(y2 + 1, SIZE[1])))
        assert listed(store.record(f"cityscapes/{path.name.removesuffix('_leftImg8bit.png')}").boxes) == sorted(wanted)
    boxes = store.record("cityscapes/aachen_000000_000019").boxes or ()
    assert Box("car", 10, 20, 41, 41) in boxes and Box("truck", 90, 10, 96, 31) in boxes and Box("person", 2, 10, 10, 41) in boxes
    modal = into(tmp_path, root)[1].record("cityscapes/aachen_000000_000019").boxes or ()
    assert Box("car", 10, 20, 41, 41) in modal  # its left and top are still seen ...
    assert Box("person", 5, 10, 10, 41) in modal  # ... and a group hides the left of this one
    assert result.manifest.source == f"Cityscapes: {tmp_path.name} (amodal)"


def test_what_stands_in_front_makes_the_box_behind_smaller(tmp_path: Path) -> None:
    front = rectangle("car", 20, 0, 40, 47)
    file = write(tmp_path, "train", "ulm_000000_000019", [rectangle("person", 10, 10, 30, 30), front])
    assert [(b.x1, b.y1, b.x2, b.y2) for b in read_polygons(file).labels] == [(10, 10, 20, 31), (20, 0, 41, 48)]
    assert [(b.x1, b.y1, b.x2, b.y2) for b in read_polygons(file, "amodal").labels] == [(10, 10, 31, 31), (20, 0, 41, 48)]
    file = write(tmp_path, "train", "ulm_000000_000019", [front, rectangle("person", 10, 10, 30, 30)])
    assert [b.x2 for b in read_polygons(file).labels] == [41, 31]
    file = write(
        tmp_path, "train", "ulm_000000_000019", [rectangle("person", 25, 10, 30, 30), front, rectangle("bus", 99, 0, 120, 9)]
    )
    assert [b.name for b in read_polygons(file).labels] == ["car"]
    assert read_polygons(file).ignored == ("hidden person", "hidden bus")
    assert [b.name for b in read_polygons(file, "amodal").labels] == ["person", "car", "bus"]


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    root = some(tmp_path / "city")
    (root / "leftImg8bit/train/bremen/bremen_000002_000019_leftImg8bit.png").unlink()
    (root / "gtFine/val/munster/munster_000000_000019_gtFine_polygons.json").unlink()
    result, store = into(tmp_path, root)
    assert result.skipped == (
        ("leftImg8bit/val/munster/munster_000000_000019_leftImg8bit.png", "it has no polygons"),
        ("leftImg8bit/train/bremen/bremen_000002_000019_leftImg8bit.png", "the picture is missing"),
    )
    assert {split: len(store.ids(split, "cityscapes")) for split in SPLITS} == {"train": 3, "val": 0, "test": 1}
    assert "left out 2 regions that are no objects (2 persongroup)" in result.warnings
    assert any(text.startswith("dropped 6 boxes of classes that the class map") and "2 train" in text for text in result.warnings)
    with pytest.raises(ValueError, match="munster_000000_000019_leftImg8bit.png: it has no polygons"):
        into(tmp_path, root, strict=True)


def test_labels_without_instances_can_be_asked_for(tmp_path: Path) -> None:
    root = some(tmp_path)
    result, store = into(tmp_path, root, classes={"traffic sign": "sign", "license plate": "plate", "caravan": "car"})
    boxes = store.record("cityscapes/aachen_000000_000019").boxes
    assert boxes == (Box("sign", 88, 2, 93, 7), Box("plate", 58, 24, 61, 47))
    assert "the class map names 'caravan', but no picture has such a box" in result.warnings
    assert not any("road" in text or "pole" in text for text in result.warnings)  # they never were boxes


def test_a_polegroup_is_a_label_of_its_own(tmp_path: Path) -> None:
    file = write(
        tmp_path, "train", "ulm_000000_000019", [rectangle("polegroup", 0, 0, 5, 5), rectangle("cargroup", 9, 9, 12, 12)]
    )
    annotation = read_polygons(file, wanted=("polegroup", "car"))
    assert [label.name for label in annotation.labels] == ["polegroup"] and annotation.ignored == ("cargroup",)


POINT = st.tuples(st.integers(-20, 110), st.integers(-20, 60)).map(list)
OUTLINE = st.lists(POINT, min_size=3, max_size=8)
OBJECT = st.fixed_dictionaries(
    {"label": st.sampled_from(["car", "person", "bicycle", "cargroup", "pole", "license plate"]), "polygon": OUTLINE},
    optional={"deleted": st.just(1)},
)


@settings(max_examples=60, deadline=None)
@given(st.lists(OBJECT, max_size=8))
def test_any_scene_has_the_boxes_of_its_instance_map(tmp_path_factory: pytest.TempPathFactory, objects: Objects) -> None:
    file = write(tmp_path_factory.mktemp("x"), "train", "ulm_000000_000019", objects)
    modal = read_polygons(file).labels
    with Image.open(file.with_name("ulm_000000_000019_gtFine_instanceIds.png")) as instances:
        assert sorted((b.name, b.x1, b.y1, b.x2, b.y2) for b in modal) == of_instance_map(
            instances, {name: name for name in CLASSES}
        )
    whole = {label.where: label for label in read_polygons(file, "amodal").labels}
    for box in modal:
        outer = whole[box.where]
        assert outer.x1 <= box.x1 and outer.y1 <= box.y1 and box.x2 <= outer.x2 and box.y2 <= outer.y2


@settings(max_examples=30, deadline=None)
@given(st.tuples(st.integers(0, 90), st.integers(0, 40)), st.lists(st.tuples(st.integers(0, 95), st.integers(0, 47)), min_size=2))
def test_an_outline_alone_is_seen_whole(tmp_path_factory: pytest.TempPathFactory, at: tuple[int, int], others: Any) -> None:
    objects = [{"label": "car", "polygon": [list(at), *map(list, others)]}]
    file = write(tmp_path_factory.mktemp("x"), "train", "ulm_000000_000019", objects)
    assert read_polygons(file).labels == read_polygons(file, "amodal").labels


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", r"polygons.json:1: this is not JSON"),
        ("[]", r"polygons.json is no polygon file: it needs imgWidth, imgHeight and objects"),
        ('{"imgWidth": 96, "imgHeight": 48}', r"is no polygon file: .*objects"),
        ('{"imgWidth": 0, "imgHeight": 48, "objects": []}', r"is no polygon file: it is 0x48 pixels"),
        ('{"imgWidth": 96, "imgHeight": 48, "objects": {"a": 1}}', r"is no polygon file"),
        ([rectangle("road", 0, 0, 9, 9), rectangle("lorry", 0, 0, 9, 9)], r"object 2: there is no label 'lorry'; known: bicycle"),
        ([rectangle("lorrygroup", 0, 0, 9, 9)], r"object 1: there is no label 'lorrygroup'"),
        ([{"label": "car"}], r"object 1 needs a label and a polygon \[\[x, y\], ...\] \(KeyError"),
        ([{"label": "car", "polygon": [[1, 2, 3]]}], r"object 1 needs a label and a polygon"),
        (
            [{"label": "car", "polygon": [[1, 2], [3, 4]]}],
            r"object 1 needs a label and a polygon of at least three finite corners",
        ),
        ([{"label": "car", "polygon": [[1, 2], [3, 4], [float("inf"), 3]]}], r"object 1 needs .* finite"),
        ([{"label": 3, "polygon": [[1, 2], [3, 4], [5, 6]]}], r"object 1 needs a label"),
    ],
)
def test_polygons_that_are_none(tmp_path: Path, content: str | Objects, says: str) -> None:
    file = write(tmp_path, "train", "ulm_000000_000019", [])
    if isinstance(content, str):
        file.write_text(content)
    else:
        file.write_text(json.dumps({"imgWidth": 96, "imgHeight": 48, "objects": content}))
    with pytest.raises(ValueError, match=says):
        into(tmp_path, tmp_path)


def test_pictures_made_smaller_beforehand(tmp_path: Path) -> None:
    root = some(tmp_path)
    path = root / "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png"
    Image.new("RGB", (48, 24)).save(path)
    result, store = into(tmp_path, root)
    assert Box("car", 5, 10, 20.5, 20.5) in (store.record("cityscapes/aachen_000000_000019").boxes or ())
    assert any(text.startswith("scaled the boxes of 1 pictures") and "96x48 to 48x24" in text for text in result.warnings)
    Image.new("RGB", (48, 48)).save(path)
    with pytest.raises(ValueError, match="its boxes are meant in 96x48 pixels, but the picture is 48x48"):
        into(tmp_path, root)


def test_the_command(tmp_path: Path) -> None:
    root, store = some(tmp_path), tmp_path / "store"
    words = ["data", "cityscapes", str(root), str(store)]
    done = CliRunner().invoke(cli.app, [*words, "--boxes", "amodal", "--val", "0.3", "--domain", "town", "--max-side", "48"])
    assert done.exit_code == 0, done.output
    opened = Store.open(store)
    assert opened.domains.names == ("town",) and opened.domains.classes == ("background", "person", "car", "truck", "bicycle")
    assert opened.record("town/aachen_000000_000019").width == 48 and len(opened.ids("val", "town")) == 2
    for option, says in {
        "--boxes=modla": "there are no 'modla' boxes; did you mean 'modal'",
        "--classes=lorry=truck": "which this data set does not have",
    }.items():
        failed = CliRunner().invoke(cli.app, [*words, option])
        assert isinstance(failed.exception, ValueError) and says in str(failed.exception)
    with pytest.raises(ValueError, match="is not Cityscapes: it needs leftImg8bit/train/CITY"):
        ingest(tmp_path / "nowhere", store)
