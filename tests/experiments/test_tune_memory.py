"""`experiments/tune_memory.py` as a user starts it: a script in a process of its own, on a Ray of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from recollect.bundle import open_bundle

SCRIPT = Path(__file__).parents[2] / "experiments" / "tune_memory.py"
SMALL = ["--small", "--address", "local", "--steps", "4"]
SMALL += [word for change in ("model.width=8", "model.critic_width=8", "engine.threads=1") for word in ("--set", change)]


def start(storage: Path, *arguments: str) -> subprocess.Popen[str]:
    paths = os.pathsep.join(str(SCRIPT.parents[1] / folder) for folder in ("platform", ""))
    command = [sys.executable, str(SCRIPT), *SMALL, "--storage", str(storage), *arguments]
    pipe = subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, cwd=storage.parent, env=environment)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output
    return output


@pytest.mark.slow
def test_the_small_search_says_what_it_does_and_leaves_its_results(tmp_path: Path) -> None:
    output = finish(start(tmp_path / "search", "--trials", "2"))
    assert "searching the streets world" in output and "minimises scene_error" in output
    trials = pd.read_parquet(tmp_path / "search" / "trials.parquet")
    assert len(trials) == 2
    searched = {name for name in trials.columns if name.startswith("config/")}
    assert {"config/model.memory.items_per_class.car", "config/model.memory.read_temperature", "config/weights.con_k"} <= searched
    winner = open_bundle(tmp_path / "search" / "winner")
    test = pd.read_parquet(tmp_path / "search" / "test.parquet")
    assert set(test["split"]) == {"test"} and winner.digest in set(test["bundle"])
    assert "black" in set(test["name"]) and "winner:" in output


@pytest.mark.slow
def test_a_search_whose_driver_is_killed_goes_on(tmp_path: Path) -> None:
    storage = tmp_path / "search"
    process = start(storage, "--trials", "4", "--steps", "40")
    deadline = time.monotonic() + 200
    while not list(storage.glob("tune/*/checkpoint_*/last/training.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(10)  # the orphaned Ray notices and ends
    output = finish(start(storage, "--trials", "4", "--steps", "40", "--resume"))
    trials = pd.read_parquet(storage / "trials.parquet")
    assert len(trials) == 4 and trials["objective"].notna().all(), output


def test_mistakes_are_one_line_and_exit_2(tmp_path: Path) -> None:
    mistakes = {("--method", "mguti:tiny"): "mguit:tiny", ("--store", str(tmp_path / "none")): "recollect data"}
    started = [(start(tmp_path / "search", *arguments), words) for arguments, words in mistakes.items()]
    for process, words in started:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 2 and words in output and "Traceback" not in output
