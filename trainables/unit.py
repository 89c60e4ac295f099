"""UNIT: unsupervised image-to-image translation networks (Liu, Breuel, Kautz; NIPS 2017).

Figure 1 in words: two variational auto-encoders share their latent space. The encoder E of a domain gives the mean of a unit
Gaussian over a latent grid; the decoder G of a domain draws a picture from a sample of it. What E of one domain encoded, G of
the other can draw: that is the translation, and it has to come back.

    h = E_x(I)   z ~ N(h, 1)   I = G_x(z)   I~ = G_y(z)   z~ ~ N(E_y(I~), 1)   I = G_x(z~)

Legend: B pictures, C channels, h x w cells of the latent grid, x the domain of a picture, y the other.

Where this departs from the paper or from its released code, and why:
- The networks, critics and weights are those of the released code (its second version, which shares them with MUNIT): least
  squares instead of cross-entropy for the critics. Its weights are the paper's, divided by the paper's 10 for the critics.
- The two domains share the last residual block of the encoders and the first of the decoders, as the paper asks; the released
  code shares nothing (`shared_blocks=0`, preset `released`).
- Only the released code has a perceptual loss. Preset `released` has it at 1 and needs the weights of VGG16 (`model.vgg16`).
- One set of translations serves both updates of a step; the released code translates twice.
- Layer norm in the decoder divides by the plain deviation and starts as the identity (released: the unbiased one plus epsilon,
  with gains drawn from [0, 1]).
- The rate is held for the first tenth of the steps and then falls linearly to zero; the released code halves it every tenth.
- The paper translates a sample z; the released code translates the mean. Here a translation is of the mean, and `noise` makes it
  a sample: the only variety that the model has, and little of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from recollect.batch import Domains, Guide, Translation
from recollect.config import Choice, ModelConfig, Range, Weights
from recollect.objective import Terms
from recollect.pretrained import WeightsFile
from recollect.trainable import Part, Phase, Step, Translator, refuse
from trainables.parts.blocks import ResBlock, content_layers, initialise, picture_layers
from trainables.parts.critics import DomainCritics, telling_apart
from trainables.parts.losses import Gan, adversarial, exact, l1
from trainables.parts.passes import by_domain, in_one_pass
from trainables.parts.perceptual import Perceptual

NOISE_CELLS = 64  # a side of the noise that `sample_guide` draws: the latent grid of 256 pixels at stride 4


class UNITConfig(ModelConfig):
    """The networks. `width` is the channels at full resolution; each of `downs` halvings doubles them."""

    name: Literal["unit"] = "unit"
    width: Annotated[int, Field(ge=4), Choice((16, 24, 32), shape=True)] = 64
    downs: Annotated[int, Field(ge=1, le=3)] = 2
    encoder_blocks: Annotated[int, Field(ge=1)] = 4
    generator_blocks: Annotated[int, Field(ge=1)] = 4
    shared_blocks: Annotated[int, Field(ge=0)] = 1  # of the residual blocks: the last of E and the first of G; released: 0
    critic_width: Annotated[int, Field(ge=4)] = 64
    critic_layers: Annotated[int, Field(ge=1)] = 4
    critic_scales: Annotated[int, Field(ge=1)] = 3
    gan: Gan = "lsgan"
    init_std: float | None = None  # None: Kaiming's
    critic_init_std: float | None = 0.02
    vgg16: WeightsFile = WeightsFile()  # read where `perceptual` has a weight

    @model_validator(mode="after")
    def _enough_blocks(self) -> Self:
        most = min(self.encoder_blocks, self.generator_blocks)
        if self.shared_blocks > most:
            raise ValueError(f"shared_blocks is {self.shared_blocks}; there are {most} blocks to share")
        return self


class UNITWeights(Weights):
    """The lambdas of eqs. 3-5 over that of the critics, the released code's perceptual term, and the critics' own term."""

    self_rec: Annotated[float, Range(3, 30, log=True)] = 10.0
    kl: Annotated[float, Range(1e-3, 0.1, log=True)] = 0.01
    cyc_rec: Annotated[float, Range(3, 30, log=True)] = 10.0
    cyc_kl: Annotated[float, Range(1e-3, 0.1, log=True)] = 0.01
    adv_domain: Annotated[float, Range(0.3, 3, log=True)] = 1.0
    perceptual: Annotated[float, Range(0.1, 3, log=True)] = 0.0
    critic_domain: float = 1.0


class Encoder(nn.Module):
    """E: a trunk per domain and a tail that the domains share; the mean of a Gaussian with unit variance."""

    def __init__(self, config: UNITConfig, domains: int) -> None:
        super().__init__()
        top, own = config.width * 2**config.downs, config.encoder_blocks - config.shared_blocks
        self.trunks = nn.ModuleList(content_layers(config.width, config.downs, own) for _ in range(domains))
        self.tail = nn.Sequential(*(ResBlock(top) for _ in range(config.shared_blocks)))

    def forward(self, images: Tensor, domain: int) -> Tensor:
        return self.together([images], [domain])[0]  # (B, C, h, w)

    def together(self, images: Sequence[Tensor], domains: Sequence[int]) -> list[Tensor]:
        """The means of pictures of several domains, with one pass through what they share."""
        trunks = by_domain(self.trunks, domains, images)
        return in_one_pass(self.tail, trunks) if len(self.tail) else trunks


class Generator(nn.Module):
    """G: a head that the domains share, then residual blocks and doublings per domain."""

    def __init__(self, config: UNITConfig, domains: int) -> None:
        super().__init__()
        top, own = config.width * 2**config.downs, config.generator_blocks - config.shared_blocks
        self.head = nn.Sequential(*(ResBlock(top) for _ in range(config.shared_blocks)))
        self.nets = nn.ModuleList(
            nn.Sequential(*(ResBlock(top) for _ in range(own)), picture_layers(config.width, config.downs))
            for _ in range(domains)
        )

    def forward(self, latent: Tensor, domain: int) -> Tensor:
        return self.together([latent], [domain])[0]  # (B, 3, H, W)

    def together(self, latents: Sequence[Tensor], domains: Sequence[int]) -> list[Tensor]:
        """The pictures of several latents, each in its domain; one pass a net, one through what they share."""
        heads = in_one_pass(self.head, latents) if len(self.head) else list(latents)
        return by_domain(self.nets, domains, heads)


class UNIT(Translator):
    """Translation between two domains through a shared latent space.

    Args:
        config: the networks, and where the weights of the perceptual loss are.
        domains: two domain names; box classes are not used.

    Everything obeys `step.reduce`: nothing joins samples.
    """

    Config = UNITConfig
    Weights = UNITWeights
    domains_most = 2
    config: UNITConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {  # 64 px, trains on a CPU in minutes; the size of mguit:tiny
            "data": {"size": 64},
            "model": {
                "width": 16,
                "downs": 1,
                "encoder_blocks": 3,
                "generator_blocks": 3,
                "critic_width": 24,
                "critic_layers": 3,
                "critic_scales": 2,
                "critic_init_std": None,
            },
            "optimisers": {"default": {"lr": 1e-3, "hold": 0.5}},
            "engine": {"steps": 1000, "batch_size": 2, "ema": 0.99},
        },
        "paper": {  # shared weights and no perceptual loss, as printed; the other numbers as released
            "data": {"size": 256, "short_side": 256},
            "optimisers": {"default": {"lr": 1e-4, "halve_every": 100_000}},
            "engine": {"steps": 1_000_000, "batch_size": 1},
        },
        "released": {  # needs model.vgg16.path and model.vgg16.sha256, or weights.perceptual=0
            "data": {"size": 256, "short_side": 256},
            "model": {"shared_blocks": 0},
            "weights": {"perceptual": 1.0},
            "optimisers": {"default": {"lr": 1e-4, "halve_every": 100_000}},
            "engine": {"steps": 1_000_000, "batch_size": 1},
        },
    }

    def __init__(self, config: UNITConfig, domains: Domains) -> None:
        super().__init__(config, domains)
        count = len(domains.names)
        self.encoder = Encoder(config, count)
        self.generator = Generator(config, count)
        self.domain_critic = DomainCritics(config.critic_width, config.critic_layers, config.critic_scales, count)
        for name, net in self.named_children():
            initialise(net, config.critic_init_std if name == "domain_critic" else config.init_std)
        self.perceptual = Perceptual(config.vgg16)

    @property
    def stride(self) -> int:
        return int(2**self.config.downs)

    def phases(self) -> tuple[Phase, ...]:
        return (
            Phase("translate", (Part(("encoder", "generator"), self.translation_terms),)),
            Phase("criticise", (Part(("domain_critic",), self.critic_terms),)),
        )

    def translation_terms(self, step: Step) -> Terms:
        """Eqs. 3-5 for encoders and generators."""
        images = [batch.images for batch in step.batches]
        terms = {name: images[0].new_zeros(()) for name in TRANSLATION_TERMS if step.wants(name)}
        means = self.encoder.together(images, (0, 1))
        latents = [self._sample(mean, step, x, "latent") for x, mean in enumerate(means)]
        wanted = [(0, 1), (1, 0), *([(0, 0), (1, 1)] if step.wants("self_rec") else [])]  # whose picture, drawn in which domain
        pictures = self.generator.together([latents[x] for x, _ in wanted], [y for _, y in wanted])
        drawn = dict(zip(wanted, pictures, strict=True))
        if step.wants("cyc_rec", "cyc_kl"):
            self._back(step, terms, drawn[0, 1], drawn[1, 0])
        for x, y in ((0, 1), (1, 0)):
            image, fake = images[x], drawn[x, y]
            if step.wants("self_rec"):
                terms["self_rec"] += l1(drawn[x, x], image)  # eq. 3
            if step.wants("kl"):
                terms["kl"] += mean_square(means[x])  # eq. 3
            if step.wants("adv_domain"):
                terms["adv_domain"] += adversarial(self.domain_critic(fake, y), 1.0, self.config.gan)  # eq. 4
            if step.wants("perceptual"):
                terms["perceptual"] += self.perceptual(fake, image)
        step.cache["fakes"] = {1: drawn[0, 1].detach(), 0: drawn[1, 0].detach()}
        return terms

    def _back(self, step: Step, terms: Terms, *fakes: Tensor) -> None:
        """The translations of both domains' pictures encoded again, and drawn back."""
        again = self.encoder.together(fakes, (1, 0))
        if step.wants("cyc_kl"):
            for mean in again:
                terms["cyc_kl"] += mean_square(mean)  # eq. 5
        if step.wants("cyc_rec"):
            latents = [self._sample(mean, step, x, "cycle") for x, mean in enumerate(again)]
            for batch, picture in zip(step.batches, self.generator.together(latents, (0, 1)), strict=True):
                terms["cyc_rec"] += l1(picture, batch.images)  # eq. 5

    def critic_terms(self, step: Step) -> Terms:
        """Critics tell pictures from translations."""
        if not step.wants("critic_domain"):
            return {}
        loss = step.batches[0].images.new_zeros(())
        for x, batch in enumerate(step.batches):
            critic = partial(self.domain_critic, domain=x)
            loss = loss + telling_apart(critic, batch.images, step.cache["fakes"][x], self.config.gan)  # eq. 4
        return {"critic_domain": loss}

    def translate(self, images: Tensor, source: int, target: int, guide: Guide = Guide()) -> Translation:
        """The pictures of the latent means; with noise (B, C, rows, columns) those of mean + noise.

        Noise that is larger than the latent grid is cut, smaller noise is repeated over it.
        """
        refuse(guide, ("noise",), "unit")
        latent = self.encoder(images, source)
        if guide.noise is not None:
            if guide.noise.ndim != 4 or guide.noise.shape[1] != latent.shape[1]:
                raise ValueError(f"unit's noise is (B, {latent.shape[1]}, rows, columns), not {tuple(guide.noise.shape)}")
            latent = latent + tiled(guide.noise.to(latent), latent)
        return Translation(self.generator(latent, target), {})

    def sample_guide(self, target: int, generators: Sequence[torch.Generator]) -> Guide:
        """The latent noise of a picture of any size: (B, C, 64, 64), repeated where the latent grid is larger."""
        shape = (self.config.width * 2**self.config.downs, NOISE_CELLS, NOISE_CELLS)
        return Guide(noise=torch.stack([torch.randn(shape, generator=generator) for generator in generators]))

    def _sample(self, mean: Tensor, step: Step, domain: int, name: str) -> Tensor:
        return mean + step.draws.normal(f"{name}/{domain}", step.batches[domain].slots, tuple(mean.shape[1:]), mean)


TRANSLATION_TERMS = ("self_rec", "kl", "cyc_rec", "cyc_kl", "adv_domain", "perceptual")


def tiled(noise: Tensor, like: Tensor) -> Tensor:
    """`noise` repeated and cut to the height and width of `like`.

    >>> tiled(torch.tensor([[[[1.0, 2.0]]]]), torch.zeros(1, 1, 2, 3))
    tensor([[[[1., 2., 1.],
              [1., 2., 1.]]]])
    """
    height, width = like.shape[-2:]
    rows, columns = ((size + side - 1) // side for size, side in zip((height, width), noise.shape[-2:], strict=True))
    return noise.repeat(1, 1, rows, columns)[..., :height, :width]


def mean_square(mean: Tensor) -> Tensor:
    """The divergence of N(mean, 1) from N(0, 1) per latent number, times 2, as the released code counts it; fp32 or better."""
    return exact(mean).square().mean()
