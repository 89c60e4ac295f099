"""The report: one page that needs nothing else, escapes everything and shows what it was given."""

from __future__ import annotations

import base64
import json
import math
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image, ImageFont

from recollect.config import Run, preset
from recollect.evaluation.curves import POINTS, Curve, chart
from recollect.evaluation.grids import colour_items, item_colours, picture_grid, save_png, wrap
from recollect.evaluation.report import write_report

EVIL = '<script>alert("x")</script>&'
VOID = {"meta", "img", "wbr", "br"}


class Reader(HTMLParser):
    """Checks that tags nest, and keeps text, tags and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data}\n"


@pytest.fixture(scope="module")
def run() -> Run:
    return preset("mguit:tiny", data={"store": "runs/streets", "domains": ("sunny", EVIL)})


@pytest.fixture(scope="module")
def page(run: Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    save_png(torch.arange(3 * 20 * 30, dtype=torch.uint8).reshape(3, 20, 30), folder / "grid.png")
    history: list[dict[str, Any]] = [
        {"step": s, "loss/con_k": math.exp(-s / 20), "loss/self_rec": 1.0, "lr": 1e-4} for s in range(200)
    ]
    history[7]["loss/self_rec"] = math.nan
    history[100] |= {"scene_error": 0.2, "content_kept": 0.5, "objective": 0.2, "memory/dead/car": 1.0, f"loss/{EVIL}": 2.0}
    history[199] |= {"scene_error": 0.1, "content_kept": 0.6, "objective": 0.1, "memory/dead/car": 0.0, f"loss/{EVIL}": 1.0}
    judged = pd.DataFrame(
        [
            *(
                {"metric": m, "value": v, "low": v - 0.01, "high": v + 0.01, "kind": "method", "name": EVIL}
                for m, v in METHOD.items()
            ),
            {"metric": "scene_error", "value": 0.3, "low": math.nan, "high": math.nan, "kind": "baseline", "name": "black"},
        ]
    ).assign(about="in <words>", bundle="f00d")
    trials = pd.DataFrame({"seconds": [1.0, 2.0, 3.0], "objective": [0.3, 0.1, 0.2], "trial": ["worst", "best", EVIL]})
    path = write_report(
        folder / "pages" / "report.html",
        title=f"Streets {EVIL}",
        run=run,
        metrics_history=history,
        tables={"Judged": judged, f"Other {EVIL}": pd.DataFrame({"x": [1.5, math.nan], EVIL: ["a", "b"]})},
        grids={f"Rows {EVIL}": folder / "grid.png"},
        search=trials,
        facts={"device": "two cores", EVIL: EVIL},
    )
    assert [item.name for item in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


METHOD = {"scene_error": 0.1234, "scene_error/car": 0.2345, "content_kept": 0.8, "class_found/car": 0.75}


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    return reader


def test_the_page_is_well_formed_and_escapes_everything(page: str) -> None:
    reader = read(page)
    assert "script" not in {tag for tag, _ in reader.tags}
    assert "<script" not in page and page.count("&lt;script&gt;") >= 8
    assert "in &lt;words&gt;" in page
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)


def test_the_page_needs_nothing_from_elsewhere(page: str) -> None:
    assert not re.search(r"https?://|//\w+\.\w|@import|url\(", page)
    reader = read(page)
    sources = [attributes["src"] for tag, attributes in reader.tags if tag == "img"]
    assert len(sources) == 1 and (sources[0] or "").startswith("data:image/png;base64,")
    assert not {"link", "iframe", "object"} & {tag for tag, _ in reader.tags}
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page


def test_the_picture_inside_is_the_file(page: str, tmp_path: Path) -> None:
    encoded = re.search(r"base64,([^\"]+)", page)
    assert encoded
    (tmp_path / "again.png").write_bytes(base64.b64decode(encoded[1]))
    with Image.open(tmp_path / "again.png") as picture:
        assert picture.size == (30, 20) and picture.getpixel((1, 0)) == (1, 600 % 256 + 1, 1201 % 256)


def test_every_part_is_there_with_its_numbers(page: str) -> None:
    text = read(page).text
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == ["Pictures", "Results", "Losses", "Validation", "Memory", "Other", "Search", "Configuration"]
    for shown in ("0.123", "0.113 to 0.133", "0.234", "0.800", "two cores", "black", "con_k", "objective", "memory/dead/car ↓"):
        assert shown in text, shown
    assert len(re.findall("<svg", page)) == 8  # con_k, self_rec, the evil one; 3 of validation, 1 of memory, 1 other


def test_trials_are_sorted_by_the_objective_whichever_way_is_up(page: str, run: Run, tmp_path: Path) -> None:
    assert page.index("best</th>") < page.index(f"{'&lt;script&gt;alert'}", page.index("best</th>")) < page.index("worst</th>")
    upward = run.model_copy(update={"evaluation": run.evaluation.model_copy(update={"metric": "content_kept"})})
    trials = pd.DataFrame({"trial": ["low", "high"], "objective": [0.1, 0.9]})
    path = write_report(tmp_path / "r.html", title="t", run=upward, metrics_history=[], tables={}, grids={}, search=trials)
    again = path.read_text()
    assert again.index("high</th>") < again.index("low</th>")
    assert re.findall(r"<h2>(.*?)</h2>", again) == ["Search", "Configuration"]  # nothing to show, no heading


def test_the_configuration_inside_is_the_run(page: str, run: Run) -> None:
    found = re.search(r"<pre>(.*?)</pre>", page, re.DOTALL)
    assert found
    assert Run.model_validate(json.loads(unescape(found[1]))) == run


def test_curves_skip_what_is_not_finite_and_choose_their_scale() -> None:
    history: list[dict[str, Any]] = [{"step": 10 * i, "a": value} for i, value in enumerate((1.0, math.nan, 3.0, math.inf, 2.0))]
    curve = Curve.of("a", history)
    assert curve == Curve("a", (0, 20, 40), (1.0, 3.0, 2.0)) and not curve.log
    assert Curve.of("b", history) is None
    assert Curve("c", (0, 1), (0.001, 1.0)).log and not Curve("c", (0, 1), (0.0, 1000.0)).log
    assert chart(curve).count("<circle") == 3
    flat = chart(Curve("d", (5,), (0.0,)))
    assert "nan" not in flat and "inf" not in flat


def test_chart_points_lie_where_the_numbers_are() -> None:
    points = re.search(r'class="line" points="([^"]+)"', chart(Curve("a", (0, 50, 100), (1.0, 2.0, 3.0))))
    assert points
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in points[1].split())
    assert x0 < x1 < x2 and x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert y0 > y1 > y2 and y1 == pytest.approx((y0 + y2) / 2, abs=0.1)


def test_long_histories_are_averaged_down() -> None:
    curve = Curve("a", tuple(range(5000)), tuple(float(i % 2) for i in range(5000))).thinned()
    assert len(curve.values) == POINTS and all(0.3 < value < 0.7 for value in curve.values)
    assert curve.steps[0] < 20 and curve.steps[-1] > 4980 and list(curve.steps) == sorted(curve.steps)


def test_captions_fit_their_columns() -> None:
    font = ImageFont.load_default(size=13)
    for text in ("nearest true render", "a", "donaudampfschifffahrtsgesellschaft of the memory items read", ""):
        lines = wrap(text, 100, font)
        assert all(font.getlength(line) <= 100 for line in lines)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    pictures = torch.full((2, 3, 64, 64), 7, dtype=torch.uint8)
    grid = picture_grid({"a caption that is much too long for one line of its column": pictures, "b": pictures})
    assert grid.shape[2] == 2 * 128 + 3
    head = grid.shape[1] - (2 * 128 + 3)
    assert head > 3 * 16
    gap = grid[:, head:, 128:131]
    assert (gap == 255).all() and (grid[:, head : head + 128, :128] == 7).all()
    assert (grid[:, :head, 128:131] == 255).all()  # no caption runs into the next column


def test_memory_maps_show_classes_as_hues_and_items_as_shades() -> None:
    colours = item_colours([0, 0, 1, 1, 2, 3])
    assert len(set(colours)) == 6 and all(len(set(colour)) == 1 for colour in colours[:2])
    drawn = colour_items(torch.tensor([[[0, 2], [4, 5]]]), torch.tensor([0, 0, 1, 1, 2, 3]), 3, (5, 6))
    assert drawn.shape == (1, 3, 5, 6)
    assert tuple(drawn[0, :, 0, 3].tolist()) == colours[2] and tuple(drawn[0, :, 4, 5].tolist()) == colours[5]
