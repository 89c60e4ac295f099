"""How long a step takes on many GPUs: a formula, its assumptions, and the numbers that were measured on this machine.

    t(N) = max(compute, feed) + sum over messages of allreduce(message, N) + straggler(N)

`benchmarks/scaling.py` measures; docs/scaling.md explains, with the table that `table` makes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from benchmarks.timing import table as markdown

GPUS = (1, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Assumed:
    """What was not measured: no GPU and no second host were at hand. Seconds, bytes and FLOPs."""

    flops: float = 60e12  # per second that one GPU sustains on these networks; a tenth or less of what it is sold as
    gpus_a_node: int = 8
    inside: float = 200e9  # bytes/s between the GPUs of a node
    between: float = 25e9  # bytes/s between nodes, for the node (200 Gbit/s)
    latency_inside: float = 5e-6  # of one message between two GPUs of a node
    latency_between: float = 15e-6  # of one message between two nodes
    spread: float = 0.02  # standard deviation of a GPU's step, as a share of it
    cpus_a_gpu: float = 8.0  # that decode on the GPU's own node


@dataclass(frozen=True)
class Measured:
    """What was: of one step of a preset at `batch` pictures a domain and GPU."""

    flops: float  # of all forward and backward passes
    pictures: int  # of all domains
    messages: tuple[int, ...]  # bytes of each all-reduce, one after the other
    decode: float  # CPU seconds to decode and cut one picture

    @staticmethod
    def of(numbers: Mapping[str, Any], batch: int) -> Measured:
        """From the JSON of `benchmarks/scaling.py`: FLOPs grow with the batch, messages do not."""
        step = numbers["step"]
        growth = batch / step["batch"]
        decode = numbers["feed"]["cpu_s_per_picture"]
        return Measured(step["flops"] * growth, round(step["pictures"] * growth), tuple(step["messages"]), decode)


@dataclass(frozen=True)
class Step:
    """Where a step's seconds go."""

    gpus: int
    compute: float
    feed: float
    allreduce: float
    straggler: float

    @property
    def seconds(self) -> float:
        """Of the whole step. Nothing overlaps but the feed, which works ahead."""
        return max(self.compute, self.feed) + self.allreduce + self.straggler


def step(gpus: int, measured: Measured, assumed: Assumed = Assumed()) -> Step:
    """The step of that many GPUs, each with its own share of pictures (the joint batch grows with them)."""
    compute = measured.flops / assumed.flops
    feed = measured.pictures * measured.decode / assumed.cpus_a_gpu
    messages = sum(allreduce(size, gpus, assumed) for size in measured.messages)
    slowest = compute * assumed.spread * math.sqrt(2 * math.log(gpus))  # what the latest of so many is behind the mean
    return Step(gpus, compute, feed, messages, slowest)


def allreduce(size: int, gpus: int, assumed: Assumed = Assumed()) -> float:
    """Seconds to sum `size` bytes over all GPUs: by a ring or by a tree, whichever is faster (as NCCL chooses).

    >>> allreduce(10**9, 1)
    0.0
    >>> round(allreduce(10**9, 8) * 200e9 / 10**9, 2)  # inside a node a ring moves 2 (N - 1) / N of the bytes over each link
    1.76
    """
    if gpus == 1:
        return 0.0
    nodes = math.ceil(gpus / assumed.gpus_a_node)
    inside = min(gpus, assumed.gpus_a_node)
    width, latency = (assumed.between, assumed.latency_between) if nodes > 1 else (assumed.inside, assumed.latency_inside)
    ring = 2 * (gpus - 1) / gpus * size / width + 2 * (gpus - 1) * latency
    levels = math.ceil(math.log2(inside)) * assumed.latency_inside + math.ceil(math.log2(nodes)) * assumed.latency_between
    tree = 2 * size / width + 2 * levels
    return min(ring, tree)


def cpus_to_decode(step: Step, measured: Measured) -> float:
    """CPUs that decode as fast as all GPUs of this step consume, wherever they are (engine.feed=ray)."""
    return step.gpus * measured.pictures * measured.decode / (step.compute + step.allreduce + step.straggler)


def table(measured: Measured, assumed: Assumed = Assumed(), gpus: Sequence[int] = GPUS) -> str:
    """The model in Markdown, a row for each number of GPUs."""
    head = [
        "GPUs",
        "compute ms",
        "feed ms",
        "all-reduce ms",
        "straggler ms",
        "step ms",
        "images/s",
        "of linear",
        "CPUs to decode",
    ]
    alone = step(1, measured, assumed).seconds
    rows = []
    for one in (step(count, measured, assumed) for count in gpus):
        parts = (one.compute, one.feed, one.allreduce, one.straggler, one.seconds)
        rate = one.gpus * measured.pictures / one.seconds
        rows.append(
            [str(one.gpus), *(f"{part * 1e3:.1f}" for part in parts), f"{rate:.0f}", f"{alone / one.seconds:.0%}"]
            + [f"{cpus_to_decode(one, measured):.1f}"]
        )
    return markdown(head, rows)


def assumptions(assumed: Assumed = Assumed()) -> str:
    """What was assumed, in Markdown."""
    said = {
        "flops": (1e-12, "TFLOP/s that a GPU sustains on these networks"),
        "gpus_a_node": (1, "GPUs a node"),
        "inside": (1e-9, "GB/s between the GPUs of a node"),
        "between": (1e-9, "GB/s between nodes, for the whole node"),
        "latency_inside": (1e6, "µs for a message between two GPUs of a node"),
        "latency_between": (1e6, "µs for a message between two nodes"),
        "spread": (100, "% of a step: the standard deviation of one GPU's steps"),
        "cpus_a_gpu": (1, "CPUs a GPU that decode on its own node"),
    }
    assert set(said) == {field.name for field in fields(Assumed)}
    return "\n".join(f"- `{name}`: {getattr(assumed, name) * scale:g} {text}" for name, (scale, text) in said.items())
