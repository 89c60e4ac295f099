"""The detector keeps the promises of a Trainable, is torchvision's, learns, and takes what real data has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import resnet50
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.ops import box_iou

from recollect.batch import Batch, Domains
from recollect.bundle import open_bundle
from recollect.config import Run, overlay, preset
from recollect.data.loader import Feed
from recollect.data.sources.folders import ingest
from recollect.data.store import Store
from recollect.data.worlds import build_streets
from recollect.evaluation.detection import DetectionJudge
from recollect.testing import TrainableContract, largest_difference, noise_batches, train_ranks
from recollect.trainable import Draws, Step
from recollect.training.session import suit, train
from recollect.training.trainer import Trainer, build
from trainables.detector import CELL, Detector, SlotSampler

DOMAINS = Domains(("night",), ("background", "car", "person"))
REAL = Path(__file__).parents[3] / "shared" / "data"
SMALL = {"width": 8, "head_width": 16, "anchors": (8, 20), "proposals": 20, "sampled_anchors": 16, "sampled_proposals": 12}
ALL = frozenset(("classifier", "box_reg", "objectness", "rpn_box_reg"))


def small(**model: object) -> Run:
    return preset("detector:tiny", data={"domains": DOMAINS.names, "size": 32}, model={**SMALL, **model})


WAITS = "torchvision chooses boxes by what they score"


class TestContract(TrainableContract):
    run = small(sampled_proposals=400)  # more than there are: pictures, and so ranks, have different numbers of them
    domains = DOMAINS
    waits = WAITS

    def test_the_rank_check_notices_a_missing_reduction(self) -> None:
        run = self._exact()
        (alone,) = train_ranks(run, self.domains, 1)
        ranks = train_ranks(run, self.domains, 2, unreduced=True)
        assert largest_difference(alone, ranks[0])[0] > 1e-6


class TestContractOfTwoDomains(TrainableContract):
    variant = True
    waits = WAITS
    domains = Domains(("sunny", "night"), DOMAINS.classes)
    run = overlay(small(), {"data.domains": domains.names})


def detector(run: Run, domains: Domains = DOMAINS) -> Detector:
    model = build(run, domains)
    assert isinstance(model, Detector)
    return model


def terms_of(model: Detector, batch: Batch, seed: int = 0) -> dict[str, Tensor]:
    return model.train().detection_terms(Step((batch,), 0, Draws(seed, 0), ALL))


def test_the_losses_are_torchvisions() -> None:
    """With every anchor and proposal drawn there is no chance in them, and torchvision's own forward must agree."""
    model = detector(small(sampled_anchors=10**6, sampled_proposals=10**6)).train()
    model.proposal_sampler.positive = 1e-9  # of a million: none; then all negatives, as torchvision's with the same numbers
    (batch,) = noise_batches(small(), DOMAINS, CELL, range(1, 4))
    ours = terms_of(model, batch)
    for head, sampler in ((model.net.rpn, model.anchor_sampler), (model.net.roi_heads, model.proposal_sampler)):
        head.fg_bg_sampler = BalancedPositiveNegativeSampler(sampler.count, sampler.positive)
    model.net.transform.min_size, model.net.transform.size_divisible = (32,), CELL
    targets = [{"boxes": boxes, "labels": labels} for boxes, labels in zip(batch.boxes or (), batch.labels or (), strict=True)]
    theirs = model.net(list((batch.images + 1) / 2), targets)
    assert {f"loss_{name}" for name in ours} == set(theirs)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[f"loss_{name}"], msg=name)


def test_what_is_drawn_has_torchvisions_proportions_and_no_other_picture_in_it() -> None:
    labels = [torch.tensor([1] * 30 + [0] * 100 + [-1] * 20), torch.tensor([2] * 3 + [0] * 100), torch.tensor([0] * 5)]
    sampler = SlotSampler(40, 0.25)

    def drawn(order: list[int]) -> list[tuple[Tensor, Tensor]]:
        sampler.generators = [torch.Generator().manual_seed(7 + index) for index in order]
        return list(zip(*sampler([labels[index] for index in order]), strict=True))

    first = drawn([0, 1, 2])
    assert [(int(p.sum()), int(n.sum())) for p, n in first] == [(10, 30), (3, 37), (0, 5)] and sampler.taken == 85
    theirs = BalancedPositiveNegativeSampler(40, 0.25)(labels)
    assert [(int(p.sum()), int(n.sum())) for p, n in zip(*theirs, strict=True)] == [(10, 30), (3, 37), (0, 5)]
    for (positives, negatives), own in zip(first, labels, strict=True):
        assert bool((own[positives > 0] >= 1).all()) and bool((own[negatives > 0] == 0).all())
    again = drawn([2, 0])
    assert all(torch.equal(a, b) for a, b in zip(again[1], first[0], strict=True))


def test_pictures_without_boxes_and_boxes_without_extent() -> None:
    model = detector(small())
    (batch,) = noise_batches(small(), DOMAINS, CELL, range(2))
    nothing = (torch.empty(0, 4),) * 2, (torch.empty(0, dtype=torch.int64),) * 2
    negatives = terms_of(model, replace(batch, boxes=nothing[0], labels=nothing[1]))
    assert all(bool(value.isfinite()) for value in negatives.values())
    assert negatives["rpn_box_reg"].item() == negatives["box_reg"].item() == 0
    nan = float("nan")
    broken = torch.tensor([[3.0, 3, 3, 9], [nan, 1, 2, 3], [5, 5, 4, 9], [1, 1, float("inf"), 4]])
    useless = replace(batch, boxes=(broken, broken), labels=(torch.ones(4, dtype=torch.int64),) * 2)
    for name, value in terms_of(model, useless).items():
        torch.testing.assert_close(value, negatives[name], rtol=0, atol=0)


@pytest.mark.slow
def test_what_it_learns_it_finds_and_a_picture_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    """Four pictures by heart: boxes are found, with their class and in their place, and hardly anything else is."""
    build_streets(tmp_path / "store", size=64, train=4, val=1, test=1, references=1)
    store = Store.open(tmp_path / "store")
    model = {"width": 16, "proposals": 40, "sampled_proposals": 32, "head_width": 64}
    run = preset(
        "detector:tiny",
        data={"store": store.uri, "domains": ("sunny",), "flip": False},
        model=model,
        engine={"batch_size": 4, "steps": 200, "ema": 0.0, "threads": 1},
        optimisers={"default": {"lr": 2e-3, "hold": 0.6}},
    )
    domains = store.domains.only(("sunny",))
    trainer = Trainer(run, domains, device="cpu")
    feed = Feed(store, run.data, 4, CELL, 0)
    for _, batches in feed.stream(0, run.engine.steps):
        trainer.update(batches)
    (batch,) = feed.batches(0)
    learnt = trainer.model.eval()
    assert isinstance(learnt, Detector)
    found = learnt.detect(batch.images)
    assert batch.boxes is not None and batch.labels is not None
    hits: list[bool] = []
    for index, (own, boxes, labels) in enumerate(zip(found, batch.boxes, batch.labels, strict=True)):
        sure = own.scores > 0.5
        overlap = box_iou(boxes, own.boxes[sure]) * (labels[:, None] == own.labels[sure])
        hits += (overlap.amax(1) > 0.5).tolist()
        assert int(sure.sum()) <= len(boxes) + 2
        (alone,) = learnt.detect(batch.images[index : index + 1])
        torch.testing.assert_close(alone.boxes[:5], own.boxes[:5], rtol=1e-3, atol=1e-2)
    assert len(hits) > 15 and sum(hits) >= 0.9 * len(hits), hits


def test_sizes_that_are_no_multiple_of_anything() -> None:
    model = detector(small(score_floor=0.0)).eval()
    generator = torch.Generator().manual_seed(0)
    for height, width in ((33, 9), (50, 71), (64, 64)):  # the first decides RoIAlign's scales in torchvision
        (found,) = model.detect(torch.rand(1, 3, height, width, generator=generator) * 2 - 1)
        assert len(found.boxes) and len(found.boxes) == len(found.scores) == len(found.labels)
        assert bool((found.boxes[:, 2] <= width).all() and (found.boxes[:, 3] <= height).all() and (found.boxes >= 0).all())
        assert found.labels.min() >= 1 and found.labels.max() <= 2
        assert torch.equal(found.scores, found.scores.sort(descending=True).values)
    assert model.net.roi_heads.box_roi_pool.scales == [1 / CELL]


def test_a_store_without_classes_of_objects_is_refused() -> None:
    with pytest.raises(ValueError, match="--boxes"):
        detector(small(), Domains(("a",)))


@pytest.fixture
def published(tmp_path: Path) -> dict[str, Path]:
    """Files like those that are published: torchvision's own networks, with weights drawn here."""
    torch.manual_seed(0)
    nets = {"coco": fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None), "imagenet": resnet50(weights=None)}
    for name, net in nets.items():
        for buffer in net.buffers():  # batch norms whose statistics are not those of a new network
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
        save_file(net.state_dict(), tmp_path / f"{name}.safetensors")
    return {name: tmp_path / f"{name}.safetensors" for name in nets}


def pretrained(path: Path, **model: object) -> Run:
    import hashlib

    file = {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    given = {"pretrained": file, "anchors": (32, 64, 128, 256, 512), **model}
    return preset("detector:resnet50", data={"domains": DOMAINS.names, "size": 64}, model=given)


def test_published_weights_are_read_and_what_they_had_for_other_classes_is_not(
    published: dict[str, Path], tmp_path: Path
) -> None:
    run = pretrained(published["coco"])
    trainer = Trainer(run, DOMAINS, device="cpu")
    model = trainer.model
    assert isinstance(model, Detector)
    drawn = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer.begin()
    theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    from safetensors.torch import load_file

    theirs.load_state_dict(load_file(published["coco"]))
    theirs.eval()
    model.eval()
    images = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        features, _ = model._features(images)
        mean, std = (torch.tensor(values)[:, None, None] for values in (theirs.transform.image_mean, theirs.transform.image_std))
        expected = theirs.backbone(((images + 1) / 2 - mean) / std)
        for level in expected:  # theirs has batch norms that use statistics with another epsilon
            torch.testing.assert_close(features[level], expected[level], rtol=1e-3, atol=1e-3)
        pooled = model.net.roi_heads.box_head(torch.ones(1, 256, 7, 7))
        torch.testing.assert_close(pooled, theirs.roi_heads.box_head(torch.ones(1, 256, 7, 7)))
    head = "net.roi_heads.box_predictor.cls_score.weight"
    assert torch.equal(model.state_dict()[head], drawn[head])
    names = {name for name, _ in model.named_parameters()}
    assert "net.backbone.body.layer2.0.conv1.weight" in names
    assert not any("layer1" in name or "bn" in name or "body.conv1" in name for name in names)
    trainer.save(tmp_path / "bundle", [], {})
    published["coco"].unlink()  # a bundle holds its weights and opens without the file
    assert torch.equal(open_bundle(tmp_path / "bundle").build("model").state_dict()[head], drawn[head])


def test_a_backbone_alone_and_files_that_are_something_else(published: dict[str, Path]) -> None:
    model = detector(pretrained(published["imagenet"]))
    before = model.state_dict()["net.backbone.body.layer3.0.conv1.weight"].clone()
    model.begin()
    assert not torch.equal(model.state_dict()["net.backbone.body.layer3.0.conv1.weight"], before)
    run = pretrained(published["coco"])
    other = overlay(run, {"model.pretrained.sha256": "0" * 64})
    with pytest.raises(ValueError, match="SHA-256"):
        detector(other).begin()
    strange = published["coco"].with_name("strange.safetensors")
    save_file({"weight": torch.ones(2)}, strange)
    with pytest.raises(ValueError, match="resnet50"):
        detector(pretrained(strange)).begin()
    with pytest.raises(ValueError, match="tiny"):
        overlay(run, {"model.backbone": "tiny"})


def test_one_domain_trains_in_a_session_and_is_judged_by_its_boxes(tmp_path: Path) -> None:
    build_streets(tmp_path / "store", size=32, train=6, val=3, test=2, references=2)
    store = Store.open(tmp_path / "store")
    engine = {"steps": 4, "batch_size": 2, "evaluate_every": 2, "log_every": 2, "ema": 0.9, "threads": 1}
    run = preset("detector:tiny", data={"store": store.uri, "size": 32}, model=SMALL, engine=engine)
    said: list[str] = []
    suited = suit(run, store, said.append)
    assert suited.data.domains == ("sunny",) and "taking sunny" in said[0]
    run = suit(overlay(run, {"data.domains": ("night",)}), store)
    bundle = open_bundle(train(run, tmp_path / "run"))
    assert bundle.domains.names == ("night",)
    rows = [row for row in bundle.metrics() if "detection_map" in row]
    assert rows and all(row["objective"] == row["detection_map"] for row in rows)
    card = (bundle.path / "README.md").read_text()
    assert "recollect evaluate" in card and "translate" not in card and "| box_reg | 1 |" in card
    assert list((tmp_path / "run" / "samples").glob("*.png"))
    half = train(overlay(run, {"engine.steps": 2, "optimisers.default.hold": 1.0}), tmp_path / "half").parent / "last"
    further = overlay(run, {"optimisers.default.hold": 1.0})
    resumed = train(further, tmp_path / "rest", resume=half).parent
    whole = train(further, tmp_path / "whole").parent
    for name in ("model", "ema"):
        assert largest_difference(open_bundle(resumed / "last").state(name), open_bundle(whole / "last").state(name))[0] == 0


def test_a_step_on_real_boxes(tmp_path: Path) -> None:
    root = REAL / "carla_boxes"
    if not root.is_dir():
        pytest.skip("no real pictures: there is no carla_boxes folder")
    boxes = {split: root / f"{split}.json" for split in ("train", "test")}
    ingest(root, tmp_path / "store", boxes=boxes, names=("carla",), max_side=160)
    store = Store.open(tmp_path / "store")
    run = preset("detector:tiny", data={"store": store.uri, "size": 64, "short_side": 80}, evaluation={"pictures": 4})
    run = suit(run, store)
    trainer = Trainer(run, store.domains, device="cpu")
    batches = Feed(store, run.data, 8, CELL, 0).batches(0)
    assert batches[0].boxes is not None and sum(map(len, batches[0].boxes)) > 0
    assert all(bool(term.isfinite()) for term in trainer.update(batches).values())
    judge = DetectionJudge(store, run)
    assert {picture.image.shape[1] for picture in judge.pictures} == {80}  # whole pictures at the run's scale
    values = judge(trainer.model.eval())
    assert 0 <= values["detection_map"] <= values["detection_map50"] <= 1
    assert judge.grid(trainer.model).ndim == 3
