"""UNIT keeps the promises of a Trainable, has the sizes of its layer table, shares what its paper shares; its terms by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from recollect.batch import Domains, Guide
from recollect.config import Run, overlay, preset
from recollect.pipeline import Pipeline
from recollect.testing import TrainableContract, noise_batches
from recollect.trainable import Draws, Step
from recollect.training.trainer import Trainer, build
from tests.trainables.conftest import doubling
from trainables.unit import UNIT, tiled

DOMAINS = Domains(("sunny", "night"))
SMALL = {"width": 8, "critic_width": 8, "critic_layers": 2, "encoder_blocks": 2, "generator_blocks": 2}
TERMS = ("self_rec", "kl", "cyc_rec", "cyc_kl")


def small(**model: object) -> Run:
    return preset("unit:tiny", data={"domains": DOMAINS.names, "size": 32}, model={**SMALL, **model})


class TestContract(TrainableContract):
    run = small()
    domains = DOMAINS
    guides = ("noise",)

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _with_weights_of_vgg16(cls, vgg16_file: dict[str, str]) -> None:
        cls.run = small(vgg16=vgg16_file)


def made(run: Run) -> UNIT:
    model = build(run, DOMAINS)
    assert isinstance(model, UNIT)
    return model


def step_of(run: Run, *names: str) -> Step:
    return Step(noise_batches(run, DOMAINS, 2, range(2)), 0, Draws(0, 0), frozenset(names))


def drawn(name: str, like: Tensor) -> Tensor:
    return torch.stack([torch.randn(like.shape[1:], generator=Draws(0, 0).generator(name, slot)) for slot in (0, 1)])


def test_the_terms_are_their_equations() -> None:
    """Both directions by hand: one sample serves the picture and its translation, the way back draws another."""
    run = small()
    model, step, expected = made(run), step_of(run, *TERMS), dict.fromkeys(TERMS, 0.0)
    with torch.no_grad():
        for x, y in ((0, 1), (1, 0)):
            image = step.batches[x].images
            mean = model.encoder(image, x)
            latent = mean + drawn(f"latent/{x}", mean)
            again = model.encoder(model.generator(latent, y), y)
            back = model.generator(again + drawn(f"cycle/{x}", mean), x)
            expected["self_rec"] += float((model.generator(latent, x) - image).abs().mean())
            expected["cyc_rec"] += float((back - image).abs().mean())
            expected["kl"] += float(mean.pow(2).mean())
            expected["cyc_kl"] += float(again.pow(2).mean())
    found = model.translation_terms(step)
    assert {name: term.item() for name, term in found.items()} == pytest.approx(expected, rel=1e-5)
    assert not torch.equal(drawn("latent/0", mean), drawn("latent/1", mean))


@pytest.mark.parametrize("answer", [0.0, 0.25, 1.0])
def test_critics_strive_for_one_on_pictures_and_zero_on_translations(answer: float) -> None:
    """Critics that answer the same everywhere: least squares by hand, over 2 domains and 2 scales."""
    run = small()
    model, step = made(run), step_of(run, "adv_domain", "critic_domain")
    for critic in model.domain_critic.nets:
        for scale in critic:  # type: ignore[attr-defined]
            torch.nn.init.zeros_(scale[-1].weight)
            torch.nn.init.constant_(scale[-1].bias, answer)
    assert model.translation_terms(step)["adv_domain"].item() == pytest.approx(4 * (answer - 1) ** 2, abs=1e-6)
    assert model.critic_terms(step)["critic_domain"].item() == pytest.approx(4 * ((answer - 1) ** 2 + answer**2), abs=1e-6)


def test_the_released_code_shares_nothing_and_the_paper_the_middle() -> None:
    """A gradient through one domain reaches the other's nets at the shared blocks, and nowhere else."""
    for shared in (0, 1, 2):
        model = made(small(shared_blocks=shared))
        loss = model.generator(model.encoder(torch.rand(1, 3, 32, 32), 0), 0).square().mean()
        loss.backward()
        reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert reached == {
            name
            for name, _ in model.named_parameters()
            if name.startswith(("encoder.trunks.0", "encoder.tail", "generator.head", "generator.nets.0"))
        }
        kept = [name for name in reached if name.startswith(("encoder.tail", "generator.head"))]
        assert len(kept) == 2 * shared * 4  # two convolutions a block, each a weight and a bias
    with pytest.raises(ValueError, match="shared_blocks is 3; there are 2 blocks to share"):
        small(shared_blocks=3)


def on_paper(name: str) -> UNIT:
    with torch.device("meta"):
        return UNIT(preset(f"unit:{name}").model, DOMAINS)  # type: ignore[arg-type]


def count(*nets: torch.nn.Module) -> int:
    return sum(parameter.numel() for net in nets for parameter in net.parameters())


def weights(inputs: int, outputs: int, kernel: int = 1) -> int:
    return inputs * outputs * kernel**2 + outputs


@pytest.mark.parametrize(("name", "shared", "total"), [("paper", 1, 36_462_988), ("released", 0, 38_823_308)])
def test_the_presets_have_as_many_parameters_as_the_layer_table(name: str, shared: int, total: int) -> None:
    """A convolution from I to O channels has I * O * k^2 weights and O biases; a layer norm has 2 * O.

    E: 7x7 3-64 (9 472), 4x4 64-128 (131 200), 4x4 128-256 (524 544), 4 blocks of two 3x3 256-256 (1 180 160 each).
    G: 4 such blocks, 5x5 256-128 (819 328) + 256, 5x5 128-64 (204 864) + 128, 7x7 64-3 (9 411).
    D, per scale: 4x4 3-64 (3 136), 64-128, 128-256 as above, 256-512 (2 097 664), 1x1 512-1 (513).
    Two domains have two of everything, but for a shared block of E and of G.
    """
    block = 2 * weights(256, 256, 3)
    encoder = weights(3, 64, 7) + weights(64, 128, 4) + weights(128, 256, 4) + 4 * block
    generator = 4 * block + weights(256, 128, 5) + 256 + weights(128, 64, 5) + 128 + weights(64, 3, 7)
    assert (block, encoder, generator) == (1_180_160, 5_385_856, 5_754_627)
    model = on_paper(name)
    assert count(model.encoder) == 2 * encoder - shared * block
    assert count(model.generator) == 2 * generator - shared * block
    assert count(model.domain_critic) == 2 * 8_271_171
    assert count(model) == total


def test_a_translation_of_the_paper_preset_costs_what_its_layer_table_says() -> None:
    """2 * inputs * outputs * k^2 operations a pixel of the answer, at 256, 128 and 64 pixels a side; biases are not counted.

    Doublings with a 5 x 5 convolution cost what `doubling` says, which is 9 / 25 of it, the outermost lines and the sums of taps.
    """
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        answer = on_paper("paper").translate(torch.empty(1, 3, 256, 256), 0, 1).images
    assert answer.shape == (1, 3, 256, 256)
    macs = 256**2 * (3 * 64 * 7**2) + 128**2 * (64 * 128 * 4**2) + 64**2 * (128 * 256 * 4**2)  # E down
    macs += 16 * 64**2 * (256 * 256 * 3**2)  # 4 + 4 blocks of two
    plain = macs + 128**2 * (256 * 128 * 5**2) + 256**2 * (128 * 64 * 5**2) + 256**2 * (64 * 3 * 7**2)
    assert plain == 71_026_343_936
    macs += doubling(256, 128, 128) + doubling(128, 64, 256) + 256**2 * (64 * 3 * 7**2)
    assert counter.get_total_flops() == 2 * macs


def test_without_noise_the_mean_is_translated_and_noise_is_added_to_it() -> None:
    model, image = made(small()), torch.rand(1, 3, 32, 32) * 2 - 1
    latent = model.encoder(image, 0)  # (1, 16, 16, 16)
    noise = torch.randn(1, 16, 16, 16)
    assert torch.equal(model.translate(image, 0, 1).images, model.generator(latent, 1))
    assert torch.equal(model.translate(image, 0, 1, Guide(noise=noise)).images, model.generator(latent + noise, 1))
    with pytest.raises(ValueError, match=r"\(B, 16, rows, columns\), not \(1, 8, 4, 4\)"):
        model.translate(image, 0, 1, Guide(noise=torch.zeros(1, 8, 4, 4)))


def test_noise_fits_every_size() -> None:
    noise = torch.randn(2, 3, 4, 4)
    for height, width in ((4, 4), (2, 3), (9, 5)):
        found = tiled(noise, torch.empty(2, 3, height, width))
        assert found.shape == (2, 3, height, width)
        for row in range(height):
            for column in range(width):
                assert torch.equal(found[..., row, column], noise[..., row % 4, column % 4])
    model, wide = made(small()), torch.rand(1, 3, 8, 200) * 2 - 1  # a latent grid of 100 columns, more than are drawn
    assert Pipeline(model)(wide, "night", seeds=[1]).images.shape == wide.shape


def test_the_noise_of_sample_guide_is_standard_normal() -> None:
    noise = made(small()).sample_guide(1, [torch.Generator().manual_seed(3)]).noise
    assert noise is not None and noise.shape == (1, 16, 64, 64)
    assert float(noise.mean().abs()) < 0.02 and float((noise.std() - 1).abs()) < 0.02


def test_two_domains_it_is() -> None:
    with pytest.raises(ValueError, match="2 domains, not 3"):
        build(small(), Domains(("a", "b", "c")))


def test_the_released_preset_asks_for_the_weights_of_vgg16() -> None:
    run = preset("unit:released", data={"domains": DOMAINS.names, "size": 32}, model=SMALL)
    trainer = Trainer(run, DOMAINS, device="cpu")
    with pytest.raises(ValueError, match=r"model\.vgg16\.path is empty.*vgg16-397923af"):
        trainer.update(noise_batches(run, DOMAINS, 4, range(1)))


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
