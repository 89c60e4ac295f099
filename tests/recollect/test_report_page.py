"""The report in a browser: nothing complains, every picture loads, a phone scrolls down only, and buttons show their frames."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from recollect.config import preset
from recollect.data.store import Store
from recollect.evaluation.report.write import write_report
from tests.browser import chromium, needs_chromium, opened
from tests.recollect.test_report import rows_of, run_folder, search_folder

WIDER = """
    [...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1
        && !e.closest('.box, .chart.scroll, pre, nav')).map(e => e.outerHTML.slice(0, 80))
"""
BROKEN = "[...document.images].filter(image => !image.complete || !image.naturalWidth).length"


@pytest.fixture(scope="module")
def page(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two runs of other methods, one with a name that is long, of results, and of a search."""
    folder = tmp_path_factory.mktemp("page")
    data = {"store": store.uri, "domains": ("sunny", "night"), "size": 32}
    own = preset("munit:tiny", name="own", data=data, model={"width": 8, "critic_width": 8})
    other = preset("cyclegan:tiny", name="a-name-that-is-much-too-long-" * 3, data=data, model={"width": 8})
    bundles = [run_folder(folder / name, run, store) for name, run in (("a", own), ("b", other))]
    pd.concat([rows_of(bundle, scale) for scale, bundle in enumerate(bundles, 1)]).to_parquet(
        folder / "results.parquet", index=False
    )
    search_folder(folder / "search", preset("mguit:tiny", data=data))
    return write_report(folder / "report.html", [folder], rows=2)


@needs_chromium
def test_the_page_is_whole_at_any_width(page: Path) -> None:
    with chromium() as browser:
        for width in (1280, 390):
            with opened(browser, page, width) as (tab, wrong):
                assert tab.evaluate("document.images.length") >= 8 and tab.evaluate(BROKEN) == 0
                assert tab.evaluate("document.documentElement.scrollWidth") == width, tab.evaluate(WIDER)
                assert tab.evaluate(WIDER) == []
                assert tab.evaluate("getComputedStyle(document.body).fontSize") == "15px"
                assert wrong == []
        with opened(browser, page, 390, script=False) as (tab, _):
            frames = tab.locator("#samples-over-time img")
            shown = [frame.get_attribute("alt") for frame in frames.all() if frame.is_visible()]
            assert shown == ["own at step 40"], "the last step of the first run"
            tab.locator("#samples-over-time").get_by_text("20", exact=True).first.click()
            tab.keyboard.press("ArrowLeft")
            shown = [frame.get_attribute("alt") for frame in frames.all() if frame.is_visible()]
            assert shown == ["own at step 10"], "without a script, by the keyboard"
