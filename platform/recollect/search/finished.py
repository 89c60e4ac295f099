"""What is finished is not trained again: a search's register of finished trials, by digest.

A trial is known by its configuration without its name, and by the digest of its data. Whoever asks for the same in the same
directory, in another attempt or after the search's own state is lost, gets what came out at once.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from pyarrow import fs

from recollect.bundle import filesystem_of, write_text
from recollect.config import Run, overlay
from recollect.data.store import Store


@dataclass(frozen=True)
class Finished:
    """A finished trial: its best and its last report, and where its newest checkpoint lies (a folder or URI of checkpoints)."""

    best: dict[str, Any]
    last: dict[str, Any]
    checkpoints: str

    def checkpoint(self) -> str:
        """The newest checkpoint's URI; empty where somebody has removed them."""
        filesystem, root = filesystem_of(self.checkpoints)
        found = filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True))
        names = sorted(info.base_name for info in found if info.base_name.startswith("checkpoint_"))
        return f"{self.checkpoints}/{names[-1]}" if names else ""


def digest_of(run: Run) -> str:
    """What a trial is known by."""
    config = overlay(run, {"name": "", "data.store": ""}).model_dump(mode="json")
    for name in ("feed", "feed_ahead", "feed_resource", "recompute"):  # they change nothing, and older registers lack them
        del config["engine"][name]
    if not config["engine"]["compile"]:  # older registers lack it, too
        del config["engine"]["compile"]
    known = [config, Store.open(run.data.store).digest]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def look(directory: str, digest: str) -> Finished | None:
    """The finished trial of that digest; None where there is none, or its checkpoint is gone."""
    filesystem, path = filesystem_of(_place(directory, digest))
    try:
        with filesystem.open_input_stream(path) as stream:
            found = Finished(**json.loads(stream.read()))
    except FileNotFoundError:
        return None
    return found if found.checkpoint() else None


def note(directory: str, digest: str, finished: Finished) -> None:
    """Write a finished trial into the register, whole or not at all."""
    write_text(_place(directory, digest), json.dumps(asdict(finished), indent=2))


def _place(directory: str, digest: str) -> str:
    return f"{directory}/finished/{digest[:24]}.json"
