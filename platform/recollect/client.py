"""A client of the endpoint, for programs: `Client` waits, `AsyncClient` is awaited; both say the same.

    with Client("http://127.0.0.1:8000") as client:
        client.translate("street.jpg", "night", samples=3, seed=7).save("out")
        client.translate(photo, attributes={"Blond_Hair": 1})           # bytes, PIL pictures and arrays are fine too

Needs httpx, Pillow and numpy, not torch. An answer 429 or 503 with `Retry-After` is waited for and asked again, and so is a
connection that broke off: nothing here does harm when it happens twice.
"""

from __future__ import annotations

import asyncio
import base64
import io
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, Self, TypedDict, TypeVar, Union, Unpack

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Picture = Union[str, os.PathLike[str], bytes, Image.Image, NDArray[Any]]  # noqa: UP007  # a path, a file's bytes, or pixels
Format = Literal["png", "jpeg", "webp"]
Answer = TypeVar("Answer")
AGAIN = (429, 503)  # answers after which the same request may succeed
BROKEN = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)  # the server went away in the middle
Outcome = Union[httpx.Response, httpx.TransportError]  # noqa: UP007  # of one attempt
LONGEST_WAIT_S = 30.0  # more than this is not waited for in one go, whatever `Retry-After` says


class ServerError(Exception):
    """The server refused, failed, or did not answer.

    Args:
        status: the HTTP status; 0 where there was no answer.
        code: a stable name for programs: the server's, or `unreachable`, `timeout`, `http_error`.
        message: what was wrong.
        hint: what would have worked.
    """

    def __init__(self, status: int, code: str, message: str, hint: str = "") -> None:
        super().__init__(status, code, message, hint)  # all arguments, so that it survives pickling
        self.status, self.code, self.message, self.hint = status, code, message, hint

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" + (f" ({self.hint})" if self.hint else "")


class Options(TypedDict, total=False):
    """What may be said of a translation beside the picture and the target; what is left out is the server's default."""

    attributes: Mapping[str, float]  # what the picture shall have, from 0 to 1
    source: str  # the domain the picture is from
    samples: int
    seed: int  # sample i uses seed + i
    random_style: bool
    styles: Mapping[
        str, Mapping[str, Any]
    ]  # class -> {"random": 7}, {"item": 1}, {"exemplar": PICTURE}, {"mix": [.., ..], "amount": 0.3}
    exemplar: Picture  # a picture of the target domain whose style the whole translation takes
    strength: float  # how much of the retrieved neighbours is drawn with, from 0 to 1
    size: int  # pixels of the answer's longer side
    format: Format  # how it travels; the client decodes it
    memory_map: bool
    attention_mask: bool
    neighbours: Literal["none", "ids", "thumbnails"]
    model: str  # which of the server's models


@dataclass(frozen=True)
class Found:
    """A picture of the index: its id, how far it is, and what it looks like where thumbnails were asked for."""

    id: str
    distance: float
    thumbnail: Image.Image | None = None


@dataclass(frozen=True)
class Translated:
    """An answer: pictures with everything needed to get them again."""

    images: tuple[Image.Image, ...]
    encoded: tuple[bytes, ...] = field(repr=False)  # the same as the server sent them
    format: str
    seeds: tuple[int, ...] | None  # one a picture; None: the deterministic translation
    model: str
    digest: str  # SHA-256 of the bundle that answered
    memory_map: NDArray[np.uint8] | None = field(default=None, repr=False)  # (h, w): the item that each cell reads
    cell: int = 0  # pixels of a cell of it
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)  # the whole answer

    def save(self, folder: str | os.PathLike[str], stem: str = "translated") -> list[Path]:
        """Write the pictures as they came: STEM.png, or STEM-SEED.png where they have seeds. Returns the paths."""
        out = Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        ends = [f"-{seed}" for seed in self.seeds] if self.seeds else [""]
        paths = [out / f"{stem}{end}.{'jpg' if self.format == 'jpeg' else self.format}" for end in ends]
        for path, content in zip(paths, self.encoded, strict=True):
            path.write_bytes(content)
        return paths


@dataclass(frozen=True)
class Call(Generic[Answer]):
    """A request, and what to make of its answer."""

    method: str
    path: str
    read: Callable[[Any], Answer]
    json: Mapping[str, Any] | None = None
    params: Mapping[str, str] | None = None


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

    def _course(self) -> _Course:
        return _Course(self, time.monotonic() + self.timeout_s)


class _Course:
    """The course of one call: how long an attempt may take, and what follows from its outcome."""

    def __init__(self, client: _Base, deadline: float) -> None:
        self.client, self.deadline, self.attempt = client, deadline, 0

    def left(self) -> float:
        """The seconds that are left for an attempt."""
        return max(self.deadline - time.monotonic(), 0.001)

    def after(self, outcome: Outcome) -> float | None:
        """The seconds to wait before the next attempt; None: this was the answer. Raises ServerError where there is no use."""
        if isinstance(outcome, httpx.Response) and outcome.is_success:
            return None
        error, wait = self._failed(outcome)
        if wait is None or self.attempt == self.client.retries or wait > self.left():
            raise error
        self.attempt += 1
        self.client.repeated += 1
        return wait

    def _failed(self, outcome: Outcome) -> tuple[ServerError, float | None]:
        """The error of an attempt, and how long to wait before the next; None where another would fail as well."""
        url, limit, backoff = self.client.url, self.client.timeout_s, min(0.1 * 2**self.attempt, 2.0)
        if isinstance(outcome, httpx.Response):
            return refusal(outcome), _retry_after(outcome, backoff) if outcome.status_code in AGAIN else None
        if isinstance(outcome, httpx.TimeoutException):
            return ServerError(0, "timeout", f"no answer from {url} within {limit:g} s", "raise timeout_s"), None
        reason = str(outcome) or type(outcome).__name__
        error = ServerError(0, "unreachable", f"{url} does not answer: {reason}", "is it running, and is this its address?")
        return error, backoff if isinstance(outcome, BROKEN) else None


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

    def model(self) -> dict[str, Any]:
        """What the server translates with."""
        return self._run(get_call("/v1/model"))

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

    async def model(self) -> dict[str, Any]:
        """What the server translates with."""
        return await self._run(get_call("/v1/model"))

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
            await asyncio.sleep(wait)


def translate_call(picture: Picture, target: str | None, **options: Unpack[Options]) -> Call[Translated]:
    """The request for a translation."""
    body: dict[str, Any] = {**options, "image": _base64(picture)}
    if target is not None:
        body["target"] = target
    if "exemplar" in options:
        body["exemplar"] = _base64(options["exemplar"])
    if "styles" in options:
        body["styles"] = {name: _style(style) for name, style in options["styles"].items()}
    return Call("POST", "/v1/translate", _translated, json=body)


def get_call(path: str, **params: str) -> Call[dict[str, Any]]:
    """A request whose answer is what it is."""
    return Call("GET", path, dict, params=params)


def file_of(picture: Picture) -> bytes:
    """The bytes of a picture's file: those of a path as they lie there; pixels become a PNG.

    Raises ValueError for arrays that are not uint8 (H, W, 3) or (H, W), and OSError for a path that cannot be read.
    """
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | os.PathLike):
        return Path(picture).read_bytes()
    if not isinstance(picture, Image.Image):
        pixels = np.asarray(picture)
        if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or pixels.ndim == 3 and pixels.shape[2] == 3):
            raise ValueError(f"an array is uint8 of shape (H, W, 3) or (H, W), not {pixels.dtype} {pixels.shape}")
        picture = Image.fromarray(np.ascontiguousarray(pixels))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def refusal(answer: httpx.Response) -> ServerError:
    """The error that an answer other than 2xx is, in the server's words where they are its own."""
    try:
        told = answer.json()["error"]
        return ServerError(answer.status_code, str(told["code"]), str(told["message"]), str(told["hint"]))
    except (ValueError, TypeError, KeyError):  # something in front of the server, or the server's own proxy
        return ServerError(answer.status_code, "http_error", f"{answer.status_code} {answer.reason_phrase}: {answer.text[:200]}")


def _retry_after(answer: httpx.Response, otherwise: float) -> float:
    """The seconds to wait before the same request."""
    try:
        return min(max(float(answer.headers["retry-after"]), otherwise), LONGEST_WAIT_S)
    except (KeyError, ValueError):  # none, or a date
        return otherwise


def _base64(picture: Picture) -> str:
    return base64.b64encode(file_of(picture)).decode("ascii")


def _style(style: Mapping[str, Any]) -> dict[str, Any]:
    """A style with its exemplars in base64."""
    found = dict(style)
    if "exemplar" in found:
        found["exemplar"] = _base64(found["exemplar"])
    if "mix" in found:
        found["mix"] = [_style(part) for part in found["mix"]]
    return found


def _image(encoded: bytes) -> Image.Image:
    with Image.open(io.BytesIO(encoded)) as image:
        image.load()
        return image


def _translated(body: Any) -> Translated:
    encoded = tuple(base64.b64decode(text) for text in body["images"])
    extras: Mapping[str, Any] = body["extras"]
    memory: Mapping[str, Any] = extras.get("memory_map") or {}
    seeds: Sequence[int] | None = body["seeds"]
    return Translated(
        images=tuple(_image(content) for content in encoded),
        encoded=encoded,
        format=body["format"],
        seeds=None if seeds is None else tuple(seeds),
        model=body["model"],
        digest=body["digest"],
        memory_map=np.asarray(_image(base64.b64decode(memory["image"]))) if memory else None,
        cell=memory.get("cell", 0),
        raw=body,
    )
