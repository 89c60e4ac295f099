"""Everything that determines a run, as frozen data, and the one way to change it.

A `Run` is JSON: data, model (a union by `name`), weights, optimisers, engine, evaluation, seed. `overlay(run, changes)` is
used by the command line (`a.b=c` strings), by Ray Tune (dotted names to values) and by recipes (nested dictionaries).
Unknown or ill-typed names are errors that list what exists.

Search ranges stand beside the defaults: `temperature: Annotated[float, Range(0.01, 1, log=True)] = 0.1`.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import json
import os
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

CATALOGUE = "trainables.catalogue:METHODS"  # where methods are listed; reached by name, so that nothing imports upward


@dataclass(frozen=True, slots=True)
class Range:
    """A search range for a number. `shape=True` marks fields that change the shapes of tensors (PBT refuses those)."""

    low: float
    high: float
    log: bool = False
    shape: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """A search range over named options."""

    options: tuple[Any, ...]
    shape: bool = False


class Frozen(BaseModel):
    """Base of every configuration: immutable, and a misspelt field or a number that is not finite is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Data(Frozen):
    """Which pictures, and how they are cut. Sizes are pixels of the square crop the networks see."""

    store: str = ""
    domains: tuple[str, ...] = ()
    size: Annotated[int, Field(ge=16)] = 64
    short_side: int | None = None  # resize the short side to this before cropping; None: to `size`
    flip: bool = True
    limit: int | None = None  # at most so many training pictures a domain
    known: tuple[str, ...] = ()  # attributes that a training picture must have said of it; the others are left out
    index: str = ""  # where neighbours are found, for methods that are guided by them
    library: str = ""  # the store with the index's pictures; empty: the one that the index names


class Parent(Frozen):
    """A trained bundle that a method starts from. The digest is filled in when training begins."""

    bundle: str = ""  # a path or URI
    digest: str = ""

    @field_validator("bundle")
    @classmethod
    def _absolute(cls, value: str) -> str:
        """Workers stand in other folders."""
        return value if not value or "://" in value else os.path.abspath(value)


class ModelConfig(Frozen):
    """Base of every method's configuration; `name` is its name in the catalogue."""

    name: str

    def suited_to(self, classes: tuple[str, ...]) -> Self:
        """This configuration for a store with these classes. Recipes call it; constructors stay strict."""
        return self

    def with_parents(self) -> Self:
        """This configuration with what its parents' bundles determine: their configurations and digests."""
        return self

    def inherited(self) -> frozenset[str]:
        """The fields that parents determine: nothing to search, and an error to set otherwise."""
        return frozenset()

    def parents(self) -> dict[str, str]:
        """The digests of the bundles it starts from, by what they are; for the manifest."""
        return {}

    def reads_classes(self) -> bool:
        """Whether the method trains on what boxes say, so that a domain without any would teach it something wrong."""
        return False


class Weights(Frozen):
    """Base of every method's loss weights: one float per term, by the term's own name. Zero: not computed."""

    @model_validator(mode="after")
    def _finite(self) -> Self:
        for name, value in self:
            if value < 0:
                raise ValueError(f"{name} is {value}; a weight is at least 0")
        return self


class Optimiser(Frozen):
    """One net's optimiser. `hold` is the share of the run with a constant rate; then it falls linearly to zero.

    `halve_every` halves it every so many steps, in the published way of MUNIT and RG-UNIT (with `hold` 1: nothing else).
    """

    kind: Literal["adam", "adamw", "sgd"] = "adam"
    lr: Annotated[float, Range(5e-5, 1e-3, log=True), Field(gt=0)] = 1e-4
    betas: tuple[float, float] = (0.5, 0.999)
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of sgd
    weight_decay: float = 1e-4
    hold: Annotated[float, Field(ge=0, le=1)] = 1.0
    halve_every: Annotated[int, Field(ge=1)] | None = None


class Engine(Frozen):
    """How the loop runs. `batch_size` is the JOINT batch per domain over all ranks, so results do not depend on their number."""

    steps: Annotated[int, Field(ge=0)] = 1000
    batch_size: Annotated[int, Field(ge=1)] = 4
    accumulate: Annotated[int, Field(ge=1)] = 1  # parts that each worker takes its batch in: less memory, the same step
    log_every: Annotated[int, Field(ge=1)] = 20
    evaluate_every: Annotated[int, Field(ge=0)] = 0  # 0: only at the end
    checkpoint_every: Annotated[int, Field(ge=0)] = 0  # 0: only at the end
    sample_every: Annotated[int, Field(ge=0)] = 0  # sample grids; 0: at every evaluation
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0  # decay of the averaged weights; 0: none are kept
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    channels_last: bool = False
    recompute: bool = False  # residual blocks compute their activations again in the backward pass: less memory, the same numbers
    compile: bool = False  # residual blocks are compiled, each size of picture once; eagerly where there is no compiler
    device: str = "auto"
    threads: int = 0  # torch threads a process; 0: torch's own choice
    feed: Literal["local", "ray"] = "local"  # who decodes: threads of each rank, or Ray tasks on any node; the batches are equal
    feed_ahead: Annotated[int, Field(ge=1)] = 4  # steps a rank has in the making; `local` does them with half as many threads
    feed_resource: str = ""  # of `ray`: a custom resource that nodes must have to decode; empty: any node with a free CPU
    mlflow: str = ""  # the address of an MLflow server that gets the numbers as well

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate={self.accumulate} does not divide batch_size={self.batch_size}")
        return self

    @model_validator(mode="after")
    def _resource_is_asked_for(self) -> Self:
        if self.feed_resource and self.feed != "ray":
            raise ValueError(f"feed_resource={self.feed_resource} says which nodes decode; it would do nothing without feed=ray")
        return self


class Evaluation(Frozen):
    """What the validation split is judged by. `metric` drives schedulers and the best checkpoint."""

    metric: str = "auto"  # scene_error where the store has truth, feature_distance where it has not
    source: str = ""  # translate from this domain ...
    target: str = ""  # ... to this one; empty: the run's first two domains
    pictures: Annotated[int, Field(ge=1)] = 24
    content_floor: Annotated[float, Field(ge=0, le=1)] = 0.3  # true nights keep 0.54 to 0.74, other scenes at most 0.12
    features: str = ""  # what scores are measured in while it trains: a bundle, or inception; empty: there are none

    @field_validator("features")
    @classmethod
    def _absolute(cls, value: str) -> str:
        """Workers stand in other folders; a published network is a word and no place."""
        return os.path.abspath(value) if value and "://" not in value and os.path.exists(value) else value


class Run(Frozen):
    """Everything that determines a run."""

    name: str = "run"
    data: Data = Data()
    model: SerializeAsAny[ModelConfig]
    weights: SerializeAsAny[Weights]
    optimisers: dict[str, Optimiser] = {"default": Optimiser()}
    engine: Engine = Engine()
    evaluation: Evaluation = Evaluation()
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _default_weights(cls, value: Any) -> Any:
        return {"weights": {}, **value} if isinstance(value, Mapping) else value

    @field_validator("model", mode="before")
    @classmethod
    def _model_by_method(cls, value: Any) -> Any:
        """Built with the `Config` of the method that `name` names."""
        return find_method(str(value.get("name", ""))).Config.model_validate(dict(value)) if isinstance(value, Mapping) else value

    @field_validator("weights", mode="before")
    @classmethod
    def _weights_by_method(cls, value: Any, info: ValidationInfo) -> Any:
        """Built with the `Weights` of the model's method."""
        if not isinstance(value, Mapping):
            return value
        if "model" not in info.data:  # the model is wrong, and the error says so; its weights cannot be judged
            return Weights()
        return find_method(info.data["model"].name).Weights.model_validate(dict(value))

    @field_validator("optimisers")
    @classmethod
    def _has_default(cls, value: dict[str, Optimiser]) -> dict[str, Optimiser]:
        if "default" not in value:
            raise ValueError("optimisers needs the entry 'default', which serves every net without one of its own")
        return value

    def optimiser(self, net: str) -> Optimiser:
        """The optimiser of the net with that name."""
        return self.optimisers.get(net, self.optimisers["default"])

    def direction(self) -> tuple[str, str]:
        """The (source, target) domains that evaluation translates between."""
        if len(self.data.domains) < 2:
            raise ValueError(f"run {self.name!r} has the domains {', '.join(self.data.domains) or 'none'}; a direction needs two")
        source = self.evaluation.source or self.data.domains[0]
        target = self.evaluation.target or next(name for name in self.data.domains if name != source)
        return source, target


def resolve(name: str) -> Any:
    """The object behind `module:attribute`, as uvicorn names applications.

    Raises ValueError with what the module offers when there is no such attribute.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"{name!r} is not of the form module:name, for instance experiments.streets:sunny_night")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and module_name.startswith(error.name):
            raise ValueError(f"there is no module {module_name!r} (from {name!r})") from None
        raise
    if not hasattr(module, attribute):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise ValueError(f"{module_name} has no {attribute!r}{did_you_mean(attribute, public)}")
    return getattr(module, attribute)


def methods() -> dict[str, str]:
    """The catalogue: method name -> `module:Class`."""
    listed: dict[str, str] = resolve(os.environ.get("RECOLLECT_CATALOGUE", CATALOGUE))
    return listed


def find_method(name: str) -> Any:
    """The Trainable class that the catalogue lists under `name`. Only listed classes are ever built."""
    listed = methods()
    if name not in listed:
        raise ValueError(f"there is no method {name!r}{did_you_mean(name, listed)}")
    return resolve(listed[name])


def preset(name: str, /, **sections: Any) -> Run:
    """A Run from `method:preset` (for instance `mguit:tiny`), with sections changed by nested dictionaries.

    Example: `preset("mguit:tiny", data={"store": "runs/streets", "domains": ("sunny", "night")})`.
    """
    method_name, _, preset_name = name.partition(":")
    method = find_method(method_name)
    known: dict[str, dict[str, Any]] = method.presets
    preset_name = preset_name or next(iter(known))
    if preset_name not in known:
        raise ValueError(f"{method_name} has no preset {preset_name!r}{did_you_mean(preset_name, known)}")
    start = merge({"model": {"name": method_name}}, known[preset_name])
    return validated(merge(start, sections), f"{name} with these changes is not valid")


def find_run(name: str) -> Run:
    """The Run behind `method:preset` (of the catalogue) or `module:function` (a recipe).

    Raises ValueError for names that are neither, and for functions that return something else.
    """
    head, _, attribute = name.partition(":")
    if head in methods():
        return preset(name)
    if not attribute or not _is_module(head):
        known = [f"{method}:{own}" for method in methods() for own in find_method(method).presets]
        raise ValueError(f"{name!r} is neither a method nor a recipe (module:function){did_you_mean(name, known)}")
    found = resolve(name)
    run = found() if callable(found) else found
    if not isinstance(run, Run):
        raise ValueError(f"{name} returned {type(run).__name__}, not a Run")
    return run


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):  # no such parent package; no such name at all
        return False


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `change` laid over it, dictionary by dictionary.

    >>> merge({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}})
    {'a': {'b': 1, 'c': 3}}
    """
    result = dict(base)
    for key, value in change.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def overlay(run: Run, changes: Mapping[str, Any] | Iterable[str]) -> Run:
    """`run` with fields changed.

    Args:
        run: where to start; it is not changed.
        changes: `["engine.steps=500"]`, `{"engine.steps": 500}` or `{"engine": {"steps": 500}}`.

    Raises:
        ValueError: a name that does not exist (with the names that do) or a value of the wrong type.
    """
    if not isinstance(changes, Mapping):
        changes = dict(_parse(text) for text in changes)
    data = run.model_dump()
    flat = _flatten(changes)
    for name, value in sorted(flat, key=lambda change: change[0] != "model.name"):  # the method first: it has the other fields
        _assign(data, name.split("."), value)
    return validated(data, "the changed run is not valid")


def validated(data: Mapping[str, Any] | str, lead: str) -> Run:
    """The Run of a dictionary or of JSON; ValueError in one line, `lead` and then what is wrong with which field."""
    try:
        return Run.model_validate_json(data) if isinstance(data, str) else Run.model_validate(data)
    except ValidationError as error:
        raise ValueError(f"{lead}: {'; '.join(_explain(item) for item in error.errors())}") from None


def _explain(item: Any) -> str:
    where, text = ".".join(map(str, item["loc"])), item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":  # our own words, which name the value already
        return f"{where}: {text}"
    hint = ', as JSON: ["a", "b"]' if item["type"] == "tuple_type" else ""
    return f"{where}: {text}{hint} (got {reprlib.repr(item['input'])})"


def _parse(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"{text!r} is not of the form name=value, for instance engine.steps=500")
    try:
        return name.strip(), json.loads(value)
    except json.JSONDecodeError:
        return name.strip(), value


def _flatten(changes: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in changes.items():
        name = f"{prefix}{key}"
        flat += _flatten(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return flat


def _assign(data: dict[str, Any], path: list[str], value: Any) -> None:
    if path == ["model", "name"]:  # another method: its own defaults, not the old one's fields and nets
        if value != data["model"]["name"]:
            method = find_method(str(value))
            data["model"], data["weights"] = method.Config(name=value).model_dump(), method.Weights().model_dump()
            data["optimisers"] = {"default": data["optimisers"]["default"]}
        return
    here, seen = data, "run"
    for depth, key in enumerate(path):
        if seen == "run.optimisers" and key not in here:  # a net's own optimiser starts from the default one
            here[key] = dict(here["default"])
        if key not in here:
            raise ValueError(f"{seen} has no {key!r} (from {'.'.join(path)!r}){did_you_mean(key, here)}")
        if depth == len(path) - 1:
            if isinstance(here[key], dict):
                raise ValueError(f"{'.'.join(path)!r} is a section{did_you_mean('', here[key], '; it holds: ')}")
            here[key] = value
            return
        if not isinstance(here[key], dict):
            raise ValueError(f"{seen}.{key} is a value, not a section (from {'.'.join(path)!r})")
        here, seen = here[key], f"{seen}.{key}"


def did_you_mean(name: str, known: Iterable[str], lead: str = "; known: ") -> str:
    """The tail of an error message: the closest known name, then all of them."""
    names = sorted(str(key) for key in known)
    close = difflib.get_close_matches(name[:100], names, n=1)  # its time grows with the length, and the name may be hostile
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint}{lead}{', '.join(names) or 'nothing'}"
