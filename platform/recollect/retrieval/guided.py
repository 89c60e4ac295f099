"""What a guided method is opened with: the library that its run was trained with, or another of the same embedder."""

from __future__ import annotations

import os

import torch

from recollect.bundle import Bundle, open_bundle
from recollect.config import Data, find_method
from recollect.pipeline import Pipeline
from recollect.retrieval.library import Library
from recollect.trainable import Guided


def library_of(data: Data, embedder: str) -> Library:
    """The library of a run, for queries of the embedder with this digest. Raises ValueError where they do not belong together."""
    return Library.open(data.index, data.size, data.short_side, model=embedder, store=data.library)


def open_pipeline(
    bundle: str | os.PathLike[str] | Bundle,
    device: str | torch.device = "cpu",
    which: str = "best",
    *,
    index: str = "",
    library: str = "",
) -> Pipeline:
    """`Pipeline.open`, and for a method that is guided by neighbours the library that finds them.

    Args:
        index: where they are found; empty: in the index that the run was trained with.
        library: the store with the pictures; empty: the one that the run, or the index, names.

    Raises ValueError for an index of another bundle, or whose store is gone, and for an index or library that nothing would look
    into. Without any index a method that needs neighbours says so when it translates.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    check_guided(opened, index, library)
    pipeline = Pipeline.open(opened, device, which)
    given = {"index": index, "library": library} if index else {"library": library or opened.run.data.library}
    data = opened.run.data.model_copy(update=given)
    if library and not data.index:
        raise ValueError(f"the library {library} needs an index that says what is in it; {opened.path} was trained with none")
    if isinstance(pipeline.model, Guided) and data.index:
        pipeline.search = library_of(data, pipeline.model.embedding_digest())
    return pipeline


def check_guided(opened: Bundle, index: str, library: str) -> None:
    """Raise ValueError where an index or library is given to a method that no neighbours guide."""
    if (index or library) and not issubclass(find_method(opened.run.model.name), Guided):
        what = "index" if index else "library"
        raise ValueError(f"{opened.path} holds {opened.run.model.name!r}, which no neighbours guide; leave the {what} out")
