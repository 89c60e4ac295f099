"""Settings that are known to be good, for a search that starts warm: from an earlier search's table, or from a bundle."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from recollect.bundle import filesystem_of, open_bundle
from recollect.search.goals import OBJECTIVE
from recollect.search.space import Spread, inside, searchable

BEST = 5  # of an earlier search


def known_settings(places: Iterable[str], fields: Mapping[str, tuple[Spread, Any]]) -> list[dict[str, Any]]:
    """What earlier searches and runs say of these fields, brought inside their ranges; the best first, none twice.

    Args:
        places: each a search's `trials.parquet` (its best five count), a JSON file of names to values, or a bundle.

    Raises ValueError for places that are none of these, or say nothing about any of the fields.
    """
    found: list[dict[str, Any]] = []
    for place in places:
        mine = [own for settings in _read(place, fields) if (own := _inside(settings, fields))]
        if not mine:
            raise ValueError(f"{place} says nothing about {', '.join(fields)}")
        found += mine
    return list({json.dumps(own, sort_keys=True): own for own in found}.values())


def _read(place: str, fields: Mapping[str, tuple[Spread, Any]]) -> list[dict[str, Any]]:
    if place.endswith(".parquet"):
        table = pd.read_parquet(io.BytesIO(_bytes(place)))  # in the order of the search that wrote it: the best first
        names = [str(name) for name in table.columns if str(name).startswith("config/")]
        if OBJECTIVE not in table:
            raise ValueError(f"{place} is no table of trials: it has no column {OBJECTIVE!r}")
        rows = table[table[OBJECTIVE].notna()].head(BEST)[names].to_dict("records")
        return [{str(name).removeprefix("config/"): value for name, value in row.items()} for row in rows]
    if place.endswith(".json"):
        settings = json.loads(_bytes(place))
        if not isinstance(settings, dict):
            raise ValueError(f"{place} is no object of names to values")
        return [settings]
    run = open_bundle(place).run
    return [{name: value for name, (_, value) in searchable(run).items() if name in fields}]


def _bytes(place: str) -> bytes:
    filesystem, path = filesystem_of(place)
    try:
        with filesystem.open_input_stream(path) as stream:
            content: bytes = stream.read()
    except FileNotFoundError:
        raise ValueError(f"there is no {place}") from None
    return content


def _inside(settings: Mapping[str, Any], fields: Mapping[str, tuple[Spread, Any]]) -> dict[str, Any]:
    """The settings of the fields, and the run's own of those that are not among them."""
    if not set(settings) & set(fields):
        return {}
    own = {}
    for name, (spread, value) in fields.items():
        said = settings.get(name, value)
        said = value if said is None or said != said else said  # a table has NaN where a search had no such field
        own[name] = inside(spread, int(said) if isinstance(value, int) and not isinstance(said, str) else said)
    return own
