"""What a version of an index says of itself: what it holds, and what its vectors were made with."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Self

from recollect.config import Frozen

FORMAT = 1


class Selection(Frozen):
    """Which pictures of a store."""

    splits: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()  # none: all of the store's
    limit: int | None = None  # at most so many training pictures a domain


class Origin(Frozen):
    """What an index was made of: enough to embed a query, or further pictures, as its own were.

    All of its pictures are of these `splits` and `domains`; `selections` says exactly which were taken, first those that it was
    built of (none: what the three fields say).
    """

    model: str  # `Embedder.embedding_digest`
    store: str = ""  # the URI of the image store
    store_digest: str = ""
    size: int = 0  # pixels of the square that was embedded
    short_side: int | None = None
    splits: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()  # none: all of the store's
    limit: int | None = None
    selections: tuple[Selection, ...] = ()

    def taken(self) -> tuple[Selection, ...]:
        """Which pictures were taken, one after the other; those that were removed since are still named."""
        return self.selections or (Selection(splits=self.splits, domains=self.domains, limit=self.limit),)

    def with_selection(self, further: Selection) -> Self:
        """This origin when those pictures are in the index too."""
        both = tuple(dict.fromkeys((*self.taken(), further)))
        limits = [one.limit for one in both if "train" in one.splits]
        every = not all(one.domains for one in both)
        return self.model_copy(
            update={
                "splits": tuple(dict.fromkeys(split for one in both for split in one.splits)),
                "domains": () if every else tuple(dict.fromkeys(name for one in both for name in one.domains)),
                "limit": max(limit or 0 for limit in limits) if limits and all(limits) else None,
                "selections": both,
            }
        )


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
        """SHA-256 over the digests of all files: the identity of this version's content, wherever that is kept."""
        return hashlib.sha256(json.dumps(self.files, sort_keys=True).encode()).hexdigest()
