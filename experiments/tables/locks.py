"""Locks that the kernel gives back when their holder ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

PATIENCE = 30.0  # seconds that a new process waits for an old one to end


@contextlib.contextmanager
def at_work(place: str) -> Iterator[None]:
    """Keep other processes from the same table while this one is at work on it. At a remote place nothing keeps them."""
    if "://" in place:
        yield
        return
    with locked(Path(place) / "lock", PATIENCE):
        yield


@contextlib.contextmanager
def locked(path: Path, patience: float | None) -> Iterator[None]:
    """Hold the lock of a file. Raises ValueError where another keeps it longer than `patience` seconds (None: wait for it)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        deadline = None if patience is None else time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if deadline is not None and time.monotonic() > deadline:
                    raise ValueError(f"another process is at work in {path.parent}; wait, or take another --storage") from None
                time.sleep(0.2)
        yield
