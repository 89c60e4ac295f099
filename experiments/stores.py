"""The stores that recipes and the demo work on when a user brings no pictures."""

from __future__ import annotations

import sys

from recollect.data.worlds import build_streets


def streets_store(uri: str, small: bool = False) -> str:
    """Draw the streets world at 64 px into `uri` (kept where it is there already); returns `uri`."""
    counts = {"train": 48, "val": 8, "test": 8} if small else {"train": 600, "val": 48, "test": 60}

    def progress(done: int, total: int) -> None:
        if done == total or done % 1000 == 0:
            print(f"drawing streets: {done}/{total} pictures", file=sys.stderr)

    build_streets(uri, size=64, **counts, progress=progress)
    return uri
