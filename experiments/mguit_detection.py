"""MGUIT's Table 3: what translation is worth to a detector that has boxes in one domain only and is used in another.

Two ways, each with every translator (paper, section 4.2; DUNIT tests the same):

    adapt the detector    train on source pictures translated to the target, with the source's boxes; test on the real target
    adapt the pictures    train on the real source; translate the target's test pictures to the source, and test on these

between a detector trained on the source alone (the lower bound) and one that had the target's own boxes (the upper bound).
Average precision by COCO's rules on the target's test split, over several seeds of the detector; translators are given as bundles
or, without any, MGUIT is trained. The detector sees the target's boxes in the upper bound alone; but a class-aware MGUIT learns
from the training boxes of both domains, as in the paper. `--set-translator model.memory.use=single` trains one that reads none.

    python -m experiments.mguit_detection --small                                       streets world, 64 px, a CPU: minutes a run
    python -m experiments.mguit_detection --small --steps 100 --seeds 0                 to see that everything works
    python -m experiments.mguit_detection --world --source sunny --target night         128 px: one GPU, or a night
    python -m experiments.mguit_detection --world --translator mguit=runs/m/best --translator drit=runs/d/best
    python -m experiments.mguit_detection --store runs/kitti-cityscapes --source kitti --target cityscapes --workers 4 \\
        --set model.pretrained.path=coco.safetensors --set model.pretrained.sha256=...  the paper's, on Ray

Regions that KITTI and Cityscapes exempt from judging (DontCare, groups) are not exempted here, because stores do not keep them.

The store of the last one: `recollect data kitti`, `recollect data cityscapes`, `recollect data join`. The same command again
does what is missing. Results lie in --storage: table.md, table.parquet (a row a number), table-resamples.parquet.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.detection_page import ORACLE, SOURCE_ONLY, page

if TYPE_CHECKING:
    import pandas as pd

    from experiments.tables import OnRay
    from experiments.tables.jobs import Job
    from recollect.bundle import Bundle
    from recollect.config import Run
    from recollect.data.store import Store
    from recollect.evaluation.average_precision import Annotated
    from recollect.pipeline import Pipeline

KEY = ["arm", "seed", "detector", "translator", "data", "source", "target", "pictures", "metric"]
CLASSES = ("person", "car", "truck", "bicycle")  # that KITTI and Cityscapes share


def detector_run(store: str, size: str) -> Run:
    """The detector: `small` and `world` for the streets, `paper` for photographs."""
    from recollect.config import preset

    if size == "paper":
        return preset("detector:resnet50", data={"store": store})
    if size == "world":
        model = {"anchors": (14, 22, 34, 52, 80), "proposals": 100}
        return preset("detector:tiny", data={"store": store, "size": 128}, model=model, engine={"steps": 4000})
    return preset("detector:tiny", data={"store": store}, engine={"steps": 600, "evaluate_every": 200})


def translator_run(store: str, source: str, target: str, size: str) -> Run:
    """MGUIT between the two domains; `paper` has three memory items a class, and eight of the background (section 4.2)."""
    from recollect.config import preset

    data: dict[str, Any] = {"store": store, "domains": (source, target)}
    judged = {"source": source, "target": target}
    model: dict[str, Any]
    if size == "paper":
        items = {"background": 8, **dict.fromkeys(CLASSES, 3)}
        sharp = {"assignment": "hard", "read_temperature": 0.1, "update_temperature": 0.1}  # as printed, the memory collapses
        model = {"memory": {"items_per_class": items, **sharp}}
        return preset("mguit:paper", data=data, model=model, evaluation=judged)
    if size == "world":
        model = {"width": 24, "downs": 2}
        return preset("mguit:tiny", data={**data, "size": 128}, model=model, engine={"steps": 6000}, evaluation=judged)
    return preset("mguit:tiny", data=data, engine={"steps": 600}, evaluation=judged)


@dataclass(frozen=True)
class Test:
    """One row of the table with one seed: a detector, and the translator of the test pictures where they are translated."""

    arm: str
    seed: int
    detector: Bundle
    translator: Bundle | None


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; exits 1 where a run failed, 2 for mistakes, 130 when stopped."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = parser().parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        return run(arguments, f"python -m experiments.mguit_detection {shlex.join(words)}".strip())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on where this ended", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m experiments.mguit_detection", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = made.add_mutually_exclusive_group()
    size.add_argument("--small", action="store_true", help="tiny presets on the streets world at 64 px")
    size.add_argument("--world", action="store_true", help="larger ones on the streets world at 128 px")
    made.add_argument("--store", default="", help="an image store with both domains (default: the streets world)")
    made.add_argument("--source", default="sunny", help="the domain whose boxes are known (default: %(default)s)")
    made.add_argument("--target", default="night", help="the domain to detect in (default: %(default)s)")
    made.add_argument("--translator", action="append", default=[], metavar="NAME=BUNDLE", help="repeat; default: train MGUIT")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the detectors (default: 0 1 2)")
    made.add_argument("--steps", type=int, help="of every detector")
    made.add_argument("--translator-steps", type=int, help="of MGUIT, where it is trained here")
    made.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a field of every detector's run")
    made.add_argument("--set-translator", action="append", default=[], metavar="NAME=VALUE", help="and of MGUIT's")
    made.add_argument("--pictures", type=int, help="test pictures, one of each place (default: the whole split)")
    made.add_argument("--storage", default="runs/mguit_detection", help="a folder (default: %(default)s)")
    made.add_argument("--parallel", type=int, default=1, help="detectors trained at a time (default: 1)")
    made.add_argument("--workers", type=int, default=0, help="train on Ray, with so many workers a run (default: 0, without Ray)")
    made.add_argument("--address", help="of Ray; `local` for a private one (default: join the cluster here, else start one)")
    made.add_argument("--gpus-per-worker", type=float, help="default: 1 where the cluster has GPUs now, else 0")
    made.add_argument("--device", default="cpu", help="for translating and testing (default: %(default)s)")
    return made


def run(arguments: argparse.Namespace, command: str) -> int:
    """The whole protocol in order: translators, translated pictures, detectors, tests, page."""
    from experiments.tables.command import on_ray
    from experiments.tables.jobs import plan
    from experiments.tables.locks import at_work
    from experiments.tables.runs import train_jobs
    from recollect.bundle import open_bundle
    from recollect.config import overlay
    from recollect.data.store import Store

    place = os.path.abspath(arguments.storage)
    size = "small" if arguments.small else "world" if arguments.world else "paper"
    store = Store.open(_store(arguments, place, size))
    detector = overlay(detector_run(store.uri, size), {} if arguments.steps is None else {"engine.steps": arguments.steps})
    detector = overlay(detector, arguments.set)
    on = on_ray(arguments) if arguments.workers else None
    try:
        with at_work(place):
            translators = _translators(arguments, place, size, store, on)
            arms = _arms(arguments, place, store, detector, translators)
            outcomes = train_jobs(plan(arms, arguments.seeds, f"{place}/detectors"), arguments.parallel, on)
            done = [(outcome.job, open_bundle(outcome.bundle)) for outcome in outcomes if outcome.facts is not None]
            frame, resamples = _judge(arguments, place, store, _tests(done, translators))
    finally:
        if on is not None:
            from recollect.cluster import disconnect

            disconnect()
    (Path(place) / "table.md").write_text(page(frame, resamples, arguments.source, arguments.target, command))
    print((Path(place) / "table.md").read_text())
    failed = [outcome for outcome in outcomes if outcome.facts is None]
    for outcome in failed:
        print(f"FAILED {outcome.job}: {outcome.error}", file=sys.stderr)
    return int(bool(failed))


def _store(arguments: argparse.Namespace, place: str, size: str) -> str:
    from experiments.stores import streets

    if arguments.store:
        return str(arguments.store)
    if size == "paper":
        raise ValueError("the paper's version needs its pictures: --store URI; without them take --small or --world")
    return streets(place, size == "small")


def _translators(arguments: argparse.Namespace, place: str, size: str, store: Store, on: OnRay | None) -> dict[str, Bundle]:
    """The translators by name; MGUIT, trained with the first seed, where none are given."""
    from experiments.tables import Arm
    from experiments.tables.jobs import plan
    from experiments.tables.runs import train_jobs
    from recollect.bundle import open_bundle
    from recollect.config import overlay

    pairs = [given.partition("=")[::2] for given in arguments.translator]
    if not all(name and path for name, path in pairs):
        raise ValueError("--translator takes NAME=BUNDLE, for instance mguit=runs/first/best")
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("two translators have one name; give each its own")
    if pairs:
        return {name: open_bundle(path) for name, path in pairs}
    steps = {} if arguments.translator_steps is None else {"engine.steps": arguments.translator_steps}
    made = overlay(overlay(translator_run(store.uri, arguments.source, arguments.target, size), steps), arguments.set_translator)
    jobs = plan([Arm("mguit", made)], arguments.seeds[:1], f"{place}/translators")
    (outcome,) = train_jobs(jobs, 1, on)
    if outcome.facts is None:
        raise ValueError(f"the translator was not trained: {outcome.error}")
    return {"mguit": open_bundle(outcome.bundle)}


def _arms(arguments: argparse.Namespace, place: str, store: Store, detector: Run, translators: dict[str, Bundle]) -> list[Any]:
    """What detectors are trained on: the source, its translations, the target."""
    from experiments.tables import Arm
    from recollect.config import overlay
    from recollect.evaluation.detection import short_side
    from recollect.translated import translate_store

    arms = [Arm(SOURCE_ONLY, overlay(detector, {"data.domains": (arguments.source,)}))]
    for name, bundle in translators.items():
        domain = f"{arguments.source}-by-{name}"
        out = f"{place}/translated/{domain}-{bundle.digest[:12]}"
        print(f"translating {arguments.source} to {arguments.target} with {name}: {out}")
        translate_store(
            *(bundle, store, out),
            source=arguments.source,
            target=arguments.target,
            domain=domain,
            splits=("train", "val"),
            short_side=short_side(detector),
            device=arguments.device,
        )
        arms.append(Arm(adapted_detector(name), overlay(detector, {"data.store": out, "data.domains": (domain,)})))
    return [*arms, Arm(ORACLE, overlay(detector, {"data.domains": (arguments.target,)}))]


def adapted_detector(name: str) -> str:
    """The arm whose detector learns on translated pictures."""
    return f"{name}: detector adapted"


def adapted_pictures(name: str) -> str:
    """The arm whose test pictures are translated."""
    return f"{name}: pictures adapted"


def _tests(done: Iterable[tuple[Job, Bundle]], translators: dict[str, Bundle]) -> Iterator[Test]:
    for job, bundle in done:
        yield Test(job.arm, job.seed, bundle, None)
        if job.arm == SOURCE_ONLY:
            for name, translator in translators.items():
                yield Test(adapted_pictures(name), job.seed, bundle, translator)


def _judge(
    arguments: argparse.Namespace, place: str, store: Store, tests: Iterable[Test]
) -> tuple[pd.DataFrame, dict[tuple[str, int, str], Any]]:
    """Rows of numbers and their resamples, by arm, seed and metric; those that are there already are not measured again."""
    import pandas as pd
    import torch

    own, table, drawn = [], Path(place) / "table.parquet", Path(place) / "table-resamples.parquet"
    known = pd.read_parquet(drawn) if drawn.exists() else pd.DataFrame(columns=[*KEY, "value", "drawn"])
    for test in tests:
        facts = {
            "arm": test.arm,
            "seed": test.seed,
            "detector": test.detector.digest,
            "translator": test.translator.digest if test.translator else "",
            "data": store.digest,
            "source": arguments.source,
            "target": arguments.target,
            "pictures": arguments.pictures or 0,  # 0: all
        }
        same = (known[list(facts)] == pd.Series(facts)).all(axis=1)
        if not same.any():
            print(f"testing {test.arm}, seed {facts['seed']}")
            measured = _measure(test, store, arguments)
            known = pd.concat([known, pd.DataFrame([{**facts, **row} for row in measured])], ignore_index=True)
            _save(known, drawn)
            same = (known[list(facts)] == pd.Series(facts)).all(axis=1)
        own.append(known[same])
    frame = pd.concat([known.iloc[:0], *own], ignore_index=True)
    _save(frame.drop(columns="drawn"), table)
    rows = zip(frame["arm"], frame["seed"], frame["metric"], frame["drawn"], strict=True)
    return frame, {(arm, seed, metric): torch.tensor(list(drawn)) for arm, seed, metric, drawn in rows}


def _measure(test: Test, store: Store, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from recollect.evaluation.average_precision import precision
    from recollect.evaluation.detection import annotated, detect, short_side, without_pixels
    from recollect.pipeline import Pipeline

    classes = test.detector.domains.classes
    pictures = annotated(store, "test", (arguments.target,), short_side(test.detector.run), classes, arguments.pictures)
    if test.translator is not None:
        pictures = _translated(Pipeline.open(test.translator, arguments.device), pictures, arguments.target, arguments.source)
    model: Any = test.detector.build().to(arguments.device)
    result = precision([(without_pixels(picture), found) for picture, found in detect(model, pictures)], classes)
    return [{"metric": name, "value": value, "drawn": result.resampled[name].tolist()} for name, value in result.values.items()]


def _translated(pipeline: Pipeline, pictures: Iterable[Annotated], source: str, target: str) -> Iterator[Annotated]:
    from recollect.data.transforms import to_uint8, to_unit

    for picture in pictures:
        answer = pipeline(to_unit(picture.image)[None], target, source)
        yield replace(picture, image=to_uint8(answer.images[0].cpu()))


def _save(frame: pd.DataFrame, path: Path) -> None:
    work = path.with_name(f".{path.name}")
    frame.to_parquet(work)
    work.replace(path)


if __name__ == "__main__":
    sys.exit(main())
