"""Search on Ray Tune: plain trials and trials of several workers, the table, the journal, the winner, and going on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from recollect.bundle import open_bundle
from recollect.cluster import connect, disconnect
from recollect.config import Run, overlay, preset
from recollect.data.store import Store
from recollect.search.goals import goal
from recollect.search.tune import Search, confirm, search
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
    (place / "tune" / "tuner.pkl").write_bytes(b"of another version")
    with pytest.raises(ValueError, match="cannot be read.*delete its tuner.pkl and experiment_state"):
        search(Search(run, OVER, trials=4, directory=str(place)), resume=True)


@pytest.mark.slow
def test_a_final_and_a_repeat_of_it(run: Run, tmp_path: Path) -> None:
    place = tmp_path / "search"
    plan = Search(run, ("weights.con_k",), trials=2, directory=str(place), concurrent=1, scheduler="none")
    first = search(plan)
    outcome = confirm(plan, first, seeds=1, steps=4)
    final = pd.read_parquet(place / "final.parquet")
    assert outcome.final is not None and final["settings"].nunique() == (
        1 if first.changes == {"weights.con_k": run.weights.con_k} else 2
    )
    best = final.loc[final["objective"].idxmin()]
    assert set(final["seed"]) == {1} and set(final["step"]) == {4}
    winner = open_bundle(outcome.winner)
    assert winner.run.seed == 1
    assert best["objective"] == pytest.approx(min(row["objective"] for row in winner.metrics() if "objective" in row))
    text = (place / "summary.md").read_text()
    assert f"## The final: {best['settings']} wins" in text and outcome.summary == text and "| weights.con_k | " in text

    register = {path: path.stat().st_mtime_ns for path in (place / "finished").glob("*.json")}
    assert len(register) == 2 + len(final), "all trials were finished"
    for path in [*(place / "final").glob("experiment_state*"), place / "final" / "tuner.pkl"]:
        path.unlink()  # what Tune knows is lost, as with a head that dies
    again = confirm(plan, first, seeds=1, steps=4)
    assert again.final is not None and not set(again.final["trial"]) & set(final["trial"])
    pd.testing.assert_series_equal(again.final["objective"], final["objective"])
    assert {path: path.stat().st_mtime_ns for path in (place / "finished").glob("*.json")} == register, (
        "nothing was trained again"
    )
    assert open_bundle(again.winner).digest == winner.digest


@pytest.mark.slow
def test_several_goals_make_a_front_and_limits_are_kept(run: Run, tmp_path: Path) -> None:
    goals = (goal("scene_error"), goal("parameters"))
    known = Search(run, ("model.width",), trials=1, directory=str(tmp_path)).run
    small = parameters(overlay(known, {"model.width": 16}))  # the smallest that is offered
    plan = Search(
        run,
        ("model.width", "weights.con_k"),
        trials=5,
        directory=str(tmp_path / "search"),
        goals=goals,
        limits={"parameters": 1.5 * small},
        start=[{"model.width": 32, "weights.con_k": 1.0}],
    )
    outcome = search(plan)
    table = outcome.table
    large = table[table["config/model.width"] >= 24]
    assert len(large) and set(large["status"]) == {"over the limit of parameters"} and not large["kept"].any()
    assert (large["step"] == 0).all() and large["parameters"].min() > 1.5 * small, "they were not trained"
    kept = table[table["kept"]]
    assert len(kept) and (kept["parameters"] <= 1.5 * small).all() and table["kept"].iloc[0] and table["front"].iloc[0]
    for _, row in kept.iterrows():
        better = (kept["scene_error"] < row["scene_error"]) & (kept["parameters"] <= row["parameters"])
        assert row["front"] == (not better.any())
    study = optuna.load_study(
        study_name="search", storage=JournalStorage(JournalFileBackend(str(tmp_path / "search/study.journal")))
    )
    assert len(study.directions) == 2
    told = {trial.user_attrs["excess"][0] > 0 for trial in study.trials}
    assert told == {True, False}, "Optuna knows which settings are out of bounds"


@pytest.mark.slow
def test_a_population_takes_over_states_and_changes_settings(run: Run, tmp_path: Path) -> None:
    longer = overlay(run, {"engine.steps": 12, "engine.evaluate_every": 2})
    place = tmp_path / "search"
    plan = Search(longer, ("optimisers.default.lr",), trials=4, directory=str(place), scheduler="pbt")
    outcome = search(plan)
    assert len(outcome.table) == 4 and (outcome.table["step"] == 12).all()
    low, high = 5e-5, 1e-3
    assert outcome.table["config/optimisers.default.lr"].between(low, high).all()
    rows = [[json.loads(line) for line in path.read_text().splitlines()] for path in place.glob("tune/*/result.json")]
    rates = [{row["config"]["optimisers.default.lr"] for row in own} for own in rows]
    assert any(len(own) > 1 for own in rates), "no trial changed its settings on the way"
    assert all(low <= rate <= high for own in rates for rate in own)
    assert open_bundle(outcome.winner).run.optimisers["default"].lr <= high


def parameters(run: Run) -> int:
    from recollect.training.session import domains_of
    from recollect.training.trainer import build

    return sum(parameter.numel() for parameter in build(run, domains_of(run, Store.open(run.data.store))).parameters())


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
    with pytest.raises(ValueError, match="cannot share a GPU"):
        Search(run, OVER, trials=1, directory=str(tmp_path), workers=2, gpus=0.5)
    with pytest.raises(ValueError, match="change its shapes: model.memory.items_per_class.car"):
        Search(run, OVER, trials=1, directory=str(tmp_path), scheduler="pbt")
    with pytest.raises(ValueError, match="alone is the objective"):
        Search(run, OVER, trials=1, directory=str(tmp_path), goals=(goal("scene_error"),))
