"""Search on Ray Tune: plain trials and trials of several workers, the table, the journal, the winner, and going on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from recollect.bundle import open_bundle
from recollect.cluster import connect, disconnect
from recollect.config import Run, preset
from recollect.data.store import Store
from recollect.search.tune import Search, search
from recollect.training.checkpoint import is_checkpoint
from recollect.training.session import suit


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    connect("local", cpus=2)
    yield
    disconnect()


@pytest.fixture(scope="module")
def run(store: Store) -> Run:
    made = preset(
        "mguit:tiny",
        data={"store": store.uri, "size": 32, "domains": ("sunny", "night")},
        model={
            "width": 8,
            "critic_width": 8,
            "critic_layers": 2,
            "content_blocks": 2,
            "generator_blocks": 2,
            "memory": {"value_dim": 8},
        },
        engine={"steps": 4, "batch_size": 2, "log_every": 2, "evaluate_every": 2, "threads": 1},
        evaluation={"pictures": 2},
    )
    return suit(made, store)


OVER = ("model.memory.items_per_class.car", "model.memory.read_temperature", "weights.con_k")


def test_a_search_of_plain_trials_and_going_on_with_it(run: Run, tmp_path: Path) -> None:
    place = tmp_path / "search"
    outcome = search(Search(run, OVER, trials=4, directory=str(place)))
    table = pd.read_parquet(place / "trials.parquet")
    pd.testing.assert_frame_equal(table, outcome.table)
    assert len(table) == 4 and table["objective"].is_monotonic_increasing and table["objective"].notna().all()
    first = table[table["config/weights.con_k"] == run.weights.con_k]  # type: ignore[attr-defined]
    assert len(first) == 1, "the run's own settings are among those tried"
    assert set(table["status"]) <= {"finished", "stopped by ASHA"} and (table["status"] == "finished").any()
    winner = open_bundle(outcome.winner)
    best = table.iloc[0]
    memory = winner.run.model.memory  # type: ignore[attr-defined]
    assert memory.items_per_class["car"] == best["config/model.memory.items_per_class.car"]
    assert memory.read_temperature == pytest.approx(best["config/model.memory.read_temperature"])
    assert best["objective"] == pytest.approx(min(row["objective"] for row in winner.metrics() if "objective" in row))
    assert is_checkpoint(Path(outcome.checkpoint)) and not is_checkpoint(Path(outcome.winner))
    assert outcome.changes["weights.con_k"] == pytest.approx(best["config/weights.con_k"])
    study = optuna.load_study(study_name="search", storage=JournalStorage(JournalFileBackend(str(place / "study.journal"))))
    assert len(study.trials) == 4 and all(trial.state.is_finished() for trial in study.trials)

    with pytest.raises(ValueError, match="--resume"):
        search(Search(run, OVER, trials=4, directory=str(place)))
    again = search(Search(run, OVER, trials=4, directory=str(place)), resume=True)
    assert list(again.table["trial"]) == list(table["trial"]), "finished trials stay"


@pytest.mark.slow
def test_a_trial_of_two_workers_is_a_ray_train_run(run: Run, tmp_path: Path) -> None:
    outcome = search(Search(run, ("weights.con_k",), trials=1, directory=str(tmp_path / "search"), workers=2))
    assert outcome.table["status"].tolist() == ["finished"] and outcome.table["step"].tolist() == [4]
    assert "train" in str(outcome.table["checkpoint"].iloc[0])
    best = min(row["objective"] for row in open_bundle(outcome.winner).metrics() if "objective" in row)
    assert best == pytest.approx(float(outcome.table["objective"].iloc[0]))


def test_what_cannot_be_searched_is_refused_with_what_can(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights.con_k"):
        Search(run, ("weights.con_q",), trials=1, directory=str(tmp_path))
    with pytest.raises(ValueError, match="needs 16 CPUs"):
        search(Search(run, OVER, trials=1, directory=str(tmp_path / "x"), workers=16))
