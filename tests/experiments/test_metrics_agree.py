"""Whether own features agree with the truth: what the tables ask is what they say, and the whole line runs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from experiments import agreement, metrics_agree, metrics_agree_faces
from experiments.agreement import FID, HELD_OUT, KID
from experiments.tables.rows import PICTURES, ROWS, Results
from experiments.tables.table import check, chosen
from recollect.data.store import Store
from recollect.data.worlds import build_faces, build_streets
from recollect.evaluation.frechet import Stack, fid
from recollect.evaluation.numbers import Numbers
from recollect.evaluation.own_features import OwnFeatures

VALUES = {  # arm: error, fid, kid
    "MGUIT": (0.10, 10.0, 5.0),
    "DRIT": (0.12, 20.0, 4.0),
    "MUNIT": (0.15, 15.0, 8.0),
    "the input itself": (0.30, 90.0, 70.0),
    "black": (0.20, 80.0, 60.0),
}


def test_agreement_counts_pairs_that_order_alike() -> None:
    rows = []
    for arm, numbers in VALUES.items():
        kind = "method" if arm.isupper() else "baseline"
        about = {"arm": arm, "kind": kind, "seed": 0 if kind == "method" else -1, "setting": "sunny-night", "bundle": arm}
        rows += [
            {**about, "metric": name, "value": value} for name, value in zip(("scene_error", FID, KID), numbers, strict=True)
        ]
    numbers = Numbers(Results(pd.DataFrame(rows, columns=ROWS), pd.DataFrame(columns=PICTURES)))
    said = agreement.agreement("scene_error", ("the input itself",))(numbers, "sunny-night")
    assert f"- `{FID}` orders 5 of 6 pairs of rows as `scene_error` does; not DRIT and MUNIT." in said
    assert f"- `{KID}` orders 5 of 6 pairs of rows as `scene_error` does; not MGUIT and DRIT." in said


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = tmp_path_factory.mktemp("agree") / "streets"
    build_streets(uri, size=64, train=24, val=18, test=18, references=2)
    return str(uri)


def test_the_arms_can_stand_in_their_tables(streets: str, tmp_path: Path) -> None:
    check(metrics_agree.TABLE, metrics_agree.arms(streets, small=True))
    build_faces(tmp_path / "faces", size=64, train=4, val=1, test=1)
    arms = metrics_agree_faces.arms(str(tmp_path / "faces"), small=True)
    check(metrics_agree_faces.TABLE, arms)
    assert [arm.name for arm in chosen(arms, ["RG-UNIT"], None)] == ["GMM-UNIT", "all", "RG-UNIT"]


@pytest.mark.slow
def test_the_whole_line(streets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features are trained once, pass their test, and judge; true pictures come out nearest and the inputs far."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(agreement, "STEPS", 150)
    words = ["--small", "--store", streets, "--steps", "2", "--seeds", "0", "--arms", "MUNIT", "--storage", str(tmp_path)]
    assert metrics_agree.main(words) == 0
    page = (tmp_path / "metrics-agree.md").read_text()
    assert "### Agreement with scene_error" in page and "judged by features" in page and HELD_OUT in page
    rows = pd.read_parquet(tmp_path / "metrics-agree.parquet")
    night = rows[(rows["setting"] == "sunny-night") & (rows["metric"] == FID)].set_index("arm")["value"]
    assert night[HELD_OUT] < night["best colour map"] < night["the input itself"]
    (kept,) = (tmp_path / "metrics-agree" / "judging").glob("features-*")
    store, features = Store.open(streets), OwnFeatures(kept, target="night")
    _, real = metrics_agree._judging(str(kept), streets, "sunny", "night", 64)
    cases = metrics_agree.TABLE.suite.cases(metrics_agree.arms(streets, True)[0].run, metrics_agree_setting(streets))
    count = min(len(real), len(cases.images))
    (expected,) = fid(Stack(real), Stack(cases.images), features, count).judgement.values.values()
    assert night["the input itself"] == pytest.approx(expected) and len(store.ids("val", "night")) == len(real)
    assert torch.is_tensor(real)
    before = rows[rows["arm"] == "MUNIT"]
    assert metrics_agree.main(words) == 0  # nothing is done again
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "metrics-agree.parquet").query("arm == 'MUNIT'"), before)


def metrics_agree_setting(streets: str) -> object:
    return metrics_agree.TABLE.suite.settings(metrics_agree.arms(streets, True)[0].run)[0]
