"""INIT into stores: the published lists and MGUIT's label files, each beside an independent reader of it."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from recollect import cli
from recollect.config import Data
from recollect.data.loader import Feed
from recollect.data.schema import SPLITS, Box
from recollect.data.sources.init import CLASSES, ingest, read_label_file, read_list, split_85_15
from recollect.data.sources.pictures import Ingest
from recollect.data.store import Store

SIZE = (192, 121)  # a tenth of the real 1920 x 1208
RESIZED = (572, 360)
Rows = list[tuple[int, float, float, float, float]]
DRIVE = "/20180723_KYT/dw_2018_07_23_15-46-55_000000/camera_2"


def draw(path: Path, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = Image.frombytes("RGB", (4, 4), random.Random(path.name).randbytes(48))
    noise.resize(size, Image.Resampling.NEAREST).save(path)


def record(index: int, path: str, rows: Rows, size: tuple[int, int] = SIZE) -> str:
    lines = [f"# {index}", path, f"3 {size[1]} {size[0]} 1", "0", str(len(rows))]
    return "\n".join([*lines, *(" ".join(map(str, row)) for row in rows), "", "", ""])


def rows_of(index: int, size: tuple[int, int]) -> Rows:
    """None to four boxes in tenths of pixels, as the lists have them."""
    chance, found = random.Random(index), []
    for _ in range(index % 5):
        x1, y1 = chance.randrange(size[0] * 8) / 10, chance.randrange(size[1] * 8) / 10
        found.append((chance.choice((1, 1, 2, 3)), x1, y1, round(x1 + size[0] / 9, 1), round(y1 + size[1] / 7, 1)))
    return found


def raw(root: Path, counts: dict[str, int], draw_them: bool = True) -> Path:
    """Lists `batch1_anno/sunny1.txt` ... of so many pictures, and the pictures."""
    for number, (name, count) in enumerate(counts.items()):
        domain = name.rstrip("0123456789")
        file = root / f"batch{name[len(domain) :] or 1}_anno" / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        paths = [f"{DRIVE}/{name}_{index // 4}/{index:05}.png" for index in range(count)]
        file.write_text("".join(record(n, path, rows_of(n + number, SIZE)) for n, path in enumerate(paths)))
        for path in paths if draw_them else ():
            draw(root / domain / path[1:], SIZE)
    return root


def phased(root: Path, counts: dict[str, int], size: tuple[int, int] = RESIZED) -> Path:
    """Label files `label/sunny_train/...` of so many pictures, and the pictures."""
    for number, (name, count) in enumerate(counts.items()):
        domain, phase = name.split("_")
        for index in range(count):
            path = f"{domain}/{phase}/{index // 4}/{index:05}.png"
            file = root / "label" / name / f"{index // 4}" / f"{index:05}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            rows = rows_of(index + number + 1, RESIZED)
            file.write_text("\n".join([f"{path} 3 1208 1920", "0", *(" ".join(map(str, row)) for row in rows)]) + "\n")
            draw(root / path, size)
    return root


def independent_list(file: Path) -> Iterator[tuple[str, Rows]]:
    """A reader that counts lines, two blank ones after each record, and knows no other rule."""
    with file.open() as stream:
        while stream.readline():
            path = stream.readline()[:-1]
            stream.readline(), stream.readline()
            count = int(stream.readline())
            rows = [stream.readline().split() for _ in range(count)]
            yield path, [(int(c), *map(float, corners)) for c, *corners in rows]  # type: ignore[misc]
            stream.readline(), stream.readline()


def independent_label_file(file: Path) -> tuple[str, Rows]:
    """A reader by numpy's text tables, as the released loader is one."""
    name = str(np.loadtxt(file, dtype=str, delimiter=" ", usecols=0, ndmin=1)[0])
    if len(file.read_text().splitlines()) == 2:
        return name, []
    classes = np.loadtxt(file, dtype=int, delimiter=" ", skiprows=2, usecols=0, ndmin=1)
    boxes = np.loadtxt(file, dtype=float, delimiter=" ", skiprows=2, usecols=(1, 2, 3, 4), ndmin=2)
    return name, [(int(c), *map(float, box)) for c, box in zip(classes, boxes, strict=True)]  # type: ignore[misc]


def into(tmp_path: Path, root: Path, **options: Any) -> tuple[Ingest, Store]:
    result = ingest(root, tmp_path / "store", **{"val": 0} | options)
    return result, Store.open(tmp_path / "store", verify=True)


def check(store: Store, id: str, rows: Rows, scale: float = 1) -> None:
    boxes = store.record(id).boxes
    assert boxes is not None
    got = [(b.label, b.x1, b.y1, b.x2, b.y2) for b in boxes]
    assert [label for label, *_ in got] == [CLASSES[c] for c, *_ in rows]
    corners = np.array([row[1:] for row in rows]).reshape(-1, 4) * scale
    assert np.allclose(np.array([one[1:] for one in got]).reshape(-1, 4), corners, atol=1e-3)


def test_every_box_of_the_lists(tmp_path: Path) -> None:
    root = raw(tmp_path / "init", {"sunny1": 30, "night1": 30, "sunny2": 8})
    result, store = into(tmp_path, root, strict=True)
    assert store.domains.names == ("night", "sunny") and store.domains.classes == ("background", "car", "sign", "person")
    assert result.skipped == () and result.manifest.annotated and result.manifest.source == "INIT: init"
    seen: list[int] = []
    for name in ("batch1_anno/sunny1", "batch1_anno/night1", "batch2_anno/sunny2"):
        file = root / f"{name}.txt"
        domain = file.stem[:-1]
        entries = list(independent_list(file))
        for (path, rows), mine in zip(entries, read_list(file), strict=True):
            assert mine.path == path[1:] and mine.annotation.frame == SIZE  # C H W
            check(store, f"{domain}{path}", rows)
            picture = store.record(f"{domain}{path}")
            assert picture.image == (root / domain / path[1:]).read_bytes() and (picture.width, picture.height) == SIZE
            assert picture.source.startswith(f"{file}:")
            seen.append(len(rows))
    assert len(seen) == len(store) == 68 and set(seen) == {0, 1, 2, 3, 4}


def test_every_box_of_the_label_files(tmp_path: Path) -> None:
    counts = {"sunny_train": 7, "sunny_test": 5, "night_train": 6, "night_val": 3}
    root = phased(tmp_path / "init", counts)
    result, store = into(tmp_path, root, val=0.5)
    assert result.manifest.source == "INIT: init (label files)"
    found = result.manifest.counts
    assert found["test"] == {"night": 0, "sunny": 5} and (found["val"]["night"], found["train"]["night"]) == (3, 6)
    assert found["train"]["sunny"] + found["val"]["sunny"] == 7 and found["val"]["sunny"] > 0
    seen = []
    for file in sorted((root / "label").rglob("*.txt")):
        path, rows = independent_label_file(file)
        check(store, path, rows)
        seen.append(len(rows))
    assert len(seen) == len(store) == 21 and set(seen) == {0, 1, 2, 3, 4}
    batch = Feed(store, Data(domains=("sunny", "night"), size=64, short_side=64), 4, 4, 0).batches(0)[0]
    assert batch.classes is not None and (batch.classes > 0).any()


def test_label_files_of_pictures_that_were_not_resized(tmp_path: Path) -> None:
    root = phased(tmp_path / "init", {"sunny_train": 3}, (1144, 720))
    result, store = into(tmp_path, root)
    for file in sorted((root / "label").rglob("*.txt")):
        path, rows = independent_label_file(file)
        check(store, path, rows, 2)
    assert any("572x360 to 1144x720" in text for text in result.warnings)
    with pytest.raises(ValueError, match=r"00000.txt:1: its boxes are meant in 576x360 pixels, but the picture is 1144x720"):
        into(tmp_path, root, frame=(576, 360))
    draw(root / "sunny/train/0/00000.png", (576, 360))  # padded on the right
    with pytest.raises(ValueError, match="its boxes are meant in 572x360 pixels, but the picture is 576x360"):
        into(tmp_path, root)


def test_lists_of_pictures_that_were_resized(tmp_path: Path) -> None:
    root = raw(tmp_path / "init", {"sunny1": 6})
    for file in (root / "sunny").rglob("*.png"):
        draw(file, (96, 60))  # 96 x 60.5
    result, store = into(tmp_path, root)
    path, rows = list(independent_list(root / "batch1_anno/sunny1.txt"))[4]
    boxes = store.record(f"sunny{path}").boxes or ()
    assert [b.x1 for b in boxes] == pytest.approx([row[1] / 2 for row in rows])
    assert [b.y2 for b in boxes] == pytest.approx([row[4] * 60 / 121 for row in rows])
    assert any("6 192x121 to 96x60" in text for text in result.warnings)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=6), st.randoms(use_true_random=False))
def test_blank_lines_anywhere_change_nothing(tmp_path_factory: pytest.TempPathFactory, sizes: Any, chance: random.Random) -> None:
    file = tmp_path_factory.mktemp("x") / "sunny1.txt"
    rows = [[(1, 1.0, 2.0, 3.5, 4.0)] * count for count, _ in sizes]
    lines = "".join(record(n, f"/a/{n}.png", one) for n, one in enumerate(rows)).splitlines()
    lines = [line for line in lines if line]
    for _ in range(chance.randrange(9)):
        lines.insert(chance.randrange(len(lines) + 1), chance.choice(("", "  ", "\t")))
    file.write_text("\n".join(lines))
    found = list(read_list(file))
    assert [one.path for one in found] == [f"a/{n}.png" for n in range(len(rows))]
    assert [len(one.annotation.labels) for one in found] == [len(one) for one in rows]
    for one in found:  # the lines that messages will name
        assert lines[int(one.where.rpartition(":")[2]) - 1] == f"/{one.path}"
        assert all(lines[int(label.where.rpartition(":")[2]) - 1].startswith("1 ") for label in one.annotation.labels)


GOOD = "# 0\n/a.png\n3 121 192 1\n0\n1\n1 1 2 3 4\n\n\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (GOOD + "/b.png\n", r"sunny1.txt:9: a record begins with `# index`, not with '/b.png'"),
        (GOOD + "# 1\n/b.png\n3 121 192\n", r"sunny1.txt:11: a size is `channels height width number`, not '3 121 192'"),
        (GOOD + "# 1\n/b.png\n192 121 3 1\n", r"sunny1.txt:11: a size is .*, so '192 121 3 1' would have 192 channels"),
        (GOOD + "# 1\n/b.png\n3 0 192 1\n", r"sunny1.txt:11: a size is"),
        (GOOD + "# 1\n/b.png\n3 121 192 1\n", r"sunny1.txt:11: the file ends where a line that is 0 should follow"),
        (GOOD + "# 1\n/b.png\n3 121 192 1\n0\nmany\n", r"sunny1.txt:13: the number of boxes is one number, not 'many'"),
        (GOOD + "# 1\n/b.png\n3 121 192 1\n0\n2\n1 1 2 3 4\n", r"sunny1.txt:14: the file ends where box 2 of 2 should follow"),
        (GOOD + "# 1\n/b.png\n3 121 192 1\n0\n1\n# 2\n", r"sunny1.txt:14: a box is `class x1 y1 x2 y2`, not '# 2'"),
        (GOOD.replace("1 1 2", "4 1 2"), r"sunny1.txt:6: there is no class '4'; known: 1 car, 2 sign, 3 person"),
        (GOOD.replace("1 1 2", "0 1 2"), r"sunny1.txt:6: there is no class '0'"),
        (GOOD.replace("1 1 2", "1 1 two"), r"sunny1.txt:6: the box '1 two 3 4' is not four numbers"),
        (GOOD + GOOD, r"the picture 'sunny/a.png' is there twice: .*sunny1.txt:2 \(\w+\) and .*sunny1.txt:10"),
        ("\n\n", r"batch1_anno/sunny1.txt lists no picture"),
    ],
)
def test_lists_that_are_none(tmp_path: Path, content: str, says: str) -> None:
    root = raw(tmp_path / "init", {"sunny1": 1})
    draw(root / "sunny/a.png", SIZE)
    (root / "batch1_anno/sunny1.txt").write_text(content)
    with pytest.raises(ValueError, match=says):
        into(tmp_path, root)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", r"00000.txt:1: the first line begins with the path of the picture, but it is empty"),
        ("a.png\n0\n1 1 2 3 4\n\n1 2 3 4\n", r"00000.txt:5: a box is `class x1 y1 x2 y2`, not '1 2 3 4'"),
        ("a.png\n0\n9 1 2 3 4\n", r"00000.txt:3: there is no class '9'"),
        ("a.png\n0\n1 1 2 inf 4\n", r"00000.txt:3: the box '1 2 inf 4' is not finite"),
    ],
)
def test_label_files_that_are_none(tmp_path: Path, content: str, says: str) -> None:
    root = phased(tmp_path / "init", {"sunny_train": 2})
    (root / "label/sunny_train/0/00000.txt").write_text(content)
    with pytest.raises(ValueError, match=says):
        into(tmp_path, root)


def test_the_second_line_says_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    for second in ("", "9 9 9", "1 1 1 5 5", "\t"):
        file.write_text(f"/sunny/a.png 3 4\n{second}\n2 1 2 3 4")
        found = read_label_file(file)
        assert found.path == "sunny/a.png" and [label.name for label in found.annotation.labels] == ["sign"]
    for content in ("a.png", "a.png\n", "a.png\n0\n"):
        file.write_text(content)
        assert read_label_file(file).annotation.labels == ()


def test_folders_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(
        ValueError, match=r"is not INIT: it needs batch1_anno/sunny1.txt, .* or label/sunny_train/, ...; it holds other"
    ):
        ingest(tmp_path, tmp_path / "store")
    with pytest.raises(ValueError, match="there is no such folder"):
        ingest(tmp_path / "nowhere", tmp_path / "store")
    (tmp_path / "batch1_anno").mkdir()
    (tmp_path / "batch1_anno/1.txt").write_text(GOOD)
    with pytest.raises(ValueError, match="batch1_anno/1.txt is named after no domain"):
        ingest(tmp_path, tmp_path / "store")
    (tmp_path / "label" / "sunny_trian").mkdir(parents=True)
    with pytest.raises(ValueError, match="there is no phase 'trian'; did you mean 'train'"):
        ingest(tmp_path, tmp_path / "store")
    (tmp_path / "label" / "sunny_trian").rename(tmp_path / "label" / "sunny_train")
    with pytest.raises(ValueError, match="holds no label file"):
        ingest(tmp_path, tmp_path / "store")


def test_domains_can_be_chosen_and_pictures_may_be_missing(tmp_path: Path) -> None:
    root = raw(tmp_path / "init", {"sunny1": 12, "night1": 12, "rainy1": 12})
    gone = sorted((root / "night").rglob("*.png"))[3]
    gone.unlink()
    result, store = into(tmp_path, root, domains=("sunny", "night"))
    assert store.domains.names == ("sunny", "night") and len(store) == 23
    ((where, reason),) = result.skipped
    assert re.search(r"night1.txt:\d+$", where) and reason == "the picture is missing"
    with pytest.raises(ValueError, match=f"{gone.name}: the picture is missing"):
        into(tmp_path, root, strict=True)
    with pytest.raises(ValueError, match="has no domain 'nigth'; did you mean 'night'"):
        into(tmp_path, root, domains=("nigth",))
    lost = raw(tmp_path / "lost", {"sunny1": 3}, draw_them=False)
    with pytest.raises(
        ValueError, match=r"empty domain: 'sunny' .* 3 left out, the first: .*sunny1.txt:2: the picture is missing"
    ):
        into(tmp_path, lost)


def test_a_domain_without_boxes_is_told(tmp_path: Path) -> None:
    root = raw(tmp_path / "init", {"sunny1": 12, "night1": 6})
    file = root / "batch1_anno/night1.txt"
    file.write_text("".join(record(n, path, []) for n, (path, _) in enumerate(independent_list(file))))
    result, store = into(tmp_path, root)
    assert "domain 'night' has no box at all: a class-aware method sees background" in result.warnings
    assert not any("'sunny' has no box" in text for text in result.warnings)
    assert all(store.record(id).boxes == () for id in store.ids("train", "night"))


def test_85_to_15() -> None:
    paths = [f"sunny/{n}.png" for n in range(8000)]
    exact = [split_85_15(path, val=0) for path in paths]
    assert set(exact) == {"train", "test"} and exact.count("test") / 8000 == pytest.approx(0.15, abs=0.012)
    ours = [split_85_15(path) for path in paths]
    assert ours.count("val") / 8000 == pytest.approx(0.05, abs=0.008)
    assert [one == "test" for one in ours] == [one == "test" for one in exact]  # val is taken from what trains
    assert sum(split_85_15(path, seed=1) != split_85_15(path) for path in paths) > 1500


def test_a_picture_has_one_split_in_both_layouts_unless_phases_are_given(tmp_path: Path) -> None:
    root = raw(tmp_path / "init", {"sunny1": 40})
    store = into(tmp_path, root, val=0.2)[1]
    for path, _ in independent_list(root / "batch1_anno/sunny1.txt"):
        file = root / "label/sunny_train" / f"{path[1:].replace('/', '_')}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"sunny{path}\n0\n")
    again = into(tmp_path, root, val=0.2, split="85-15", frame=SIZE)[1]
    for split in SPLITS:
        assert sorted(again.ids(split, "sunny")) == sorted(store.ids(split, "sunny")) != []
    assert len(into(tmp_path, root, frame=SIZE)[1].ids("train", "sunny")) == 40
    assert len(into(tmp_path, root, frame=SIZE, split="given")[1].ids("train", "sunny")) == 40


def test_a_drive_is_kept_together(tmp_path: Path) -> None:
    root = raw(tmp_path / "init", {"sunny1": 60})  # fifteen drives of four
    store = into(tmp_path, root, val=0.2, together=True)[1]
    found = {split: {id.rpartition("/")[0] for id in store.ids(split, "sunny")} for split in SPLITS}
    assert all(found.values()) and sum(map(len, found.values())) == 15
    alone = into(tmp_path, root, val=0.2)[1]
    assert sum(len({id.rpartition("/")[0] for id in alone.ids(split, "sunny")}) for split in SPLITS) > 15


def test_the_command(tmp_path: Path) -> None:
    root, store = raw(tmp_path / "init", {"sunny1": 30, "night1": 30, "rainy1": 8}), tmp_path / "store"
    words = ["data", "init", str(root), str(store), "--domains", "sunny,night"]
    done = CliRunner().invoke(cli.app, [*words, "--max-side", "96", "--val", "0.2", "--classes", "car=vehicle,person=person"])
    assert done.exit_code == 0, done.output
    opened = Store.open(store)
    assert opened.domains.names == ("sunny", "night") and opened.domains.classes == ("background", "vehicle", "person")
    assert re.search(r"note: dropped \d+ boxes of classes that the class map does not name \(\d+ sign\)", done.stderr)
    picture = opened.record(opened.ids("train", "sunny")[0])
    assert (picture.width, picture.height) == (96, 60)
    for option, says in {
        "--split=given": "give no splits; leave `given` out",
        "--split=8515": "there is no way to split '8515'; did you mean '85-15'",
        "--frame=572": "--frame is written WIDTHxHEIGHT",
        "--domains=suny": "did you mean 'sunny'",
    }.items():
        failed = CliRunner().invoke(cli.app, [*words, option])
        assert isinstance(failed.exception, ValueError) and says in str(failed.exception)


def test_a_label_that_sticks_out_is_clipped_and_counted(tmp_path: Path) -> None:
    root = raw(tmp_path / "init", {"sunny1": 1})
    draw(root / "sunny/a.png", SIZE)
    (root / "batch1_anno/sunny1.txt").write_text(GOOD.replace("1 1 2 3 4", "3 180.5 100 192.9 125"))
    result, store = into(tmp_path, root)
    assert store.record("sunny/a.png").boxes == (Box("person", 180.5, 100, 192, 121),)
    assert any("clipped 1 boxes" in text and "sunny1.txt:6" in text for text in result.warnings)
