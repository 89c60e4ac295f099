"""A function over a store's pictures, shard by shard, so that a run that was killed goes on with what is there.

The result for each shard is a Parquet part in a work directory, a local path or any `pyarrow.fs` URI that all who work on it can
reach. Its name holds the shard and the pictures that were asked for; what else the results depend on (a model, a size) must be
in the name of the work directory. `recollect.cluster.map_shards` does the same on Ray workers.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from recollect.bundle import filesystem_of
from recollect.data.store import Store

Function = Callable[[tuple[str, ...]], pa.Table]  # ids -> their rows
Make = Callable[[Store], Function]  # called once a worker: the place to open a model
Progress = Callable[[int, int], object]  # pictures that are done, and all


class Share(NamedTuple):
    """The pictures of one shard that are wanted, in the order in which they were written."""

    part: str  # the file with their results
    ids: tuple[str, ...]


def shares(store: Store, ids: Iterable[str]) -> list[Share]:
    """These pictures of a store by the shard that they are in; shards without any are left out.

    Raises ValueError for an id that the store lacks.
    """
    wanted = set(ids)
    filesystem, root = filesystem_of(store.uri)
    found = []
    for shard in store.manifest.shards:
        table = pq.read_table(f"{root}/{shard.file}", columns=["id"], filesystem=filesystem)
        own = tuple(id for id in table["id"].to_pylist() if id in wanted)
        wanted.difference_update(own)
        if own:
            key = hashlib.blake2b("\0".join(own).encode(), digest_size=6).hexdigest()
            found.append(Share(f"{shard.file.removesuffix('.parquet')}-{key}.parquet", own))
    if wanted:
        store.record(min(wanted))  # says which ids there are
    return found


def map_here(
    make: Make, store: Store, todo: Sequence[Share], work: str | os.PathLike[str], progress: Progress = lambda done, total: None
) -> pa.Table:
    """The rows of all shares in their order, computed in this process where their part is not there yet."""
    missing = missing_parts(todo, work)
    done = total = sum(len(share.ids) for share in todo)
    done -= sum(len(share.ids) for share in missing)
    progress(done, total)
    function = make(store) if missing else None
    for share in missing:
        assert function is not None
        write_part(function, share, work)
        done += len(share.ids)
        progress(done, total)
    return read_parts(todo, work)


def missing_parts(todo: Sequence[Share], work: str | os.PathLike[str]) -> list[Share]:
    """The shares whose part is not in the work directory, which is made where there is none."""
    filesystem, root = filesystem_of(work)
    filesystem.create_dir(root, recursive=True)
    there = {info.base_name for info in filesystem.get_file_info(fs.FileSelector(root))}
    return [share for share in todo if share.part not in there]


def write_part(function: Function, share: Share, work: str | os.PathLike[str]) -> None:
    """Compute one share and put its part into the work directory, whole or not at all."""
    table = function(share.ids)
    assert table.num_rows == len(share.ids), "a function over shards answers with one row a picture"
    filesystem, root = filesystem_of(work)
    draft = f"{root}/.{share.part}-{uuid.uuid4().hex[:8]}"
    with filesystem.open_output_stream(draft) as stream:
        pq.write_table(table, stream, compression="zstd")
    filesystem.move(draft, f"{root}/{share.part}")


def read_parts(todo: Sequence[Share], work: str | os.PathLike[str]) -> pa.Table:
    """The rows of all shares in their order. Raises ValueError for a part that is not there."""
    filesystem, root = filesystem_of(work)
    gone = missing_parts(todo, work)
    if gone:
        raise ValueError(
            f"{gone[0].part} is not in {os.fspath(work)}, although it was computed: the work directory must be one that all "
            "workers share (a mounted folder or a URI)"
        )
    return pa.concat_tables(pq.read_table(f"{root}/{share.part}", filesystem=filesystem) for share in todo)


def remove_work(work: str | os.PathLike[str]) -> None:
    """Delete a work directory whose results are used."""
    filesystem, root = filesystem_of(work)
    filesystem.delete_dir(root)
