"""The best bundle of a search, deployed: on this machine, on a cluster, or as a file for `serve deploy`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from pyarrow import fs

from recollect.bundle import absolute, filesystem_of, list_bundles, open_bundle
from recollect.config import find_method
from recollect.trainable import Guided
from serve.args import checked_args

WINNER = "winner"
TEMPLATE = Path(__file__).with_name("config.yaml")


def find(what: str, storage: str) -> str:
    """The bundle that is meant: `winner` of a search's storage, or a path or URI.

    Raises ValueError when the search has no winner (yet), and says what is there.
    """
    if what != WINNER:
        if storage:
            raise ValueError(f"--from goes with `{WINNER}`; a bundle is given by its path alone")
        return absolute(what)
    if not storage:
        raise ValueError(f"the {WINNER} of which search? give --from STORAGE, as `recollect search --storage` had it")
    place = f"{storage.rstrip('/')}/{WINNER}"
    filesystem, root = filesystem_of(place)
    if filesystem.get_file_info(f"{root}/manifest.json").type == fs.FileType.NotFound:
        begun = filesystem.get_file_info(f"{os.path.dirname(root)}/search.json").type != fs.FileType.NotFound
        why = "the search has not ended" if begun else "no search was stored there"
        local = isinstance(filesystem, fs.LocalFileSystem) and Path(os.path.dirname(root)).is_dir()
        inside = ", ".join(str(path) for path in list_bundles(os.path.dirname(root))) if local else ""
        raise ValueError(f"there is no {WINNER} in {storage}: {why}" + (f"; bundles inside it: {inside}" if inside else ""))
    return absolute(place)


def index_of(bundle: str, given: str) -> str:
    """The index that a bundle is served with: the one given, or what its run was trained with; empty for a method without."""
    opened = open_bundle(bundle, verify=False)
    if not issubclass(find_method(opened.run.model.name), Guided):
        return absolute(given)
    return absolute(given or opened.run.data.index)


def config(bundle: str, port: int, insecure: bool = False, **options: Any) -> str:
    """A file for `serve deploy` that serves this bundle: serve/config.yaml with other arguments, checked.

    Raises ValueError for arguments that are none, and where a stranger could ask.
    """
    content = yaml.safe_load(TEMPLATE.read_text())
    args = checked_args(**{**content["applications"][0]["args"], "bundle": bundle, **options})
    if not (args.token_sha256 or insecure):
        raise ValueError(
            "the file would open the endpoint to everybody who reaches the cluster; set RECOLLECT_TOKEN, or --insecure"
        )
    content["applications"][0]["args"] = args.model_dump(mode="json")
    content["http_options"]["port"] = port
    return f"# serve deploy THIS_FILE -a http://HEAD:8265; see docs/serving.md\n{yaml.safe_dump(content, sort_keys=False)}"
