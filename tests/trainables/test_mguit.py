"""MGUIT keeps the promises of a Trainable, and does what its file says where it departs from the paper or the released code."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from recollect.batch import Domains, Guide
from recollect.config import Run, overlay, preset
from recollect.testing import TrainableContract, largest_difference, noise_batches, train_ranks
from recollect.trainable import ClassWise, Draws, Step
from recollect.training.trainer import Trainer, build
from trainables.mguit import MGUIT, Drawing
from trainables.parts.memory import unit

DOMAINS = Domains(("sunny", "night"), ("background", "car", "person"))
SMALL = {"width": 8, "critic_width": 8, "critic_layers": 2, "content_blocks": 2, "generator_blocks": 2}


def small(**model: object) -> Run:
    memory = {"items_per_class": {"background": 3, "car": 2, "person": 1}, "value_dim": 8}
    return preset("mguit:tiny", data={"domains": DOMAINS.names, "size": 32}, model={**SMALL, "memory": memory, **model})


class TestContract(TrainableContract):
    run = small()
    domains = DOMAINS
    guides = ("noise", "exemplar", "values", "classes")

    def test_the_rank_check_notices_a_missing_reduction(self) -> None:
        run = self._exact()
        (alone,) = train_ranks(run, self.domains, 1)
        ranks = train_ranks(run, self.domains, 2, unreduced=True)
        assert largest_difference(alone, ranks[0])[0] > 1e-6

    def test_a_net_without_a_gradient_steps_alike_on_any_number_of_ranks(self) -> None:
        """Zero is its gradient, so weight decay moves it; an optimiser would skip it where it has none."""
        switched_off = dict.fromkeys(("weights.kl", "weights.con_v", "weights.latent"), 0.0)
        run = overlay(
            self._exact(),
            {
                "model.memory.order": "read-update",
                "model.memory.own_style": False,
                "optimisers.default.weight_decay": 0.1,
                **switched_off,
            },
        )
        (alone,) = train_ranks(run, self.domains, 1)
        assert {float(g.abs().max()) for name, g in alone.items() if "/style_encoder." in name and name.startswith("grad/")} == {
            0.0
        }
        for rank in train_ranks(run, self.domains, 2):
            assert largest_difference(alone, rank)[0] < 1e-10


class TestContractOfTheConcatenatingGenerator(TrainableContract):
    variant = True
    run = small(fusion="concat", downs=2, gan="bce", content_noise=0.1, style_norm="instance")
    domains = DOMAINS
    guides = ("noise", "exemplar", "values", "classes")


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
    run = overlay(small(), {"model.memory.detach": detach, "model.memory.own_style": False})
    model = build(run, DOMAINS)
    assert isinstance(model, MGUIT)
    terms, _ = terms_of(model, run, "self_rec")
    assert (gradient_norm(terms["self_rec"], model.style_encoder) > 0) is reaches
    assert gradient_norm(terms["self_rec"], model.content_encoder) > 0


def test_reading_before_the_update_gives_the_style_encoder_nothing() -> None:
    run = overlay(small(), {"model.memory.order": "read-update", "model.memory.own_style": False})
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
    values, _ = model.memory.collect(content, style, 1)
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


ABLATIONS = {
    "none": {"model.memory.use": "none", "model.contrast": "none"},
    "single": {"model.memory.use": "single"},
    "triplet": {"model.contrast": "triplet"},
    "own": {"model.memory.own_style": True, "model.memory.random_spread": 0.5, "model.share_generator": True},
    "revived": {"model.memory.revive_after": 1, "model.memory.update_rate": 0.5},
}


@pytest.mark.slow
@pytest.mark.parametrize("arm", ABLATIONS)
def test_every_arm_of_the_ablation_takes_the_same_step_on_two_ranks(arm: str) -> None:
    run = overlay(TestContract()._exact(), ABLATIONS[arm])
    (alone,) = train_ranks(run, DOMAINS, 1)
    for rank in train_ranks(run, DOMAINS, 2):
        difference, name = largest_difference(alone, rank)
        assert difference < 1e-10, f"{name} differs by {difference}"


def test_two_ranks_with_their_batches_in_parts_take_the_step_of_one_process() -> None:
    run = overlay(TestContract()._exact(), ABLATIONS["revived"])
    (alone,) = train_ranks(run, DOMAINS, 1)
    for rank in train_ranks(overlay(run, {"engine.accumulate": 2}), DOMAINS, 2):
        difference, name = largest_difference(alone, rank)
        assert difference < 1e-10, f"{name} differs by {difference}"


@pytest.mark.parametrize("arm", ABLATIONS)
def test_every_arm_of_the_ablation_trains_and_takes_the_same_step_in_parts(arm: str) -> None:
    contract = TestContract()
    run = overlay(contract._exact(), ABLATIONS[arm])
    (whole,), (parts,) = (train_ranks(overlay(run, {"engine.accumulate": count}), DOMAINS, 1, steps=3) for count in (1, 2))
    difference, name = largest_difference(whole, parts)
    assert difference < 1e-10, f"{name} differs by {difference}"
    trainer = Trainer(overlay(contract._all_terms(small()), ABLATIONS[arm]), DOMAINS, device="cpu")
    terms = trainer.update(noise_batches(trainer.run, DOMAINS, trainer.model.stride, range(2)))
    without = {"con_k", "con_v"} if arm == "none" else set()
    assert set(terms) == {name for name, _ in trainer.run.weights} - without


def built(**changes: object) -> tuple[MGUIT, Run]:
    run = overlay(small(), changes)
    model = build(run, DOMAINS)
    assert isinstance(model, MGUIT)
    return model, run


def test_a_single_memory_does_not_see_classes_and_none_takes_the_style_of_the_partner() -> None:
    single, run = built(**ABLATIONS["single"])
    batches = noise_batches(run, DOMAINS, 2, range(2))
    other = tuple(replace(batch, classes=batch.classes.flip(1)) for batch in batches if batch.classes is not None)
    names = frozenset({"self_rec", "con_k", "con_v"})
    first, second = (single.translation_terms(Step(given, 0, Draws(0, 0), names)) for given in (batches, other))
    assert {name: float(term) for name, term in first.items()} == {name: float(term) for name, term in second.items()}
    assert single.style_classes() == {"all": 6}

    none, run = built(**ABLATIONS["none"])
    night = replace(batches[1], images=batches[1].images.flip(0))  # the same pictures, other partners
    fakes = []
    for partner in (batches[1], night):
        step = Step((batches[0], partner), 0, Draws(0, 0), frozenset({"self_rec"}))
        none.translation_terms(step)
        fakes.append(step.cache["fakes"])
    assert not torch.allclose(fakes[0][1], fakes[1][1]), "sunny pictures in the style of their night partners"
    with pytest.raises(ValueError, match="model.contrast=none"):
        built(**{"model.memory.use": "none"})


def test_own_styles_are_read_by_reconstruction_and_by_nothing_else() -> None:
    model, run = built(**{"model.memory.own_style": True, "model.memory.order": "read-update", "model.contrast": "none"})
    batches = noise_batches(run, DOMAINS, 2, range(1))

    def results() -> tuple[float, torch.Tensor]:
        step = Step(batches, 0, Draws(0, 0), frozenset({"self_rec"}))
        terms = model.translation_terms(step)
        assert gradient_norm(terms["self_rec"], model.style_encoder) > 0
        return float(terms["self_rec"]), step.cache["fakes"][1]

    rec, fake = results()
    shown = model.memory.collect(model.content_encoder(batches[0].images, 0), torch.ones(1, 8, 16, 16), 0, batches[0].classes)[1]
    model.memory.values[0, shown[0] > 0] = unit(torch.randn(int((shown[0] > 0).sum()), 8), dim=-1)
    assert results()[0] == pytest.approx(rec, abs=1e-6)  # what the pictures show comes from them, not from the memory
    model.memory.values[1] = unit(torch.randn(6, 8), dim=-1)
    assert not torch.allclose(results()[1], fake)


def test_random_values_are_unit_vectors_anywhere_or_around_the_stored_ones() -> None:
    draws = [torch.Generator().manual_seed(seed) for seed in range(200)]
    for spread, low, high in ((None, -0.15, 0.15), (0.3, 0.92, 1.0), (1.0, 0.6, 0.8)):
        model, _ = built(**{"model.memory.random_spread": spread})
        noise = model.sample_guide(1, draws).noise
        assert noise is not None and noise.shape == (200, 6, 8)
        torch.testing.assert_close(noise.norm(dim=-1), torch.ones(200, 6))
        assert low < float((noise * model.memory.values[1]).sum(-1).mean()) < high, spread


@pytest.mark.parametrize("arm", [arm for arm in ABLATIONS if arm != "own"])
def test_random_values_of_a_shared_generator_belong_to_a_domain_in_every_arm(arm: str) -> None:
    """Drawn anywhere on the sphere they would ask one function for the pictures of both domains."""
    settings = {"model.share_generator": True, "model.memory.random_spread": 1.0}
    model, _ = built(**{**ABLATIONS[arm], **settings})
    drawn = [model.sample_guide(domain, [torch.Generator().manual_seed(3)]).noise for domain in (0, 1)]
    assert drawn[0] is not None and drawn[1] is not None and not torch.allclose(drawn[0], drawn[1], atol=0.1)


@pytest.mark.parametrize("fusion", ["concat", "modulate"])
@pytest.mark.parametrize("share", [True, False])
def test_what_is_drawn_in_one_pass_is_what_is_drawn_one_by_one(fusion: str, share: bool) -> None:
    model, _ = built(**{"model.share_generator": share, "model.fusion": fusion, "model.downs": 2})
    model = model.double()
    channels, values = model.config.width * 4, model.config.memory.value_dim
    contents = [torch.randn(2, channels, 4, 4, dtype=torch.float64), torch.randn(1, channels, 4, 4, dtype=torch.float64)]
    wanted = [(0, 1), (1, 0), (0, 0), (1, 1), (0, 1)]  # content, domain
    drawings = [Drawing(x, torch.randn(len(contents[x]), values, 4, 4, dtype=torch.float64), y) for x, y in wanted]
    together = model.generator.together(contents, drawings)
    for drawing, picture in zip(drawings, together, strict=True):
        alone = model.generator(contents[drawing.content], drawing.style, drawing.domain)
        torch.testing.assert_close(picture, alone, rtol=1e-10, atol=1e-10)
    images = [torch.rand(2, 3, 16, 16, dtype=torch.float64), torch.rand(1, 3, 16, 16, dtype=torch.float64)]
    for content, alone in zip(
        model.content_encoder.together(images, (1, 0)),
        (model.content_encoder(image, x) for image, x in zip(images, (1, 0), strict=True)),
        strict=True,
    ):
        torch.testing.assert_close(content, alone, rtol=1e-10, atol=1e-10)


def test_a_shared_generator_knows_the_domain_by_the_values_alone() -> None:
    for fusion in ("concat", "modulate"):
        model, _ = built(**{"model.share_generator": True, "model.fusion": fusion, "model.downs": 2})
        content, style = torch.rand(1, 32, 8, 8), torch.rand(1, 8, 8, 8)
        assert torch.equal(model.generator(content, style, 0), model.generator(content, style, 1))


def test_reading_with_classes_keeps_to_their_items(model: MGUIT) -> None:
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    classes = torch.randint(0, 3, (2, 16, 16))
    told = model.translate(image, 0, 1, Guide(classes=classes))
    assert torch.equal(model.memory.item_class[told.extras["memory_map"]], classes)


def test_an_exemplar_gives_values_for_the_classes_it_shows(model: MGUIT) -> None:
    assert isinstance(model, ClassWise)
    picture, classes = torch.rand(1, 3, 32, 32) * 2 - 1, torch.zeros(1, 16, 16, dtype=torch.long)
    classes[:, 4:8] = 1
    found = model.exemplar_values(picture, 1, classes)
    assert set(found) == {"background", "car"} and {len(found[name]) for name in ("background", "car")} == {2, 3}
    assert all(torch.allclose(values.norm(dim=-1), torch.ones(len(values))) for values in found.values())
    content, style = model.content_encoder(picture, 1), unit(model.style_encoder(picture, 1))
    one = model.exemplar_values(picture, 1, torch.full_like(classes, 2))["person"]
    torch.testing.assert_close(one[0], unit(style.flatten(2)[0].sum(1), dim=0))
    del content
    drawn, again = (model.random_values(1, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(drawn[name], again[name]) for name in drawn)
    guided = model.translate(picture, 0, 1, Guide(values=drawn)).images
    seeded = model.translate(picture, 0, 1, model.sample_guide(1, [torch.Generator().manual_seed(3)])).images
    torch.testing.assert_close(guided, seeded)


def test_an_idle_item_starts_anew_from_a_pixel_of_its_class() -> None:
    model, run = built(**{"model.memory.revive_after": 1})
    model.memory.keys[1] = -model.memory.keys[0]  # far from everything that items 0 and 2 may be near to
    model.memory.idle[1] = 5
    before = model.memory.keys[1].clone()
    step = Step(noise_batches(run, DOMAINS, 2, range(2)), 0, Draws(0, 0), frozenset({"self_rec"}))
    model.translation_terms(step)
    step.cache["written"] = model.memory.stored()._replace(mass=torch.tensor([[1.0, 0, 1, 1, 1, 1]] * 2))
    model.after_step(step)
    assert not torch.equal(model.memory.keys[1], before) and int(model.memory.idle[1]) == 0
    shown = step.batches[1].classes == 0  # the last domain's pixel is what it starts from
    contents = step.cache["contents"][1].movedim(1, -1)[shown]
    assert float((contents @ model.memory.keys[1]).max()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["paper", "released"])
def test_presets_have_the_size_of_the_released_networks(name: str) -> None:
    """Parameters counted in the released code: E_c, D of both domains; with its value_dim of 128 also E_s and G.

    D_c ends in a 4x4 convolution there (256 * 256 * 16 + 256 more) and one logit (256 + 1 less than our two).
    """
    with torch.device("meta"):
        items = {"background": 10, "car": 5, "person": 3, "sign": 2}
        run = preset(f"mguit:{name}", data={"domains": DOMAINS.names})
        model = MGUIT(run.model, Domains(DOMAINS.names, tuple(items)))  # type: ignore[arg-type]
    count = {name: sum(p.numel() for p in net.parameters()) for name, net in model.named_children()}
    assert (count["content_encoder"], count["domain_critic"]) == (9_018_112, 2 * 8_271_171)
    assert count["content_critic"] == 10_683_649 - (256 * 256 * 16 + 256) + (256 + 1)
    if name == "released":
        assert (count["style_encoder"], count["generator"]) == (1_491_200, 11_655_686)
    assert len(model.memory.keys) == 20
