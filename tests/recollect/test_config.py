"""Configuration: the one way to change a Run, and what is said to whoever misspells a name."""

from __future__ import annotations

import sys
import types
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from recollect.config import (
    Data,
    ModelConfig,
    Optimiser,
    Run,
    did_you_mean,
    find_method,
    find_run,
    merge,
    overlay,
    preset,
    resolve,
    validated,
)
from recollect.config import Weights as WeightsBase


class Other:
    """A second method, so that there is something to switch to."""

    class Config(ModelConfig):
        name: str = "other"
        depth: int = 3

    class Weights(WeightsBase):
        rec: float = 2.0

    presets: ClassVar[dict[str, dict[str, Any]]] = {"plain": {"model": {"depth": 4}}}


@pytest.fixture
def two_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("methods_of_the_config_test")
    vars(module).update(Other=Other, METHODS={"mguit": "trainables.mguit:MGUIT", "other": f"{module.__name__}:Other"})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("RECOLLECT_CATALOGUE", f"{module.__name__}:METHODS")


@pytest.fixture(scope="module")
def tiny() -> Run:
    return preset("mguit:tiny", data={"store": "runs/streets", "domains": ("sunny", "night")})


def get(run: Run, name: str) -> Any:
    here: Any = run
    for key in name.split("."):
        here = here[key] if isinstance(here, dict) else getattr(here, key)
    return here


@pytest.mark.parametrize(
    "changes",
    [
        ["engine.steps=7", "model.memory.items_per_class.car=2", "data.domains=[\"night\", \"rainy\"]", "name=other"],
        {"engine.steps": 7, "model.memory.items_per_class.car": 2, "data.domains": ("night", "rainy"), "name": "other"},
        {"engine": {"steps": 7}, "model": {"memory.items_per_class.car": 2}, "data.domains": ["night", "rainy"], "name": "other"},
    ],
)  # fmt: skip
def test_three_ways_to_say_the_same(tiny: Run, changes: Any) -> None:
    changed = overlay(tiny, changes)
    assert (changed.engine.steps, changed.name, changed.data.domains) == (7, "other", ("night", "rainy"))
    assert get(changed, "model.memory.items_per_class") == {"background": 10, "car": 2, "person": 3, "sign": 2}
    undo = {
        "engine.steps": tiny.engine.steps,
        "model.memory.items_per_class.car": 5,
        "data.domains": ("sunny", "night"),
        "name": "run",
    }
    assert overlay(changed, undo) == tiny  # nothing else had changed


def test_strings_are_json_where_they_can_be(tiny: Run) -> None:
    changed = overlay(tiny, ["data.flip=false", "data.limit=null", "data.store=s3://b/x=y", "model.memory.update_rate=null"])
    assert (changed.data.flip, changed.data.limit, changed.data.store) == (False, None, "s3://b/x=y")
    assert get(changed, "model.memory.update_rate") is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("engine.stesp=1", ["run.engine has no 'stesp'", "did you mean 'steps'?", "batch_size, channels_last"]),
        ("engin.steps=1", ["run has no 'engin'", "did you mean 'engine'?", "seed, weights"]),
        ("model.memory.items_per_class.cat=1", ["did you mean 'car'?", "background, car, person, sign"]),
        ("weights.con_q=1", ["run.weights has no 'con_q'", "con_k", "self_rec"]),
        ("engine=1", ["'engine' is a section", "it holds: accumulate, batch_size"]),
        ("engine.steps.more=1", ["run.engine.steps is a value, not a section"]),
        ("engine.steps", ["is not of the form name=value", "engine.steps=500"]),
        ("engine.steps=many", ["engine.steps: ", "valid integer", "'many'"]),
        ("engine.steps=1.5", ["engine.steps: ", "fractional", "1.5"]),
        ("engine.steps=-1", ["engine.steps: ", "greater than or equal to 0"]),
        ("engine.precision=fp8", ["engine.precision: ", "'fp32', 'bf16' or 'fp64'"]),
        ("model.width=wide", ["model.width: ", "valid integer"]),
        ("model.memory.read_temperature=0", ["model.memory.read_temperature: ", "greater than 0"]),
        ("weights.kl=-0.5", ["weights: kl is -0.5", "at least 0"]),
        ("weights.kl=NaN", ["weights.kl: ", "finite"]),
        ("optimisers.default.lr=Infinity", ["optimisers.default.lr: ", "finite"]),
        ("data.domains=sunny,night", ["data.domains: ", '["a", "b"]']),
        ("model.name=mgiut", ["no method 'mgiut'", "did you mean 'mguit'?"]),
    ],
)
def test_a_wrong_change_is_one_line_that_names_the_field(tiny: Run, change: str, says: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        overlay(tiny, [change])
    text = str(caught.value)
    assert all(part in text for part in says), text
    assert "\n" not in text and len(text) < 400


def test_every_wrong_field_is_told_at_once(tiny: Run) -> None:
    with pytest.raises(ValueError, match=r"model.width: .*; engine.steps: "):
        overlay(tiny, {"engine.steps": "x", "model.width": "y"})


def test_a_run_cannot_be_changed_in_place(tiny: Run) -> None:
    for section, field in [(tiny, "seed"), (tiny.engine, "steps"), (tiny.model, "width"), (tiny.weights, "kl")]:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, field, 1)
    before = tiny.model_dump_json()
    overlay(tiny, {"model.memory.items_per_class.car": 9, "optimisers.generator.lr": 1e-3})
    assert tiny.model_dump_json() == before  # dictionaries inside are not shared with the changed run


@pytest.mark.parametrize("name", ["mguit:tiny", "mguit:paper", "mguit:released"])
def test_json_brings_back_an_equal_run(name: str) -> None:
    run = overlay(preset(name), {"optimisers.generator.lr": 3e-4, "data.short_side": 99})
    again = Run.model_validate_json(run.model_dump_json())
    assert again == run
    assert type(again.model) is find_method("mguit").Config and type(again.weights) is find_method("mguit").Weights
    assert Run.model_validate(run.model_dump()) == run


def test_presets_differ_and_take_sections() -> None:
    assert preset("mguit") == preset("mguit:tiny") != preset("mguit:paper")
    assert preset("mguit:paper").model_dump()["model"]["memory"]["value_dim"] == 256
    run = preset("mguit:tiny", seed=3, model={"memory": {"items_per_class": {"background": 4}}})
    assert (run.seed, get(run, "model.memory.items_per_class.background")) == (3, 4)
    assert get(run, "model.memory.value_dim") == 32  # the preset's, not the method's default
    with pytest.raises(ValueError, match=r"mguit:tiny .* engine\.stesp: ") as caught:
        preset("mguit:tiny", engine={"stesp": 3})
    assert "\n" not in str(caught.value)


def test_another_method_comes_with_its_own_defaults(two_methods: None) -> None:
    tiny = preset("mguit:tiny", seed=5)
    changed = overlay(tiny, ["model.name=other"])
    assert (changed.model, changed.weights) == (Other.Config(), Other.Weights())
    assert changed.seed == 5 and changed.engine == tiny.engine
    assert changed.optimisers == {"default": tiny.optimisers["default"]}  # content_critic is no net of `other`
    for order in (["model.name=other", "model.depth=9", "weights.rec=1"], ["weights.rec=1", "model.depth=9", "model.name=other"]):
        both = overlay(tiny, order)
        assert both.model_dump()["model"] == {"name": "other", "depth": 9} and dict(both.weights) == {"rec": 1.0}
    assert overlay(changed, ["model.name=mguit"]).model == find_method("mguit").Config()
    assert overlay(tiny, ["model.name=mguit"]) == tiny  # the method it is: nothing is reset
    assert find_run("other:plain").model == Other.Config(depth=4)


def test_a_run_is_found_by_preset_or_recipe() -> None:
    assert find_run("mguit:tiny") == preset("mguit:tiny")
    recipe = find_run("experiments.streets:sunny_night")
    assert recipe.direction() == ("sunny", "night") and recipe.model == preset("mguit:tiny").model


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mguti:tiny", ["neither a method nor a recipe", "did you mean 'mguit:tiny'?"]),
        ("mguti", ["neither a method nor a recipe", "mguit:tiny"]),
        ("mguit:tny", ["mguit has no preset 'tny'", "did you mean 'tiny'?", "paper, released, tiny"]),
        ("experiments.streets:suny_night", ["experiments.streets has no 'suny_night'", "did you mean 'sunny_night'?"]),
        ("experiments.streats:sunny_night", ["neither a method nor a recipe", "mguit:tiny"]),
        ("", ["neither a method nor a recipe"]),
        (":", ["neither a method nor a recipe"]),
        ("os:getcwd", ["os:getcwd returned str, not a Run"]),
    ],
)
def test_what_is_no_run_is_told(name: str, says: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        find_run(name)
    assert all(part in str(caught.value) for part in says), caught.value


def test_names_resolve_like_uvicorns() -> None:
    assert resolve("recollect.config:Run") is Run
    with pytest.raises(ValueError, match="not of the form module:name"):
        resolve("recollect.config")
    with pytest.raises(ValueError, match="there is no module 'no_such'"):
        resolve("no_such:thing")
    with pytest.raises(ValueError, match="did you mean 'overlay'"):
        resolve("recollect.config:overlai")


def test_only_the_catalogue_is_ever_built() -> None:
    for name in ("os:system", "trainables.mguit:MGUIT", "subprocess:Popen"):
        with pytest.raises(ValueError, match="there is no method"):
            Run.model_validate({"model": {"name": name}})


NUMBERS: dict[str, st.SearchStrategy[Any]] = {
    "engine.steps": st.integers(0, 10**9),
    "engine.batch_size": st.integers(1, 4096),
    "engine.ema": st.floats(0, 1, exclude_max=True),
    "data.size": st.integers(16, 4096),
    "data.limit": st.none() | st.integers(1, 10**6),
    "evaluation.content_floor": st.floats(0, 1),
    "model.width": st.integers(4, 512),
    "model.init_std": st.none() | st.floats(1e-6, 1),
    "model.memory.items_per_class.sign": st.integers(1, 100),
    "model.memory.read_temperature": st.floats(1e-6, 1e6),
    "model.memory.update_rate": st.none() | st.floats(0, 1),
    "weights.con_k": st.floats(0, 1e6),
    "weights.self_rec": st.floats(0, 1e300),
    "optimisers.default.lr": st.floats(1e-12, 10),
    "optimisers.generator.lr": st.floats(1e-12, 10),
    "optimisers.generator.betas": st.tuples(st.floats(0, 1), st.floats(0, 1)),
    "seed": st.integers(-(2**63), 2**63),
}
CHANGES = st.fixed_dictionaries({}, optional=NUMBERS)
KNOWN = st.fixed_dictionaries({}, optional={k: v for k, v in NUMBERS.items() if "generator" not in k})


@settings(max_examples=60, deadline=None)
@given(changes=CHANGES)
def test_every_change_reads_back(tiny: Run, changes: dict[str, Any]) -> None:
    changed = overlay(tiny, changes)
    assert {name: get(changed, name) for name in changes} == changes
    assert overlay(changed, changes) == changed  # saying it twice changes nothing
    assert Run.model_validate_json(changed.model_dump_json()) == changed
    untouched = {name for name in NUMBERS if name not in changes and not name.startswith("optimisers.generator")}
    assert all(get(changed, name) == get(tiny, name) for name in untouched)


@settings(max_examples=40, deadline=None)
@given(first=KNOWN, second=KNOWN)  # a net's new entry copies the default of its moment, so there order matters
def test_the_later_change_wins(tiny: Run, first: dict[str, Any], second: dict[str, Any]) -> None:
    assert overlay(overlay(tiny, first), second) == overlay(tiny, {**first, **second})


NESTED = st.recursive(st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=8)
TREES = st.dictionaries(st.sampled_from("abc"), NESTED, max_size=3)


@given(base=TREES, change=TREES)
def test_merge_keeps_what_is_not_changed(base: dict[str, Any], change: dict[str, Any]) -> None:
    result = merge(base, change)
    assert merge(base, {}) == base == merge({}, base) and merge(result, change) == result
    for key in base.keys() | change.keys():
        if key not in change or key not in base:
            assert result[key] == (change if key in change else base)[key]
        elif not isinstance(change[key], dict) or not isinstance(base[key], dict):
            assert result[key] == change[key]
        else:
            assert result[key] == merge(base[key], change[key])


def test_a_net_of_its_own_starts_from_the_default(tiny: Run) -> None:
    changed = overlay(tiny, ["optimisers.generator.lr=0.001"])
    assert changed.optimiser("generator") == tiny.optimisers["default"].model_copy(update={"lr": 0.001})
    assert changed.optimiser("style_encoder") == tiny.optimisers["default"]
    assert changed.optimiser("content_critic") == tiny.optimisers["content_critic"]
    with pytest.raises(ValueError, match="no run: optimisers: .*'default'"):
        validated({**tiny.model_dump(), "optimisers": {"generator": Optimiser()}}, "no run")


def test_the_direction_of_evaluation() -> None:
    run = preset("mguit:tiny", data={"domains": ("a", "b")})
    assert run.direction() == ("a", "b")
    assert overlay(run, ["evaluation.source=b"]).direction() == ("b", "a")
    assert overlay(run, ["evaluation.source=b", "evaluation.target=c"]).direction() == ("b", "c")


def test_sections_refuse_strangers() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        Data.model_validate({"stor": "x"})
    with pytest.raises(ValidationError, match="greater than or equal to 16"):
        Data(size=8)


def test_the_tail_of_an_error() -> None:
    assert did_you_mean("stps", ["steps", "seed"]) == "; did you mean 'steps'?; known: seed, steps"
    assert did_you_mean("zzz", []) == "; known: nothing"
