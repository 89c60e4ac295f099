"""Times of several pieces of work side by side, and what this machine can do at best."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

Work = Callable[[], object]
MATRIX, CONVOLUTION = "matrix product 1024", "convolution 3x3, 256 channels, 32 x 32, 4 pictures"


@dataclass(frozen=True)
class Time:
    """Seconds of one piece of work: median, and quartiles as what neighbours on the machine did to it; FLOPs where counted."""

    median: float
    low: float
    high: float
    flops: float = 0.0

    @property
    def rate(self) -> float:
        """FLOP/s."""
        return self.flops / self.median


def interleaved(work: Mapping[str, Work], repeats: int, device: str = "cpu") -> dict[str, Time]:
    """Each piece of work, `repeats` times in turn after a warm-up: what disturbs a shared machine disturbs all alike.

    On the CPU seconds are those of this process (`time.process_time`), so that neighbours count little; on a GPU they are the
    wall clock's between two synchronisations.
    """
    flops = {name: _flops(case) for name, case in work.items()}
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, case in work.items():
            seconds[name].append(_seconds(case, device))
    return {name: _time(values, flops[name]) for name, values in seconds.items()}


def _seconds(case: Work, device: str) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device != "cpu":
        torch.cuda.synchronize()
    began = clock()
    case()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - began


def _flops(case: Work) -> float:
    """What torch's counter finds in one run of it, which is the warm-up too."""
    with FlopCounterMode(display=False) as counter:
        case()
    return float(counter.get_total_flops())


def _time(values: list[float], flops: float) -> Time:
    ordered = sorted(values)
    return Time(statistics.median(ordered), ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4], flops)


def ceilings(device: str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, Work]:
    """A large matrix product and a convolution as the networks have them."""
    a = torch.randn(1024, 1024, device=device, dtype=dtype)
    x = torch.randn(4, 256, 32, 32, device=device, dtype=dtype)
    w = torch.randn(256, 256, 3, 3, device=device, dtype=dtype)
    return {MATRIX: lambda: a @ a, CONVOLUTION: lambda: F.conv2d(x, w, padding=1)}


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is left, the others right."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
