"""The dashboards: both answer, a study that appears later gets one too, and nothing is left running."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from recollect import board
from recollect.board import Board, run_boards
from recollect.ports import free_port

ROOT = Path(__file__).parents[2]


def test_what_cannot_be_shown_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        run_boards(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="not on this machine; copy it here"):
        run_boards("s3://bucket/search")
    for name in ("tensorboard", "optuna_dashboard"):
        monkeypatch.setattr(board.importlib.util, "find_spec", lambda module, name=name: None if module == name else object())
        with pytest.raises(ValueError, match=r"is not installed: pip install 'recollect\[board\]'"):
            run_boards(tmp_path)


def test_one_that_ends_says_why_and_one_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    began = Board.start("Gone", "no_such_module", [], "127.0.0.1", free_port())
    with pytest.raises(ValueError, match="Gone ended with code 1: .*No module named no_such_module"):
        began.wait()
    began.stop()
    monkeypatch.setattr(board, "PATIENCE", 0.3)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout and process.stdout.readline() == b"deaf\n"
    Board("Deaf", f"http://127.0.0.1:{free_port()}/", process, process.stdout).stop()
    assert process.returncode == -signal.SIGKILL


@contextmanager
def running(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """`recollect board` as a process of its own."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "platform"), str(ROOT)])}
    command = [sys.executable, "-m", "recollect.cli", "board", str(folder)]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def line(process: subprocess.Popen[str], start: str) -> str:
    """The next line that begins so."""
    assert process.stdout
    for text in process.stdout:
        if text.startswith(start):
            return text
    raise AssertionError(f"it ended without saying {start}")


def children(of: int) -> set[int]:
    """The processes below one."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:  # it has just ended
            continue
    found = {of}
    while grown := {child for child, parent in parents.items() if parent in found} - found:
        found |= grown
    return found - {of}


def make_study(journal: Path) -> None:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    journal.parent.mkdir(parents=True)
    study = optuna.create_study(storage=JournalStorage(JournalFileBackend(str(journal))), study_name="night")
    study.optimize(lambda trial: trial.suggest_float("con_k", 0, 1) ** 2, n_trials=3)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_both_answer_and_nothing_is_left(tmp_path: Path, how: signal.Signals) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "first" / "tensorboard")) as writer:
        writer.add_scalar("loss/con_k", 1.5, 3)
    with running(tmp_path) as process:
        first = line(process, "TensorBoard")
        url = re.search(r"http://\S+", first)
        assert url and "1 run so far" in first
        assert "no study yet" in line(process, "optuna-dashboard")
        runs = urllib.request.urlopen(f"{url[0]}data/plugin/scalars/tags", timeout=20).read().decode()
        assert "first" in runs and "loss/con_k" in runs
        make_study(tmp_path / "search" / "study.journal")
        found = re.search(r"(http://\S+)dashboard   (\S+)", line(process, "optuna-dashboard"))
        assert found and found[2] == str(tmp_path / "search")
        studies = urllib.request.urlopen(f"{found[1]}api/studies", timeout=20).read().decode()
        assert '"night"' in studies
        below = children(process.pid)
        assert len(below) >= 2
        process.send_signal(how)
        process.send_signal(how)  # an impatient one
        assert process.wait(30) in (0, 130)
        until = time.monotonic() + 5
        while any(Path(f"/proc/{child}").exists() for child in below) and time.monotonic() < until:
            time.sleep(0.1)
        assert [child for child in below if Path(f"/proc/{child}").exists()] == []


@pytest.mark.slow
def test_one_that_dies_ends_the_others(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        line(process, "Ctrl-C")
        below = children(process.pid)
        os.kill(min(below), signal.SIGKILL)
        assert "TensorBoard ended with code -9" in line(process, "error:")
        assert process.wait(20) == 2
