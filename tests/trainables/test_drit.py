"""DRIT keeps the promises of a Trainable, computes what the paper says, and has the size of the released networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from recollect.batch import Domains, Guide
from recollect.config import Optimiser, Run, overlay, preset
from recollect.testing import TrainableContract, noise_batches
from recollect.trainable import Draws, Step
from recollect.training.trainer import Trainer, build
from trainables.drit import DRIT, TRANSLATION_TERMS, Posterior, kl, mode_seeking

DOMAINS = Domains(("sunny", "night"), ("background", "car"))
SMALL = {"width": 8, "critic_width": 8, "critic_layers": 2, "content_blocks": 2, "generator_blocks": 2}


def small(weights: dict[str, float] | None = None, **model: object) -> Run:
    return preset("drit:tiny", data={"domains": DOMAINS.names, "size": 32}, model={**SMALL, **model}, weights=weights or {})


class TestContract(TrainableContract):
    run = small({"mode_seeking": 1.0})
    domains = DOMAINS
    guides = ("noise", "exemplar")


class TestContractOfTheMlpForm(TrainableContract):
    variant = True
    run = small(form="mlp", downs=2, gan="bce", d_iter=2)
    domains = DOMAINS
    guides = ("noise", "exemplar")


def made(run: Run) -> DRIT:
    model = build(run, DOMAINS)
    assert isinstance(model, DRIT)
    return model


def step_of(run: Run, *names: str, slots: tuple[int, ...] = (0, 1)) -> Step:
    return Step(noise_batches(run, DOMAINS, 2, slots), 0, Draws(0, 0), frozenset(names))


def squared_distance(logits: list[Tensor], target: float) -> Tensor:
    return sum(((x - target) ** 2).mean() for x in logits)  # type: ignore[return-value]


def terms_of_one_pair(model: DRIT, step: Step, slot: int) -> dict[str, Tensor]:
    """The paper's terms for one picture of each domain, written out."""
    i = step.batches[0].slots.index(slot)
    picture = [batch.images[i : i + 1] for batch in step.batches]
    grid = (16, 16, 16)

    def draw(name: str, x: int, *shape: int) -> Tensor:
        return step.draws.normal(f"{name}/{x}", [slot], shape, picture[0])

    def sampled(read: Posterior, name: str, x: int) -> Tensor:
        return read.mean if read.logvar is None else read.mean + read.logvar.exp().sqrt() * draw(name, x, 8)

    c = [model.content_encoder(picture[x], x) + draw("content", x, *grid) for x in (0, 1)]
    read = [model.style_encoder(picture[x], x) for x in (0, 1)]
    z = [sampled(read[x], "style", x) for x in (0, 1)]
    u, v = model.generator(c[1], z[0], 0), model.generator(c[0], z[1], 1)
    c_of_v = model.content_encoder(v, 1) + draw("content again", 1, *grid)
    c_of_u = model.content_encoder(u, 0) + draw("content again", 0, *grid)
    z_of_u = sampled(model.style_encoder(u, 0), "style again", 0)
    z_of_v = sampled(model.style_encoder(v, 1), "style again", 1)
    back = [model.generator(c_of_v, z_of_u, 0), model.generator(c_of_u, z_of_v, 1)]
    own = [model.generator(c[x], z[x], x) for x in (0, 1)]
    one, other = ([draw(name, x, 8) for x in (0, 1)] for name in ("random", "again"))
    random = [model.generator(c[1 - x], one[x], x) for x in (0, 1)]
    again = [model.generator(c[1 - x], other[x], x) for x in (0, 1)]
    fooled = [
        squared_distance(model.domain_critic(fake, x, random=False), 1)
        + squared_distance(model.domain_critic(torch.cat([random[x], again[x]]), x, random=True), 1)
        for x, fake in ((0, u), (1, v))
    ]
    half = torch.tensor([[0.5, 0.5]])
    each = {
        "adv_content": [F.cross_entropy(model.content_critic(c[x]), half) for x in (0, 1)],
        "cyc_rec": [F.l1_loss(back[x], picture[x]) for x in (0, 1)],
        "adv_domain": fooled,
        "self_rec": [F.l1_loss(own[x], picture[x]) for x in (0, 1)],
        "latent": [F.l1_loss(model.style_encoder(random[x], x).mean, one[x]) for x in (0, 1)],
        "kl": [
            read[x].mean.square().mean()
            if read[x].logvar is None
            else kl_divergence(Normal(read[x].mean, read[x].logvar.exp().sqrt()), Normal(0.0, 1.0)).sum()
            for x in (0, 1)
        ],
        "content_l2": [c[x].square().mean() for x in (0, 1)],
        "mode_seeking": [1 / ((again[x] - random[x]).abs().mean() / (other[x] - one[x]).abs().mean() + 1e-5) for x in (0, 1)],
    }
    return {name: torch.stack(pair).sum() for name, pair in each.items()}


@pytest.mark.parametrize("form", ["concat", "mlp"])
def test_the_terms_are_those_of_the_paper_and_means_over_pairs(form: str) -> None:
    run = small(form=form)
    model, step = made(run), step_of(run, *TRANSLATION_TERMS, slots=(0, 1, 2))
    terms = model.translation_terms(step)
    pairs = [terms_of_one_pair(model, step, slot) for slot in (0, 1, 2)]
    assert set(terms) == set(TRANSLATION_TERMS) == set(pairs[0])
    for name, term in terms.items():
        torch.testing.assert_close(term, torch.stack([pair[name] for pair in pairs]).mean(), rtol=1e-4, atol=1e-5, msg=name)


def test_each_critic_sees_its_own_translations() -> None:
    run = small()
    model, step = made(run), step_of(run, "critic_domain", "mode_seeking")
    model.translation_terms(step)
    expected = []
    for x, batch in enumerate(step.batches):
        fakes = step.cache["fakes"][x]
        for random, shown in ((False, fakes["encoded"]), (True, torch.cat([fakes["random"], fakes["again"]]))):
            expected.append(squared_distance(model.domain_critic(batch.images, x, random), 1))
            expected.append(squared_distance(model.domain_critic(shown, x, random), 0))
    torch.testing.assert_close(model.domain_critic_terms(step)["critic_domain"], torch.stack(expected).sum())
    assert not any(fake.requires_grad for fakes in step.cache["fakes"] for fake in fakes.values())


@pytest.mark.parametrize("form", ["concat", "mlp"])
def test_the_latent_terms_gradient_reaches_no_parameter_of_the_style_encoder(form: str) -> None:
    run = small(form=form)
    model = made(run)
    latent = model.translation_terms(step_of(run, "latent"))["latent"]
    own = list(model.style_encoder.parameters())
    assert all(parameter.requires_grad for parameter in own)  # held for one call, not switched off
    grads = torch.autograd.grad(latent, own, allow_unused=True, retain_graph=True)
    assert not any(grad.any() for grad in grads if grad is not None)
    for net in (model.content_encoder, model.generator):
        grads = torch.autograd.grad(latent, list(net.parameters()), allow_unused=True, retain_graph=True)
        assert sum(float(grad.norm()) for grad in grads if grad is not None) > 0


def test_a_step_of_the_latent_term_alone_leaves_the_style_encoder_as_it_was() -> None:
    names = [name for name, _ in small().weights]
    run = overlay(small(), {f"weights.{name}": float(name == "latent") for name in names})
    plain = Optimiser(kind="sgd", lr=0.1, weight_decay=0.0)
    trainer = Trainer(run.model_copy(update={"optimisers": {"default": plain}}), DOMAINS, device="cpu")
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.update(noise_batches(run, DOMAINS, 2, range(2)))
    moved = {name.split(".")[0] for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved - {"mean_style"} == {"content_encoder", "generator"}


def test_kl_is_that_of_torch() -> None:
    mean, logvar = torch.randn(5, 8), torch.randn(5, 8)
    expected = kl_divergence(Normal(mean, logvar.exp().sqrt()), Normal(0.0, 1.0)).sum(dim=1).mean()
    torch.testing.assert_close(kl(Posterior(mean, logvar)), expected)
    assert kl(Posterior(torch.zeros(1, 8), torch.zeros(1, 8))) == 0
    torch.testing.assert_close(kl(Posterior(mean)), (mean**2).sum() / 40)


def test_mode_seeking_is_one_over_the_ratio_of_distances_of_each_picture() -> None:
    one, other, style, other_style = torch.rand(3, 3, 8, 8), torch.rand(3, 3, 8, 8), torch.randn(3, 8), torch.randn(3, 8)
    ratios = [F.l1_loss(other[i], one[i]) / F.l1_loss(other_style[i], style[i]) for i in range(3)]
    expected = sum(1 / (ratio + 1e-5) for ratio in ratios) / 3
    torch.testing.assert_close(mode_seeking(one, other, style, other_style), expected)
    assert mode_seeking(one, one, style, other_style) == pytest.approx(1e5)  # the same picture for two styles


def test_the_content_critic_learns_in_every_iteration_and_the_rest_in_every_third() -> None:
    run = small(d_iter=3)
    trainer = Trainer(run, DOMAINS, device="cpu")
    for number in range(4):
        before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
        terms = trainer.update(noise_batches(run, DOMAINS, 2, range(2), number))
        after = trainer.model.state_dict()
        moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
        full = number % 3 == 0
        assert moved - {"mean_style"} == ({name for name, _ in trainer.model.named_children()} if full else {"content_critic"})
        assert ("mean_style" in moved) is full
        assert ("self_rec" in terms) is full and "critic_content" in terms


def test_the_content_critics_gradient_is_clipped_to_5() -> None:
    run = overlay(small(), {"weights.critic_content": 1e6, "optimisers.content_critic.kind": "sgd"})
    run = overlay(run, {"optimisers.content_critic.lr": 1.0, "optimisers.content_critic.weight_decay": 0.0})
    trainer = Trainer(run, DOMAINS, device="cpu")
    critic = trainer.model.get_submodule("content_critic")
    before = [parameter.detach().clone() for parameter in critic.parameters()]
    trainer.update(noise_batches(run, DOMAINS, 2, range(2)))
    moved = torch.cat([(old - new.detach()).flatten() for old, new in zip(before, critic.parameters(), strict=True)])
    assert float(moved.norm()) == pytest.approx(5, rel=1e-4)


@pytest.mark.parametrize("batch", [1, 3])
def test_any_batch_size_takes_a_step(batch: int) -> None:
    trainer = Trainer(small(), DOMAINS, device="cpu")
    terms = trainer.update(noise_batches(trainer.run, DOMAINS, 2, range(batch)))
    assert all(term.isfinite() for term in terms.values())


def test_a_step_runs_in_bf16() -> None:
    run = overlay(small({"mode_seeking": 1.0}), {"engine.precision": "bf16"})
    terms = Trainer(run, DOMAINS, device="cpu").update(noise_batches(run, DOMAINS, 2, range(2)))
    assert all(term.isfinite() and term.dtype == torch.float32 for term in terms.values())


@torch.no_grad()
def test_content_is_noisy_in_training_terms_and_nowhere_else() -> None:
    run = small()
    model, step = made(run), step_of(run, "content_l2")
    model.translation_terms(step)
    noise = torch.stack([step.cache["contents"][x] - model.content_encoder(step.batches[x].images, x) for x in (0, 1)])
    assert noise.numel() == 2 * 2 * 16**3
    assert float(noise.mean()) == pytest.approx(0, abs=0.03) and float(noise.std()) == pytest.approx(1, abs=0.03)
    image = step.batches[0].images
    assert torch.equal(model.train().translate(image, 0, 1).images, model.eval().translate(image, 0, 1).images)
    quiet = made(small(content_noise=0.0))
    quiet.translation_terms(step)
    assert torch.equal(step.cache["contents"][0], quiet.content_encoder(image, 0))


@pytest.mark.parametrize("form", ["concat", "mlp"])
@torch.no_grad()
def test_styles_come_from_noise_from_exemplars_or_are_the_mean_style(form: str) -> None:
    model = made(small(form=form))
    image, exemplar = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    content = model.content_encoder(image, 0)
    z = torch.randn(2, 8)
    model.mean_style.copy_(torch.randn(2, 8))
    given = {
        "nothing": (Guide(), model.mean_style[1].expand(2, 8)),
        "noise": (Guide(noise=z), z),
        "exemplar": (Guide(exemplar=exemplar), model.style_encoder(exemplar, 1).mean),
    }
    for name, (guide, style) in given.items():
        torch.testing.assert_close(model.translate(image, 0, 1, guide).images, model.generator(content, style, 1), msg=name)
    assert model.sample_guide(1, [torch.Generator().manual_seed(i) for i in range(3)]).noise.shape == (3, 8)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="not both"):
        model.translate(image, 0, 1, Guide(noise=z, exemplar=exemplar))
    with pytest.raises(ValueError, match=r"\(2, 8\), one style a picture, not \(1, 8\)"):
        model.translate(image, 0, 1, Guide(noise=z[:1]))
    with pytest.raises(ValueError, match="16 px a side, not 8 x 32"):
        model.translate(image, 0, 1, Guide(exemplar=exemplar[:, :, :8]))
    assert model.translate(image, 0, 1, Guide(exemplar=exemplar[:, :, :16, :16])).images.isfinite().all()


def test_two_domains_and_no_other_number() -> None:
    with pytest.raises(ValueError, match="2 domains, not 3"):
        build(small(), Domains(("a", "b", "c")))


# The sizes of the released networks. Layers as (inputs, outputs, kernel, height of the output), at 216 px, for ONE domain;
# a transposed convolution computes at every pixel of its input.
def res_block(channels: int, side: int) -> list[tuple[int, int, int, int]]:
    return [(channels, channels, 3, side)] * 2


def basic_block(inputs: int, outputs: int, side: int) -> list[tuple[int, int, int, int]]:
    return [(inputs, inputs, 3, side), (inputs, outputs, 3, side), (inputs, outputs, 1, side // 2)]


TRUNK = [(3, 64, 7, 216), (64, 128, 3, 108), (128, 256, 3, 54), *(res_block(256, 54) * 3)]
GAUSSIAN = [(3, 64, 4, 108), *basic_block(64, 128, 108), *basic_block(128, 192, 54), *basic_block(192, 256, 27), (256, 16, 1, 1)]
PLAIN = [(3, 64, 7, 216), (64, 128, 4, 108), (128, 256, 4, 54), (256, 256, 4, 27), (256, 256, 4, 13), (256, 8, 1, 1)]
CONCAT = [*(res_block(264, 54) * 3), (272, 136, 3, 54), (144, 72, 3, 108), (80, 3, 1, 216)]
STYLED = [*res_block(256, 54), *([(512, 512, 1, 54), (512, 256, 1, 54)] * 2)]
MLP = [(8, 256, 1, 1), (256, 256, 1, 1), (256, 1024, 1, 1), *(STYLED * 4), (256, 128, 3, 54), (128, 64, 3, 108), (64, 3, 1, 216)]
CONTENT_CRITIC = [(256, 256, 7, 27), (256, 256, 7, 14), (256, 256, 7, 7), (256, 2, 1, 7)]


def scale_critic(side: int) -> list[tuple[int, int, int, int]]:
    sizes = [side // 2**i for i in range(1, 5)]
    return [*zip((3, 64, 128, 256), (64, 128, 256, 512), (4,) * 4, sizes, strict=True), (512, 1, 1, sizes[-1])]


CRITIC = [*scale_critic(216), *scale_critic(108), *scale_critic(54)]


def parameters_of(layers: list[tuple[int, int, int, int]], norms: int = 0) -> int:
    return sum(a * b * k * k + b for a, b, k, _ in layers) + norms


def flops_of(layers: list[tuple[int, int, int, int]]) -> int:
    return sum(2 * a * b * k * k * side * side for a, b, k, side in layers)


def counted(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def paper(form: str) -> DRIT:
    with torch.device("meta"):
        return DRIT(preset("drit:paper", data={"domains": DOMAINS.names}, model={"form": form}).model, DOMAINS)  # type: ignore[arg-type]


def test_the_paper_preset_has_the_parameters_of_the_released_networks() -> None:
    """LayerNorm has two numbers a channel: 2 (136 + 72) in `concat`, 2 (128 + 64) in `mlp`."""
    concat, mlp = paper("concat"), paper("mlp")
    sizes: dict[Any, tuple[int, int]] = {
        concat.content_encoder: (9_018_112, 2 * parameters_of(TRUNK) + parameters_of(res_block(256, 54))),
        concat.style_encoder: (2_688_160, 2 * parameters_of(GAUSSIAN)),
        concat.generator: (9_564_710, parameters_of(res_block(256, 54)) + 2 * parameters_of(CONCAT, 2 * (136 + 72))),
        concat.domain_critic: (4 * 8_271_171, 4 * parameters_of(CRITIC)),
        mlp.style_encoder: (5_529_872, 2 * parameters_of(PLAIN)),
        mlp.generator: (17_146_374, 2 * parameters_of(MLP, 2 * (128 + 64))),
    }
    for net, (known, derived) in sizes.items():
        assert counted(net) == derived == known


def test_the_content_critic_is_the_released_one_without_its_4x4_layer() -> None:
    ours = counted(paper("concat").content_critic)
    assert ours == parameters_of(CONTENT_CRITIC) == 9_635_074
    two_logits, one_logit = 2 * 256 + 2, 256 + 1  # ours answers with a logit for each domain, pooled
    assert ours - two_logits + (4 * 4 * 256 * 256 + 256) + one_logit == 10_683_649  # as released
    assert ours - two_logits + (2 * 2 * 256 * 256 + 256) + one_logit == 9_897_217  # with a 2x2 kernel, for 64 px


@pytest.mark.parametrize("form, encoder, generator", [("concat", GAUSSIAN, CONCAT), ("mlp", PLAIN, MLP)])
def test_the_networks_compute_what_the_tables_say(
    form: str, encoder: list[tuple[int, int, int, int]], generator: list[tuple[int, int, int, int]]
) -> None:
    model = paper(form)
    image, content, style = (torch.empty(1, *shape, device="meta") for shape in ((3, 216, 216), (256, 54, 54), (8,)))
    head = res_block(256, 54) if form == "concat" else []
    cases = [
        (lambda: model.content_encoder(image, 1), TRUNK + res_block(256, 54)),
        (lambda: model.style_encoder(image, 1), encoder),
        (lambda: model.generator(content, style, 1), head + generator),
        (lambda: model.domain_critic(image, 1, random=True), CRITIC),
        (lambda: model.content_critic(content), CONTENT_CRITIC),
    ]
    for compute, layers in cases:
        with FlopCounterMode(display=False) as flops:
            compute()
        assert flops.get_total_flops() == flops_of(layers)


def test_without_a_guide_the_style_is_the_mean_of_those_encoded_in_training() -> None:
    trainer = Trainer(small(), DOMAINS, device="cpu")
    model = trainer.model
    assert isinstance(model, DRIT)
    batches = noise_batches(trainer.run, DOMAINS, 2, range(2))
    with torch.no_grad():
        means = torch.stack([model.style_encoder(batch.images, x).mean.mean(0) for x, batch in enumerate(batches)])
    trainer.update(batches)
    torch.testing.assert_close(model.mean_style, 0.02 * means)
    images = batches[0].images[:1]
    with torch.no_grad():
        plain = model.translate(images, 0, 1).images
        assert torch.equal(plain, model.translate(images, 0, 1, Guide(noise=model.mean_style[1:])).images)
