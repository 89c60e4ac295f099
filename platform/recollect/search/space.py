"""Fields of a Run -> search distributions, by name.

A field is searchable when a `Range` or `Choice` stands in its annotation; dictionaries are searched by key
(`model.memory.items_per_class.car`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from typing import Any, get_args

from pydantic import BaseModel

from recollect.config import Choice, Range, Run, did_you_mean

Spread = Range | Choice


def searchable(run: Run) -> dict[str, tuple[Spread, Any]]:
    """Every searchable field of this run: dotted name -> (range, present value); none that a parent's bundle determines."""
    inherited = {f"model.{name}" for name in run.model.inherited()}
    return {name: found for name, found in _fields(run, "") if ".".join(name.split(".")[:2]) not in inherited}


def _fields(section: BaseModel, prefix: str) -> Iterable[tuple[str, tuple[Spread, Any]]]:
    for name, info in type(section).model_fields.items():
        value, path = getattr(section, name), f"{prefix}{name}"
        if isinstance(value, BaseModel):
            yield from _fields(value, f"{path}.")
        elif isinstance(value, Mapping):
            inner = _spread(get_args(info.annotation)[-1]) if get_args(info.annotation) else None
            for key, item in value.items():
                if isinstance(item, BaseModel):
                    yield from _fields(item, f"{path}.{key}.")
                elif inner is not None:
                    yield f"{path}.{key}", (inner, item)
        else:
            spread = _first(info.metadata) or _spread(info.annotation)
            if spread is not None:
                yield path, (spread, value)


def _spread(annotation: Any) -> Spread | None:
    """The range inside an annotation: `Annotated[int, Range(2, 12)]`, also as one member of a union."""
    found = _first(getattr(annotation, "__metadata__", ()))
    if found is not None:
        return found
    return next((inner for part in get_args(annotation) if (inner := _spread(part)) is not None), None)


def _first(metadata: Iterable[Any]) -> Spread | None:
    return next((item for item in metadata if isinstance(item, Range | Choice)), None)


def choose(run: Run, patterns: Iterable[str]) -> dict[str, tuple[Spread, Any]]:
    """The searchable fields that match these names or globs (`weights.*`, `model.memory.*_temperature`).

    Raises ValueError for a pattern that matches none, with the names there are.
    """
    known = searchable(run)
    chosen: dict[str, tuple[Spread, Any]] = {}
    for pattern in patterns:
        matching = {name: found for name, found in known.items() if fnmatch(name, pattern)}
        if pattern not in matching:  # a glob leaves out what is switched off; its own name switches it on
            matching = {name: found for name, found in matching.items() if found[1] != 0} or matching
        if not matching:
            raise ValueError(f"{pattern!r} names no searchable field{did_you_mean(pattern, known)}")
        chosen |= matching
    return chosen


def shape_changing(fields: Mapping[str, tuple[Spread, Any]]) -> list[str]:
    """The fields among these that change tensor shapes: a running trial cannot take them over (PBT)."""
    return [name for name, (spread, _) in fields.items() if spread.shape]


def inside(spread: Spread, value: Any) -> Any:
    """The point of a range that is nearest to `value`, for a search that starts at the present settings.

    >>> inside(Range(0.1, 1.0), 3.0), inside(Choice((16, 32)), 20)
    (1.0, 16)
    """
    if isinstance(spread, Choice):
        if value in spread.options:
            return value
        numeric = all(isinstance(option, int | float) for option in [*spread.options, value])
        return min(spread.options, key=lambda option: abs(option - value)) if numeric else spread.options[0]
    if value is None or not math.isfinite(value):
        return spread.low
    low, high = (math.ceil(spread.low), math.floor(spread.high)) if isinstance(value, int) else (spread.low, spread.high)
    return min(max(value, low), high)
