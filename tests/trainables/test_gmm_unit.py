"""GMM-UNIT keeps the promises of a Trainable, has the sizes of its paper, and its terms are what their equations say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence
from torch.nn import functional as F

from recollect.batch import Batch, Domains, Guide
from recollect.config import Run, overlay, preset
from recollect.pipeline import Pipeline
from recollect.testing import TrainableContract, noise_batches
from recollect.trainable import AttributeWise, Draws, Step
from recollect.training.trainer import Trainer, build
from trainables.gmm_unit import CELEBA, GMMUNIT, Drawing
from trainables.parts.critics import AttributeCritic

FACES = Domains(("faces",), attributes=("Smiling", "Young", "Black_Hair", "Blond_Hair", "Brown_Hair", "Male"))
STREETS = Domains(("sunny", "night", "rainy"))
SMALL = {
    "width": 4,
    "downs": 1,
    "style_downs": 3,
    "content_blocks": 1,
    "generator_blocks": 2,
    "mlp_width": 16,
    "critic_width": 4,
    "critic_layers": 2,
    "dims": 2,
}


def small(domains: Domains = FACES, **model: object) -> Run:
    chosen = {} if domains is FACES else {"attributes": ()}
    return preset("gmm_unit:tiny", data={"domains": domains.names, "size": 32}, model={**SMALL, **chosen, **model})


class TestWithAttributes(TrainableContract):
    run = small()
    domains = FACES
    guides = ("attributes", "noise", "exemplar")

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _with_weights_of_vgg16(cls, vgg16_file: dict[str, str]) -> None:
        cls.run = small(vgg16=vgg16_file, keep_unchanged_attributes=True)


class TestBetweenDomains(TrainableContract):
    variant = True
    run = small(STREETS, attention=False)
    domains = STREETS
    guides = ("attributes", "noise", "exemplar")

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _with_weights_of_vgg16(cls, vgg16_file: dict[str, str]) -> None:
        cls.run = small(STREETS, attention=False, vgg16=vgg16_file)


@pytest.fixture
def model() -> GMMUNIT:
    return made(small(), FACES)


def made(run: Run, domains: Domains = FACES) -> GMMUNIT:
    model = build(run, domains)
    assert isinstance(model, GMMUNIT)
    return model


def step_of(run: Run, *names: str, domains: Domains = FACES, slots: range = range(2)) -> Step:
    return Step(noise_batches(run, domains, 2, slots), 0, Draws(0, 0), frozenset(names))


TRANSLATION = ("image_rec", "cyc_rec", "content_rec", "style_rec", "kl", "iso", "adv", "cls")
NETS = ("content_encoder", "style_encoder", "decoder")


@pytest.mark.parametrize("attention", [True, False])
def test_the_terms_are_their_equations(attention: bool) -> None:
    """By hand: labels, targets and draws are those of the step; the masks are mixed as section 3.3 and the docstring say."""
    run = small(attention=attention)
    model, step = made(run), step_of(run, *TRANSLATION)
    x, y = step.batches[0].images, wanted_of(model, step)
    own = step.batches[0].attributes
    assert own is not None
    own = own[:, [FACES.attributes.index(name) for name in CELEBA]]
    z, other = (mean_of(y) + 0.5 * noise(name, 10) for name in ("style", "second"))
    content, (s, logvar) = model.content_encoder(x), model.style_encoder(x)

    def drawn(c: Tensor, style: Tensor, background: Tensor) -> Tensor:
        picture, mask = model.decoder(c, style)
        assert (mask is not None) == attention
        mixed: Tensor = picture if mask is None else picture * mask + background * (1 - mask)
        return mixed

    fake = drawn(content, z, x)
    again = model.content_encoder(fake)
    read, read_other = model.style_encoder(fake).mean, model.style_encoder(drawn(content, other, x)).mean
    posterior = Independent(Normal(s, (logvar / 2).exp()), 1)
    prior = Independent(Normal(mean_of(own), torch.full_like(s, 0.5)), 1)
    verdicts = [(trunk(image), real, named) for image, trunk, real, named in scales(model.critic, fake)]
    expected = {
        "image_rec": l1(model.decoder(content, s)[0], x),
        "cyc_rec": l1(drawn(again, s, fake), x),
        "content_rec": l1(again, content),
        "style_rec": l1(read, z),
        "kl": kl_divergence(posterior, prior).mean(),
        "iso": ((z - other).abs().sum(1) - (read - read_other).abs().sum(1)).abs().mean(),
        "adv": sum((real(features) - 1).square().mean() for features, real, _ in verdicts),
        "cls": sum(surprise(named(features), y) for features, _, named in verdicts),
    }
    found = model.translation_terms(step)
    assert {name: float(term.detach()) for name, term in found.items()} == pytest.approx(
        {name: float(term.detach()) for name, term in expected.items()}, rel=1e-4
    )
    torch.testing.assert_close(step.cache["fakes"], fake)
    assert not step.cache["fakes"].requires_grad
    step.active = frozenset({"critic", "critic_cls"})
    judged = [(trunk(image), real, named) for image, trunk, real, named in scales(model.critic, x)]
    critic = sum((real(features) - 1).square().mean() for features, real, _ in judged)
    critic = critic + sum(real(features).square().mean() for features, real, _ in verdicts)
    cls = torch.stack([surprise(named(features), own) for features, _, named in judged]).sum()
    terms = {name: term.item() for name, term in model.critic_terms(step).items()}
    assert terms == pytest.approx({"critic": critic.item(), "critic_cls": cls.item()}, rel=1e-4)


def surprise(logits: Tensor, labels: Tensor) -> Tensor:
    density: Tensor = Bernoulli(logits=logits).log_prob(labels)  # type: ignore[no-untyped-call]
    return -density.sum(1).mean()


def l1(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).abs().mean()


def mean_of(y: Tensor, dims: int = 2) -> Tensor:
    return torch.cat([(2 * y[:, i : i + 1] - 1).expand(-1, dims) for i in range(y.shape[1])], dim=1)


def noise(name: str, size: int, domain: int = 0) -> Tensor:
    return torch.stack([torch.randn(size, generator=Draws(0, 0).generator(f"{name}/{domain}", slot)) for slot in (0, 1)])


def wanted_of(model: GMMUNIT, step: Step) -> Tensor:
    """The targets of the step, known to differ from the labels as they should."""
    task = model.task(step)
    assert task.own.shape == task.wanted.shape and (task.own != task.wanted).any(dim=1).all()
    return task.wanted


def scales(critic: AttributeCritic, image: Tensor) -> Iterator[tuple[Tensor, torch.nn.Module, torch.nn.Module, torch.nn.Module]]:
    for trunk, real, named in zip(critic.trunks, critic.real, critic.attributes, strict=True):
        yield image, trunk, real, named
        image = F.avg_pool2d(image, 3, stride=2, padding=1, count_include_pad=False)


@pytest.mark.parametrize(
    ("term", "reaches"),
    [
        ("image_rec", (True, True, True)),
        ("cyc_rec", (True, True, True)),
        ("content_rec", (True, False, True)),
        ("style_rec", (True, True, True)),
        ("kl", (False, True, False)),
        ("iso", (True, True, True)),
        ("adv", (True, False, True)),
        ("cls", (True, False, True)),
    ],
)
def test_what_a_term_trains(model: GMMUNIT, term: str, reaches: tuple[bool, ...]) -> None:
    loss = model.translation_terms(step_of(small(), term))[term]
    for net, reached in zip(NETS, reaches, strict=True):
        grads = torch.autograd.grad(loss, list(model.get_submodule(net).parameters()), allow_unused=True, retain_graph=True)
        assert (sum(float(grad.norm()) for grad in grads if grad is not None) > 0) == reached, net


def test_an_empty_mask_gives_back_no_picture_that_was_not_drawn(model: GMMUNIT) -> None:
    """With M = 0 a translation is the picture itself, and reconstruction still has to be drawn."""
    assert model.decoder.mask is not None
    convolution = model.decoder.mask[1]
    assert isinstance(convolution, torch.nn.Conv2d) and convolution.bias is not None
    torch.nn.init.zeros_(convolution.weight)
    torch.nn.init.constant_(convolution.bias, -1e4)
    step = step_of(small(), "image_rec", "cyc_rec", "adv")
    terms = model.translation_terms(step)
    assert torch.equal(step.cache["fakes"], step.batches[0].images)
    assert float(terms["image_rec"].detach()) > 0.1 and float(terms["cyc_rec"].detach()) == 0
    model.decode = background_is_ignored(model)  # type: ignore[method-assign]
    assert float(model.translation_terms(step)["cyc_rec"].detach()) > 0.1


def background_is_ignored(model: GMMUNIT) -> Any:
    """A decoder that draws everything in translations, and nothing in the cycle: the cycle then shows the fake."""

    def decode(content: Tensor, style: Tensor, background: Tensor | None = None) -> Drawing:
        drawing: Drawing = model.decoder(content, style)
        return drawing._replace(mask=None) if background is None else drawing._replace(images=background)

    return decode


def test_half_of_the_targets_keep_the_style_of_what_does_not_change() -> None:
    run = small(keep_unchanged_attributes=True)
    model, step = made(run), step_of(run, "style_rec", slots=range(200))
    task = model.task(step)
    own = torch.full((200, 10), 7.0, requires_grad=True)
    style = model.target_style(task, own)
    assert not style.requires_grad
    kept = (style == 7).view(200, 5, 2)
    assert torch.equal(kept.all(2), kept.any(2)) and torch.equal(kept.all(2), task.kept)
    assert not (kept.all(2) & (task.own != task.wanted)).any(), "an attribute that changes is drawn"
    whole = kept.all(2).any(1)
    assert torch.equal(kept.all(2)[whole], (task.own == task.wanted)[whole]) and 70 < int(whole.sum()) < 130
    drawn = model.target_style(model.task(replace(step, cache={})), own, draw=1)
    assert not torch.equal(drawn[~whole], style[~whole]) and torch.equal((drawn == 7).view(200, 5, 2), kept)
    assert not made(small()).task(step_of(small(), "kl", slots=range(20))).kept.any()


def test_the_pictures_of_all_domains_are_one_batch() -> None:
    run = small(STREETS)
    model, step = made(run, STREETS), step_of(run, "adv", domains=STREETS)
    task = model.task(step)
    assert task.own.tolist() == [[1, 0, 0]] * 2 + [[0, 1, 0]] * 2 + [[0, 0, 1]] * 2
    assert task.wanted.sum(1).tolist() == [1] * 6 and not (task.own * task.wanted).any()
    assert torch.equal(task.images, torch.cat([batch.images for batch in step.batches]))
    assert torch.equal(task.noise[0], torch.cat([noise("style", 6, domain) for domain in range(3)]))


def test_pictures_with_two_hair_colours_or_none_are_learnt_from_as_they_are(model: GMMUNIT) -> None:
    step = step_of(small(), "kl")
    labels = torch.tensor([[0.0, 1, 1, 0, 1, 0], [1, 0, 0, 0, 0, 1]])  # Smiling, Young, Black, Blond, Brown, Male
    step.batches = (replace(step.batches[0], attributes=labels),)
    task = model.task(step)
    assert task.own.tolist() == [[1, 0, 1, 0, 1], [0, 0, 0, 1, 0]]
    assert task.wanted[:, :3].sum(1).max() <= 1
    assert model.translation_terms(step)["kl"].isfinite()


def test_a_picture_of_which_an_attribute_is_not_known_is_named(model: GMMUNIT) -> None:
    step = step_of(small(), "kl")
    batch: Batch = step.batches[0]
    assert batch.attributes is not None
    batch.attributes[1, 0] = float("nan")  # smiling is no attribute of the style
    model.task(replace(step, cache={}))
    batch.attributes[1, 5] = float("nan")
    with pytest.raises(ValueError, match="nobody says whether picture 'faces-1' has Male; gmm_unit trains on pictures of which"):
        model.task(replace(step, cache={}))


def test_the_paper_preset_has_as_many_parameters_as_its_layer_table() -> None:
    """Table 8 and the released networks: a convolution from I to O channels has I * O * k^2 weights and O biases.

    The critic of the paper has four layers; the released one, which this is, five, 64-128-256-512-512.
    """

    def weights(inputs: int, outputs: int, kernel: int = 1) -> int:
        return inputs * outputs * kernel**2 + outputs

    with torch.device("meta"):
        model = GMMUNIT(preset("gmm_unit:paper").model, FACES)  # type: ignore[arg-type]
    stem = weights(3, 64, 7) + weights(64, 128, 4) + weights(128, 256, 4)
    blocks = 8 * weights(256, 256, 3)
    ups = weights(256, 128, 5) + 256 + weights(128, 64, 5) + 128
    trunk = weights(3, 64, 4) + weights(64, 128, 4) + weights(128, 256, 4) + weights(256, 512, 4) + weights(512, 512, 4)
    expected = {
        "content_encoder": stem + blocks,
        "style_encoder": stem + 2 * weights(256, 256, 4) + 2 * weights(256, 40),
        "decoder.mlp": weights(40, 256) + weights(256, 256) + weights(256, 4096),
        "decoder": 1_128_960 + blocks + ups + weights(64, 3, 7) + weights(64, 1, 7),
        "critic": 2 * (trunk + weights(512, 1)) + weights(512, 5, 4) + weights(512, 5, 2),
    }
    assert expected == {
        "content_encoder": 5_385_856,
        "style_encoder": 2_783_440,
        "decoder.mlp": 1_128_960,
        "decoder": 6_886_724,
        "critic": 13_954_956,
    }
    found = {net: sum(p.numel() for p in model.get_submodule(net).parameters()) for net in expected}
    assert found == expected


def test_the_classifier_is_the_released_one_at_its_size_and_works_at_others() -> None:
    critic = AttributeCritic(4, 5, 2, 5, 4).eval()
    at_128 = torch.rand(2, 3, 128, 128)
    features = critic.trunks[0](at_128)
    assert features.shape == (2, 32, 4, 4)
    convolution = critic.attributes[0][1]  # type: ignore[index]
    released = F.conv2d(features, convolution.weight, convolution.bias)
    verdict = critic(at_128)
    torch.testing.assert_close(verdict.attributes[0], released[:, :, 0, 0])
    assert [tuple(logits.shape) for logits in verdict.real] == [(2, 1, 4, 4), (2, 1, 2, 2)]
    for size in (64, 96, 256):
        verdict = critic(torch.rand(2, 3, size, size))
        assert [tuple(logits.shape) for logits in verdict.attributes] == [(2, 5), (2, 5)]


def test_the_guides_give_their_style(model: GMMUNIT) -> None:
    images, exemplar = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    eps = torch.randn(2, 10)
    y = torch.tensor([[0.0, 1, 0, 1, 0], [0.3, 0.7, 0, 0, 1]])

    def drawn(style: Tensor) -> Tensor:
        return model.decode(model.content(images), style, images).images

    def translated(**guide: Any) -> Tensor:
        return model.translate(images, 0, 0, Guide(**guide)).images

    torch.testing.assert_close(translated(attributes=y), drawn(mean_of(y)))
    torch.testing.assert_close(translated(attributes=y, noise=eps), drawn(mean_of(y) + 0.5 * eps))
    torch.testing.assert_close(translated(exemplar=exemplar), drawn(model.style(exemplar)))
    torch.testing.assert_close(translated(), drawn(model.style(images)))  # its own: a reconstruction
    read = model.read_attributes(images, 0)
    torch.testing.assert_close(translated(noise=eps), drawn(mean_of(read) + 0.5 * eps))
    for guide, says in (
        (Guide(exemplar=exemplar, attributes=y), "not both"),
        (Guide(noise=eps[:, :4]), r"\(2, 10\) here, not \(2, 4\)"),
        (Guide(attributes=y[:, :3]), r"\(B, 5\): Black_Hair, .*not \(2, 3\)"),
        (Guide(neighbours=images[:, None]), "does not take the guide 'neighbours'; it takes: attributes, noise, exemplar"),
    ):
        with pytest.raises(ValueError, match=says):
            model.translate(images, 0, 0, guide)


def test_without_noise_a_translation_may_keep_the_style_of_what_does_not_change() -> None:
    model = made(small(keep_unchanged_attributes=True))
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    own, read = model.style(images), model.read_attributes(images, 0)
    wanted = read.clone()
    wanted[0, 4] = 1 - wanted[0, 4]
    style = model.guided_style(images, 0, 0, Guide(attributes=wanted))
    assert torch.equal(style[:, :8], own[:, :8]) and torch.equal(style[:, 8:], mean_of(wanted)[:, 8:])
    assert torch.equal(made(small()).guided_style(images, 0, 0, Guide(attributes=wanted)), mean_of(wanted))


def test_a_domain_is_a_target_by_itself_or_as_an_attribute() -> None:
    model = made(small(STREETS), STREETS)
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    night = model.translate(images, 0, 1).images
    assert torch.equal(model.translate(images, 0, 0, Guide(attributes=torch.tensor([[0.0, 1, 0]]))).images, night)
    assert not torch.equal(model.translate(images, 0, 2).images, night)
    assert (model.style_attributes(), model.exclusive_attributes()) == (STREETS.names, (STREETS.names,))


def test_the_mask_says_what_was_drawn(model: GMMUNIT) -> None:
    pictures = torch.rand(2, 3, 30, 21) * 2 - 1
    answer = Pipeline(model)(pictures, "faces", guide=Guide(attributes=torch.tensor([[0.0, 1, 0, 0, 1]] * 2)))
    mask = answer.extras["mask"]
    assert mask.shape == (2, 1, 30, 21) and float(mask.min()) >= 0 and float(mask.max()) <= 1
    assert ((answer.images - pictures).abs() <= 2 * mask + 1e-5).all()  # what it leaves out is the picture's own
    assert made(small(attention=False)).translate(pictures[..., :20, :20], 0, 0).extras == {}


def test_a_mask_that_starts_low_starts_with_the_picture_itself() -> None:
    pictures = torch.rand(2, 3, 32, 32) * 2 - 1
    wanted = Guide(attributes=torch.tensor([[0.0, 1, 0, 1, 1], [1, 0, 0, 0, 0]]))
    change = []
    for bias in (0.0, -3.0):
        model = made(small(mask_bias=bias)).eval()
        change.append((model.translate(pictures, 0, 0, wanted).images - pictures).abs().mean().item())
    assert change[1] < 0.2 * change[0]  # sigmoid(-3) is .05, sigmoid(0) is .5


def test_it_reads_what_its_style_says(model: GMMUNIT) -> None:
    assert isinstance(model, AttributeWise)
    assert (model.style_attributes(), model.exclusive_attributes()) == (CELEBA, (CELEBA[:3],))
    images = torch.rand(8, 3, 32, 32) * 2 - 1
    read = model.read_attributes(images, 0)
    means = model.style(images).view(8, 5, 2).sum(2)
    assert torch.equal(read[:, 3:], (means[:, 3:] > 0).float())
    for row, mean in zip(read, means, strict=True):
        assert row[:3].tolist() == [float(mean[i] > 0 and mean[i] == mean[:3].max()) for i in range(3)]


@pytest.mark.parametrize(
    ("domains", "model", "says"),
    [
        (
            FACES,
            {"attributes": ("Male", "Yuong"), "exclusive": ()},
            r"no attribute 'Yuong'; did you mean 'Young'\?; known: .*Smiling",
        ),
        (
            FACES,
            {"attributes": ("Male", "Bald"), "exclusive": (("Male", "Bold"),)},
            r"exclusive has 'Bold', .*did you mean 'Bald'",
        ),
        (FACES, {"exclusive": (CELEBA[:2], CELEBA[1:3])}, "exclusive has 'Blond_Hair' twice"),
        (FACES, {"exclusive": (CELEBA[:1],)}, "at least two"),
        (FACES, {"attributes": ("Male", "Male"), "exclusive": ()}, "distinct names, not Male, Male"),
        (FACES, {"attributes": ()}, "translates between the domains of the data, which are faces only"),
        (Domains(("a", "b")), {"attributes": CELEBA}, "no attribute 'Black_Hair'; known: nothing"),
        (FACES, {"style_downs": 4}, "with downs 1 it is at most 3"),
    ],
)
def test_a_model_that_cannot_be_is_told(domains: Domains, model: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build(small(domains, **model), domains)


def test_domains_need_no_groups() -> None:
    run = overlay(small(), ["model.attributes=[]"])
    assert run.model.model_dump()["exclusive"] == () and made(run, STREETS).groups == ((0, 1, 2),)


def test_a_step_runs_in_bf16() -> None:
    trainer = Trainer(overlay(small(), {"engine.precision": "bf16"}), FACES, device="cpu")
    terms = trainer.update(noise_batches(trainer.run, FACES, 2, range(2)))
    assert all(term.isfinite() for term in terms.values())


def test_a_batch_of_one_and_pictures_of_the_smallest_size() -> None:
    trainer = Trainer(small(), FACES, device="cpu")
    assert all(term.isfinite() for term in trainer.update(noise_batches(trainer.run, FACES, 2, range(1))).values())
    answer = Pipeline(made(small()))(torch.rand(1, 3, 1, 3), "faces", guide=Guide(exemplar=torch.rand(1, 3, 5, 2)))
    assert answer.images.shape == (1, 3, 1, 3) and answer.images.isfinite().all()
