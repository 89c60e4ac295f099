"""The page at `/`: plain files, no build step, nothing from elsewhere.

    index.html   what stands there before any script runs
    page.css     light and dark, wide and narrow
    main.js      the state, and what follows from what; the other scripts are its parts

Every path in them is relative, so the page also works behind a proxy that adds a prefix (with a slash at its end).
"""

from __future__ import annotations

import functools
from pathlib import Path

from fastapi import FastAPI, HTTPException
from fastapi.responses import Response

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
    """Serve the page at `/` and its parts at `/page/NAME`."""
    api.add_api_route("/", index, methods=["GET", "HEAD"], include_in_schema=False)
    api.add_api_route("/page/{name}", part, methods=["GET", "HEAD"], include_in_schema=False)


async def index() -> Response:
    """The page."""
    return _sent("index.html")


async def part(name: str) -> Response:
    """A style sheet, a script or an icon of the page."""
    if name not in files():
        raise HTTPException(404, "Not Found")
    return _sent(name)


def _sent(name: str) -> Response:
    return Response(files()[name], headers={**HEADERS, "Content-Type": KINDS[Path(name).suffix]})
