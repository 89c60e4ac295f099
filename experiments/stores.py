"""The stores that recipes and the demo work on when a user brings no pictures."""

from __future__ import annotations

import sys
from collections.abc import Callable

from recollect.data.worlds import build_faces, build_streets


def streets_store(uri: str, small: bool = False) -> str:
    """Draw the streets world at 64 px into `uri` (kept where it is there already); returns `uri`."""
    counts = {"train": 48, "val": 8, "test": 8} if small else {"train": 600, "val": 48, "test": 60}
    build_streets(uri, size=64, **counts, progress=_progress("streets"))
    return uri


def large_streets_store(uri: str) -> str:
    """Draw the streets world at 128 px into `uri` (kept where it is there already); returns `uri`."""
    build_streets(uri, size=128, train=2000, val=48, test=120, progress=_progress("streets"))
    return uri


def judged_streets_store(uri: str, size: int, test: int) -> str:
    """Draw the streets world into `uri` (kept where it is there already) with so many test scenes; returns `uri`."""
    build_streets(uri, size=size, train=600 if size <= 64 else 2000, val=48, test=test, progress=_progress("streets"))
    return uri


def streets(storage: str, small: bool) -> str:
    """The streets world below `storage`, at 64 px (`small`) or at 128; returns its URI."""
    return streets_store(f"{storage}/streets-64") if small else large_streets_store(f"{storage}/streets-128")


def faces(storage: str, small: bool) -> str:
    """The faces world below `storage`, at 64 px (`small`) or at 128; returns its URI."""
    uri = f"{storage}/faces-64" if small else f"{storage}/faces-128"
    size, train, test = (64, 2000, 300) if small else (128, 20_000, 500)
    build_faces(uri, size=size, train=train, val=60, test=test, progress=_progress("faces"))
    return uri


def _progress(world: str) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == total or done % 1000 == 0:
            print(f"drawing {world}: {done}/{total} pictures", file=sys.stderr)

    return progress
