"""The processes of one Ray, told from those of every other by its folder; for tests that kill some of them."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path


def commands() -> dict[int, tuple[int, str]]:
    """pid -> (its parent, its command line) of all processes there are."""
    found = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            with suppress(OSError, ValueError):
                line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found[int(place.name)] = int((place / "stat").read_text().rsplit(")", 1)[1].split()[1]), line
    return found


def raylets(folder: str) -> list[int]:
    """The raylets of the Ray in `folder`."""
    return [pid for pid, (_, line) in commands().items() if folder in line and line.split()[0].endswith("/raylet")]


def workers(folder: str, title: str) -> list[int]:
    """Its workers by what they do, for instance `ray::Trial` (a trial)."""
    own = set(raylets(folder))
    return sorted(pid for pid, (parent, line) in commands().items() if parent in own and title in line)


def head(folder: str) -> list[int]:
    """Its head: the process that knows the cluster."""
    return [pid for pid, (_, line) in commands().items() if folder in line and line.split()[0].endswith("/gcs_server")]


def everything(folder: str) -> list[int]:
    """All that runs for it."""
    known = commands()
    own = {pid for pid, (_, line) in known.items() if folder in line and pid != os.getpid()}
    while True:
        more = {pid for pid, (parent, _) in known.items() if parent in own} - own
        if not more:
            return sorted(own)
        own |= more


def kill(pid: int) -> bool:
    """SIGKILL; whether there was something to kill."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
