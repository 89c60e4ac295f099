"""MUNIT keeps the promises of a Trainable, has the sizes of its paper, and its terms are what their equations say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import VGG16_Weights
from torchvision.models.vgg import cfgs

from recollect.batch import Domains, Guide
from recollect.bundle import open_bundle
from recollect.config import Run, overlay, preset
from recollect.pipeline import Pipeline
from recollect.pretrained import WeightsFile
from recollect.testing import TrainableContract, noise_batches
from recollect.trainable import Draws, Step
from recollect.training.trainer import Trainer, build
from tests.trainables.conftest import doubling, published_vgg16, stored
from trainables.munit import MUNIT
from trainables.parts.blocks import AdaINResBlock, adain
from trainables.parts.perceptual import Perceptual

DOMAINS = Domains(("sunny", "night"))
SMALL = {
    "width": 8,
    "critic_width": 8,
    "critic_layers": 2,
    "content_blocks": 1,
    "generator_blocks": 2,
    "mlp_width": 16,
    "style_dim": 4,
}


def small(**model: object) -> Run:
    return preset("munit:tiny", data={"domains": DOMAINS.names, "size": 32}, model={**SMALL, **model})


class TestContract(TrainableContract):
    run = small()
    domains = DOMAINS
    guides = ("noise", "exemplar")

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _with_weights_of_vgg16(cls, vgg16_file: dict[str, str]) -> None:
        cls.run = small(vgg16=vgg16_file)


@pytest.fixture
def model() -> MUNIT:
    made = build(small(), DOMAINS)
    assert isinstance(made, MUNIT)
    return made


def step_of(run: Run, *names: str) -> Step:
    return Step(noise_batches(run, DOMAINS, 2, range(2)), 0, Draws(0, 0), frozenset(names))


def gradient_norm(loss: Tensor, net: torch.nn.Module) -> float:
    grads = torch.autograd.grad(loss, list(net.parameters()), allow_unused=True, retain_graph=True)
    return sum(float(g.norm()) for g in grads if g is not None)


TERMS = ("self_rec", "style_rec", "content_rec", "cyc_rec")


def test_the_terms_are_their_equations(model: MUNIT) -> None:
    """Both directions by hand: z is drawn, E_s is asked for z again, and the way back has the picture's own style."""
    step = step_of(small(), *TERMS)
    expected = dict.fromkeys(TERMS, 0.0)
    for x, y in ((0, 1), (1, 0)):
        image = step.batches[x].images
        z = torch.stack([torch.randn(4, generator=Draws(0, 0).generator(f"style/{y}", slot)) for slot in (0, 1)])
        content, own = model.content_encoder(image, x), model.style_encoder(image, x)
        fake = model.generator(content, z, y)
        again = model.content_encoder(fake, y)
        pairs = {
            "self_rec": (model.generator(content, own, x), image),
            "style_rec": (model.style_encoder(fake, y), z),
            "content_rec": (again, content),
            "cyc_rec": (model.generator(again, own, x), image),
        }
        for name, (one, other) in pairs.items():
            expected[name] += (one - other).abs().mean().item()
    found = model.translation_terms(step)
    assert {name: term.item() for name, term in found.items()} == pytest.approx(expected, rel=1e-5)
    assert (step.cache["fakes"][0].requires_grad, step.cache["fakes"][1].requires_grad) == (False, False)


@pytest.mark.parametrize(
    ("term", "reaches"),
    [
        ("self_rec", {"content_encoder": True, "style_encoder": True, "generator": True}),
        ("cyc_rec", {"content_encoder": True, "style_encoder": True, "generator": True}),
        ("style_rec", {"content_encoder": True, "style_encoder": True, "generator": True}),
        ("content_rec", {"content_encoder": True, "style_encoder": False, "generator": True}),
        ("adv_domain", {"content_encoder": True, "style_encoder": False, "generator": True}),
    ],
)
def test_what_a_term_trains(model: MUNIT, term: str, reaches: dict[str, bool]) -> None:
    loss = model.translation_terms(step_of(small(), term))[term]
    assert {net: gradient_norm(loss, model.get_submodule(net)) > 0 for net in reaches} == reaches


def test_the_two_domains_and_the_pictures_of_a_batch_draw_different_styles(model: MUNIT) -> None:
    drawn: list[Tensor] = []
    model.generator.register_forward_hook(lambda net, given, answer: drawn.append(given[1]))
    model.translation_terms(step_of(small(), "adv_domain"))
    assert len(drawn) == 2 and len({float(row[0]) for style in drawn for row in style}) == 4


@pytest.mark.parametrize("answer", [0.0, 0.25, 1.0])
def test_critics_strive_for_one_on_pictures_and_zero_on_translations(model: MUNIT, answer: float) -> None:
    """Critics that answer the same everywhere: least squares by hand, over 2 domains and 2 scales."""
    for critic in model.domain_critic.nets:
        for scale in critic:  # type: ignore[attr-defined]
            torch.nn.init.zeros_(scale[-1].weight)
            torch.nn.init.constant_(scale[-1].bias, answer)
    step = step_of(small(), "adv_domain", "critic_domain")
    assert model.translation_terms(step)["adv_domain"].item() == pytest.approx(4 * (answer - 1) ** 2, abs=1e-6)
    assert model.critic_terms(step)["critic_domain"].item() == pytest.approx(4 * ((answer - 1) ** 2 + answer**2), abs=1e-6)


def test_the_critics_see_the_picture_and_its_halvings(model: MUNIT) -> None:
    image = torch.rand(1, 3, 32, 32)
    assert [tuple(logits.shape) for logits in model.domain_critic(image, 0)] == [(1, 1, 8, 8), (1, 1, 4, 4)]


def test_adain_gives_every_channel_its_mean_and_deviation() -> None:
    generator = torch.Generator().manual_seed(0)
    x, shift, scale = (torch.randn(shape, generator=generator) for shape in ((2, 3, 4, 5), (2, 3), (2, 3)))
    found = adain(x, shift, scale)
    for picture in range(2):
        for channel in range(3):
            values = x[picture, channel]
            centred = (values - values.mean()) / (values.var(correction=0) + 1e-5).sqrt()
            expected = scale[picture, channel] * centred + shift[picture, channel]
            torch.testing.assert_close(found[picture, channel], expected)


def test_a_residual_block_takes_its_parameters_in_order() -> None:
    """Shift and scale of the first norm, then of the second: with scales of zero, the second shift is all that is added."""
    block, x = AdaINResBlock(3), torch.rand(2, 3, 6, 6)
    shift = torch.tensor([[1.0, 2.0, 3.0]]).expand(2, -1)
    nothing = torch.zeros(2, 3)
    parameters = torch.cat([torch.rand(2, 3), torch.rand(2, 3), shift, nothing], dim=1)
    torch.testing.assert_close(block(x, parameters), x + shift[:, :, None, None])
    dead = torch.cat([-torch.ones(2, 3), nothing, shift, torch.ones(2, 3)], dim=1)  # relu leaves nothing of a shift below zero
    torch.testing.assert_close(block(x, dead), x + shift[:, :, None, None])


def paper() -> MUNIT:
    with torch.device("meta"):
        return MUNIT(preset("munit:paper").model, DOMAINS)  # type: ignore[arg-type]


def count(*nets: torch.nn.Module) -> int:
    return sum(parameter.numel() for net in nets for parameter in net.parameters())


def weights(inputs: int, outputs: int, kernel: int = 1) -> int:
    return inputs * outputs * kernel**2 + outputs


def test_the_paper_preset_has_as_many_parameters_as_its_layer_table() -> None:
    """A convolution from I to O channels has I * O * k^2 weights and O biases; a layer norm has 2 * O.

    E_c: 7x7 3-64 (9 472), 4x4 64-128 (131 200), 4x4 128-256 (524 544), 4 blocks of two 3x3 256-256 (8 * 590 080).
    E_s: 7x7, 4x4, 4x4 as E_c, two 4x4 256-256 (2 * 1 048 832), 1x1 256-8 (2 056).
    MLP: 8-256 (2 304), 256-256 (65 792), 256-4096 (1 052 672); 4096 = 4 blocks * 2 norms * (shift, scale) * 256.
    Decoder: 8 * 590 080, 5x5 256-128 (819 328) + 256, 5x5 128-64 (204 864) + 128, 7x7 64-3 (9 411).
    D, per scale: 4x4 3-64 (3 136), 64-128, 128-256 as above, 256-512 (2 097 664), 1x1 512-1 (513).
    """
    blocks = 8 * weights(256, 256, 3)
    stem = weights(3, 64, 7) + weights(64, 128, 4) + weights(128, 256, 4)
    expected = {
        "content_encoder": stem + blocks,
        "style_encoder": stem + 2 * weights(256, 256, 4) + weights(256, 8),
        "mlp": weights(8, 256) + weights(256, 256) + weights(256, 4096),
        "decoder": blocks + weights(256, 128, 5) + 256 + weights(128, 64, 5) + 128 + weights(64, 3, 7),
        "critics": 3 * (weights(3, 64, 4) + weights(64, 128, 4) + weights(128, 256, 4) + weights(256, 512, 4) + weights(512, 1)),
    }
    assert expected == {
        "content_encoder": 5_385_856,
        "style_encoder": 2_764_936,
        "mlp": 1_120_768,
        "decoder": 5_754_627,
        "critics": 8_271_171,
    }
    model = paper()
    for domain in range(2):
        generator = model.generator.nets[domain]
        found = {
            "content_encoder": count(model.content_encoder.nets[domain]),
            "style_encoder": count(model.style_encoder.nets[domain]),
            "mlp": count(generator.get_submodule("mlp")),
            "decoder": count(generator.get_submodule("blocks"), generator.get_submodule("picture")),
            "critics": count(model.domain_critic.nets[domain]),
        }
        assert found == expected
    assert count(model) == 2 * (15_026_187 + 8_271_171)


def test_a_translation_of_the_paper_preset_costs_what_its_layer_table_says() -> None:
    """2 * inputs * outputs * k^2 operations a pixel of the answer, at 256, 128 and 64 pixels a side; biases are not counted.

    Doublings with a 5 x 5 convolution cost what `doubling` says, which is 9 / 25 of it, the outermost lines and the sums of taps.
    """
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        answer = paper().translate(torch.empty(1, 3, 256, 256), 0, 1).images
    assert answer.shape == (1, 3, 256, 256)
    macs = 256**2 * (3 * 64 * 7**2) + 128**2 * (64 * 128 * 4**2) + 64**2 * (128 * 256 * 4**2)  # E_c down
    macs += 16 * 64**2 * (256 * 256 * 3**2)  # 4 + 4 blocks of two
    macs += 8 * 256 + 256 * 256 + 256 * 4096  # MLP
    plain = macs + 128**2 * (256 * 128 * 5**2) + 256**2 * (128 * 64 * 5**2) + 256**2 * (64 * 3 * 7**2)
    assert plain == 71_027_460_096  # 1.23e9 first and last, 4.29e9 down, 38.65e9 blocks, 26.84e9 up, 1.1e6 MLP
    macs += doubling(256, 128, 128) + doubling(128, 64, 256) + 256**2 * (64 * 3 * 7**2)
    assert counter.get_total_flops() == 2 * macs


def test_the_guides_give_their_style(model: MUNIT) -> None:
    image, exemplar = torch.rand(2, 1, 3, 32, 32) * 2 - 1
    plain = model.translate(image, 0, 1).images
    assert torch.equal(model.translate(image, 0, 1, Guide(noise=torch.zeros(1, 4))).images, plain)
    style = model.style_encoder(exemplar, 1)
    shown = model.translate(image, 0, 1, Guide(exemplar=exemplar)).images
    assert torch.equal(shown, model.translate(image, 0, 1, Guide(noise=style)).images)
    assert not torch.equal(shown, plain)
    with pytest.raises(ValueError, match="not both"):
        model.translate(image, 0, 1, Guide(noise=style, exemplar=exemplar))
    with pytest.raises(ValueError, match=r"\(B, 4\), not \(1, 8\)"):
        model.translate(image, 0, 1, Guide(noise=torch.zeros(1, 8)))


def test_the_styles_of_sample_guide_are_standard_normal(model: MUNIT) -> None:
    noise = model.sample_guide(1, [torch.Generator().manual_seed(seed) for seed in range(2000)]).noise
    assert noise is not None and noise.shape == (2000, 4)
    assert float(noise.mean().abs()) < 0.05 and float((noise.std() - 1).abs()) < 0.05


def test_the_smallest_pictures_are_translated_by_example(model: MUNIT) -> None:
    pictures = torch.rand(1, 3, 1, 3) * 2 - 1
    answer = Pipeline(model)(pictures, "night", guide=Guide(exemplar=torch.rand(1, 3, 5, 2))).images
    assert answer.shape == pictures.shape and answer.isfinite().all()


def test_two_domains_it_is() -> None:
    with pytest.raises(ValueError, match="2 domains, not 3"):
        build(small(), Domains(("a", "b", "c")))


def test_a_step_runs_in_bf16() -> None:
    trainer = Trainer(overlay(small(), {"engine.precision": "bf16"}), DOMAINS, device="cpu")
    terms = trainer.update(noise_batches(trainer.run, DOMAINS, 2, range(2)))
    assert all(term.isfinite() for term in terms.values())


def test_it_learns_to_reconstruct() -> None:
    trainer = Trainer(small(), DOMAINS, device="cpu")
    batches = noise_batches(trainer.run, DOMAINS, 2, range(2))
    for batch in batches:
        batch.images.copy_(F.interpolate(batch.images[..., :4, :4], size=(32, 32), mode="bilinear"))
    losses = [trainer.update(batches) for _ in range(40)]
    for name in ("self_rec", "cyc_rec"):
        assert sum(float(terms[name]) for terms in losses[-5:]) < 0.75 * sum(float(terms[name]) for terms in losses[:5]), name


def features(images: Tensor, state: dict[str, Tensor]) -> Tensor:
    """relu5_3 of pictures in [-1, 1], by torchvision's own table of VGG16 and its own preprocessing, layer by layer."""
    recipe = VGG16_Weights.IMAGENET1K_V1.transforms()
    mean, deviation = torch.tensor(recipe.mean), torch.tensor(recipe.std)
    x, index = ((images + 1) / 2 - mean[:, None, None]) / deviation[:, None, None], 0
    for layer in cfgs["D"][:-1]:  # without the last pooling
        if layer == "M":
            x, index = F.max_pool2d(x, 2), index + 1
        else:
            x = F.conv2d(x, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1).relu()
            index += 2
    return x


def test_the_perceptual_loss_compares_features_without_their_statistics(tmp_path: Path) -> None:
    """On a file with every tensor of the published one; against plain layers and loops over channels."""
    state = published_vgg16()
    assert len(state) == 32 and sum(tensor.numel() for tensor in state.values()) == 138_357_544
    distance = Perceptual(WeightsFile(**stored(state, tmp_path / "vgg16.safetensors")))
    (tmp_path / "vgg16.safetensors").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="there is no file"):
        distance(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))
    (tmp_path / "moved").rename(tmp_path / "vgg16.safetensors")
    one, other = torch.rand(2, 2, 3, 48, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    one.requires_grad_(True)
    found = distance(one, other)
    normal = []
    for images in (one, other):
        x = features(images, state).flatten(2)  # (2, 512, 6)
        normal.append((x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt())
    assert found.item() == pytest.approx((normal[0] - normal[1]).square().mean().item(), rel=1e-4)
    assert found.item() > 0.01 and distance(other, other).item() == 0
    (gradient,) = torch.autograd.grad(found, one)
    assert gradient.abs().max() > 0


def test_the_perceptual_loss_knows_what_is_wrong_with_its_file(tmp_path: Path, vgg16_file: dict[str, str]) -> None:
    pictures = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"model\.vgg16\.path is empty.*vgg16-397923af.*save_file.*model\.vgg16\.sha256"):
        Perceptual(WeightsFile())(pictures, pictures)
    with pytest.raises(ValueError, match=r"other does not hold the weights of torchvision's VGG16.*Missing.*28\.bias"):
        Perceptual(WeightsFile(**stored({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "other")))(pictures, pictures)
    with pytest.raises(ValueError, match="32 pixels, not"):
        Perceptual(WeightsFile(**vgg16_file))(pictures[..., :31], pictures[..., :31])


def test_a_run_with_the_perceptual_loss_says_at_its_first_step_that_the_weights_are_missing() -> None:
    run = overlay(small(), {"weights.perceptual": 1.0, "model.vgg16.path": "/nowhere/vgg16.safetensors"})
    trainer = Trainer(run, DOMAINS, device="cpu")
    with pytest.raises(ValueError, match="there is no file '/nowhere/vgg16.safetensors'.*397923af"):
        trainer.update(noise_batches(run, DOMAINS, 2, range(2)))


def test_a_bundle_holds_nothing_of_vgg16_and_translates_without_its_file(tmp_path: Path, vgg16_file: dict[str, str]) -> None:
    link = tmp_path / "vgg16.safetensors"
    link.hardlink_to(vgg16_file["path"])
    run = overlay(small(vgg16={**vgg16_file, "path": str(link)}), {"weights.perceptual": 1.0})
    trainer = Trainer(run, DOMAINS, device="cpu")
    names = set(trainer.model.state_dict())
    trainer.update(noise_batches(run, DOMAINS, 2, range(2)))
    trainer.save(tmp_path / "bundle", [], {})
    assert set(trainer.model.state_dict()) == names == set(open_bundle(tmp_path / "bundle").state("ema"))
    assert {name.split(".")[0] for name in names} == {"content_encoder", "style_encoder", "generator", "domain_critic"}
    assert sum(item.stat().st_size for item in (tmp_path / "bundle").iterdir()) < 5_000_000  # VGG16's features are 59 MB
    link.unlink()
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    answer = Pipeline.open(tmp_path / "bundle")(image, "night").images
    assert answer.shape == image.shape


def test_the_perceptual_loss_of_bf16_pictures_leaves_its_weights_as_they_are(vgg16_file: dict[str, str]) -> None:
    file = WeightsFile(**vgg16_file)
    one, other = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    used = Perceptual(file)
    assert used(one.bfloat16(), other).isfinite()
    assert torch.equal(used(one, other), Perceptual(file)(one, other))
