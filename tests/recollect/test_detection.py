"""Average precision by hand, by pycocotools and by torchmetrics; translated stores; the verbs for both."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from typer.testing import CliRunner

from recollect import cli
from recollect.batch import Detections, Domains
from recollect.bundle import open_bundle
from recollect.config import Data, Run, overlay, preset
from recollect.data.loader import Feed
from recollect.data.schema import Record
from recollect.data.store import Store, write_store
from recollect.data.transforms import decode, rasterise, to_uint8, to_unit
from recollect.data.worlds import build_streets
from recollect.evaluation.average_precision import Annotated, accumulated, measure, precision
from recollect.evaluation.detection import DetectionJudge, annotated, detect, evaluate_detector
from recollect.evaluation.evaluate import COLUMNS, append, evaluate, show
from recollect.pipeline import Pipeline
from recollect.training.session import domains_of, judge_of, suit
from recollect.training.trainer import Trainer, build
from recollect.translated import translate_store

CLASSES = ("background", "car", "person")
Boxes = Sequence[Sequence[float]]


def picture(number: int, boxes: Boxes, labels: Sequence[int], place: str | None = None) -> Annotated:
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    blank = torch.zeros(3, 4, 4, dtype=torch.uint8)
    return Annotated(str(number), place or str(number), blank, (1.0, 1.0), corners, torch.tensor(labels, dtype=torch.int64))


def found(boxes: Boxes, scores: Sequence[float], labels: Sequence[int]) -> Detections:
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Detections(corners, torch.tensor(scores, dtype=torch.float32), torch.tensor(labels, dtype=torch.int64))


def test_average_precision_by_hand() -> None:
    """Two cars in two pictures. Best first: right (IoU 1), wrong, right (IoU 0.82, so up to the threshold 0.8).

    Where both are right, precision is 1 up to recall 1/2 (51 of the 101 recalls) and 2/3 after it (50 of them).
    """
    seen = [
        (picture(0, [[0, 0, 10, 10]], [1]), found([[0, 0, 10, 10], [50, 50, 60, 60]], [0.9, 0.8], [1, 1])),
        (picture(1, [[0, 0, 10, 10]], [1]), found([[0, 0, 10, 8.2]], [0.7], [1])),
    ]
    both, one = (51 + 50 * 2 / 3) / 101, 51 / 101
    values = precision(seen, CLASSES).values
    assert list(values) == ["detection_map", "detection_map/car", "detection_map50", "detection_map50/car"]
    assert [values["detection_map50"], values["detection_map50/car"]] == pytest.approx([both, both], abs=1e-6)
    assert values["detection_map"] == pytest.approx((7 * both + 3 * one) / 10, abs=1e-6)


def test_a_class_is_its_own_and_the_mean_is_over_classes_with_boxes() -> None:
    seen = [(picture(0, [[0, 0, 9, 9], [20, 20, 29, 29]], [1, 2]), found([[0, 0, 9, 9], [20, 20, 29, 29]], [0.9, 0.8], [1, 1]))]
    values = precision(seen, CLASSES).values
    assert values["detection_map/car"] == pytest.approx(1) and values["detection_map/person"] == 0
    assert values["detection_map"] == pytest.approx(0.5)
    without = precision([(picture(0, [[0, 0, 9, 9]], [1]), seen[0][1])], CLASSES).values
    assert "detection_map/person" not in without and without["detection_map"] == pytest.approx(1)
    with pytest.raises(ValueError, match="has a box"):
        precision([(picture(0, [], []), found([], [], []))], CLASSES)


def random_scene(seed: int, pictures: int) -> list[tuple[Annotated, Detections]]:
    """Boxes with detections near them, some lost, some of the wrong class, and some that are nothing."""
    draw = np.random.default_rng(seed)
    seen = []
    for number in range(pictures):
        count = int(draw.integers(0, 5))
        corner = draw.uniform(0, 60, (count, 2))
        boxes = np.concatenate([corner, corner + draw.uniform(4, 40, (count, 2))], axis=1)
        labels = draw.integers(1, 3, count)
        near = [box + draw.normal(0, 2, 4) for box in boxes if draw.uniform() < 0.8]
        far = [np.array([x, y, x + 12, y + 12]) for x, y in draw.uniform(0, 70, (int(draw.integers(0, 3)), 2))]
        guesses = np.array(near + far).reshape(-1, 4)
        guesses[:, 2:] = np.maximum(guesses[:, 2:], guesses[:, :2] + 1)
        own = picture(number, boxes.tolist(), labels.tolist(), place=f"place-{number // 2}")
        kinds = draw.integers(1, 3, len(guesses))
        seen.append((own, found(guesses.tolist(), draw.uniform(0.05, 1, len(guesses)).tolist(), kinds.tolist())))
    return seen


def by_pycocotools(seen: Sequence[tuple[Annotated, Detections]]) -> tuple[float, float]:
    """AP and AP50 by its own command-line way: JSON files and `summarize`."""

    def xywh(boxes: Tensor) -> list[list[float]]:
        return [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes.double().tolist()]

    truth, guesses = COCO(), []
    rows = []
    for number, (own, seen_here) in enumerate(seen):
        for box, label in zip(xywh(own.boxes), own.labels.tolist(), strict=True):
            rows.append({"id": len(rows) + 1, "image_id": number, "category_id": label, "bbox": box, "area": 1, "iscrowd": 0})
        for box, label, score in zip(xywh(seen_here.boxes), seen_here.labels.tolist(), seen_here.scores.tolist(), strict=True):
            guesses.append({"image_id": number, "category_id": label, "bbox": box, "score": score})
    truth.dataset = {"images": [{"id": n} for n in range(len(seen))], "annotations": rows, "categories": [{"id": 1}, {"id": 2}]}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        job = COCOeval(truth, truth.loadRes(guesses), "bbox")
        job.evaluate()
        job.accumulate()
        job.summarize()
    return float(job.stats[0]), float(job.stats[1])


@settings(max_examples=8, deadline=None)
@example(seed=117470)  # a recall of exactly one of the 101 steps, which float32 steps put on the other side
@given(seed=st.integers(0, 2**20))
def test_torchmetrics_pycocotools_and_our_accumulation_agree(seed: int) -> None:
    seen = [*random_scene(seed, 12), (picture(99, [[1, 1, 20, 20]], [1]), found([[1, 1, 19, 20]], [0.5], [1]))]
    values = measure([own for _, own in seen], [(own.boxes, own.labels) for own, _ in seen], CLASSES)
    assert (values["detection_map"], values["detection_map50"]) == pytest.approx(by_pycocotools(seen), abs=1e-6)
    ours = accumulated(seen, CLASSES, torch.ones(2, len(seen), dtype=torch.double))
    assert {name: float(row[1]) for name, row in ours.items()} == pytest.approx(values, abs=1e-6)


def test_a_resample_is_what_torchmetrics_says_of_the_pictures_drawn() -> None:
    seen = random_scene(5, 10)
    generator = torch.Generator().manual_seed(0)
    times = torch.randint(0, 4, (6, len(seen)), generator=generator).double()
    rows = accumulated(seen, CLASSES, times)
    for draw in range(len(times)):
        again = [pair for pair, count in zip(seen, times[draw].int().tolist(), strict=True) for _ in range(count)]
        values = measure([own for _, own in again], [(own.boxes, own.labels) for own, _ in again], CLASSES)
        for name, value in values.items():
            assert float(rows[name][draw]) == pytest.approx(value, abs=1e-6), (draw, name)


def test_intervals_resample_places_and_hold_the_value() -> None:
    seen = random_scene(3, 40)
    result = precision(seen, CLASSES, resamples=200)
    low, high = result.bounds("detection_map")
    assert low < result.values["detection_map"] < high and high - low < 0.5
    together = [(replace(own, place="one"), what) for own, what in seen]  # a single place: every resample is all pictures
    low, high = precision(together, CLASSES, resamples=20).bounds("detection_map")
    assert low == high == pytest.approx(result.values["detection_map"], abs=1e-6)
    assert torch.equal(
        precision(seen, CLASSES, 50).resampled["detection_map"], precision(seen, CLASSES, 50).resampled["detection_map"]
    )


def test_one_rank_judges_without_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 judges alone; torchmetrics would wait for ranks that never come."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        for name in ("all_gather", "barrier", "all_gather_object"):
            monkeypatch.setattr(dist, name, lambda *given, **named: pytest.fail("it talks to the other ranks"))
        assert precision(random_scene(1, 3), CLASSES, resamples=0).values
    finally:
        dist.destroy_process_group()


class Oracle(torch.nn.Module):
    """Tells the boxes of a store by the pictures themselves, so that geometry can be checked without training."""

    def __init__(self, pictures: Sequence[Annotated], classes: tuple[str, ...]) -> None:
        super().__init__()
        self.domains = Domains(("any",), classes)
        self.anchor = torch.nn.Parameter(torch.zeros(()))
        self.known = {item.image.numpy().tobytes(): item for item in pictures}

    def detect(self, images: Tensor) -> tuple[Detections, ...]:
        items = [self.known[to_uint8(image).numpy().tobytes()] for image in images]
        scales = [torch.tensor([*item.scale, *item.scale]) for item in items]
        return tuple(
            Detections(item.boxes / scale, torch.ones(len(item.boxes)), item.labels)
            for item, scale in zip(items, scales, strict=True)
        )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    uri = tmp_path_factory.mktemp("streets") / "store"
    build_streets(uri, size=32, train=6, val=4, test=3, references=2)
    return Store.open(uri)


def detector_run(store: Store, **evaluation: object) -> Run:
    model = {"width": 8, "head_width": 16, "anchors": (8, 20), "proposals": 20, "sampled_anchors": 16, "sampled_proposals": 12}
    given = {"pictures": 4, **evaluation}
    run = preset(
        "detector:tiny",
        name="finder",
        data={"store": store.uri, "domains": ("night",), "size": 16, "short_side": 20},
        model=model,
        evaluation=given,
        engine={"ema": 0.0},
    )
    return suit(run, store)


def test_whole_pictures_are_judged_at_the_runs_scale_in_their_own_pixels(store: Store) -> None:
    judge = judge_of(detector_run(store), store)
    assert isinstance(judge, DetectionJudge) and judge.mode == "max" and "detection_map" in judge.about
    assert len(judge.pictures) == 4 and len({item.place for item in judge.pictures}) == 4
    assert all(item.image.shape == (3, 20, 20) and item.scale == (1.6, 1.6) for item in judge.pictures)
    for item in judge.pictures:
        assert item.boxes.tolist() == [[box.x1, box.y1, box.x2, box.y2] for box in store.record(item.id).boxes or ()]
    oracle = Oracle(judge.pictures, judge.classes)
    values = judge(oracle)
    assert values["objective"] == values["detection_map"] == pytest.approx(1)
    for own, seen_here in detect(oracle, judge.pictures):
        torch.testing.assert_close(seen_here.boxes, own.boxes, rtol=1e-5, atol=1e-4)
    grid = judge.grid(oracle, rows=2)
    assert grid.dtype == torch.uint8 and grid.shape[0] == 3


def test_what_nobody_annotated_is_not_judged_and_strange_questions_are_refused(store: Store, tmp_path: Path) -> None:
    ids = store.ids("test", "night")
    bare = [replace(store.record(id), boxes=None) for id in ids[:3]]
    records = [*bare, *store.records(ids[3:]), *store.records(store.ids("train", "night"))]
    names = store.domains
    write_store(tmp_path / "half", records, domains=("night",), classes=names.classes, regions=names.regions)
    half = Store.open(tmp_path / "half")
    assert [item.id for item in annotated(half, "test", ("night",), 32, names.classes)] == list(ids[3:])
    only = list(annotated(half, "test", ("night",), 32, ("background", "car")))
    assert {label for item in only for label in item.labels.tolist()} <= {1}
    with pytest.raises(ValueError, match="val picture of 'night'"):
        annotated(half, "val", ("night",), 32, names.classes)
    with pytest.raises(ValueError, match="detection_map50"):
        DetectionJudge(store, detector_run(store, metric="scene_error"))
    assert judge_of(detector_run(half), half) is None  # no validation pictures


def test_a_bundle_is_evaluated_into_rows_and_by_the_command(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = overlay(detector_run(store), {"model.score_floor": 0.0})
    Trainer(run, domains_of(run, store), device="cpu").save(tmp_path / "bundle", [{"step": 3}], {})
    frame = evaluate(str(tmp_path / "bundle"), store.uri, "val", domains=("sunny",))
    assert list(frame.columns) == COLUMNS and set(frame["target"]) == {"sunny"} and set(frame["source"]) == {"night"}
    assert frame["pictures"].unique().tolist() == [8] and frame["about"].unique().tolist() == ["3 steps"]
    own = frame.set_index("metric")["value"]
    assert 0 <= own["detection_map"] <= own["detection_map50"] <= 1
    assert set(evaluate_detector(tmp_path / "bundle", store, "test")["target"]) == {"night"}
    append(tmp_path / "rows.parquet", frame)
    show(frame)
    assert "night to sunny, 8 val pictures" in capsys.readouterr().out
    result = CliRunner().invoke(cli.app, ["evaluate", str(tmp_path / "bundle"), "--domain", "rainy", "--split", "val"])
    assert result.exit_code == 0, result.output


def translator(store: Store, path: Path) -> Path:
    model = {"width": 8, "critic_width": 8, "critic_layers": 2, "content_blocks": 2, "generator_blocks": 2}
    run = preset("mguit:tiny", data={"store": store.uri, "domains": ("sunny", "night"), "size": 32}, model=model)
    run = suit(run, store)
    Trainer(run, domains_of(run, store), device="cpu").save(path, [], {})
    return path


def test_a_translated_store_keeps_everything_but_the_pictures(store: Store, tmp_path: Path) -> None:
    bundle = translator(store, tmp_path / "bundle")
    counted: list[tuple[int, int]] = []
    progress = lambda done, total: counted.append((done, total))  # noqa: E731
    manifest = translate_store(bundle, store, tmp_path / "out", source="sunny", target="night", progress=progress)
    made = Store.open(tmp_path / "out", verify=True)
    assert made.domains.names == ("sunny-to-night",) and made.domains.classes == store.domains.classes
    total = sum(len(store.ids(split, "sunny")) for split in ("train", "val", "test"))
    assert counted[-1] == (total, total) and len(made) == total
    assert open_bundle(bundle).digest in manifest.source and store.digest in manifest.source
    pipeline = Pipeline.open(bundle)
    for split in ("train", "val", "test"):
        assert made.ids(split, "sunny-to-night") == store.ids(split, "sunny")
    for id in (store.ids("train", "sunny")[1], store.ids("test", "sunny")[3]):
        old, new = store.record(id), made.record(id)
        assert (new.boxes, new.regions, new.scene, new.width, new.height) == (
            *(old.boxes, old.regions, old.scene, old.width, old.height),
        )
        assert new.mode is None and open_bundle(bundle).digest[:16] in new.source
        expected = to_uint8(pipeline(to_unit(decode(old.image))[None], "night", "sunny").images[0])
        difference = decode(new.image).as_subclass(Tensor).int() - expected.int()
        assert difference.abs().max() <= 1  # as part of a batch
    assert translate_store(bundle, store, tmp_path / "out", source="sunny", target="night", progress=progress) == manifest
    assert len(counted) == total  # it was there already
    with pytest.raises(ValueError, match="another store"):
        translate_store(bundle, store, tmp_path / "out", source="night", target="sunny")
    with pytest.raises(ValueError, match="train"):
        translate_store(bundle, store, tmp_path / "more", source="sunny", target="night", splits=("test",))
    drawn = translate_store(bundle, store, tmp_path / "drawn", source="sunny", target="night", splits=("train",), seed=4)
    assert drawn.digest != manifest.digest and "seed 4" in drawn.source and drawn.counts["test"] == {"sunny-to-night": 0}


def test_another_scale_moves_boxes_and_masks_with_the_picture(store: Store, tmp_path: Path) -> None:
    """A picture that is not square; what its mask says under a box stays under it."""
    first = store.record(store.ids("train", "sunny")[0])
    image, sink = Image.open(io.BytesIO(first.image)), io.BytesIO()
    image.resize((50, 32)).save(sink, "PNG")
    wide = replace(first, image=sink.getvalue(), width=50, regions=None)
    records: list[Record] = [replace(wide, boxes=tuple(replace(b, x2=50.0 if b.x2 == 32 else b.x2) for b in wide.boxes or ()))]
    records += [replace(first, id="square"), store.record(store.ids("train", "night")[0])]
    names = store.domains
    domains = ("sunny", "night")
    write_store(tmp_path / "wide", records, domains=domains, classes=names.classes, regions=names.regions)
    bundle = translator(store, tmp_path / "bundle")
    arguments = {"source": "sunny", "target": "night", "short_side": 24}
    translate_store(bundle, tmp_path / "wide", tmp_path / "out", **arguments)  # type: ignore[arg-type]
    made = Store.open(tmp_path / "out", verify=True)
    new, square = made.record(first.id), made.record("square")
    assert (new.width, new.height) == (38, 24) and decode(new.image).shape == (3, 24, 38)
    for old_box, box in zip(records[0].boxes or (), new.boxes or (), strict=True):
        assert [box.x1, box.x2] == pytest.approx([old_box.x1 * 38 / 50, old_box.x2 * 38 / 50], rel=1e-6)
        assert [box.y1, box.y2] == pytest.approx([old_box.y1 * 0.75, old_box.y2 * 0.75], rel=1e-6)
    assert square.regions is not None and first.regions is not None
    small, large = (np.array(Image.open(io.BytesIO(regions))) for regions in (square.regions, first.regions))
    assert small.shape == (24, 24)
    rows = np.minimum((np.arange(24) + 0.5) * 32 / 24, 31).astype(int)
    assert (small == large[rows][:, rows]).mean() > 0.99


def test_the_command_translates_and_a_detector_trains_on_it(store: Store, tmp_path: Path) -> None:
    bundle, out = translator(store, tmp_path / "bundle"), tmp_path / "out"
    words = ["translate-store", str(bundle), "--store", store.uri, "--from", "sunny", "--to", "night", "--out", str(out)]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0 and "sunny-to-night" in result.output, result.output
    small = json.dumps([8, 20])
    changes = ["data.size=32", "model.width=8", "model.head_width=16", f"model.anchors={small}", "engine.steps=2"]
    changes += ["engine.batch_size=2", "model.proposals=10", "engine.threads=1"]
    words = [
        "train",
        "detector:tiny",
        f"data.store={out}",
        'data.domains=["sunny-to-night"]',
        *changes,
        "--out",
        str(tmp_path / "run"),
    ]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0 and "recollect evaluate" in result.output, result.output
    trained = open_bundle(tmp_path / "run" / "best")
    assert trained.domains.names == ("sunny-to-night",) and trained.manifest["parents"]["data"] == Store.open(out).digest
    assert build(trained.run, trained.domains).stride == 4


def test_a_batch_carries_the_boxes_of_its_squares(store: Store, tmp_path: Path) -> None:
    """What the class maps are drawn from; on the host when the batch moves, and on any rank those of its own slots."""
    given = Data(domains=("night",), size=16, short_side=20)
    (batch,) = Feed(store, given, 4, 4, seed=3).batches(2)
    assert batch.boxes is not None and batch.labels is not None and batch.classes is not None
    for boxes, labels, classes in zip(batch.boxes, batch.labels, batch.classes, strict=True):
        assert boxes.dtype == torch.float32 and labels.dtype == torch.int64 and len(boxes) == len(labels)
        assert bool((boxes >= 0).all() and (boxes <= 16).all() and (boxes[:, 2:] > boxes[:, :2]).all())
        assert torch.equal(rasterise(boxes, labels, 16, 4), classes)
    assert sum(map(len, batch.boxes)) > 4
    (second,) = Feed(store, given, 4, 4, seed=3, rank=1, world=2).batches(2)
    assert second.boxes is not None and all(map(torch.equal, second.boxes, batch.boxes[2:]))
    moved = batch.to("meta")
    assert moved.boxes is batch.boxes and moved.labels is batch.labels
    assert moved.images.device.type == "meta" and moved.classes is not None and moved.classes.device.type == "meta"
    assert moved.ids == batch.ids and moved.slots == batch.slots
    bare = [replace(store.record(id), boxes=None) for id in store.ids("train", "night")]
    write_store(tmp_path / "bare", bare, domains=("night",), regions=store.domains.regions)
    (without,) = Feed(Store.open(tmp_path / "bare"), given, 2, 4, seed=0).batches(0)
    assert without.boxes is None and without.labels is None
