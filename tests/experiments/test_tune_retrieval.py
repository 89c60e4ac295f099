"""The search for a retriever and a decoder, as a user starts it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from experiments import tune_retrieval
from recollect.bundle import open_bundle
from recollect.data.worlds import build_faces
from recollect.retrieval.directory import read_manifest
from recollect.retrieval.embed import open_embedder

ROOT = Path(__file__).parents[2]


def test_mistakes_are_said_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_faces(tmp_path / "store", size=16, train=4, val=1, test=1)
    arguments = tune_retrieval.parser().parse_args(["--store", str(tmp_path / "store"), "--set", "weights.cls=2"])
    with pytest.raises(ValueError, match="STAGE:NAME=VALUE with one of gmm_unit, retriever, rg_unit"):
        tune_retrieval._run(arguments, "gmm_unit", arguments.store)
    assert tune_retrieval.main(["--store", str(tmp_path / "none")]) == 2
    assert "error:" in capsys.readouterr().err


def test_a_stage_takes_its_own_changes() -> None:
    arguments = tune_retrieval.parser().parse_args(["--small", "--set", "rg_unit:weights.cls=2", "--set", "retriever:seed=7"])
    runs = {stage: tune_retrieval._run(arguments, stage, "store") for stage in tune_retrieval.STEPS}
    assert [run.seed for run in runs.values()] == [0, 7, 0]
    assert runs["rg_unit"].weights.cls == 2 and runs["gmm_unit"].weights.cls == 1  # type: ignore[attr-defined]
    assert {run.engine.steps for run in runs.values()} == {8}


@pytest.mark.slow
def test_two_searches_with_an_index_between_and_the_same_command_again(tmp_path: Path) -> None:
    build_faces(tmp_path / "store", size=64, train=48, val=12, test=6)
    small = ["gmm_unit:engine.steps=2", "retriever:engine.steps=2", "rg_unit:engine.steps=2"]
    command = [sys.executable, "experiments/tune_retrieval.py", "--store", str(tmp_path / "store"), "--trials", "2"]
    command += ["--small", "--address", "local", "--storage", str(tmp_path / "out")]
    for change in small:
        command += ["--set", change]
    subprocess.run(command, cwd=ROOT, check=True, timeout=500)
    retriever, winner = (open_bundle(tmp_path / "out" / stage / "winner") for stage in ("retriever", "rg_unit"))
    trials = pd.read_parquet(tmp_path / "out" / "rg_unit" / "trials.parquet")
    assert len(trials) == 2 and trials["config/model.neighbours"].notna().all() and trials["objective"].notna().all()
    assert "config/model.margin" in pd.read_parquet(tmp_path / "out" / "retriever" / "trials.parquet")
    assert winner.manifest["parents"]["retriever"] == retriever.digest
    model = open_embedder(retriever)
    assert read_manifest(tmp_path / "out" / "index").origin.model == model.embedding_digest()
    again = subprocess.run([*command, "--resume"], cwd=ROOT, check=True, timeout=500, capture_output=True, text=True)
    assert "training stage 1" not in again.stdout
    assert open_bundle(tmp_path / "out" / "rg_unit" / "winner").digest == winner.digest
