"""What a search steers by, what it may cost, what it begins with, and what it says at the end."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import optuna
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recollect.bundle import open_bundle
from recollect.config import Run, overlay, preset
from recollect.data.store import Store
from recollect.evaluation.metrics import METRICS
from recollect.search import finished
from recollect.search.goals import Goal, excess, front, goal, over, parse_limits
from recollect.search.known import known_settings
from recollect.search.space import choose
from recollect.search.summary import importances, ranked, summary
from recollect.testing import largest_difference
from recollect.training import checkpoint
from recollect.training.session import suit, train


@given(st.sampled_from(sorted(METRICS)))
def test_a_metric_has_its_own_direction(name: str) -> None:
    better_high = METRICS[name].higher_is_better
    assert goal(name) == Goal(name, "max" if better_high else "min")
    with pytest.raises(ValueError, match="--maximise it" if better_high else "--minimise it"):
        goal(name, "min" if better_high else "max")


def test_what_is_no_goal_or_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'scene_error'"):
        goal("scene_eror")
    for text, words in {"speed=2": "parameters, seconds_per_step", "parameters": "a number", "parameters=-1": "positive"}.items():
        with pytest.raises(ValueError, match=words):
            parse_limits([text])


@given(
    st.dictionaries(st.sampled_from(["parameters", "seconds_per_step"]), st.floats(1e-3, 1e9), min_size=1),
    st.dictionaries(st.sampled_from(["parameters", "seconds_per_step"]), st.floats(0, 1e9)),
)
def test_a_cost_is_over_exactly_when_it_exceeds(limits: dict[str, float], costs: dict[str, float]) -> None:
    assert over(costs, limits) == [name for name in limits if name in costs and costs[name] / limits[name] - 1 > 0]
    assert len(excess(costs, limits)) == len(limits)


POINTS = st.lists(st.tuples(*[st.integers(0, 5)] * 2), min_size=1, max_size=12)


@given(POINTS)
def test_the_front_is_optunas(points: list[tuple[int, int]]) -> None:
    study = optuna.create_study(directions=["minimize", "minimize"])
    for point in points:
        study.add_trial(optuna.create_trial(params={}, distributions={}, values=[float(value) for value in point]))
    best = {trial.number for trial in study.best_trials}
    assert front(points) == [number in best for number in range(len(points))]


def row(trial: str, objective: float, **more: object) -> dict[str, object]:
    return {"trial": trial, "objective": objective, "status": "finished", "step": 4, "host": "h", "checkpoint": "c", **more}


def test_trials_are_ranked_by_what_can_win() -> None:
    rows = [row("a", 0.3), row("b", 0.1, parameters=9.0), row("c", math.nan), row("d", 0.2), row("e", math.inf)]
    table = ranked(rows, [Goal("objective", "min")], {"parameters": 5.0})
    assert list(table["trial"])[:2] == ["d", "a"] and list(table["kept"]) == [True, True, False, False, False]
    upward = ranked(rows, [Goal("objective", "max")], {})
    assert list(upward["trial"])[:3] == ["a", "d", "b"]
    both = ranked(
        [row("a", 0.3, x=1.0), row("b", 0.1, x=2.0), row("c", 0.4, x=3.0)], [Goal("objective", "min"), Goal("x", "min")], {}
    )
    assert list(both["trial"]) == ["b", "a", "c"] and list(both["front"]) == [True, True, False]


def test_the_importance_of_a_field_is_what_it_does() -> None:
    study = optuna.create_study()
    space = {"matters": optuna.distributions.FloatDistribution(0, 1), "idles": optuna.distributions.FloatDistribution(0, 1)}
    sampler = optuna.samplers.RandomSampler(seed=0)
    study.sampler = sampler
    for _ in range(40):
        trial = study.ask(space)
        study.tell(trial, trial.params["matters"] ** 2)
    bad = study.ask(space)
    bad.set_user_attr("excess", [1.0])
    study.tell(bad, math.inf)
    found = importances(study, Goal("objective", "min"))
    assert list(found) == ["matters", "idles"] and found["matters"] > 0.9
    assert importances(optuna.create_study(), Goal("objective", "min")) == {}
    table = ranked([row("t1", 0.25, **{"config/matters": 0.5, "config/idles": 1})], [Goal("objective", "min")], {})
    final = pd.DataFrame([{"settings": "best trial", "seed": seed, "objective": 0.2, "step": 8} for seed in (1, 2)])
    text = summary(table, [Goal("objective", "min")], {"idles": 0, "matters": 1.0}, found, final, "best trial wins")
    assert "It minimises objective." in text and "| t1 | 0.25 | finished | 4 | h |" in text
    assert text.index("| matters | 1 | 0.5 |") < text.index("| idles | 0 | 1 |") and "## The final: best trial wins" in text


@pytest.fixture(scope="module")
def run(store: Store) -> Run:
    model = {
        "width": 4,
        "critic_width": 4,
        "critic_layers": 2,
        "content_blocks": 1,
        "generator_blocks": 1,
        "memory": {"value_dim": 4},
    }
    engine = {"steps": 2, "batch_size": 1, "threads": 1}
    data = {"store": store.uri, "size": 32, "domains": ("sunny", "night")}
    return suit(preset("mguit:tiny", data=data, model=model, engine=engine, evaluation={"pictures": 2}), store)


@pytest.fixture(scope="module")
def trained(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("trained") / "run"
    train(overlay(run, {"weights.con_k": 0.5}), place)
    return place


def test_a_search_begins_with_what_is_known(run: Run, trained: Path, tmp_path: Path) -> None:
    fields = choose(run, ["weights.con_k", "model.memory.items_per_class.car"])
    cars = fields["model.memory.items_per_class.car"][1]
    table = pd.DataFrame({"objective": [0.1, 0.2, math.nan], "config/weights.con_k": [2.0, 99.0, 3.0], "config/other": [1, 2, 3]})
    table.to_parquet(tmp_path / "trials.parquet")
    (tmp_path / "best.json").write_text(json.dumps({"weights.con_k": 2.0, "model.memory.items_per_class.car": 7}))
    places = [str(tmp_path / "trials.parquet"), str(tmp_path / "best.json"), str(trained / "best")]
    assert [(point["weights.con_k"], point["model.memory.items_per_class.car"]) for point in known_settings(places, fields)] == [
        *((2.0, cars), (10.0, cars)),  # brought into the range; the failed trial says nothing
        *((2.0, 7), (0.5, cars)),
    ]
    assert known_settings(places[:1] * 2, fields) == known_settings(places[:1], fields)
    (tmp_path / "else.json").write_text('{"seed": 3}')
    for place, words in {"none.json": "there is no", "else.json": "says nothing about weights.con_k"}.items():
        with pytest.raises(ValueError, match=words):
            known_settings([str(tmp_path / place)], fields)


def test_training_reports_what_it_costs(run: Run, tmp_path: Path) -> None:
    from recollect.training.session import domains_of
    from recollect.training.trainer import build

    reports: list[dict[str, float]] = []
    train(run, tmp_path / "run", report=lambda metrics, path: reports.append(dict(metrics)))
    model = build(run, domains_of(run, Store.open(run.data.store)))
    assert reports[-1]["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert 0 < reports[-1]["seconds_per_step"] < 60


def test_a_checkpoint_can_go_on_with_other_settings(run: Run, trained: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    shutil.copytree(trained, place)
    before = open_bundle(place / "last")
    other = overlay(run, {"model.memory.read_temperature": 0.2, "engine.steps": 3})
    with pytest.raises(ValueError, match="another model"):
        train(other, place, resume=True)
    checkpoint.adopt(place / "last", other)
    after = open_bundle(place / "last")
    assert after.run == other and largest_difference(after.state("model"), before.state("model"))[0] == 0
    train(other, place, resume=True)
    assert json.loads((place / "last" / "training.json").read_text())["step"] == 3


def test_what_is_finished_is_known_by_its_digest(run: Run, tmp_path: Path) -> None:
    digest = finished.digest_of(run)
    assert digest == finished.digest_of(overlay(run, {"name": "other"})) != finished.digest_of(overlay(run, {"seed": 1}))
    assert finished.look(str(tmp_path), digest) is None
    found = finished.Finished({"objective": 0.1}, {"objective": 0.2}, str(tmp_path / "trial"))
    finished.note(str(tmp_path), digest, found)
    assert finished.look(str(tmp_path), digest) is None, "its checkpoint is gone"
    for number in (0, 1):
        (tmp_path / "trial" / f"checkpoint_00000{number}").mkdir(parents=True)
    assert finished.look(str(tmp_path), digest) == found and found.checkpoint().endswith("checkpoint_000001")
