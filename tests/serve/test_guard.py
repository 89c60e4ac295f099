"""Who is let in, without Ray; and what a user is told before anything listens."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from serve import haproxy, run
from serve.args import Args
from serve.guard import Guard, checked, digest_of
from tests.serve.translators import write_bundle

TOKEN, ADMIN = "a" * 20, "b" * 20
BOTH = Guard(digest_of(TOKEN), digest_of(ADMIN))


def status(guard: Guard, path: str, token: str = "", caller: str = "203.0.113.9") -> int:
    refusal = guard.refusal(path, f"Bearer {token}" if token else "", caller)
    return refusal.status if refusal else 200


@pytest.mark.parametrize(
    ("guard", "path", "token", "expected"),
    [
        (BOTH, "/v1/translate", "", 401),
        (BOTH, "/v1/translate", TOKEN, 200),
        (BOTH, "/v1/translate", ADMIN, 200),
        (BOTH, "/v1/index/add", TOKEN, 401),
        (BOTH, "/v1/index/add", ADMIN, 200),
        (BOTH, "/v1/index", TOKEN, 200),
        (BOTH, "/", "", 200),
        (BOTH, "/healthz", "", 200),
        (BOTH, "/metrics", "", 401),
        (BOTH, "/nothing", "", 401),
        (BOTH, "//v1/model", "", 401),
        (Guard(), "/v1/translate", "", 200),
        (Guard(), "/v1/index/remove", "", 403),
        (Guard(), "/v1/index/remove", TOKEN, 403),
        (Guard(admin=digest_of(ADMIN)), "/v1/index/remove", "", 401),
        (Guard(admin=digest_of(ADMIN)), "/v1/translate", "", 200),
    ],
)
def test_who_is_let_in(guard: Guard, path: str, token: str, expected: int) -> None:
    assert status(guard, path, token) == expected


@given(some.text(), some.text())
def test_no_header_but_the_right_one_opens(authorization: str, path: str) -> None:
    refusal = BOTH.refusal(f"/v1/{path}", authorization, "127.0.0.1")
    assert refusal is not None and refusal.status == 401


@pytest.mark.parametrize(("caller", "expected"), [("127.0.0.1", 200), ("::1", 200), ("203.0.113.9", 403), ("nonsense", 403)])
def test_a_server_for_this_machine_answers_nobody_else(monkeypatch: pytest.MonkeyPatch, caller: str, expected: int) -> None:
    monkeypatch.setattr("serve.guard.own_addresses", frozenset)
    assert status(Guard(near=True), "/v1/model", caller=caller) == expected
    assert status(Guard(near=True), "/healthz", caller=caller) == expected


def test_a_token_is_long_and_can_be_sent_and_is_kept_by_its_digest() -> None:
    for wrong in ("short", "a" * 15, "with a space and long", "ümlaut-and-more-than-16", "a" * 20 + "\n"):
        with pytest.raises(ValueError, match="openssl rand"):
            checked(wrong, "the token")
    assert checked("", "the token") == "" and checked(TOKEN, "the token") == digest_of(TOKEN)
    with pytest.raises(ValueError, match="token_sha256"):
        Args(bundle="x", token_sha256=TOKEN)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::"])
def test_nobody_listens_to_the_world_without_a_token(tmp_path: Path, host: str) -> None:
    with pytest.raises(ValueError, match="there is no token"):
        run.start(tmp_path, host)
    with pytest.raises(ValueError, match="no bundle"):  # so it is let through to the next check
        run.start(tmp_path, host, insecure=True)
    with pytest.raises(ValueError, match="no bundle"):
        run.start(tmp_path, host, token=TOKEN)
    with pytest.raises(ValueError, match="every node of the cluster"):
        run.start(write_bundle(tmp_path / "b"), address="10.0.0.1:6379")


def test_haproxy_ends_with_whoever_started_it(tmp_path: Path) -> None:
    wrapper = haproxy.environment(tmp_path, "/bin/sleep")["RAY_SERVE_HAPROXY_BINARY_PATH"]
    start = f"import subprocess, time; print(subprocess.Popen([{wrapper!r}, '60']).pid, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            proxy = int(parent.stdout.readline())
            assert eventually(lambda: running(proxy) == "/bin/sleep")
            time.sleep(1.2)  # the watcher has looked
            assert running(proxy) == "/bin/sleep"
        finally:
            parent.kill()
        assert eventually(lambda: not running(proxy))


def test_what_is_left_of_haproxy_is_swept(tmp_path: Path) -> None:
    wrapper = haproxy.environment(tmp_path, sys.executable)["RAY_SERVE_HAPROXY_BINARY_PATH"]
    words = [wrapper, "-c", "import time; time.sleep(60)", str(tmp_path / "haproxy" / "haproxy.cfg")]
    with subprocess.Popen(words) as proxy:
        assert eventually(lambda: running(proxy.pid) == sys.executable)
        haproxy.sweep(tmp_path)
        assert proxy.wait(10) == -signal.SIGKILL


def eventually(holds: Callable[[], bool], seconds: float = 20) -> bool:
    until = time.monotonic() + seconds
    while not holds() and time.monotonic() < until:
        time.sleep(0.05)
    return holds()


def running(pid: int) -> str:
    """What a process is; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]
    except OSError:
        return ""


def test_haproxy_keeps_its_own_ports_on_this_machine(tmp_path: Path) -> None:
    """The wrapper that Ray Serve starts edits what Ray Serve wrote, and then is HAProxy."""
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    found = haproxy.environment(tmp_path, str(program))
    metrics, stats = found["RAY_SERVE_HAPROXY_METRICS_PORT"], found["RAY_SERVE_HAPROXY_STATS_PORT"]
    written = tmp_path / "haproxy.cfg"
    written.write_text(
        f"    bind :{metrics}\n  bind *:{stats}\n    bind *:8000\n    errorfile 502 /x/y.http\n    errorfile 503 /x/y.http\n"
        "    server ours 127.0.0.1:1 check observe layer4\n    server fallback 127.0.0.1:2 check backup\n"
    )
    words = [found["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", str(written), "-sf", "1"]
    assert subprocess.run(words, check=True, capture_output=True, text=True).stdout == f"-db -f {written} -sf 1\n"
    ours = found["RAY_SERVE_HAPROXY_BINARY_PATH"].removesuffix("haproxy") + "unavailable.http"
    assert written.read_text().splitlines() == [
        f"    bind 127.0.0.1:{metrics}",
        f"  bind 127.0.0.1:{stats}",
        "    bind *:8000",
        f"    errorfile 502 {ours}",
        f"    errorfile 503 {ours}",
        "    server ours 127.0.0.1:1 check observe layer4",
        "    server fallback 127.0.0.1:2 check backup disabled",
    ]
    answer = Path(ours).read_bytes()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ") and f"Content-Length: {len(body)}".encode() in head and b"Retry-After: 1" in head
