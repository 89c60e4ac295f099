"""The client, over real HTTP: what it sends, what it makes of answers, and when it asks again."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import pickle
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from recollect.client import AsyncClient, Client, ServerError
from recollect.client.calls import file_of
from tests.serve.conftest import encoded, painted

ANSWER = {
    "images": [base64.b64encode(encoded(painted(20, 16, seed))).decode() for seed in (1, 2)],
    "seeds": [7, 8],
    "model": "m",
    "digest": "d",
    "width": 20,
    "height": 16,
    "format": "png",
    "extras": {},
}
BUSY = json.dumps({"error": {"code": "busy", "message": "the queue is full", "hint": "try again"}})


class Scripted(BaseHTTPRequestHandler):
    """Answers by a script: (status, headers, body) in turn, the last one for ever; None breaks the connection off."""

    protocol_version = "HTTP/1.1"
    script: list[tuple[int, dict[str, str], str] | None] = []
    seen: list[tuple[str, dict[str, str], Any]] = []

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.seen.append((self.path, dict(self.headers), json.loads(content or "null")))
        turn = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if turn is None:
            self.connection.close()
            self.close_connection = True
            return
        status, headers, body = turn
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body.encode()))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())

    do_GET = do_POST

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def scripted() -> Iterator[tuple[str, type[Scripted]]]:
    handler = type("Handler", (Scripted,), {"script": [], "seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler
    server.shutdown()
    server.server_close()


def call(kind: str, url: str, **options: Any) -> tuple[Any, int]:
    """One translation by either client, and how many requests were asked again."""
    if kind == "sync":
        with Client(url, trust_env=False, **options) as client:
            return client.translate(painted(20, 16), "night"), client.repeated

    async def asked() -> tuple[Any, int]:
        async with AsyncClient(url, trust_env=False, **options) as client:
            return await client.translate(painted(20, 16), "night"), client.repeated

    return asyncio.run(asked())


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_busy_server_and_a_broken_connection_are_asked_again(kind: str, scripted: tuple[str, type[Scripted]]) -> None:
    url, handler = scripted
    handler.script[:] = [(503, {"Retry-After": "0.3"}, BUSY), None, (429, {}, BUSY), (200, {}, json.dumps(ANSWER))]
    before = time.monotonic()
    answer, repeated = call(kind, url, token="secret-of-the-test")
    assert repeated == 3 and answer.seeds == (7, 8) and time.monotonic() - before > 0.5
    assert [image.size for image in answer.images] == [(20, 16)] * 2
    assert {headers["Authorization"] for _, headers, _ in handler.seen} == {"Bearer secret-of-the-test"}


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(
    ("turn", "options", "status", "code"),
    [
        ((503, {"Retry-After": "0"}, BUSY), {"retries": 2}, 503, "busy"),
        ((503, {"Retry-After": "60"}, BUSY), {"timeout_s": 5}, 503, "busy"),  # there is no time to wait that long
        ((422, {}, BUSY.replace("busy", "unknown_domain")), {}, 422, "unknown_domain"),
        ((502, {}, "<html>Bad Gateway</html>"), {}, 502, "http_error"),
        ((302, {"Location": "http://elsewhere.invalid/"}, ""), {}, 302, "http_error"),
        (None, {"retries": 1}, 0, "unreachable"),
    ],
)
def test_failures(kind: str, scripted: tuple[str, type[Scripted]], turn: Any, options: Any, status: int, code: str) -> None:
    url, handler = scripted
    handler.script[:] = [turn]
    with pytest.raises(ServerError) as raised:
        call(kind, url, **options)
    error = raised.value
    assert (error.status, error.code) == (status, code) and error.message and code in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (again.code, again.message, again.hint) == (error.code, error.message, error.hint)
    assert len(handler.seen) == 1 + (options.get("retries", 0))


def test_time_limits_and_addresses(scripted: tuple[str, type[Scripted]]) -> None:
    url, handler = scripted
    handler.script[:] = [(503, {"Retry-After": "0.2"}, BUSY)]
    before = time.monotonic()
    with pytest.raises(ServerError, match="busy"):
        call("sync", url, timeout_s=0.7, retries=100)
    assert time.monotonic() - before < 2
    with pytest.raises(ServerError, match="unreachable"):
        call("sync", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="begins with http"):
        Client("127.0.0.1:8000")


def test_a_silent_server_is_a_timeout() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        before = time.monotonic()
        with pytest.raises(ServerError, match="timeout"):
            call("sync", f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.4)
        assert 0.3 < time.monotonic() - before < 5


def test_what_is_sent(scripted: tuple[str, type[Scripted]], tmp_path: Path) -> None:
    url, handler = scripted
    handler.script[:] = [(200, {}, json.dumps(ANSWER))]
    picture = encoded(painted(20, 16), "JPEG")
    (tmp_path / "a.jpg").write_bytes(picture)
    text = base64.b64encode(picture).decode()
    styles = {"car": {"exemplar": tmp_path / "a.jpg"}, "sign": {"mix": [{"stored": True}, {"exemplar": picture}], "amount": 0.5}}
    with Client(f"{url}/prefix/", trust_env=False) as client:
        client.translate(picture, "night", samples=2, seed=7, styles=styles, exemplar=str(tmp_path / "a.jpg"), memory_map=True)
        client.translate(picture, attributes={"Male": 0.5})
    (path, headers, body), (_, _, other) = handler.seen
    assert path == "/prefix/v1/translate" and "Authorization" not in headers
    assert body == {
        "image": text,
        "target": "night",
        "samples": 2,
        "seed": 7,
        "styles": {"car": {"exemplar": text}, "sign": {"mix": [{"stored": True}, {"exemplar": text}], "amount": 0.5}},
        "exemplar": text,
        "memory_map": True,
    }
    assert other == {"image": text, "attributes": {"Male": 0.5}}


def test_pictures_of_any_kind(tmp_path: Path) -> None:
    image = painted(20, 16)
    pixels = np.asarray(image)
    for given in (image, pixels, pixels[:, :, 0]):
        made = np.asarray(Image.open(io.BytesIO(file_of(given))))
        assert np.array_equal(made, np.asarray(given))
    for wrong in (pixels.astype(np.float32), pixels.transpose(2, 0, 1)):
        with pytest.raises(ValueError, match=r"uint8 of shape \(H, W, 3\)"):
            file_of(wrong)
    with pytest.raises(FileNotFoundError):
        file_of(tmp_path / "none.png")


def test_answers_are_saved_as_they_came(scripted: tuple[str, type[Scripted]], tmp_path: Path) -> None:
    url, handler = scripted
    handler.script[:] = [(200, {}, json.dumps(ANSWER))]
    answer, _ = call("sync", url)
    paths = answer.save(tmp_path / "out", "street")
    assert [path.name for path in paths] == ["street-7.png", "street-8.png"]
    assert [path.read_bytes() for path in paths] == [base64.b64decode(text) for text in ANSWER["images"]]


def test_torch_is_not_needed() -> None:
    import subprocess
    import sys

    code = "import sys, recollect.client; assert not {'torch', 'ray', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
