"""An index on the disk: a directory of versions, none of which ever changes.

    CURRENT              the name of the version that readers open; replaced by a rename
    v000002/             what the back-end saved, and
        manifest.json    what the index holds, what its vectors were made with, and the SHA-256 of every other file

A writer fills a hidden directory, writes the manifest last, renames it to the next version, and then CURRENT. So whoever is
killed at any moment leaves the version before; a reader that has one open keeps it, and the one before stays on the disk. One
writer works at a time: the others wait for the lock, which the system takes back from a writer that is killed. A remote place has
no lock: there one writer at a time copies an index, in the same order.

An index whose pictures are in a server (see `milvus.py`) has only its address in a version: what is said here of versions then
holds of the address and of the digest of the content, not of the content.
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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow import fs
from pydantic import ValidationError

import recollect
from recollect.bundle import filesystem_of
from recollect.config import did_you_mean, resolve
from recollect.retrieval.index import SETTINGS, Index
from recollect.retrieval.manifest import FORMAT
from recollect.retrieval.manifest import IndexManifest as IndexManifest
from recollect.retrieval.manifest import Origin as Origin

VERSION = re.compile(r"v[0-9]{6,}")
CURRENT, MANIFEST, LOCK = "CURRENT", "manifest.json", ".lock"
BACK_ENDS = {
    "exact": "recollect.retrieval.exact:ExactIndex",
    "faiss": "recollect.retrieval.faiss:FaissIndex",
    "milvus": "recollect.retrieval.milvus:MilvusIndex",
}


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

    An error in `change` leaves everything as it was, but for an index in a server: there each `add` and `remove` takes effect at
    once, and one before the error stays done while the version still names the old content. Raises ValueError as `open_index`.
    """
    root = Path(path)
    _current(*filesystem_of(root))  # before a lock makes a directory
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
    local = fs.LocalFileSystem()
    while True:
        version = _current(local, str(root))
        try:
            manifest = _read_manifest(local, f"{root}/{version}")
            _check(root / version, manifest, verify)
            if model is not None and model != manifest.origin.model:
                raise ValueError(_foreign(path, manifest, model))
            return back_end(manifest.back_end).open(root / version, mmap), manifest
        except (ValueError, FileNotFoundError):
            if _current(local, str(root)) == version:  # else writers were here meanwhile and took this version away
                raise


def read_manifest(path: str | os.PathLike[str]) -> IndexManifest:
    """The manifest of the current version, and nothing else of it. Raises ValueError when there is no index."""
    filesystem, root = filesystem_of(path)
    while True:
        version = _current(filesystem, root, os.fspath(path))
        try:
            return _read_manifest(filesystem, f"{root}/{version}")
        except ValueError:
            if _current(filesystem, root, os.fspath(path)) == version:
                raise


def copy_index(source: str | os.PathLike[str], target: str) -> IndexManifest:
    """Make the current version of an index the next one at `target`, a local path or `pyarrow.fs` URI; CURRENT last.

    Readers of an index that is there already keep its version, as with `change_index`. Raises ValueError when there is something
    else.
    """
    root = _local(source)
    filesystem, there = filesystem_of(target)
    if isinstance(filesystem, fs.LocalFileSystem):
        with _writing(Path(there)):
            return _copy(root, filesystem, there)
    if _foreign_names(_names(filesystem, there)):
        raise ValueError(f"{target} is there already and is no index; choose another place")
    return _copy(root, filesystem, there)


def _copy(root: Path, filesystem: fs.FileSystem, there: str) -> IndexManifest:
    """The current version of a local index as the next one of the index at `there`, if any."""
    local = fs.LocalFileSystem()
    manifest = read_manifest(root)
    names = _names(filesystem, there)
    versions = [name for name in names if VERSION.fullmatch(name)]
    before = _current(filesystem, there) if CURRENT in names else ""
    copied = manifest.model_copy(update={"version": _next(versions)})
    place = f"{there}/{copied.version}"
    filesystem.create_dir(place, recursive=True)
    fs.copy_files(str(root / manifest.version), place, source_filesystem=local, destination_filesystem=filesystem)
    _write(filesystem, f"{place}/{MANIFEST}", copied.model_dump_json(indent=2) + "\n")
    _write(filesystem, f"{there}/{CURRENT}", f"{copied.version}\n")
    for old in set(versions) - {before}:  # readers may be opening the one before
        filesystem.delete_dir(f"{there}/{old}")
    return copied


def _names(filesystem: fs.FileSystem, root: str) -> list[str]:
    """What is in a directory; nothing where there is none."""
    return [item.base_name for item in filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True))]


def _next(versions: list[str]) -> str:
    return f"v{1 + max((int(name[1:]) for name in versions), default=0):06d}"


def _read(filesystem: fs.FileSystem, path: str) -> str:
    with filesystem.open_input_stream(path) as stream:
        content: bytes = stream.read()
    return content.decode()


def _write(filesystem: fs.FileSystem, path: str, content: str) -> None:
    """A small file, on the disk by a rename (object stores show a file when it is whole)."""
    draft = path if not isinstance(filesystem, fs.LocalFileSystem) else f"{os.path.dirname(path)}/.{os.path.basename(path)}"
    with filesystem.open_output_stream(draft) as stream:
        stream.write(content.encode())
    if draft != path:
        filesystem.move(draft, path)


def _foreign(path: str | os.PathLike[str], manifest: IndexManifest, model: str) -> str:
    place, store = os.fspath(path), manifest.origin.store or "STORE"
    return (
        f"the index at {place} belongs to another embedder: its vectors were made with {manifest.origin.model}, and "
        f"the model here is {model}; `recollect index build BUNDLE --store {store} --out {place}` makes one for the bundle"
    )


def _current(filesystem: fs.FileSystem, root: str, said: str = "") -> str:
    """The name of the version to open; `said` is what the place is called in messages."""
    try:
        name = _read(filesystem, f"{root}/{CURRENT}").strip()
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"there is no index at {said or root} (no {CURRENT}); `recollect index build` makes one") from None
    if not VERSION.fullmatch(name):
        raise ValueError(f"{said or root}/{CURRENT} names {name[:40]!r}, which is no version of an index")
    return name


def _read_manifest(filesystem: fs.FileSystem, version: str) -> IndexManifest:
    path = f"{version}/{MANIFEST}"
    try:
        content = json.loads(_read(filesystem, path))
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
    if root.exists() and (not root.is_dir() or _foreign_names(item.name for item in root.iterdir())):
        raise ValueError(f"{root} is there already and is no index; choose another place")
    root.mkdir(parents=True, exist_ok=True)
    with (root / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _foreign_names(names: Iterable[str]) -> list[str]:
    return [name for name in names if name[0] != "." and name != CURRENT and not VERSION.fullmatch(name)]


def _commit(root: Path, index: Index, origin: Origin) -> IndexManifest:
    """Write the next version and let CURRENT name it. The lock is held."""
    for left in root.glob(".v*"):  # of writers that were killed
        shutil.rmtree(left, ignore_errors=True)
    local = fs.LocalFileSystem()
    versions = [item.name for item in root.iterdir() if VERSION.fullmatch(item.name)]
    before = _current(local, str(root)) if (root / CURRENT).exists() else ""
    version = _next(versions)
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
    _write(local, f"{root}/{CURRENT}", f"{version}\n")
    for old in set(versions) - {before}:  # readers may be opening the one before
        shutil.rmtree(root / old, ignore_errors=True)
    return manifest


def _local(path: str | os.PathLike[str]) -> Path:
    """A local directory with the index of `path`; of a remote one, only the current version is copied."""
    filesystem, root = filesystem_of(path)
    if isinstance(filesystem, fs.LocalFileSystem):
        return Path(root)
    version = _current(filesystem, root, os.fspath(path))
    cache = Path(tempfile.mkdtemp(prefix="recollect-index-"))
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    (cache / CURRENT).write_text(f"{version}\n")
    (cache / version).mkdir()
    local = fs.LocalFileSystem()
    fs.copy_files(f"{root}/{version}", str(cache / version), source_filesystem=filesystem, destination_filesystem=local)
    return cache


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
