"""The retriever keeps the promises of a Trainable, freezes what it starts from, and its triplets are those of section 3.2."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from recollect.batch import Domains
from recollect.bundle import Bundle, open_bundle
from recollect.config import Parent, Run, merge, overlay, preset
from recollect.testing import TrainableContract, noise_batches
from recollect.trainable import Embedder
from recollect.training.trainer import Trainer, build
from trainables.gmm_unit import CELEBA
from trainables.retriever import Retriever

DOMAINS = Domains(("faces",), attributes=(*CELEBA, "Smiling"))
STAGE1 = {
    "attributes": CELEBA,
    "exclusive": (CELEBA[:3],),
    "dims": 2,
    "width": 8,
    "content_blocks": 1,
    "generator_blocks": 1,
    "mlp_width": 16,
    "critic_width": 8,
    "critic_layers": 2,
}
SMALL = {"translator": STAGE1, "embedding": {"widths": (8, 8, 8), "hidden": 16, "dim": 6, "dropout": 0.5}}


def stage1() -> Run:
    return preset("gmm_unit:tiny", data={"domains": DOMAINS.names, "size": 32}, model=STAGE1)


def small(**model: object) -> Run:
    return preset("retriever:tiny", data={"domains": DOMAINS.names, "size": 32}, model=merge(SMALL, model))


class TestContract(TrainableContract):
    together = 2  # it learns from pairs
    run = small()
    domains = DOMAINS


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A stage 1 that has taken a few steps."""
    trainer = Trainer(overlay(stage1(), {"engine.ema": 0.5}), DOMAINS, device="cpu")
    for step in range(2):
        trainer.update(noise_batches(trainer.run, DOMAINS, trainer.model.stride, range(2), step))
    path = tmp_path_factory.mktemp("parents") / "gmm"
    trainer.save(path, [], {})
    return open_bundle(path)


def started(parent: Bundle, **model: object) -> Trainer:
    run = small(**model)
    config = run.model.model_copy(update={"parent": Parent(bundle=str(parent.path))})
    run = run.model_copy(update={"model": config.with_parents()})
    trainer = Trainer(run, DOMAINS, device="cpu")
    trainer.begin()
    return trainer


def test_it_starts_from_the_averaged_weights_of_its_parent_and_says_so(parent: Bundle) -> None:
    trainer = started(parent)
    model = trainer.model
    assert isinstance(model, Retriever) and isinstance(model, Embedder)
    for name, tensor in parent.state("ema").items():
        assert torch.equal(model.translator.state_dict()[name], tensor), name
    assert trainer.run.model.parents() == {"translator": parent.digest}
    assert model.config.translator == parent.run.model


def test_a_parent_that_is_none_is_refused_by_name(parent: Bundle, tmp_path: Path) -> None:
    def config(bundle: str, digest: str = "") -> Retriever.Config:
        made = small().model.model_copy(update={"parent": Parent(bundle=bundle, digest=digest)})
        assert isinstance(made, Retriever.Config)
        return made

    with pytest.raises(ValueError, match="set model.parent.bundle"):
        small().model.with_parents()
    with pytest.raises(ValueError, match="is no bundle"):
        config(str(tmp_path)).with_parents()
    trainer = started(parent)
    trainer.save(tmp_path / "retriever", [], {})
    with pytest.raises(ValueError, match="starts from a trained gmm_unit, and .* holds 'retriever'"):
        config(str(tmp_path / "retriever")).with_parents()
    other = config(str(parent.path), "0" * 64).model_copy(update={"translator": parent.run.model})
    with pytest.raises(ValueError, match="is not the bundle that this retriever started from"):
        Retriever(other, DOMAINS).begin()


def test_training_moves_the_embedding_alone_and_saving_notices_frozen_weights_that_moved(parent: Bundle, tmp_path: Path) -> None:
    trainer = started(parent)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    for step in range(2):
        trainer.update(noise_batches(trainer.run, DOMAINS, trainer.model.stride, range(2), step))
    after = trainer.model.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"embedding"}
    trainer.save(tmp_path / "good", [], {})
    with torch.no_grad():
        trainer.model.get_parameter("translator.decoder.mlp.0.weight").add_(1e-6)
    with pytest.raises(AssertionError, match="frozen nets have changed: translator"):
        trainer.save(tmp_path / "bad", [], {})


@pytest.mark.parametrize(("negatives", "kinds"), [("easy", 1), ("medium", 2), ("hard", 3), ("all", 4)])
def test_the_term_is_eq_8_over_the_kinds_of_negatives(parent: Bundle, negatives: str, kinds: int) -> None:
    """Against a statement of figure 2, one picture at a time."""
    trainer = started(parent, negatives=negatives, targets="flip", embedding={"dropout": 0.0}, margin=5.0)
    model = trainer.model
    assert isinstance(model, Retriever)
    batches = noise_batches(trainer.run, DOMAINS, model.stride, range(4), 0)
    (step,) = trainer.prepare(0, batches)
    found = model.terms(step)["triplet"]
    gmm, task = model.translator.eval(), model.translator.task(step)
    wrong = model._labels(step, "wrong", task.wanted)
    assert (wrong != task.wanted).any(dim=1).all()

    def seen(image: Tensor) -> tuple[Tensor, Tensor]:
        return gmm.content(image), gmm.style(image)

    losses: list[list[Tensor]] = [[] for _ in range(kinds)]
    for i, partner in enumerate((1, 0, 3, 2)):
        x, other = task.images[i : i + 1], task.images[partner : partner + 1]
        z = gmm.mixture.means(task.wanted[i : i + 1]) + 0.5 * task.noise[0][i : i + 1]
        z_wrong = gmm.mixture.means(wrong[i : i + 1]) + 0.5 * task.noise[1][i : i + 1]
        z_own = gmm.mixture.means(task.own[i : i + 1]) + 0.5 * task.noise[1][i : i + 1]
        anchor = model.embedding(gmm.content(x), z)
        positive = model.embedding(*seen(gmm.decode(gmm.content(x), z, x).images))
        negatives_in_order = (
            lambda o=other: seen(o),
            lambda o=other, z=z: seen(gmm.decode(gmm.content(o), z, o).images),
            lambda x=x, z=z_wrong: seen(gmm.decode(gmm.content(x), z, x).images),
            lambda x=x, z=z_own: seen(gmm.decode(gmm.content(x), z, x).images),
        )
        for kind in range(kinds):
            negative = model.embedding(*negatives_in_order[kind]())
            distances = [(anchor - end + 1e-6).norm() for end in (positive, negative)]  # torch's own 1e-6
            losses[kind].append(F.relu(5.0 + distances[0] - distances[1]))
    expected = torch.stack([torch.stack(row).mean() for row in losses]).mean()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_released_easy_negatives_are_another_pictures_content_in_a_drawn_and_in_the_wanted_style(parent: Bundle) -> None:
    trainer = started(parent, negatives="easy", easy="released", targets="flip", embedding={"dropout": 0.0}, margin=5.0)
    model = trainer.model
    assert isinstance(model, Retriever)
    (step,) = trainer.prepare(0, noise_batches(trainer.run, DOMAINS, model.stride, range(2), 0))
    found = model.terms(step)["triplet"]
    gmm, task = model.translator.eval(), model.translator.task(step)
    content = gmm.content(task.images)
    wanted = gmm.mixture.means(task.wanted) + 0.5 * task.noise[0]
    drawn = gmm.mixture.means(model._labels(step, "easy", task.wanted)) + 0.5 * task.noise[1]
    made = gmm.decode(content, wanted, task.images).images
    anchor, positive = model.embedding(content, wanted), model.embedding(gmm.content(made), gmm.style(made))
    losses = [F.triplet_margin_loss(anchor, positive, model.embedding(content.flip(0), style), 5.0) for style in (drawn, wanted)]
    torch.testing.assert_close(found, sum(losses) / 2, rtol=1e-4, atol=1e-5)


def test_an_odd_share_is_refused(parent: Bundle) -> None:
    trainer = started(parent)
    with pytest.raises(ValueError, match="pairs of pictures, and a share of its batch has 3; make engine.batch_size a multiple"):
        trainer.update(noise_batches(trainer.run, DOMAINS, trainer.model.stride, range(3), 0))


def test_dropout_follows_the_steps_draws_and_is_off_outside_training(parent: Bundle) -> None:
    trainer = started(parent)
    model = trainer.model
    assert isinstance(model, Retriever)
    content, style = torch.randn(2, 32, 8, 8), torch.randn(2, 10)
    plain = model.embedding(content, style)
    assert torch.equal(plain, model.embedding(content, style))
    kept = torch.full((2, 16), 10.0)
    torch.testing.assert_close(model.embedding(content, style, kept), model.embedding.last(2 * model.embedding.second(
        model.embedding.first(torch.cat([model.embedding.trunk(content).flatten(1), style], 1)).relu()).relu()))  # fmt: skip
    assert torch.equal(model.embedding(content, style, -kept), model.embedding.last.bias.expand(2, -1))


def test_pictures_that_are_alike_are_found_after_some_training(parent: Bundle) -> None:
    """The loss of an untrained embedding falls on one batch: something is learned."""
    trainer = started(parent, embedding={"dropout": 0.0}, margin=1.0)
    losses = []
    for _ in range(30):
        trainer.step = 0
        batches = noise_batches(trainer.run, DOMAINS, trainer.model.stride, range(4), 0)
        losses.append(float(trainer.update(batches)["triplet"]))
    assert losses[-1] < 0.7 * losses[0], losses


def test_the_digest_is_of_what_embeds(parent: Bundle) -> None:
    model = started(parent).model
    assert isinstance(model, Retriever)
    before = model.embedding_digest()
    with torch.no_grad():
        model.get_parameter("translator.critic.trunks.0.0.1.weight").add_(1)
    assert model.embedding_digest() == before
    with torch.no_grad():
        model.get_parameter("embedding.last.bias").add_(1)
    assert model.embedding_digest() != before


def test_the_papers_preset_has_the_sizes_of_table_5() -> None:
    run = preset("retriever:paper", data={"domains": DOMAINS.names}, model={"translator": {"attributes": CELEBA}})
    with torch.device("meta"):
        model = build(run, DOMAINS)
    assert isinstance(model, Retriever)
    assert sum(p.numel() for p in model.embedding.parameters()) == 1_329_572  # "1.33 M" in the released code
