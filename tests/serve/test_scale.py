"""More of what a server can be: replicas that come with load, and Milvus or faiss behind the retriever."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray.serve

from benchmarks.load import Outcome, Post, session
from serve import run
from tests.serve.conftest import encoded, painted
from tests.serve.guided import NEIGHBOURS, SIZE, write_guided
from tests.serve.test_run import free_port
from tests.serve.translators import write_mguit

ADMIN = "an-admin-of-this-test-alone"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def translators() -> int:
    """How many translate now."""
    deployment = ray.serve.status().applications[run.APPLICATION].deployments["Translator"]
    return deployment.replica_states.get("RUNNING", 0)


def test_another_translator_comes_with_load_and_nothing_is_lost(tmp_path: Path) -> None:
    bundle, content = write_mguit(tmp_path), encoded(painted(96, 96))
    with run.start(bundle, port=free_port(), replicas=1, max_replicas=2, cpus_per_replica=0.5, max_batch_size=2) as running:
        assert translators() == 1
        post, outcome = Post(f"{running.url}/v1/translate", {"target": "night"}, content), Outcome()
        until = time.monotonic() + 120

        async def load() -> None:
            async with session(16) as client:

                async def loop() -> None:
                    while translators() < 2 and time.monotonic() < until:
                        await post.send(client, outcome, 0)
                    for _ in range(5):  # and now with two
                        await post.send(client, outcome, 0)

                await asyncio.gather(*[loop() for _ in range(16)])

        asyncio.run(load())
        assert translators() == 2, "16 callers at once are more than two batches of two"
        assert outcome.failed == 0 and outcome.statuses["200"] >= 80, (outcome.statuses, outcome.told[:3])
        answer = httpx.get(f"{running.url}/metrics", timeout=30, trust_env=False).text
        own = set(re.findall(r'recollect_batch_pictures_count{.*replica="(\w+)"', answer))
        assert len(own) == 2, "both have translated"


@pytest.mark.parametrize("backend", ["milvus", "faiss"])
def test_an_index_of_another_back_end_is_searched_changed_and_swapped(backend: str, tmp_path: Path) -> None:
    exact, other = (write_guided(tmp_path / name, backend=name) for name in ("exact", backend))
    picture = base64.b64encode(encoded(painted(SIZE, SIZE, seed=5))).decode()
    found: dict[str, Any] = {}
    for guided in (exact, other):
        with run.start(guided.bundle, port=free_port(), admin_token=ADMIN, cpus_per_replica=1, index_poll_s=0.3) as running:
            headers = {"authorization": f"Bearer {ADMIN}"}
            with httpx.Client(base_url=running.url, timeout=60, trust_env=False, headers=headers) as client:
                told = client.post("/v1/retrieve", json={"image": picture, "k": 4}).json()["found"]
                drawn = client.post(
                    "/v1/translate", json={"image": picture, "target": "faces", "neighbours": "ids", "seed": 3}
                ).json()
                first = [one["id"] for one in told]
                changed = client.post("/v1/index/remove", json={"ids": first[:1]})
                assert changed.status_code == 200, changed.text
                deadline = time.monotonic() + 20
                while (card := client.get("/v1/index").json())["pictures"] != 31:
                    assert time.monotonic() < deadline, card
                    time.sleep(0.2)
                after = client.post("/v1/retrieve", json={"image": picture, "k": 3}).json()["found"]
                near = [one["id"] for one in drawn["extras"]["neighbours"][0]]
                found[card["back_end"]] = first, near, [one["id"] for one in after]
    assert found[backend] == found["exact"], "the same neighbours, before and after the change"
    first, near, after = found[backend]
    assert len(near) == NEIGHBOURS and after == first[1:]
