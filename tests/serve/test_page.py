"""The page in Chromium, against a real endpoint with two models, an index and a token."""

from __future__ import annotations

import asyncio
import base64
import functools
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from recollect.client import AsyncClient, Client, ServerError
from serve import run
from tests.browser import chromium, needs_chromium
from tests.serve.conftest import encoded, painted
from tests.serve.guided import NEIGHBOURS, write_guided
from tests.serve.site import READY, downloaded, give, pixels, translated, visiting
from tests.serve.test_http import free_port
from tests.serve.translators import STREETS, write_mguit

pytestmark = pytest.mark.slow
TOKEN, ADMIN = "a-token-for-the-tests", "another-for-the-index"
MAX_PIXELS = 200 * 200
ITEMS = {"background": 10, "car": 5, "person": 3, "sign": 2}


@dataclass(frozen=True)
class Site:
    url: str
    street: Path  # a picture, whose name a shell would take apart


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    small = {"width": 8, "content_blocks": 1, "generator_blocks": 1, "memory": {"value_dim": 8}}
    street = folder / "it's a; street.png"
    street.write_bytes(encoded(painted(52, 40)))
    options: dict[str, Any] = {"bundles": {"streets": write_mguit(folder, **small)}, "max_pixels": MAX_PIXELS}
    with run.start(write_guided(folder).bundle, port=free_port(), token=TOKEN, admin_token=ADMIN, **options) as running:
        yield Site(running.url, street)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


def streets(page: Any) -> None:
    """Change to the model with a memory."""
    page.get_by_label("Model").select_option("streets")
    page.get_by_role("radio", name="night").wait_for(state="attached")


@needs_chromium
@pytest.mark.skipif(not shutil.which("curl"), reason="the line it prints is for curl")
def test_upload_translate_change_style_download_and_curl(site: Site, browser: Any, tmp_path: Path) -> None:
    with visiting(browser, site.url, token=TOKEN, permissions=["clipboard-read", "clipboard-write"]) as page:
        streets(page)
        give(page, site.street)
        plain = downloaded(page)
        answer = translated(page, lambda: page.get_by_role("radio", name="Random").check())
        assert len(answer["images"]) == 4 and page.locator("#gallery input").count() == 4
        page.get_by_role("radio", name="seed 2").check()
        translated(page, lambda: page.get_by_role("group", name="Style of car").get_by_label("car").select_option("item"))
        group = page.get_by_role("group", name="Style of car")
        translated(
            page,
            lambda: (
                group.get_by_label("mixed with").select_option("exemplar") or page.get_by_role("button", name="Translate").click()
            ),
        )
        exemplar = tmp_path / "other.png"
        exemplar.write_bytes(encoded(painted(seed=9)))
        answer = translated(page, lambda: group.locator("input[type=file]").set_input_files(exemplar))
        shown = downloaded(page)
        assert np.abs(shown - plain).max() > 3
        assert np.abs(shown - pixels(base64.b64decode(answer["images"][2]))).max() == 0, "the chosen sample stays chosen"
        page.get_by_role("button", name="Copy as curl").click()
        page.get_by_text("The command is on the clipboard.").wait_for()
        command = page.evaluate("navigator.clipboard.readText()")
        page.locator("#command summary").click()
        assert command == page.locator("#curl").inner_text()
    shutil.copy(site.street, tmp_path)
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, env={**os.environ, "RECOLLECT_TOKEN": TOKEN, "no_proxy": "*"}, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    (made,) = [path for path in tmp_path.iterdir() if path.name not in ("other.png", site.street.name)]
    assert np.abs(pixels(made.read_bytes()) - shown).max() <= 1
    assert TOKEN not in command


@needs_chromium
def test_before_and_after(site: Site, browser: Any) -> None:
    with visiting(browser, site.url, token=TOKEN) as page:
        give(page, site.street)
        box, split = page.locator("#canvas").bounding_box(), page.locator("#split")
        page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 30)
        page.mouse.up()
        assert split.input_value() == "25" and split.get_attribute("aria-valuetext") == "25 % before"
        assert "25%" in page.locator("#after").evaluate("element => getComputedStyle(element).clipPath")
        split.focus()
        page.keyboard.press("ArrowRight")
        assert split.input_value() == "26"
        page.get_by_role("radio", name="Both").check()
        widths = [page.locator(name).bounding_box()["width"] for name in ("#before", "#after")]
        assert abs(widths[0] - widths[1]) < 1 and page.locator("#split").is_hidden()


@needs_chromium
def test_the_memory_map_is_the_servers(site: Site, browser: Any) -> None:
    with visiting(browser, site.url, token=TOKEN) as page:
        streets(page)
        answer = translated(page, lambda: page.set_input_files("#file", site.street))
        page.get_by_role("radio", name="Memory").check()
        legend = page.locator("#legend button").all_inner_texts()
        indices = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["extras"]["memory_map"]["image"]))))
        names = [f"{name} {number + 1}" for name, count in ITEMS.items() for number in range(count)]
        for item, count in zip(*np.unique(indices, return_counts=True), strict=True):
            share = count / indices.size
            told = "under 1 %" if share < 0.01 else f"{int(np.floor(100 * share + 0.5))} %"
            assert f"{names[item]} · {told}" in legend
        assert len(legend) == len(np.unique(indices))
        assert page.evaluate("[overlay.width, overlay.height]") == [indices.shape[1], indices.shape[0]]
        page.locator("#legend button").first.click()
        alpha = (
            "[...overlay.getContext('2d').getImageData(0, 0, overlay.width, overlay.height).data].filter((_, i) => i % 4 == 3)"
        )
        assert page.evaluate(f"{alpha}.filter(Boolean).length") == np.unique(indices, return_counts=True)[1].max()


@needs_chromium
def test_attributes_masks_and_neighbours(site: Site, browser: Any) -> None:
    with visiting(browser, site.url, token=TOKEN) as page:
        first = translated(page, lambda: page.set_input_files("#file", site.street))
        translated(page, lambda: page.get_by_role("radio", name="Blond Hair").check())
        translated(page, lambda: page.get_by_role("slider", name="Male, how much").fill("30"))
        answer = translated(page, lambda: page.get_by_role("slider", name="Strength").fill("40"))
        assert answer["images"] != first["images"]
        told = answer["extras"]["neighbours"][0]
        assert page.locator("#neighbours li").count() == NEIGHBOURS == len(told)
        assert page.locator("#neighbours span").first.inner_text() == told[0]["id"]
        assert page.evaluate("[...document.querySelectorAll('#neighbours img')].every(image => image.naturalWidth == 32)")
        page.get_by_role("radio", name="Mask").check()
        page.wait_for_selector("#overlay[width='52'][height='40']")
        page.locator("#command summary").click()
        command = page.locator("#curl").inner_text()
        assert """'attributes={"Blond_Hair":1,"Male":0.3}'""" in command and "-F strength=0.4" in command
        translated(page, lambda: page.get_by_role("checkbox", name="Male").uncheck())
        assert "Male" not in page.locator("#curl").inner_text()


@needs_chromium
def test_by_keyboard_alone(site: Site, browser: Any) -> None:
    with visiting(browser, site.url, token=TOKEN) as page:
        choosers: list[Any] = []
        page.on("filechooser", lambda chooser: choosers.append(chooser))  # early: it takes a moment until the browser tells
        streets(page)
        page.evaluate("document.activeElement.blur()")

        def reach(wanted: str) -> None:
            for _ in range(60):
                page.keyboard.press("Tab")
                if page.evaluate(f"document.activeElement.matches({wanted!r})"):
                    ring = "(e => getComputedStyle(e).outlineStyle)"
                    near = "(e => [e, e.nextElementSibling, e.parentElement])(document.activeElement)"
                    seen = page.evaluate(f"{near}.filter(Boolean).map({ring})")
                    assert set(seen) != {"none"}, f"{wanted} shows no focus"
                    return
            raise AssertionError(f"the tabulator never reaches {wanted}")

        reach("#file")
        page.keyboard.press("Enter")
        while not choosers:
            page.wait_for_timeout(50)
        translated(page, lambda: choosers[0].set_files(site.street))
        reach("#split")
        page.keyboard.press("Home")
        assert page.locator("#split").input_value() == "0"
        reach("input[name=target]")
        translated(page, lambda: page.keyboard.press("ArrowLeft"))
        assert page.get_by_role("radio", name="sunny").is_checked()
        reach("input[name=style]")
        translated(page, lambda: page.keyboard.press("ArrowRight"))
        reach("#samples")
        answer = translated(page, lambda: page.keyboard.press("ArrowLeft"))
        assert len(answer["images"]) == 3
        translated(page, lambda: page.keyboard.press("Control+Enter"))
        assert "3 translations to sunny" in page.locator("#status").inner_text()


@needs_chromium
def test_on_a_phone(site: Site, browser: Any) -> None:
    with visiting(browser, site.url, 390, TOKEN, has_touch=True, is_mobile=True) as page:
        streets(page)
        give(page, site.street)
        translated(page, lambda: page.get_by_role("radio", name="Random").check())
        page.get_by_role("radio", name="Memory").check()
        page.locator("#command summary").click()
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        small = """[...document.querySelectorAll('button, select, .choice label, summary + *')]
            .filter(e => e.checkVisibility() && e.closest('#controls, .toolbar, .actions'))
            .filter(e => e.getBoundingClientRect().height < 36 && !e.closest('.legend')).map(e => e.outerHTML.slice(0, 80))"""
        assert page.evaluate(small) == []


@needs_chromium
def test_dropped_and_pasted(site: Site, browser: Any) -> None:
    script = """([kind, base64]) => {
        const bytes = Uint8Array.from(atob(base64), letter => letter.charCodeAt(0)), data = new DataTransfer();
        data.items.add(new File([bytes], 'given.png', {type: 'image/png'}));
        const event = kind == 'drop' ? new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})
            : new ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true});
        document.body.dispatchEvent(event);
    }"""
    with visiting(browser, site.url, token=TOKEN) as page:
        page.wait_for_selector("#attributes:not([hidden])")
        for kind, width in (("drop", 48), ("paste", 60)):
            content = base64.b64encode(encoded(painted(width, 40))).decode()
            answer = translated(page, functools.partial(page.evaluate, script, [kind, content]))
            assert answer["width"] == width


@needs_chromium
def test_errors_are_the_servers(site: Site, browser: Any, tmp_path: Path) -> None:
    text, animated = tmp_path / "text.png", tmp_path / "animated.png"
    text.write_text("no picture at all")
    animated.write_bytes(encoded(painted(), "PNG", save_all=True, append_images=[painted(seed=1)]))
    with visiting(browser, site.url, token=TOKEN, complains=["422"]) as page:
        page.wait_for_selector("#attributes:not([hidden])")
        for path in (text, animated):
            with page.expect_response(lambda answer: answer.url.endswith("/v1/translate")) as caught:
                page.set_input_files("#file", path)
            error = caught.value.json()["error"]
            page.get_by_role("alert").wait_for()
            assert page.get_by_role("alert").inner_text().split("\n") == [error["message"], error["hint"], error["code"]]
        give(page, site.street)
        assert page.get_by_role("alert").count() == 0


@needs_chromium
def test_the_token_is_asked_for(site: Site, browser: Any) -> None:
    with visiting(browser, site.url, complains=["401"]) as page:
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Token").fill("not-the-right-token")
        page.keyboard.press("Enter")
        dialog.get_by_text("The server does not take this one: the token is wrong").wait_for()
        dialog.get_by_label("Token").fill(TOKEN)
        page.keyboard.press("Enter")
        dialog.wait_for(state="hidden")
        give(page, site.street)
        assert '-H "Authorization: Bearer $RECOLLECT_TOKEN"' in page.locator("#curl").text_content()


@needs_chromium
def test_a_picture_that_is_too_large_is_scaled_first(site: Site, browser: Any, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    large.write_bytes(encoded(painted(400, 300)))
    with visiting(browser, site.url, token=TOKEN) as page:
        page.wait_for_selector("#attributes:not([hidden])")
        answer = translated(page, lambda: page.set_input_files("#file", large))
        assert answer["width"] * answer["height"] <= MAX_PIXELS < 1.05 * answer["width"] * answer["height"]
        size = f"{answer['width']} × {answer['height']}"
        assert f"The picture was scaled to {size} first." in page.locator("#status").inner_text()
        page.locator("#command summary").click()
        with page.expect_download() as caught:
            page.get_by_role("link", name=re.compile("save large")).click()
        assert Image.open(caught.value.path()).size == (answer["width"], answer["height"])
        assert f"image=@{caught.value.suggested_filename}" in page.locator("#curl").inner_text()


@needs_chromium
def test_a_busy_server_is_asked_again(site: Site, browser: Any) -> None:
    body = json.dumps({"error": {"code": "busy", "message": "the queue is full", "hint": "try again"}})
    turns = iter([503, 503])

    def busy(route: Any) -> None:
        status = next(turns, None)
        if status is None:
            route.continue_()
        else:
            route.fulfill(status=status, body=body, headers={"Retry-After": "1", "Content-Type": "application/json"})

    with visiting(browser, site.url, token=TOKEN, complains=["503"]) as page:
        page.wait_for_selector("#attributes:not([hidden])")
        page.route("**/v1/translate", busy)
        page.set_input_files("#file", site.street)
        page.get_by_text("The server is busy; trying again in 1 s.").wait_for()
        page.wait_for_selector(READY)
        assert "Translated" in page.locator("#status").inner_text()


CONTRAST = """() => {
    const rgb = text => text.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = e => {
        for (; e; e = e.parentElement) {
            const c = rgb(getComputedStyle(e).backgroundColor);
            if (c.length < 4 || c[3] > 0.9) return c;
        }
    };
    const bad = [];
    for (const e of document.querySelectorAll('label, button, legend, summary, p, a, output, span, h1, select, code')) {
        if (!e.checkVisibility() || !e.textContent.trim() || e.disabled) continue;
        if (e.closest('.hidden, figcaption, .skip, .off')) continue;
        const [a, b] = [light(rgb(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < 4.5) bad.push(`${ratio.toFixed(2)} ${e.outerHTML.slice(0, 80)}`);
    }
    return bad;
}"""
NAMELESS = """() => [...document.querySelectorAll('input, select, button, a[href]')].filter(e => e.checkVisibility())
    .filter(e => !(e.labels?.length || e.ariaLabel || e.textContent.trim())).map(e => e.outerHTML)"""


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_and_can_be_read(site: Site, browser: Any, scheme: str) -> None:
    with visiting(browser, site.url, token=TOKEN, color_scheme=scheme) as page:
        for model in ("", "streets"):
            if model:
                streets(page)
            give(page, site.street)
            translated(page, lambda: page.get_by_role("radio", name="Random").check())
            page.locator("#more summary").click()
            page.locator("#command summary").click()
            assert page.evaluate(CONTRAST) == []
            assert page.evaluate(NAMELESS) == []
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.get_by_role("button", name="Colours: as the system").click()
        page.get_by_role("button", name="Colours: light").click()
        after = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (after == ground) is (scheme == "dark")


# --- the client, where there are models, an index and a token


def test_the_client_reaches_everything(site: Site) -> None:
    with Client(site.url, token=ADMIN, trust_env=False) as client:
        assert client.model()["name"] == "guided" and client.model("streets")["method"] == "mguit"
        assert client.domains("streets")["domains"] == list(STREETS.names)
        items = client.items("streets")
        assert [sum(item.label == name for item in items) for name in ITEMS] == list(ITEMS.values())
        found = client.retrieve(site.street, k=3, attributes={"Male": 1}, where={"Male": 1}, thumbnails=True)
        assert len(found.found) == 3 and found.index == client.index()["digest"]
        assert [one.distance for one in found.found] == sorted(one.distance or 0 for one in found.found)
        assert found.found[0].thumbnail is not None and found.found[0].thumbnail.size == (32, 32)
        nearest = found.found[0].id
        changed = client.change_index(remove=[nearest])
        again = client.retrieve(site.street, k=3, attributes={"Male": 1}, where={"Male": 1})
        assert nearest not in [one.id for one in again.found] and again.index == changed["digest"] != found.index
        client.change_index(add=[nearest])
        back = client.retrieve(site.street, k=3, attributes={"Male": 1}, where={"Male": 1})
        assert [one.id for one in back.found] == [one.id for one in found.found]
        drawn = client.translate(site.street, attributes={"Blond_Hair": 1}, attention_mask=True, neighbours="thumbnails")
        assert drawn.masks[0].shape == (40, 52) and len(drawn.neighbours[0]) == NEIGHBOURS
    with Client(site.url, token="not-the-right-token", trust_env=False) as client:
        with pytest.raises(ServerError, match="the token is wrong") as refused:
            client.model()
        assert (refused.value.status, refused.value.code) == (401, "unauthorised")


async def _many(site: Site, count: int) -> list[tuple[int, ...] | None]:
    async with AsyncClient(site.url, token=TOKEN, trust_env=False) as client:
        asked = [client.translate(site.street, "night", model="streets", seed=seed, samples=2) for seed in range(count)]
        return [answer.seeds for answer in await asyncio.gather(*asked)]


def test_many_calls_are_under_way_at_once(site: Site) -> None:
    with ThreadPoolExecutor(1) as thread:  # the browser has a loop in this one
        answers = thread.submit(asyncio.run, _many(site, 6)).result()
    assert answers == [(seed, seed + 1) for seed in range(6)]
