"""What is around the networks: the memory, the feed, the worlds, opening and importing."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import Work
from recollect.bundle import open_bundle
from recollect.config import overlay, preset
from recollect.data.loader import Feed
from recollect.data.remote import RemoteFeed
from recollect.data.store import Store
from recollect.data.worlds import build_faces, build_streets, faces, streets
from recollect.pipeline import Pipeline
from recollect.training.engine import Batches
from recollect.training.session import suit, train
from trainables.parts.memory import ClassAwareMemory

ITEMS = {"background": 10, "car": 5, "person": 3, "sign": 2}
PIXELS = (1024, 8100, 65536)
IMPORTS = ("recollect", "recollect.cli", "recollect.pipeline", "ray")


def memories(device: str = "cpu") -> dict[str, Work]:
    """Reads of all maps that a step needs (each domain's pixels in both domains, and with random values) and the write."""
    return {
        f"memory: 6 reads + write, P {pixels}, N {20 * factor}, C 256": memory(pixels, factor, device)
        for pixels in PIXELS
        for factor in (1, 10)
    }


def memory(pixels: int, factor: int = 1, device: str = "cpu", value_dim: int = 256) -> Work:
    """The memory's part of a step, without gradients."""
    made = ClassAwareMemory({name: count * factor for name, count in ITEMS.items()}, 256, value_dim).to(device)
    side = round(pixels**0.5)
    contents = [torch.randn(1, 256, side, side, device=device) for _ in range(2)]
    styles = [torch.randn(1, value_dim, side, side, device=device) for _ in range(2)]
    classes = [torch.randint(0, 4, (1, side, side), device=device) for _ in range(2)]
    random = torch.randn(1, 20 * factor, value_dim, device=device)

    def work() -> None:
        with torch.no_grad():
            state = made.update(contents, styles, classes)
            for x in (0, 1):
                weights = made.address(contents[x], classes[x], state)
                for values in (None, random):
                    made.recall(weights, 1 - x, state, values)
                made.recall(weights, x, state)

    return work


def feeds(folder: Path) -> dict[str, Work]:
    """Reading, cutting and rasterising a batch of 8 pictures a domain; drawing one picture."""
    build_streets(folder / "streets", size=128, train=64, val=2, test=2, references=1)
    build_faces(folder / "faces", size=128, train=64, val=2, test=2)
    found: dict[str, Work] = {}
    for name, domains in (("streets", ("sunny", "night")), ("faces", ("faces",))):
        store = Store.open(folder / name)
        for size in (64, 128):
            data = preset("mguit:tiny", data={"domains": domains, "size": size}).data
            feed = Feed(store, data, 8, 2, 0)
            found[f"feed: {8 * len(domains)} pictures of {name}, {size} px"] = lambda feed=feed: feed.batches(0)  # type: ignore[misc]
    found["world: one streets picture, 128 px"] = _street
    found["world: one face, 128 px"] = _face
    return found


@dataclass(frozen=True)
class Fed:
    """What a feed gives, by the wall clock, and what of its work stays with the process that trains."""

    pictures_per_s: float
    own_cpu_ms: float  # of the training process, a picture


def fed(folder: Path, size: int = 256, steps: int = 40, ahead: int = 4) -> dict[str, Fed]:
    """The local feed, and Ray tasks on a private cluster with this machine's cores; 8 pictures a domain and step, no training."""
    from recollect.cluster import connect, disconnect

    build_streets(folder / "fed", size=size, train=64, val=2, test=2, references=1)
    data = preset("mguit:tiny", data={"domains": ("sunny", "night"), "size": size}).data
    feed = Feed(Store.open(folder / "fed"), data, 8, 2, 0, workers=ahead // 2)
    found = {f"local, {ahead // 2} threads": _fed(feed, steps)}
    connect("local", dashboard=False)
    try:
        found[f"ray, {ahead} steps ahead"] = _fed(RemoteFeed(feed, ahead), steps)
    finally:
        disconnect()
    return found


def _fed(feed: Batches, steps: int) -> Fed:
    """The first steps start what has to be started; the others count."""
    warm, pictures, wall, cpu = 10, 0, 0.0, 0.0
    for step, batches in feed.stream(0, warm + steps):
        if step == warm:
            wall, cpu = time.perf_counter(), time.process_time()
        elif step > warm:
            pictures += sum(map(len, batches))
    return Fed(pictures / (time.perf_counter() - wall), (time.process_time() - cpu) / pictures * 1e3)


def _street() -> None:
    scene = streets.draw_scene(7, 128)
    streets.render(scene, streets.draw_style("night", np.random.default_rng(7)))


def _face() -> None:
    face = faces.draw_face(7, 0.0)
    faces.render(face, faces.draw_style(face, face.own), 128)


def opening(folder: Path) -> dict[str, Work]:
    """Opening a bundle, with its digests verified, and as a pipeline."""
    store = Store.open(folder / "streets")
    run = overlay(preset("mguit:tiny", data={"store": store.uri}), {"engine.steps": 1, "engine.device": "cpu"})
    bundle = train(suit(run, store, lambda text: None), folder / "run")
    return {"open a bundle": lambda: open_bundle(bundle), "open it as a pipeline": lambda: Pipeline.open(bundle)}


def importing(repeats: int = 3) -> list[list[str]]:
    """Seconds of the wall clock that fresh interpreters take: rows of a table."""
    commands = {f"import {name}": [sys.executable, "-c", f"import {name}"] for name in IMPORTS}
    commands["recollect --help"] = [sys.executable, "-m", "recollect.cli", "--help"]
    rows = []
    for name, command in commands.items():
        seconds = []
        for _ in range(repeats):
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - began)
        rows.append([name, f"{statistics.median(seconds):.2f}"])
    return rows


def peak_memory(name: str, size: int, batch: int) -> float:
    """GiB that a process needs at most which takes two steps of a preset on the CPU, with all its libraries."""
    code = (  # the high water mark of its own memory: `ru_maxrss` is at least that of the process which started it
        "import sys; from benchmarks.steps import step; work = step(*sys.argv[1:2], *map(int, sys.argv[2:])); work(); work(); "
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
    )
    said = subprocess.run([sys.executable, "-c", code, name, str(size), str(batch)], check=True, capture_output=True, text=True)
    return int(said.stdout.split()[-1]) / 2**20
