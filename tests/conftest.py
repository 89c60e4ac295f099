"""In CI a test may be skipped only for a reason that `skips.txt` lists: a test that silently stopped running is a failure."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is imported: threads that spin while they wait make the tests eight times slower where cores are shared.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Ray's workers stand back behind every other process by default, and beside a training of one's own they hardly run.
os.environ.setdefault("RAY_worker_niceness", "0")

LISTED = Path(__file__).with_name("skips.txt")


def allowed() -> tuple[str, ...]:
    """The beginnings of the reasons that are accepted, one a line; what follows a `#` says why."""
    lines = (line.partition("#")[0].strip() for line in LISTED.read_text().splitlines())
    return tuple(line for line in lines if line)


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("CI"):
        config.pluginmanager.register(Skips(), "listed-skips")


class Skips:
    """Collects the skips whose reason is not listed, and makes them the session's failure."""

    def __init__(self) -> None:
        self.allowed, self.unlisted = allowed(), list[str]()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not hasattr(report, "wasxfail"):
            self._look(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._look(report)

    def _look(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ")
            if not reason.startswith(self.allowed):
                self.unlisted.append(f"{report.nodeid}: {reason}")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unlisted and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.unlisted:
            terminalreporter.section("skipped in CI for a reason that tests/skips.txt does not list", red=True)
            for line in self.unlisted:
                terminalreporter.line(line)
