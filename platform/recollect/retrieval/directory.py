"""An index on the disk: a directory of versions, none of which ever changes.

    CURRENT              the name of the version that readers open; replaced by a rename
    v000002/             what the back-end saved, and
        manifest.json    what the index holds, what its vectors were made with, and the SHA-256 of every other file

A writer fills a hidden directory, writes the manifest last, renames it to the next version, and then CURRENT. So whoever is
killed at any moment leaves the version before; a reader that has one open keeps it, and the one before stays on the disk. One
writer works at a time: the others wait for the lock, which the system takes back from a writer that is killed.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyarrow import fs
from pydantic import ValidationError

import recollect
from recollect.bundle import filesystem_of
from recollect.config import Frozen, did_you_mean, resolve
from recollect.retrieval.index import SETTINGS, Index

FORMAT = 1
VERSION = re.compile(r"v[0-9]{6,}")
CURRENT, MANIFEST, LOCK = "CURRENT", "manifest.json", ".lock"
BACK_ENDS = {
    "exact": "recollect.retrieval.exact:ExactIndex",
    "faiss": "recollect.retrieval.faiss:FaissIndex",
    "milvus": "recollect.retrieval.milvus:MilvusIndex",
}


class Origin(Frozen):
    """What an index was made of: enough to embed a query, or further pictures, as its own were."""

    model: str  # `Embedder.embedding_digest`
    store: str = ""  # the URI of the image store
    store_digest: str = ""
    size: int = 0  # pixels of the square that was embedded
    short_side: int | None = None
    splits: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()  # none: all of the store's
    limit: int | None = None


class IndexManifest(Frozen):
    """One version of an index."""

    format: int = FORMAT
    recollect: str
    version: str
    back_end: str
    metric: str = "l2"
    dimension: int
    count: int
    added: int
    removed: int
    attributes: tuple[str, ...]
    settings: dict[str, Any]
    origin: Origin
    files: dict[str, str]  # name -> SHA-256

    @property
    def digest(self) -> str:
        """SHA-256 over the digests of all files: the identity of this version's content."""
        return hashlib.sha256(json.dumps(self.files, sort_keys=True).encode()).hexdigest()


def back_end(name: str) -> type[Index]:
    """The class of a back-end by name. Raises ValueError for unknown names, and where its packages are not installed."""
    if name not in BACK_ENDS:
        raise ValueError(f"there is no back-end {name!r}{did_you_mean(name, BACK_ENDS)}")
    found: type[Index] = resolve(BACK_ENDS[name])
    return found


def write_index(path: str | os.PathLike[str], index: Index, origin: Origin) -> IndexManifest:
    """Make `index` the current version at `path`, a local directory that is made where there is none.

    Raises ValueError when something is there already that is no index.
    """
    root = Path(path)
    with _writing(root):
        return _commit(root, index, origin)


def change_index(
    path: str | os.PathLike[str], change: Callable[[Index, IndexManifest], Origin], model: str | None = None
) -> IndexManifest:
    """Change a copy of the current version and make it the next one.

    Args:
        path: a local directory with an index.
        change: adds to and removes from the index, and returns the origin to record.
        model: the digest of the embedder that the index must belong to.

    An error in `change` leaves everything as it was. Raises ValueError as `open_index`.
    """
    root = Path(path)
    _current(root)  # before a lock makes a directory
    with _writing(root):
        index, manifest = open_version(root, model, mmap=False)
        return _commit(root, index, change(index, manifest))


def open_index(path: str | os.PathLike[str], model: str | None = None, mmap: bool = True, verify: bool = False) -> Index:
    """The index at a local path or `pyarrow.fs` URI (copied to a cache first).

    Args:
        path: where it is.
        model: the digest of the embedder whose vectors will be looked up; None: whoever asks knows.
        mmap: leave what is large on the disk.
        verify: compare every file with its SHA-256 first.

    Raises ValueError when there is no index, a file is missing or altered, or the index belongs to another embedder.
    """
    return open_version(path, model, mmap, verify)[0]


def open_version(
    path: str | os.PathLike[str], model: str | None = None, mmap: bool = True, verify: bool = False
) -> tuple[Index, IndexManifest]:
    """`open_index`, with the manifest of the version that was opened."""
    root = _local(path)
    while True:
        version = _current(root)
        try:
            manifest = _read_manifest(root / version)
            _check(root / version, manifest, verify)
            if model is not None and model != manifest.origin.model:
                raise ValueError(_foreign(path, manifest, model))
            return back_end(manifest.back_end).open(root / version, mmap), manifest
        except (ValueError, FileNotFoundError):
            if _current(root) == version:  # else writers were here meanwhile and took this version away
                raise


def read_manifest(path: str | os.PathLike[str]) -> IndexManifest:
    """The manifest of the current version. Raises ValueError when there is no index."""
    root = _local(path)
    return _read_manifest(root / _current(root))


def copy_index(source: str | os.PathLike[str], target: str) -> None:
    """Copy the current version to a local path or `pyarrow.fs` URI, CURRENT last."""
    root = _local(source)
    manifest = read_manifest(root)
    filesystem, there = filesystem_of(target)
    filesystem.create_dir(f"{there}/{manifest.version}", recursive=True)
    local = fs.LocalFileSystem()
    fs.copy_files(
        str(root / manifest.version), f"{there}/{manifest.version}", source_filesystem=local, destination_filesystem=filesystem
    )
    with filesystem.open_output_stream(f"{there}/{CURRENT}") as stream:
        stream.write(f"{manifest.version}\n".encode())


def _foreign(path: str | os.PathLike[str], manifest: IndexManifest, model: str) -> str:
    place, store = os.fspath(path), manifest.origin.store or "STORE"
    return (
        f"the index at {place} belongs to another embedder: its vectors were made with {manifest.origin.model}, and "
        f"the model here is {model}; `recollect index build BUNDLE --store {store} --out {place}` makes one for the bundle"
    )


def _current(root: Path) -> str:
    try:
        name = (root / CURRENT).read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"there is no index at {root} (no {CURRENT}); `recollect index build` makes one") from None
    if not VERSION.fullmatch(name):
        raise ValueError(f"{root / CURRENT} names {name[:40]!r}, which is no version of an index")
    return name


def _read_manifest(version: Path) -> IndexManifest:
    path = version / MANIFEST
    try:
        content = json.loads(path.read_text())
        if content.get("format") != FORMAT:
            raise ValueError(f"{path} has index format {content.get('format')!r}; this version of recollect reads {FORMAT}")
        return IndexManifest.model_validate(content)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; `recollect index build` makes a new index") from None
    except (ValidationError, json.JSONDecodeError, AttributeError) as error:
        raise ValueError(f"{path} is not the manifest of an index: {str(error).splitlines()[0]}") from None


def _check(version: Path, manifest: IndexManifest, verify: bool) -> None:
    for name, digest in manifest.files.items():
        path = version / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise ValueError(f"{version / MANIFEST} names {name!r}, which is outside of its directory")
        if not path.exists():
            raise ValueError(f"{path} is missing; `recollect index build` makes a new index")
        if verify and _sha256(path) != digest:
            raise ValueError(f"{path} is not the file that was written (its SHA-256 differs)")


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    """One writer at a time; refuses a directory of something else."""
    if root.exists() and (not root.is_dir() or _foreign_names(root)):
        raise ValueError(f"{root} is there already and is no index; choose another place")
    root.mkdir(parents=True, exist_ok=True)
    with (root / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _foreign_names(root: Path) -> list[str]:
    return [
        item.name for item in root.iterdir() if item.name[0] != "." and item.name != CURRENT and not VERSION.fullmatch(item.name)
    ]


def _commit(root: Path, index: Index, origin: Origin) -> IndexManifest:
    """Write the next version and let CURRENT name it. The lock is held."""
    for left in root.glob(".v*"):  # of writers that were killed
        shutil.rmtree(left, ignore_errors=True)
    versions = sorted(item.name for item in root.iterdir() if VERSION.fullmatch(item.name))
    before = _current(root) if (root / CURRENT).exists() else ""
    version = f"v{int(versions[-1][1:]) + 1 if versions else 1:06d}"
    work = root / f".{version}"
    index.save(work)
    stats = index.stats()
    saved = json.loads((work / SETTINGS).read_text())
    files = sorted(item for item in work.rglob("*") if item.is_file())
    manifest = IndexManifest(
        recollect=recollect.__version__,
        version=version,
        back_end=index.back_end,
        dimension=index.dimension,
        count=stats.count,
        added=saved["added"],
        removed=saved["removed"],
        attributes=index.attributes,
        settings=saved["settings"],
        origin=origin,
        files={str(item.relative_to(work)): _sha256(item) for item in files},
    )
    (work / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
    work.rename(root / version)
    pointer = root / f".{CURRENT}"
    pointer.write_text(f"{version}\n")
    pointer.replace(root / CURRENT)
    for old in set(versions) - {before}:  # readers may be opening the one before
        shutil.rmtree(root / old, ignore_errors=True)
    return manifest


def _local(path: str | os.PathLike[str]) -> Path:
    """A local directory with the index of `path`; of a remote one, only the current version is copied."""
    filesystem, root = filesystem_of(path)
    if isinstance(filesystem, fs.LocalFileSystem):
        return Path(root)
    if filesystem.get_file_info(f"{root}/{CURRENT}").type != fs.FileType.File:
        raise ValueError(f"there is no index at {os.fspath(path)} (no {CURRENT}); `recollect index build` makes one")
    cache = Path(tempfile.mkdtemp(prefix="recollect-index-"))
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    with filesystem.open_input_stream(f"{root}/{CURRENT}") as stream:
        (cache / CURRENT).write_bytes(stream.read())
    version = _current(cache)
    (cache / version).mkdir()
    local = fs.LocalFileSystem()
    fs.copy_files(f"{root}/{version}", str(cache / version), source_filesystem=filesystem, destination_filesystem=local)
    return cache


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
