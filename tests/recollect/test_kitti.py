"""KITTI into stores, beside torchvision's own reader; class maps, splits, and everything that is not this format."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import datasets
from typer.testing import CliRunner

from recollect import cli
from recollect.data.schema import SPLITS, Box
from recollect.data.sources.annotated import Annotation, Item, Label, place_boxes, position, with_splits
from recollect.data.sources.class_map import check_classes, parse_classes
from recollect.data.sources.kitti import CLASSES, FOUR_CLASSES, ingest, read_label
from recollect.data.sources.pictures import Ingest, Picture, read_picture
from recollect.data.store import Store

SIZE = (124, 38)  # a tenth of the real 1242 x 375
LABELS = [
    "Car 0.00 0 -1.58 58.71 17.30 61.40 20.03 1.67 1.87 3.69 -16.53 2.39 58.49 -1.57",
    "Pedestrian 0.00 0 -0.20 71.24 14.30 81.07 30.79 1.89 0.48 1.20 1.84 1.47 8.41 0.01",
    "Cyclist 0.00 3 -1.65 67.66 16.38 68.87 19.39 1.86 0.60 2.02 4.59 1.32 45.84 -1.55",
    "Van 0.47 1 2.04 0.00 10.11 35.50 37.00 1.99 1.78 4.69 -4.32 1.60 5.29 1.36",
    "Truck 0.00 0 -1.57 59.96 15.64 62.93 18.92 2.85 2.63 12.34 0.47 1.49 69.44 -1.56",
    "Tram 0.00 1 1.83 10.00 2.50 22.25 20.00 3.53 2.54 14.20 -8.11 1.46 21.30 1.48",
    "Person_sitting 0.00 0 2.63 90.10 15.00 99.90 31.40 1.25 0.59 0.94 3.50 1.61 9.32 2.99",
    "Misc 0.00 2 0.30 40.00 12.00 44.00 17.00 1.90 1.50 2.30 -5.00 1.60 25.00 0.10",
]
DONT_CARE = "DontCare -1 -1 -10 50.30 12.00 55.00 16.00 -1 -1 -1 -1000 -1000 -1000 -10"


def draw(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = Image.frombytes("RGB", (4, 4), random.Random(path.name).randbytes(48))
    noise.resize(size, Image.Resampling.NEAREST).save(path)


def write(root: Path, files: dict[str, list[str]]) -> Path:
    """A data set as torchvision expects it, `root/Kitti/raw`; the folder that holds `training`."""
    raw = root / "Kitti" / "raw"
    for stem, lines in files.items():
        draw(raw / "training" / "image_2" / f"{stem}.png")
        label = raw / "training" / "label_2" / f"{stem}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("".join(f"{line}\n" for line in lines))
    return raw


def some(root: Path, count: int = 8) -> Path:
    return write(root, {f"{n:06}": [*LABELS[n:], *LABELS[: n // 2], *[DONT_CARE] * (n % 3)] for n in range(count)})


def into(tmp_path: Path, root: Path, **options: Any) -> tuple[Ingest, Store]:
    result = ingest(root, tmp_path / "store", **{"val": 0, "test": 0} | options)
    return result, Store.open(tmp_path / "store", verify=True)


@pytest.mark.parametrize("classes", [FOUR_CLASSES, None])
def test_every_box_is_the_one_that_torchvision_reads(tmp_path: Path, classes: dict[str, str] | None) -> None:
    raw = some(tmp_path)
    store = into(tmp_path, raw, classes=classes)[1]
    assert store.domains.names == ("kitti",)
    assert store.domains.classes[1:] == (("person", "car", "truck", "bicycle") if classes else CLASSES)
    theirs = datasets.Kitti(str(tmp_path), train=True)
    assert len(theirs) == len(store) == 8
    for index, path in enumerate(theirs.images):
        record = store.record(f"kitti/{Path(path).stem}")
        wanted = [
            ((classes or {})[o["type"]] if classes else o["type"], *o["bbox"])
            for o in theirs[index][1]
            if o["type"] != "DontCare" and (not classes or o["type"] in classes)
        ]
        got = [(b.label, *(round(v, 4) for v in (b.x1, b.y1, b.x2, b.y2))) for b in record.boxes or ()]
        assert got == wanted and len(got) > 0
        assert record.image == Path(path).read_bytes() and (record.width, record.height) == SIZE
        assert record.source == f"training/image_2/{Path(path).name}"


def test_the_roots_that_are_found(tmp_path: Path) -> None:
    raw = some(tmp_path / "a", 3)
    digest = into(tmp_path, raw)[0].manifest.digest
    assert into(tmp_path, tmp_path / "a")[0].manifest.digest == digest
    with pytest.raises(ValueError, match="is not KITTI's object data set: it needs training/image_2 and training/label_2"):
        ingest(tmp_path, tmp_path / "store")


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    empty = LABELS[0].replace("61.40 20.03", "58.71 20.03")
    outside = LABELS[1].replace("81.07 30.79", "181.07 30.79")
    raw = write(tmp_path, {"000000": [LABELS[0], LABELS[5], DONT_CARE, LABELS[7], LABELS[5], DONT_CARE, empty, outside]})
    draw(raw / "training/image_2/000001.png")
    (raw / "training/label_2/000002.txt").write_text(LABELS[0])
    result, store = into(tmp_path, raw, val=0.1, seed=2)
    file = raw / "training/label_2/000000.txt"
    assert result.skipped == (
        ("training/image_2/000001.png", "there is no label file"),
        ("training/image_2/000002.png", "the picture is missing"),
    )
    assert result.warnings == (
        "dropped 3 boxes of classes that the class map does not name (2 Tram, 1 Misc)",
        "left out 2 regions that are no objects (2 DontCare)",
        f"left out 1 boxes without area in their picture (1 Car; the first: {file}:7)",
        f"clipped 1 boxes that stuck out of their picture by more than a pixel (1 Pedestrian; the first: {file}:8)",
        *(
            f"the class map names {name!r}, but no picture has such a box"
            for name in ("Person_sitting", "Van", "Truck", "Cyclist")
        ),
        "the class 'truck' is left without a box",
        "the class 'bicycle' is left without a box",
        "domain 'kitti' has no val picture",
        "domain 'kitti' has no test picture",
    )
    boxes = store.record("kitti/000000").boxes or ()
    assert [box.label for box in boxes] == ["car", "person"] and boxes[1].x2 == SIZE[0]


def test_strict_makes_errors_of_them(tmp_path: Path) -> None:
    raw = write(tmp_path, {"000000": [LABELS[0]], "000001": [LABELS[1], "", LABELS[1].replace("71.24", "81.07")]})
    with pytest.raises(
        ValueError, match=r"label_2/000001.txt:3: the Pedestrian box \(81.07, 14.3\) to .* has no area in its picture"
    ):
        into(tmp_path, raw, strict=True)
    write(tmp_path, {"000001": [LABELS[1].replace("14.30", "-4.30")]})
    with pytest.raises(
        ValueError, match=r"label_2/000001.txt:1: the Pedestrian box .* sticks out of its picture of 124x38 pixels"
    ):
        into(tmp_path, raw, strict=True)
    assert len(into(tmp_path, raw)[1]) == 2
    (raw / "training/label_2/000001.txt").unlink()
    with pytest.raises(ValueError, match="000001.png: there is no label file"):
        into(tmp_path, raw, strict=True)
    (raw / "training/image_2/000001.png").unlink()
    (raw / "training/image_2/000000.png").write_bytes(b"\x89PNG and no more")
    with pytest.raises(ValueError, match="000000.png: it is not a picture that can be read"):
        into(tmp_path, raw, strict=True)
    with pytest.raises(
        ValueError, match=r"empty domain: 'kitti' has no training picture \(0 train.*1 left out, the first: .*000000"
    ):
        into(tmp_path, raw)


def test_scores_and_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "000000.txt"
    file.write_text(f"\n{LABELS[0]} 0.93\n\n  {DONT_CARE}\n")
    annotation = read_label(file)
    assert annotation == Annotation((Label("Car", 58.71, 17.3, 61.4, 20.03, f"{file}:2"),), None, ("DontCare",))
    file.write_text("")
    assert read_label(file) == Annotation(())


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("Car 0.00 0 -1.58 58.71 17.30 61.40 20.03", "000000.txt:2: a label has 15 fields, or 16 with a score; this line has 8"),
        (f"{LABELS[0]} 0.9 0.8", "this line has 17"),
        (
            LABELS[0].replace("Car", "car"),
            r"000000.txt:2: there is no type 'car'; did you mean 'Car'\?; known: Car, Cyclist, DontCare",
        ),
        (LABELS[0].replace("58.71", "x"), "000000.txt:2: the box 'x 17.30 61.40 20.03' is not four numbers x1 y1 x2 y2"),
        (LABELS[0].replace("58.71", "nan"), "000000.txt:2: the box 'nan 17.30 61.40 20.03' is not finite"),
    ],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_lines_that_are_no_labels(tmp_path: Path, line: str, says: str, workers: int) -> None:
    raw = write(tmp_path, {"000000": [LABELS[0], line], "000001": [LABELS[0]]})
    with pytest.raises(ValueError, match=says):
        into(tmp_path, raw, workers=workers)
    assert not list((tmp_path / "store").iterdir())


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    raw = write(tmp_path, {"000000": [LABELS[0]]})
    (raw / "training/label_2/000000.txt").write_bytes(b"\xff\xfe\x00C")
    with pytest.raises(ValueError, match="000000.txt is not a text file"):
        into(tmp_path, raw)


def test_lists_give_the_splits(tmp_path: Path) -> None:
    raw = some(tmp_path)
    (tmp_path / "train.txt").write_text("000003\n000001\n\n")
    (tmp_path / "val.txt").write_text("000006.png\n")
    lists = {"train": tmp_path / "train.txt", "val": tmp_path / "val.txt"}
    store = into(tmp_path, raw, lists=lists, test=0.9)[1]
    found = {split: store.ids(split, "kitti") for split in SPLITS}
    assert found == {"train": ("kitti/000001", "kitti/000003"), "val": ("kitti/000006",), "test": ()}
    (tmp_path / "val.txt").write_text("000006\n000001\n")
    with pytest.raises(ValueError, match="val.txt:2: 000001 is in the list of 'train' already"):
        into(tmp_path, raw, lists=lists)
    (tmp_path / "val.txt").write_text("000008")
    with pytest.raises(ValueError, match="val.txt:1: there is no label file for '000008'"):
        into(tmp_path, raw, lists=lists)
    (tmp_path / "train.txt").write_text("\n")
    with pytest.raises(ValueError, match="there is no picture to take"):
        into(tmp_path, raw, lists={"train": tmp_path / "train.txt"})
    with pytest.raises(ValueError, match="there is no split 'trian' to give a list for; did you mean 'train'"):
        into(tmp_path, raw, lists={"trian": tmp_path / "train.txt"})


def item(key: str, split: str = "train", domain: str = "d") -> Item:
    return Item(f"{domain}/{key}", Path(key), key, domain, split, key, lambda: Annotation(()))


def test_shares_are_kept_and_a_new_picture_moves_no_other() -> None:
    many = [item(f"{n:06}") for n in range(6000)]
    found = {one.key: one.split for one in with_splits(many, val=0.1, test=0.15)}
    shares = {split: list(found.values()).count(split) / len(found) for split in SPLITS}
    assert shares["val"] == pytest.approx(0.1, abs=0.012) and shares["test"] == pytest.approx(0.15, abs=0.015)
    more = {one.key: one.split for one in with_splits([item("new"), *many[::-1]], val=0.1, test=0.15)}
    assert {key: more[key] for key in found} == found
    other = {one.key: one.split for one in with_splits(many, val=0.1, test=0.15, seed=1)}
    assert sum(other[key] != found[key] for key in found) > 1000
    larger = {one.key: one.split for one in with_splits(many, val=0.1, test=0.3)}  # a larger test keeps the smaller one
    assert all(larger[key] == "test" for key in found if found[key] == "test")


def test_a_split_that_is_there_takes_no_share() -> None:
    many = [*(item(f"{n}") for n in range(400)), item("own", "test"), *(item(f"{n}", domain="e") for n in range(400))]
    found = with_splits(many, val=0.2, test=0.2)
    assert [one.key for one in found if (one.domain, one.split) == ("d", "test")] == ["own"]
    assert 40 < sum((one.domain, one.split) == ("d", "val") for one in found) < 120
    assert 40 < sum((one.domain, one.split) == ("e", "test") for one in found) < 120
    for val, test in ((0.5, 0.5), (-0.1, 0), (0, 1.2)):
        with pytest.raises(ValueError, match="leave no training pictures"):
            with_splits(many, val=val, test=test)


@given(st.text(), st.integers(0, 5))
def test_positions_are_fractions(key: str, seed: int) -> None:
    assert 0 <= position(key, seed) < 1


def test_class_maps_that_are_none() -> None:
    with pytest.raises(ValueError, match=r"names 'Person', which this data set does not have; did you mean 'Person_sitting'\?"):
        check_classes({"Person": "person"}, CLASSES)
    with pytest.raises(ValueError, match="makes 'Car' the background; leave it out"):
        check_classes({"Car": "background"}, CLASSES)
    with pytest.raises(ValueError, match="the class map is empty; this data set has Car, Van"):
        check_classes({}, CLASSES)
    for text in ("Car", "Car=", "=car", "Car=car,"):
        with pytest.raises(ValueError, match="a class map is written 'Pedestrian=person,Car=car'"):
            parse_classes(text)
    with pytest.raises(ValueError, match="makes 'Car' both 'car' and 'van'"):
        parse_classes("Car=car,Car=van")
    assert check_classes(parse_classes("Van=car, Pedestrian = person,Car=car"), CLASSES) == ("background", "car", "person")


SIDE = st.integers(1, 3000)


@given(SIDE, SIDE, st.integers(1, 600), st.lists(st.floats(-50, 3100), min_size=4, max_size=4))
def test_boxes_stay_in_their_picture_however_small_it_is_made(width: int, height: int, side: int, at: list[float]) -> None:
    scale = min(1, side / max(width, height))
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Picture(b"", *small, (width, height))
    boxes, tally = place_boxes(Annotation((Label("Car", at[0], at[1], at[2], at[3], "a:1"),)), picture, {"Car": "car"}, "a")
    inside = max(at[0], 0) < min(at[2], width) and max(at[1], 0) < min(at[3], height)
    assert len(boxes) == inside and bool(tally.of("empty")) != inside
    for box in boxes:
        assert 0 <= box.x1 <= box.x2 <= small[0] and 0 <= box.y1 <= box.y2 <= small[1]


@pytest.mark.parametrize("side", [512, 333])
def test_a_box_that_fills_its_picture_still_ends_at_its_edge(side: int) -> None:
    for width in range(side, 1500):
        box = Picture(b"", side, 1, (width, 1)).shrunk(Box("car", 0, 0, width, 1))
        assert box.x2 == side, width  # behind it, by rounding, the store would refuse it


def test_boxes_are_scaled_where_the_pictures_were_made_smaller(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", (572, 360))
    picture = read_picture(tmp_path / "a.png", 286)
    assert (picture.width, picture.height, picture.original) == (286, 180, (572, 360))
    raw = Annotation((Label("Car", 192, 302, 384, 604, "a:1"),), (1920, 1208))
    (box,), tally = place_boxes(raw, picture, {"Car": "car"}, "a.png")
    assert (box.x1, box.y1, box.x2, box.y2) == pytest.approx((28.6, 45, 57.2, 90))
    assert tally.of("scaled") == {"1920x1208 to 572x360": 1}
    for one, other in (((1920, 1208), (51, 32)), ((51, 32), (1920, 1208))):  # rounding, whichever is the smaller
        (box,), _ = place_boxes(
            Annotation((Label("Car", 0, 0, *one, "a:1"),), one), Picture(b"", *other, other), {"Car": "car"}, "a"
        )
        assert (box.x2, box.y2) == pytest.approx(other)
    for frame in ((1208, 1920), (576, 360), (1024, 1024)):
        with pytest.raises(ValueError, match=f"a.png: its boxes are meant in {frame[0]}x{frame[1]} pixels, but .* is 572x360"):
            place_boxes(Annotation((), frame), picture, {}, "a.png")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, store = some(tmp_path), tmp_path / "store"
    words = ["data", "kitti", str(raw), str(store), "--domain", "dry", "--val", "0", "--test", "0.2"]
    done = CliRunner().invoke(cli.app, [*words, "--classes", "Pedestrian=person,Car=car", "--max-side", "62"])
    assert done.exit_code == 0, done.output
    assert "classes background, person, car" in done.stdout and re.search(r"note: dropped \d+ boxes of classes", done.stderr)
    opened = Store.open(store)
    assert opened.domains.names == ("dry",) and len(opened) == 8
    record = opened.record("dry/000000")
    assert (record.width, record.height) == (62, 19)
    assert record.boxes and record.boxes[0] == Box("car", *(pytest.approx(v / 2) for v in (58.71, 17.3, 61.4, 20.03)))  # type: ignore[arg-type]
    done = CliRunner().invoke(cli.app, [*words, "--classes", "own"])
    assert done.exit_code == 0 and f"classes background, {', '.join(CLASSES)}" in done.stdout
    for option, says in {
        "--classes=Pedestrain=person": "did you mean 'Pedestrian'",
        "--classes=DontCare=nothing": "names 'DontCare': it marks regions where nobody annotated",
        "--list=train.txt": "--list is written SPLIT=FILE",
        "--test=1": "leave no training pictures",
    }.items():
        failed = CliRunner().invoke(cli.app, [*words, option])
        assert isinstance(failed.exception, ValueError) and says in str(failed.exception)
