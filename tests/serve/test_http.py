"""The HTTP interface, over real HTTP against a real Ray Serve: one for the module."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import re
import select
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import ray
import schemathesis
import torch
from hypothesis import HealthCheck, settings
from PIL import Image
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from recollect import bundle
from recollect.client import AsyncClient, Client, ServerError
from recollect.pipeline import Pipeline
from serve import run
from serve.app import api
from tests.serve.conftest import encoded, painted
from tests.serve.hostile import CASES
from tests.serve.translators import DOMAINS, ITEMS, write_bundle

MAX_BYTES, MAX_PIXELS, QUEUED = 200_000, 256 * 256, 16
SLOW_WIDTH, BAD_WIDTH = 120, 100


SCHEMA = schemathesis.openapi.from_dict(api.openapi())
DOCUMENTED = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@dataclass(frozen=True)
class Server:
    url: str
    bundle: Path

    def post(self, image: bytes, **fields: Any) -> httpx.Response:
        return httpx.post(
            f"{self.url}/v1/translate",
            files={"image": image},
            data={"target": "night", **fields},
            timeout=30,
            trust_env=False,
        )

    def json(self, **fields: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/translate", json={"target": "night", **fields}, timeout=30, trust_env=False)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=30, trust_env=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("bundles")
    path = write_bundle(folder, slow_at_width=SLOW_WIDTH, fails_at_width=BAD_WIDTH)
    with run.start(path, port=free_port(), max_queued=QUEUED, max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS) as running:
        yield Server(running.url, path)
    assert not ray.is_initialized()


def pixels(content: bytes) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(np.int64)


def refused(answer: httpx.Response, status: int, code: str) -> dict[str, str]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"} and set(body["error"]) == {"code", "message", "hint"}
    assert body["error"]["code"] == code, body
    assert body["error"]["message"] and "Traceback" not in answer.text
    error: dict[str, str] = body["error"]
    return error


# --- answers


@pytest.mark.parametrize(("width", "height"), [(48, 40), (33, 47), (16, 16)])
def test_a_form_gets_the_picture_the_pipeline_makes(server: Server, width: int, height: int) -> None:
    image = painted(width, height)
    answer = server.post(encoded(image), source="sunny")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-recollect-model"] == "tinted" and "x-recollect-seed" not in answer.headers
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    expected = Pipeline.open(server.bundle)(tensor, "night", "sunny").images[0].permute(1, 2, 0)
    assert np.abs(pixels(answer.content) - ((expected + 1) * 127.5).numpy()).max() <= 1
    assert pixels(answer.content).shape == (height, width, 3)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_formats(server: Server, kind: str) -> None:
    answer = server.post(encoded(painted()), format=kind, seed="3")
    assert answer.headers["content-type"] == f"image/{kind}"
    assert Image.open(io.BytesIO(answer.content)).format == kind.upper()
    assert answer.headers["x-recollect-seed"] == "3"


def test_json_gets_json(server: Server) -> None:
    content = encoded(painted())
    answer = server.json(image=base64.b64encode(content).decode()).json()
    assert (answer["width"], answer["height"], answer["format"], answer["seeds"]) == (48, 40, "png", None)
    assert answer["model"] == "tinted" and answer["digest"] == bundle.open_bundle(server.bundle).digest
    assert set(answer["extras"].values()) == {None}
    assert np.array_equal(pixels(base64.b64decode(answer["images"][0])), pixels(server.post(content).content))
    url = "data:image/png;base64," + base64.encodebytes(content).decode()  # with line breaks
    assert server.json(image=url).json()["images"] == answer["images"]


def test_samples_use_consecutive_seeds(server: Server) -> None:
    content = encoded(painted())
    several = server.post(content, samples="3", seed="5").json()
    assert several["seeds"] == [5, 6, 7]
    images = [base64.b64decode(text) for text in several["images"]]
    assert len(set(images)) == 3
    for seed, image in zip(several["seeds"], images, strict=True):
        assert np.abs(pixels(image) - pixels(server.post(content, seed=str(seed)).content)).max() <= 1


def test_drawn_seeds_are_told(server: Server) -> None:
    content = encoded(painted())
    first, second = (server.post(content, random_style="true") for _ in range(2))
    seed = first.headers["x-recollect-seed"]
    assert seed != second.headers["x-recollect-seed"]
    assert np.abs(pixels(first.content) - pixels(server.post(content, seed=seed).content)).max() <= 1
    drawn = server.post(content, samples="2").json()["seeds"]
    assert drawn[1] == drawn[0] + 1


def test_memory_map(server: Server) -> None:
    image = painted(50, 41)
    answer = server.json(image=base64.b64encode(encoded(image)).decode(), memory_map=True, samples=2).json()
    memory = answer["extras"]["memory_map"]
    shown = Image.open(io.BytesIO(base64.b64decode(memory["image"])))
    assert shown.mode == "P" and memory["cell"] == 4 and shown.size == (13, 11)  # 50 / 4 and 41 / 4, rounded up
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    expected = Pipeline.open(server.bundle)(tensor, "night").extras["memory_map"][0]
    assert expected.max() < ITEMS and np.array_equal(np.asarray(shown), expected.numpy())
    assert server.post(encoded(image), memory_map="true").json()["extras"]["memory_map"] == memory


def test_model_card(server: Server) -> None:
    card = server.get("/v1/model").json()
    assert card["name"] == "tinted" and card["method"] == "tint" and card["size"] == 32 and card["random_styles"]
    assert card["domains"] == list(DOMAINS.names) and card["classes"] == ["background", "car"]
    assert card["limits"]["max_bytes"] == MAX_BYTES and card["limits"]["max_pixels"] == MAX_PIXELS
    assert card["extras"] == ["memory_map"] and card["run"]["model"]["fails_at_width"] == BAD_WIDTH


def test_health_and_docs(server: Server) -> None:
    assert server.get("/healthz").json() == {"ok": True}
    assert server.get("/readyz").json() == {"ready": "tinted"}
    manual = server.get("/docs")
    assert manual.headers["content-type"].startswith("text/html") and "POST /v1/translate" in manual.text
    assert not re.search(r'(src|href)="(https?:)?//', manual.text)
    schema = server.get("/openapi.json").json()
    assert schema["info"]["title"] == "Recollect" and "deterministic" in schema["info"]["description"]
    translate = schema["paths"]["/v1/translate"]["post"]
    assert set(translate["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
    form = translate["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert form["image"]["format"] == "binary" and form["samples"]["maximum"] == 8 and "description" in form["random_style"]
    assert {"200", "413", "415", "422", "500", "503"} <= set(translate["responses"])
    assert "/v1/model" in schema["paths"] and "TranslateAnswer" in schema["components"]["schemas"]


def test_both_clients_get_what_http_gives(server: Server) -> None:
    image = painted()
    sent = server.post(encoded(image), samples="2", seed="5", format="webp").json()

    async def awaited() -> tuple[bytes, ...]:
        async with AsyncClient(server.url, trust_env=False) as client:
            return (await client.translate(image, "night", samples=2, seed=5, format="webp")).encoded

    with Client(server.url, trust_env=False) as client:
        answer = client.translate(np.asarray(image), "night", samples=2, seed=5, format="webp", memory_map=True)
        assert answer.seeds == (5, 6) and answer.format == "webp" and answer.digest == sent["digest"]
        for made, other, text in zip(answer.encoded, asyncio.run(awaited()), sent["images"], strict=True):
            assert np.abs(pixels(made) - pixels(base64.b64decode(text))).max() <= 1
            assert np.abs(pixels(made) - pixels(other)).max() <= 1
        assert answer.memory_map is not None and answer.memory_map.shape == (10, 12) and answer.cell == 4
        assert client.model()["name"] == "tinted" and client.domains()["domains"] == list(DOMAINS.names) and client.items() == []
        with pytest.raises(ServerError, match="did you mean 'night'") as raised:
            client.translate(image, "nigth")
        assert (raised.value.status, raised.value.code) == (422, "unknown_domain") and raised.value.hint


# --- batches


@pytest.mark.parametrize("sizes", [[(48, 40)], [(48, 40), (40, 48)]])
def test_batches_form_and_change_no_answer(server: Server, sizes: list[tuple[int, int]]) -> None:
    """Requests that arrive while a slow forward is under way are answered together, each as if it were alone."""
    asked: list[tuple[bytes, dict[str, str]]] = [(encoded(painted(SLOW_WIDTH, 40)), {"target": "night"})]
    for index in range(15):
        image = encoded(painted(*sizes[index % len(sizes)], seed=index))
        asked.append((image, {"target": ("night", "rainy")[index // 2 % 2], **({"seed": str(index)} if index % 5 else {})}))

    async def all_at_once() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:

            async def post(image: bytes, data: dict[str, str]) -> httpx.Response:
                await asyncio.sleep(0 if image is asked[0][0] else 0.2)
                return await client.post(f"{server.url}/v1/translate", files={"image": image}, data=data)

            return list(await asyncio.gather(*[post(image, data) for image, data in asked]))

    _, *together = asyncio.run(all_at_once())
    shared = [int(answer.headers["x-recollect-batch"]) for answer in together]
    assert max(shared) > 1 and sum(1 / size for size in shared) < 12, shared  # fewer forwards than the 15 requests
    for (image, data), answer in zip(asked[1:], together, strict=True):
        alone = server.post(image, **data)
        assert alone.headers["x-recollect-batch"] == "1"
        assert np.abs(pixels(alone.content) - pixels(answer.content)).max() <= 1


def test_samples_share_a_forward(server: Server) -> None:
    answer = server.post(encoded(painted()), samples="4", seed="0")
    assert answer.headers["x-recollect-batch"] == "4"


# --- refusals


@pytest.mark.parametrize(
    ("image", "status", "code"),
    [
        (b"", 422, "empty"),
        (b"not a picture", 422, "not_a_picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, "not_a_picture"),
        (b"<html></html>", 422, "not_a_picture"),
        (encoded(painted())[:300], 422, "truncated"),
        (encoded(painted(), "PNG", save_all=True, append_images=[painted(seed=1)]), 422, "animated"),
        (encoded(Image.new("RGB", (300, 300))), 413, "too_many_pixels"),
        (encoded(painted(12, 40)), 422, "too_small"),
        (encoded(Image.new("RGB", (16, 400))), 422, "extreme_aspect"),
        (bytes(MAX_BYTES + 1), 413, "too_many_bytes"),
    ],
)
def test_bad_pictures(server: Server, image: bytes, status: int, code: str) -> None:
    refused(server.post(image), status, code)
    refused(server.json(image=base64.b64encode(image).decode()), status, code)


@pytest.mark.parametrize(
    ("fields", "code", "told"),
    [
        ({"target": "nigth"}, "unknown_domain", "did you mean 'night'"),
        ({"source": "foggy"}, "unknown_domain", "rainy"),
        ({"target": ""}, "missing_target", "target"),
        ({"seed": "-1"}, "bad_seed", "greater than or equal to 0"),
        ({"seed": "many"}, "bad_seed", "integer"),
        ({"seed": str(2**32)}, "bad_seed", "less than"),
        ({"samples": "9"}, "bad_samples", "8"),
        ({"samples": "0"}, "bad_samples", "1"),
        ({"format": "gif"}, "bad_format", "webp"),
        ({"sample": "2"}, "unknown_field", "did you mean 'samples'"),
        ({"random_style": "false", "seed": "1"}, "contradiction", "seed"),
        ({"random_style": "false", "samples": "2"}, "contradiction", "samples"),
        ({"target": ["night", "sunny"]}, "bad_target", "more than once"),
        ({"target": "x" * 20_000}, "bad_form", "16KB"),
    ],
)
def test_bad_form_fields(server: Server, fields: dict[str, Any], code: str, told: str) -> None:
    assert told in refused(server.post(encoded(painted()), **fields), 422, code)["message"]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"image": "@@@@"}, "bad_base64"),
        ({"image": "abc"}, "bad_base64"),
        ({"image": "\u00e4\u00e4\u00e4\u00e4"}, "bad_base64"),
        ({"image": 7}, "bad_image"),
        ({}, "missing_image"),
        ({"image": "", "seed": True}, "bad_seed"),
        ({"image": "", "samples": "2"}, "bad_samples"),
        ({"image": "", "colour": 1}, "unknown_field"),
        ({"image": "", "target": "n" * 201}, "bad_target"),  # the time to find a near name grows with its length
        ({"image": "", "styles": {"c" * 201: {"random": 1}}}, "bad_styles"),
    ],
)
def test_bad_json_fields(server: Server, fields: dict[str, Any], code: str) -> None:
    refused(server.json(**fields), 422, code)


def test_bad_bodies(server: Server) -> None:
    url = f"{server.url}/v1/translate"
    for content, kind, status, code in [
        (b"{", "application/json", 422, "invalid_json"),
        (b"\xff\xfe", "application/json", 422, "invalid_json"),
        (b"[" * 50_000, "application/json", 422, "invalid_json"),
        (b"[1]", "application/json", 422, "invalid_request"),
        (b"abc", "multipart/form-data; boundary=x", 422, "bad_form"),
        (b"abc", "multipart/form-data", 422, "bad_form"),
        (encoded(painted()), "image/png", 415, "unsupported_content_type"),
    ]:
        refused(httpx.post(url, content=content, headers={"content-type": kind}, trust_env=False), status, code)
    refused(httpx.post(url, trust_env=False), 415, "unsupported_content_type")
    refused(httpx.post(url, data={"target": "night"}, files={"picture": b"x"}, trust_env=False), 422, "unknown_field")
    refused(httpx.post(url, files={"target": (None, "night")}, trust_env=False), 422, "missing_image")


def test_nothing_that_strangers_send_is_a_fault_of_ours(server: Server) -> None:
    """The whole table over one server: 4xx with a reason, and no memory that stays taken."""
    before, wrong = resident(), []
    with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client:
        for case in CASES:
            answer = client.request(case.method, case.path, content=case.content, headers=case.headers)
            fine = answer.status_code in case.statuses if case.statuses else 400 <= answer.status_code < 500
            told = answer.status_code == 200 or case.method == "HEAD" or answer.json()["error"]["message"]
            if not fine or not told:
                wrong.append((case.name, answer.status_code, answer.text[:200]))
    assert not wrong
    assert len(CASES) >= 200
    assert resident() - before < 300 * 2**20
    assert server.post(encoded(painted())).status_code == 200


@SCHEMA.parametrize()
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
def test_answers_are_as_documented(case: schemathesis.Case, server: Server) -> None:
    case.call_and_validate(base_url=server.url, checks=DOCUMENTED, timeout=30)


@pytest.mark.slow
@SCHEMA.parametrize()
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
def test_many_answers_are_as_documented(case: schemathesis.Case, server: Server) -> None:
    case.call_and_validate(base_url=server.url, checks=DOCUMENTED, timeout=30)


def resident() -> int:
    """Bytes of memory of all replicas that were started from here."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return sum(rss(pid) for pid in pids)


def rss(pid: int) -> int:
    try:
        name = Path(f"/proc/{pid}/cmdline").read_bytes()
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") if name.startswith(b"ray::ServeReplica:recollect:") else 0


def test_not_found_and_wrong_method(server: Server) -> None:
    refused(server.get("/v1/translat"), 404, "not_found")
    answer = server.get("/v1/translate")
    assert "POST" in refused(answer, 405, "method_not_allowed")["hint"] and answer.headers["allow"] == "POST"


def everything(connection: socket.socket) -> bytes:
    """What the server sends until it has said what it announced, or closes."""
    received = b""
    while b'"}}' not in received and (part := connection.recv(65536)):
        received += part
    return received


def test_declared_length_is_refused_before_the_body(server: Server) -> None:
    """Only the headers are sent; a server that waited for the body would never answer."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = "POST /v1/translate HTTP/1.1\r\nHost: x\r\nContent-Type: {}\r\nContent-Length: 1000000000\r\n\r\n"
        connection.sendall(head.format("multipart/form-data; boundary=x").encode())
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 413") and b"too_many_bytes" in answer


def test_undeclared_length_is_refused_on_the_way(server: Server) -> None:
    """The body has no end; a server that read until the end would never answer."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = "POST /v1/translate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        for _ in range(40 * MAX_BYTES // 65536):
            connection.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")
            if select.select([connection], [], [], 0.02)[0]:
                break
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 413") and b"too_many_bytes" in answer


def test_clients_that_send_everything_first_are_told_too(server: Server) -> None:
    refused(server.post(bytes(20_000_000)), 413, "too_many_bytes")


def test_a_fault_of_the_method_is_a_500_that_tells_nothing(server: Server) -> None:
    answer = server.post(encoded(painted(BAD_WIDTH, 40)))
    refused(answer, 500, "internal")
    assert "secret" not in answer.text
    logs = Path(ray._private.worker._global_node.get_logs_dir_path()) / "serve"
    assert any("a secret of the implementation" in log.read_text() for log in logs.glob("*Ingress*.log"))
    assert server.post(encoded(painted())).status_code == 200


def test_a_full_queue_is_a_503_with_retry_after(server: Server) -> None:
    content = encoded(painted(SLOW_WIDTH, 40))

    async def crowd() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
            url = f"{server.url}/v1/translate"
            posts = [client.post(url, files={"image": content}, data={"target": "night"}) for _ in range(60)]
            return list(await asyncio.gather(*posts))

    answers = asyncio.run(crowd())
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 503}, statuses
    assert statuses.count(200) >= QUEUED
    for answer in answers:
        if answer.status_code == 503:
            refused(answer, 503, "busy")
            assert int(answer.headers["retry-after"]) >= 1
