"""Search RG-UNIT's retrieval: the retriever's margin first, then the number of neighbours and the loss weights of the decoder.

    python experiments/tune_retrieval.py --small                    a laptop, some minutes
    ray submit cluster.yaml experiments/tune_retrieval.py           a cluster
    python experiments/tune_retrieval.py --store s3://bucket/celeba --preset paper --translator s3://bucket/gmm/best

Stage 1 is given (--translator) or trained; one that this very command trained before in --storage is taken again. Retrievers are
judged by the lift of P@10 over chance, decoders by the distance to each face's exact counterpart (without counterparts: by
features), both on the validation split; the winner is read on the test split once, at the end. Results: <storage>/retriever and
<storage>/rg_unit (each with trials.parquet and winner), <storage>/index, <storage>/test.parquet. With --resume whatever is
finished stays.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import searching

if TYPE_CHECKING:
    from pandas import DataFrame

    from recollect.bundle import Bundle
    from recollect.cluster import Cluster
    from recollect.config import Run
    from recollect.data.store import Store
    from recollect.training.launch import Resources

STAGE1, STAGE2, STAGE3 = "gmm_unit", "retriever", "rg_unit"
OVER = {
    STAGE2: ("model.margin", "optimisers.default.lr"),
    STAGE3: ("model.neighbours", "weights.cyc_rec", "weights.image_rec", "weights.style_rec", "weights.cls"),
}
STEPS = {STAGE1: (2000, 8), STAGE2: (400, 8), STAGE3: (600, 8)}  # and with --small


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments, run both searches, and return the exit code."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        search(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    assert __doc__ is not None
    made = searching.parser(__doc__, "runs/tune_retrieval")
    made.add_argument("--store", default="", help="an image store with attributes (default: the faces world, below --storage)")
    made.add_argument("--preset", default="tiny", help="of all stages (default: %(default)s)")
    made.add_argument("--translator", default="", help="the bundle of stage 1 (default: trained below --storage)")
    for stage, what in ((STAGE2, "the retriever"), (STAGE3, "the decoder")):
        made.add_argument(
            f"--over-{stage.replace('_', '-')}",
            action="append",
            default=[],
            metavar="NAME",
            help=f"a field or glob of {what} to search (default: {', '.join(OVER[stage])})",
        )
    made.add_argument(
        "--set", action="append", default=[], metavar="STAGE:NAME=VALUE", help=f"change a field of {STAGE1}, {STAGE2} or {STAGE3}"
    )
    return made


def search(arguments: argparse.Namespace) -> None:
    """Stage 1, the search for a retriever, its index, the search for a decoder, and the winner's test table."""
    from experiments.stores import faces
    from recollect.cluster import connect
    from recollect.data.store import Store
    from recollect.evaluation.evaluate import show
    from recollect.retrieval.directory import read_manifest
    from recollect.retrieval.embed import build_index
    from recollect.training.session import suit

    searching.aims_of(arguments)
    storage = arguments.storage if "://" in arguments.storage else os.path.abspath(arguments.storage)
    if not arguments.store:
        print("no --store given: searching on the faces world")
    store = Store.open(arguments.store or faces(storage, small=True))
    cluster = connect(arguments.address)
    translator = arguments.translator or _stage1(arguments, storage, store, cluster)

    workers = max(arguments.workers_per_trial, int(cluster.gpus))

    def searched(stage: str, **data: str) -> str:
        run = suit(_run(arguments, stage, store.uri), store, lambda text: None)
        parent = {STAGE2: translator, STAGE3: f"{storage}/{STAGE2}/winner"}[stage]
        run = _with(run, {"model.parent.bundle": parent, **{f"data.{name}": value for name, value in data.items()}})
        run = run.model_copy(update={"model": run.model.with_parents()})
        over = getattr(arguments, f"over_{stage}") or OVER[stage]
        resume = arguments.resume and _begun(f"{storage}/{stage}")
        print(f"searching {stage}")
        return searching.search(run, store, over, f"{storage}/{stage}", arguments, cluster, resume).winner

    retriever = searched(STAGE2)
    index = f"{storage}/index"
    try:
        origin = read_manifest(index).origin
        fits = (origin.model, origin.store_digest) == (_embedder(retriever), store.digest)
    except ValueError:
        fits = False
    if not fits:
        build_index(retriever, store.uri, index, workers=workers, address=cluster.address)
    winner = searched(STAGE3, index=index)
    show(tested(winner, store, storage))
    print(f"retriever: {retriever}\nindex:     {index}\nwinner:    {winner}")


def tested(winner: str, store: Store, storage: str) -> DataFrame:
    """The winner on the test split, as rows; they are added to `<storage>/test.parquet`, a path or URI."""
    from recollect.evaluation.evaluate import append, evaluate

    frame = evaluate(winner, store.uri, split="test")
    append(f"{storage}/test.parquet", frame)
    return frame


def _run(arguments: argparse.Namespace, stage: str, store: str) -> Run:
    """A stage's run with what --set changes in it."""
    from recollect.config import preset

    run = preset(f"{stage}:{arguments.preset}", data={"store": store}, seed=arguments.seed)
    steps = STEPS[stage][arguments.small] if arguments.preset == "tiny" else run.engine.steps
    run = _with(run, {"name": f"tune-{stage}", "engine.steps": steps, "engine.evaluate_every": max(steps // 4, 1)})
    own = []
    for change in arguments.set:
        head, colon, rest = change.partition(":")
        if not colon or head not in STEPS:
            raise ValueError(f"--set is written STAGE:NAME=VALUE with one of {', '.join(STEPS)}; not {change!r}")
        own += [rest] if head == stage else []
    return _with(run, own)


def _with(run: Run, changes: dict[str, object] | list[str]) -> Run:
    from recollect.config import overlay

    return overlay(run, changes)


def _stage1(arguments: argparse.Namespace, storage: str, store: Store, cluster: Cluster) -> str:
    """Stage 1 on Ray Train, below the storage; what is finished stays, what was killed goes on.

    Raises ValueError where another stage 1 than this command's is finished there.
    """
    from experiments.tables.jobs import digest_of
    from recollect.bundle import copy, open_bundle
    from recollect.training import launch
    from recollect.training.session import suit

    kept = f"{storage}/{STAGE1}/winner"
    run = suit(_run(arguments, STAGE1, store.uri), store, lambda text: None)
    try:
        finished = open_bundle(kept)
    except (ValueError, OSError):
        print("training stage 1")
    else:
        differing = differences(finished, run, store)
        if differing:
            raise ValueError(
                f"{kept} is another stage 1 than this command trains: {'; '.join(differing)}. Take another --storage, or go on "
                f"from it with --translator {kept}"
            )
        return kept
    name = f"run-{digest_of(run, store.digest)[:12]}"  # what another command began is not this one's to go on with
    result = launch.train(run, f"{storage}/{STAGE1}", name, resources(arguments, cluster.gpus))
    with tempfile.TemporaryDirectory(prefix="recollect-stage1-") as folder:
        copy(launch.fetch(result, Path(folder) / "run"), kept)
    return kept


def resources(arguments: argparse.Namespace, gpus: float) -> Resources:
    """What each worker of stage 1 gets on a cluster with so many GPUs."""
    from recollect.training.launch import Resources

    fitting = Resources.fitting(arguments.workers_per_trial, gpus)
    given = arguments.gpus_per_worker
    return fitting if given is None else replace(fitting, gpus_per_worker=given)


def differences(bundle: Bundle, run: Run, store: Store) -> list[str]:
    """In words, in what a bundle differs from what this run on this store would give; nothing where it is the same."""
    data = str(bundle.manifest["parents"].get("data", ""))
    found = [] if data == store.digest else [f"its data are {data[:12]}, not {store.digest[:12]}"]
    elsewhere = {"name": "", "data.store": ""}  # the same pictures may have moved
    one, other = (_with(own, dict(elsewhere)).model_dump(mode="json") for own in (bundle.run, run))
    return found + [f"its {name} is {old!r}, not {new!r}" for name, old, new in _unequal(one, other)]


def _unequal(one: Any, other: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The fields in which two configurations differ, with both values; None for a field that one lacks."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {**one, **other}:
            yield from _unequal(one.get(key), other.get(key), f"{name}.{key}".lstrip("."))
    elif one != other:
        yield name, one, other


def _embedder(bundle: str) -> str:
    from recollect.bundle import open_bundle
    from recollect.retrieval.embed import open_embedder

    return str(open_embedder(open_bundle(bundle)).embedding_digest())


def _begun(directory: str) -> bool:
    from recollect.bundle import filesystem_of

    filesystem, root = filesystem_of(f"{directory}/search.json")
    return bool(filesystem.get_file_info(root).is_file)


if __name__ == "__main__":
    sys.exit(main())
