"""How training scales on this machine, and what that says of larger ones: `make bench-scaling`, some five minutes.

    python -m benchmarks.scaling            measure; write docs/results/scaling.json, scaling.md, and docs/scaling.md's tables
    python -m benchmarks.scaling --pages    write the pages anew from the JSON that is there

Seconds are the wall clock's. Neighbours on a shared machine only ever make a step longer, so a run is judged by its fastest step;
the median stands beside it, and the load.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import step_model
from benchmarks.steps import trainer
from benchmarks.timing import table
from recollect.bundle import open_bundle
from recollect.config import Run, overlay, preset
from recollect.data.loader import Feed
from recollect.data.store import Store
from recollect.data.worlds import build_streets
from recollect.training.session import suit, train
from recollect.training.sync import Group

NUMBERS = Path("docs/results/scaling.json")
PAGE, MODEL = Path("docs/results/scaling.md"), Path("docs/scaling.md")
BEGIN, END = "<!-- written by `make bench-scaling`: begin -->", "<!-- end -->"
WORKERS = (1, 2, 4)
STEPS, WARM, EACH = 12, 4, 2  # of each run; left out at its beginning; pictures a domain and worker
TRIALS = (1, 3)
PRESET, COUNTED_AT = "mguit:paper", 64  # what the model is of, and the pixels a side at which its operations are counted


def small(store: Store) -> Run:
    """The run that is measured: MGUIT's tiny preset, judged as little as can be."""
    engine = {"steps": STEPS, "batch_size": EACH, "log_every": 1, "threads": 1, "device": "cpu"}
    made = preset(
        "mguit:tiny", data={"store": store.uri, "domains": ("sunny", "night")}, engine=engine, evaluation={"pictures": 1}
    )
    return suit(made, store)


def steps_of(bundle: Path, pictures: int) -> list[float]:
    """Seconds of each step after the warm-up, from a run's own history."""
    rows = [row for row in open_bundle(bundle).metrics() if "images_per_s" in row and row["step"] > WARM]
    return [pictures / row["images_per_s"] for row in rows]


def numbers_of(seconds: Sequence[float], pictures: int, wall: float) -> dict[str, float]:
    """Of a run: its fastest step and its median step."""
    return {
        "images_per_s": pictures / min(seconds),
        "step_s": min(seconds),
        "median_s": statistics.median(seconds),
        "wall_s": wall,
        "load": os.getloadavg()[0],
    }


def measure(folder: Path) -> dict[str, Any]:
    """Everything, as JSON."""
    began = time.monotonic()
    build_streets(folder / "store", size=64, train=64, val=2, test=2, references=1)
    run = small(Store.open(folder / "store"))
    settings = {"preset": "mguit:tiny", "size": run.data.size, "each": EACH, "steps": STEPS, "warm": WARM, "trials": TRIALS}
    found: dict[str, Any] = {"about": about(), "settings": settings}
    found["step"] = counted_step()
    found["feed"] = decoding(folder)
    train(run, folder / "warm")
    first = bare(run, folder / "bare-1")
    found |= on_ray(run, folder)
    found["bare"] = min(first, bare(run, folder / "bare-2"), key=lambda one: one["step_s"])
    found["tune"]["beyond_training_s"] = found["tune"]["trial_s"] - found["bare"]["wall_s"]
    found["about"]["seconds"] = time.monotonic() - began
    return found


def about() -> dict[str, Any]:
    """What was measured with."""
    import ray

    return {
        "command": "python -m benchmarks.scaling",
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ray": ray.__version__,
    }


def bare(run: Run, folder: Path) -> dict[str, float]:
    """The engine in this process, without Ray."""
    began = time.monotonic()
    bundle = train(run, folder).parent / "last"
    return numbers_of(steps_of(bundle, 2 * EACH), 2 * EACH, time.monotonic() - began)


def on_ray(run: Run, folder: Path) -> dict[str, Any]:
    """Ray Train with 1, 2 and 4 workers, and what a trial of Ray Tune costs beyond its training."""
    from recollect.cluster import connect, disconnect
    from recollect.search.tune import Search, search
    from recollect.training import launch

    found: dict[str, Any] = {"workers": {}}
    connect("local", cpus=max(WORKERS))  # more workers than cores share them, and the page says so
    try:
        for workers in WORKERS:
            pictures = 2 * EACH * workers
            began = time.monotonic()
            several = overlay(run, {"engine.batch_size": EACH * workers})
            result = launch.train(several, str(folder / "ray"), f"of-{workers}", launch.Resources(workers))
            wall = time.monotonic() - began
            launch.fetch(result, folder / f"of-{workers}")
            found["workers"][str(workers)] = numbers_of(steps_of(folder / f"of-{workers}" / "last", pictures), pictures, wall)
        walls = []
        for trials in TRIALS:
            began = time.monotonic()
            place = str(folder / f"search-{trials}")
            search(Search(run, ("weights.con_k",), trials, place, scheduler="none", concurrent=1))
            walls.append(time.monotonic() - began)
    finally:
        disconnect()
    trial = (walls[1] - walls[0]) / (TRIALS[1] - TRIALS[0])
    found["tune"] = {"walls_s": walls, "trial_s": trial}
    return found


def counted_step() -> dict[str, Any]:
    """The operations of one step of `PRESET` at its own size, and the bytes of every all-reduce in it, one after the other.

    The step is really taken, as one rank of two; only what it would send is counted instead of sent. Its operations are those of
    convolutions and of the memory's reads, so they grow with the number of pixels.
    """
    size = int(preset(PRESET).data.size)
    with group_of_one() as pair, mock.patch.object(dist, "all_reduce", sent := Sent()):
        made, batches = trainer(PRESET, COUNTED_AT, 1)
        made.ranks = pair
        with FlopCounterMode(display=False) as counter:
            made.update(batches)
    growth = (size / COUNTED_AT) ** 2
    parameters = sum(parameter.numel() for parameter in made.model.parameters())
    return {
        "preset": PRESET,
        "size": size,
        "counted_at": COUNTED_AT,
        "batch": 1,
        "pictures": sum(len(batch) for batch in batches),
        "parameters": parameters,
        "flops": counter.get_total_flops() * growth,
        "messages": sent.sizes,
        "bytes": sum(sent.sizes),
    }


class Sent:
    """Stands in for `torch.distributed.all_reduce` and notes the bytes that it is given."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, tensor: torch.Tensor, group: object = None, async_op: bool = False) -> None:
        self.sizes.append(tensor.numel() * tensor.element_size())


@contextmanager
def group_of_one() -> Iterator[Group]:
    """A process group of this process, which takes itself for one rank of two."""
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
        try:
            pair = Group()
            pair.world = 2
            yield pair
        finally:
            dist.destroy_process_group()


def decoding(folder: Path) -> dict[str, Any]:
    """CPU seconds to read, decode and cut a picture of `PRESET`'s size."""
    size = int(preset(PRESET).data.size)
    build_streets(folder / "large", size=size, train=16, val=2, test=2, references=1)
    feed = Feed(Store.open(folder / "large"), preset(PRESET, data={"domains": ("sunny", "night")}).data, 8, 4, 0)
    feed.batches(0)
    began, steps = time.process_time(), 6
    for number in range(1, 1 + steps):
        feed.batches(number)
    return {"size": size, "cpu_s_per_picture": (time.process_time() - began) / (steps * 16)}


def page(numbers: dict[str, Any]) -> str:
    """docs/results/scaling.md."""
    told, settings, cores = numbers["about"], numbers["settings"], numbers["about"]["cores"]
    one = numbers["workers"]["1"]
    rows = [["the engine alone, without Ray", *row(numbers["bare"], one)]]
    for count, run in numbers["workers"].items():
        crowded = f" (more than the {cores} cores: they share them)" if int(count) > cores else ""
        rows.append([f"Ray Train, {count} worker{'s' if count != '1' else ''}{crowded}", *row(run, one)])
    head = ["", "images/s", "of one worker", "fastest step ms", "median step ms", "whole run s", "load of the machine"]
    bare, step, tune, size = numbers["bare"], numbers["step"], numbers["tune"], settings["size"]
    ratio, start = one["step_s"] / bare["step_s"], one["wall_s"] - bare["wall_s"]
    largest = ", ".join(f"{bytes / 1e6:.1f} MB" for bytes in sorted(step["messages"], reverse=True)[:3])
    counts, walls = (" and ".join(map(str, values)) for values in (settings["trials"], [f"{w:.1f}" for w in tune["walls_s"]]))
    return f"""# Scaling on one machine

Written by `{told["command"]}` (`make bench-scaling`) on {told["date"]} in {told["seconds"]:.0f} s: Python {told["python"]},
torch {told["torch"]}, Ray {told["ray"]}, {cores} cores that other work shared, no GPU. `{settings["preset"]}` at {size} px,
{settings["each"]} pictures a domain and worker (two domains; the joint batch grows with the workers), one torch thread a worker.
Images/s are those of a run's fastest step after the first {settings["warm"]} of {settings["steps"]}, as neighbours only make
steps longer. The numbers are in [scaling.json](scaling.json); what they say of 8 to 1,024 GPUs is in
[docs/scaling.md](../scaling.md).

{table(head, rows)}

- **Ray Train beside the bare engine**: with one worker a step takes {ratio:.2f} times as long, and the whole run {start:.1f} s
  longer: its controller and its worker start and import torch.
- **A trial of Ray Tune** takes {tune["trial_s"]:.1f} s, {tune["beyond_training_s"]:.1f} s beyond the same training in one
  process. One trial at a time: searches of {counts} trials took {walls} s.
- **All-reduce**: a step of `{step["preset"]}` ({step["parameters"] / 1e6:.1f} million parameters) sends {len(step["messages"])}
  messages, {step["bytes"] / 1e6:.1f} MB a rank before the algorithm's factor: gradients in buckets of 25 MB (the largest:
  {largest}), which go out during the backward pass, and sums over the joint batch.
- **Operations**: {step["flops"] / 1e12:.1f} TFLOP for {step["pictures"]} pictures of {step["size"]} px, counted at
  {step["counted_at"]} px and scaled by the number of pixels.
- **Decoding**: {numbers["feed"]["cpu_s_per_picture"] * 1e3:.1f} CPU ms for a PNG of {numbers["feed"]["size"]} px.
"""


def row(run: dict[str, float], one: dict[str, float]) -> list[str]:
    """The cells of a run."""
    return [
        f"{run['images_per_s']:.1f}",
        f"{run['images_per_s'] / one['images_per_s']:.2f}",
        f"{run['step_s'] * 1e3:.0f}",
        f"{run['median_s'] * 1e3:.0f}",
        f"{run['wall_s']:.1f}",
        f"{run['load']:.1f}",
    ]


def model_part(numbers: dict[str, Any]) -> str:
    """What docs/scaling.md has between its marks."""
    step = numbers["step"]
    parts = [f"Assumed:\n\n{step_model.assumptions()}"]
    for batch in (1, 8):
        measured = step_model.Measured.of(numbers, batch)
        parts.append(
            f"`{step['preset']}` at {step['size']} px, {batch} picture{'s' if batch > 1 else ''} a domain and GPU "
            f"({measured.flops / 1e12:.1f} TFLOP, {len(measured.messages)} messages of together "
            f"{sum(measured.messages) / 1e6:.0f} MB a step):\n\n{step_model.table(measured)}"
        )
    return "\n\n".join(parts)


def with_part(text: str, part: str) -> str:
    """A page with the part between its marks replaced."""
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return f"{before}{BEGIN}\n\n{part}\n\n{END}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print JSON, write the pages."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--pages", action="store_true", help="measure nothing: write the pages from the JSON that is there")
    if not made.parse_args(argv).pages:
        torch.set_num_threads(1)
        os.environ.setdefault("RAY_worker_niceness", "0")  # else Ray's workers stand back behind what else runs here
        with tempfile.TemporaryDirectory(prefix="recollect-scaling-") as folder:
            NUMBERS.write_text(json.dumps(measure(Path(folder)), indent=1) + "\n")
    numbers = json.loads(NUMBERS.read_text())
    PAGE.write_text(page(numbers))
    MODEL.write_text(with_part(MODEL.read_text(), model_part(numbers)))
    print(json.dumps(numbers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
