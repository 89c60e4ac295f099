"""The endpoint beside the bare pipeline in one process, and a deployment that does nothing: docs/results/serving.md.

Every arm takes PNG files and gives PNG files. The model has one thread, on a core of its own; the load generator, HAProxy, the
ingress and Ray's own processes share the other one. The bare arm decodes, translates and encodes on the model's core, in batches
of the size that is fastest for it. `--case NAME` measures one case; results are kept in a JSON file, and the page is of all.

    python -m benchmarks.serve                      # every case, one after the other
    python -m benchmarks.serve --case tiny-64
"""

import argparse  # no future annotations: FastAPI reads those of `answer`, which is pickled without what only they name
import asyncio
import json
import os
import socket
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
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


def bare(path: Path, content: bytes, seconds: float) -> dict[str, Any]:
    """Pictures a second and milliseconds a batch of the pipeline with its codec, on the model's core; and of its step alone."""
    everything = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {MODEL_CORE})
    torch.set_num_threads(1)
    pipeline, found = Pipeline.open(path), dict[str, Any]()
    try:
        for size in BATCHES:
            steps, done, start = 0.0, -1, time.perf_counter()
            while done < 2 or time.perf_counter() - start < seconds / len(BATCHES):
                images = to_unit(torch.stack([decode(content) for _ in range(size)]))
                before = time.perf_counter()
                drawn = to_uint8(pipeline(images, "night", seeds=list(range(size))).images)
                steps += time.perf_counter() - before
                for one in drawn:
                    encode(one)
                done += 1
                if not done:  # the first one warmed up
                    steps, start = 0.0, time.perf_counter()
            elapsed = time.perf_counter() - start
            found[str(size)] = {"rate": done * size / elapsed, "ms": 1000 * elapsed / done, "step_ms": 1000 * steps / done}
    finally:
        os.sched_setaffinity(0, everything)
    return found


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
        found: dict[str, Any] = {"preset": kind, "side": side, "bytes": len(content), "bare": bare(path, content, seconds)}
        began = time.perf_counter()
        with run.start(path, port=free_port(), cpus_per_replica=1, max_queued=256) as running:
            found["cold_start_s"] = time.perf_counter() - began
            found["memory_mib"] = pinned()
            os.sched_setaffinity(0, os.sched_getaffinity(0) - {MODEL_CORE} or {MODEL_CORE})
            post = Post(f"{running.url}/v1/translate", {"target": "night"}, content)
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


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# Serving, measured",
        "",
        f"`make bench-serve` (`benchmarks/serve.py`), {date.today()}: recollect {recollect.__version__}, "
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
    lines += ["", "| case | one client over the bare call, ms | cold start, s | memory, MiB |", "|---|---|---|---|"]
    for name, case in results.items():
        over = case["served"]["1"]["p50"] - case["bare"]["1"]["ms"]
        memory = ", ".join(f"{kind} {size:.0f}" for kind, size in sorted(case["memory_mib"].items()))
        lines.append(f"| {name} | {over:.1f} | {case['cold_start_s']:.1f} | {memory} |")
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
    asked.out.write_text(page(ordered))
    print(asked.out)


if __name__ == "__main__":
    main()
