"""A store whose pictures are translations: what a detector of the target domain trains on when only the source has boxes.

Whole pictures are translated, nothing is cut or moved, so boxes, region masks and scenes stay as true as they were; which style
mode a picture shows is not known any more. The manifest's `source` names the bundle and the store by their digests.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, islice

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from recollect.bundle import Bundle, open_bundle
from recollect.data.schema import SPLITS, Box, Record
from recollect.data.store import Manifest, Store, write_store
from recollect.data.transforms import decode, to_uint8, to_unit
from recollect.evaluation.grids import save_png
from recollect.pipeline import Pipeline
from recollect.retrieval.directory import read_manifest
from recollect.retrieval.guided import open_pipeline

BATCH = 8  # pictures of one size translated at once


def translate_store(
    bundle: str | os.PathLike[str] | Bundle,
    store: str | os.PathLike[str] | Store,
    out: str | os.PathLike[str],
    *,
    source: str,
    target: str,
    domain: str | None = None,
    splits: Sequence[str] = SPLITS,
    short_side: int | None = None,
    seed: int | None = None,
    device: str = "cpu",
    index: str = "",
    library: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Write the pictures of `source`, translated to `target`, as a store of one domain with the boxes they had.

    Translating takes long and may be killed: the new store is there when it is whole, and one of just this content that is
    there already is kept, so the call may be repeated. Ids are those of the originals.

    Args:
        bundle, store: the translator and the pictures.
        out: where the new store goes; a store that is there is replaced only by the same translation.
        domain: what the new store's domain is called; None: `<source>-to-<target>`.
        splits: those to translate; a store needs training pictures, so "train" is one of them.
        short_side: bring pictures to this short side first (the translator's own scale), and their boxes with them; None: they
            keep their size.
        seed: draw a random style for every picture, from this and its id; None: the method's own deterministic style.
        index, library: as `open_pipeline` takes them, for a translator that is guided by neighbours.
        progress: called with (pictures done, pictures in all).

    Raises ValueError as `open_pipeline`, for unknown domains and splits, and where `out` holds another store.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    origin = store if isinstance(store, Store) else Store.open(store)
    pipeline = open_pipeline(opened, device, index=index, library=library)
    for name in (source, target):
        pipeline.domains.index(name)
    strange = [split for split in splits if split not in SPLITS]
    if strange or "train" not in splits:
        raise ValueError(f"splits {', '.join(splits)}: a store has train, and may have val and test")
    style = "its own style" if seed is None else f"random styles from seed {seed}"
    size = "own size" if short_side is None else f"short side {short_side}"
    about = (
        f"{source} to {target} by {opened.run.model.name} {opened.digest}, {style}, {size}; {'+'.join(splits)} of {origin.digest}"
    )
    if pipeline.search is not None:
        about += f"; neighbours of index {read_manifest(index or opened.run.data.index).digest}"
    name = domain or f"{source}-to-{target}"
    kept = _present(out, about, name)
    if kept is not None:
        return kept
    ids = [id for split in splits for id in origin.ids(split, source)]
    records = (_scaled(origin.record(id), short_side) for id in ids)
    return write_store(
        out,
        _counted(_translated(pipeline, records, source, target, name, seed, f"by {opened.digest[:16]}"), len(ids), progress),
        domains=(name,),
        classes=origin.domains.classes,
        attributes=origin.domains.attributes,
        regions=origin.domains.regions,
        source=about,
    )


def _present(out: str | os.PathLike[str], about: str, domain: str) -> Manifest | None:
    """The store that is there already, if it is this one."""
    try:
        manifest = Store.open(out).manifest
    except ValueError:
        return None
    if manifest.source == about and manifest.domains == (domain,):
        return manifest
    raise ValueError(f"{out} holds another store ({manifest.source!r}); choose another place, or remove it")


def _counted(records: Iterator[Record], total: int, progress: Callable[[int, int], None] | None) -> Iterator[Record]:
    for done, record in enumerate(records, start=1):
        yield record
        if progress is not None:
            progress(done, total)


def _translated(
    pipeline: Pipeline, records: Iterator[Record], source: str, target: str, domain: str, seed: int | None, by: str
) -> Iterator[Record]:
    for _, alike in groupby(records, key=lambda record: (record.height, record.width)):
        while batch := list(islice(alike, BATCH)):
            images = to_unit(torch.stack([decode(record.image).as_subclass(Tensor) for record in batch]))
            seeds = None if seed is None else [_seed(seed, record.id) for record in batch]
            answer = to_uint8(pipeline(images, target, source, seeds=seeds).images.cpu())
            for record, image in zip(batch, answer, strict=True):
                yield replace(
                    record,
                    image=_png(image),
                    domain=domain,
                    mode=None,
                    source=f"{record.source} {source} to {target} {by}".strip(),
                )


def _seed(seed: int, id: str) -> int:
    """A style's seed that depends on the picture and not on which others are translated."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{id}".encode(), digest_size=4).digest(), "little")


def _png(image: Tensor) -> bytes:
    sink = io.BytesIO()
    save_png(image, sink)
    return sink.getvalue()


def _scaled(record: Record, short_side: int | None) -> Record:
    """The record with its short side at that many pixels: picture, boxes and region mask alike."""
    if short_side is None or min(record.height, record.width) == short_side:
        return record
    factor = short_side / min(record.height, record.width)
    height, width = (max(short_side, round(side * factor)) for side in (record.height, record.width))
    image = F.resize(decode(record.image), [height, width], antialias=True)
    boxes = record.boxes and tuple(_moved(box, (record.width, record.height), (width, height)) for box in record.boxes)
    regions = record.regions
    if regions is not None:
        mask = torch.from_numpy(np.array(Image.open(io.BytesIO(regions), formats=("PNG",))))[None]
        mask = F.resize(mask, [height, width], interpolation=InterpolationMode.NEAREST_EXACT)[0]
        sink = io.BytesIO()
        Image.fromarray(mask.numpy()).save(sink, "PNG")
        regions = sink.getvalue()
    return replace(record, image=_png(image.as_subclass(Tensor)), width=width, height=height, boxes=boxes, regions=regions)


def _moved(box: Box, old: tuple[int, int], new: tuple[int, int]) -> Box:
    """The box in a picture of another size (width, height); multiplied first, so that an edge stays exactly on the edge."""
    x1, x2 = (x * new[0] / old[0] for x in (box.x1, box.x2))
    y1, y2 = (y * new[1] / old[1] for y in (box.y1, box.y2))
    return Box(box.label, x1, y1, x2, y2)
