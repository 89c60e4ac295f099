"""From a bundle and a store to an index: every picture is embedded once, by this process or by Ray workers, and resumably.

What is computed goes to `<out>.parts-<key>` shard by shard; whoever is killed goes on with what is there. The key names the
model, the store and how pictures are cut, so parts are never those of something else.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pyarrow import fs

from recollect.bundle import Bundle, absolute, filesystem_of, open_bundle
from recollect.config import Data, did_you_mean
from recollect.data.loader import Feed
from recollect.data.schema import SPLITS
from recollect.data.shards import Function, Progress, map_here, remove_work, shares
from recollect.data.store import Store
from recollect.data.transforms import joint_crop, to_unit
from recollect.retrieval.directory import back_end, change_index, copy_index, write_index
from recollect.retrieval.index import Index, Vectors
from recollect.retrieval.manifest import IndexManifest, Origin, Selection
from recollect.trainable import Embedder

BATCH = 32


class Embedding:
    """What a worker does: open the bundle, and turn the pictures of a share into rows of id, vector and attributes.

    Args:
        bundle: a path or URI that all workers can read.
        size, short_side: how pictures are cut.
        device: `auto` is the GPU where there is one.
    """

    def __init__(self, bundle: str, size: int, short_side: int | None, device: str = "auto") -> None:
        self.bundle, self.size, self.short_side, self.device = bundle, size, short_side, device

    def __call__(self, store: Store) -> Function:
        device = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        embed = embedder(open_bundle(self.bundle), device)

        def rows(ids: tuple[str, ...]) -> pa.Table:
            tables = [self._rows(store, embed, ids[start : start + BATCH]) for start in range(0, len(ids), BATCH)]
            return pa.concat_tables(tables)

        return rows

    def _rows(self, store: Store, embed: Callable[[torch.Tensor], Vectors], ids: Sequence[str]) -> pa.Table:
        records = store.records(ids)
        cut = [joint_crop(record, self.size, self.short_side, classes=store.domains.classes).image for record in records]
        vectors = embed(to_unit(torch.stack([image.as_subclass(torch.Tensor) for image in cut])))
        numbers = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        given = [list((record.attributes or {}).items()) for record in records]
        return pa.table({"id": list(ids), "vector": numbers, "attributes": pa.array(given, pa.map_(pa.string(), pa.int8()))})


def embedder(bundle: Bundle, device: str = "cpu") -> Callable[[torch.Tensor], Vectors]:
    """Pictures (B, 3, H, W) in [-1, 1] to vectors (B, E), by the bundle's method. Raises ValueError where it embeds nothing."""
    model = open_embedder(bundle).to(device)
    dtype = next(model.parameters()).dtype

    def embed(images: torch.Tensor) -> Vectors:
        with torch.inference_mode():
            found: Vectors = model.embed(images.to(device, dtype)).float().cpu().numpy()
        return found

    return embed


def open_embedder(bundle: Bundle) -> Any:
    """The bundle's method with its weights. Raises ValueError where it is no `Embedder`."""
    model = bundle.build()
    if not isinstance(model, Embedder):
        raise ValueError(
            f"{bundle.path} holds {bundle.run.model.name!r}, which does not embed pictures; an index needs a method that does "
            "(a retriever, or what is guided by one)"
        )
    return model


def build_index(
    bundle: str | os.PathLike[str],
    store: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    splits: Sequence[str] = ("train",),
    domains: Sequence[str] | None = None,
    limit: int | None = None,
    backend: str = "faiss",
    settings: dict[str, Any] | None = None,
    workers: int = 0,
    address: str | None = "local",
    device: str = "auto",
    progress: Progress = lambda done, total: None,
) -> IndexManifest:
    """Embed a store's pictures and make an index of them the current version at `out`.

    Args:
        bundle: a method that is an `Embedder`.
        store: an image store; pictures are cut as the bundle's run cut them.
        out: a local directory, or a `pyarrow.fs` URI to which the index is copied.
        splits, domains: which pictures; None: all domains.
        limit: at most so many training pictures a domain, the same as a run with this `data.limit` trains on.
        backend, settings: the index's kind, and what its `build` takes.
        workers: on Ray; 0: in this process, without Ray.
        address: where Ray is, if this process is not connected: `local` starts a private cluster.

    Raises ValueError for a bundle that embeds nothing, unknown names, and a selection without pictures.
    """
    kind = back_end(backend)  # before an hour of embedding
    opened, pictures = open_bundle(bundle), Store.open(store)
    chosen = _checked(pictures, Selection(splits=tuple(splits), domains=tuple(domains or ()), limit=limit))
    data = opened.run.data
    origin = Origin(
        model=open_embedder(opened).embedding_digest(),
        **_identity(pictures),
        size=data.size,
        short_side=data.short_side,
        splits=chosen.splits,
        domains=chosen.domains,
        limit=chosen.limit,
    )
    ids = _selected(pictures, chosen, origin)
    arguments = (os.fspath(out), workers, address, device, progress)
    table, work = _embedded(opened, absolute(os.fspath(bundle)), pictures, origin, ids, *arguments)
    index = kind.build(_vectors(table), table["id"].to_pylist(), _attributes(table, pictures), **(settings or {}))
    manifest = _written(index, origin, out)
    remove_work(work)
    return manifest


def add_to_index(
    index: str | os.PathLike[str],
    bundle: str | os.PathLike[str],
    store: str | os.PathLike[str] = "",
    *,
    splits: Sequence[str] | None = None,
    domains: Sequence[str] | None = None,
    limit: int | None = None,
    workers: int = 0,
    address: str | None = "local",
    device: str = "auto",
    progress: Progress = lambda done, total: None,
) -> tuple[IndexManifest, int]:
    """Embed those pictures of a store that the index lacks and add them; how many is the second answer.

    Args:
        store: the index's own unless it has grown: one that is given must hold every picture of the index, and is the index's
            from then on.
        splits, domains, limit: which pictures. What is not given is as the index was built; where nothing is, all selections
            that it was ever made of are taken again, in the store as it is now. A limit of 0 lifts the index's own.

    What was removed from the index and is chosen comes back. Raises ValueError when the store lacks a picture of the index, or
    the index belongs to another bundle.
    """
    opened = open_bundle(bundle)
    digest = str(open_embedder(opened).embedding_digest())
    added = 0

    def change(found: Index, manifest: IndexManifest) -> Origin:
        nonlocal added
        pictures = Store.open(store or manifest.origin.store)
        lost = next((id for id in found.ids() if id not in pictures), None)
        if lost is not None:
            raise ValueError(
                f"the store {pictures.uri} lacks {lost!r}, which is in the index; give one that holds all of its pictures"
            )
        origin = manifest.origin.model_copy(update=_identity(pictures))
        further = _further(origin, splits, domains, limit)
        chosen = [id for one in further for id in _selected(pictures, _checked(pictures, one), origin)]
        new = [id for id in dict.fromkeys(chosen) if id not in found]
        if new:
            arguments = (os.fspath(index), workers, address, device, progress)
            table, work = _embedded(opened, absolute(os.fspath(bundle)), pictures, origin, new, *arguments)
            attributes = {name: column for name, column in _attributes(table, pictures).items() if name in found.attributes}
            found.add(_vectors(table), table["id"].to_pylist(), attributes)
            remove_work(work)
        added = len(new)
        for one in further:
            origin = origin.with_selection(one)
        return origin

    return change_index(index, change, digest), added


def _identity(store: Store) -> dict[str, str]:
    """What an origin says of its store."""
    return {"store": absolute(store.uri), "store_digest": store.digest}


def _further(
    origin: Origin, splits: Sequence[str] | None, domains: Sequence[str] | None, limit: int | None
) -> tuple[Selection, ...]:
    """What to add to an index: what is not said is as it was built; all that it was made of where nothing is said."""
    if splits is None and domains is None and limit is None:
        return origin.taken()
    first = origin.taken()[0]
    return (
        Selection(
            splits=first.splits if splits is None else tuple(splits),
            domains=first.domains if domains is None else tuple(domains),
            limit=first.limit if limit is None else limit or None,
        ),
    )


def _checked(store: Store, selection: Selection) -> Selection:
    """The selection, if the store has such splits and domains."""
    for split in selection.splits:
        if split not in SPLITS:
            raise ValueError(f"there is no split {split!r}{did_you_mean(split, SPLITS)}")
    store.domains.only(selection.domains or store.domains.names)
    return selection


def _selected(store: Store, selection: Selection, origin: Origin) -> list[str]:
    """The ids of a selection. Raises ValueError where there are none."""
    names = selection.domains or store.domains.names
    found: list[str] = []
    for split in selection.splits:
        if split == "train" and selection.limit is not None:
            data = Data(domains=names, size=origin.size, short_side=origin.short_side, limit=selection.limit)
            feed = Feed(store, data, 1, 1, 0)
            found += [id for name in names for id in feed.ids[name]]
        else:
            found += [id for name in names for id in store.ids(split, name)]
    if not found:
        chosen = f"{', '.join(selection.splits) or 'no split'} of {', '.join(names)}"
        raise ValueError(f"there is no picture in {chosen} of {store.uri}; it has {store.manifest.counts}")
    return found


def _embedded(
    bundle: Bundle,
    uri: str,
    store: Store,
    origin: Origin,
    ids: Sequence[str],
    out: str,
    workers: int,
    address: str | None,
    device: str,
    progress: Progress,
) -> tuple[pa.Table, str]:
    """The rows of these pictures, and the work directory that they are in; `uri` is where others find the bundle."""
    key = hashlib.sha256(f"{origin.model} {origin.store_digest} {origin.size} {origin.short_side}".encode()).hexdigest()
    work = f"{out.rstrip('/') if '://' in out else os.path.abspath(out)}.parts-{key[:12]}"
    todo = shares(store, ids)
    if not workers:
        here = Embedding(os.path.abspath(bundle.path), origin.size, origin.short_side, device)
        return map_here(here, store, todo, work, progress), work
    from recollect.cluster import connected, map_shards  # Ray, which small uses do without

    make = Embedding(uri, origin.size, origin.short_side, device)  # not this process's copy of a remote bundle
    with connected(address):
        located = store if "://" in store.uri else Store.open(origin.store)  # workers have another current directory
        return map_shards(make, located, todo, work, workers=workers, progress=progress), work


def _vectors(table: pa.Table) -> Vectors:
    column = table["vector"].combine_chunks()
    found: Vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    return found


def _attributes(table: pa.Table, store: Store) -> dict[str, NDArray[np.float64]]:
    """Name -> values, NaN where a record does not say."""
    given = [dict(row) for row in table["attributes"].to_pylist()]
    names = store.domains.attributes
    return {name: np.array([row.get(name, np.nan) for row in given], np.float64) for name in names}


def _written(index: Index, origin: Origin, out: str | os.PathLike[str]) -> IndexManifest:
    if isinstance(filesystem_of(out)[0], fs.LocalFileSystem):
        return write_index(filesystem_of(out)[1], index, origin)
    with tempfile.TemporaryDirectory() as folder:
        write_index(Path(folder) / "index", index, origin)
        return copy_index(Path(folder) / "index", os.fspath(out))
