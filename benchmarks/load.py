"""Load on an endpoint, and what became of every request: closed loops of so many clients, or a steady rate.

With aiohttp, which Ray brings: the time of a request does not grow with the number of those under way, as httpx's does (at 64
it took more of the core than the ingress that it shares it with).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp
import numpy as np

RETRIES = 40  # of a 503, each after what Retry-After says; counted, and no failure while one succeeds
TIMEOUT_S = 60.0


@dataclass
class Outcome:
    """Requests by what they ended with. Seconds are from the first try to the last answer."""

    seconds: list[float] = field(default_factory=list)  # of those that succeeded
    statuses: Counter[str] = field(default_factory=Counter)  # of the last answers; errors of the connection by their name
    retries: int = 0
    elapsed: float = 0.0
    told: list[str] = field(default_factory=list)  # what the first failures said

    @property
    def failed(self) -> int:
        """How many did not end with a 200."""
        return sum(count for status, count in self.statuses.items() if status != "200")

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.seconds) / self.elapsed if self.elapsed else 0.0

    def percentile(self, share: float) -> float:
        """Milliseconds within which this share of the answers came."""
        return float(np.percentile(self.seconds, 100 * share)) * 1000 if self.seconds else float("nan")


@dataclass(frozen=True)
class Post:
    """One request."""

    url: str
    fields: dict[str, str]
    picture: bytes
    headers: dict[str, str] = field(default_factory=dict)

    async def send(self, client: aiohttp.ClientSession, outcome: Outcome, number: int) -> None:
        """Send it, again after each 503."""
        start = time.perf_counter()
        for _ in range(RETRIES):
            form = aiohttp.FormData({**self.fields, "seed": str(number)})
            form.add_field("image", self.picture, filename="image.png")
            try:
                async with client.post(self.url, data=form, headers=self.headers) as answer:
                    content, status, headers = await answer.read(), answer.status, answer.headers
            except (aiohttp.ClientError, TimeoutError) as error:
                outcome.statuses[type(error).__name__] += 1
                outcome.told.append(repr(error))
                return
            if status != 503:
                break
            outcome.retries += 1
            await asyncio.sleep(min(float(headers.get("retry-after", "1")), 2.0))
        outcome.statuses[str(status)] += 1
        if status == 200:
            outcome.seconds.append(time.perf_counter() - start)
        else:
            outcome.told.append(content[:300].decode(errors="replace"))


def session(connections: int = 0) -> aiohttp.ClientSession:
    """A client that keeps its connections; at most so many, or as many as there are requests."""
    connector = aiohttp.TCPConnector(limit=connections)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(TIMEOUT_S))


async def closed(post: Post, clients: int, seconds: float, warm_up: float = 0.5) -> Outcome:
    """So many clients, each with one request under way all the time; the first moments are not counted."""
    outcome, numbers = Outcome(), iter(range(10**9))
    async with session(clients) as client:

        async def loop(into: Outcome, until: float) -> None:
            while time.perf_counter() < until:
                await post.send(client, into, next(numbers))

        await asyncio.gather(*[loop(Outcome(), time.perf_counter() + warm_up) for _ in range(clients)])
        start = time.perf_counter()
        await asyncio.gather(*[loop(outcome, start + seconds) for _ in range(clients)])
        outcome.elapsed = time.perf_counter() - start
    return outcome


async def paced(post: Post, rate: float, going: Callable[[], bool]) -> Outcome:
    """Requests at a steady rate, whether earlier ones are answered or not, while `going()`."""
    outcome, under_way, number = Outcome(), set[asyncio.Task[None]](), 0
    async with session() as client:
        start = time.perf_counter()
        while going():
            task = asyncio.create_task(post.send(client, outcome, number))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            number += 1
            await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
        await asyncio.gather(*under_way)
        outcome.elapsed = time.perf_counter() - start
    return outcome
