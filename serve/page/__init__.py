"""The page at `/`: plain files, no build step, nothing from elsewhere.

    index.html   what stands there before any script runs
    page.css     light and dark, wide and narrow
    main.js      the state, and what follows from what; the other scripts are its parts
    manual.py    the documentation at /docs, made of the OpenAPI description

Every path in them is relative, so the page also works behind a proxy that adds a prefix (with a slash at its end).
"""

from __future__ import annotations

import functools
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import Response

from serve.page import manual

FOLDER = Path(__file__).parent
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",  # blob: what is translated, and what came of it
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # after an update nobody has the page of one version with the scripts of another
}


@functools.cache
def files() -> dict[str, bytes]:
    """The files of the page by name. Only these are ever served, whatever a request asks for."""
    return {path.name: path.read_bytes() for path in sorted(FOLDER.iterdir()) if path.suffix in KINDS}


def install(api: FastAPI) -> None:
    """Serve the page at `/`, its parts at `/page/NAME`, and the documentation of `api` at `/docs`."""
    api.add_api_route("/docs", docs, methods=["GET", "HEAD"], include_in_schema=False)
    api.add_api_route("/", index, methods=["GET", "HEAD"], include_in_schema=False)
    api.add_api_route("/page/{name}", part, methods=["GET", "HEAD"], include_in_schema=False)


async def index() -> Response:
    """The page."""
    return _sent("index.html")


@functools.cache
def documented(api: FastAPI) -> bytes:
    """The documentation of `api`."""
    return manual.render(api.openapi()).encode()


async def docs(request: Request) -> Response:
    """What every request can hold, and every answer."""
    return Response(documented(request.app), headers={**HEADERS, "Content-Type": KINDS[".html"]})


async def part(name: str) -> Response:
    """A style sheet, a script or an icon of the page."""
    if name not in files():
        raise HTTPException(404, "Not Found")
    return _sent(name)


def _sent(name: str) -> Response:
    return Response(files()[name], headers={**HEADERS, "Content-Type": KINDS[Path(name).suffix]})
