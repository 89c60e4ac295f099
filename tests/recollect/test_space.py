"""Searchable fields by name, and points inside their ranges."""

from __future__ import annotations

import math
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recollect.config import Choice, ModelConfig, Range, Run, overlay, preset
from recollect.search.space import choose, inside, searchable, shape_changing


@pytest.fixture(scope="module")
def tiny() -> Run:
    return preset("mguit:tiny")


def test_ranges_stand_beside_the_defaults(tiny: Run) -> None:
    found = searchable(overlay(tiny, ["model.memory.items_per_class.car=7", "weights.con_k=0.3"]))
    assert found["model.memory.items_per_class.car"] == (Range(2, 12, shape=True), 7)
    assert found["model.memory.read_temperature"] == (Range(0.02, 1, log=True), 0.05)
    assert found["model.memory.update_rate"] == (Range(0.02, 0.5, log=True), 0.1)  # inside `... | None`
    assert found["model.memory.value_dim"] == (Choice((16, 32, 64), shape=True), 32)
    assert found["weights.con_k"] == (Range(0.1, 10, log=True), 0.3)
    assert found["optimisers.content_critic.lr"] == (Range(5e-5, 1e-3, log=True), tiny.optimisers["content_critic"].lr)
    assert not {"engine.steps", "seed", "name", "model.memory.assignment", "weights.critic_domain"} & found.keys()


def test_every_searchable_name_is_one_that_overlay_knows(tiny: Run) -> None:
    for name, (spread, value) in searchable(tiny).items():
        point = spread.options[-1] if isinstance(spread, Choice) else type(value)(spread.high)
        assert searchable(overlay(tiny, {name: point}))[name] == (spread, point)


def test_an_absent_rate_is_searchable_too(tiny: Run) -> None:
    spread, value = searchable(overlay(tiny, ["model.memory.update_rate=null"]))["model.memory.update_rate"]
    assert value is None and inside(spread, value) == 0.02


def test_ranges_in_unions_and_dictionaries_are_found() -> None:
    class Deep(ModelConfig):
        plain: int = 1
        maybe: Annotated[float, Range(0, 1)] | None = None
        outer: Annotated[int | None, Choice((1, 2))] = None
        by_key: dict[str, Annotated[float, Range(2, 3)] | None] = {"a": 2.5}
        unmarked: dict[str, int] = {"a": 1}

    run = preset("mguit:tiny").model_copy(update={"model": Deep(name="deep")})
    found = {name: spread for name, (spread, _) in searchable(run).items() if name.startswith("model.")}
    assert found == {"model.maybe": Range(0, 1), "model.outer": Choice((1, 2)), "model.by_key.a": Range(2, 3)}


def test_globs_choose(tiny: Run) -> None:
    assert set(choose(tiny, ["model.memory.*_temperature"])) == {
        f"model.memory.{name}_temperature" for name in ("read", "update", "contrast")
    }
    assert "weights.content_rec" not in choose(tiny, ["weights.*"]), "a glob leaves out what is switched off"
    assert set(choose(tiny, ["weights.content_rec"])) == {"weights.content_rec"}
    assert set(choose(tiny, ["weights.con_?", "seed*", "weights.kl"][::2])) == {"weights.con_k", "weights.con_v", "weights.kl"}
    everything = searchable(tiny)
    assert choose(tiny, ["*"]) == {name: found for name, found in everything.items() if found[1] != 0}
    assert choose(tiny, []) == {}


@pytest.mark.parametrize("pattern", ["weights.con_q", "seed", "weights.critic_*", "[", ""])
def test_a_glob_that_matches_nothing_is_refused(tiny: Run, pattern: str) -> None:
    with pytest.raises(ValueError, match="names no searchable field") as caught:
        choose(tiny, ["weights.kl", pattern])
    assert "model.memory.items_per_class.car" in str(caught.value)
    assert ("did you mean 'weights.con_" in str(caught.value)) == (pattern == "weights.con_q")


def test_what_changes_shapes_is_known(tiny: Run) -> None:
    fields = choose(tiny, ["model.*", "weights.*"])
    assert set(shape_changing(fields)) == {
        *("model.width", "model.memory.value_dim"),
        *(f"model.memory.items_per_class.{name}" for name in ("background", "car", "person", "sign")),
    }


INTS = st.tuples(st.integers(-1000, 1000), st.integers(0, 1000)).map(lambda pair: Range(pair[0], pair[0] + pair[1]))
FLOATS = st.tuples(st.floats(-1e6, 1e6), st.floats(0, 1e6)).map(lambda pair: Range(pair[0], pair[0] + pair[1]))
WIDE = st.tuples(st.floats(-100, 100), st.floats(1, 1e3)).map(lambda pair: Range(pair[0], pair[0] + pair[1]))


@given(spread=FLOATS | INTS, value=st.none() | st.floats())
def test_a_number_comes_inside(spread: Range, value: float | None) -> None:
    point = inside(spread, value)
    assert spread.low <= point <= spread.high
    if value is not None and spread.low <= value <= spread.high:
        assert point == value
    elif value is not None and math.isfinite(value):
        assert point == (spread.low if value < spread.low else spread.high)


@given(spread=INTS | WIDE, value=st.integers(-(10**6), 10**6))
def test_an_integer_stays_one_inside(spread: Range, value: int) -> None:
    point = inside(spread, value)
    assert isinstance(point, int) and spread.low <= point <= spread.high
    best = min(range(math.ceil(spread.low), math.floor(spread.high) + 1), key=lambda other: abs(other - value))
    assert point == best


@given(options=st.lists(st.integers(0, 99) | st.text(max_size=2), min_size=1, max_size=4), value=st.integers(0, 99) | st.none())
def test_a_choice_comes_from_the_options(options: list[Any], value: int | None) -> None:
    point = inside(Choice(tuple(options)), value)
    assert point in options and (value not in options or point == value)
    if value is not None and all(isinstance(option, int) for option in options):
        assert abs(point - value) == min(abs(option - value) for option in options)
