"""An S3 server of the tests' own, and a line to it that can be slow, or hang."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyarrow import fs

from recollect.cluster import free_port

SERVER = os.environ.get("S3_SERVER", "")  # not any moto that happens to be there: versions differ in what they can
needs_server = pytest.mark.skipif(not SERVER, reason="no S3 server: `make test-bucket` brings one")
CHUNK = 16 * 2**10


@dataclass(frozen=True)
class Bucket:
    """An empty bucket."""

    uri: str
    port: int
    log: Path

    def reads(self, pattern: str) -> list[str]:
        """The objects that were read, whole or in part, and whose names match."""
        return [name for name in re.findall(r"GET /bucket/(\S+) HTTP", self.log.read_text()) if re.search(pattern, name)]


@contextmanager
def serving(log: Path) -> Iterator[Bucket]:
    """A server with a bucket; what asks for S3 in this process, and in those that it starts, asks it."""
    port = free_port()
    with log.open("w") as stream:
        server = subprocess.Popen([SERVER, "-H", "127.0.0.1", "-p", str(port)], stdout=stream, stderr=subprocess.STDOUT)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=2).close()
                    break
                except OSError:
                    assert time.monotonic() < deadline and server.poll() is None, log.read_text()
                    time.sleep(0.2)
            fs.S3FileSystem(endpoint_override=f"127.0.0.1:{port}", scheme="http", allow_bucket_creation=True).create_dir("bucket")
            yield Bucket("s3://bucket", port, log)
        finally:
            server.terminate()
            server.wait(20)


class Line:
    """A TCP line to a port of this machine, with so many bytes a second to the server; `hang` stops it, connections stay open."""

    def __init__(self, port: int, bytes_per_s: float = float("inf")) -> None:
        self.target, self.bytes_per_s, self.sent = port, bytes_per_s, 0
        self.one_at_a_time, self.flows = threading.Lock(), threading.Event()
        self.flows.set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """For a process that shall come over this line."""
        return {**os.environ, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}"}

    def hang(self) -> None:
        """From now on nothing gets through, and nobody is told."""
        self.flows.clear()

    def close(self) -> None:
        """No further connections."""
        self.flows.set()
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self.listener.accept()
            except OSError:  # closed
                return
            try:
                there = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                here.close()
                continue
            threading.Thread(target=self._carry, args=(here, there, True), daemon=True).start()
            threading.Thread(target=self._carry, args=(there, here, False), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, slow: bool) -> None:
        with suppress(OSError):
            while content := source.recv(CHUNK):
                if slow:
                    with self.one_at_a_time:  # all connections share the line
                        time.sleep(len(content) / self.bytes_per_s)
                        self.sent += len(content)
                self.flows.wait()
                sink.sendall(content)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
