"""The search for a retriever and a decoder, as a user starts it."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from experiments import tune_retrieval
from recollect.bundle import copy, open_bundle
from recollect.cluster import Cluster
from recollect.data.store import Store
from recollect.data.worlds import build_faces
from recollect.retrieval.directory import read_manifest
from recollect.retrieval.embed import open_embedder
from recollect.training.session import suit, train

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


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    uri = tmp_path_factory.mktemp("faces") / "store"
    build_faces(uri, size=32, train=8, val=4, test=4)
    return Store.open(uri)


SMALL = ["engine.steps=2", "engine.batch_size=2", "engine.threads=1", "data.size=32", "model.width=4", "model.mlp_width=8"]
SMALL += ["model.critic_width=4", "model.content_blocks=1", "model.generator_blocks=1", "evaluation.pictures=2"]


def arguments_of(*words: str) -> argparse.Namespace:
    changes = [word for change in SMALL for word in ("--set", f"gmm_unit:{change}")]
    return tune_retrieval.parser().parse_args(["--small", *changes, *words])


@pytest.fixture(scope="module")
def stage1(store: Store, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A storage in which the first stage of `arguments_of()` is finished."""
    storage = tmp_path_factory.mktemp("out")
    run = suit(tune_retrieval._run(arguments_of(), "gmm_unit", store.uri), store)
    copy(train(run, tmp_path_factory.mktemp("run") / "run"), f"{storage}/gmm_unit/winner")
    return str(storage)


NOBODY = Cluster("nowhere", True, 1.0, 0.0)  # nothing is trained in these


def test_a_finished_stage_1_is_taken_again_where_it_is_the_same(store: Store, stage1: str) -> None:
    kept = f"{stage1}/gmm_unit/winner"
    assert tune_retrieval._stage1(arguments_of(), stage1, store, NOBODY) == kept
    assert tune_retrieval._stage1(arguments_of("--resume", "--storage", "elsewhere"), stage1, store, NOBODY) == kept


def test_another_stage_1_is_said_and_not_taken(store: Store, stage1: str, tmp_path: Path) -> None:
    build_faces(tmp_path / "other", size=32, train=8, val=4, test=4, seed=1)
    other = Store.open(tmp_path / "other")
    for words, of, said in (
        (("--set", "gmm_unit:engine.steps=3"), store, "its engine.steps is 2, not 3"),
        (("--set", "gmm_unit:model.width=8", "--resume"), store, "its model.width is 4, not 8"),
        (("--seed", "5"), store, "its seed is 0, not 5"),
        ((), other, f"its data are {store.digest[:12]}, not {other.digest[:12]}"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            tune_retrieval._stage1(arguments_of(*words), stage1, of, NOBODY)
        assert "Take another --storage" in str(error.value) and f"--translator {stage1}/gmm_unit/winner" in str(error.value)


def test_gpus_per_worker_are_those_of_stage_1_too() -> None:
    def gpus(cluster: float, *words: str) -> tuple[int, float]:
        found = tune_retrieval.resources(tune_retrieval.parser().parse_args(list(words)), cluster)
        return found.workers, found.gpus_per_worker

    assert gpus(0) == (1, 0) and gpus(4, "--workers-per-trial", "2") == (2, 1)
    assert gpus(4, "--gpus-per-worker", "0.5") == (1, 0.5) and gpus(4, "--gpus-per-worker", "0") == (1, 0)


def test_the_test_table_is_written_wherever_the_storage_is(store: Store, stage1: str, tmp_path: Path) -> None:
    winner = f"{stage1}/gmm_unit/winner"
    for storage in (str(tmp_path / "here"), f"file://{tmp_path}/there"):
        frame = tune_retrieval.tested(winner, store, storage)
        written = pd.read_parquet(f"{storage.removeprefix('file://')}/test.parquet")
        assert len(written) == len(frame) and set(written["split"]) == {"test"}


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
