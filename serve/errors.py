"""Every error a client sees has one JSON form: `{"error": {"code", "message", "hint"}}`."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("ray.serve")
RETRY_AFTER_S = 1  # a batch takes well under a second, so a full queue has room again soon


class ApiError(Exception):
    """An answer other than 2xx: what was wrong, and what would have worked.

    Args:
        status: the HTTP status.
        code: a stable name for programs.
        message: what was wrong, for people.
        hint: what would have worked.
        headers: further response headers.
    """

    def __init__(self, status: int, code: str, message: str, hint: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, code, message, hint, headers)  # all arguments, so that it survives pickling
        self.status, self.code, self.message, self.hint, self.headers = status, code, message, hint, headers

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    def response(self) -> JSONResponse:
        """The error as an HTTP response."""
        body = {"error": {"code": self.code, "message": self.message, "hint": self.hint}}
        return JSONResponse(body, self.status, {"X-Recollect-Error": known_code(self.code), **(self.headers or {})})


def known_code(code: str) -> str:
    """A code as it may stand in a header and be counted: those that end in a field's name are as many as strangers invent."""
    return code if code.isascii() and code.isidentifier() and len(code) <= 40 else "invalid"


@contextlib.contextmanager
def of_serve() -> Iterator[None]:
    """Around a call to another deployment: Ray Serve's own refusals become ours.

    Exception handlers cannot do this: Ray Serve replaces those for its exceptions by its own, which answer in plain text.
    """
    try:
        yield
    except BackPressureError:
        hint = f"try again after {RETRY_AFTER_S} s, as the header Retry-After says"
        headers = {"Retry-After": str(RETRY_AFTER_S)}
        raise ApiError(503, "busy", "all translators are busy and the queue is full", hint, headers) from None
    except (RayActorError, ReplicaUnavailableError):
        hint = "try again; another one takes its place"
        raise ApiError(
            503, "interrupted", "a process of the server ended before the answer", hint, {"Retry-After": "1"}
        ) from None
    except DeploymentUnavailableError:
        hint = "try again in a moment; /readyz says when it is back"
        raise ApiError(503, "unavailable", "no translator is running", hint, {"Retry-After": "5"}) from None


def too_slow(seconds: float) -> ApiError:
    """A 504 for an answer that took too long."""
    hint = "the server may be overloaded, or the picture too large for it; try again, or send a smaller one"
    return ApiError(504, "too_slow", f"there was no answer within {seconds:g} s", hint, {"Retry-After": "5"})


def install(api: FastAPI) -> None:
    """Give every error of `api` the one form, unexpected ones included (those are logged, and answered without details)."""
    api.add_exception_handler(ApiError, _api_error)
    api.add_exception_handler(RequestValidationError, _validation_error)
    api.add_exception_handler(HTTPException, _http_error)
    api.add_middleware(CatchAll)


async def _api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error.response()


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    told = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'request'}: {item['msg']}" for item in error.errors())
    return ApiError(422, "invalid_request", told, "see /docs for what each endpoint takes").response()


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed"}
    hint = "see /docs for what there is"
    if error.status_code == 405 and error.headers:
        hint = f"{request.url.path} takes {error.headers.get('Allow', 'another method')}; see /docs"
    message = f"{request.method} {request.url.path}: {error.detail}"
    return ApiError(error.status_code, codes.get(error.status_code, "http_error"), message, hint, error.headers).response()


class CatchAll:
    """ASGI middleware: an exception that nobody expected is logged and answered by a 500 that gives nothing away."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            if started:  # the status line is out already; closing the connection is all that is left
                raise
            hint = "this is a fault of the server; its log has the details"
            await ApiError(500, "internal", "something went wrong", hint).response()(scope, receive, send)
