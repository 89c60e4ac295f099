"""The index as deployments of its own: replicas that hold it (or a part of it), and what translators see of them.

A replica keeps the version that it opened and the one before. Whoever asks says which version the others answered from, so an
answer is of one version even while a new one is being taken; versions change between requests, never within one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import ray.serve
import torch
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from recollect.config import Data
from recollect.data.store import Store
from recollect.retrieval.directory import open_version, read_manifest
from recollect.retrieval.index import Index, Matches, Vectors
from recollect.retrieval.library import Library
from recollect.retrieval.manifest import IndexManifest, Origin
from recollect.retrieval.shards import merged, part_of
from serve.metrics import Meter

logger = logging.getLogger("ray.serve")
T = TypeVar("T")
ASK_S = 30.0  # a search that takes longer is given up
PAUSES_S = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # between the tries of one question
TRIES = 20  # of a search whose parts are at versions that have none in common: a reader that was away for long
GONE = "gone"  # instead of an answer: that version is no longer open here


@dataclass(frozen=True)
class Version:
    """One version of an index, as a replica has it open."""

    index: Index  # or the replica's part of it
    digest: str  # of the whole
    name: str
    count: int  # pictures of the whole
    origin: Origin
    attributes: tuple[str, ...]


@dataclass(frozen=True)
class Hit:
    """What a replica found, and where it looked."""

    matches: Matches
    version: str


class Part:
    """An index on the disk, or a part of it, that follows its manifest. Knows nothing of Ray.

    Args:
        uri: where the index is.
        number, parts: which part of how many.

    Raises ValueError when there is no index, or its store is gone or another one.
    """

    def __init__(self, uri: str, number: int = 0, parts: int = 1, meter: Meter | None = None) -> None:
        self.uri, self.number, self.parts, self.meter = uri, number, parts, meter or Meter()
        self.versions: dict[str, Version] = {}  # by digest, the newest last
        self._refused = ""  # the digest of a version that was looked at and not taken
        self._take(*self._open())

    @property
    def current(self) -> Version:
        """The newest version that was taken."""
        return next(reversed(self.versions.values()))

    def _open(self) -> tuple[Index, IndexManifest]:
        index, manifest = open_version(self.uri, self.current.origin.model if self.versions else None)
        origin = manifest.origin
        store = Store.open(origin.store)
        if origin.store_digest and store.digest != origin.store_digest:
            raise ValueError(
                f"the index at {self.uri} is of the store with digest {origin.store_digest}, and {store.uri} has {store.digest}"
            )
        return index, manifest

    def _take(self, index: Index, manifest: IndexManifest) -> None:
        own = part_of(index, self.number, self.parts) if self.parts > 1 else index
        if len(own):
            own.search(np.zeros((1, own.dimension), np.float32), 1)  # what is made at the first search is made now
        version = Version(own, manifest.digest, manifest.version, len(index), manifest.origin, own.attributes)
        kept = list(self.versions.items())[-1:]
        self.versions = {**dict(kept), version.digest: version}
        self.meter.index.clear()
        self.meter.index.labels(str(self.number), version.name).set(len(own))

    def refresh(self) -> bool:
        """Take the version that the manifest names, if it is a new one and belongs here. Whether it was taken.

        One that does not (another embedder, another store, a damaged file) is logged and left; the one before goes on.
        """
        digest = ""
        try:
            digest = read_manifest(self.uri).digest
            if digest in (self.current.digest, self._refused):
                return False
            self._take(*self._open())
        except (ValueError, OSError) as error:
            self._refused = digest
            self.meter.swaps.labels("refused").inc()
            logger.error("the index stays at version %s: %s", self.current.name, error)
            return False
        self.meter.swaps.labels("taken").inc()
        return True

    def search(
        self,
        vectors: Vectors,
        k: int,
        where: Mapping[str, int],
        exclude: Sequence[Collection[str]],
        version: str = "",
    ) -> Hit | str:
        """The `k` nearest in a version (empty: the newest), padded where the part has fewer; GONE where that is closed."""
        found = self.versions.get(version) if version else self.current
        if found is None:
            return GONE
        matches = found.index.search(vectors, min(k, len(found.index)), where, exclude)
        return Hit(_padded(matches, k), found.digest)

    def draw(self, k: int, seeds: Sequence[int], exclude: Sequence[Collection[str]]) -> tuple[tuple[tuple[str, ...], ...], str]:
        """As `Index.draw`, with the version drawn from."""
        found = self.current
        return found.index.draw(k, seeds, exclude), found.digest

    def about(self) -> dict[str, Any]:
        """What is known of the newest version."""
        version = self.current
        return {
            "uri": self.uri,
            "version": version.name,
            "digest": version.digest,
            "pictures": version.count,
            "dimension": version.index.dimension,
            "back_end": version.index.back_end,
            "attributes": version.attributes,
            "shards": self.parts,
            "origin": version.origin.model_dump(mode="json"),
        }


def _padded(matches: Matches, k: int) -> Matches:
    """Matches (Q, k), with "" at infinity where there are fewer."""
    lacking = k - matches.distances.shape[1]
    if lacking <= 0:
        return matches
    distances = np.pad(matches.distances, ((0, 0), (0, lacking)), constant_values=np.inf)
    return Matches(tuple(row + ("",) * lacking for row in matches.ids), distances)


class Retriever:
    """A `Part` as a deployment: `serve.app.build` makes one of it for every shard."""

    async def __init__(self, uri: str, number: int, parts: int, poll_s: float, threads: int) -> None:  # type: ignore[misc]
        torch.set_num_threads(threads)
        self.meter = Meter()
        self.part = await asyncio.to_thread(Part, uri, number, parts, self.meter)
        self.changing = asyncio.Lock()
        self.watching = asyncio.create_task(self._watch(poll_s))

    async def _watch(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            await self.refresh()

    async def refresh(self) -> str:
        """Look for a new version now; the digest of the one that is searched from here on."""
        async with self.changing:
            await asyncio.to_thread(self.part.refresh)
        return self.part.current.digest

    async def search(self, *question: Any) -> Hit | str | ValueError:
        """See `Part.search`; a ValueError is an answer, so that it crosses processes as it is."""
        with self.meter.stage("index"):
            return await asyncio.to_thread(_answer, self.part.search, *question)

    async def draw(self, *question: Any) -> tuple[tuple[tuple[str, ...], ...], str] | ValueError:
        """See `Part.draw`."""
        return await asyncio.to_thread(_answer, self.part.draw, *question)

    async def about(self) -> dict[str, Any]:
        """See `Part.about`."""
        return self.part.about()

    async def measured(self) -> list[Any]:
        """The samples of this replica."""
        context = ray.serve.get_replica_context()
        return self.meter.collect(context.deployment, context.replica_tag)

    def check_health(self) -> None:
        """Called by Ray Serve; a replica that raises here is replaced."""
        if self.watching.done():
            raise RuntimeError("the index is not followed any more")


def _answer(function: Any, *question: Any) -> Any:
    try:
        return function(*question)
    except ValueError as error:
        return error


class RemoteIndex:
    """The retrievers, as a `Library` sees its index: called from a thread, it asks all parts and puts together what they find.

    Args:
        shards: one handle a part.
        loop: where calls to other deployments are made.
    """

    def __init__(self, shards: Sequence[DeploymentHandle], loop: asyncio.AbstractEventLoop) -> None:
        self.shards, self.loop = shards, loop
        self.version = ""  # the digest of what answered last

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(call, self.loop)
        try:
            return future.result(ASK_S)
        except FutureTimeout:
            future.cancel()
            raise RuntimeError(f"the retriever did not answer within {ASK_S:g} s") from None

    def about(self) -> dict[str, Any]:
        """What is known of the index."""

        async def ask() -> dict[str, Any]:
            found: dict[str, Any] = await self.shards[0].about.remote()
            return found

        return self._wait(ask())

    def search(
        self,
        vectors: Any,
        k: int,
        where: Mapping[str, int] | None = None,
        exclude: Sequence[str | Collection[str]] | None = None,
    ) -> Matches:
        """As `Index.search`, over all parts, from one version."""
        queries = vectors.detach().float().cpu().numpy() if isinstance(vectors, torch.Tensor) else vectors
        gone = [frozenset((one,) if isinstance(one, str) else one) - {""} for one in exclude or ("",) * len(queries)]
        return self._wait(self.searched(queries, k, dict(where or {}), gone))

    async def searched(self, queries: Vectors, k: int, where: Mapping[str, int], gone: Sequence[Collection[str]]) -> Matches:
        """`search`, for callers on the loop."""
        for _ in range(TRIES):
            found = await self._found("", queries, k, where, gone)
            seen = {hit.version for hit in found if isinstance(hit, Hit)}
            for version in seen if len(seen) > 1 else ():
                # For a moment parts are at different versions. The older one is still open everywhere.
                found = await self._found(version, queries, k, where, gone)
                if GONE not in found:
                    break
            hits = [hit for hit in found if isinstance(hit, Hit)]
            if len(hits) == len(self.shards) and len({hit.version for hit in hits}) == 1:
                self.version = hits[0].version
                return merged([hit.matches for hit in hits], k) if len(hits) > 1 else hits[0].matches
            await asyncio.sleep(0.05)
        raise RuntimeError("the parts of the index are at different versions")

    async def _found(self, version: str, *question: Any) -> list[Hit | str]:
        """What each part finds in a version. Raises ValueError for a question that is wrong."""
        answers = await asyncio.gather(*[_patiently(shard.search, *question, version) for shard in self.shards])
        return [_or_raise(answer) for answer in answers]

    def draw(
        self, k: int, seeds: Sequence[int], exclude: Sequence[str | Collection[str]] | None = None
    ) -> tuple[tuple[str, ...], ...]:
        """As `Index.draw`. Raises ValueError where there are several parts: a draw is of the whole."""
        if len(self.shards) > 1:
            raise ValueError("pictures are drawn at random from a whole index; serve this model with shards=1")

        async def ask() -> Any:
            return await _patiently(self.shards[0].draw, k, tuple(seeds), tuple(exclude or ("",) * len(seeds)))

        ids, self.version = _or_raise(self._wait(ask()))
        found: tuple[tuple[str, ...], ...] = ids
        return found

    def __len__(self) -> int:
        return int(self.about()["pictures"])


async def _patiently(method: Any, *question: Any) -> Any:
    """Ask retrievers of which one may end, or be busy: a picture that is half translated waits, rather than being thrown away."""
    for pause in PAUSES_S:
        try:
            return await method.remote(*question)
        except (BackPressureError, RayActorError, ReplicaUnavailableError):
            await asyncio.sleep(pause)
    return await method.remote(*question)


def _or_raise(answer: Any) -> Any:
    if isinstance(answer, ValueError):
        raise answer
    return answer


class ServedLibrary(Library):
    """What retrievers find, as pictures; the store is opened anew when they answer from another version.

    Raises ValueError when the index belongs to another embedder.
    """

    index: RemoteIndex  # type: ignore[assignment]

    def __init__(self, index: RemoteIndex, data: Data, embedder: str) -> None:
        about = index.about()
        origin = Origin.model_validate(about["origin"])
        if origin.model != embedder:
            raise ValueError(
                f"the index at {about['uri']} belongs to another embedder: its vectors were made with {origin.model}, and the "
                f"model here is {embedder}; `recollect index build BUNDLE --out {about['uri']}` makes one for the bundle"
            )
        super().__init__(index, Store.open(data.library or origin.store), data.size, data.short_side)  # type: ignore[arg-type]
        self.origin, self._given, self._seen = origin, data.library, about["digest"]

    def shown(self, found: Matches) -> torch.Tensor:
        """As `Library`'s, from the store as the version that answered names it."""
        if self.index.version != self._seen:
            self._seen = self.index.version
            self.origin = Origin.model_validate(self.index.about()["origin"])
            self.store = Store.open(self._given or self.origin.store)
        return super().shown(found)

    def lacking(self, ids: Iterable[str]) -> int:
        """Not known here: nobody trains in a server."""
        raise NotImplementedError
