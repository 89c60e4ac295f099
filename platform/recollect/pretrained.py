"""Weights that others published and a run names by file and SHA-256. Nothing is downloaded, and nothing is unpickled."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from recollect.config import Frozen


class WeightsFile(Frozen):
    """A safetensors file of published weights. Both fields are given, so that a run says which weights it was made with.

    `path` is local, and on a cluster the same on every machine; `sha256` is what `sha256sum` prints for the file.
    """

    path: str = ""
    sha256: str = ""


def read_weights(file: WeightsFile, field: str, source: str, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a weights file whose names begin with `prefix`, without it.

    Args:
        file: where the file is, and its digest.
        field: what the file is called in a configuration, for errors (`model.vgg16`).
        source: where the weights come from and how they become a safetensors file, for errors.
        prefix: leaves out what is not needed (a classifier), which is then not read.

    Raises ValueError where no file is given, it is not there, it is another one, or it holds no such tensors.
    """
    if not file.path:
        raise ValueError(f"{field}.path is empty; give the weights ({source}) as {field}.path=... and {field}.sha256=...")
    if not Path(file.path).is_file():
        raise ValueError(f"{field}.path: there is no file {file.path!r}; it holds the weights {source}")
    with Path(file.path).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if file.sha256.lower() != digest:
        said = f"not {file.sha256}" if file.sha256 else f"which the run must name: {field}.sha256={digest}"
        raise ValueError(f"{field}: the SHA-256 of {file.path} is {digest}, {said}")
    try:
        with safe_open(file.path, framework="pt") as stored:
            tensors = {name.removeprefix(prefix): stored.get_tensor(name) for name in stored.keys() if name.startswith(prefix)}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{field}.path: {file.path} is no safetensors file ({error}); it holds the weights {source}") from None
    if not tensors:
        raise ValueError(f"{field}.path: {file.path} has no tensors named {prefix}...; it holds the weights {source}")
    return tensors
