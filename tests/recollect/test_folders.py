"""Folders into stores: layouts, splits, broken pictures, COCO boxes, every refusal; and real pictures where there are some."""

from __future__ import annotations

import io
import json
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from recollect.config import Data
from recollect.data.loader import Feed
from recollect.data.schema import SPLITS, Box
from recollect.data.sources.coco import read_coco
from recollect.data.sources.folders import Ingest, find_pictures, ingest
from recollect.data.store import Store
from recollect.data.transforms import decode

REAL = Path(__file__).parents[3] / "shared" / "data"


def save(path: Path, size: tuple[int, int] = (20, 14), **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = Image.frombytes("RGB", (4, 4), random.Random("/".join(path.parts[-2:])).randbytes(48))
    noise.resize(size, Image.Resampling.NEAREST).save(path, **options)
    return path


def fill(root: Path, **counts: int) -> Path:
    """Pictures `root/folder/0.jpg` ...; `__` in a name stands for a slash."""
    for folder, count in counts.items():
        for index in range(count):
            save(root / folder.replace("__", "/") / f"{index}.jpg")
    return root


def coco(path: Path, boxes: dict[str, list[list[float]]], size: tuple[int, int] | None = (20, 14), category: int = 90) -> Path:
    images = [{"id": 7 * n, "file_name": name} for n, name in enumerate(boxes)]
    if size:
        images = [image | {"width": size[0], "height": size[1]} for image in images]
    rows = [(n, box) for n, name in enumerate(boxes) for box in boxes[name]]
    annotations = [{"id": i, "image_id": 7 * n, "category_id": category, "bbox": box} for i, (n, box) in enumerate(rows)]
    categories = [{"id": 90, "name": "car"}, {"id": 3, "name": "person"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def into(tmp_path: Path, root: Path, **options: Any) -> tuple[Ingest, Store]:
    result = ingest(root, tmp_path / "store", **options)
    store = Store.open(tmp_path / "store", verify=True)
    assert store.manifest == result.manifest
    return result, store


def test_paired_layout(tmp_path: Path) -> None:
    root = fill(tmp_path / "x", trainA=5, trainB=4, testA=2, testB=3, valB=1, extra=1)
    result, store = into(tmp_path, root, names=("horse", "zebra"))
    assert store.domains.names == ("horse", "zebra") and not result.manifest.annotated
    assert result.manifest.counts == {
        "train": {"horse": 5, "zebra": 4},
        "val": {"horse": 0, "zebra": 1},
        "test": {"horse": 2, "zebra": 3},
    }
    assert result.skipped == (("extra/0.jpg", "it lies outside trainA, trainB, ..."),)
    record = store.record("trainB/2.jpg")
    assert record.image == (root / "trainB/2.jpg").read_bytes() and (record.width, record.height) == (20, 14)
    assert record.boxes is None and record.source == "x/trainB/2.jpg"


def test_split_layout_and_files_that_are_none(tmp_path: Path) -> None:
    root = fill(tmp_path / "x", train__day__rome=2, train__day=1, train__night=3, Test__day=1, Validation__night=1)
    for name in ("train/day/UP.JPEG", "train/day/b.bmp", "train/day/p.PNG", "train/day/w.webp"):
        save(root / name)
    save(root / "train/loose.png")
    (root / "train/day/._0.jpg").write_bytes(b"macOS")
    (root / "train/day/readme.txt").write_text("no picture")
    save(root / "train/.cache/9.jpg")
    result, store = into(tmp_path, root)
    assert result.manifest.counts["train"] == {"day": 6, "night": 3}
    assert result.manifest.counts["val"] == {"day": 1, "night": 1}  # a tenth of seven, and the folder's
    assert result.manifest.counts["test"] == {"day": 1, "night": 0}
    assert result.skipped == (("train/loose.png", "it lies beside the domain folders"),)
    kept = {split: store.ids(split, "day") for split in SPLITS}
    assert sorted(sum(kept.values(), ())) == sorted(
        ["train/day/rome/0.jpg", "train/day/rome/1.jpg", "train/day/0.jpg", "Test/day/0.jpg"]
        + [f"train/day/{name}" for name in ("UP.JPEG", "b.bmp", "p.PNG", "w.webp")]
    )
    bitmap = store.record("train/day/b.bmp")
    assert bitmap.image.startswith(b"\x89PNG")
    assert torch.equal(decode(bitmap.image), decode((root / "train/day/b.bmp").read_bytes()))


def test_folder_per_domain_and_made_splits(tmp_path: Path) -> None:
    root = fill(tmp_path / "x", summer=100, winter=8, autumn=3)
    result, store = into(tmp_path, root)
    assert result.manifest.counts == {
        "train": {"autumn": 3, "summer": 81, "winter": 4},
        "val": {"autumn": 0, "summer": 10, "winter": 4},
        "test": {"autumn": 0, "summer": 9, "winter": 0},
    }
    save(root / "summer/new.jpg")  # one more picture hardly changes who is where
    again = {item.path: item.split for item in find_pictures(root)[0]}
    moved = [id for split in SPLITS for id in store.ids(split, "summer") if again[id] != split]
    assert len(moved) <= 2


def test_single_domain_with_splits(tmp_path: Path) -> None:
    root = fill(tmp_path / "town", train=3, val=2)
    assert into(tmp_path, root)[0].manifest.counts["val"] == {"town": 2}
    assert into(tmp_path, root, names=("carla",))[1].domains.names == ("carla",)
    with pytest.raises(ValueError, match="has 1 domain.*, town; this needs at least 2"):
        ingest(root, tmp_path / "store", min_domains=2)


def break_pictures(root: Path) -> dict[str, str]:
    whole = save(root / "a/whole.jpg", (64, 64)).read_bytes()
    (root / "a/truncated.jpg").write_bytes(whole[: len(whole) - 120])
    (root / "a/page.png").write_text("<html>not found</html>")
    (root / "a/empty.jpg").write_bytes(b"")
    (root / "a/gone.jpg").symlink_to(root / "nowhere.jpg")
    return {
        "a/truncated.jpg": "truncated",
        "a/page.png": "not a picture that can be read",
        "a/empty.jpg": "has no bytes",
        "a/gone.jpg": "no such file",
    }


@pytest.mark.parametrize("workers", [0, 3])
def test_broken_pictures_are_listed(tmp_path: Path, workers: int) -> None:
    root = fill(tmp_path / "x", a=2, b=2)
    reasons = break_pictures(root)
    seen: list[tuple[int, int]] = []
    result, store = into(tmp_path, root, workers=workers, progress=lambda done, total: seen.append((done, total)))
    assert dict(result.skipped).keys() == reasons.keys()
    assert {path: reason for path, reason in result.skipped if reasons[path] not in reason.lower()} == {}
    assert {id for split in SPLITS for id in store.ids(split, "a")} == {"a/0.jpg", "a/1.jpg", "a/whole.jpg"}
    assert seen == [(n, 9) for n in range(1, 10)]


def test_strict_fails_and_leaves_nothing(tmp_path: Path) -> None:
    root = fill(tmp_path / "x", a=3, b=2)
    break_pictures(root)
    with pytest.raises(ValueError, match=r"x/a/empty.jpg: it has no bytes"):
        ingest(root, tmp_path / "store", strict=True)
    assert not list((tmp_path / "store").iterdir())
    assert not any(thread.name.startswith("recollect-ahead") for thread in threading.enumerate())


def test_a_domain_of_broken_pictures(tmp_path: Path) -> None:
    root = fill(tmp_path / "x", a=3, b=1)
    (root / "b/0.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty domain: 'b'.*1 skipped, the first: b/0.jpg: it has no bytes"):
        ingest(root, tmp_path / "store")
    assert not list((tmp_path / "store").iterdir())


def test_rotated_pictures_are_stored_upright(tmp_path: Path) -> None:
    root = fill(tmp_path / "x", a=2, b=2)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(root / "a/turned.jpg", (24, 16), exif=exif)
    boxes = coco(tmp_path / "b.json", {"a/turned.jpg": [[1, 20, 5, 4]]}, (16, 24))
    record = into(tmp_path, root, boxes=boxes)[1].record("a/turned.jpg")
    assert (record.width, record.height) == (16, 24) and record.boxes == (Box("car", 1, 20, 6, 24),)
    with Image.open(io.BytesIO(record.image)) as stored:
        assert stored.size == (16, 24) and 0x0112 not in stored.getexif()
    original = decode((root / "a/turned.jpg").read_bytes())
    assert (decode(record.image).float() - original.float()).abs().mean() < 4
    with pytest.raises(ValueError, match=r"'a/turned.jpg' is 24x16 there, but the picture \(upright\) is 16x24"):
        ingest(root, tmp_path / "store", boxes=coco(tmp_path / "b.json", {"a/turned.jpg": []}, (24, 16)))


def test_max_side_shrinks_pictures_and_boxes(tmp_path: Path) -> None:
    root = fill(tmp_path / "x", a=1)
    save(root / "a/big.png", (100, 60))
    boxes = coco(tmp_path / "b.json", {"big.png": [[10, 30, 90, 30]]}, None)
    store = into(tmp_path, root, boxes=boxes, max_side=50)[1]
    record = store.record("a/big.png")
    assert (record.width, record.height) == (50, 30) and decode(record.image).shape == (3, 30, 50)
    assert record.boxes == (Box("car", 5, 15, 50, 30),)
    assert store.record("a/0.jpg").image == (root / "a/0.jpg").read_bytes()


def test_coco_names_by_path_by_tail_and_by_base(tmp_path: Path) -> None:
    root = fill(tmp_path / "x", train__day=2, train__night=2)
    save(root / "train/day/only.png")
    names = ["train/day/0.jpg", "night\\0.jpg", "./day/1.jpg", "elsewhere/only.png"]
    boxes = coco(tmp_path / "b.json", {name: [[number, 0, 2, 3]] for number, name in enumerate(names)})
    result, store = into(tmp_path, root, boxes=boxes)
    assert store.domains.classes == ("background", "person", "car") and result.manifest.annotated  # by id, 3 before 90
    found = {id: store.record(id).boxes for split in SPLITS for d in ("day", "night") for id in store.ids(split, d)}
    assert found == {
        "train/day/0.jpg": (Box("car", 0, 0, 2, 3),),
        "train/night/0.jpg": (Box("car", 1, 0, 3, 3),),
        "train/day/1.jpg": (Box("car", 2, 0, 4, 3),),
        "train/day/only.png": (Box("car", 3, 0, 5, 3),),
        "train/night/1.jpg": None,
    }


def test_coco_by_split_follows_the_folder(tmp_path: Path) -> None:
    root = fill(tmp_path / "x", train__a=20, test__a=1)
    train = coco(tmp_path / "train.json", {f"{n}.jpg": [[n % 10, 0, 1, 1]] for n in range(20)}, category=3)
    test = coco(tmp_path / "test.json", {"0.jpg": []})
    store = into(tmp_path, root, boxes={"test": test, "train": train})[1]
    assert len(store.ids("val", "a")) == 4
    for id in store.ids("val", "a"):
        assert store.record(id).boxes == (Box("person", (x := int(Path(id).stem) % 10), 0, x + 1, 1),)
    assert store.record("test/a/0.jpg").boxes == ()
    with pytest.raises(ValueError, match="no split 'training' to give boxes for; did you mean 'train'"):
        ingest(root, tmp_path / "store", boxes={"training": train})
    with pytest.raises(ValueError, match="given for 'val', but there is no folder of that split; there is: test, train"):
        ingest(root, tmp_path / "store", boxes={"val": train})


def test_a_pixel_of_rounding_is_clipped(tmp_path: Path) -> None:
    root = fill(tmp_path / "x", a=1)
    boxes = coco(tmp_path / "b.json", {"0.jpg": [[-0.6, -1, 21.6, 15.9]]})
    assert into(tmp_path, root, boxes=boxes)[1].record("a/0.jpg").boxes == (Box("car", 0, 0, 20, 14),)


@pytest.mark.parametrize(
    "box", [[15, 2, 6.5, 3], [-1.1, 2, 5, 5], [2, 12, 3, 4], [25, 2, 3, 3], [3, 3, 0, 5], [3, 3, -2, 5], [float("nan"), 0, 1, 1]]
)
def test_boxes_outside_are_errors(tmp_path: Path, box: list[float]) -> None:
    root = fill(tmp_path / "x", a=1)
    boxes = coco(tmp_path / "b.json", {"0.jpg": [[0, 0, 1, 1], box]})
    with pytest.raises(ValueError, match=r"b.json: picture '0.jpg': the car box \[.*\] \(x, y, w, h\) is not inside.*20x14"):
        ingest(root, tmp_path / "store", boxes=boxes)
    assert not list((tmp_path / "store").iterdir())


def test_coco_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    coco(tmp_path / "boxes.json", {})
    for content, message in {
        "": "there is no file .*b.json.*; JSON files there: boxes.json",
        "{": "is not JSON",
        "[]": "needs the lists images, annotations and categories",
        '{"images": [{"id": 1}], "annotations": [], "categories": []}': "malformed.*file_name",
        '{"images": [3], "annotations": [], "categories": []}': "malformed",
        '{"images": [{"id": 1, "file_name": "a"}, {"id": 2, "file_name": "./a"}], '
        '"annotations": [], "categories": []}': "'a' twice",
        '{"images": [], "annotations": [{"id": 5, "image_id": 9}], "categories": []}': "annotation 5 belongs to image 9",
        '{"images": [{"id": 9, "file_name": "a"}], "annotations": [{"id": 5, "image_id": 9, "category_id": 4}], '
        '"categories": [{"id": 2, "name": "car"}]}': "annotation 5 has the unknown category 4; known: 2",
        '{"images": [{"id": 9, "file_name": "a"}], "annotations": [{"id": 5, "image_id": 9, "category_id": 2, "bbox": [1, 2]}], '
        '"categories": [{"id": 2, "name": "car"}]}': r"has the bbox \[1, 2\]",
    }.items():
        if content:
            path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_coco(path)


def test_boxes_of_other_pictures(tmp_path: Path) -> None:
    root = fill(tmp_path / "x", a=2, b=2)
    with pytest.raises(
        ValueError, match="boxes for none of the pictures: it names q.jpg; the pictures are a/0.jpg, a/1.jpg, b/0.jpg"
    ):
        ingest(root, tmp_path / "store", boxes=coco(tmp_path / "b.json", {"q.jpg": []}))
    with pytest.raises(ValueError, match="'1.jpg' fits both 'a/1.jpg' and 'b/1.jpg'"):
        ingest(root, tmp_path / "store", boxes=coco(tmp_path / "b.json", {"1.jpg": []}))


def test_folders_that_are_none(tmp_path: Path) -> None:
    fill(tmp_path / "pictures", a=1)
    (tmp_path / "bare").mkdir()
    (tmp_path / "hollow" / "a").mkdir(parents=True)
    (tmp_path / "half" / "b").mkdir(parents=True)
    fill(tmp_path / "half", a=1)
    fill(tmp_path / "one", trainA=1, testA=1, testB=1)
    fill(tmp_path / "untrained", train__a=2, test__a=1, test__b=1)
    for name, message in {
        "picture": "there is no folder .*did you mean 'pictures'",
        "bare": r"holds no folder\). Layouts:\n  trainA/ trainB/",
        "hollow": r"holds a\). Layouts:",
        "half": "empty domain: the folder .*half/b has no picture",
        "one": r"empty domain: 'B' has no training picture .*\(0 train, 0 val, 1 test\)",
        "untrained": "empty domain: 'b' has no training picture",
    }.items():
        with pytest.raises(ValueError, match=message):
            ingest(tmp_path / name, tmp_path / "store")
    with pytest.raises(ValueError, match=r"2 names were given \(x, y\) for 1 domains \(a\)"):
        ingest(tmp_path / "pictures", tmp_path / "store", names=("x", "y"))
    assert not (tmp_path / "store").exists()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60))
def test_made_splits_leave_something_to_train_on(tmp_path_factory: pytest.TempPathFactory, count: int) -> None:
    root = tmp_path_factory.mktemp("x")
    (root / "a").mkdir()
    for index in range(count):
        (root / f"a/{index}.jpg").touch()
    splits = [item.split for item in find_pictures(root)[0]]
    assert len(splits) == count and splits.count("train") >= max(1, count // 2 - 2)
    assert splits.count("val") >= 4 or count < 8


def test_real_photographs(tmp_path: Path) -> None:
    root = REAL / "day_night"
    if not root.is_dir():
        pytest.skip("no real pictures: there is no day_night folder")
    result, store = into(tmp_path, root, strict=True)
    assert store.domains.names == ("day", "night") and result.skipped == () and len(store) == 400
    files = sum(len(list((root / split / domain).iterdir())) for split in ("train", "test") for domain in ("day", "night"))
    assert files == 400 and all(result.manifest.counts[split][domain] >= 4 for split in SPLITS for domain in ("day", "night"))
    batches = Feed(store, Data(domains=("day", "night"), size=64, short_side=72), 16, 4, 0).batches(0)
    assert batches[0].classes is None
    day, night = (batch.images.mean().item() for batch in batches)
    assert day > night + 0.2  # the pictures went to the right domains


def test_real_boxes(tmp_path: Path) -> None:
    root = REAL / "carla_boxes"
    if not root.is_dir():
        pytest.skip("no real pictures: there is no carla_boxes folder")
    files = {split: root / f"{split}.json" for split in ("train", "test")}
    _, store = into(tmp_path, root, boxes=files, names=("carla",), strict=True)
    assert store.domains.classes == ("background", "vehicle", "person", "sign", "bicycle")
    for split, path in files.items():
        content = json.loads(path.read_text())
        for image in random.Random(0).sample(content["images"], 25):
            expected = [item["bbox"] for item in content["annotations"] if item["image_id"] == image["id"]]
            boxes = store.record(f"{split}/{image['file_name']}").boxes
            assert boxes is not None
            got = np.array([[b.x1, b.y1, b.x2 - b.x1, b.y2 - b.y1] for b in boxes]).reshape(-1, 4)
            assert np.allclose(got, np.array(expected).reshape(-1, 4), atol=1e-3)
    batch = Feed(store, Data(size=128, short_side=144), 32, 4, 0).batches(0)[0]
    assert batch.classes is not None and batch.classes.shape == (32, 32, 32)
    assert 0 < (batch.classes > 0).float().mean() < 0.5
