"""`recollect index ...`: a set is built, changed, asked and checked by the commands alone."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from recollect import cli
from recollect.data.store import Store
from tests.recollect.retrieval.embedders import write_colours, write_records

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """The command as `main` runs it: exit code, what went to stdout, what went to stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["recollect", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
            sys.exit(0)
        said = capfd.readouterr()
        return int(stopped.value.code or 0), said.out, said.err

    return run


def test_a_set_is_built_asked_changed_and_checked(call: Call, colours: Path, tmp_path: Path) -> None:
    store = write_records(tmp_path / "store")
    index, sheet = tmp_path / "index", tmp_path / "found.png"
    code, out, err = call("index", "build", colours, "--store", store.uri, "--out", index)
    assert code == 0 and f"index {index} v000001" in out and "pictures 40 of" in out and "where    Male, Young" in out
    assert "embedding 40/40" in err
    picture = tmp_path / "asked.png"
    picture.write_bytes(store.record("train-0009").image)
    ask = ("index", "search", index, picture, "--bundle", colours, "-k", 3)
    code, out, _ = call(*ask, "--sheet", sheet)
    rows = [line.split() for line in out.splitlines() if "train-" in line]
    assert code == 0 and rows[0] == ["0.0000", "train-0009"] and len(rows) == 3
    assert [float(row[0]) for row in rows] == sorted(float(row[0]) for row in rows)
    with Image.open(sheet) as drawn:
        assert drawn.width > 4 * 112
    code, out, _ = call(*ask, "--json", "--exclude", "train-0009", "--where", "Young=1")
    found = [row["id"] for row in json.loads(out)["matches"]]
    assert code == 0 and len(found) == 3 and all(store.record(id).attributes["Young"] == 1 for id in found)  # type: ignore[index]
    code, out, _ = call("index", "add", index, colours, "--split", "val")
    assert code == 0 and "added 6 pictures" in out and "v000002" in out and "6 added, 0 removed" in out
    (tmp_path / "gone.txt").write_text("train-0000\ntrain-0001\n")
    code, out, _ = call("index", "remove", index, "train-0009", "--list", tmp_path / "gone.txt")
    assert code == 0 and "removed 3 pictures" in out and "pictures 43 of" in out
    assert "train-0009" not in call(*ask)[1]
    code, out, _ = call("index", "verify", index, "--bundle", colours)
    assert code == 0 and out.endswith("verified\n")


def test_what_is_wrong_is_one_line_and_says_what_is_right(call: Call, colours: Path, pictures: Store, tmp_path: Path) -> None:
    index, picture, other = tmp_path / "index", tmp_path / "asked.png", write_colours(tmp_path / "other", seed=1)
    picture.write_bytes(pictures.record("train-0009").image)
    assert call("index", "build", colours, "--store", pictures.uri, "--out", index, "--backend", "exact")[0] == 0
    (tmp_path / "words.png").write_text("no picture")
    ask = ("index", "search", index, picture, "--bundle", colours)
    (index / "v000001" / "manifest.json").stat()
    for words, says in (
        ((*ask, "--where", "Mail=1"), "lacks the attribute 'Mail'; did you mean 'Male'"),
        ((*ask, "--where", "Male"), "--where is written NAME=1 or NAME=0"),
        ((*ask, "-k", 41), "a retrieval set smaller than k: it has 40 pictures"),
        (("index", "search", index, picture, "--bundle", other), "belongs to another embedder"),
        (("index", "search", tmp_path / "none", picture, "--bundle", colours), "`recollect index build` makes one"),
        (("index", "search", index, tmp_path / "words.png", "--bundle", colours), "not a picture that can be read"),
        (("index", "verify", index, "--bundle", other), "belongs to another embedder"),
        (("index", "remove", index), "remove which pictures?"),
        (("index", "remove", index, "nobody"), "no picture 'nobody'"),
        (("index", "build", colours, "--store", pictures.uri, "--out", index, "--setting", "flat"), "NAME=VALUE"),
        (("index", "build", colours, "--store", pictures.uri, "--out", tmp_path), "is no index; choose another place"),
    ):
        code, _, err = call(*words)
        lines = [line for line in err.splitlines() if not line.startswith("embedding")]
        assert code == 2 and len(lines) == 1 and lines[0].startswith("error: ") and says in lines[0], (words, err)
    smaller = write_records(tmp_path / "smaller", train=10)
    code, _, err = call("index", "verify", index, "--store", smaller.uri)
    assert code == 2 and "30 pictures of the index are not in the store" in err
    (index / "v000001" / "vectors.safetensors").write_bytes(b"other")
    assert "is not the file that was written" in call("index", "verify", index)[2]


def test_a_picture_of_any_format_is_embedded_as_those_of_the_store(call: Call, colours: Path, tmp_path: Path) -> None:
    store = write_records(tmp_path / "store")
    call("index", "build", colours, "--store", store.uri, "--out", tmp_path / "index")
    turned = Image.open(io.BytesIO(store.record("train-0004").image)).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 270 degrees, so upright again
    turned.save(tmp_path / "turned.png", exif=exif)
    _, out, _ = call("index", "search", tmp_path / "index", tmp_path / "turned.png", "--bundle", colours, "-k", 1)
    assert out.split()[-2:] == ["0.0000", "train-0004"]


def test_help_needs_no_heavy_import() -> None:
    heavy = ("torch", "faiss", "pyarrow", "ray", "pymilvus")
    code = f"import sys; import recollect.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert done.stdout.strip() == "[]", done.stderr
