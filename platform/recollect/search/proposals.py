"""What a search tries next: Optuna's proposals, kept in its journal."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from ray.tune.search import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch

from recollect.search.goals import OBJECTIVE, excess
from recollect.search.space import inside

if TYPE_CHECKING:
    from recollect.search.tune import Search


def kept(journal: Path) -> JournalStorage:
    """Optuna's storage in a file, which optuna-dashboard opens."""
    return JournalStorage(JournalFileBackend(str(journal)))


def study(directory: str, journal: Path) -> optuna.Study:
    """The study of a search's directory."""
    return optuna.load_study(study_name=Path(directory).name, storage=kept(journal))


def algorithm(plan: Search, directory: str, journal: Path) -> Any:
    """Ray Tune's search algorithm for a plan: TPE, NSGA-II for several goals, or for PBT the first settings alone."""
    own = {name: inside(spread, value) for name, (spread, value) in plan.fields.items()}
    first = [own, *(dict(known) for known in plan.start if dict(known) != own)]
    if plan.scheduler == "pbt":
        return BasicVariantGenerator(points_to_evaluate=first, random_state=plan.seed)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # multivariate, constraints_func
    limited = {"constraints_func": _excess} if plan.limits else {}
    sampler: optuna.samplers.BaseSampler
    if plan.goals:
        sampler = optuna.samplers.NSGAIISampler(seed=plan.seed, population_size=max(4, min(50, plan.trials // 4)), **limited)
    else:
        beginning = max(4, plan.trials // 4)
        sampler = optuna.samplers.TPESampler(seed=plan.seed, multivariate=True, n_startup_trials=beginning, **limited)
    return Proposals(
        plan,
        metric=[aim.name for aim in plan.aims] if plan.goals else OBJECTIVE,
        mode=[aim.mode for aim in plan.aims] if plan.goals else plan.mode,
        points_to_evaluate=first,
        sampler=sampler,
        study_name=Path(directory).name,
        storage=kept(journal),
    )


def _excess(trial: optuna.trial.FrozenTrial) -> Sequence[float]:
    return tuple(trial.user_attrs.get("excess", (0.0,)))


class Proposals(OptunaSearch):
    """Optuna's proposals. It is told what a trial's best checkpoint scored, as the table is; Ray would tell the last report.

    After a kill Tune goes on from its latest snapshot, and the journal may know more: a trial that had ended there reports again,
    from a checkpoint, and is not told twice. One that a searcher older than Tune's own notes does not know is not told at all.
    """

    def __init__(self, plan: Search, **options: Any) -> None:
        super().__init__(**options)
        self.aim, self.limits, self.best = plan.aims[0], dict(plan.limits), dict[str, dict[str, Any]]()

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._keep(trial_id, result)
        if self._open(trial_id):
            super().on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if result:
            self._keep(trial_id, result)
        if not self._open(trial_id):
            return
        best = self.best.get(trial_id)
        if best and self.limits:
            self._ot_trials[trial_id].set_user_attr("excess", excess(result or best, self.limits))
        super().on_trial_complete(trial_id, best, error)

    def _open(self, trial_id: str) -> bool:
        """Whether the study waits for what becomes of a trial."""
        if trial_id not in self._ot_trials or trial_id in self._completed_trials:
            return False
        number = self._ot_trials[trial_id].number
        return not self._ot_study.get_trials(deepcopy=False)[number].state.is_finished()

    def _keep(self, trial_id: str, result: dict[str, Any]) -> None:
        if self.aim.name in result:
            held = self.best.get(trial_id)
            if held is None or self.aim.sign * result[self.aim.name] < self.aim.sign * held[self.aim.name]:
                self.best[trial_id] = dict(result)
