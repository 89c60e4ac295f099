"""The deployment that translates: it holds bundles, and answers many requests with one forward."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import ray.serve
import torch
from ray.serve.handle import DeploymentHandle
from torchvision import tv_tensors

from recollect import attributes
from recollect.config import Data, did_you_mean
from recollect.data.transforms import Cut, to_unit
from recollect.retrieval.directory import change_index
from recollect.retrieval.index import Index
from recollect.retrieval.library import Library
from recollect.retrieval.manifest import IndexManifest, Origin
from recollect.styles import StyleError
from recollect.trainable import AttributeWise
from serve import describe
from serve.batch import BatchTranslator, near, refused
from serve.forwards import Forwards
from serve.metrics import Meter
from serve.retrieval import RemoteIndex, ServedLibrary
from serve.work import Answer, Done, Found, Pixels, Refusal, Wish

logger = logging.getLogger("ray.serve")
EMBEDDED = 32  # pictures that are embedded at a time for the index


class Translator:
    """`BatchTranslator`s as a deployment (`serve.app.build` makes it one): all samples under way are translated together.

    Args:
        bundle: the one that is always in memory.
        bundles: further ones by name; each replica has those that were asked for last.
        shards: the retrievers; none: no index is served.
        loaded: how many further ones a replica holds at most.
    """

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self,
        bundle: str,
        bundles: Mapping[str, str],
        shards: Sequence[DeploymentHandle],
        *,
        device: str,
        threads: int,
        max_batch_size: int,
        batch_wait_s: float,
        max_pixels: int,
        loaded: int,
    ) -> None:
        torch.set_num_threads(threads)
        self.bundles, self.shards, self.device, self.max_pixels = bundles, tuple(shards), device, max_pixels
        self.meter, self.loop = Meter(), asyncio.get_running_loop()
        self.forwards = Forwards(max_batch_size, batch_wait_s, self.meter)
        self.model = await self._open("", bundle)
        self.items: dict[str, Any] = {}  # by digest of a bundle
        if bundles:
            self.further = ray.serve.multiplexed(max_num_models_per_replica=loaded)(self._further())

    def _further(self) -> Any:
        async def further(name: str) -> BatchTranslator:
            return await self._open(name, self.bundles[name])

        return further

    async def _open(self, name: str, bundle: str) -> BatchTranslator:
        library = self._library if self.shards else None
        model = await asyncio.to_thread(BatchTranslator, bundle, self.device, self.max_pixels, library, self.meter)
        model.name = name or model.name
        loaded = self.meter.models.labels(model.name)
        loaded.inc()
        weakref.finalize(model, loaded.dec)
        return model

    def _library(self, data: Data, embedder: str) -> Library:
        return ServedLibrary(RemoteIndex(self.shards, self.loop), data, embedder)

    async def _named(self, name: str) -> BatchTranslator | Refusal:
        """The model of this name; the first one where it is empty."""
        if name in ("", self.model.name):
            return self.model
        if name not in self.bundles:
            known = [self.model.name, *self.bundles]
            return Refusal("unknown_model", f"there is no model {name[:80]!r}{did_you_mean(name[:80], known)}", "see /v1/model")
        found: BatchTranslator = await self.further(name)
        return found

    async def translate(self, name: str, picture: Pixels, wish: Wish) -> Answer | Refusal:
        """Translate one picture (3, H, W), once for each sample."""
        model = await self._named(name)
        if isinstance(model, Refusal):
            return model
        refusal = model.refusal(wish)
        if refusal:
            return refusal
        results = await self.forwards(model, model.jobs(picture, wish))
        done = [result for result in results if isinstance(result, Done)]
        for result in results:
            if isinstance(result, StyleError | attributes.TargetError):  # what only the pictures themselves could tell
                return refused(result)
            if isinstance(result, Exception):
                raise result
        return Answer(tuple(done), model.name, model.digest, _version(model) if done[0].neighbours is not None else "")

    async def retrieve(
        self,
        name: str,
        picture: Pixels,
        k: int,
        changes: Mapping[str, float],
        target: str | None,
        where: Mapping[str, int],
        exclude: Collection[str],
        thumbnails: bool,
    ) -> Found | Refusal:
        """The pictures of the index that are nearest to one (3, H, W), or to it with other attributes."""
        model = await self._named(name)
        if isinstance(model, Refusal):
            return model
        if model.library is None:
            return _no_index(model)
        question = (picture, k, changes, target, where, exclude, thumbnails)
        return await asyncio.to_thread(_retrieved, model, model.library, *question)

    async def card(self, name: str = "") -> dict[str, Any] | Refusal:
        """What this replica translates with."""
        model = await self._named(name)
        return model if isinstance(model, Refusal) else {**describe.card(model), "models": [self.model.name, *self.bundles]}

    async def targets(self, name: str = "") -> dict[str, Any] | Refusal:
        """What a model can be asked for."""
        model = await self._named(name)
        return model if isinstance(model, Refusal) else describe.targets(model)

    async def memory(self, name: str = "") -> tuple[str, tuple[describe.MemoryItem, ...]] | Refusal:
        """The model's name and the items of its memory; computed once."""
        model = await self._named(name)
        if isinstance(model, Refusal):
            return model
        if model.digest not in self.items:
            self.items[model.digest] = await asyncio.to_thread(describe.items, model) or ()
        return model.name, self.items[model.digest]

    async def change(self, name: str, added: Sequence[str], removed: Sequence[str]) -> IndexManifest | Refusal:
        """Take pictures of the index's store in, and out, as a new version of the index."""
        model = await self._named(name)
        if isinstance(model, Refusal):
            return model
        if model.library is None or not self.shards:
            return _no_index(model)
        about = await self.shards[0].about.remote()
        try:
            return await asyncio.to_thread(_changed, model, model.library, about["uri"], added, removed)
        except ValueError as error:
            return Refusal("bad_ids", str(error), "GET /v1/index tells which store the index is of")

    async def measured(self) -> list[Any]:
        """The samples of this replica."""
        context = ray.serve.get_replica_context()
        return self.meter.collect(context.deployment, context.replica_tag)

    def check_health(self) -> None:
        """Called by Ray Serve; a replica that raises here is replaced."""
        self.model.check()


def _version(model: BatchTranslator) -> str:
    return model.library.index.version if isinstance(model.library, ServedLibrary) else ""


def _no_index(model: BatchTranslator) -> Refusal:
    message = f"{model.name} is served without an index"
    return Refusal("no_index", message, "serve a model that retrieves, with `index` in the server's arguments", 404)


def _retrieved(
    model: BatchTranslator,
    library: Library,
    picture: Pixels,
    k: int,
    changes: Mapping[str, float],
    target: str | None,
    where: Mapping[str, int],
    exclude: Collection[str],
    thumbnails: bool,
) -> Found | Refusal:
    wish = Wish(target=target, attributes=changes) if target or changes else Wish(target=model.pipeline.domains.names[0])
    refusal = model.refusal(wish)
    if refusal:
        return refusal
    pipeline, net = model.pipeline, model.pipeline.model
    image = to_unit(_cut(picture, library))[None]
    with torch.inference_mode():
        placed = image.to(pipeline.device, pipeline.dtype)
        if changes or (target and isinstance(net, AttributeWise) and target in net.style_attributes()):
            wanted = attributes.choose(pipeline, image, changes or {str(target): 1.0}).attributes
            assert wanted is not None
            vectors = net.query(placed, wanted.to(placed))  # type: ignore[operator]  # an Embedder with attributes has it
        else:
            vectors = net.embed(placed)  # type: ignore[operator]
    try:
        found = library.index.search(vectors, k, where, [tuple(exclude)])
    except ValueError as error:
        return Refusal("bad_search", str(error), "GET /v1/index tells how many pictures there are, and their attributes")
    shown = library.pictures([id for id in found.ids[0] if id]) if thumbnails else None
    return Found(near(found, 0, shown), model.name, model.digest, _version(model))


def _cut(picture: Pixels, library: Library) -> torch.Tensor:
    """The picture as the library's own are cut: its short side brought to theirs, its middle."""
    height, width = picture.shape[1:]
    cut = Cut.draw(height, width, library.size, library.short_side, False, None)
    image: torch.Tensor = cut(tv_tensors.Image(torch.tensor(picture))).as_subclass(torch.Tensor)
    return image


def _changed(model: BatchTranslator, library: Library, uri: str, added: Sequence[str], removed: Sequence[str]) -> IndexManifest:
    """The next version of the index at `uri`. Raises ValueError for ids that are not there, or there already."""

    def change(index: Index, manifest: IndexManifest) -> Origin:
        index.remove(removed)
        if added:
            index.add(_embedded(model, library, added), added, _known(library, added, index.attributes))
        return manifest.origin

    return change_index(uri, change, library.origin.model if library.origin else None)


def _embedded(model: BatchTranslator, library: Library, ids: Sequence[str]) -> Any:
    rows = []
    for start in range(0, len(ids), EMBEDDED):
        images = library.pictures(ids[start : start + EMBEDDED]).to(model.pipeline.device, model.pipeline.dtype)
        with torch.inference_mode():
            rows.append(model.pipeline.model.embed(images).float().cpu())  # type: ignore[operator]  # it is Guided
    return torch.cat(rows)


def _known(library: Library, ids: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """What the store says of the attributes of pictures, NaN where it does not."""
    records = library.store.records(ids)
    return {name: [(record.attributes or {}).get(name, float("nan")) for record in records] for name in names}
