"""What MGUIT promises after a short training on the streets world: its memory is found, used, and used where it should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from recollect.config import overlay, preset
from recollect.data.store import Store
from recollect.data.worlds import build_streets
from recollect.evaluation.memory.use import memory_use
from recollect.evaluation.validate import gather, judge, translate_all
from recollect.pipeline import Pipeline
from recollect.training.session import suit, train


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_after_400_steps_the_memory_matters(tmp_path: Path) -> None:
    build_streets(str(tmp_path / "store"), size=64, train=300, val=24, test=2, references=4)
    store = Store.open(str(tmp_path / "store"))
    run = preset("mguit:tiny", data={"store": store.uri, "domains": ("sunny", "night")}, evaluation={"pictures": 24})
    bundle = train(overlay(suit(run, store), {"engine.steps": 400, "engine.evaluate_every": 400}), tmp_path / "run")
    pipeline, cases = Pipeline.open(str(bundle)), gather(store, ("sunny", "night"), "val", 64, 24)
    use = memory_use(pipeline, cases)
    assert use["memory_use/local/car"] >= 5, "a car's style changes cars five times as much as what is elsewhere"
    assert use["memory_use/shuffled"] >= 0.3
    assert min(use[f"memory_use/shuffled/{name}"] for name in ("car", "sign", "background")) > 0.15
    assert use["memory_use/class_free"] <= 0.1
    assert use["memory_use/found"] >= 0.6
    values = judge(translate_all(pipeline, cases), cases).values
    untouched = judge(cases.images.float() / 255, cases).values
    assert values["scene_error"] < 0.5 * untouched["scene_error"] and values["content_kept"] > 0.4
