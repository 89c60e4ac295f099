"""The bundle: the one artefact that training writes and everything else reads.

A bundle is a directory:

    config.json         the Run
    model.safetensors   weights and buffers
    ema.safetensors     averaged weights and copied buffers, where the run kept them
    metrics.jsonl       one JSON object a line: the history
    manifest.json       SHA-256 of every other file, the code's version, domains, digests of data and of parent bundles
    README.md           the card
    training.*          only in checkpoints: optimiser state and the step, so that training goes on bit-equal

A bundle is replaced in one step, by exchanging two directories, so that whoever is killed at any moment leaves the old bundle
or the new one under its name. Linux does that on its local filesystems; where it cannot be done (NFS, other systems) there is
an instant without a bundle, and a writer killed in it leaves the old one beside it, under a hidden name that the error tells.

Nothing in it is a pickle. Opening one builds only methods that the catalogue lists; it never imports a name found inside.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import recollect
from recollect.batch import Domains
from recollect.config import Frozen, Parent, Run, did_you_mean, find_method, validated
from recollect.trainable import Trainable

FORMAT = 1
MODEL, EMA = "model.safetensors", "ema.safetensors"


@dataclass(frozen=True)
class Bundle:
    """An opened and verified bundle."""

    path: Path
    run: Run
    domains: Domains
    manifest: dict[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 over the digests of all files: the identity of this bundle."""
        return str(self.manifest["digest"])

    def state(self, which: str = "best") -> dict[str, Tensor]:
        """Weights and buffers by name: `model`, `ema`, or `best` (EMA where it exists).

        Raises ValueError for other names, and for `ema` where none was kept.
        """
        kept = EMA in self.manifest["files"]
        names = {"model": MODEL, "best": EMA if kept else MODEL} | ({"ema": EMA} if kept else {})
        if which not in names:
            raise ValueError(f"{self.path} has no weights {which!r}{did_you_mean(which, names)}")
        state: dict[str, Tensor] = load_file(self.path / names[which])
        return state

    def metrics(self) -> list[dict[str, Any]]:
        """The history, oldest first."""
        path = self.path / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def build(self, which: str = "best") -> Trainable:
        """The method with its weights, on the CPU, in evaluation mode."""
        model: Trainable = find_method(self.run.model.name)(self.run.model, self.domains)
        model.load_state_dict(self.state(which), strict=True)
        return model.eval()


def write(
    path: str | os.PathLike[str],
    run: Run,
    domains: Domains,
    model: Mapping[str, Tensor],
    *,
    ema: Mapping[str, Tensor] | None = None,
    metrics: Iterable[Mapping[str, Any]] = (),
    parents: Mapping[str, str] | None = None,
    card: str = "",
    extra: Mapping[str, bytes] | None = None,
) -> Bundle:
    """Write a bundle so that a reader sees the old one or the new one, never a half.

    Args:
        path: a local directory; replaced when it exists.
        model, ema: state dictionaries.
        parents: name -> digest of what this was made from (the data, a frozen encoder's bundle).
        extra: further files by name (a checkpoint's optimiser state).

    Raises ValueError when something is there already that is no bundle, and OSError where the disk is full, or does not let
    itself be written to; then what was there is as it was.
    """
    final = Path(path)
    if final.exists() and not _expendable(fs.LocalFileSystem(), os.path.abspath(final)):
        raise ValueError(f"{path} is there already and is no bundle; choose another place")
    final.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    try:
        (work / "config.json").write_text(run.model_dump_json(indent=2) + "\n")
        _write_tensors(model, work / MODEL, final)
        if ema is not None:
            _write_tensors(ema, work / EMA, final)
        (work / "metrics.jsonl").write_text("".join(json.dumps(dict(row)) + "\n" for row in metrics))
        (work / "README.md").write_text(card or f"# {run.name}\n")
        for name, content in (extra or {}).items():
            (work / name).write_bytes(content)
        files = {item.name: _sha256(item) for item in sorted(work.iterdir())}
        manifest = {
            "format": FORMAT,
            "recollect": recollect.__version__,
            "method": run.model.name,
            "domains": asdict(domains),
            "parents": dict(parents or {}),
            "files": files,
            "digest": _digest(files),
        }
        (work / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        work.chmod(0o755)
        _replace(work, final)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return open_bundle(final, verify=False)


def _write_tensors(state: Mapping[str, Tensor], path: Path, final: Path) -> None:
    try:
        save_file(_own(state), path)
    except SafetensorError as error:
        raise OSError(f"cannot write {final}: {error}. What was there before is as it was") from None
    path.chmod((path.parent / "config.json").stat().st_mode)  # it is made for its owner alone; others serve and resume


def _own(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def _replace(new: Path, final: Path) -> None:
    if not final.exists():
        new.rename(final)
        return
    old = new
    if not _exchange(new, final):
        old = final.with_name(f".{final.name}-{uuid.uuid4().hex[:8]}-old")
        final.rename(old)
        new.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two directories in one step of the kernel; False where the system or the filesystem cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)  # Linux; Python has no name for it
    if rename is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def _expendable(filesystem: fs.FileSystem, root: str) -> bool:
    """Whether a new bundle may take the place of what is there: an empty directory, a bundle, half a copy of one."""
    if filesystem.get_file_info(root).type != fs.FileType.Directory:
        return False
    names = {info.base_name for info in filesystem.get_file_info(fs.FileSelector(root))}
    return not names or "config.json" in names


def open_bundle(uri: str | os.PathLike[str], verify: bool = True) -> Bundle:
    """Open a bundle from a local path or any `pyarrow.fs` URI (copied to a cache first).

    Raises ValueError when it is no bundle, a file is missing or altered, or its method is not in the catalogue.
    """
    path = localise(uri)
    while True:
        text = _manifest(path, uri)
        try:
            return _open(path, text, uri, verify)
        except (ValueError, FileNotFoundError):
            if _manifest(path, uri) == text:  # else a writer replaced it meanwhile
                raise


def open_parent(parent: Parent, method: str, child: str) -> Bundle:
    """Open the bundle that a method starts from.

    Raises ValueError where none is named, it holds another method, or it is not the one that it was (`parent.digest`).
    """
    if not parent.bundle:
        raise ValueError(f"{child} starts from a trained {method}: set model.parent.bundle to its bundle")
    opened = open_bundle(parent.bundle)
    if opened.run.model.name != method:
        raise ValueError(f"{child} starts from a trained {method}, and {parent.bundle} holds {opened.run.model.name!r}")
    if parent.digest and parent.digest != opened.digest:
        raise ValueError(
            f"{parent.bundle} is not the bundle that this {child} started from (its digest is {opened.digest[:12]}, not "
            f"{parent.digest[:12]}); start a new run"
        )
    return opened


def must_agree(own: Frozen, parent: Frozen, names: Iterable[str], parent_at: str, section: str = "model") -> None:
    """Raise ValueError for one of these fields that was set, and not to what the parent has."""
    for name in names:
        value, wanted = getattr(own, name), getattr(parent, name)
        if value not in (wanted, type(own).model_fields[name].default):
            raise ValueError(f"{section}.{name} comes from {parent_at}, where it is {wanted!r}; leave it out")


def _manifest(path: Path, uri: str | os.PathLike[str]) -> str:
    if (path / "manifest.json").exists():
        return (path / "manifest.json").read_text()
    found = ", ".join(item.name for item in list_bundles(path)) if path.is_dir() else ""
    inside = f"; bundles inside it: {found}" if found else ""
    kept = [] if path.exists() else sorted(item.parent for item in path.parent.glob(f".{path.name}-*-old/manifest.json"))
    beside = f"; its writer was killed while replacing it, the one before is {kept[-1]}" if kept else ""
    raise ValueError(f"{uri} is no bundle: it has no manifest.json{inside}{beside}")


def _open(path: Path, text: str, uri: str | os.PathLike[str], verify: bool) -> Bundle:
    try:
        manifest = dict(json.loads(text))
        if "files" not in manifest:
            raise ValueError("it names no files")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{uri} is no bundle: its manifest.json is not one of a bundle ({error})") from None
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{uri} has bundle format {manifest.get('format')!r}; this version of recollect reads {FORMAT}")
    if verify:
        _verify(path, manifest)
    names = {key: tuple(value) for key, value in manifest["domains"].items()}
    run = validated((path / "config.json").read_text(), f"{path}/config.json is not valid")
    return Bundle(path, run, Domains(**names), manifest)


def _verify(path: Path, manifest: Mapping[str, Any]) -> None:
    if _digest(manifest["files"]) != manifest.get("digest") or not {"config.json", MODEL} <= set(manifest["files"]):
        raise ValueError(f"{path}: manifest.json is not the file that was written (its digest differs)")
    for name, digest in manifest["files"].items():
        if Path(name).name != name:
            raise ValueError(f"{path}: the manifest names {name!r}, which is no plain file name")
        if not (path / name).exists():
            raise ValueError(f"{path}: {name} is missing")
        if _sha256(path / name) != digest:
            raise ValueError(f"{path}: {name} is not the file that was written (its SHA-256 differs)")


def list_bundles(folder: str | os.PathLike[str]) -> list[Path]:
    """The bundles directly inside a local folder, by name. Hidden ones are those of writers that were killed."""
    found = (item.parent for item in Path(folder).glob("*/manifest.json") if (item.parent / "config.json").exists())
    return sorted(path for path in found if not path.name.startswith("."))


def copy(source: str | os.PathLike[str], target: str) -> None:
    """Copy a bundle's files to a local path or any `pyarrow.fs` URI; the manifest goes last, so a half copy is no bundle.

    Raises ValueError when `source` is no bundle, or something is at `target` already that is none.
    """
    bundle = open_bundle(source)
    filesystem, root = filesystem_of(target)
    if isinstance(filesystem, fs.LocalFileSystem) and Path(root).resolve() == bundle.path.resolve():
        return
    if filesystem.get_file_info(root).type != fs.FileType.NotFound:
        if not _expendable(filesystem, root):
            raise ValueError(f"{target} is there already and is no bundle; choose another place")
        filesystem.delete_dir_contents(root)
    filesystem.create_dir(root, recursive=True)
    rest = [name for name in bundle.manifest["files"] if name != "config.json"]
    for name in ["config.json", *rest, "manifest.json"]:  # config.json first: half a copy is known as one
        with filesystem.open_output_stream(f"{root}/{name}") as stream:
            stream.write((bundle.path / name).read_bytes())


def filesystem_of(uri: str | os.PathLike[str]) -> tuple[fs.FileSystem, str]:
    """The filesystem and path of a local path or URI (`s3://`, `gs://`, `file://`)."""
    text = os.fspath(uri)
    if "://" in text:
        filesystem, path = fs.FileSystem.from_uri(text)
        return filesystem, path.rstrip("/")
    return fs.LocalFileSystem(), os.path.abspath(text)


def read_text(place: str) -> str | None:
    """A small text at a path or URI; None where there is none."""
    filesystem, path = filesystem_of(place)
    if filesystem.get_file_info(path).type != fs.FileType.File:
        return None
    with filesystem.open_input_file(path) as stream:
        return str(stream.read().decode())


def write_text(place: str, text: str) -> None:
    """Write a small text at a path or URI, whole or not at all; the folder is made."""
    write_bytes(place, text.encode())


def write_bytes(place: str, content: bytes) -> None:
    """The same of bytes."""
    filesystem, path = filesystem_of(place)
    folder, name = os.path.split(path)
    filesystem.create_dir(folder, recursive=True)
    with filesystem.open_output_stream(f"{folder}/.{name}") as stream:
        stream.write(content)
    filesystem.move(f"{folder}/.{name}", path)


def absolute(uri: str) -> str:
    """A local path as an absolute one, for workers that stand in other folders; URIs, and nothing, as they are."""
    return uri if not uri or "://" in uri else os.path.abspath(uri)


def localise(uri: str | os.PathLike[str]) -> Path:
    """A local directory with the files of `uri`; remote ones are copied to a temporary cache."""
    filesystem, root = filesystem_of(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        return Path(root)
    cache = Path(tempfile.mkdtemp(prefix="recollect-bundle-"))
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    fs.copy_files(root, str(cache), source_filesystem=filesystem, destination_filesystem=fs.LocalFileSystem())
    return cache


def _digest(files: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
