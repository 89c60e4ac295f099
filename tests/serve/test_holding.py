"""What users notice of deaths and changes under load: nothing. A 503 is tried again, as its header says; anything else counts.

The load is a share of what the server answered just before, sent by the clock whether earlier requests are answered or not.
Asserted is that no request ends with anything but a 200, and that the load was there: 90 % of that rate at least was sent.
How long answers take is printed and not asserted: on two cores the replicas that start take the time of those that answer.

`make test-holding`; RECOLLECT_HOLD_S sets how long each part lasts (default 60).
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.load import Outcome, Post, closed, paced
from recollect.retrieval.directory import change_index, read_manifest
from serve import run
from tests.serve.conftest import encoded, painted
from tests.serve.guided import Guided, write_guided
from tests.serve.test_http import free_port
from tests.serve.test_run import processes_below

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
HOLD_S = float(os.environ.get("RECOLLECT_HOLD_S", "60"))
KILL_EVERY_S = 20.0
SHARE = 0.8  # of what it can answer at most


class Held:
    """A server, and load for it."""

    def __init__(self, running: run.Running, guided: Guided) -> None:
        self.running, self.guided = running, guided
        content = encoded(painted(32, 32))
        self.post = Post(f"{running.url}/v1/translate", {"neighbours": "ids"}, content)

    def under_load(self, happens: Callable[[Callable[[], bool]], None]) -> Outcome:
        """Load for HOLD_S, while something happens beside it."""
        most = asyncio.run(closed(self.post, 16, 5)).rate
        rate = SHARE * most
        assert rate > 1
        until = time.monotonic() + HOLD_S
        busy = threading.Thread(target=happens, args=(lambda: time.monotonic() < until,))
        busy.start()
        outcome = asyncio.run(paced(self.post, rate, lambda: time.monotonic() < until or busy.is_alive()))
        busy.join()
        sent = sum(outcome.statuses.values())
        print(f"{most:.1f}/s before; {sent} sent at {rate:.1f}/s: {dict(outcome.statuses)}, {outcome.retries} retries of a 503")
        print(f"p50 {outcome.percentile(0.5):.0f} ms, p99 {outcome.percentile(0.99):.0f} ms")
        assert sent > 0.9 * rate * HOLD_S
        return outcome


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Held]:
    guided = write_guided(tmp_path_factory.mktemp("held"))
    options: dict[str, Any] = {"replicas": 2, "retriever_replicas": 2, "ingress_replicas": 2, "index_poll_s": 0.5, "drain_s": 10}
    with run.start(guided.bundle, port=free_port(), cpus_per_replica=1, **options) as running:
        yield Held(running, guided)


def replicas(kind: str) -> list[int]:
    """The processes of a deployment's replicas."""
    found = []
    for pid in processes_below(os.getpid()):
        try:
            name = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if name.startswith(f"ray::ServeReplica:recollect:{kind}".encode()):
            found.append(pid)
    return sorted(found)


def test_a_replica_dies_every_20_seconds(held: Held) -> None:
    killed = []

    def happens(going: Callable[[], bool]) -> None:
        while going():
            kind = ("Translator", "Retriever", "Ingress")[len(killed) % 3]
            victim = replicas(kind)[0]
            os.kill(victim, signal.SIGKILL)
            killed.append(kind)
            until = time.monotonic() + KILL_EVERY_S
            while going() and time.monotonic() < until:
                time.sleep(0.1)

    outcome = held.under_load(happens)
    print("killed:", killed)
    assert len(killed) >= HOLD_S // KILL_EVERY_S
    assert outcome.failed == 0, (outcome.statuses, outcome.told[:5])


def test_a_rolling_update_to_another_bundle(held: Held, tmp_path: Path) -> None:
    other = write_guided(tmp_path / "other", name="other")
    seen = []

    def happens(going: Callable[[], bool]) -> None:
        held.running.update(str(other.bundle))
        seen.append(held.running.card["name"])

    outcome = held.under_load(happens)
    assert seen == ["other"]
    assert outcome.failed == 0, (outcome.statuses, outcome.told[:5])


def test_the_index_is_swapped(held: Held) -> None:
    versions = [read_manifest(held.guided.index).version]

    def happens(going: Callable[[], bool]) -> None:
        while going():
            gone = f"p{len(versions):03d}"

            def change(index: Any, manifest: Any, gone: str = gone) -> Any:
                if gone in index:
                    index.remove([gone])
                return manifest.origin

            versions.append(change_index(held.guided.index, change).version)
            time.sleep(2)

    outcome = held.under_load(happens)
    assert len(versions) > HOLD_S / 4
    assert outcome.failed == 0, (outcome.statuses, outcome.told[:5])
