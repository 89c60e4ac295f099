"""Optuna's proposals inside Ray Tune, where what Tune knows after a kill is older than what the journal knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune.result import TRAINING_ITERATION

from recollect.config import preset
from recollect.search.goals import OBJECTIVE
from recollect.search.proposals import algorithm, study
from recollect.search.tune import Search


def begun(journal: Path, limits: tuple[tuple[str, float], ...] = ()) -> Any:
    """A searcher of one field, over a journal that may have something in it."""
    plan = Search(preset("mguit:tiny"), ("weights.con_k",), 4, str(journal.parent), limits=limits)
    found = algorithm(plan, str(journal.parent), journal)
    found.set_search_properties(OBJECTIVE, "min", {"weights.con_k": tune.uniform(0.1, 10)})
    return found


@pytest.mark.parametrize("limits", [(), (("parameters", 1e6),)])
def test_a_trial_that_ended_after_the_snapshot_reports_again_and_changes_nothing(
    tmp_path: Path, limits: tuple[tuple[str, float], ...]
) -> None:
    journal, costs = tmp_path / "study.journal", {"parameters": 5e5}
    first = begun(journal, limits)
    first.suggest("a")
    first.on_trial_result("a", {OBJECTIVE: 0.5, TRAINING_ITERATION: 1, **costs})
    first.save(str(tmp_path / "snapshot"))
    first.on_trial_result("a", {OBJECTIVE: 0.4, TRAINING_ITERATION: 2, **costs})
    first.on_trial_complete("a", {OBJECTIVE: 0.4, TRAINING_ITERATION: 2, **costs})
    first.suggest("b")  # what the snapshot does not know either

    second = begun(journal, limits)
    second.restore(str(tmp_path / "snapshot"))
    second.on_trial_result("a", {OBJECTIVE: 0.4, TRAINING_ITERATION: 2, **costs})
    second.on_trial_complete("a", {OBJECTIVE: 0.4, TRAINING_ITERATION: 2, **costs})
    second.on_trial_result("b", {OBJECTIVE: 0.9, TRAINING_ITERATION: 1, **costs})
    second.on_trial_complete("b", {OBJECTIVE: 0.9, TRAINING_ITERATION: 1, **costs})
    assert second.suggest("c") is not None
    second.on_trial_complete("c", {OBJECTIVE: 0.3, TRAINING_ITERATION: 1, **costs})
    trials = study(str(tmp_path), journal).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "RUNNING", "COMPLETE"]
    assert [trial.value for trial in trials] == [0.4, None, 0.3]
