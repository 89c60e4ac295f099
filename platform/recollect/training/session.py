"""From a Run to a trained bundle in this process: opens the store, suits the run to it, and calls the engine."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from recollect.batch import Domains
from recollect.bundle import absolute, copy
from recollect.config import Run, find_method, merge, overlay, resolve
from recollect.data.loader import Feed
from recollect.data.remote import RemoteFeed
from recollect.data.store import Store
from recollect.retrieval.directory import read_manifest
from recollect.retrieval.guided import library_of
from recollect.retrieval.library import Library
from recollect.training.checkpoint import is_checkpoint
from recollect.training.engine import Batches, Judge, Report, fit
from recollect.training.sync import Ranks
from recollect.training.trainer import build

logger = logging.getLogger("recollect")


def suit(run: Run, store: Store, say: Callable[[str], None] = logger.info) -> Run:
    """The run with what it leaves open taken from the store: its URI, its domains, its classes.

    Raises ValueError where there are fewer domains than the method needs.
    """
    needed: int = find_method(run.model.name).domains_needed
    names = run.data.domains or store.domains.names[:needed]
    if len(names) < needed:
        where = "data.domains names" if run.data.domains else f"{store.uri} has"
        raise ValueError(f"{where} the domain {', '.join(names)} only; {run.model.name} needs {needed}")
    if not run.data.domains and len(store.domains.names) > needed:
        say(f"the store has {', '.join(store.domains.names)}; taking {' and '.join(names)} (set data.domains for others)")
    for end in ("source", "target"):
        domain = getattr(run.evaluation, end)
        if domain and domain not in names:
            raise ValueError(f"evaluation.{end} is {domain!r}, but the run has the domains {', '.join(names)}")
    classes = store.domains.only(tuple(names)).classes
    if len(classes) == 1:
        say("the store has no boxes: there is the background class alone")
    places = {"store": store.uri, "index": run.data.index, "library": run.data.library}
    data = {name: absolute(place) for name, place in places.items()}
    changed = merge(run.model_dump(), {"data": {"domains": tuple(names), **data}})
    changed["model"] = run.model.suited_to(classes).model_dump()
    return Run.model_validate(changed)


def check_boxes(run: Run, store: Store, say: Callable[[str], None] = logger.warning) -> None:
    """For a method that trains on classes: say which of them a domain never shows.

    Raises ValueError for a domain that nobody annotated.
    """
    method, names = run.model.name, run.data.domains
    if not run.model.reads_classes():
        return
    counts = {name: store.boxes("train", name) for name in names}
    bare = [name for name, count in counts.items() if count is None]
    if bare:
        raise ValueError(
            f"nobody annotated the training pictures of {bare[0]!r} in {store.uri}: {method} would take all of them for "
            f"{store.domains.classes[0]}. Give boxes for every domain of the run"
            + (", or set model.memory.use=single, which reads none" if method == "mguit" else "")
        )
    for name in names:
        without = store.unannotated("train", name)
        if without:
            say(f"{without} of {len(store.ids('train', name))} training pictures of {name} have no annotation: all background")
    for name, count in counts.items():
        missing = [label for label, boxes in (count or {}).items() if not boxes]
        if missing:
            say(f"no training picture of {name} shows {', '.join(missing)}: what {method} learns of them there is nothing")


def domains_of(run: Run, store: Store) -> Domains:
    """The run's domains in the run's order, with the store's classes."""
    return store.domains.only(run.data.domains)


def judge_of(run: Run, store: Store) -> Judge | None:
    """The judge that the method names, where the store has validation pictures of every domain that it looks at."""
    kind = resolve(find_method(run.model.name).judged_by)
    counts = store.manifest.counts.get("val", {})
    missing = [name for name in kind.domains(run) if not counts.get(name)]
    if missing:
        logger.warning("no validation pictures of %s: nothing judges the run, the newest weights are kept", ", ".join(missing))
        return None
    judge: Judge = kind(store, run)
    return judge


def train(
    run: Run,
    directory: Path,
    *,
    resume: Path | bool = False,
    report: Report | None = None,
    ranks: Ranks | None = None,
) -> Path:
    """Train a run in this process (or as one rank of several) and return its bundle's directory.

    Args:
        directory: where checkpoints, history and samples go.
        resume: a checkpoint; or True for `directory/last` where there is one.
        report: called at every evaluation and checkpoint.
        ranks: the process group.

    Raises ValueError when `directory` holds a run already and `resume` is False, or a parent's bundle is not what it should be.
    """
    ranks = ranks or Ranks()
    last = directory / "last"
    start = resume if isinstance(resume, Path) else last if resume and is_checkpoint(last) else None
    if resume is False and ranks.rank == 0 and last.exists():
        raise ValueError(f"{directory} holds a run already; resume it (--resume), or choose another directory")
    run = run.model_copy(update={"model": run.model.with_parents()})
    store = Store.open(run.data.store)
    if ranks.rank == 0:
        check_boxes(run, store)
    domains = domains_of(run, store)
    model = build(run, domains)
    cut = (run.data, run.engine.batch_size, model.stride, run.seed)
    feed = Feed(store, *cut, rank=ranks.rank, world=ranks.world, workers=-(-run.engine.feed_ahead // 2), truth=model.learns_truth)
    batches: Batches = RemoteFeed(feed, run.engine.feed_ahead, run.engine.feed_resource) if run.engine.feed == "ray" else feed
    judge = judge_of(run, store) if ranks.rank == 0 else None
    index = {"index": read_manifest(run.data.index).digest} if run.data.index else {}
    return fit(
        *(run, batches, domains, directory),
        judge=judge,
        report=report,
        resume=start,
        ranks=ranks,
        parents={"data": store.digest, **run.model.parents(), **index},
        search=(lambda embedder: _opened_library(run, store, embedder, ranks.rank == 0)) if run.data.index else None,
    )


def _opened_library(run: Run, store: Store, embedder: str, say: bool) -> Library:
    """The run's library. Says where it knows none of the training pictures, which then cannot be kept from finding themselves."""
    library = library_of(run.data, embedder)
    ids = [id for domain in run.data.domains for id in store.ids("train", domain)]
    if say and ids and library.lacking(ids) == len(ids):
        logger.warning(
            "the index at %s knows none of the %d training pictures by id. If it holds the same pictures under other names (as "
            "in a joined store), each of them finds itself: build it from %s then (`recollect index build`)",
            *(run.data.index, len(ids), store.uri),
        )
    return library


CHECKPOINTS = 20  # of the training of an instrument: so much of it is lost at most when it is stopped


def train_instrument(run: Run, kept: str, what: str, say: Callable[[str], None] = logger.info) -> None:
    """Train what others are judged by, and leave its bundle, without the rest of its run, at `kept`: a path or URI.

    At a path a training that was killed goes on with the same call. `what` is what to call it.
    """
    store = Store.open(run.data.store)
    every = max(run.engine.steps // CHECKPOINTS, 1)
    suited = overlay(suit(run, store, lambda text: None), {"engine.checkpoint_every": every})
    if "://" in kept:
        say(f"training {what}, {run.engine.steps} steps; if this is killed they begin anew")
        with tempfile.TemporaryDirectory(prefix="recollect-instrument-") as folder:
            copy(train(suited, Path(folder) / "run"), kept)
        return
    work = Path(f"{kept}-training")
    say(f"training {what}, {run.engine.steps} steps in {work}; if this is killed the same command goes on")
    copy(train(suited, work, resume=True), kept)
    shutil.rmtree(work)
