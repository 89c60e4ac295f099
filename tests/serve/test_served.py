"""The whole endpoint as it is deployed: HAProxy, ingress, translators, an index in parts, several models, tokens. Slow."""

from __future__ import annotations

import base64
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from recollect.data.transforms import to_unit
from recollect.retrieval.directory import change_index, open_index, read_manifest
from recollect.retrieval.embed import build_index
from recollect.retrieval.guided import open_pipeline
from serve import haproxy, run
from tests.serve.conftest import encoded, painted
from tests.serve.guided import NEIGHBOURS, SIZE, Guided, write_guided
from tests.serve.test_http import free_port, pixels, refused
from tests.serve.test_run import processes_below
from tests.serve.translators import write_bundle, write_mguit
from trainables.gmm_unit import CELEBA

pytestmark = pytest.mark.slow
BLOND, MALE = CELEBA[1], CELEBA[3]
TOKEN, ADMIN = "a-token-of-many-letters", "another-one-for-the-admin"


@dataclass(frozen=True)
class Server:
    client: httpx.Client
    admin: httpx.Client
    anybody: httpx.Client
    guided: Guided

    def picture(self, number: int) -> str:
        return base64.b64encode(encoded(painted(SIZE, SIZE, seed=number))).decode()

    def ids(self, number: int, k: int = 1) -> list[str]:
        answer = self.client.post("/v1/retrieve", json={"image": self.picture(number), "k": k})
        assert answer.status_code == 200, answer.text
        return [one["id"] for one in answer.json()["found"]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("served")
    guided = write_guided(root / "guided")
    bundles = {
        "memory": str(write_mguit(root)),
        "tint": str(write_bundle(root)),
        "other": str(write_bundle(root, "flat", "flat")),
    }
    options: dict[str, Any] = {"shards": 2, "bundles": bundles, "loaded": 2, "index_poll_s": 0.3}
    with run.start(guided.bundle, port=free_port(), token=TOKEN, admin_token=ADMIN, **options) as running:
        one, other, nobody = (
            httpx.Client(base_url=running.url, timeout=60, trust_env=False, headers=headers)
            for headers in ({"authorization": f"Bearer {TOKEN}"}, {"authorization": f"Bearer {ADMIN}"}, {})
        )
        with one, other, nobody:
            yield Server(one, other, nobody, guided)


def test_a_token_guards_everything_but_whether_it_is_up(server: Server) -> None:
    assert server.anybody.get("/healthz").json() == {"ok": True}
    assert "Authorization: Bearer" in server.anybody.get("/docs").text  # how to send a token, among others
    for path in (
        "/v1/model",
        "/v1/items",
        "/v1/domains",
        "/v1/index",
        "/metrics",
        "/readyz",
        "/openapi.json",
        "/nothing",
    ):
        refused(server.anybody.get(path), 401, "unauthorised")
        wrong = server.anybody.get(path, headers={"authorization": f"Bearer {TOKEN}x"})
        assert refused(wrong, 401, "unauthorised")["message"] == "the token is wrong"
        assert wrong.headers["www-authenticate"] == "Bearer"
    refused(server.anybody.post("/v1/translate", files={"image": b"x"}), 401, "unauthorised")
    for client in (server.client, server.admin):
        assert client.get("/v1/model").status_code == 200
    refused(server.client.post("/v1/index/remove", json={"ids": ["p001"]}), 401, "unauthorised")


def test_what_speaks_http_listens_on_this_machine_only(server: Server) -> None:
    """HAProxy, its metrics and statistics, the replicas' own ports, Ray's metrics. (Ray's other ports want Ray's token.)"""
    listening: dict[int, tuple[int, str]] = {}  # inode -> port, address
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                address, port = fields[1].split(":")
                listening[int(fields[9])] = int(port, 16), address
    found: dict[int, str] = {}
    for pid in processes_below(os.getpid()):
        is_proxy = b"haproxy" in read(Path(f"/proc/{pid}/cmdline")).split(b"\0")[0]
        for inode in sockets_of(pid) & listening.keys():
            port, address = listening[inode]
            if is_proxy or 30_000 <= port < 31_000 or speaks_http(port):
                found[port] = address
    assert server.client.base_url.port in found
    assert set(found.values()) == {"0100007F"}, found
    if haproxy.binary():
        assert len(found) >= 4


def speaks_http(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=2, trust_env=False).status_code > 0
    except httpx.HTTPError:
        return False


def sockets_of(pid: int) -> set[int]:
    found = set()
    for path in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            target = str(path.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            found.add(int(target[8:-1]))
    return found


def test_haproxy_is_the_way_in(server: Server) -> None:
    """And runs with our lines: another version of Ray may write what the wrapper no longer finds."""
    words = [read(Path(f"/proc/{pid}/cmdline")).decode().split("\0") for pid in processes_below(os.getpid())]
    found = [line[line.index("-f") + 1] for line in words if line[0].endswith("/haproxy") and "-f" in line]
    assert found or haproxy.binary() is None
    for path in found:
        written = Path(path).read_text()
        for ours in ("http-request wait-for-body", "option http-server-close", "unavailable.http", "check backup disabled"):
            assert ours in written, (ours, written)


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_attributes_strength_neighbours_and_mask_over_http(server: Server) -> None:
    wanted = {"attributes": {BLOND: 1, MALE: 0}, "strength": 0.5, "neighbours": "thumbnails", "attention_mask": True}
    answer = server.client.post("/v1/translate", json={"image": server.picture(3), **wanted, "samples": 2, "seed": 3, "size": 48})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["width"], told["height"], told["seeds"]) == (48, 48, [3, 4])
    assert told["index"] == read_manifest(server.guided.index).digest
    assert [len(row) for row in told["extras"]["neighbours"]] == [NEIGHBOURS] * 2
    thumbnail = told["extras"]["neighbours"][0][0]["thumbnail"]
    assert pixels(base64.b64decode(thumbnail)).shape == (SIZE, SIZE, 3)
    assert len(told["extras"]["attention_masks"]) == 2
    again = server.client.post("/v1/translate", json={"image": server.picture(3), **wanted, "seed": 4, "size": 48}).json()
    one, other = (pixels(base64.b64decode(image)) for image in (told["images"][1], again["images"][0]))
    assert np.abs(one - other).max() <= 1


def test_what_is_retrieved_is_what_the_index_finds(server: Server) -> None:
    pipeline, index = open_pipeline(server.guided.bundle), open_index(server.guided.index)
    image = np.asarray(painted(SIZE, SIZE, seed=77)).transpose(2, 0, 1).copy()
    vectors = pipeline.model.embed(to_unit(torch.tensor(image))[None]).detach()  # type: ignore[operator]
    for where, exclude in (({}, []), ({MALE: 1}, ["p003"])):
        expected = index.search(vectors, 6, where, [exclude]).of(0)
        asked = {"image": server.picture(77), "k": 6, "where": where, "exclude": exclude, "thumbnails": True}
        found = server.client.post("/v1/retrieve", json=asked).json()["found"]
        assert [one["id"] for one in found] == [id for id, _ in expected]
        assert np.allclose([one["distance"] for one in found], [distance for _, distance in expected], atol=1e-5)
    refused(server.client.post("/v1/retrieve", json={"image": server.picture(1), "where": {"Mal": 1}}), 422, "bad_search")


def test_further_models_are_chosen_by_name(server: Server) -> None:
    content = encoded(painted(48, 40))
    for name in ("memory", "tint", "other", "memory"):  # three, where two fit
        for how in (
            {"data": {"model": name, "target": "night"}},
            {"data": {"target": "night"}, "headers": {"X-Recollect-Model": name}},
        ):
            answer = server.client.post("/v1/translate", files={"image": content}, **how)  # type: ignore[arg-type]
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-recollect-model"] == name
    assert server.client.get("/v1/model").json()["models"] == ["guided", "memory", "tint", "other"]
    assert server.client.get("/v1/domains", params={"model": "memory"}).json()["classes"]["car"] == 5
    items = server.client.get("/v1/items?model=memory").json()["items"]
    assert len(items) == 20 and {item["label"] for item in items} == {"background", "car", "person", "sign"}
    refused(server.client.get("/v1/model?model=nobody"), 422, "unknown_model")


def test_the_index_is_changed_by_the_admin_at_once(server: Server) -> None:
    (nearest,) = server.ids(5)
    changed = server.admin.post("/v1/index/remove", json={"ids": [nearest]})
    assert changed.status_code == 200, changed.text
    assert server.ids(5) != [nearest]
    assert refused(server.admin.post("/v1/index/remove", json={"ids": [nearest]}), 422, "bad_ids")
    back = server.admin.post("/v1/index/add", json={"ids": [nearest]}).json()
    assert server.ids(5) == [nearest] and back["pictures"] == changed.json()["pictures"] + 1
    assert server.client.get("/v1/index").json()["version"] == back["version"]


def test_a_new_version_on_the_disk_is_taken_and_a_foreign_one_is_not(server: Server, tmp_path: Path) -> None:
    (nearest,) = server.ids(7)

    def change(index: Any, manifest: Any) -> Any:
        index.remove([nearest])
        return manifest.origin

    version = change_index(server.guided.index, change).version
    until = time.monotonic() + 10
    while server.ids(7) == [nearest] and time.monotonic() < until:  # answers are of the older one until every part has the new
        time.sleep(0.1)
    assert server.ids(7) != [nearest] and server.client.get("/v1/index").json()["version"] == version
    foreign = write_guided(tmp_path / "foreign", fusion="paper")
    build_index(foreign.bundle, foreign.store, tmp_path / "index", backend="exact")
    spoilt = server.guided.index / "v000999"
    shutil.copytree(tmp_path / "index" / "v000001", spoilt)
    manifest = (spoilt / "manifest.json").read_text().replace('"v000001"', '"v000999"')
    model = read_manifest(tmp_path / "index").origin.model
    (spoilt / "manifest.json").write_text(manifest.replace(model, "f" * 64))
    current = server.guided.index / "CURRENT"
    before = current.read_text()
    current.write_text("v000999\n")
    try:
        time.sleep(1.5)
        assert server.client.get("/v1/index").json()["version"] == version and server.ids(7) != [nearest]
        assert sample(server, "recollect_index_swaps_total", outcome="refused") > 0
    finally:
        current.write_text(before)
        shutil.rmtree(spoilt)


def sample(server: Server, name: str, **labels: str) -> float:
    page = server.client.get("/metrics")
    assert page.status_code == 200, page.text
    families = text_string_to_metric_families(page.text)
    samples = [one for family in families for one in family.samples if one.name == name]
    return sum(one.value for one in samples if labels.items() <= one.labels.items())


def test_measures_of_all_replicas_are_on_one_page(server: Server) -> None:
    before = sample(server, "recollect_requests_total", path="/v1/translate", status="200")
    content = encoded(painted(48, 40))
    for number in range(3):
        data = {"model": "memory", "target": "night", "seed": str(number)}
        assert server.client.post("/v1/translate", files={"image": content}, data=data).status_code == 200
    server.client.post("/v1/translate", files={"image": b"x"}, data={"target": "faces"})
    assert sample(server, "recollect_requests_total", path="/v1/translate", status="200") == before + 3
    assert sample(server, "recollect_errors_total", code="not_a_picture") >= 1
    for stage, deployment in {"decode": "Ingress", "forward": "Translator", "index": "Retriever-1"}.items():
        assert sample(server, "recollect_stage_seconds_count", stage=stage, deployment=deployment) > 0
    assert sample(server, "recollect_item_reads_total", model="memory") > 0
    assert sample(server, "recollect_batch_pictures_count", model="memory") >= 3
    assert sample(server, "recollect_index_pictures") > 0
