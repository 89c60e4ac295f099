"""Class maps: `{a data set's class: the store's class}`.

Classes that a map does not name are dropped and counted; several may become one. So two data sets whose maps lead to the same
names fit into one store.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from recollect.config import did_you_mean
from recollect.data.schema import BACKGROUND


def parse_classes(text: str) -> dict[str, str]:
    """`Pedestrian=person,Car=car` as a class map. Raises ValueError for anything else, naming the piece.

    >>> parse_classes("Car=car, Van=car")
    {'Car': 'car', 'Van': 'car'}
    """
    found: dict[str, str] = {}
    for piece in text.split(","):
        own, equals, name = (part.strip() for part in piece.partition("="))
        if not (own and equals and name):
            raise ValueError(f"a class map is written 'Pedestrian=person,Car=car'; {piece.strip()!r} is no OWN=NAME")
        if found.get(own, name) != name:
            raise ValueError(f"the class map makes {own!r} both {found[own]!r} and {name!r}")
        found[own] = name
    return found


def by_own_names(names: Iterable[str]) -> dict[str, str]:
    """The class map that keeps all of a data set's classes under their own names."""
    return {name: name for name in names}


def check_classes(classes: Mapping[str, str], known: Iterable[str], ignored: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The store's classes behind a class map: the background, then the map's in their order.

    Args:
        known: the data set's classes.
        ignored: names that no map may hold, and why.

    Raises ValueError for an empty map, a class that the data set does not have, and `background` as a class of objects.
    """
    names = tuple(known)
    if not classes:
        raise ValueError(f"the class map is empty; this data set has {', '.join(names)}")
    for own, name in classes.items():
        if own in (ignored or {}):
            raise ValueError(f"the class map names {own!r}: {(ignored or {})[own]}")
        if own not in names:
            raise ValueError(f"the class map names {own!r}, which this data set does not have{did_you_mean(own, names)}")
        if name == BACKGROUND:
            raise ValueError(f"the class map makes {own!r} the {BACKGROUND}; leave it out of the map, and its boxes are dropped")
    return (BACKGROUND, *dict.fromkeys(classes.values()))
