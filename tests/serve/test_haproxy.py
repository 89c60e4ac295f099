"""HAProxy as the wrapper makes it: what callers see of ingresses that die under their requests."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from serve import haproxy

PROGRAM = haproxy.binary()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="ray[serve] brings a HAProxy on Linux only")
# What Ray Serve writes that matters here, in its words (ray/serve/_private/haproxy_templates.py).
CONFIGURATION = """
global
    tune.bufsize {bufsize}
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option abortonclose
    option redispatch 1
    retry-on {retry_on}
    errorfile 502 /nowhere/500.http
    errorfile 503 /nowhere/500.http
    option idle-close-on-response
frontend http_frontend
    bind 127.0.0.1:{port}
    default_backend ingresses
backend ingresses
    http-reuse always
    balance roundrobin
    default-server fastinter 250ms downinter 250ms fall 2 rise 2 inter 5s check
    {servers}
"""


class Ingress:
    """Answers every request on a kept connection; a mortal one dies of its second request, and takes no more."""

    def __init__(self, mortal: bool) -> None:
        self.mortal, self.asked = mortal, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection = self.listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(ConnectionError):
            while True:
                seen = b""
                while b"end" not in seen:  # of the body
                    part = connection.recv(65536)
                    if not part:
                        return  # a health check, or a caller who is done
                    seen += part
                self.asked += 1
                if self.mortal and self.asked > 1:
                    self.close()
                    return
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine")

    def close(self) -> None:
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)  # a thread waits in accept
        self.listener.close()


@contextmanager
def proxied(folder: Path, *ingresses: Ingress) -> Iterator[str]:
    """The address of a HAProxy in front of these."""
    assert PROGRAM is not None
    found, (port,) = haproxy.environment(folder, PROGRAM), haproxy.free_ports(1)
    servers = "\n    ".join(f"server s{number} 127.0.0.1:{one.port}" for number, one in enumerate(ingresses))
    written = folder / "haproxy" / "haproxy.cfg"
    values = {"bufsize": found["RAY_SERVE_HAPROXY_TUNE_BUFSIZE"], "retry_on": found["RAY_SERVE_HAPROXY_RETRY_ON"]}
    written.write_text(CONFIGURATION.format(port=port, servers=servers, **values))
    with subprocess.Popen([found["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", str(written)]) as process:
        try:
            until = time.monotonic() + 20
            while time.monotonic() < until:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    time.sleep(0.05)
            yield f"http://127.0.0.1:{port}/v1/translate"
        finally:
            process.terminate()
            for one in ingresses:
                one.close()


def in_pieces(size: int) -> Iterator[bytes]:
    """A body that comes after its headers, as those of many clients do."""
    for _ in range(2):
        time.sleep(0.05)
        yield b"." * (size // 2)
    yield b"end"


def post(client: httpx.Client, url: str, size: int = 1000) -> httpx.Response:
    return client.post(url, content=in_pieces(size), headers={"Content-Length": str(size // 2 * 2 + 3)})


@pytest.mark.parametrize("size", [1000, 200_000])
def test_another_ingress_is_asked_when_one_dies_under_a_request(tmp_path: Path, size: int) -> None:
    mortal, other = Ingress(mortal=True), Ingress(mortal=False)
    with proxied(tmp_path, mortal, other) as url, httpx.Client(trust_env=False) as client:  # which keeps its connection
        assert [post(client, url, size).status_code for _ in range(6)] == [200] * 6
    assert mortal.asked == 2


def test_where_no_other_one_is_left_it_is_a_503_in_our_form(tmp_path: Path) -> None:
    with proxied(tmp_path, Ingress(mortal=True)) as url, httpx.Client(trust_env=False) as client:
        assert post(client, url).status_code == 200
        answer = post(client, url)
        assert answer.status_code == 503 and answer.headers["Retry-After"] == "1"
        assert answer.json()["error"]["code"] == answer.headers["X-Recollect-Error"] == "unavailable"
