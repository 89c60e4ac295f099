"""The classifier keeps the promises of a Trainable, learns from what is known alone, and is torchvision's where it says so."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from torchvision.models import resnet50

from recollect.batch import Batch, Domains
from recollect.bundle import open_bundle
from recollect.config import Run, overlay, preset
from recollect.data.store import Store
from recollect.data.worlds import build_faces
from recollect.evaluation.classification import ClassificationJudge
from recollect.testing import TrainableContract, largest_difference, noise_batches
from recollect.trainable import Draws, Step
from recollect.training.session import judge_of, suit, train
from recollect.training.trainer import Trainer, build
from trainables.classifier import CELL, Classifier

DOMAINS = Domains(("faces",), attributes=("Male", "Young", "Smiling"))
ALL = frozenset(("bce",))


def small(**model: object) -> Run:
    return preset("classifier:tiny", data={"domains": DOMAINS.names, "size": 32}, model={"width": 8, "features": 8, **model})


class TestContract(TrainableContract):
    run = small()
    domains = DOMAINS


class TestContractOfTwoDomains(TrainableContract):
    variant = True
    domains = Domains(("dogs", "cats"), attributes=DOMAINS.attributes)
    run = overlay(small(), {"data.domains": domains.names, "model.attributes": ("Smiling", "Male")})


def classifier(run: Run, domains: Domains = DOMAINS) -> Classifier:
    model = build(run, domains)
    assert isinstance(model, Classifier)
    return model


def batch_of(attributes: Tensor, slots: range | None = None) -> Batch:
    (batch,) = noise_batches(small(), DOMAINS, CELL, slots or range(len(attributes)))
    return replace(batch, attributes=attributes)


def test_the_loss_is_that_of_what_is_known() -> None:
    nan = torch.nan
    attributes = torch.tensor([[1.0, nan, 0.0], [nan, nan, 1.0]])
    model, batch = classifier(small()).double(), batch_of(attributes)
    batch = batch.to("cpu", torch.float64)
    (loss,) = model.classification_terms(Step((batch,), 0, Draws(0, 0), ALL)).values()
    logits = model.logits(batch.images)
    known = torch.stack([logits[0, 0], logits[0, 2], logits[1, 2]])
    expected = F.binary_cross_entropy_with_logits(known, known.new_tensor([1.0, 0.0, 1.0]))
    torch.testing.assert_close(loss, expected)
    loss.backward()  # type: ignore[no-untyped-call]
    assert model.head.bias.grad is not None and model.head.bias.grad[1] == 0 != model.head.bias.grad[0]


def test_ranks_that_know_unequally_much_take_the_step_of_one_process() -> None:
    """Three ranks, of which one knows nothing: the average of their terms, which the engine takes, is the joint mean."""
    nan = torch.nan
    attributes = torch.tensor([[1.0, 0.0, 1.0], [nan, nan, 1.0], [nan, nan, nan]])
    model = classifier(small()).double()
    shares = [batch_of(attributes[row : row + 1], range(row, row + 1)).to("cpu", torch.float64) for row in range(3)]
    terms = []
    for share in shares:
        step = Step((share,), 0, Draws(0, 0), ALL, reduce=lambda own: torch.full_like(own, 4.0), shares=3)  # 4 are known
        terms.append(model.classification_terms(step)["bce"])
    joint = batch_of(attributes).to("cpu", torch.float64)
    joint = replace(joint, images=torch.cat([share.images for share in shares]))
    whole = model.classification_terms(Step((joint,), 0, Draws(0, 0), ALL))["bce"]
    torch.testing.assert_close(torch.stack(terms).mean(), whole)


def test_a_batch_of_which_nothing_is_known_teaches_nothing() -> None:
    model = classifier(small())
    batch = batch_of(torch.full((2, 3), torch.nan))
    loss = model.classification_terms(Step((batch,), 0, Draws(0, 0), ALL))["bce"]
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss == 0 and all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_features_logits_and_pictures_of_any_size() -> None:
    model = classifier(small(attributes=("Smiling", "Male"))).eval()
    assert model.attributes == ("Smiling", "Male") and model.columns == [2, 0]
    images = torch.rand(3, 3, 50, 71, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features, logits = model.features(images), model.logits(images)
    assert features.shape == (3, 8) and logits.shape == (3, 2)
    torch.testing.assert_close(model.head(features), logits)
    torch.testing.assert_close(model.logits(images[1:2]), logits[1:2], rtol=1e-4, atol=1e-5)


def test_what_the_data_lacks() -> None:
    with pytest.raises(ValueError, match="the data has none"):
        classifier(small(), Domains(("faces",)))
    with pytest.raises(ValueError, match="did you mean 'Smiling'"):
        classifier(small(attributes=("Smilling",)))
    with pytest.raises(ValueError, match="distinct"):
        small(attributes=("Male", "Male"))
    with pytest.raises(ValueError, match="small"):
        small(pretrained={"path": "x", "sha256": "y"})


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A file like torchvision's: its own network, with weights and statistics drawn here."""
    torch.manual_seed(0)
    net = resnet50(weights=None)
    for buffer in net.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("weights") / "resnet50.safetensors"
    save_file(net.state_dict(), path)
    return {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_the_features_are_those_of_torchvision_with_published_weights(published: dict[str, str]) -> None:
    run = preset("classifier:paper", data={"domains": DOMAINS.names, "size": 64}, model={"pretrained": published})
    optimiser = run.optimiser("body")
    assert (optimiser.kind, optimiser.lr, optimiser.momentum, optimiser.halve_every) == ("sgd", 0.01, 0.9, 20_000)
    model = classifier(run)
    model.begin()
    theirs = resnet50(weights=None)
    theirs.load_state_dict(load_file(published["path"]))
    theirs.eval()
    theirs.fc = torch.nn.Identity()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean, deviation = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = theirs(((images + 1) / 2 - mean) / deviation)
        found = model.train().features(images)  # the published statistics hold in training, too
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert model.head.in_features == 2048 and model.head.out_features == 3
    with pytest.raises(ValueError, match="SHA-256"):
        classifier(overlay(run, {"model.pretrained.sha256": "0" * 64})).begin()


def test_another_file_is_refused_and_none_means_from_scratch(tmp_path: Path) -> None:
    path = tmp_path / "strange.safetensors"
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    file = {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    run = preset("classifier:paper", data={"domains": DOMAINS.names, "size": 32}, model={"pretrained": file})
    with pytest.raises(ValueError, match="resnet50"):
        classifier(run).begin()
    scratch = overlay(run, {"model.pretrained": {"path": "", "sha256": ""}, "engine.batch_size": 2})
    trainer = Trainer(scratch, DOMAINS, device="cpu")
    trainer.begin()
    assert not list(trainer.model.buffers())  # group norms keep no statistics
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    assert trainer.update(noise_batches(scratch, DOMAINS, CELL, range(2)))["bce"].isfinite()
    assert largest_difference(before, trainer.model.state_dict())[0] > 0


def test_it_learns_what_shows_in_a_session_of_its_own(tmp_path: Path) -> None:
    build_faces(tmp_path / "store", size=32, train=160, val=8, test=2)
    store = Store.open(tmp_path / "store")
    engine = {"steps": 60, "batch_size": 16, "evaluate_every": 30, "ema": 0.0, "threads": 1}
    model = {"width": 16, "attributes": ("Blond_Hair", "Bright_Background", "Mustache")}
    data = {"store": store.uri, "size": 32}
    run = suit(preset("classifier:tiny", data=data, model=model, engine=engine, evaluation={"pictures": 96}), store)
    judge = judge_of(run, store)
    assert isinstance(judge, ClassificationJudge) and judge.mode == "max" and "96 val" in judge.about
    bundle = open_bundle(train(run, tmp_path / "run"))
    trained = bundle.build()
    assert isinstance(trained, Classifier)
    values = judge(trained)
    assert values["accuracy/Blond_Hair"] > 0.85 > 0.7 > values["majority/Blond_Hair"] == pytest.approx(2 / 3)
    assert values["accuracy/Bright_Background"] > values["majority/Bright_Background"]
    assert values["objective"] == values["accuracy"]
    assert bundle.metrics()[-1]["accuracy"] == pytest.approx(values["accuracy"])
    known = [name for name in store.ids("val", "faces") if "Mustache" in (store.record(name).attributes or {})]
    judgement = judge.judgement(trained)
    assert len(known) == 48 == int(judgement.by_picture["accuracy/Mustache"].weights.sum())  # of men alone
    assert list((tmp_path / "run" / "samples").glob("*.png"))
    with pytest.raises(ValueError, match="accuracy"):
        ClassificationJudge(store, overlay(run, {"evaluation.metric": "scene_error"}))
