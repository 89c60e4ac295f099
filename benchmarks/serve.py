"""The endpoint beside the bare pipeline in one process, and a deployment that does nothing: docs/results/serving.md.

Every arm takes PNG files and gives PNG files. The model has one thread, on a core of its own; the load generator, HAProxy, the
ingress and Ray's own processes share the other one. The bare arm decodes, translates and encodes on the model's core, in batches
of the size that is fastest for it. What one client pays is measured in pairs: bare calls, then requests for as long, then bare
calls again. `--case NAME` measures one case; results are kept in a JSON file, and the page is of all.

    python -m benchmarks.serve                      # every case, one after the other
    python -m benchmarks.serve --case tiny-64
"""

import argparse  # no future annotations: FastAPI reads those of `answer`, which is pickled without what only they name
import asyncio
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import ray.serve
import torch
from fastapi import FastAPI, Request, Response
from PIL import Image

import recollect
from benchmarks.load import Outcome, Post, closed
from recollect import bundle
from recollect.batch import Domains
from recollect.config import preset
from recollect.data.transforms import to_uint8, to_unit
from recollect.pipeline import Pipeline
from serve import run
from serve.pictures import decode, encode
from trainables.mguit import MGUIT

CASES = {
    "tiny-64": ("tiny", 64),
    "tiny-128": ("tiny", 128),
    "tiny-192": ("tiny", 192),
    "tiny-256": ("tiny", 256),
    "paper-64": ("paper", 64),
}
CLIENTS = (1, 8, 64)
BATCHES = (1, 4, 8)
SECONDS = 8.0
PAIRS = 10
DOMAINS = Domains(("sunny", "night"), ("background", "car", "person", "sign"))
PAGE = Path("docs/results/serving.md")
KEPT = Path("runs/bench-serve.json")
MODEL_CORE = 0
noop = FastAPI()


@ray.serve.deployment(ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=200)
class Echo:
    """Gives back what it gets."""

    async def __call__(self, content: bytes) -> bytes:
        return content


@ray.serve.deployment(ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=200)
@ray.serve.ingress(noop)
class Nothing:
    """An ingress that reads the form, and a deployment behind it that does nothing."""

    def __init__(self, echo: Any) -> None:
        self.echo = echo

    @noop.post("/")
    async def answer(self, request: Request) -> Response:
        """The picture, as it was."""
        form = await request.form()
        image: Any = form["image"]
        return Response(await self.echo.remote(await image.read()), media_type="image/png")


def write(folder: Path, name: str) -> Path:
    """An untrained MGUIT of a preset."""
    one = preset(f"mguit:{name}", data={"domains": DOMAINS.names})
    one = one.model_copy(update={"name": name, "model": one.model.suited_to(DOMAINS.classes)})
    torch.manual_seed(0)
    return bundle.write(folder / name, one, DOMAINS, MGUIT(one.model, DOMAINS).state_dict()).path


def picture(side: int) -> bytes:
    """A smooth picture with some grain, so that the codec has as much to do as with a photograph."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    grain = random.normal(0, 4, (side, side, 3))
    return encode(torch.from_numpy((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)).permute(2, 0, 1))


class Bare:
    """The pipeline with its codec, one thread of one process on the model's core: PNG in, PNG out."""

    def __init__(self, path: Path, content: bytes) -> None:
        torch.set_num_threads(1)
        self.pipeline, self.content = Pipeline.open(path), content

    def call(self, size: int) -> tuple[float, float]:
        """Seconds of a batch with its codec, and of its step alone."""
        start = time.perf_counter()
        images = to_unit(torch.stack([decode(self.content) for _ in range(size)]))
        before = time.perf_counter()
        drawn = to_uint8(self.pipeline(images, "night", seeds=list(range(size))).images)
        after = time.perf_counter()
        for one in drawn:
            encode(one)
        return time.perf_counter() - start, after - before

    def calls(self, size: int, seconds: float) -> list[tuple[float, float]]:
        """Call after call for so long, at least twice; the first one warms up and does not count."""
        os.sched_setaffinity(0, {MODEL_CORE})  # `pinned` moves every process of ours
        self.call(size)
        found, until = [self.call(size), self.call(size)], time.perf_counter() + seconds
        while time.perf_counter() < until:
            found.append(self.call(size))
        return found

    def rates(self, seconds: float) -> dict[str, Any]:
        """Pictures a second and milliseconds a batch, for each size of a batch."""
        found = {}
        for size in BATCHES:
            times = self.calls(size, seconds / len(BATCHES))
            whole, steps = (sum(column) for column in zip(*times, strict=True))
            row = {"rate": size * len(times) / whole, "ms": 1000 * whole / len(times), "step_ms": 1000 * steps / len(times)}
            found[str(size)] = row
        return found


def answering(path: Path, content: bytes, ends: Connection) -> None:
    """A process whose `Bare` does what it is told: (name of a method, arguments)."""
    bare = Bare(path, content)
    while True:
        name, *arguments = ends.recv()
        ends.send(getattr(bare, name)(*arguments))


@contextmanager
def bare_process(path: Path, content: bytes) -> Iterator[Callable[..., Any]]:
    """Asks a `Bare` in a process of its own, which is idle between questions."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=answering, args=(path, content, theirs), daemon=True)
    process.start()
    theirs.close()

    def ask(*what: Any) -> Any:
        ours.send(what)
        return ours.recv()

    try:
        yield ask
    finally:
        process.kill()
        process.join()


def paired(ask: Callable[..., Any], post: Post, pairs: int, seconds: float) -> dict[str, Any]:
    """What one client pays over the bare call, ms: per pair the median request minus the median call, the two in turn.

    A machine that others share is faster in one minute than in the next; so both are of the same seconds.
    """
    called, served = list[float](), list[float]()
    for _ in range(pairs):
        called.append(1000 * median(whole for whole, _ in ask("calls", 1, seconds)))
        served.append(asyncio.run(closed(post, 1, seconds, 0.2)).percentile(0.5))
    over = np.subtract(served, called)
    return {
        "bare": median(called),
        "served": median(served),
        "over": float(np.median(over)),
        "quartiles": np.percentile(over, (25, 75)).tolist(),
    }


def pinned() -> dict[str, float]:
    """Put translators on the model's core and all else on the others; the resident MiB of every replica by deployment."""
    others = os.sched_getaffinity(0) - {MODEL_CORE} or {MODEL_CORE}
    memory: dict[str, float] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if f"{os.getuid()}" != str(folder.stat().st_uid) or not _ours(int(folder.name)):
                continue
            cores = {MODEL_CORE} if "ServeReplica:recollect:Translator" in name else others
            for task in (folder / "task").iterdir():
                os.sched_setaffinity(int(task.name), cores)
            if name.startswith("ray::ServeReplica:recollect:"):
                kind = name.split(":")[4].split()[0].split("#")[0].split(".")[0]
                memory[kind] = int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        except (OSError, ProcessLookupError):
            continue
    return memory


def _ours(pid: int) -> bool:
    """Whether a process descends from this one."""
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def measure(name: str, seconds: float) -> dict[str, Any]:
    """All arms of a case."""
    kind, side = CASES[name]
    content = picture(side)
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), kind)
        with ExitStack() as stack:
            ask = stack.enter_context(bare_process(path, content))
            found: dict[str, Any] = {"preset": kind, "side": side, "bytes": len(content), "bare": ask("rates", seconds)}
            began = time.perf_counter()
            running = stack.enter_context(run.start(path, port=free_port(), cpus_per_replica=1, max_queued=256))
            found["cold_start_s"] = time.perf_counter() - began
            found["memory_mib"] = pinned()
            os.sched_setaffinity(0, os.sched_getaffinity(0) - {MODEL_CORE} or {MODEL_CORE})
            post = Post(f"{running.url}/v1/translate", {"target": "night"}, content)
            found["one"] = paired(ask, post, PAIRS, max(seconds / PAIRS, 4 * found["bare"]["1"]["ms"] / 1000))
            found["served"] = {str(count): _row(asyncio.run(closed(post, count, seconds))) for count in CLIENTS}
            ray.serve.run(Nothing.bind(Echo.bind()), name="nothing", route_prefix="/nothing")  # type: ignore[attr-defined]
            pinned()
            nothing = Post(f"{running.url}/nothing/", {}, content)
            found["nothing"] = {str(count): _row(asyncio.run(closed(nothing, count, seconds / 2))) for count in CLIENTS}
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    return found


def _row(outcome: Outcome) -> dict[str, Any]:
    return {
        "rate": outcome.rate,
        "p50": outcome.percentile(0.5),
        "p99": outcome.percentile(0.99),
        "failed": outcome.failed,
        "retries": outcome.retries,
        "told": outcome.told[:2],
    }


def page(results: dict[str, Any], words: str = "") -> str:
    """The results as Markdown, and the words of the command."""
    lines = [
        "# Serving, measured",
        "",
        f"`python -m benchmarks.serve{words}`, {date.today()}: recollect {recollect.__version__}, "
        f"torch {torch.__version__}, Ray {ray.__version__}, {os.cpu_count()} cores.",
        "",
        "The model has one thread on a core of its own; load generator, HAProxy, ingress and Ray share the others. PNG in and "
        "out in every arm. Untrained MGUIT: weights do not change the time.",
        "",
        "| case | step, ms a picture | bare pictures/s | clients | served pictures/s | of the bare | p50 ms | p99 ms | retries | "
        "no-op pictures/s | no-op p50 ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, case in results.items():
        best = max(case["bare"].items(), key=lambda item: float(item[1]["rate"]))
        step = best[1]["step_ms"] / int(best[0])
        for count, row in case["served"].items():
            cells = [name, f"{step:.1f}", f"{best[1]['rate']:.1f} (batch {best[0]})", count, f"{row['rate']:.1f}"]
            cells += [
                f"{100 * row['rate'] / best[1]['rate']:.0f} %",
                f"{row['p50']:.1f}",
                f"{row['p99']:.1f}",
                str(row["retries"]),
            ]
            idle = case["nothing"][count]
            cells += [f"{idle['rate']:.0f}", f"{idle['p50']:.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"One client, in {PAIRS} pairs of bare calls and requests: medians, and quartiles over the pairs.",
        "",
        "| case | bare call, ms | request, ms | over it, ms | quartiles | cold start, s | memory, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, case in results.items():
        memory = ", ".join(f"{kind} {size:.0f}" for kind, size in sorted(case["memory_mib"].items()))
        one, low, high = case["one"], *case["one"]["quartiles"]
        cells = [name, f"{one['bare']:.1f}", f"{one['served']:.1f}", f"{one['over']:.1f}", f"{low:.1f} to {high:.1f}"]
        cells += [f"{case['cold_start_s']:.1f}", memory]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main(words: Sequence[str] | None = None) -> None:
    """Measure, keep, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this one (repeat)")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--out", type=Path, default=PAGE)
    asked = parser.parse_args(words)
    results = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for name in asked.case or CASES:
        results[name] = measure(name, asked.seconds)
        print(name, json.dumps(results[name], indent=1), flush=True)
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        KEPT.write_text(json.dumps(results, indent=1))
    ordered = {name: results[name] for name in CASES if name in results}
    asked.out.write_text(page(ordered, "".join(f" {word}" for word in (sys.argv[1:] if words is None else words))))
    print(asked.out)


if __name__ == "__main__":
    main()
