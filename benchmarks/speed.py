"""How fast the parts are, beside what this machine can do at best: `make bench`.

Medians over interleaved repeats of CPU seconds (process time, so that neighbours on a shared machine do not count), each beside
a large matrix product timed in the same run; then the index, which has a page of its own. Writes docs/results/speed.md and
docs/results/index.md, and prints JSON. `--only index` measures that alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import index
from recollect.batch import Domains
from recollect.config import overlay, preset
from recollect.data.loader import Feed
from recollect.data.store import Store
from recollect.data.worlds import build_streets, streets
from recollect.testing import noise_batches
from recollect.training.engine import Trainer
from trainables.parts.memory import ClassAwareMemory

DOMAINS = Domains(("sunny", "night"), ("background", "car", "person", "sign"))
ITEMS = {"background": 10, "car": 5, "person": 3, "sign": 2}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print JSON, write the table."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--repeats", type=int, default=5)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--out", type=Path, default=Path("docs/results/speed.md"))
    made.add_argument("--index-out", type=Path, default=Path("docs/results/index.md"))
    made.add_argument("--only", choices=("parts", "index"))
    arguments = made.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    said: dict[str, object] = {"torch": torch.__version__, "threads": arguments.threads}
    if arguments.only != "index":
        said |= _parts(arguments)
    if arguments.only != "parts":
        said["index"] = numbers = index.measure(arguments.threads)
        arguments.index_out.parent.mkdir(parents=True, exist_ok=True)
        arguments.index_out.write_text(index.page(numbers, arguments.threads))
    print(json.dumps(said, indent=2))
    return 0


def _parts(arguments: argparse.Namespace) -> dict[str, object]:
    """Time the parts and write their page."""
    with tempfile.TemporaryDirectory() as folder:
        work = cases(Path(folder))
        seconds = interleaved(work, arguments.repeats)
    reference = statistics.median(seconds["matrix product 1024"])
    rows = {
        name: {"cpu_seconds": statistics.median(times), "of_matrix_product": statistics.median(times) / reference}
        for name, times in seconds.items()
    }
    rate = 2 * 1024**3 / reference / 1e9
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(table(rows, rate, arguments))
    return {"gflops": rate, "rows": rows}


def cases(folder: Path) -> dict[str, Callable[[], object]]:
    """Everything that is timed, by name."""
    a = torch.randn(1024, 1024)
    found: dict[str, Callable[[], object]] = {"matrix product 1024": lambda: a @ a}
    for size, batch in ((64, 1), (64, 2), (64, 8), (128, 2)):
        found[f"mguit:tiny step, {size} px, batch {batch} a domain"] = _step(size, batch)
    for pixels, factor in ((1024, 1), (8100, 1), (8100, 10)):
        count = sum(ITEMS.values()) * factor
        found[f"memory read x4 + write, P {pixels}, N {count}, C 256"] = _memory(pixels, factor)
    build_streets(folder / "store", size=128, train=64, val=2, test=2, references=1)
    store = Store.open(folder / "store")
    for size in (64, 128):
        data = preset("mguit:tiny", data={"domains": DOMAINS.names, "size": size}).data
        feed = Feed(store, data, 8, 2, 0)
        found[f"feed, 16 pictures, {size} px"] = lambda feed=feed: feed.batches(0)  # type: ignore[misc]
    found["streets, one picture, 128 px"] = _picture
    return found


def _step(size: int, batch: int) -> Callable[[], object]:
    run = overlay(preset("mguit:tiny", data={"domains": DOMAINS.names, "size": size}), {"engine.batch_size": batch})
    trainer = Trainer(run, DOMAINS, device="cpu")
    batches = noise_batches(run, DOMAINS, trainer.model.stride, range(batch))
    return lambda: trainer.update(batches)


def _memory(pixels: int, factor: int) -> Callable[[], object]:
    memory = ClassAwareMemory({name: count * factor for name, count in ITEMS.items()}, 256, 256)
    side = round(pixels**0.5)
    maps = [torch.randn(1, 256, side, side) for _ in range(4)]
    classes = [torch.randint(0, 4, (1, side, side)) for _ in range(2)]

    def work() -> None:
        with torch.no_grad():
            state = memory.update(maps[:2], maps[2:], classes)
            for x in (0, 1):
                memory.read(maps[x], 0, classes[x], state)
                memory.read(maps[x], 1, classes[x], state)

    return work


def _picture() -> None:
    scene = streets.draw_scene(7, 128)
    streets.render(scene, streets.draw_style("night", np.random.default_rng(7)))


def interleaved(work: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each case, `repeats` times in turn, after one warm-up each."""
    for case in work.values():
        case()
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, case in work.items():
            began = time.process_time()
            case()
            seconds[name].append(time.process_time() - began)
    return seconds


def table(rows: Mapping[str, Mapping[str, float]], rate: float, arguments: argparse.Namespace) -> str:
    """The Markdown page."""
    lines = [
        "# Speed",
        "",
        f"`make bench`: medians of {arguments.repeats} interleaved repeats, CPU seconds, {arguments.threads} thread(s), "
        f"torch {torch.__version__}.",
        f"The matrix product ran at {rate:.0f} GFLOP/s; the last column is time in units of it, which compares between machines.",
        "",
        "| what | CPU ms | matrix products |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {row['cpu_seconds'] * 1e3:.1f} | {row['of_matrix_product']:.1f} |" for name, row in rows.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
