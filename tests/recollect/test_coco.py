"""Data sets in COCO's form into stores, beside torchvision's and COCO's own readers; and real boxes where there are some."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pycocotools.coco import COCO
from torchvision import datasets
from typer.testing import CliRunner

from recollect import cli
from recollect.config import Data
from recollect.data.loader import Feed
from recollect.data.schema import SPLITS, Box
from recollect.data.sources.coco import Part, ingest, parse_part
from recollect.data.sources.pictures import Ingest
from recollect.data.store import Store

REAL = Path(__file__).parents[3] / "shared" / "data" / "carla_boxes"
SIZE = (60, 40)
CATEGORIES = [{"id": 90, "name": "car", "supercategory": "vehicle"}, {"id": 3, "name": "person"}, {"id": 7, "name": "sign"}]


def write(root: Path, name: str, count: int = 6, **changes: Any) -> Part:
    """A folder of pictures, some below another, and its JSON, with ids that are not contiguous; the part without a split."""
    chance = random.Random(name)
    content: dict[str, Any] = {"info": {}, "licenses": [], "images": [], "annotations": [], "categories": CATEGORIES}
    for index in range(count):
        name_of = f"{'deep/' if index % 2 else ''}{index:012}.jpg"
        path = root / name / name_of
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = Image.frombytes("RGB", (4, 4), chance.randbytes(48))
        noise.resize(SIZE, Image.Resampling.NEAREST).save(path)
        content["images"].append({"id": 17 * index + 5, "file_name": name_of, "width": SIZE[0], "height": SIZE[1]})
        for _ in range(index % 4):
            x, y, w, h = chance.uniform(0, 40), chance.uniform(0, 20), chance.uniform(1, 20), chance.uniform(1, 20)
            content["annotations"].append(
                {
                    "id": 1000 - len(content["annotations"]),
                    "image_id": 17 * index + 5,
                    "category_id": chance.choice((90, 3, 7)),
                    "bbox": [round(value, 2) for value in (x, y, w, h)],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h]],
                }
            )
    file = root / f"{name}.json"
    file.write_text(json.dumps(content | changes))
    return Part("town", root / name, file)


def edit(part: Part, **first: Any) -> None:
    """Change fields of the first annotation."""
    content = json.loads(part.annotations.read_text())
    content["annotations"][0] |= first
    part.annotations.write_text(json.dumps(content))


def into(tmp_path: Path, *parts: Part, **options: Any) -> tuple[Ingest, Store]:
    result = ingest(parts, tmp_path / "store", **{"val": 0, "test": 0} | options)
    return result, Store.open(tmp_path / "store", verify=True)


def listed(boxes: tuple[Box, ...] | None) -> list[tuple[Any, ...]]:
    return [(b.label, *(round(value, 3) for value in (b.x1, b.y1, b.x2, b.y2))) for b in boxes or ()]


def theirs(part: Part) -> dict[str, list[tuple[Any, ...]]]:
    """The boxes by file name, as torchvision hands them out and pycocotools names them."""
    read = datasets.CocoDetection(str(part.images), str(part.annotations))
    names = {row["id"]: row["name"] for row in COCO(str(part.annotations)).loadCats(read.coco.getCatIds())}
    found = {}
    for index, id in enumerate(read.ids):
        boxes = [(names[a["category_id"]], *a["bbox"]) for a in read[index][1] if not a["iscrowd"]]
        found[read.coco.imgs[id]["file_name"]] = [
            (n, *(round(value, 3) for value in (x, y, x + w, y + h))) for n, x, y, w, h in boxes
        ]
    return found


def test_every_box_is_the_one_that_others_read(tmp_path: Path) -> None:
    part = write(tmp_path, "train", 8)
    result, store = into(tmp_path, part, strict=True)
    assert store.domains.classes == ("background", "person", "sign", "car")  # by id
    wanted = theirs(part)
    assert len(wanted) == len(store) == 8 and sum(map(len, wanted.values())) == 12
    for name, boxes in wanted.items():
        record = store.record(f"town/{name}")
        assert listed(record.boxes) == boxes and record.boxes is not None
        assert record.image == (part.images / name).read_bytes() and record.source == f"train/{name}"
    assert result.skipped == () and result.manifest.source == "COCO: train.json"


def test_parts_are_domains_and_splits(tmp_path: Path) -> None:
    day = write(tmp_path, "train", 6)
    parts = [
        Part("day", day.images, day.annotations, "train"),
        Part("day", *_places(write(tmp_path, "val", 3)), "val"),
        Part("night", *_places(write(tmp_path, "night", 40))),
    ]
    store = into(tmp_path, *parts, val=0.2, test=0.2)[1]
    counts = store.manifest.counts
    assert store.domains.names == ("day", "night")
    assert counts["val"]["day"] == 3 and counts["train"]["day"] + counts["test"]["day"] == 6
    assert all(counts[split]["night"] > 1 for split in SPLITS) and sum(counts[split]["night"] for split in SPLITS) == 40
    assert store.record("day/train/deep/000000000001.jpg").split in ("train", "test")
    assert store.record("day/val/000000000002.jpg").split == "val"  # the same name as in train
    assert store.record("night/000000000000.jpg").domain == "night"


def _places(part: Part) -> tuple[Path, Path]:
    return part.images, part.annotations


def test_crowds_are_no_objects(tmp_path: Path) -> None:
    part = write(tmp_path, "train")
    before = sum(len(boxes) for boxes in theirs(part).values())
    edit(part, iscrowd=1, segmentation={"size": [40, 60], "counts": [0, 2400]})
    result, store = into(tmp_path, part)
    assert "left out 1 regions that are no objects (1 crowd)" in result.warnings
    found = {name: listed(store.record(f"town/{name}").boxes) for name in theirs(part)}
    assert found == theirs(part) and sum(map(len, found.values())) == before - 1


def test_categories_of_all_parts_and_a_class_map(tmp_path: Path) -> None:
    one = write(tmp_path, "one")
    two = write(tmp_path, "two", categories=[{"id": 3, "name": "rider"}, {"id": 7, "name": "sign"}, {"id": 90, "name": "car"}])
    parts = (one, Part("other", two.images, two.annotations))
    assert into(tmp_path, *parts)[1].domains.classes == ("background", "person", "sign", "car", "rider")
    result, store = into(tmp_path, *parts, classes={"car": "vehicle", "rider": "human", "person": "human"})
    assert store.domains.classes == ("background", "vehicle", "human")
    assert any(text.startswith("dropped") and "sign" in text for text in result.warnings)
    names = {box.label for id in store.ids("train", "other") for box in store.record(id).boxes or ()}
    assert names == {"vehicle", "human"}
    with pytest.raises(ValueError, match="names 'bus', which this data set does not have; known: car, person, rider, sign"):
        into(tmp_path, *parts, classes={"bus": "vehicle"})


@pytest.mark.parametrize(
    ("box", "says"),
    [
        ([5, 5, 0, 8], r"train.json: picture '.*', box 1: the \w+ box \(5, 5\) to \(5, 13\) has no area"),
        ([5, 5, 8, -1], "has no area"),
        ([70, 5, 8, 8], "has no area in its picture of 60x40"),
        ([float("nan"), 5, 8, 8], "has no area"),
        ([50, 5, 12, 8], r"box 1: the \w+ box \(50, 5\) to \(62, 13\) sticks out of its picture of 60x40"),
    ],
)
def test_boxes_that_are_not_right(tmp_path: Path, box: list[float], says: str) -> None:
    part = write(tmp_path, "train")
    edit(part, bbox=box)
    with pytest.raises(ValueError, match=says):
        into(tmp_path, part, strict=True)
    result, store = into(tmp_path, part)
    kept = sum(len(store.record(id).boxes or ()) for id in store.ids("train", "town"))
    lost = "area" in says
    assert kept == 7 - lost and any(text.startswith("left out 1" if lost else "clipped 1") for text in result.warnings)


def test_pictures_that_are_not_right(tmp_path: Path) -> None:
    part = write(tmp_path, "train", 5)
    (part.images / "000000000000.jpg").unlink()
    (part.images / "000000000002.jpg").write_bytes(b"\xff\xd8 and no more")
    result, store = into(tmp_path, part)
    assert [path for path, _ in result.skipped] == ["train/000000000000.jpg", "train/000000000002.jpg"] and len(store) == 3
    assert result.skipped[0][1] == "the picture is missing" and "picture that can be read" in result.skipped[1][1]
    with pytest.raises(ValueError, match="000000000000.jpg: the picture is missing"):
        into(tmp_path, part, strict=True)
    Image.new("RGB", (40, 60)).save(part.images / "000000000004.jpg")
    with pytest.raises(ValueError, match="train/000000000004.jpg: its boxes are meant in 60x40 pixels, but the picture is 40x60"):
        into(tmp_path, part)


def test_parts_that_are_none(tmp_path: Path) -> None:
    part = write(tmp_path, "train")
    assert parse_part("a/val=x=1/im,ages,b.json") == Part("a", Path("x=1/im,ages"), Path("b.json"), "val")
    assert parse_part("a=i,b.json") == Part("a", Path("i"), Path("b.json"))
    for text in ("", "a", "a=i", "a=,b.json", "a=i,", "=i,b.json", "a/=i,b.json"):
        with pytest.raises(ValueError, match=r"a part is written DOMAIN/SPLIT=IMAGES,ANNOTATIONS"):
            parse_part(text)
    for parts, says in {
        (): "which pictures",
        (Part("a", part.images, part.annotations, "trian"),): "there is no split 'trian'; did you mean 'train'",
        (Part("a", tmp_path / "none", part.annotations),): "there is no folder .*none for the pictures of 'a'",
        (Part("a", part.images, tmp_path / "trian.json"),): "there is no file .*trian.json; did you mean 'train.json'",
        (part, part): "the picture 'town/000000000000.jpg' is there twice: train/000000000000.jpg",
        (write(tmp_path, "empty", 1, images=[], annotations=[]),): "empty.json lists no picture",
    }.items():
        with pytest.raises(ValueError, match=says):
            into(tmp_path, *parts)


def test_the_command(tmp_path: Path) -> None:
    day, night, store = write(tmp_path, "day", 9), write(tmp_path, "night", 9), tmp_path / "store"
    words = ["data", "coco", str(store)]
    for part in (day, night):
        words += ["--part", f"{part.images.name}/train={part.images},{part.annotations}"]
    done = CliRunner().invoke(cli.app, [*words, "--val", "0.4", "--test", "0", "--max-side", "30"])
    assert done.exit_code == 0, done.output
    assert "classes background, person, sign, car" in done.stdout and "note: domain 'day' has no test picture" in done.stderr
    opened = Store.open(store)
    assert opened.domains.names == ("day", "night") and opened.manifest.counts["val"]["day"] > 0
    assert opened.record("day/train/000000000000.jpg").width == 30
    assert CliRunner().invoke(cli.app, words[:3]).exit_code == 2  # no part
    failed = CliRunner().invoke(cli.app, [*words, "--part", "day=x"])
    assert "a part is written DOMAIN/SPLIT=IMAGES,ANNOTATIONS" in str(failed.exception)


def test_real_boxes(tmp_path: Path) -> None:
    if not REAL.is_dir():
        pytest.skip("no real pictures: there is no carla_boxes folder")
    parts = [Part("carla", REAL / split, REAL / f"{split}.json", split) for split in ("train", "test")]
    result, store = into(tmp_path, *parts, val=0.1, strict=True)
    assert store.domains.classes == ("background", "vehicle", "person", "sign", "bicycle") and result.skipped == ()
    counts = {split: result.manifest.counts[split]["carla"] for split in SPLITS}
    assert sum(counts.values()) == len(store) == 515 and 20 < counts["val"] < 80
    for part in parts:
        for name, boxes in theirs(part).items():
            found = listed(store.record(f"carla/{part.split}/{name}").boxes)
            assert [one[0] for one in found] == [one[0] for one in boxes]
            assert all(
                abs(a - b) < 2e-3
                for one, other in zip(found, boxes, strict=True)
                for a, b in zip(one[1:], other[1:], strict=True)
            )
    batch = Feed(store, Data(size=64, short_side=64), 16, 4, 0).batches(0)[0]
    assert batch.classes is not None and (batch.classes > 0).any()
