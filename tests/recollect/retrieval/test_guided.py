"""Whatever opens a guided bundle finds its neighbours: in the index that it was trained with, or in one that is given."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recollect import cli
from recollect.data.store import Store, write_store
from recollect.data.transforms import decode
from recollect.evaluation.evaluate import evaluate
from recollect.evaluation.results import KEY, Results, load, save
from recollect.pipeline import Pipeline
from recollect.retrieval.directory import read_manifest
from recollect.retrieval.embed import build_index
from recollect.retrieval.guided import open_pipeline
from recollect.translated import translate_store
from tests.recollect.retrieval.embedders import DOMAINS, records, write_colours, write_echo

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


class Place:
    """A bundle whose index is gone since, with its store; both are elsewhere by now."""

    def __init__(self, root: Path, colours: Path) -> None:
        everything = records(20) + records(6, 100, "val") + records(8, 200, "test")
        write_store(root / "store", everything, domains=DOMAINS.names, attributes=DOMAINS.attributes)
        build_index(colours, root / "store", root / "index")
        self.bundle = write_echo(root / "bundle", colours, str(root / "index"))
        self.digest = read_manifest(root / "index").digest
        self.pictures = Store.open(root / "store")
        self.asked = next(record for record in everything if record.id == "train-0004")
        self.there = open_pipeline(self.bundle)
        (root / "index").rename(root / "moved-index")
        (root / "store").rename(root / "moved-store")
        self.index, self.store = root / "moved-index", root / "moved-store"


@pytest.fixture
def place(colours: Path, tmp_path: Path) -> Place:
    return Place(tmp_path, colours)


def test_a_picture_is_translated_with_an_index_and_a_library_that_moved(place: Place, call: Call, tmp_path: Path) -> None:
    (tmp_path / "asked.png").write_bytes(place.asked.image)
    words = ("translate", place.bundle, tmp_path / "asked.png", "--to", "cold", "--out", tmp_path / "out")
    assert "there is no index at" in call(*words)[2]
    code, _, err = call(*words, "--index", place.index)
    assert code == 2 and str(tmp_path / "store") in err  # where the index says that its pictures are
    code, out, err = call(*words, "--index", place.index, "--library", place.store)
    assert code == 0, err
    with Image.open(out.strip()) as made:
        drawn = torch.from_numpy(np.array(made)).permute(2, 0, 1).float()
    assert (drawn - decode(place.asked.image).float()).abs().mean() < 20  # it found itself; all others are above 45


def test_a_bundle_is_judged_with_an_index_and_a_library_that_are_given(place: Place, call: Call, tmp_path: Path) -> None:
    table = tmp_path / "rows.parquet"
    words = ("evaluate", place.bundle, "--store", place.store, "--out", table)
    assert "there is no index at" in call(*words)[2]
    code, out, err = call(*words, "--index", place.index, "--library", place.store)
    assert code == 0 and "echo" in out and table.exists(), err
    frame = evaluate(place.bundle, place.store, index=str(place.index), library=str(place.store))
    assert set(frame["kind"]) >= {"method", "baseline"}


def test_a_bundle_with_another_index_is_another_row(place: Place, colours: Path, call: Call, tmp_path: Path) -> None:
    """And what was judged with one is not taken for what is judged with the other."""
    table = tmp_path / "rows.parquet"
    kept = [record for record in records(20) if int(record.id[-4:]) < 10]
    write_store(tmp_path / "half", kept, domains=DOMAINS.names, attributes=DOMAINS.attributes)
    build_index(colours, tmp_path / "half", tmp_path / "half-index")
    whole, half = ("--index", place.index, "--library", place.store), ("--index", tmp_path / "half-index")
    words = ("evaluate", place.bundle, "--store", place.store, "--out", table)
    assert call(*words, *whole)[0] == 0 and call(*words, *half)[0] == 0
    found = load(table).rows
    assert set(found.loc[found["kind"] == "method", "index"]) == {read_manifest(path).digest for path in (place.index, half[1])}
    assert set(found.loc[found["kind"] != "method", "index"]) == {""} and not found.duplicated(KEY).any()
    words = ("compare", place.bundle, "echo", "--store", place.store, "--results", table)
    code, said, error = call(*words, *whole)
    assert code == 0 and "were judged before" in error and f"with index {read_manifest(half[1]).digest[:6]}" in said, error
    fewer = tmp_path / "fewer.parquet"
    rows = found[found["index"] != read_manifest(half[1]).digest]
    save(fewer, Results(rows, load(table).pictures))
    code, said, error = call(*words[:-1], fewer, *half)
    assert code == 0 and "were judged before" not in error, error  # with this index it was not
    assert "with index" in said


def test_a_store_is_translated_with_neighbours(place: Place, call: Call, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("translate-store", place.bundle, "--store", place.store, "--from", "warm", "--to", "cold", "--out", out)
    assert "there is no index at" in call(*words)[2]
    given = ("--index", place.index, "--library", place.store)
    code, _, err = call(*words, *given)
    assert code == 0, err
    made = Store.open(out)
    assert f"neighbours of index {place.digest}" in made.manifest.source and len(made) == 17
    before = (out / "manifest.json").stat().st_mtime_ns
    assert call(*words, *given)[0] == 0 and (out / "manifest.json").stat().st_mtime_ns == before  # it is there already
    build_index(write_colours(tmp_path / "same"), place.store, tmp_path / "fewer", limit=3)
    arguments = {"source": "warm", "target": "cold", "library": str(place.store)}
    with pytest.raises(ValueError, match="holds another store"):  # other neighbours, other translations
        translate_store(place.bundle, place.store, out, index=str(tmp_path / "fewer"), **arguments)  # type: ignore[arg-type]


def test_what_nothing_would_look_into_is_refused(place: Place, colours: Path, tmp_path: Path) -> None:
    from tests.serve.translators import write_bundle

    tint = write_bundle(tmp_path / "tint")
    for what in ("index", "library"):
        for opens in (open_pipeline, lambda bundle, **given: evaluate(bundle, place.store, **given)):
            with pytest.raises(ValueError, match=f"holds 'tint', which no neighbours guide; leave the {what} out"):
                opens(tint, **{what: str(place.index)})
        with pytest.raises(ValueError, match="holds 'colours', which no neighbours guide"):
            evaluate(colours, place.store, **{what: str(place.index)})  # type: ignore[arg-type]
    alone = write_echo(tmp_path / "alone", colours)
    with pytest.raises(ValueError, match="library .* needs an index that says what is in it"):
        open_pipeline(alone, library=str(place.store))
    assert isinstance(open_pipeline(tint), Pipeline) and open_pipeline(alone).search is None
    shutil.rmtree(place.index)
    with pytest.raises(ValueError, match="no index at"):
        open_pipeline(alone, index=str(place.index))
