"""How fast the parts are, beside what this machine can do at best: `make bench`.

Medians over interleaved repeats of CPU seconds (process time, so that neighbours on a shared machine count little), each beside
a large convolution timed in the same run; then the index, which has a page of its own. Writes docs/results/speed.md and
docs/results/index.md, and prints JSON.

    python -m benchmarks.speed                                         an hour on one core, most of it 8 pictures of 256 px
    python -m benchmarks.speed --sizes 64 128                          some ten minutes
    python -m benchmarks.speed --only steps --sizes 64 --batches 1 8
    python -m benchmarks.speed --only released --released ../released  beside the authors' code
    python -m benchmarks.speed --only ladder --device cuda             fp32, bf16, channels_last
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks import index, parts, released, steps
from benchmarks.timing import CONVOLUTION, Time, ceilings, interleaved, table

PARTS = ("steps", "phases", "around", "feed", "start", "memory", "ladder", "index", "released")
HEAD = """# Speed

`python -m benchmarks.speed{words}`, {today}, {about}.
Medians of {repeats} interleaved repeats; times on the CPU are CPU seconds of one process, so ratios say more than milliseconds:
the machine is shared. The ceiling is a large convolution in the same run ({rate:.0f} GFLOP/s).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print JSON, write the pages."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    made.add_argument("--methods", nargs="+", default=list(steps.METHODS), choices=steps.METHODS)
    made.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    made.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    made.add_argument("--preset", default="tiny", choices=("tiny", "paper"))
    made.add_argument("--only", nargs="+", choices=PARTS)
    made.add_argument("--released", type=Path, help="a folder with checkouts of the authors' code (see benchmarks/released.py)")
    made.add_argument("--out", type=Path, default=Path("docs/results/speed.md"))
    made.add_argument("--index-out", type=Path, default=Path("docs/results/index.md"))
    arguments = made.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    wanted = arguments.only or [name for name in PARTS if name not in ("ladder", "released")]
    said: dict[str, Any] = {"torch": torch.__version__, "threads": arguments.threads, "device": arguments.device}
    sections: list[str] = []
    for name in wanted:
        if name == "index":
            said["index"] = numbers = index.measure(arguments.threads)
            _write(arguments.index_out, index.page(numbers, arguments.threads))
            continue
        title, text, numbers = SECTIONS[name](arguments)
        sections.append(f"## {title}\n\n{text}")
        said[name] = numbers
        print(sections[-1] + "\n", file=sys.stderr)
    if sections:
        best = interleaved(ceilings(arguments.device), 5, arguments.device)[CONVOLUTION]
        about = f"torch {torch.__version__}, {arguments.threads} thread(s), {arguments.device}"
        words = "".join(f" {word}" for word in (sys.argv[1:] if argv is None else argv))
        head = HEAD.format(words=words, today=date.today(), about=about, repeats=arguments.repeats, rate=best.rate / 1e9)
        _write(arguments.out, "\n".join([head, *(f"{section}\n" for section in sections)]))
    print(json.dumps(said, indent=2))
    return 0


def _steps(arguments: argparse.Namespace) -> tuple[str, str, Any]:
    wanted = (arguments.methods, arguments.sizes, arguments.batches, arguments.repeats, arguments.device, arguments.preset)
    times = steps.measure(*wanted)
    return "A training step of each method", steps.page(times), _plain(times)


def _phases(arguments: argparse.Namespace) -> tuple[str, str, Any]:
    rows = [
        row
        for method in arguments.methods
        for row in steps.phases(f"{method}:tiny", min(arguments.sizes), max(arguments.batches), arguments.repeats)
    ]
    return "Phases of a step", table(["step", "phase", "share", "CPU ms"], [[a, b, c, d] for a, b, c, d in rows]), rows


def _around(arguments: argparse.Namespace) -> tuple[str, str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        work = {**ceilings(), **parts.memories(), **parts.feeds(Path(folder)), **parts.opening(Path(folder))}
        times = interleaved(work, max(arguments.repeats, 5))
    unit = times[CONVOLUTION].median
    rows = [[name, f"{time.median / unit:.2f}", f"{time.median * 1e3:.1f}"] for name, time in times.items()]
    return "Around the networks", table(["what", "convolutions", "CPU ms"], rows), _plain(times)


def _feed(arguments: argparse.Namespace) -> tuple[str, str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        found = parts.fed(Path(folder))
    rows = [[name, f"{one.pictures_per_s:.0f}", f"{one.own_cpu_ms:.2f}"] for name, one in found.items()]
    text = table(["engine.feed", "pictures/s of this machine", "CPU ms a picture in the training process"], rows)
    return "Decoding here or elsewhere", text, {name: asdict(one) for name, one in found.items()}


def _start(arguments: argparse.Namespace) -> tuple[str, str, Any]:
    rows = parts.importing()
    return "Starting", table(["a fresh interpreter", "s"], rows), rows


def _memory(arguments: argparse.Namespace) -> tuple[str, str, Any]:
    wanted = [(f"{method}:tiny", size, max(arguments.batches)) for method in arguments.methods for size in arguments.sizes]
    rows = [[f"{name} {size} px, batch {batch}", f"{parts.peak_memory(name, size, batch):.2f}"] for name, size, batch in wanted]
    return "Peak memory of a training process", table(["two steps", "GiB, libraries and all"], rows), rows


def _ladder(arguments: argparse.Namespace) -> tuple[str, str, Any]:
    rungs: dict[str, dict[str, Any]] = {
        "fp32": {},
        "bf16": {"precision": "bf16"},
        "bf16, channels_last": {"precision": "bf16", "channels_last": True},
    }
    rows, said = [], {}
    for method in arguments.methods:
        for size in arguments.sizes:
            made = {
                rung: steps.step(f"{method}:{arguments.preset}", size, max(arguments.batches), arguments.device, engine=engine)
                for rung, engine in rungs.items()
            }
            times = interleaved(made, arguments.repeats, arguments.device)
            name = f"{method}:{arguments.preset} {size} px, batch {max(arguments.batches)}"
            said[name] = _plain(times)
            first = times["fp32"].median
            rows += [[name, rung, f"{first / time.median:.2f}", f"{time.median * 1e3:.0f}"] for rung, time in times.items()]
    return "What precision and layout give", table(["step", "as", "times as fast", "ms"], rows), said


def _released(arguments: argparse.Namespace) -> tuple[str, str, Any]:
    if arguments.released is None:
        raise SystemExit("--only released needs --released FOLDER, with checkouts of the authors' code")
    times = released.measure(arguments.released, tuple(arguments.sizes), arguments.repeats)
    return "Beside the released code", released.page(times), _plain(times)


SECTIONS = {
    "steps": _steps,
    "phases": _phases,
    "around": _around,
    "feed": _feed,
    "start": _start,
    "memory": _memory,
    "ladder": _ladder,
    "released": _released,
}


def _plain(times: dict[str, Time]) -> dict[str, Any]:
    return {name: asdict(time) for name, time in times.items()}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
