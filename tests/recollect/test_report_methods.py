"""The report of every method in the catalogue, with weights that nobody trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from recollect.config import overlay, preset
from recollect.data.store import Store
from recollect.data.worlds import build_faces, build_streets
from recollect.evaluation.report.write import write_report
from recollect.retrieval.embed import build_index
from recollect.training.session import suit
from tests.browser import CHROMIUM, chromium, opened
from tests.recollect.test_report import run_folder
from trainables.catalogue import METHODS

PARENTS = {"retriever": "gmm_unit", "rg_unit": "retriever"}
OF_FACES = ("gmm_unit", "retriever", "rg_unit", "classifier")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of every method; those that start from others after these."""
    folder = tmp_path_factory.mktemp("methods")
    build_streets(str(folder / "data" / "streets"), size=64, train=1, val=2, test=4, references=2)
    build_faces(str(folder / "data" / "faces"), size=64, train=6, val=1, test=12)
    stores = {name: Store.open(str(folder / "data" / name)) for name in ("streets", "faces")}
    last = [*PARENTS]
    for name in sorted(METHODS, key=lambda name: last.index(name) if name in last else -1):
        store = stores["faces" if name in OF_FACES else "streets"]
        changes = {"data.store": store.uri, "name": name}
        if name in PARENTS:
            changes["model.parent.bundle"] = str(folder / PARENTS[name] / "best")
        if name == "rg_unit":
            build_index(folder / "retriever" / "best", store.uri, folder / "data" / "index")
            changes["data.index"] = str(folder / "data" / "index")
        run = suit(overlay(preset(f"{name}:tiny"), changes), store)
        run_folder(folder / name, run.model_copy(update={"model": run.model.with_parents()}), store)
    return folder


@pytest.mark.slow
def test_every_method_has_its_page(runs: Path, tmp_path: Path) -> None:
    shown = {}
    for name in METHODS:
        text = shown[name] = write_report(tmp_path / f"{name}.html", [runs / name], rows=2).read_text()
        assert "Left out" not in text, (name, text[text.index("Left out") :][:300])
        assert f'alt="{name} on test pictures"' in text and f'alt="{name} at step 40"' in text, name
        assert f"The method {name}, trained for 40 steps" in text and "<h2>Losses</h2>" in text, name
    assert "retrieved neighbours" in shown["rg_unit"] and "with random styles" in shown["gmm_unit"]
    exemplars = {name for name in METHODS if "with the style of exemplars" in shown[name]}
    assert exemplars >= {"mguit", "munit", "drit", "gmm_unit"} and not exemplars & {"cyclegan", "detector", "retriever"}
    assert [name for name in METHODS if "<h2>Inside the memory</h2>" in shown[name]] == ["mguit"]

    page = write_report(tmp_path / "all.html", [runs], rows=2)
    text = page.read_text()
    assert f"<h1>{len(METHODS)} runs: " in text and "Side by side: sunny to night" in text
    if CHROMIUM:
        with chromium() as browser, opened(browser, page, 390) as (tab, wrong):
            assert wrong == [] and tab.evaluate("document.documentElement.scrollWidth") == 390
