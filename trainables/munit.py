"""MUNIT: multimodal unsupervised image-to-image translation (Huang, Liu, Belongie, Kautz; ECCV 2018).

Figures 2 and 3 in words: every domain has an auto-encoder. Its content encoder E_c keeps the picture's grid, its style encoder
E_s boils the picture down to a short vector, and its decoder G draws the content with that style: a perceptron turns the style
into shift and scale of the decoder's instance norms (AdaIN). A picture is translated by drawing its content with a style of the
other domain: a random one, z ~ N(0, I), or the one of an example.

    c = E_c(I)   s = E_s(I)   z ~ N(0, 1)   I~ = G_y(c, z)   with   E_c(I~) = c,  E_s(I~) = z,  G_x(c, s) = I

Legend: B pictures, C channels, h x w cells of the content, S style dimensions, x the domain of a picture, y the other.

Where this departs from the paper or from its released code, and why:
- One draw of the styles and one set of translations serves both updates of a step; the released code draws and translates twice.
- Layer norm in the decoder divides by the plain deviation and starts as the identity (released: the unbiased one plus epsilon,
  with gains drawn from [0, 1]).
- The rate is held for the first tenth of the steps and then falls linearly to zero; the released code halves it every tenth.
- Without a guide, a translation has the prior's mean as its style, so that it is one picture and not a draw.
- The perceptual loss (`perceptual`, off; the released code turns it on for street scenes at 512 px) takes torchvision's VGG16.
- `tiny` has the style-augmented cycle on (`cyc_rec`; proposition 4: useful for some data sets), as released for street scenes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from recollect.batch import Domains, Guide, Translation
from recollect.config import Choice, ModelConfig, Range, Weights
from recollect.objective import Terms
from recollect.pretrained import WeightsFile
from recollect.trainable import Part, Phase, Step, Translator, refuse
from trainables.parts.blocks import AdaINResBlock, GlobalStyleEncoder, Mlp, content_layers, initialise, picture_layers
from trainables.parts.critics import DomainCritics, telling_apart
from trainables.parts.losses import Gan, adversarial, l1
from trainables.parts.passes import in_one_pass
from trainables.parts.perceptual import Perceptual


class MUNITConfig(ModelConfig):
    """The networks. `width` is the channels at full resolution; each of `downs` halvings doubles them."""

    name: Literal["munit"] = "munit"
    width: Annotated[int, Field(ge=4), Choice((16, 24, 32), shape=True)] = 64
    downs: Annotated[int, Field(ge=1, le=3)] = 2  # of the content; the style encoder has two more
    content_blocks: Annotated[int, Field(ge=1)] = 4
    generator_blocks: Annotated[int, Field(ge=1)] = 4
    style_dim: Annotated[int, Field(ge=1), Choice((4, 8, 16), shape=True)] = 8
    mlp_width: Annotated[int, Field(ge=1)] = 256
    critic_width: Annotated[int, Field(ge=4)] = 64
    critic_layers: Annotated[int, Field(ge=1)] = 4
    critic_scales: Annotated[int, Field(ge=1)] = 3
    gan: Gan = "lsgan"
    init_std: float | None = None  # None: Kaiming's
    critic_init_std: float | None = 0.02
    vgg16: WeightsFile = WeightsFile()  # read where `perceptual` has a weight


class MUNITWeights(Weights):
    """The lambdas of eq. 5, the two terms that are options (proposition 4, section 5.1), and the critics' own term."""

    self_rec: Annotated[float, Range(3, 30, log=True)] = 10.0
    style_rec: Annotated[float, Range(0.3, 10, log=True)] = 1.0
    content_rec: Annotated[float, Range(0.1, 10, log=True)] = 1.0
    adv_domain: Annotated[float, Range(0.3, 3, log=True)] = 1.0
    cyc_rec: Annotated[float, Range(3, 30, log=True)] = 0.0
    perceptual: Annotated[float, Range(0.1, 3, log=True)] = 0.0
    critic_domain: float = 1.0


class ContentEncoder(nn.Module):
    """E_c, one a domain."""

    def __init__(self, config: MUNITConfig, domains: int) -> None:
        super().__init__()
        self.nets = nn.ModuleList(content_layers(config.width, config.downs, config.content_blocks) for _ in range(domains))

    def forward(self, images: Tensor, domain: int) -> Tensor:
        content: Tensor = self.nets[domain](images)
        return content  # (B, C, h, w)


class StyleEncoder(nn.Module):
    """E_s, one a domain."""

    def __init__(self, config: MUNITConfig, domains: int) -> None:
        super().__init__()
        self.nets = nn.ModuleList(GlobalStyleEncoder(config.width, config.style_dim, config.downs + 2) for _ in range(domains))

    def forward(self, images: Tensor, domain: int) -> Tensor:
        style: Tensor = self.nets[domain](images)
        return style  # (B, S)


class Decoder(nn.Module):
    """G of one domain: AdaIN residual blocks, whose parameters a perceptron makes of the style, then doublings."""

    def __init__(self, config: MUNITConfig) -> None:
        super().__init__()
        top, blocks = config.width * 2**config.downs, config.generator_blocks
        self.mlp = Mlp(config.style_dim, config.mlp_width, 4 * top * blocks)
        self.blocks = nn.ModuleList(AdaINResBlock(top) for _ in range(blocks))
        self.picture = picture_layers(config.width, config.downs)

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        x = content
        for block, parameters in zip(self.blocks, self.mlp(style).chunk(len(self.blocks), dim=1), strict=True):
            x = block(x, parameters)
        picture: Tensor = self.picture(x)
        return picture  # (B, 3, H, W)


class Generator(nn.Module):
    """G, one a domain."""

    def __init__(self, config: MUNITConfig, domains: int) -> None:
        super().__init__()
        self.nets = nn.ModuleList(Decoder(config) for _ in range(domains))

    def forward(self, content: Tensor, style: Tensor, domain: int) -> Tensor:
        picture: Tensor = self.nets[domain](content, style)
        return picture


class MUNIT(Translator):
    """Translation between two domains with a style that is drawn or taken from an example.

    Args:
        config: the networks, and where the weights of the perceptual loss are.
        domains: two domain names; box classes are not used.

    Everything obeys `step.reduce`: nothing joins samples.
    """

    Config = MUNITConfig
    Weights = MUNITWeights
    domains_most = 2
    config: MUNITConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {  # 64 px, trains on a CPU in minutes; the size of mguit:tiny
            "data": {"size": 64},
            "model": {
                "width": 16,
                "downs": 1,
                "content_blocks": 3,
                "generator_blocks": 3,
                "mlp_width": 64,
                "critic_width": 24,
                "critic_layers": 3,
                "critic_scales": 2,
                "critic_init_std": None,
            },
            "weights": {"cyc_rec": 10.0},
            "optimisers": {"default": {"lr": 2e-3, "hold": 0.5}},
            "engine": {"steps": 1000, "batch_size": 2, "ema": 0.99},
        },
        "paper": {  # as released; add weights.cyc_rec=10 and weights.perceptual=1 for street scenes at 512 px, as there
            "data": {"size": 256, "short_side": 256},
            "optimisers": {"default": {"lr": 1e-4, "halve_every": 100_000}},
            "engine": {"steps": 1_000_000, "batch_size": 1},
        },
    }

    def __init__(self, config: MUNITConfig, domains: Domains) -> None:
        super().__init__(config, domains)
        count = len(domains.names)
        self.content_encoder = ContentEncoder(config, count)
        self.style_encoder = StyleEncoder(config, count)
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
            Phase("translate", (Part(("content_encoder", "style_encoder", "generator"), self.translation_terms),)),
            Phase("criticise", (Part(("domain_critic",), self.critic_terms),)),
        )

    def translation_terms(self, step: Step) -> Terms:
        """Eq. 5 and its two options for encoders and generators."""
        images = [batch.images for batch in step.batches]
        contents = [self.content_encoder(image, x) for x, image in enumerate(images)]
        terms = {name: images[0].new_zeros(()) for name in TRANSLATION_TERMS if step.wants(name)}
        read = step.wants("self_rec", "cyc_rec")
        styles = [self.style_encoder(image, x) if read else None for x, image in enumerate(images)]
        random = {y: self._random_style(step, y) for y in (1, 0)}
        drawn = {y: self._first_translation(step, contents, styles, random[y], y) for y in (1, 0)}
        for x, y in ((0, 1), (1, 0)):
            image, content, own, fake = images[x], contents[x], styles[x], drawn[y]["fake"]
            if step.wants("self_rec"):
                terms["self_rec"] += l1(drawn[x]["own"], image)  # eq. 1
            if step.wants("style_rec"):
                terms["style_rec"] += l1(self.style_encoder(fake, y), random[y])  # eq. 3
            if step.wants("content_rec", "cyc_rec"):
                again = self.content_encoder(fake, y)
                if step.wants("content_rec"):
                    terms["content_rec"] += l1(again, content)  # eq. 2
                if step.wants("cyc_rec"):
                    terms["cyc_rec"] += l1(self.generator(again, own, x), image)  # proposition 4: with its own style
            if step.wants("adv_domain"):
                terms["adv_domain"] += adversarial(self.domain_critic(fake, y), 1.0, self.config.gan)  # eq. 4
            if step.wants("perceptual"):
                terms["perceptual"] += self.perceptual(fake, image)
        step.cache["fakes"] = {domain: pictures["fake"].detach() for domain, pictures in drawn.items()}
        return terms

    def _random_style(self, step: Step, y: int) -> Tensor:
        """The styles (B, S) of domain y that the other domain's pictures are drawn with."""
        batch = step.batches[1 - y]
        return step.draws.normal(f"style/{y}", batch.slots, (self.config.style_dim,), batch.images)

    def _first_translation(
        self, step: Step, contents: Sequence[Tensor], styles: Sequence[Tensor | None], random: Tensor, y: int
    ) -> dict[str, Tensor]:
        """What the step needs of G_y at first, by name, drawn in one pass."""
        jobs, own = {"fake": (contents[1 - y], random)}, styles[y]
        if step.wants("self_rec"):
            assert own is not None, "who reconstructs has read the style"
            jobs["own"] = (contents[y], own)
        columns = zip(*jobs.values(), strict=True)
        return dict(zip(jobs, in_one_pass(partial(self.generator, domain=y), *columns), strict=True))

    def critic_terms(self, step: Step) -> Terms:
        """Critics tell pictures from translations with random styles."""
        if not step.wants("critic_domain"):
            return {}
        loss = step.batches[0].images.new_zeros(())
        for x, batch in enumerate(step.batches):
            critic = partial(self.domain_critic, domain=x)
            loss = loss + telling_apart(critic, batch.images, step.cache["fakes"][x], self.config.gan)  # eq. 4
        return {"critic_domain": loss}

    def translate(self, images: Tensor, source: int, target: int, guide: Guide = Guide()) -> Translation:
        """The content of the pictures in a style: the noise (B, S), that of the exemplar, or without a guide the prior's mean."""
        refuse(guide, ("noise", "exemplar"), "munit")
        if guide.noise is not None and guide.exemplar is not None:
            raise ValueError("munit takes noise or an exemplar, not both")
        content = self.content_encoder(images, source)
        style = content.new_zeros(images.shape[0], self.config.style_dim)
        if guide.exemplar is not None:
            style = self.style_encoder(guide.exemplar, target)
        if guide.noise is not None:
            if guide.noise.shape[-1:] != style.shape[-1:]:
                raise ValueError(f"munit's noise is (B, {self.config.style_dim}), not {tuple(guide.noise.shape)}")
            style = guide.noise.to(style)
        return Translation(self.generator(content, style, target), {})

    def sample_guide(self, target: int, generators: Sequence[torch.Generator]) -> Guide:
        """A style z ~ N(0, I) a picture: noise (B, S)."""
        return Guide(noise=torch.stack([torch.randn(self.config.style_dim, generator=generator) for generator in generators]))


TRANSLATION_TERMS = ("self_rec", "style_rec", "content_rec", "adv_domain", "cyc_rec", "perceptual")
