"""A client of the endpoint, for programs: `Client` waits, `AsyncClient` is awaited; both say the same.

    with Client("http://127.0.0.1:8000") as client:
        client.translate("street.jpg", "night", samples=3, seed=7).save("out")
        client.translate(photo, attributes={"Blond_Hair": 1})           # bytes, PIL pictures and arrays are fine too

Needs httpx, Pillow and numpy, not torch. An answer 429 or 503 with `Retry-After` is waited for and asked again, and so is a
connection that broke off: nothing here does harm when it happens twice.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from typing import Any, Self, Unpack

import httpx

from recollect.client.answers import Found, Item, Retrieved, Translated
from recollect.client.calls import (
    Answer,
    Call,
    Options,
    Picture,
    Search,
    about_call,
    change_calls,
    items_call,
    retrieve_call,
    translate_call,
)
from recollect.client.course import Course, Outcome, ServerError

__all__ = ["AsyncClient", "Client", "Found", "Item", "Picture", "Retrieved", "ServerError", "Translated"]


class _Base:
    """What both clients have in common: everything but the waiting."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        token: str | None = None,
        timeout_s: float = 120.0,
        retries: int = 8,
        trust_env: bool = True,
    ) -> None:
        """Args:
        url: where the server is, without a path of its own (or with the prefix that a proxy adds).
        token: what it asks for; None: the variable RECOLLECT_TOKEN, if there is one.
        timeout_s: of a whole call, waits and repeats included.
        retries: how often a call is repeated at most.
        trust_env: whether proxies of the environment are used.
        """
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"{url!r} is no address of a server; it begins with http:// or https://")
        token = os.environ.get("RECOLLECT_TOKEN", "") if token is None else token
        self.url, self.timeout_s, self.retries = url.rstrip("/"), timeout_s, retries
        self.repeated = 0  # how many requests were asked again, of all calls together
        self._options: dict[str, Any] = {
            "headers": {"Authorization": f"Bearer {token}"} if token else {},
            "trust_env": trust_env,
            "follow_redirects": False,  # a token is for this server
        }

    def _course(self) -> Course:
        return Course(self.url, self.timeout_s, self.retries)


class Client(_Base):
    """Calls that wait for their answers. Also a context manager. Every call raises ServerError."""

    def __init__(self, url: str = "http://127.0.0.1:8000", **options: Any) -> None:
        super().__init__(url, **options)
        self._http = httpx.Client(**self._options)

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def translate(self, picture: Picture, target: str | None = None, **options: Unpack[Options]) -> Translated:
        """Translate a picture. Raises ValueError for what is no picture."""
        return self._run(translate_call(picture, target, **options))

    def retrieve(self, picture: Picture, **options: Unpack[Search]) -> Retrieved:
        """The pictures of the server's index that are nearest to one."""
        return self._run(retrieve_call(picture, **options))

    def model(self, name: str = "") -> dict[str, Any]:
        """What the server translates with: `ModelCard` of its documentation. `name`: which of several models."""
        return self._run(about_call("/v1/model", name))

    def domains(self, name: str = "") -> dict[str, Any]:
        """What a model can be asked for: domains, attributes and the groups that exclude each other, classes with their items."""
        return self._run(about_call("/v1/domains", name))

    def items(self, name: str = "") -> list[Item]:
        """The items of a model's memory."""
        return self._run(items_call(name))

    def index(self) -> dict[str, Any]:
        """The index that is searched: its version, its size, what it can be filtered by."""
        return self._run(about_call("/v1/index"))

    def change_index(self, add: Sequence[str] = (), remove: Sequence[str] = ()) -> dict[str, Any]:
        """Take pictures of the index's store in, then others out, by id. Wants the admin's token. Returns the last answer."""
        answer: dict[str, Any] = {}
        for call in change_calls(add, remove):
            answer = self._run(call)
        return answer

    def _run(self, call: Call[Answer]) -> Answer:
        course = self._course()
        while True:
            try:
                outcome: Outcome = self._http.request(
                    call.method, self.url + call.path, json=call.json, params=call.params, timeout=course.left()
                )
            except httpx.TransportError as error:
                outcome = error
            wait = course.after(outcome)
            if wait is None:
                assert isinstance(outcome, httpx.Response)
                return call.read(outcome.json())
            self.repeated += 1
            time.sleep(wait)


class AsyncClient(_Base):
    """The same calls, awaited; many of them may be under way. Also an async context manager."""

    def __init__(self, url: str = "http://127.0.0.1:8000", **options: Any) -> None:
        super().__init__(url, **options)
        self._http = httpx.AsyncClient(**self._options)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def translate(self, picture: Picture, target: str | None = None, **options: Unpack[Options]) -> Translated:
        """Translate a picture. Raises ValueError for what is no picture."""
        return await self._run(translate_call(picture, target, **options))

    async def retrieve(self, picture: Picture, **options: Unpack[Search]) -> Retrieved:
        """The pictures of the server's index that are nearest to one."""
        return await self._run(retrieve_call(picture, **options))

    async def model(self, name: str = "") -> dict[str, Any]:
        """What the server translates with: `ModelCard` of its documentation. `name`: which of several models."""
        return await self._run(about_call("/v1/model", name))

    async def domains(self, name: str = "") -> dict[str, Any]:
        """What a model can be asked for: domains, attributes and the groups that exclude each other, classes with their items."""
        return await self._run(about_call("/v1/domains", name))

    async def items(self, name: str = "") -> list[Item]:
        """The items of a model's memory."""
        return await self._run(items_call(name))

    async def index(self) -> dict[str, Any]:
        """The index that is searched: its version, its size, what it can be filtered by."""
        return await self._run(about_call("/v1/index"))

    async def change_index(self, add: Sequence[str] = (), remove: Sequence[str] = ()) -> dict[str, Any]:
        """Take pictures of the index's store in, then others out, by id. Wants the admin's token. Returns the last answer."""
        answer: dict[str, Any] = {}
        for call in change_calls(add, remove):
            answer = await self._run(call)
        return answer

    async def _run(self, call: Call[Answer]) -> Answer:
        course = self._course()
        while True:
            try:
                outcome: Outcome = await self._http.request(
                    call.method, self.url + call.path, json=call.json, params=call.params, timeout=course.left()
                )
            except httpx.TransportError as error:
                outcome = error
            wait = course.after(outcome)
            if wait is None:
                assert isinstance(outcome, httpx.Response)
                return call.read(outcome.json())
            self.repeated += 1
            await asyncio.sleep(wait)
