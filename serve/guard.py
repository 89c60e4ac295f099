"""Who may ask: a token for everything, another one for changing the index, and nobody from elsewhere where there is no token.

Tokens are known by their SHA-256 only, so that neither a deployment file nor Ray's dashboard has them.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass

import ray
import ray.serve
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.errors import ApiError

OPEN = ("/", "/docs", "/healthz", "/favicon.ico")  # what tells nothing of this server: that it is there, our page, our manual
OPEN_BELOW = "/page/"
ADMIN = "/v1/index/"
SHORTEST = 16  # characters of a token


@dataclass(frozen=True)
class Guard:
    """What an ingress replica lets in.

    Args:
        token, admin: SHA-256 of the tokens, in hex; empty: there is none.
        near: only callers on this machine, whatever way they come.
    """

    token: str = ""
    admin: str = ""
    near: bool = False

    def refusal(self, path: str, authorization: str, caller: str) -> ApiError | None:
        """Why such a request is not let in, or None when it is.

        The admin's token opens everything. Without one, nobody changes the index.
        """
        if self.near and not is_near(caller):
            message = "this server answers callers on its own machine only"
            return ApiError(403, "not_near", message, "start it with a token to let others in")
        given = _digest(authorization)
        admin = bool(self.admin) and hmac.compare_digest(given, self.admin)
        if path.startswith(ADMIN):
            return None if admin else self._no_admin(bool(given))
        if not self.token or path in OPEN or path.startswith(OPEN_BELOW):
            return None
        if admin or hmac.compare_digest(given, self.token):
            return None
        return _unauthorised("the token is wrong" if given else "this server wants a token")

    def _no_admin(self, given: bool) -> ApiError:
        if not self.admin:
            hint = "start the server with an admin token"
            return ApiError(403, "no_admin", "the index of this server cannot be changed: it has no admin token", hint)
        return _unauthorised("this is no admin token" if given else "changing the index wants the admin token")


def _unauthorised(message: str) -> ApiError:
    hint = "send the header `Authorization: Bearer TOKEN`"
    return ApiError(401, "unauthorised", message, hint, {"WWW-Authenticate": "Bearer"})


def _digest(authorization: str) -> str:
    scheme, _, token = authorization.partition(" ")
    return digest_of(token.strip()) if scheme.lower() == "bearer" and token.strip() else ""


def digest_of(token: str) -> str:
    """How a token is kept."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def checked(token: str, what: str) -> str:
    """The digest of a token that a user chose; empty for none. Raises ValueError for one that is too short."""
    if token and (len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token):
        raise ValueError(f"{what} has at least {SHORTEST} letters and digits, no spaces; `openssl rand -hex 24` makes one")
    return digest_of(token) if token else ""


def is_near(caller: str) -> bool:
    """Whether an address is of this machine.

    >>> is_near("127.0.0.1"), is_near("192.0.2.7")
    (True, False)
    """
    try:
        address = ipaddress.ip_address(caller)
    except ValueError:
        return caller == ""  # a Unix socket
    return address.is_loopback or caller in own_addresses()


def own_addresses() -> frozenset[str]:
    """The addresses of this machine that Ray knows, through which its proxy reaches replicas."""
    return frozenset({ray.util.get_node_ip_address()})


class Guarded:
    """ASGI middleware: asks the replica's guard before anything of a request is read."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            guard: Guard = ray.serve.get_replica_context().servable_object.guard
            authorization = Headers(scope=scope).get("authorization", "")
            refusal = guard.refusal(scope["path"], authorization, (scope.get("client") or ("",))[0])
            if refusal:
                await refusal.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)
