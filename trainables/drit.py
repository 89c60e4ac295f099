"""DRIT: diverse image-to-image translation via disentangled representations (Lee, Tseng, Huang, Singh, Yang; ECCV 2018).

Figure 3 in words: content encoders E_c, whose tail the domains share, map pictures of both domains into one content space,
where a content critic D_c cannot tell them apart; attribute encoders E_a map a picture to one short vector z of its domain.
Exchanging the vectors of two unpaired pictures and exchanging them back must give both pictures (the cross-cycle). A vector
drawn from N(0, 1) gives a random translation, and the generator G must keep it readable (latent regression).

    c = E_c(I) + n   z ~ E_a(I)   u = G_x(c_y, z_x)   v = G_y(c_x, z_y)   I_x^ = G_x(E_c(v) + n, E_a(u))   n ~ N(0, 1)

Legend: B pictures, C channels, h x w cells of the feature grid, Z style dimensions, x the domain of a picture, y the other.

Two forms, as released. `form = "concat"`: E_a answers with the mean and variance of a Gaussian, and G takes z by
concatenation before every stage. `form = "mlp"`, for changes of shape: E_a answers with z itself, kept small by an L2 term,
and an MLP turns z into one vector for each residual block of G.

Where this departs from the paper or from its released code, and why:
- Encoders and generators take one step with the sum of all gradients. The released code steps twice, the second time with the
  gradient of weights that the first step has changed, which torch has refused since 1.5. As there, the latent term reaches
  E_c and G and not E_a: E_a reads random translations with its parameters held.
- Any batch size: pictures are translated in pairs of their order, and both critics of a domain see all its pictures. In the
  released code the first of two pictures is translated and shown to one critic, the second only shown to the other.
- A style is drawn for each domain, where the released code uses the same draw for both.
- With mode seeking (DRIT++, off in the ECCV paper) the adversarial term is the mean over both random translations, not their
  sum; and the ratio is taken picture by picture, so that it does not depend on the batch. For one picture it is the same.
- The content critic pools its answer and has no 4x4 layer, so pictures from 64 px up work (the released one needs 216 px).
- `d_iter` counts iterations as the released code does: the content critic learns at each, everything else at every
  `d_iter`-th. So `engine.steps` is `d_iter` times the number of translators' updates.
- Without a guide the style is the running mean of the styles encoded in training; the released code draws one from N(0, 1). In a
  short training E_a's answers are far from that prior still, and z = 0 is a style that no picture has.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from recollect.batch import Domains, Guide, Translation
from recollect.config import Choice, ModelConfig, Range, Weights
from recollect.objective import Terms
from recollect.trainable import Part, Phase, Step, Translator, refuse
from trainables.parts.blocks import DownBlock, GlobalStyleEncoder, Mlp, ResBlock, TailSharingEncoder, conv, deconv, initialise
from trainables.parts.critics import ContentCritic, MultiScaleCritic, telling_apart, undecided
from trainables.parts.losses import Gan, adversarial, exact, l1
from trainables.parts.passes import Drawing, by_domain, in_one_pass

STYLE_RATE = 0.02  # of the running means
SMALLEST_EXEMPLAR = 16  # pixels: both forms of E_a halve four times and pad by reflection, which takes two cells


class DRITConfig(ModelConfig):
    """The networks. `width` is the channels at full resolution; each of `downs` halvings doubles them."""

    name: Literal["drit"] = "drit"
    form: Literal["concat", "mlp"] = "concat"
    width: Annotated[int, Field(ge=4), Choice((16, 24, 32), shape=True)] = 64
    downs: Annotated[int, Field(ge=1, le=3)] = 2
    content_blocks: Annotated[int, Field(ge=1)] = 4  # residual blocks of E_c; the last one is shared by the domains
    content_noise: Annotated[float, Field(ge=0), Range(0, 1)] = 1.0  # deviation of n, in training only
    style_dim: Annotated[int, Field(ge=1), Choice((4, 8, 16), shape=True)] = 8
    generator_blocks: Annotated[int, Field(ge=2)] = 4  # concat: the first one is shared by the domains
    critic_width: Annotated[int, Field(ge=4)] = 64
    critic_layers: Annotated[int, Field(ge=1)] = 4
    critic_scales: Annotated[int, Field(ge=1)] = 3
    gan: Gan = "bce"
    d_iter: Annotated[int, Field(ge=1), Range(1, 3)] = 3  # iterations of the content critic per iteration of all the rest
    init_std: float | None = 0.02  # None: Kaiming's


class DRITWeights(Weights):
    """The lambdas of the full objective by name; then those of the released code, of DRIT++, and the critics' own."""

    adv_content: Annotated[float, Range(0.1, 3, log=True)] = 1.0
    cyc_rec: Annotated[float, Range(3, 50, log=True)] = 10.0
    adv_domain: Annotated[float, Range(0.3, 3, log=True)] = 1.0
    self_rec: Annotated[float, Range(3, 30, log=True)] = 10.0
    latent: Annotated[float, Range(0.3, 10, log=True)] = 10.0
    kl: Annotated[float, Range(1e-3, 0.1, log=True)] = 0.01
    content_l2: Annotated[float, Range(1e-3, 0.1, log=True)] = 0.01
    mode_seeking: Annotated[float, Range(0.1, 3, log=True)] = 0.0
    critic_domain: float = 1.0
    critic_content: float = 1.0


class Posterior(NamedTuple):
    """What E_a says of a picture's style: a diagonal Gaussian, or (`logvar` None, the form `mlp`) the style itself."""

    mean: Tensor  # (B, Z)
    logvar: Tensor | None = None  # (B, Z)


class StyleEncoder(nn.Module):
    """E_a: a net per domain; no normalisation, which would erase the style."""

    def __init__(self, config: DRITConfig, domains: int) -> None:
        super().__init__()
        self.style_dim = config.style_dim
        self.nets = nn.ModuleList(
            _gaussian_encoder(config.width, config.style_dim)
            if config.form == "concat"
            else GlobalStyleEncoder(config.width, config.style_dim)
            for _ in range(domains)
        )

    def forward(self, images: Tensor, domain: int) -> Posterior:
        answer: Tensor = self.nets[domain](images).to(images.dtype)  # fp32 under autocast too: an exponential follows
        return Posterior(*answer.chunk(answer.shape[1] // self.style_dim, dim=1))


def _gaussian_encoder(width: int, style_dim: int) -> nn.Sequential:
    return nn.Sequential(
        conv(3, width, 4, 2),
        *(DownBlock(width * i, width * (i + 1)) for i in range(1, 4)),
        *(nn.LeakyReLU(0.2), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(width * 4, 2 * style_dim),
    )


class Generator(nn.Module):
    """G: content and style (B, Z) to a picture of a domain."""

    def forward(self, content: Tensor, style: Tensor, domain: int) -> Tensor:
        return self.together([content], [Drawing(0, style, domain)])[0]  # (B, 3, H, W)

    def together(self, contents: Sequence[Tensor], drawings: Sequence[Drawing]) -> list[Tensor]:
        """Several drawings of some contents: what domains share sees each content once, the rest runs in one pass a domain."""
        raise NotImplementedError


def _columns(contents: Sequence[Tensor], drawings: Sequence[Drawing]) -> tuple[list[int], list[Tensor], list[Tensor]]:
    """The domains, contents and styles of some drawings."""
    return (
        [drawing.domain for drawing in drawings],
        [contents[drawing.content] for drawing in drawings],
        [drawing.style for drawing in drawings],
    )


class ConcatGenerator(Generator):
    """G of the form `concat`: a shared block, then per domain blocks and upsamplings, z concatenated before each."""

    def __init__(self, config: DRITConfig, domains: int) -> None:
        super().__init__()
        top = config.width * 2**config.downs
        self.head = ResBlock(top)
        self.stages = nn.ModuleList(_concat_stages(config, top) for _ in range(domains))

    def together(self, contents: Sequence[Tensor], drawings: Sequence[Drawing]) -> list[Tensor]:
        heads = in_one_pass(self.head, contents)
        return by_domain(self.stages, *_columns(heads, drawings))


class ConcatStages(nn.ModuleList):
    """What belongs to one domain: the style concatenated to the features before every stage."""

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        for stage in self:
            tiled = style.to(x.dtype)[:, :, None, None].expand(-1, -1, *x.shape[-2:])
            x = stage(torch.cat([x, tiled], dim=1))
        return x.tanh()  # (B, 3, H, W)


def _concat_stages(config: DRITConfig, top: int) -> ConcatStages:
    channels = top + config.style_dim
    stages = ConcatStages([nn.Sequential(*(ResBlock(channels) for _ in range(config.generator_blocks - 1)))])
    for _ in range(config.downs):
        inputs = channels + config.style_dim
        channels = inputs // 2
        stages.append(deconv(inputs, channels, "layer"))
    stages.append(nn.Conv2d(channels + config.style_dim, 3, 1))
    return stages


class StyledResBlock(nn.Module):
    """A residual block that mixes one style vector into its features after each of two convolutions (MisINSResBlock)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv(channels, channels, norm="instance") for _ in range(2))
        self.mixers = nn.ModuleList(
            nn.Sequential(conv(2 * channels, 2 * channels, 1, act=nn.ReLU()), conv(2 * channels, channels, 1, act=nn.ReLU()))
            for _ in range(2)
        )

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        tiled = vector.to(x.dtype)[:, :, None, None].expand(-1, -1, *x.shape[-2:])
        hidden = x
        for layer, mixer in zip(self.convs, self.mixers, strict=True):
            hidden = mixer(torch.cat([layer(hidden), tiled], dim=1))
        return x + hidden


class MlpGenerator(Generator):
    """G of the form `mlp`: per domain an MLP that makes a vector for each block from z, the blocks, and the upsamplings."""

    def __init__(self, config: DRITConfig, domains: int) -> None:
        super().__init__()
        top, count = config.width * 2**config.downs, config.generator_blocks
        self.mlps = nn.ModuleList(Mlp(config.style_dim, top, count * top) for _ in range(domains))
        self.blocks = nn.ModuleList(nn.ModuleList(StyledResBlock(top) for _ in range(count)) for _ in range(domains))
        sizes = [top // 2**i for i in range(config.downs + 1)]
        self.tails = nn.ModuleList(
            nn.Sequential(
                *(deconv(a, b, "layer") for a, b in zip(sizes, sizes[1:], strict=False)), nn.Conv2d(config.width, 3, 1), nn.Tanh()
            )
            for _ in range(domains)
        )

    def together(self, contents: Sequence[Tensor], drawings: Sequence[Drawing]) -> list[Tensor]:
        nets = [partial(self._picture, domain=domain) for domain in range(len(self.tails))]
        return by_domain(nets, *_columns(contents, drawings))

    def _picture(self, content: Tensor, style: Tensor, domain: int) -> Tensor:
        blocks = list(self.blocks[domain])  # type: ignore[call-overload]
        x = content
        for block, vector in zip(blocks, self.mlps[domain](style).chunk(len(blocks), dim=1), strict=True):
            x = block(x, vector)
        picture: Tensor = self.tails[domain](x)
        return picture  # (B, 3, H, W)


class DomainCritics(nn.Module):
    """D: for each domain one multi-scale patch critic of translations with encoded styles and one of those with random styles."""

    def __init__(self, config: DRITConfig, domains: int) -> None:
        super().__init__()
        size = (config.critic_width, config.critic_layers, config.critic_scales)
        self.encoded = nn.ModuleList(MultiScaleCritic(*size) for _ in range(domains))
        self.random = nn.ModuleList(MultiScaleCritic(*size) for _ in range(domains))

    def forward(self, images: Tensor, domain: int, random: bool) -> list[Tensor]:
        logits: list[Tensor] = (self.random if random else self.encoded)[domain](images)
        return logits


class DRIT(Translator):
    """Translation between two domains by a shared content and a short style vector.

    Args:
        config: the networks.
        domains: two domain names; classes are not used.

    Raises ValueError for another number of domains. Everything obeys the ranks rule: no term joins samples.
    """

    Config = DRITConfig
    Weights = DRITWeights
    domains_most = 2
    config: DRITConfig
    mean_style: Tensor
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {  # 64 px, trains on a CPU in minutes; the size and the settings of mguit:tiny
            "data": {"size": 64},
            "model": {
                "width": 16,
                "downs": 1,
                "content_blocks": 3,
                "generator_blocks": 3,
                "gan": "lsgan",
                "critic_width": 24,
                "critic_layers": 3,
                "critic_scales": 2,
                "d_iter": 1,
                "init_std": None,
            },
            "optimisers": {"default": {"lr": 2e-3, "hold": 0.5}, "content_critic": {"lr": 4e-4, "hold": 0.5}},
            "engine": {"steps": 1000, "batch_size": 2, "ema": 0.99},
        },
        "paper": {
            "data": {"size": 216, "short_side": 256},
            "optimisers": {"default": {"lr": 1e-4, "hold": 0.5}, "content_critic": {"lr": 4e-5, "hold": 0.5}},
            "engine": {"steps": 1_500_000, "batch_size": 1},
        },
        "released": {  # what the repository trains by default, which by then was DRIT++
            "data": {"size": 216, "short_side": 256},
            "weights": {"mode_seeking": 1.0},
            "optimisers": {"default": {"lr": 1e-4, "hold": 0.5}, "content_critic": {"lr": 4e-5, "hold": 0.5}},
            "engine": {"steps": 1_500_000, "batch_size": 1},
        },
    }

    def __init__(self, config: DRITConfig, domains: Domains) -> None:
        super().__init__(config, domains)
        count = len(domains.names)
        self.content_encoder = TailSharingEncoder(config.width, config.downs, config.content_blocks, count)
        self.style_encoder = StyleEncoder(config, count)
        self.generator: Generator = {"concat": ConcatGenerator, "mlp": MlpGenerator}[config.form](config, count)
        self.domain_critic = DomainCritics(config, count)
        self.content_critic = ContentCritic(config.width * 2**config.downs, count)
        self.register_buffer("mean_style", torch.zeros(count, config.style_dim))  # running means of E_a's answers
        for net in self.children():
            initialise(net, config.init_std)
        if config.init_std is not None:
            for layer in self.modules():
                if isinstance(layer, nn.Linear):  # as released; at 0.02 the MLP's three layers would all but mute z
                    layer.reset_parameters()

    @property
    def stride(self) -> int:
        return int(2**self.config.downs)

    def phases(self) -> tuple[Phase, ...]:
        every, translators = self.config.d_iter, ("content_encoder", "style_encoder", "generator")
        return (
            Phase("translate", (Part(translators, self.translation_terms),), every),
            Phase("criticise_pictures", (Part(("domain_critic",), self.domain_critic_terms),), every),
            Phase("criticise_content", (Part(("content_critic",), self.content_critic_terms),), clip=5.0),
        )

    def translation_terms(self, step: Step) -> Terms:
        """The terms of encoders and generators, summed over the domains."""
        images = [batch.images for batch in step.batches]
        assert len(images[0]) == len(images[1]), "pictures are translated in pairs"
        contents = self._contents(images, (0, 1), step, "content")
        styles: list[Posterior] = [self.style_encoder(image, x) for x, image in enumerate(images)]
        codes = [self._sample(style, x, step, "style") for x, style in enumerate(styles)]
        random = [self._random_styles(x, step) for x in (0, 1)]
        drawn = self._drawings(contents, codes, random, step)
        terms = {name: images[0].new_zeros(()) for name in TRANSLATION_TERMS if step.wants(name)}
        for x in (0, 1):
            if step.wants("self_rec"):
                terms["self_rec"] += l1(drawn[x]["own"], images[x])
            if step.wants("adv_domain"):
                terms["adv_domain"] += self._fooled(drawn[x]["encoded"], x, random=False)
                terms["adv_domain"] += self._fooled(_random_pictures(drawn[x]), x, random=True)
            if step.wants("adv_content"):
                terms["adv_content"] += undecided(self.content_critic(contents[x]))
            if step.wants("kl"):
                terms["kl"] += kl(styles[x])
            if step.wants("content_l2"):
                terms["content_l2"] += contents[x].square().mean()
            if step.wants("latent"):
                read: Posterior = held(self.style_encoder, drawn[x]["random"], x)
                terms["latent"] += l1(read.mean, random[x][0])
            if step.wants("mode_seeking"):
                terms["mode_seeking"] += mode_seeking(drawn[x]["random"], drawn[x]["again"], *random[x])
        if step.wants("cyc_rec"):
            terms["cyc_rec"] += self._cross_cycle(images, [pictures["encoded"] for pictures in drawn], step)
        step.cache["fakes"] = [{name: fake.detach() for name, fake in pictures.items()} for pictures in drawn]
        step.cache["contents"] = [content.detach() for content in contents]
        step.cache["styles"] = [style.mean.detach() for style in styles]
        return terms

    def domain_critic_terms(self, step: Step) -> Terms:
        """Critics tell pictures from translations: one those with encoded styles, the other those with random ones."""
        if not step.wants("critic_domain"):
            return {}
        loss = step.batches[0].images.new_zeros(())
        for x, batch in enumerate(step.batches):
            fakes = step.cache["fakes"][x]
            for random, pictures in ((False, fakes["encoded"]), (True, _random_pictures(fakes))):
                critic = partial(self.domain_critic, domain=x, random=random)
                loss = loss + telling_apart(critic, batch.images, pictures, self.config.gan)
        return {"critic_domain": loss}

    def content_critic_terms(self, step: Step) -> Terms:
        """The content critic tells which domain a content comes from; it learns also where nothing else does."""
        if not step.wants("critic_content"):
            return {}
        if "contents" not in step.cache:
            with torch.no_grad():
                images = [batch.images for batch in step.batches]
                step.cache["contents"] = self._contents(images, (0, 1), step, "content")
        losses = [
            F.cross_entropy(exact(self.content_critic(content)), torch.full((len(content),), x, device=content.device))
            for x, content in enumerate(step.cache["contents"])
        ]
        return {"critic_content": torch.stack(losses).sum()}

    def after_step(self, step: Step) -> None:
        """Follow the mean style of each domain; not in an iteration that trains the content critic alone."""
        if "styles" in step.cache:
            own = [torch.cat([styles.sum(0), torch.ones_like(styles[0, :1]) * len(styles)]) for styles in step.cache["styles"]]
            total = step.reduce(torch.stack(own))  # (2, Z + 1): sums, and how many pictures
            self.mean_style.lerp_((total[:, :-1] / total[:, -1:]).to(self.mean_style.dtype), STYLE_RATE)

    def translate(self, images: Tensor, source: int, target: int, guide: Guide = Guide()) -> Translation:
        """Translation with the style that `guide` gives: noise (B, Z), the mean style of an exemplar, or (no guide) the
        target's mean style.

        Raises ValueError for other guides, for noise of another shape, and for exemplars under 16 px.
        """
        style = self._guided_style(images, target, guide)
        return Translation(self.generator(self.content_encoder(images, source), style, target), {})

    def sample_guide(self, target: int, generators: Sequence[torch.Generator]) -> Guide:
        """Standard normal styles: noise (B, Z)."""
        return Guide(noise=torch.stack([torch.randn(self.config.style_dim, generator=generator) for generator in generators]))

    def _guided_style(self, images: Tensor, target: int, guide: Guide) -> Tensor:
        refuse(guide, ("noise", "exemplar"), "drit")
        if guide.noise is not None and guide.exemplar is not None:
            raise ValueError("drit takes noise or an exemplar, not both")
        shape = (images.shape[0], self.config.style_dim)
        if guide.noise is not None:
            if tuple(guide.noise.shape) != shape:
                raise ValueError(f"drit's noise is {shape}, one style a picture, not {tuple(guide.noise.shape)}")
            return guide.noise.to(images)
        if guide.exemplar is not None:
            if min(guide.exemplar.shape[-2:]) < SMALLEST_EXEMPLAR:
                height, width = guide.exemplar.shape[-2:]
                raise ValueError(f"an exemplar has at least {SMALLEST_EXEMPLAR} px a side, not {height} x {width}")
            read: Posterior = self.style_encoder(guide.exemplar.to(images), target)
            return read.mean
        return self.mean_style[target].to(images).expand(shape)

    def _contents(self, images: Sequence[Tensor], domains: Sequence[int], step: Step, name: str) -> list[Tensor]:
        """The contents with the noise of training; `name` tells the draws of a step apart."""
        contents = self.content_encoder.together(images, domains)
        return [self._with_noise(content, domain, step, name) for content, domain in zip(contents, domains, strict=True)]

    def _with_noise(self, content: Tensor, domain: int, step: Step, name: str) -> Tensor:
        if not self.config.content_noise:
            return content
        noise = step.draws.normal(f"{name}/{domain}", step.batches[domain].slots, tuple(content.shape[1:]), content)
        return content + self.config.content_noise * noise

    def _sample(self, style: Posterior, domain: int, step: Step, name: str) -> Tensor:
        """A style (B, Z) drawn from the posterior, differentiably; the style itself where there is none."""
        if style.logvar is None:
            return style.mean
        noise = step.draws.normal(f"{name}/{domain}", step.batches[domain].slots, (self.config.style_dim,), style.mean)
        return style.mean + noise * (style.logvar / 2).exp()

    def _random_styles(self, domain: int, step: Step) -> tuple[Tensor, Tensor]:
        """Two styles (B, Z) from the prior for pictures of a domain; the second is for mode seeking."""
        batch = step.batches[domain]
        one, other = (
            step.draws.normal(f"{name}/{domain}", batch.slots, (self.config.style_dim,), batch.images)
            for name in ("random", "again")
        )
        return one, other

    def _drawings(
        self, contents: list[Tensor], codes: list[Tensor], random: list[tuple[Tensor, Tensor]], step: Step
    ) -> list[dict[str, Tensor]]:
        """What is first drawn in each domain, by name, all of it together."""
        jobs: dict[tuple[int, str], Drawing] = {}
        for y in (0, 1):
            x = 1 - y
            jobs[y, "encoded"] = Drawing(x, codes[y], y)
            if step.wants("self_rec"):
                jobs[y, "own"] = Drawing(y, codes[y], y)
            if step.wants("adv_domain", "critic_domain", "latent", "mode_seeking"):
                jobs[y, "random"] = Drawing(x, random[y][0], y)
            if step.wants("mode_seeking"):
                jobs[y, "again"] = Drawing(x, random[y][1], y)
        drawn: list[dict[str, Tensor]] = [{}, {}]
        for (y, name), picture in zip(jobs, self.generator.together(contents, list(jobs.values())), strict=True):
            drawn[y][name] = picture
        return drawn

    def _cross_cycle(self, images: list[Tensor], fakes: list[Tensor], step: Step) -> Tensor:
        """Exchange the styles of the translations back: L1 to the pictures they come from (section 3.2)."""
        of_one, of_other = self._contents(fakes, (0, 1), step, "content again")  # what is drawn in one shows the other's picture
        codes = [self._sample(self.style_encoder(fake, x), x, step, "style again") for x, fake in enumerate(fakes)]
        drawings = [Drawing(x, code, x) for x, code in enumerate(codes)]
        pictures = self.generator.together([of_other, of_one], drawings)
        return torch.stack([l1(picture, image) for picture, image in zip(pictures, images, strict=True)]).sum()

    def _fooled(self, fakes: Tensor, domain: int, random: bool) -> Tensor:
        return adversarial(self.domain_critic(fakes, domain, random), 1.0, self.config.gan)


TRANSLATION_TERMS = ("adv_content", "cyc_rec", "adv_domain", "self_rec", "latent", "kl", "content_l2", "mode_seeking")


def _random_pictures(drawn: dict[str, Tensor]) -> Tensor:
    return torch.cat([drawn[name] for name in ("random", "again") if name in drawn])


def kl(style: Posterior) -> Tensor:
    """KL of N(mean, exp(logvar)) from N(0, 1), summed over dimensions; without a posterior DRIT's L2 form, the mean square.

    >>> kl(Posterior(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2)))  # mean^2 / 2 at unit variance
    tensor(0.5000)
    """
    if style.logvar is None:
        return style.mean.square().mean()
    return (style.mean.square() + style.logvar.exp() - 1 - style.logvar).sum(dim=1).mean() / 2


def mode_seeking(one: Tensor, other: Tensor, style: Tensor, other_style: Tensor) -> Tensor:
    """The regulariser of Mao et al. 2019: how little pictures (B, 3, H, W) differ for the distance of their styles (B, Z).

    >>> mode_seeking(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.5), torch.zeros(1, 8), torch.ones(1, 8))
    tensor(2.0000)
    """
    apart = (one.to(style.dtype) - other).abs().mean(dim=(1, 2, 3))  # (B,)
    ratio = apart / (style - other_style).abs().mean(dim=1)
    return (1 / (ratio + 1e-5)).mean()


def held(net: nn.Module, *inputs: Any) -> Any:
    """`net(*inputs)` with a gradient for the inputs and none for the net's parameters.

    >>> layer, x = nn.Linear(2, 1), torch.ones(1, 2, requires_grad=True)
    >>> torch.autograd.grad(held(layer, x).sum(), [x, layer.weight], allow_unused=True)[1] is None
    True
    """
    return functional_call(net, {name: parameter.detach() for name, parameter in net.named_parameters()}, inputs)
