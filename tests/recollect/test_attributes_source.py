"""Folders with a table of attributes into stores: CSV and Parquet alike, what may stand in a cell, and what may not."""

from __future__ import annotations

import csv
import io
import math
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from recollect import cli
from recollect.data.sources.annotated import position
from recollect.data.sources.attributes import ingest, read_table, read_value, split_of
from recollect.data.sources.pictures import Ingest
from recollect.data.store import Store

TRUE, FALSE, UNKNOWN = ("1", "true", "TRUE", " 1 ", "1.0"), ("0", "false", "False"), ("", "  ")


def draw(path: Path, size: tuple[int, int] = (20, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.frombytes("RGB", (5, 5), random.Random(path.name).randbytes(75)).resize(size).save(path)


def folder(root: Path, lines: list[str], count: int = 12, name: str = "labels.csv") -> Path:
    for index in range(count):
        draw(root / "pictures" / f"{index}.png")
    (root / name).write_text("\n".join(lines) + "\n")
    return root


def into(tmp_path: Path, root: Path, **options: Any) -> tuple[Ingest, Store]:
    result = ingest(root, tmp_path / "store", **{"val": 0, "test": 0} | options)
    return result, Store.open(tmp_path / "store", verify=True)


def test_a_csv_with_splits_domains_and_gaps(tmp_path: Path) -> None:
    root = folder(
        tmp_path / "f",
        [
            "split,wet,file,domain,cold",
            "train,1,pictures/0.png,day,",
            "valid,0,pictures/1.png,day,true",
            "test,,pictures/2.png,,false",
            "",
            'train,"1",pictures\\3.png,night,0',
            "train,0,pictures/4.png,,1",
        ],
    )
    result, store = into(tmp_path, root, domain="dusk")
    assert store.domains.names == ("day", "dusk", "night") and store.domains.attributes == ("wet", "cold")
    known = {
        id: store.record(id).attributes
        for name in store.domains.names
        for s in ("train", "val", "test")
        for id in store.ids(s, name)
    }
    assert known == {
        "pictures/0.png": {"wet": 1},
        "pictures/1.png": {"wet": 0, "cold": 1},
        "pictures/2.png": {"cold": 0},
        "pictures/3.png": {"wet": 1, "cold": 0},
        "pictures/4.png": {"wet": 0, "cold": 1},
    }
    assert store.ids("val", "day") == ("pictures/1.png",) and store.ids("test", "dusk") == ("pictures/2.png",)
    assert "domain 'night' has no val picture" in result.warnings
    record = store.record("pictures/0.png")
    assert (record.width, record.height, record.source, record.boxes) == (20, 10, "f/pictures/0.png", None)
    assert record.image == (root / "pictures" / "0.png").read_bytes()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from((*TRUE, *FALSE, *UNKNOWN))] * 3), min_size=1, max_size=8))
def test_any_way_to_write_yes_no_and_unknown(rows: list[tuple[str, str, str]]) -> None:
    def meant(cell: str) -> int | None:
        return 1 if cell in TRUE else 0 if cell in FALSE else None

    for row in rows:
        for cell in row:
            assert read_value(cell, "x", "here") == meant(cell)
    sink = io.StringIO()
    csv.writer(sink).writerows([("picture", "a", "b", "c"), *((f"{i}.png", *row) for i, row in enumerate(rows))])
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "labels.csv")
        path.write_text("\ufeff" + sink.getvalue(), encoding="utf-8")  # as spreadsheets write it
        table = read_table(path)
    assert table.columns == ("picture", "a", "b", "c") and [tuple(r.values())[1:] for r in table.rows] == rows
    assert table.places == tuple(f"{path}:{i + 2}" for i in range(len(rows)))


@pytest.mark.parametrize("cell", [1, True, 1.0, np.int8(1), np.float32(1), np.bool_(True)])
def test_numbers_and_booleans_of_parquet(cell: Any) -> None:
    assert read_value(cell, "x", "here") == 1 and read_value(cell * 0, "x", "here") == 0
    assert read_value(None, "x", "here") is None and read_value(math.nan, "x", "here") is None
    assert read_value(-1, "x", "here") == -1 == read_value(-1.0, "x", "here")


def test_parquet_and_csv_give_the_same_store(tmp_path: Path) -> None:
    rng = random.Random(0)
    frame = pd.DataFrame(
        {
            "name": [f"pictures/{i}.png" for i in range(12)],
            "celeba": [rng.choice((-1, 1)) for _ in range(12)],
            "flag": [bool(rng.getrandbits(1)) for _ in range(12)],
            "gaps": [rng.choice((0.0, 1.0, math.nan)) for _ in range(12)],
        }
    )
    root = folder(tmp_path / "f", [])
    (root / "labels.csv").unlink()
    frame.to_parquet(root / "labels.parquet")
    _, store = into(tmp_path, root)
    ids, table = store.attributes()
    assert ids == tuple(frame["name"])
    expected = np.stack([frame["celeba"].clip(0), frame["flag"], frame["gaps"]], 1).astype(np.float32)
    np.testing.assert_array_equal(table, expected)
    frame.to_csv(tmp_path / "other.csv", index=False)
    again = ingest(root, tmp_path / "again", table=tmp_path / "other.csv", val=0, test=0).manifest
    assert again.digest == store.digest


def test_some_columns_in_this_order_and_smaller_pictures(tmp_path: Path) -> None:
    root = folder(tmp_path / "f", ["p,a,note,b", "pictures/0.png,1,some words,0", "pictures/1.png,0,,1"])
    _, store = into(tmp_path, root, attributes=["b", "a"], max_side=10)
    assert store.domains.attributes == ("b", "a") and store.record("pictures/0.png").width == 10
    assert store.attributes()[1].tolist() == [[0, 1], [1, 0]]


def test_without_a_split_the_hash_of_the_path_decides(tmp_path: Path) -> None:
    root = folder(tmp_path / "f", ["p,a", *(f"pictures/{i}.png,{i % 2}" for i in range(60))], 60)
    _, store = into(tmp_path, root, val=0.2, test=0.3, seed=5)
    for split, low, high in (("test", 0, 0.3), ("val", 0.3, 0.5), ("train", 0.5, 1)):
        expected = [f"pictures/{i}.png" for i in range(60) if low <= position(f"pictures/{i}.png", 5) < high]
        assert list(store.ids(split, "pictures")) == expected and len(expected) > 4
    shares = [split_of(f"{i}", 0.1, 0.2) for i in range(5000)]
    assert abs(shares.count("val") / 5000 - 0.1) < 0.02 and abs(shares.count("test") / 5000 - 0.2) < 0.02


def test_missing_and_broken_pictures_are_listed(tmp_path: Path) -> None:
    root = folder(tmp_path / "f", ["p,a", "pictures/0.png,1", "pictures/nowhere.png,0", "pictures/2.png,0", "pictures/3.png,0"])
    (root / "pictures" / "2.png").write_bytes(b"no picture")
    result, store = into(tmp_path, root)
    assert len(store) == 2
    reasons = dict(result.skipped)
    assert reasons.keys() == {"f/pictures/nowhere.png", "f/pictures/2.png"}
    assert reasons["f/pictures/nowhere.png"] == "the picture is missing" and "not a picture" in reasons["f/pictures/2.png"]
    with pytest.raises(ValueError, match=r"nowhere\.png: the picture is missing"):
        ingest(root, tmp_path / "strict", strict=True, val=0, test=0)
    assert not list((tmp_path / "strict").glob("*"))


def test_notes_say_what_cannot_be_learnt(tmp_path: Path) -> None:
    lines = ["p,always,never,nobody,fine", "pictures/0.png,1,0,,1", "pictures/1.png,1,0,,0", "pictures/2.png,,,,"]
    warnings = into(tmp_path, folder(tmp_path / "f", lines))[0].warnings
    assert "the attribute 'always' is 1 in every picture: nothing can be learnt of it" in warnings
    assert "the attribute 'never' is 0 in every picture: nothing can be learnt of it" in warnings
    assert "the attribute 'nobody' is known of no picture" in warnings
    assert "1 of 3 pictures have no attributes: nothing is known of them" in warnings
    assert not any("'fine'" in text for text in warnings)


REFUSED: dict[str, list[str]] = {
    r"labels.csv:3: attribute 'a' is '2'; write 1, 0, -1 \(for 0\), true, false": ["p,a", "x.png,1", "x.png,2"],
    r"attribute 'a' is 'yes'.*or leave the column out with --attributes": ["p,a", "x.png,yes"],
    r"attribute 'a' is '0.5'": ["p,a", "x.png,0.5"],
    r"labels.csv:2: attribute 'a' is 'nan'": ["p,a", "x.png,nan"],
    r"the attribute 'a' is 0 \(.*labels.csv:2\) and -1 \(.*labels.csv:4\)": ["p,a", "x.png,0", "y.png,1", "z.png,-1"],
    r"labels.csv:4 has 3 cells; the first line names 2 columns": ["p,a", "x.png,1", "", "y.png,1,1"],
    r"labels.csv:2: the column 'p' names no picture": ["p,a", ",1"],
    r"labels.csv:2: there is no split 'tarin'; did you mean 'train'": ["p,a,split", "x.png,1,tarin"],
    r"labels.csv:2: there is no split ''": ["p,a,split", "x.png,1,"],
    r"has no column of attributes; it has p, split": ["p,split", "x.png,train"],
    r"columns must have distinct names, not 'p', 'a', 'a'": ["p,a,a", "x.png,1,1"],
    r"columns must have distinct names, not 'p', ''": ["p,", "x.png,1"],
    r"labels.csv has no row": ["p,a"],
    r"two records have the id 'pictures/0.png'": ["p,a", "pictures/0.png,1", "pictures/0.png,0"],
    r"empty domain: 'pictures' has no training picture .*; 1 left out, the first: f/x.png: the picture is missing": [
        "p,a",
        "x.png,1",
    ],
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused_tables(tmp_path: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        into(tmp_path, folder(tmp_path / "f", REFUSED[message], 2))


def test_refused_calls(tmp_path: Path) -> None:
    root = folder(tmp_path / "f", ["p,Smiling,Male", "pictures/0.png,1,0"], 1)
    refused: dict[str, dict[str, Any]] = {
        "has no attribute 'Smile'; did you mean 'Smiling'": {"attributes": ["Smile"]},
        "there is no table .*label.csv; did you mean 'labels.csv'": {"table": root / "label.csv"},
        "neither a .csv nor a .parquet file": {"table": root / "pictures" / "0.png"},
        "leave no training pictures": {"val": 0.6, "test": 0.4},
    }
    for message, options in refused.items():
        with pytest.raises(ValueError, match=message):
            ingest(root, tmp_path / "store", **options)
    (root / "more.csv").write_text("p,a\n")
    with pytest.raises(ValueError, match="needs one table, .csv or .parquet; there is: labels.csv, more.csv; say which"):
        ingest(root, tmp_path / "store")
    with pytest.raises(ValueError, match="there is no folder"):
        ingest(tmp_path / "nowhere", tmp_path / "store")
    (root / "bad.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="bad.parquet is no Parquet file"):
        ingest(root, tmp_path / "store", table=root / "bad.parquet")
    (root / "bad.csv").write_bytes("p,a\n\xfcber.png,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match="bad.csv is not a CSV file in UTF-8"):
        ingest(root, tmp_path / "store", table=root / "bad.csv")


def test_the_command_reads_it(tmp_path: Path) -> None:
    lines = ["p,wet,note", *(f"pictures/{i}.png,{i % 2},words" for i in range(12)), "pictures/99.png,1,words"]
    root = folder(tmp_path / "f", lines)
    words = ["data", "attributes", str(root), str(tmp_path / "s"), "--attributes", "wet", "--val", "0", "--test", "0"]
    made = CliRunner().invoke(cli.app, words, catch_exceptions=False)
    assert made.exit_code == 0 and "attributes wet" in made.stdout and re_train(made.stdout) == 12
    assert "skipped f/pictures/99.png: the picture is missing" in made.stderr


def re_train(text: str) -> int:
    """The number of training pictures that the command printed."""
    return int(text.split("train")[1].split()[0])
