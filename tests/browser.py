"""A headless Chromium for tests of pages: what it complains about, and how the page lies in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")


@contextmanager
def chromium() -> Iterator[Any]:
    """A running browser (of `playwright.sync_api`)."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, path: Path, width: int, script: bool = True) -> Iterator[tuple[Any, list[str]]]:
    """A page in a window of that width, and what went wrong in it so far: errors, complaints, requests to anywhere else."""
    context = browser.new_context(viewport={"width": width, "height": 900}, java_script_enabled=script)
    page, wrong = context.new_page(), list[str]()
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else wrong.append(request.url))
    try:
        page.goto(path.resolve().as_uri())
        yield page, wrong
    finally:
        context.close()
