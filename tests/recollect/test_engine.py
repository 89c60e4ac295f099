"""The training loop: it survives a kill bit-equal, says what it does, and stops at what is not finite."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from recollect.batch import Batch
from recollect.bundle import open_bundle
from recollect.config import Run, overlay, preset
from recollect.data.store import Store, write_store
from recollect.testing import noise_batches
from recollect.training import trainer as trainer_module
from recollect.training.engine import fit
from recollect.training.finite import NotFinite, Watch
from recollect.training.session import check_boxes, domains_of, suit, train
from recollect.training.trainer import Trainer

SMALL = {
    "width": 8,
    "critic_width": 8,
    "critic_layers": 2,
    "content_blocks": 2,
    "generator_blocks": 2,
    "memory": {"value_dim": 8},
}


@pytest.fixture
def run(store: Store) -> Run:
    engine = {"steps": 6, "batch_size": 2, "log_every": 2, "evaluate_every": 3, "checkpoint_every": 1, "ema": 0.9, "threads": 1}
    made = preset("mguit:tiny", data={"store": store.uri, "size": 32}, model=SMALL, engine=engine, evaluation={"pictures": 2})
    return suit(overlay(made, {"data.domains": ("sunny", "night")}), store)


def digests(path: Path) -> dict[str, str]:
    files: dict[str, str] = open_bundle(path).manifest["files"]
    return {name: digest for name, digest in files.items() if name.endswith(".safetensors")}


def test_a_run_killed_in_the_middle_and_resumed_ends_bit_equal(run: Run, tmp_path: Path) -> None:
    run = overlay(run, {"engine.steps": 8, "engine.evaluate_every": 0})
    whole = tmp_path / "whole"
    train(run, whole)
    script = tmp_path / "train.py"
    script.write_text(
        "import sys; from pathlib import Path; from recollect.config import Run; from recollect.training.session import train\n"
        "train(Run.model_validate_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), resume=True)\n"
    )
    (tmp_path / "run.json").write_text(run.model_dump_json())
    killed = tmp_path / "killed"
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, str(script), str(tmp_path / "run.json"), str(killed)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths})
    deadline = time.monotonic() + 120
    while step_of(killed / "last") < 3:
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    stood = step_of(killed / "last")
    assert 3 <= stood < 8, "killed in the middle"
    subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=True, timeout=200)
    assert digests(whole / "last") == digests(killed / "last")
    rows = [json.loads(line) for line in (killed / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "loss/self_rec" in row]
    assert steps == sorted(set(steps)) and steps[-1] == 8


class Broken:
    """A judge that cannot judge."""

    metric, mode, about = "scene_error", "min", "nothing"

    def __call__(self, subject: object) -> dict[str, float]:
        raise ValueError("no such picture")

    def grid(self, subject: object) -> torch.Tensor:
        raise AssertionError("nothing was judged")


def test_a_judge_that_fails_does_not_take_the_training_with_it(run: Run, store: Store, tmp_path: Path) -> None:
    run, domains = overlay(run, {"engine.checkpoint_every": 0, "engine.evaluate_every": 0}), domains_of(run, store)

    class Noise:
        def stream(self, start: int, stop: int) -> Iterator[tuple[int, tuple[Batch, ...]]]:
            for step in range(start, stop):
                yield step, noise_batches(run, domains, 2, range(2), step)

    with pytest.raises(ValueError, match="no such picture"):
        fit(run, Noise(), domains, tmp_path, judge=Broken())
    assert step_of(tmp_path / "last") == run.engine.steps
    fit(run, Noise(), domains, tmp_path, resume=tmp_path / "last")  # nothing is left to train


def step_of(checkpoint: Path) -> int:
    try:
        return int(json.loads((checkpoint / "training.json").read_text())["step"])
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return 0


def test_a_run_leaves_what_people_look_for(run: Run, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reported: list[tuple[dict[str, float], Path | None]] = []
    with caplog.at_level("INFO", logger="recollect"):
        bundle = train(run, tmp_path / "run", report=lambda metrics, path: reported.append((dict(metrics), path)))
    assert bundle == tmp_path / "run" / "best"
    opened = open_bundle(bundle)
    assert opened.manifest["parents"] == {"data": store.digest}
    assert opened.domains.names == ("sunny", "night") and opened.domains.classes == store.domains.classes
    assert not (bundle / "training.json").exists() and (tmp_path / "run" / "last" / "training.json").exists()
    assert list((tmp_path / "run" / "samples").glob("*.png")) and list((tmp_path / "run" / "tensorboard").iterdir())
    card = (bundle / "README.md").read_text()
    assert "| con_k | 5 |" in card and "scene_error" in card and "memory/cosine/background" in card
    line = next(record.getMessage() for record in caplog.records if record.getMessage().startswith("step 4/6"))
    assert "images/s" in line and "con_k" in line and "left" in line
    steps = [metrics["step"] for metrics, _ in reported]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert [("objective" in metrics) for metrics, _ in reported] == [False, False, True, False, False, True]
    values = [metrics["objective"] for metrics, _ in reported if "objective" in metrics]
    best = [row["objective"] for row in opened.metrics() if "objective" in row]
    assert best[-1] == pytest.approx(min(values))


def test_a_second_run_in_the_same_place_is_refused(run: Run, tmp_path: Path) -> None:
    run = overlay(run, {"engine.steps": 1, "engine.evaluate_every": 0})
    train(run, tmp_path / "run")
    with pytest.raises(ValueError, match="--resume"):
        train(run, tmp_path / "run")


def test_going_further_than_planned_is_resuming_with_more_steps(run: Run, tmp_path: Path) -> None:
    constant = overlay(run, {"engine.evaluate_every": 0, "optimisers.default.hold": 1.0, "optimisers.content_critic.hold": 1.0})
    train(overlay(constant, {"engine.steps": 4}), tmp_path / "whole")
    train(overlay(constant, {"engine.steps": 2}), tmp_path / "half")
    train(overlay(constant, {"engine.steps": 4}), tmp_path / "rest", resume=tmp_path / "half" / "last")
    assert digests(tmp_path / "whole" / "last")["model.safetensors"] == digests(tmp_path / "rest" / "last")["model.safetensors"]
    other = overlay(constant, {"model.width": 12})
    with pytest.raises(ValueError, match="another model"):
        train(other, tmp_path / "other", resume=tmp_path / "half" / "last")
    with pytest.raises(ValueError, match="inference only"):
        train(constant, tmp_path / "other", resume=tmp_path / "whole" / "best")


def test_the_best_so_far_comes_along_to_a_new_place(run: Run, tmp_path: Path) -> None:
    run = overlay(run, {"engine.steps": 2, "engine.evaluate_every": 0})
    train(run, tmp_path / "half")
    again = train(run, tmp_path / "again", resume=tmp_path / "half" / "last")  # nothing is left to train, or to beat it
    assert again == tmp_path / "again" / "best"
    assert open_bundle(again).digest == open_bundle(tmp_path / "half" / "best").digest


@pytest.mark.parametrize(("precision", "behind"), [("fp32", False), ("bf16", False), ("fp32", True)])
def test_what_is_not_finite_stops_the_run_before_anything_is_trained_on_it(
    run: Run, store: Store, tmp_path: Path, precision: str, behind: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "Watch", partial(Watch, behind=behind))

    class Poisoned:
        def stream(self, start: int, stop: int) -> object:
            for step in range(start, stop):
                batches = noise_batches(run, domains_of(run, store), 2, range(2), step)
                if step == 2:
                    batches[1].images[0, 0, 0, 0] = float("nan")
                yield step, batches

    run = overlay(run, {"engine.precision": precision, "engine.checkpoint_every": 0, "engine.evaluate_every": 0})
    with pytest.raises(NotFinite, match=r"step 2, phase translate: .*self_rec.* is not finite.*broken"):
        fit(run, Poisoned(), domains_of(run, store), tmp_path)  # type: ignore[arg-type]
    state = open_bundle(tmp_path / "broken").state("model")
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert step_of(tmp_path / "broken") == 2


def test_the_learning_rate_falls_and_critics_have_their_own(run: Run, store: Store) -> None:
    rate = {"optimisers.default.lr": 5e-4, "optimisers.default.hold": 0.5, "optimisers.content_critic.lr": 3e-5}
    run = overlay(run, {"engine.steps": 4, **rate})
    trainer = Trainer(run, domains_of(run, store), device="cpu")
    rates = []
    for step in range(4):
        trainer.update(noise_batches(run, domains_of(run, store), 2, range(2), step))
        rates.append({name: optimiser.param_groups[0]["lr"] for name, optimiser in trainer.optimisers.items()})
    assert [rate["generator"] for rate in rates] == pytest.approx([5e-4, 5e-4, 5e-4, 2.5e-4])
    assert rates[0]["content_critic"] == pytest.approx(3e-5)


def test_averaged_weights_follow_slowly_and_buffers_are_copied(run: Run, store: Store) -> None:
    trainer = Trainer(overlay(run, {"engine.ema": 0.5}), domains_of(run, store), device="cpu")
    name = "generator.last.0.1.weight"
    values = []
    for step in range(3):
        trainer.update(noise_batches(run, domains_of(run, store), 2, range(2), step))
        values.append(trainer.model.state_dict()[name].clone())
    assert trainer.ema is not None
    averaged = trainer.ema.module.state_dict()
    torch.testing.assert_close(averaged[name], 0.25 * values[0] + 0.25 * values[1] + 0.5 * values[2])
    assert torch.equal(averaged["memory.keys"], trainer.model.state_dict()["memory.keys"])


def test_a_domain_without_boxes_or_without_a_class_is_met_with_words(store: Store, tmp_path: Path) -> None:
    records = store.records(store.ids("train", "sunny") + store.ids("train", "night"))
    plain = [replace(record, scene=None, mode=None, regions=None) for record in records]
    classes, names = store.domains.classes, ("sunny", "night")
    bare = [replace(record, boxes=None if record.domain == "night" else record.boxes) for record in plain]
    write_store(str(tmp_path / "bare"), bare, domains=names, classes=classes)
    run = preset("mguit:tiny", data={"domains": names})
    opened = Store.open(str(tmp_path / "bare"))
    assert opened.boxes("train", "night") is None and opened.boxes("val", "sunny") is None
    with pytest.raises(ValueError, match="nobody annotated the training pictures of 'night'.*use=single"):
        check_boxes(suit(run, opened), opened)
    check_boxes(suit(overlay(run, {"model.memory.use": "single"}), opened), opened)
    half = [replace(r, boxes=None) if r.domain == "night" and n % 2 else r for n, r in enumerate(plain)]
    write_store(str(tmp_path / "half"), half, domains=names, classes=classes)
    opened, said = Store.open(str(tmp_path / "half")), list[str]()
    check_boxes(suit(run, opened), opened, said.append)
    assert "6 of 12 training pictures of night have no annotation: all background" in said
    detector = preset("detector:tiny", data={"store": str(tmp_path / "bare"), "domains": ("night",)})
    with pytest.raises(ValueError, match="nobody annotated the training pictures of 'night'"):
        check_boxes(detector, Store.open(str(tmp_path / "bare")))
    signless = [replace(r, boxes=tuple(b for b in r.boxes or () if b.label != "sign" or r.domain == "sunny")) for r in plain]
    write_store(str(tmp_path / "signless"), signless, domains=names, classes=classes)
    opened, said = Store.open(str(tmp_path / "signless")), []
    check_boxes(suit(run, opened), opened, said.append)
    assert said == ["no training picture of night shows sign: what mguit learns of them there is nothing"]
    counted = Store.open(str(tmp_path / "signless")).boxes("train", "sunny")
    assert counted == {
        name: sum(b.label == name for r in plain if r.domain == "sunny" for b in r.boxes or ()) for name in classes[1:]
    }


def test_a_store_without_two_domains_or_boxes_is_met_with_words(store: Store) -> None:
    said: list[str] = []
    run = suit(preset("mguit:tiny", data={"store": store.uri}), store, said.append)
    assert run.data.domains == ("sunny", "night") and "taking sunny and night" in said[0]
