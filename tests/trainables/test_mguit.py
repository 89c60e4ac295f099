"""MGUIT keeps the promises of a Trainable, and does what its file says where it departs from the paper or the released code."""

from __future__ import annotations

import pytest
import torch

from recollect.batch import Domains, Guide
from recollect.config import Run, overlay, preset
from recollect.testing import TrainableContract, largest_difference, noise_batches, train_ranks
from recollect.trainable import Draws, Step
from recollect.training.engine import Trainer, build
from trainables.mguit import MGUIT
from trainables.parts.memory import unit

DOMAINS = Domains(("sunny", "night"), ("background", "car", "person"))
SMALL = {"width": 8, "critic_width": 8, "critic_layers": 2, "content_blocks": 2, "generator_blocks": 2}


def small(**model: object) -> Run:
    memory = {"items_per_class": {"background": 3, "car": 2, "person": 1}, "value_dim": 8}
    return preset("mguit:tiny", data={"domains": DOMAINS.names, "size": 32}, model={**SMALL, "memory": memory, **model})


class TestContract(TrainableContract):
    run = small()
    domains = DOMAINS
    guides = ("noise", "exemplar", "values")

    def test_the_rank_check_notices_a_missing_reduction(self) -> None:
        run = self._exact()
        (alone,) = train_ranks(run, self.domains, 1)
        ranks = train_ranks(run, self.domains, 2, unreduced=True)
        assert largest_difference(alone, ranks[0])[0] > 1e-6

    def test_a_net_without_a_gradient_steps_alike_on_any_number_of_ranks(self) -> None:
        """Zero is its gradient, so weight decay moves it; an optimiser would skip it where it has none."""
        switched_off = dict.fromkeys(("weights.kl", "weights.con_v", "weights.latent"), 0.0)
        run = overlay(
            self._exact(), {"model.memory.order": "read-update", "optimisers.default.weight_decay": 0.1, **switched_off}
        )
        (alone,) = train_ranks(run, self.domains, 1)
        assert {float(g.abs().max()) for name, g in alone.items() if "/style_encoder." in name and name.startswith("grad/")} == {
            0.0
        }
        for rank in train_ranks(run, self.domains, 2):
            assert largest_difference(alone, rank)[0] < 1e-10


class TestContractOfTheConcatenatingGenerator(TrainableContract):
    run = small(fusion="concat", downs=2, gan="bce", content_noise=0.1, style_norm="instance")
    domains = DOMAINS
    guides = ("noise", "exemplar", "values")


@pytest.fixture
def model() -> MGUIT:
    made = build(small(), DOMAINS)
    assert isinstance(made, MGUIT)
    return made


def terms_of(model: MGUIT, run: Run, *names: str) -> tuple[dict[str, torch.Tensor], Step]:
    step = Step(noise_batches(run, DOMAINS, model.stride, range(2)), 0, Draws(0, 0), frozenset(names))
    return model.translation_terms(step), step


def gradient_norm(loss: torch.Tensor, net: torch.nn.Module) -> float:
    grads = torch.autograd.grad(loss, list(net.parameters()), allow_unused=True, retain_graph=True)
    return sum(float(g.norm()) for g in grads if g is not None)


@pytest.mark.parametrize("detach, reaches", [("none", True), ("released", False)])
def test_self_reconstruction_reaches_the_style_encoder(detach: str, reaches: bool) -> None:
    run = overlay(small(), {"model.memory.detach": detach})
    model = build(run, DOMAINS)
    assert isinstance(model, MGUIT)
    terms, _ = terms_of(model, run, "self_rec")
    assert (gradient_norm(terms["self_rec"], model.style_encoder) > 0) is reaches
    assert gradient_norm(terms["self_rec"], model.content_encoder) > 0


def test_reading_before_the_update_gives_the_style_encoder_nothing() -> None:
    run = overlay(small(), {"model.memory.order": "read-update"})
    model = build(run, DOMAINS)
    assert isinstance(model, MGUIT)
    terms, _ = terms_of(model, run, "self_rec")
    assert gradient_norm(terms["self_rec"], model.style_encoder) == 0


def test_the_latent_term_reaches_the_generator_and_the_style_encoder(model: MGUIT) -> None:
    terms, _ = terms_of(model, small(), "latent")
    assert gradient_norm(terms["latent"], model.generator) > 0
    assert gradient_norm(terms["latent"], model.style_encoder) > 0


def test_the_memory_is_written_after_the_step_only(model: MGUIT) -> None:
    keys = model.memory.keys.clone()
    _, step = terms_of(model, small(), "self_rec")
    assert torch.equal(model.memory.keys, keys)
    model.after_step(step)
    assert not torch.equal(model.memory.keys, keys)
    torch.testing.assert_close(model.memory.keys.norm(dim=-1), torch.ones(len(keys)))


def test_content_is_a_unit_vector_at_every_cell(model: MGUIT) -> None:
    content = model.content_encoder(torch.rand(2, 3, 32, 32), 0)
    torch.testing.assert_close(content.norm(dim=1), torch.ones(2, 16, 16))


def test_class_values_change_the_named_class_alone(model: MGUIT) -> None:
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    items = model.memory.items_of("car")
    plain = model.translate(image, 0, 1)
    moved = model.translate(image, 0, 1, Guide(values={"car": torch.randn(len(items), 8)}))
    assert torch.equal(plain.extras["memory_map"], moved.extras["memory_map"])
    assert not torch.equal(plain.images, moved.images)
    same = model.translate(image, 0, 1, Guide(values={"car": model.memory.values[1, items]}))
    torch.testing.assert_close(same.images, plain.images)
    with pytest.raises(ValueError, match="truck.*background, car, person"):
        model.translate(image, 0, 1, Guide(values={"truck": torch.randn(2, 8)}))
    with pytest.raises(ValueError, match=r"\(2, 8\)"):
        model.translate(image, 0, 1, Guide(values={"car": torch.randn(3, 8)}))


def test_an_exemplar_gives_its_own_values(model: MGUIT) -> None:
    image, exemplar = torch.rand(2, 1, 3, 32, 32) * 2 - 1
    content, style = model.content_encoder(exemplar, 1), model.style_encoder(exemplar, 1)
    values = model.memory.collect(content, style, 1)
    nearest = model.memory.read(content, 1)[1].argmax(1).flatten()
    for item in range(values.shape[1]):
        pixels = unit(style).flatten(2)[0, :, nearest == item]
        expected = unit(pixels.sum(1), dim=0) if (nearest == item).any() else model.memory.values[1, item]
        torch.testing.assert_close(values[0, item], expected)
    guided = model.translate(image, 0, 1, Guide(exemplar=exemplar)).images
    assert not torch.equal(guided, model.translate(image, 0, 1).images)


def test_classes_and_items_must_match() -> None:
    run = small()
    with pytest.raises(ValueError, match="background, car"):
        build(run, Domains(("sunny", "night"), ("background", "car")))
    with pytest.raises(ValueError, match="2 domains, not 3"):
        build(run, Domains(("a", "b", "c"), DOMAINS.classes))
    suited = run.model.suited_to(("background", "truck"))
    assert suited.memory.items_per_class == {"background": 3, "truck": 3}  # type: ignore[attr-defined]


def test_pictures_without_boxes_need_a_memory_of_the_background_alone(model: MGUIT) -> None:
    from dataclasses import replace

    run = small()
    batches = tuple(replace(batch, classes=None) for batch in noise_batches(run, DOMAINS, 2, range(2)))
    with pytest.raises(ValueError, match="no boxes"):
        model.translation_terms(Step(batches, 0, Draws(0, 0), frozenset({"self_rec"})))
    alone = overlay(run, {"model.name": "mguit"}).model_copy(update={"model": run.model.suited_to(("background",))})
    lone = build(alone, Domains(("sunny", "night"), ("background",)))
    assert isinstance(lone, MGUIT)
    assert lone.translation_terms(Step(batches, 0, Draws(0, 0), frozenset({"self_rec"})))["self_rec"] > 0


def test_a_step_runs_in_bf16() -> None:
    trainer = Trainer(overlay(small(), {"engine.precision": "bf16"}), DOMAINS, device="cpu")
    terms = trainer.update(noise_batches(trainer.run, DOMAINS, 2, range(2)))
    assert all(term.isfinite() for term in terms.values())
    assert trainer.model.memory.keys.dtype == torch.float32  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "name, expected", [("paper", {"content": 9.0, "critics": 8.27}), ("released", {"content": 9.0, "critics": 8.27})]
)
def test_presets_have_the_size_of_the_released_networks(name: str, expected: dict[str, float]) -> None:
    """Millions of parameters: E_c 9.018 in all, D 8.271 a domain."""
    with torch.device("meta"):
        items = {"background": 10, "car": 5, "person": 3, "sign": 2}
        run = preset(f"mguit:{name}", data={"domains": DOMAINS.names})
        model = MGUIT(run.model, Domains(DOMAINS.names, tuple(items)))  # type: ignore[arg-type]
    count = lambda net: sum(p.numel() for p in net.parameters()) / 1e6  # noqa: E731
    assert count(model.content_encoder) == pytest.approx(expected["content"], rel=0.01)
    assert count(model.domain_critic) / 2 == pytest.approx(expected["critics"], rel=0.01)
    assert len(model.memory.keys) == 20
