"""One training step of each method, as the engine takes it, on noise."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from benchmarks.timing import CONVOLUTION, Time, Work, ceilings, interleaved, table
from recollect.batch import Batch, Domains
from recollect.config import Run, merge, preset
from recollect.testing import noise_batches, noise_search
from recollect.trainable import Phase
from recollect.training.trainer import Parts, Trainer
from trainables.gmm_unit import CELEBA

METHODS = ("mguit", "drit", "munit", "unit", "cyclegan", "gmm_unit", "retriever", "rg_unit", "classifier")
STREETS = Domains(("sunny", "night"), ("background", "car", "person", "sign"))
FACES = Domains(("faces",), attributes=CELEBA)
WITH_ATTRIBUTES = ("gmm_unit", "retriever", "rg_unit", "classifier")
STAGE1: dict[str, Any] = {"attributes": CELEBA, "exclusive": (CELEBA[:3],)}


def trainer(
    name: str, size: int, batch: int, device: str = "cpu", kind: type[Trainer] = Trainer, **sections: Any
) -> tuple[Trainer, tuple[Batch, ...]]:
    """A trainer of a preset (`mguit:tiny`) and a batch of noise for it, `batch` pictures a domain."""
    method = name.partition(":")[0]
    domains = FACES if method in WITH_ATTRIBUTES else STREETS
    changes: dict[str, Any] = {"data": {"domains": domains.names, "size": size, "short_side": None}}
    changes["engine"] = {"batch_size": batch, "device": device}
    if method == "rg_unit" or name == "gmm_unit:paper":
        changes["model"] = STAGE1
    if method == "cyclegan":
        changes["model"] = {"picture_size": size}  # of its image pool
    if method == "retriever":  # which begins from stage 1
        changes["model"] = {"translator": merge(preset(name.replace("retriever", "gmm_unit")).model.model_dump(), STAGE1)}
    if name == "rg_unit:tiny":  # as its parents would have it
        tiny = preset("gmm_unit:tiny").model.model_dump(exclude={"name", "vgg16", "gan"})
        changes["model"] = {**tiny, "embedding": preset("retriever:tiny").model.embedding.model_dump()}  # type: ignore[attr-defined]
    run: Run = preset(name, **merge(changes, sections))
    made = kind(run, domains, device=device, search=noise_search)
    return made, noise_batches(run, domains, made.model.stride, range(batch))


def step(name: str, size: int, batch: int, device: str = "cpu", **sections: Any) -> Work:
    """What takes one step."""
    made, batches = trainer(name, size, batch, device, **sections)
    return lambda: made.update(batches)


def measure(
    methods: Sequence[str], sizes: Iterable[int], batches: Iterable[int], repeats: int, device: str = "cpu", which: str = "tiny"
) -> dict[str, Time]:
    """A step of each method, at each size and batch; beside the ceilings."""
    work: dict[str, Work] = dict(ceilings(device))
    for method in methods:
        for size in sizes:
            for batch in batches:
                if method == "retriever" and batch % 2:  # it learns from pairs
                    continue
                work[f"{method}:{which} {size} px, batch {batch}"] = step(f"{method}:{which}", size, batch, device)
    return interleaved(work, repeats, device)


def page(times: dict[str, Time]) -> str:
    """Ratios first: FLOP/s achieved as a share of a convolution's in the same run."""
    best = times[CONVOLUTION].rate
    rows = [
        [
            name,
            f"{time.rate / best:.2f}",
            f"{time.median / times[CONVOLUTION].median:.0f}",
            f"{time.flops / 1e9:.1f}",
            f"{time.rate / 1e9:.0f}",
            f"{time.median * 1e3:.0f} ({time.low * 1e3:.0f} to {time.high * 1e3:.0f})",
        ]
        for name, time in times.items()
    ]
    return table(["step", "of the convolution's FLOP/s", "convolutions", "GFLOP", "GFLOP/s", "ms (quartiles)"], rows)


class Timed(Trainer):
    """A trainer that notes the seconds of each phase."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.seconds: dict[str, list[float]] = {}

    def run_phase(self, phase: Phase, parts: Parts) -> dict[str, Tensor]:
        began = time.process_time()
        terms = super().run_phase(phase, parts)
        self.seconds.setdefault(phase.name, []).append(time.process_time() - began)
        return terms


def phases(name: str, size: int, batch: int, repeats: int) -> list[list[str]]:
    """The shares of a step's phases, on the CPU: rows of a table."""
    made, batches = trainer(name, size, batch, kind=Timed)
    assert isinstance(made, Timed)
    whole = []
    for _ in range(repeats + 1):
        began = time.process_time()
        made.update(batches)
        whole.append(time.process_time() - began)
    step = statistics.median(whole[1:])
    found = {phase: statistics.median(seconds[1:]) for phase, seconds in made.seconds.items()}
    found["memory, averages and what is around"] = max(step - sum(found.values()), 0.0)
    return [
        [f"{name} {size} px, batch {batch}", phase, f"{seconds / step:.0%}", f"{seconds * 1e3:.0f}"]
        for phase, seconds in found.items()
    ]
