"""The course of a call: how long an attempt may take, when another one follows, and what a failure is called."""

from __future__ import annotations

import time
from typing import Union

import httpx

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


class Course:
    """The course of one call: how long an attempt may take, and what follows from its outcome."""

    def __init__(self, url: str, timeout_s: float, retries: int) -> None:
        self.url, self.timeout_s, self.retries = url, timeout_s, retries
        self.deadline, self.attempt = time.monotonic() + timeout_s, 0

    def left(self) -> float:
        """The seconds that are left for an attempt."""
        return max(self.deadline - time.monotonic(), 0.001)

    def after(self, outcome: Outcome) -> float | None:
        """The seconds to wait before the next attempt; None: this was the answer. Raises ServerError where there is no use."""
        if isinstance(outcome, httpx.Response) and outcome.is_success:
            return None
        error, wait = self._failed(outcome)
        if wait is None or self.attempt == self.retries or wait > self.left():
            raise error
        self.attempt += 1
        return wait

    def _failed(self, outcome: Outcome) -> tuple[ServerError, float | None]:
        """The error of an attempt, and how long to wait before the next; None where another would fail as well."""
        url, limit, backoff = self.url, self.timeout_s, min(0.1 * 2**self.attempt, 2.0)
        if isinstance(outcome, httpx.Response):
            return refusal(outcome), _retry_after(outcome, backoff) if outcome.status_code in AGAIN else None
        if isinstance(outcome, httpx.TimeoutException):
            return ServerError(0, "timeout", f"no answer from {url} within {limit:g} s", "raise timeout_s"), None
        reason = str(outcome) or type(outcome).__name__
        error = ServerError(0, "unreachable", f"{url} does not answer: {reason}", "is it running, and is this its address?")
        return error, backoff if isinstance(outcome, BROKEN) else None


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
