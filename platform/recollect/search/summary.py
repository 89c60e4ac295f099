"""A search's results for people: the trials in order, what mattered, and how the final ended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
import pandas as pd

from recollect.search.goals import OBJECTIVE, Goal, front, over

FEWEST = 4  # finished trials; from fewer, importances are noise


def ranked(rows: Sequence[Mapping[str, Any]], aims: Sequence[Goal], limits: Mapping[str, float]) -> pd.DataFrame:
    """The table of trials, the best first: those that keep the limits, by the first aim; with several, the front before others.

    Adds `kept`, whether a trial can win, and with several aims `front`, whether no other is better in all of them.
    """
    table = pd.DataFrame(list(rows))
    values = table[OBJECTIVE]
    scored = values.notna() & ~values.isin([math.inf, -math.inf]) & table["checkpoint"].notna()
    table["kept"] = [bool(s) and not over(row, limits) for s, row in zip(scored, rows, strict=True)]
    by = ["kept", OBJECTIVE]
    if len(aims) > 1:
        points = [[aim.sign * float(row.get(aim.name, aim.worst)) for aim in aims] for _, row in table.iterrows()]
        inside = [point for point, kept in zip(points, table["kept"], strict=True) if kept]
        best = iter(front(inside))
        table["front"] = [bool(kept) and next(best) for kept in table["kept"]]
        by = ["kept", "front", OBJECTIVE]
    ascending = [False] * (len(by) - 1) + [aims[0].mode == "min"]
    return table.sort_values(by, ascending=ascending, ignore_index=True)


def importances(study: optuna.Study, aim: Goal) -> dict[str, float]:
    """`shares` over the finished trials that could have won."""
    index = 0  # of the aim among the study's
    trials = [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state == optuna.trial.TrialState.COMPLETE
        and math.isfinite(trial.values[index])
        and max(trial.user_attrs.get("excess", [0.0]), default=0.0) <= 0
    ]
    return shares(
        [
            optuna.create_trial(params=trial.params, distributions=trial.distributions, value=trial.values[index])
            for trial in trials
        ],
        aim.mode,
    )


def shares(trials: Sequence[optuna.trial.FrozenTrial], mode: str) -> dict[str, float]:
    """The share of the objective's variance that each field explains (PED-ANOVA), the largest first.

    Args:
        trials: finished ones with one value each.
        mode: "min" or "max".

    Empty where there are fewer than four, or they do not differ.
    """
    if len(trials) < FEWEST or len({trial.value for trial in trials}) < 2:
        return {}
    study = optuna.create_study(direction="minimize" if mode == "min" else "maximize")
    study.add_trials(trials)
    found = optuna.importance.get_param_importances(study, evaluator=optuna.importance.PedAnovaImportanceEvaluator())
    return {name: float(value) for name, value in sorted(found.items(), key=lambda pair: -pair[1]) if math.isfinite(value)}


def summary(
    table: pd.DataFrame,
    aims: Sequence[Goal],
    began: Mapping[str, Any],
    weights: Mapping[str, float],
    final: pd.DataFrame | None = None,
    winner: str = "",
    metric: str = "auto",
) -> str:
    """Markdown: the trials, the best one's settings beside those that the search began from, what mattered, and the final."""
    goals = [aim.name for aim in aims if aim.name in table and aim.name != OBJECTIVE]
    shown = ["trial", OBJECTIVE, *goals, *(["front"] if "front" in table else []), "status", "step", "host"]
    lines = [
        f"# Search: {len(table)} trials",
        "",
        f"It {' and '.join(map(str, aims))}{'' if metric == 'auto' else f', which is {metric}'}.",
        "",
        *_head(shown),
    ]
    lines += [_line([row[name] for name in shown]) for _, row in table.iterrows()]
    heads = ["field", "as it began", f"trial {table.iloc[0]['trial']}", *(["importance"] if weights else [])]
    lines += ["", "## Settings of the best trial", ""]
    if weights:
        lines += ["Importance is the share of the objective's variance over all trials that a field explains.", ""]
    lines += _head(heads)
    for name, value in sorted(began.items(), key=lambda item: -weights.get(item[0], 0.0)):
        lines.append(_line([name, value, table.iloc[0][f"config/{name}"], *([weights.get(name, 0.0)] if weights else [])]))
    if final is not None:
        spread = final.groupby("settings")[OBJECTIVE].agg(["mean", "std"])
        lines += ["", f"## The final: {winner}", "", *_head(["settings", "seed", OBJECTIVE, "steps"])]
        lines += [_line([row["settings"], row["seed"], row[OBJECTIVE], row["step"]]) for _, row in final.iterrows()]
        lines += ["", *_head(["settings", "mean", "standard deviation"])]
        lines += [_line([str(name), row["mean"], row["std"]]) for name, row in spread.iterrows()]
    return "\n".join(lines) + "\n"


def _head(names: Sequence[str]) -> list[str]:
    return [_line(names), "|" + "---|" * len(names)]


def _line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "-"
    return "yes" if value is True else "" if value is False or value is None else str(value)
