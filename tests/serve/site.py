"""The page in a browser: visits that fail on any complaint, and what is shown as pixels."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

READY = "#actions:not([hidden])"


@contextmanager
def visiting(
    browser: Any, url: str, width: int = 1280, token: str = "", complains: Sequence[str] = (), **options: Any
) -> Iterator[Any]:
    """The page in a window of that width. Fails when the browser complains of anything but `complains`, or goes elsewhere."""
    context = browser.new_context(viewport={"width": width, "height": 844 if width < 500 else 900}, **options)
    if token:
        context.add_init_script(f"sessionStorage.setItem('recollect-token', {token!r})")
    page, wrong = context.new_page(), list[str]()
    page.set_default_timeout(20_000)
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith((url, "blob:")) else wrong.append(request.url))
    try:
        page.goto(url)
        yield page
        bad = [told for told in wrong if not any(known in told for known in complains)]
        assert not bad, bad
    finally:
        context.close()


def give(page: Any, path: Path) -> None:
    """Choose a picture, and wait for its translation."""
    translated(page, lambda: page.set_input_files("#file", path))


def translated(page: Any, action: Any) -> dict[str, Any]:
    """Do what brings about a translation, and wait until it is shown. Returns the server's answer."""
    with page.expect_response(lambda answer: answer.url.endswith("/v1/translate")) as caught:
        action()
    body: dict[str, Any] = caught.value.json()
    page.wait_for_selector("body:not(.busy)")
    page.wait_for_selector(READY)
    return body


def downloaded(page: Any) -> NDArray[np.int64]:
    """The picture that the button gives, (H, W, 3)."""
    with page.expect_download() as caught:
        page.get_by_role("link", name="Download").click()
    return pixels(Path(caught.value.path()).read_bytes())


def pixels(content: bytes) -> NDArray[np.int64]:
    """A picture's file as (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(np.int64)
