"""Search RG-UNIT's retrieval: the retriever's margin first, then the number of neighbours and the loss weights of the decoder.

    python experiments/tune_retrieval.py --small                    a laptop, some minutes
    ray submit cluster.yaml experiments/tune_retrieval.py           a cluster
    python experiments/tune_retrieval.py --store s3://bucket/celeba --preset paper --translator s3://bucket/gmm/best

Stage 1 is given (--translator) or trained. Retrievers are judged by the lift of P@10 over chance, decoders by the distance to
each face's exact counterpart (without counterparts: by features), both on the validation split; the winner is read on the test
split once, at the end. Results: <storage>/retriever and <storage>/rg_unit (each with trials.parquet and winner),
<storage>/index, <storage>/test.parquet. With --resume whatever is finished stays.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments import searching

if TYPE_CHECKING:
    from recollect.cluster import Cluster
    from recollect.config import Run
    from recollect.data.store import Store

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
    except ValueError as error:
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
    from recollect.bundle import filesystem_of
    from recollect.cluster import connect
    from recollect.data.store import Store
    from recollect.evaluation.evaluate import append, evaluate, show
    from recollect.retrieval.directory import read_manifest
    from recollect.retrieval.embed import build_index
    from recollect.training.session import suit

    storage = arguments.storage if "://" in arguments.storage else os.path.abspath(arguments.storage)
    if not arguments.store:
        print("no --store given: searching on the faces world")
    store = Store.open(arguments.store or faces(storage, small=True))
    cluster = connect(arguments.address)
    translator = arguments.translator or _stage1(arguments, storage, store, cluster)

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
        fits = read_manifest(index).origin.model == _embedder(retriever)
    except ValueError:
        fits = False
    if not fits:
        build_index(retriever, store.uri, index)
    winner = searched(STAGE3, index=index)
    frame = evaluate(winner, store.uri, split="test")
    filesystem, root = filesystem_of(storage)
    if filesystem.type_name == "local":
        append(f"{root}/test.parquet", frame)
    show(frame)
    print(f"retriever: {retriever}\nindex:     {index}\nwinner:    {winner}")


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
    """Stage 1 on Ray Train, below the storage; what is finished stays, what was killed goes on."""
    from recollect.bundle import copy, open_bundle
    from recollect.training import launch
    from recollect.training.session import suit

    kept = f"{storage}/{STAGE1}/winner"
    try:
        open_bundle(kept)
        return kept
    except (ValueError, OSError):
        print("training stage 1")
    run = suit(_run(arguments, STAGE1, store.uri), store, lambda text: None)
    resources = launch.Resources.fitting(arguments.workers_per_trial, cluster.gpus)
    result = launch.train(run, f"{storage}/{STAGE1}", "run", resources)
    with tempfile.TemporaryDirectory(prefix="recollect-stage1-") as folder:
        copy(launch.fetch(result, Path(folder) / "run"), kept)
    return kept


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
