"""TensorBoard on a folder's runs and optuna-dashboard on its studies, started together and stopped together.

Each is a process of its own in a session of its own, so that whatever it starts ends with it.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Self

from recollect.ports import free_port

JOURNAL = "study.journal"
READY = 90.0  # seconds until a dashboard must answer: TensorBoard takes twenty on a busy machine
PATIENCE = 5.0  # seconds that a process has to end by itself
LOOK = 2.0  # seconds between looks for new studies
STOPPING = (signal.SIGINT, signal.SIGTERM)
INSTALL = "pip install 'recollect[board]'"


@dataclass
class Board:
    """One dashboard: its process, where it answers, and where it logs."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    log: IO[bytes] = field(repr=False)

    @classmethod
    def start(cls, name: str, module: str, words: Sequence[str], host: str, port: int) -> Self:
        """Start `python -m module words --host ... --port ...`; `wait` says when it answers."""
        log = tempfile.TemporaryFile()  # noqa: SIM115  (it is open as long as the process runs)
        process = subprocess.Popen(
            [sys.executable, "-m", module, *words, "--host", host, "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        return cls(name, f"http://{host}:{port}/", process, log)

    def wait(self, seconds: float = READY) -> None:
        """Return when it answers over HTTP. Raises ValueError, with the end of its log, where it does not."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            try:
                urllib.request.urlopen(self.url, timeout=5).close()
                return
            except urllib.error.HTTPError:  # it answers
                return
            except OSError:
                time.sleep(0.2)
        self.log.seek(0)
        said = " | ".join(self.log.read().decode(errors="replace").strip().splitlines()[-3:])
        how = "does not answer" if self.process.poll() is None else f"ended with code {self.process.returncode}"
        raise ValueError(f"{self.name} {how}: {said or 'it said nothing'}")

    def stop(self) -> None:
        """End it and everything it started."""
        for signum in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, signum)
            except ProcessLookupError:  # all of it has ended
                break
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                continue
        self.process.wait()
        self.log.close()


def run_boards(
    storage: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    say: Callable[[str], None] = print,
) -> None:
    """Serve what lies below `storage` until Ctrl-C or SIGTERM; studies that appear meanwhile get a dashboard too.

    Args:
        storage: a folder: of runs, a search's storage, or both.
        host: the address to listen on.
        port: TensorBoard's; the dashboards of studies take those after it. 0: free ones.
        say: told the URLs.

    Raises ValueError for a place that is no local folder, and where a dashboard is not installed, does not start or ends.
    """
    folder = _folder(storage)
    _installed()
    before = {signum: signal.signal(signum, _stop_once) for signum in STOPPING}
    boards: list[Board] = []
    studies: dict[Path, Board] = {}
    try:
        boards.append(Board.start("TensorBoard", "tensorboard.main", ["--logdir", str(folder)], host, port or free_port()))
        boards[0].wait()
        runs = len({path.parent for path in folder.rglob("events.out.tfevents.*")})
        say(f"TensorBoard       {boards[0].url}   {runs or 'no'} run{'s' * (runs != 1)} so far")
        _look(folder, studies, host, port, say)
        if not studies:
            say(f"optuna-dashboard  no study yet: there is no {JOURNAL} below {folder} (recollect search writes one)")
        for url in _ray():
            say(f"Ray dashboard     {url}")
        say("Ctrl-C ends them")
        while True:
            time.sleep(LOOK)
            for board in [*boards, *studies.values()]:
                if board.process.poll() is not None:
                    board.wait(0)
            _look(folder, studies, host, port, say)
    except KeyboardInterrupt:
        say("stopped")
    finally:
        for board in [*boards, *studies.values()]:
            board.stop()
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _stop_once(signum: int, frame: FrameType | None) -> None:
    """Stop; further signals do not stop the stopping."""
    for each in STOPPING:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def _folder(storage: str | os.PathLike[str]) -> Path:
    text = os.fspath(storage)
    if "://" in text:
        raise ValueError(f"{text} is not on this machine; copy it here first, for instance with `aws s3 sync`")
    if not Path(text).is_dir():
        raise ValueError(f"there is no folder {text}; give the folder of your runs, or a search's --storage")
    return Path(text)


def _installed() -> None:
    for name, module in (("TensorBoard", "tensorboard"), ("optuna-dashboard", "optuna_dashboard")):
        if importlib.util.find_spec(module) is None:
            raise ValueError(f"{name} is not installed: {INSTALL}")


def _look(folder: Path, studies: dict[Path, Board], host: str, port: int, say: Callable[[str], None]) -> None:
    """Start a dashboard for every study that has none."""
    for journal in sorted(folder.rglob(JOURNAL)):
        if journal not in studies and journal.stat().st_size:
            own = port + 1 + len(studies) if port else free_port()
            words = [str(journal), "--storage-class", "JournalFileStorage", "--quiet"]
            # its package has no __main__; this module is what its command calls
            studies[journal] = Board.start("optuna-dashboard", "optuna_dashboard._cli", words, host, own)
            studies[journal].wait()
            say(f"optuna-dashboard  {studies[journal].url}dashboard   {journal.parent}")


def _ray() -> list[str]:
    """The dashboards of the Rays on this machine; none where Ray is not installed."""
    try:
        from recollect.cluster import dashboards
    except ImportError:
        return []
    return dashboards()
