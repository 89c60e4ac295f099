"""The report: one page that needs nothing else, escapes everything and shows what it was given."""

from __future__ import annotations

import base64
import json
import math
import re
import shutil
from functools import partial
from html import unescape
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from PIL import Image, ImageFont
from typer.testing import CliRunner

from recollect import cli
from recollect.bundle import Bundle, write
from recollect.config import Run, overlay, preset
from recollect.data.store import Store
from recollect.evaluation.curves import POINTS, Curve, chart
from recollect.evaluation.curves import overlay as overlaid
from recollect.evaluation.grids import colour_items, item_colours, picture_grid, wrap
from recollect.evaluation.memory.space import embed
from recollect.evaluation.report.configuration import differences
from recollect.evaluation.report.cost import cost_of
from recollect.evaluation.report.drawings import Mark, Row, axis, dot_rows, front, parallel
from recollect.evaluation.report.results import section as results_section
from recollect.evaluation.report.samples import evenly
from recollect.evaluation.report.search import importances
from recollect.evaluation.report.search import section as search_section
from recollect.evaluation.report.sources import Trials, find
from recollect.evaluation.report.write import write_report
from recollect.search.space import choose
from recollect.training.tracking import SAMPLES, Tracker
from recollect.training.trainer import build

EVIL = '<script>alert("x")</script>&'
VOID = {"meta", "img", "wbr", "br", "link", "input"}


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


SMALL = {"width": 8, "critic_width": 8}


def history(steps: int) -> list[dict[str, Any]]:
    """Rows as training writes them: losses and speed every 5 steps, validation every 10; one loss is not finite, one is evil."""
    rows: list[dict[str, Any]] = []
    for step in range(5, steps + 1, 5):
        rows.append({"step": step, "loss/self_rec": math.exp(-step / 20), "rate": 1e-4, "images_per_s": 4.0})
        rows[-1] |= {f"loss/{EVIL}": 1.0, "device_hours": step / 100}
        if step % 10 == 0:
            rows.append(
                {"step": step, "scene_error": 1 / step, "objective": 1 / step, "memory/dead/car": 1.0, "scene_error/sky": 0.1}
            )
    rows[2]["loss/self_rec"] = math.nan
    return rows


def run_folder(folder: Path, run: Run, store: Store, steps: int = 40) -> Bundle:
    """A run's directory as training leaves it, with weights that nobody trained: the best are from before the end."""
    domains = store.domains.only(run.data.domains)
    model, rows = build(run, domains), history(steps)
    model.begin()  # those with parents have their weights
    state = model.state_dict()
    parents = {"data": store.digest}
    write(folder / "last", run, domains, state, metrics=rows, parents=parents)
    best = write(folder / "best", run, domains, state, metrics=[row for row in rows if row["step"] <= 20], parents=parents)
    tracker = Tracker(folder, steps, steps, rows)
    for step in range(10, steps + 1, 10):
        tracker.pictures(step, torch.full((3, 20, 30), step, dtype=torch.uint8))
    tracker.close()
    return best


def rows_of(bundle: Bundle, scale: float) -> pd.DataFrame:
    """Results as `recollect evaluate` appends them."""
    found = {"scene_error": 0.123, "content_kept": 0.6, "scene_error/sky": 0.1, "scene_error/car": 0.4, "effective_items": 2.5}
    own = [{"metric": m, "value": v * scale, "low": v * scale - 0.01, "high": v * scale + 0.01} for m, v in found.items()]
    frame = pd.DataFrame(own).assign(name=bundle.run.name, kind="method", bundle=bundle.digest, about="40 steps")
    base = pd.DataFrame({"metric": ["scene_error", "scene_error/sky"], "value": [0.3, 0.2], "low": math.nan, "high": math.nan})
    both = pd.concat([frame, base.assign(name="black", kind="baseline", bundle="", about="in <words>")], ignore_index=True)
    return both.assign(method="", source="sunny", target=EVIL, split="test", pictures=4, data="d", features="")


def search_folder(folder: Path, run: Run, trials: int = 8) -> pd.DataFrame:
    """A finished search's files. The objective is what `con_k` says and nothing else; less is better."""
    draw = np.random.default_rng(0)
    over = ["weights.con_k", "model.memory.items_per_class.car"]
    con_k = 10 ** draw.uniform(-1, 1, trials)
    table = pd.DataFrame(
        {
            "trial": [f"t_{n:05d}" for n in range(trials)],
            "objective": np.log10(con_k) + 2,
            "status": ["finished", "stopped by ASHA"] * (trials // 2),
            "step": 40,
            "config/weights.con_k": con_k,
            "config/model.memory.items_per_class.car": draw.integers(2, 12, trials),
            "content_kept": draw.uniform(size=trials),
            "scene_error": np.log10(con_k) + 2,
            "seconds": 1800.0,
            "checkpoint": "/somewhere",
        }
    )
    folder.mkdir(parents=True)
    plan = {"trials": trials, "over": over, "mode": "min", "run": run.model_dump(mode="json")}
    (folder / "search.json").write_text(json.dumps(plan))
    table.sort_values("objective").to_parquet(folder / "trials.parquet", index=False)
    study = optuna.create_study(storage=JournalStorage(JournalFileBackend(str(folder / "study.journal"))))
    for value in table["objective"]:
        study.add_trial(optuna.trial.create_trial(value=float(value)))
    return table


@pytest.fixture(scope="module")
def run(store: Store) -> Run:
    data = {"store": store.uri, "domains": ("sunny", "night"), "size": 32}
    return preset("mguit:tiny", name="first", data=data, model={**SMALL, "content_blocks": 1, "generator_blocks": 1})


@pytest.fixture(scope="module")
def place(run: Run, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, a copy of one's bundle, a search, and a table of results with another run's rows in it."""
    folder = tmp_path_factory.mktemp("runs")
    first = run_folder(folder / "one", run, store)
    other = preset("cyclegan:tiny", name=EVIL, data=run.data.model_dump(), model={"width": 8})
    second = run_folder(folder / "two", other, store, steps=20)
    shutil.copytree(folder / "one" / "best", folder / "copied")
    search_folder(folder / "search", run)
    strange = rows_of(first, 3.0).query("kind == 'method'").assign(name="stranger", bundle="0" * 64)
    pd.concat([rows_of(first, 1.0), rows_of(second, 2.0), strange]).to_parquet(folder / "results.parquet", index=False)
    return folder


@pytest.fixture(scope="module")
def page(place: Path) -> str:
    own = [place / "one", place / "two", place / "search"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("recollect.evaluation.memory.report.embed", partial(embed, count=150))  # a t-SNE of all takes seconds
        path = write_report(place / "pages" / "report.html", own, rows=2, price=2.0, about={EVIL: EVIL})
    assert [item.name for item in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def test_the_page_stands_alone(page: str) -> None:
    reader = read(page)
    assert not {"script", "iframe", "object"} & {tag for tag, _ in reader.tags}
    for tag, attributes in reader.tags:
        for name in ("src", "href", "action", "srcset", "data"):
            target = attributes.get(name) or "data:"
            assert target.startswith(("data:", "#")), (tag, name, attributes[name])
    assert "@import" not in page and "url(" not in page
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page


def test_links_lead_to_sections_and_buttons_to_frames(page: str) -> None:
    tags = read(page).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all((attributes["href"] or "")[1:] in ids for tag, attributes in tags if tag == "a")
    assert all(attributes["for"] in ids for tag, attributes in tags if tag == "label")
    groups = [attributes["name"] for tag, attributes in tags if tag == "input"]
    chosen = [attributes["name"] for tag, attributes in tags if tag == "input" and "checked" in attributes]
    assert sorted(chosen) == sorted(set(groups)), "one of each group is shown"


def test_every_part_is_there_with_its_numbers(page: str) -> None:
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == [
        "Results", "Pictures", "Samples over time", "Inside the memory", "Losses", "Validation", "Memory over time",
        "Other curves", "Search", "Time and cost", "Configuration",
    ]  # fmt: skip
    text = read(page).text
    for shown in ("0.123", "0.113 to 0.133", "0.246", "black", "in <words>", "content_kept ↑", "memory/dead/car ↓",
                  "first at step 40", "Which fields mattered", "8 trials", "at 2 a device hour"):  # fmt: skip
        assert shown in text, shown
    assert "stranger" not in text, "a row of a run that is not on the page"
    assert text.count("Left out") == 0


def test_results_that_are_asked_for_are_all_shown(place: Path, tmp_path: Path) -> None:
    page = write_report(tmp_path / "r.html", [place / "results.parquet"]).read_text()
    assert "stranger" in page and re.findall(r"<h2>(.*?)</h2>", page) == ["Results"]


def test_the_samples_on_the_page_are_those_of_training(page: str) -> None:
    found = re.findall(r'<img alt="first at step (\d+)" src="data:image/webp;base64,([^"]+)"', page)
    assert [int(step) for step, _ in found] == [10, 20, 30, 40]
    for step, encoded in found:
        with Image.open(BytesIO(base64.b64decode(encoded))) as picture:
            assert picture.size == (30, 20)
            assert np.abs(np.array(picture).astype(int) - int(step)).max() <= 2  # lossy


def test_the_configuration_inside_is_the_run(page: str, run: Run) -> None:
    found = re.search(r"<pre>(.*?)</pre>", page, re.DOTALL)
    assert found
    assert Run.model_validate(json.loads(unescape(found[1]))) == run


def test_a_folder_is_searched_and_copies_are_one_run(place: Path) -> None:
    found = find([place])
    assert [source.name for source in found.runs] == ["first", EVIL]
    assert found.runs[0].place == str(place / "one") and found.runs[0].folder == place / "one"
    assert [trials.name for trials in found.trials] == ["search"] and len(found.trials[0].table) == 8
    assert found.runs[0].last_step == 40, "the run's own history goes on after the best step"
    assert find([place / "one" / "best"]).runs[0].last_step == 40
    alone = find([place / "copied"]).runs[0]
    assert alone.last_step == 20 and alone.samples() == {}
    assert set(find([place / "one"]).results["name"]) == {"first", "black"}


def test_the_command_writes_the_page_and_says_what_it_does(place: Path, tmp_path: Path) -> None:
    words = [
        "report",
        str(place / "two"),
        "-o",
        str(tmp_path / "r.html"),
        "--rows",
        "1",
        "--title",
        "Two",
        "--price-per-hour",
        "3",
    ]
    done = CliRunner().invoke(cli.app, words, catch_exceptions=False)
    assert done.exit_code == 0 and done.stdout == f"{tmp_path / 'r.html'}\n" and "drawing pictures" in done.stderr
    page = (tmp_path / "r.html").read_text()
    assert "<h1>Two</h1>" in page and "Cost at 3 a device hour" in page


def test_names_are_told_apart(run: Run, store: Store, tmp_path: Path) -> None:
    for seed in (0, 1):
        run_folder(tmp_path / f"s{seed}", overlay(run, {"seed": seed}), store, steps=20)
    assert [source.name for source in find([tmp_path]).runs] == ["first seed 0", "first seed 1"]
    run_folder(tmp_path / "again", overlay(run, {"weights.con_k": 0.7}), store, steps=20)
    assert [source.name for source in find([tmp_path]).runs] == ["first (again)", "first (s0)", "first (s1)"]


def test_a_place_with_nothing_says_what_would_do(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds nothing to report on; give bundles"):
        write_report(tmp_path / "r.html", [tmp_path])
    with pytest.raises(ValueError, match="holds nothing"):
        write_report(tmp_path / "r.html", [place / "one", tmp_path / "nowhere"])
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="is no table of results"):
        write_report(tmp_path / "r.html", [place / "one"], tables=[tmp_path / "x.parquet"])
    with pytest.raises(ValueError, match="at least one row"):
        write_report(tmp_path / "r.html", [place / "one"], rows=0)
    shutil.copytree(place / "search", tmp_path / "search")
    (tmp_path / "search" / "trials.parquet").unlink()
    with pytest.raises(ValueError, match="has not ended"):
        write_report(tmp_path / "r.html", [tmp_path / "search"])
    assert not (tmp_path / "r.html").exists()


def test_a_run_whose_store_is_gone_has_its_numbers(run: Run, store: Store, tmp_path: Path) -> None:
    data = run.data.model_copy(update={"store": str(tmp_path / "moved")})
    moved = preset("cyclegan:tiny", name="first", data=data.model_dump(), model={"width": 8})
    run_folder(tmp_path / "run", moved, store, steps=20)
    page = write_report(tmp_path / "r.html", [tmp_path / "run"], rows=1).read_text()
    assert "Left out for first: " in page and "moved" in page and "<h2>Losses</h2>" in page
    assert "Left out" not in write_report(tmp_path / "r.html", [tmp_path / "run"], rows=1, store=store.uri).read_text()


def test_trials_are_sorted_by_the_objective_whichever_way_is_up(place: Path) -> None:
    found = find([place / "search"]).trials[0]
    for mode, first in (("min", found.table["objective"].idxmin()), ("max", found.table["objective"].idxmax())):
        text = search_section([Trials("s", found.table, mode, found.fields, found.run)]).content
        table = text[text.index("All trials") :]
        assert re.findall(r"<th>(t_\d+)</th>", table)[0] == found.table["trial"][first]


def test_importances_find_what_the_objective_is_made_of(place: Path, run: Run) -> None:
    found = find([place / "search"]).trials[0]
    shares = importances(found, found.table)
    assert sum(shares.values()) == pytest.approx(1) and shares["weights.con_k"] > 0.6
    assert set(shares) == set(choose(run, ["weights.con_k", "model.memory.items_per_class.car"]))
    text = search_section([found]).content
    assert re.search(r"weights\.con_k</text>.*?smaller is better", text)
    assert importances(found, found.table[:3]) == {}


def test_trials_come_in_the_order_in_which_they_were_proposed(place: Path, tmp_path: Path) -> None:
    found, table = find([place / "search"]).trials[0], search_folder(tmp_path / "search", preset("mguit:tiny"))
    assert found.proposed == tuple(table["objective"])
    assert sorted(item.name for item in (place / "search").iterdir()) == ["search.json", "study.journal", "trials.parquet"]
    drawn = search_section([found]).content
    heights = [float(y) for y in re.findall(r'class="ring" cx="[\d.]+" cy="([\d.]+)" r="3"', drawn)]
    assert np.argsort(heights).tolist() == np.argsort(-table["objective"].to_numpy()).tolist()  # up is more


def test_the_front_is_of_the_goals(place: Path, tmp_path: Path) -> None:
    table = pd.DataFrame({"trial": ["a", "b", "c"], "objective": [0.1, 0.2, 0.3], "scene_error": [0.1, 0.2, 0.3],
                          "content_kept": [0.1, 0.5, 0.4], "modes_hit": [1.0, 0.5, 0.0]})  # fmt: skip
    goals = (("scene_error", False), ("content_kept", True))
    content = search_section([Trials("s", table, "min", goals=goals)]).content
    assert "2 of 3 trials on the front" in content and "modes_hit and" not in content
    filled = re.findall(r'class="dot" r="5" cx="[\d.]+" cy="[\d.]+"><title>(\w)', content)
    assert sorted(filled) == ["a", "b"]
    shutil.copytree(place / "search", tmp_path / "search")
    plan = json.loads((tmp_path / "search" / "search.json").read_text())
    plan["goals"] = ["minimises scene_error", "maximises content_kept"]
    (tmp_path / "search" / "search.json").write_text(json.dumps(plan))
    assert find([tmp_path / "search"]).trials[0].goals == goals


def test_what_differs_is_exactly_what_was_changed(run: Run) -> None:
    table = differences({"a": run, "b": overlay(run, {"weights.con_k": 0.7, "engine.steps": 3, "name": "b"})})
    assert sorted(table.index) == ["engine.steps", "weights.con_k"]
    assert table.loc["weights.con_k"].tolist() == [run.weights.model_dump()["con_k"], 0.7]
    assert len(differences({"a": run, "b": run})) == 0
    many = {str(n): overlay(run, {"seed": n}) for n in range(12)}
    assert differences(many).shape == (12, 1)


def test_cost_is_time_on_all_devices(place: Path) -> None:
    first, second = find([place]).runs
    cost = cost_of(first)
    assert cost is not None and (cost.steps, cost.images_per_second, cost.device_hours) == (40, 4.0, 0.4)
    assert cost.seconds_per_step == first.run.engine.batch_size * 2 / 4 and not cost.estimated
    bare = [{key: value for key, value in row.items() if key != "device_hours"} for row in second.history]
    old = cost_of(type(second)(second.name, second.place, second.bundle, bare))
    assert old is not None and old.estimated and old.device_hours == pytest.approx(20 * old.seconds_per_step / 3600)


def test_device_hours_go_on_and_samples_are_bounded(tmp_path: Path) -> None:
    rows = [{"step": 5, "device_hours": 1.5}]
    tracker = Tracker(tmp_path, 1000, 5, rows, devices=4)
    tracker.losses(10, {}, 0.1, 1.0)
    assert 1.5 < tracker.history[-1]["device_hours"] < 1.6
    grid = torch.zeros(3, 2, 2, dtype=torch.uint8)
    for step in range(1, 3 * SAMPLES):
        tracker.pictures(step, grid)
        steps = [int(file.stem[5:]) for file in sorted((tmp_path / "samples").glob("*.png"))]
        assert len(steps) <= SAMPLES and steps[0] == 1 and steps[-1] == step
    gaps = [b - a for a, b in zip(steps, steps[1:], strict=False)]
    assert max(gaps) <= 8, "what is kept is spread over the run"
    tracker.close()
    Tracker(tmp_path, 1000, 20, rows).close()
    assert max(int(file.stem[5:]) for file in (tmp_path / "samples").glob("*.png")) <= 20, "they will be drawn again"


def test_dots_and_whiskers_lie_where_the_numbers_are() -> None:
    nan = math.nan
    drawn = dot_rows(
        [Row("sky", (Mark(0.5, 0.25, 1.0, 0, "a"), Mark(1.0, nan, nan, 1, "b"), Mark(0.25, nan, nan, None, "black")))]
    )
    dots = [float(x) for x in re.findall(r'<circle class="dot" cx="([\d.]+)"', drawn)]
    whisker = re.search(r'class="whisker" x1="([\d.]+)" x2="([\d.]+)"', drawn)
    mark = re.search(r'class="mark" x1="([\d.]+)"', drawn)
    assert whisker and mark and drawn.count("whisker") == 1
    low, high = float(whisker[1]), float(whisker[2])
    assert high == pytest.approx(dots[1], abs=0.1) and low == pytest.approx(float(mark[1]), abs=0.1)
    assert dots[0] == pytest.approx(low + (high - low) / 3, abs=0.2)


def test_runs_keep_their_colours_where_some_are_missing() -> None:
    rows = [{"metric": m, "value": 0.1, "low": 0.0, "high": 0.2, "kind": "method", "name": n, "bundle": n, "about": ""}
            for n in ("b", "stranger") for m in ("scene_error/sky", "scene_error")]  # fmt: skip
    rows.append({**rows[0], "value": 0.01, "kind": "ceiling", "name": "truth", "bundle": ""})
    drawn = results_section(pd.DataFrame(rows).assign(setting="x"), ["a", "b"]).content
    assert re.findall(r'<g class="(c\d)">', drawn) == ["c1", "c2"] and "c0" not in drawn
    assert re.findall(r'<span class="(c\d)"><i class="swatch"></i>(\w+)', drawn) == [("c1", "b"), ("c2", "stranger")]
    assert drawn.count('class="mark dotted"') == 1 and "dotted: truth" in drawn


def test_two_data_sets_with_as_many_pictures_have_a_table_each() -> None:
    row = {
        "metric": "scene_error",
        "low": 0.0,
        "high": 0.9,
        "kind": "method",
        "name": "a",
        "bundle": "a",
        "about": "",
        "setting": "x",
    }
    rows = pd.DataFrame(
        [{**row, "setting": "x", "data": "1" * 64, "value": 0.123}, {**row, "setting": "x", "data": "2" * 64, "value": 0.456}]
    )
    both = results_section(rows, ["a"]).content
    assert "x, data 11111111" in both and "x, data 22222222" in both and "0.123" in both and "0.456" in both
    one = results_section(rows[:1], ["a"]).content
    assert "0.123" in one and ", data" not in one


def test_axes_take_numbers_words_and_gaps() -> None:
    assert axis("a", [1, 2, None]).places == (0.0, 1.0, None)
    assert axis("a", ["nce", "none", "nce"]).ticks == ((0.0, "nce"), (1.0, "none"))
    assert axis("a", [3.0, 3.0]).places == (0.0, 0.0)
    assert axis("a", [0.0, 1.0], log=True).places == (0.0, 1.0), "no logarithm of zero"
    drawn = parallel([axis(f"model.{EVIL}", [1.0, 2.0]), axis("objective", [0.2, 0.1])], [1.0, 0.0], 1)
    assert drawn.count("<polyline") == 2 and "<script" not in drawn
    assert drawn.index("trial top") > drawn.index('class="trial"'), "the best lies on top"
    assert front([1.0], [1.0], [True], ["t"], ("x", "y")).count("<circle") == 1


def test_frames_keep_both_ends() -> None:
    assert evenly(list(range(100)), 12)[0] == 0 and evenly(list(range(100)), 12)[-1] == 99
    assert len(set(evenly(list(range(100)), 12))) == 12


def test_several_runs_share_their_axes() -> None:
    one, two = Curve("a", (0, 10), (1.0, 2.0)), Curve("a", (5, 20), (3.0, 3.0))
    drawn = overlaid([one, None, two])
    assert re.findall(r'<g class="c(\d)">', drawn) == ["0", "2"]
    points = [[float(x) for x in pair.split(",")] for line in re.findall(r'points="([^"]+)"', drawn) for pair in line.split()]
    (x0, _), (x1, y1), (x2, y2), (x3, y3) = points
    assert x0 < x2 < x1 < x3 and y2 == y3 < y1


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
