"""MGUIT: memory-guided unsupervised image-to-image translation (Jeong, Kim, Lee, Sohn; CVPR 2021).

Figure 2 in words: content encoders E_c and style encoders E_s split a picture into a content map c, shared by the domains,
and a style map s. While training, a class-aware memory is written with (c, s) of every class, found by its boxes. The content
of a picture then reads, pixel by pixel, a style of the domain that is wanted, and the generator G of that domain draws the
picture. At test time the memory is read without classes, so no boxes and no detector are needed.

    c = E_c(I)   s = E_s(I)   M <- write(c, s | class)   s^ = read(M, c, domain)   I^ = G(c, s^)

Legend: B pictures, C channels, h x w cells of the feature grid, N items, D = 2 domains, x the domain of a picture, y the other.

Where this departs from the paper or from its released code, and why:
- The write of the step is built differentiably and read at once (`order = "update-read"`), so that content AND style encoders
  receive image gradients; `after_step` commits the detached result. The released code detaches all reads, and its style
  encoder never sees an image gradient.
- Contents and the styles that are written are L2-normalised per pixel, matching the unit keys and values of eq. 6.
- The content critic pools its answer, so pictures from 64 px up work (the released one needs 216 px).
- `fusion = "modulate"` (preset `tiny`) lets the style map scale and shift instance-normalised features instead of being
  concatenated, which small networks learn to use sooner.
- `memory.own_style` (preset `tiny`): self and cycle reconstruction read the values that the picture itself shows, class by
  class, as DRIT and MUNIT reconstruct with the picture's own style. From a memory that moves slowly, nothing of the picture's
  own style can be had, and the generator learns to do without.
- `memory.random_spread` (preset `tiny`): random values lie around the stored ones. Drawn anywhere on the sphere they have no
  class, must look real all the same, and so teach the generator that values do not tell classes.
- `share_generator` (preset `tiny`): no layer of the generator belongs to a domain, so that only values say which is wanted.
- `memory.use` and `contrast` are the arms of the ablation (Table 4).
- The random SELF decodings of the released code enter no loss and are not computed; the noise on the content is off by
  default (at its released size it is 1.6 times the signal).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from recollect.batch import Domains, Guide, Translation
from recollect.config import Choice, Frozen, ModelConfig, Range, Weights
from recollect.objective import Terms
from recollect.trainable import Part, Phase, Step, Translator, refuse
from trainables.parts.blocks import (
    DoublingConv,
    DownBlock,
    ModulatedResBlock,
    Modulation,
    ResBlock,
    TailSharingEncoder,
    conv,
    deconv,
    initialise,
    resize_to,
)
from trainables.parts.critics import ContentCritic, MultiScaleCritic, telling_apart, undecided
from trainables.parts.losses import Gan, adversarial, class_counts, exact, l1, memory_contrast, memory_triplet, nearest_items
from trainables.parts.memory import ClassAwareMemory, MemoryState, unit
from trainables.parts.passes import Drawing, by_domain, in_one_pass

ItemCount = Annotated[int, Field(ge=1), Range(2, 12, shape=True)]


class Memory(Frozen):
    """The memory of section 3.2. Items per class in the order of the store's classes; INIT has 10, 5, 3, 2."""

    use: Literal["none", "single", "class-aware"] = "class-aware"  # single: the same items for all classes; none: pooled styles
    items_per_class: dict[str, ItemCount] = {"background": 10, "car": 5, "person": 3, "sign": 2}
    value_dim: Annotated[int, Field(ge=1), Choice((16, 32, 64), shape=True)] = 256
    read_temperature: Annotated[float, Field(gt=0), Range(0.02, 1, log=True)] = 0.1
    update_temperature: Annotated[float, Field(gt=0), Range(0.03, 1, log=True)] = 0.1
    contrast_temperature: Annotated[float, Field(gt=0), Range(0.05, 0.5, log=True)] = 0.1  # tau of eq. 8; not given in the paper
    assignment: Literal["hard", "soft"] = "hard"
    update_rate: Annotated[float, Range(0.02, 0.5, log=True)] | None = 0.1  # None: the plain sum of eq. 6
    order: Literal["update-read", "read-update"] = "update-read"
    detach: Literal["none", "released"] = "none"  # released: reads pass no gradient
    own_style: bool = False  # self and cycle reconstruction read the values that the picture itself shows, not the stored ones
    random_spread: Annotated[float, Field(gt=0), Range(0.2, 3, log=True)] | None = None  # random values: None: anywhere on the
    # sphere, as in the paper; else normalise(stored + spread * noise), so that a random car style is still a car's
    revive_after: Annotated[int, Field(ge=1)] | None = None  # writes of its class without a share, then an item starts anew


class MGUITConfig(ModelConfig):
    """The networks. `width` is the channels at full resolution; each of `downs` halvings doubles them."""

    name: Literal["mguit"] = "mguit"
    width: Annotated[int, Field(ge=4), Choice((16, 24, 32), shape=True)] = 64
    downs: Annotated[int, Field(ge=1, le=3)] = 2
    content_blocks: Annotated[int, Field(ge=1)] = 4  # residual blocks of E_c; the last one is shared by the domains
    generator_blocks: Annotated[int, Field(ge=1)] = 4
    style_norm: Literal["none", "instance"] = "none"  # instance: as released; it erases part of the style it should carry
    fusion: Literal["concat", "modulate"] = "concat"
    share_generator: bool = False  # one set of upsampling layers for both domains: only the values say which domain is wanted
    contrast: Literal["none", "triplet", "nce"] = "nce"  # con_k and con_v: eq. 8, or the triplet of its ablation (Table 4)
    content_noise: Annotated[float, Field(ge=0)] = 0.0
    critic_width: Annotated[int, Field(ge=4)] = 64
    critic_layers: Annotated[int, Field(ge=1)] = 4
    critic_scales: Annotated[int, Field(ge=1)] = 3
    gan: Gan = "bce"
    init_std: float | None = 0.02  # None: Kaiming's
    memory: Memory = Memory()

    def suited_to(self, classes: tuple[str, ...]) -> Self:
        """The memory restricted to the store's classes, with three items for a class it did not know."""
        known = self.memory.items_per_class
        return self.model_copy(
            update={"memory": self.memory.model_copy(update={"items_per_class": {name: known.get(name, 3) for name in classes}})}
        )

    def reads_classes(self) -> bool:
        return self.memory.use == "class-aware" and len(self.memory.items_per_class) > 1


class MGUITWeights(Weights):
    """The lambdas of eq. 9 by name, those of DRIT for the translation terms; then the critics' own terms."""

    self_rec: Annotated[float, Range(3, 30, log=True)] = 10.0
    cyc_rec: Annotated[float, Range(3, 50, log=True)] = 10.0
    adv_content: Annotated[float, Range(0.03, 3, log=True)] = 1.0
    adv_domain: Annotated[float, Range(0.3, 3, log=True)] = 1.0
    # kl keeps the raw style's norm bounded, no more: styles are L2-normalised wherever they are used.
    kl: Annotated[float, Range(1e-3, 0.1, log=True)] = 0.01
    latent: Annotated[float, Range(0.3, 10, log=True)] = 10.0
    con_k: Annotated[float, Range(0.1, 10, log=True)] = 1.0
    con_v: Annotated[float, Range(0.1, 2, log=True)] = 0.5
    content_rec: Annotated[float, Range(0.1, 10, log=True)] = 0.0  # only in the released code, at 1
    critic_domain: float = 1.0
    critic_content: float = 1.0


class ContentEncoder(TailSharingEncoder):
    """E_c: a trunk per domain and a shared tail; content is L2-normalised per pixel, so that c . k is the cosine of eq. 3."""

    def together(self, images: Sequence[Tensor], domains: Sequence[int]) -> list[Tensor]:
        return [unit(content) for content in super().together(images, domains)]  # (B, C, h, w) each


class StyleEncoder(nn.Module):
    """E_s: a spatial style map per domain, on the grid of the content."""

    def __init__(self, config: MGUITConfig, domains: int) -> None:
        super().__init__()
        width, value_dim, norm = config.width, config.memory.value_dim, config.style_norm
        self.nets = nn.ModuleList(
            nn.Sequential(
                nn.ReflectionPad2d((1, 2, 1, 2)),
                nn.Conv2d(3, width, 4),
                *(DownBlock(width * (1 if i == 0 else 2), width * 2, norm=norm) for i in range(config.downs)),
                # released: a LeakyReLU follows, which keeps directions of styles out of most of the sphere
                DownBlock(width * 2, value_dim, down=False, norm=norm),
            )
            for _ in range(domains)
        )

    def forward(self, images: Tensor, domain: int) -> Tensor:
        style: Tensor = self.nets[domain](images)
        return style  # (B, value_dim, h, w)


class Generator(nn.Module):
    """G: content and style map to a picture of a domain."""

    def forward(self, content: Tensor, style: Tensor, domain: int) -> Tensor:
        return self.together([content], [Drawing(0, style, domain)])[0]  # (B, 3, H, W)

    def together(self, contents: Sequence[Tensor], drawings: Sequence[Drawing]) -> list[Tensor]:
        """Several drawings from some contents: each content is prepared once, and all go through what they share in one pass."""
        raise NotImplementedError


class ConcatGenerator(Generator):
    """As in DRIT: the style map is concatenated to the features before every stage."""

    def __init__(self, config: MGUITConfig, domains: int) -> None:
        super().__init__()
        top, style = config.width * 2**config.downs, config.memory.value_dim
        channels = top + style
        self.head = ResBlock(top)
        self.blocks = nn.Sequential(*(ResBlock(channels) for _ in range(config.generator_blocks - 1)))
        self.ups = nn.ModuleList()
        for i in range(config.downs):
            inputs, channels = channels + style, (channels + style) // 2
            count = 1 if i == 0 or config.share_generator else domains  # the first upsampling always serves all domains
            self.ups.append(nn.ModuleList(deconv(inputs, channels, "layer") for _ in range(count)))
        self.last = nn.ModuleList(nn.Conv2d(channels + style, 3, 1) for _ in range(1 if config.share_generator else domains))

    def together(self, contents: Sequence[Tensor], drawings: Sequence[Drawing]) -> list[Tensor]:
        heads = in_one_pass(self.head, contents)
        styles = [drawing.style for drawing in drawings]
        joined = [torch.cat([heads[drawing.content], drawing.style], dim=1) for drawing in drawings]
        found = in_one_pass(self.blocks, joined)
        for stage in [*self.ups, self.last]:
            inputs = [torch.cat([x, resize_to(style, x)], dim=1) for x, style in zip(found, styles, strict=True)]
            found = by_domain(stage, [drawing.domain for drawing in drawings], inputs)
        return [picture.tanh() for picture in found]  # (B, 3, H, W) each


class ModulatedGenerator(Generator):
    """The instance norms take scale and shift from the style map; upsampling and output are per domain."""

    def __init__(self, config: MGUITConfig, domains: int) -> None:
        super().__init__()
        top, style = config.width * 2**config.downs, config.memory.value_dim
        self.blocks = nn.ModuleList(ModulatedResBlock(top, style) for _ in range(config.generator_blocks))
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for _ in range(1 if config.share_generator else domains):
            sizes = [top // 2**i for i in range(config.downs + 1)]
            self.convs.append(nn.ModuleList(DoublingConv(a, b, 3) for a, b in zip(sizes, sizes[1:], strict=False)))
            self.norms.append(nn.ModuleList(Modulation(b, style) for b in sizes[1:]))
        self.last = nn.ModuleList(conv(config.width, 3, 5) for _ in range(len(self.convs)))

    def together(self, contents: Sequence[Tensor], drawings: Sequence[Drawing]) -> list[Tensor]:
        x = torch.cat([contents[drawing.content] for drawing in drawings])
        x = x * x.shape[1] ** 0.5  # unit-norm content back to unit variance
        style, sizes = torch.cat([drawing.style for drawing in drawings]), [drawing.style.shape[0] for drawing in drawings]
        for block in self.blocks:
            x = block(x, style)
        owner = [min(drawing.domain, len(self.last) - 1) for drawing in drawings]
        pieces = list(zip(x.split_with_sizes(sizes), style.split_with_sizes(sizes), strict=True))
        found: dict[int, Tensor] = {}
        for index in dict.fromkeys(owner):
            mine = [place for place, other in enumerate(owner) if other == index]
            y, own = (torch.cat(parts) for parts in zip(*(pieces[place] for place in mine), strict=True))
            for layer, norm in zip(self.convs[index], self.norms[index], strict=True):  # type: ignore[call-overload]
                y = F.leaky_relu(norm(layer(y), own), 0.2)
            pictures = self.last[index](y).tanh().split_with_sizes([sizes[place] for place in mine])
            found |= zip(mine, pictures, strict=True)
        return [found[place] for place in range(len(drawings))]  # (B, 3, H, W) each


class DomainCritics(nn.Module):
    """D: one multi-scale patch critic per domain."""

    def __init__(self, config: MGUITConfig, domains: int) -> None:
        super().__init__()
        self.nets = nn.ModuleList(
            MultiScaleCritic(config.critic_width, config.critic_layers, config.critic_scales) for _ in range(domains)
        )

    def forward(self, images: Tensor, domain: int) -> list[Tensor]:
        logits: list[Tensor] = self.nets[domain](images)
        return logits


class MGUIT(Translator):
    """Memory-guided translation between two domains.

    Args:
        config: the networks and the memory.
        domains: two domain names, and the box classes for which `memory.items_per_class` has an entry each.

    Raises ValueError where the classes of configuration and data do not match. Everything obeys `step.reduce`; the only thing
    that joins samples is the memory.
    """

    Config = MGUITConfig
    Weights = MGUITWeights
    domains_most = 2
    config: MGUITConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {  # 64 px, trains on a CPU in minutes; stride 2, because a sign would be a single cell at stride 4
            "data": {"size": 64},
            "model": {
                "width": 16,
                "downs": 1,
                "content_blocks": 3,
                "generator_blocks": 3,
                "fusion": "modulate",
                "gan": "lsgan",
                "critic_width": 24,
                "critic_layers": 3,
                "critic_scales": 2,
                "init_std": None,
                "share_generator": True,
                "memory": {
                    "value_dim": 32,
                    "own_style": True,
                    "random_spread": 1.0,
                    "read_temperature": 0.05,
                    "contrast_temperature": 0.2,
                },
            },
            # con_k finds the small classes, con_v makes the generator use the values: at 0.1 exchanging them costs 8 %, not 50 %
            "weights": {"latent": 1.0, "adv_content": 0.1, "con_k": 5.0},
            "optimisers": {"default": {"lr": 2e-3, "hold": 0.5}, "content_critic": {"lr": 4e-4, "hold": 0.5}},
            "engine": {"steps": 1000, "batch_size": 2, "ema": 0.99},
        },
        "paper": {  # as printed; its literal memory collapses, which `model.memory.assignment=hard` and the like undo
            "data": {"size": 360, "short_side": 360},
            "model": {
                "init_std": 0.001,
                "memory": {"assignment": "soft", "read_temperature": 1.0, "update_temperature": 1.0, "update_rate": None},
            },
            "optimisers": {"default": {"lr": 1e-4, "betas": (0.9, 0.999), "hold": 0.5}},
            "engine": {"steps": 500_000, "batch_size": 1},
        },
        "released": {  # the released code's settings where ours has them; its box, eq. 8 and dead-item defects are not repeated
            "data": {"size": 360, "short_side": 360},
            "model": {
                "style_norm": "instance",
                "content_noise": 0.1,
                "memory": {"value_dim": 128, "read_temperature": 1.0, "update_rate": 0.5, "detach": "released"},
            },
            "weights": {"cyc_rec": 50.0, "latent": 0.0, "con_k": 0.1, "con_v": 0.1, "content_rec": 1.0},
            "optimisers": {"default": {"lr": 1e-4, "hold": 0.5}, "content_critic": {"lr": 4e-5, "hold": 0.5}},
            "engine": {"steps": 500_000, "batch_size": 1},
        },
    }

    def __init__(self, config: MGUITConfig, domains: Domains) -> None:
        super().__init__(config, domains)
        items = config.memory.items_per_class
        if set(items) != set(domains.classes):
            raise ValueError(
                f"memory.items_per_class has {', '.join(items)}; the data has the classes {', '.join(domains.classes)}. "
                "Give every class of the data its number of items, and no other"
            )
        memory, count = config.memory, len(domains.names)
        if memory.use == "none" and config.contrast != "none":
            raise ValueError("without a memory (memory.use=none) there is nothing to contrast with; set model.contrast=none")
        self.content_encoder = ContentEncoder(config.width, config.downs, config.content_blocks, count)
        self.style_encoder = StyleEncoder(config, count)
        self.generator: Generator = {"concat": ConcatGenerator, "modulate": ModulatedGenerator}[config.fusion](config, count)
        self.domain_critic = DomainCritics(config, count)
        self.content_critic = ContentCritic(config.width * 2**config.downs, count)
        self.memory = ClassAwareMemory(
            {name: items[name] for name in domains.classes} if memory.use == "class-aware" else {"all": self._undivided(config)},
            key_dim=config.width * 2**config.downs,
            value_dim=memory.value_dim,
            num_domains=count,
            read_temperature=memory.read_temperature,
            update_temperature=memory.update_temperature,
            assignment=memory.assignment,
            update_rate=memory.update_rate,
        )
        for net in self.children():
            initialise(net, config.init_std)

    @staticmethod
    def _undivided(config: MGUITConfig) -> int:
        """The items of a memory without classes: as many as all classes have, or the one place of a pooled style."""
        return sum(config.memory.items_per_class.values()) if config.memory.use == "single" else 1

    @property
    def stride(self) -> int:
        return int(2**self.config.downs)

    def phases(self) -> tuple[Phase, ...]:
        translators = ("content_encoder", "style_encoder", "generator")
        return (
            Phase("translate", (Part(translators, self.translation_terms),)),
            Phase("criticise_pictures", (Part(("domain_critic",), self.domain_critic_terms),)),
            Phase("criticise_content", (Part(("content_critic",), self.content_critic_terms),), clip=5.0),  # as DRIT clips it
        )

    def translation_terms(self, step: Step) -> Terms:
        """All eight terms of eq. 9 for encoders and generators."""
        images = [batch.images for batch in step.batches]
        classes = [self._classes(batch.classes, image) for batch, image in zip(step.batches, images, strict=True)]
        counted = self._counted(step, classes)  # before anything that costs: parts of a batch are asked for it first
        contents = self.content_encoder.together(images, (0, 1))
        styles = [self.style_encoder(image, x) for x, image in enumerate(images)]
        written = self.memory.update(contents, [unit(s) for s in styles], classes, step.reduce)
        state = written if self.config.memory.order == "update-read" else self.memory.stored()
        terms = {name: images[0].new_zeros(()) for name in self._translation_terms() if step.wants(name)}
        own = [self._own_values(*row) for row in zip(contents, styles, (0, 1), classes, strict=True)]
        noisy = [self._with_noise(content, step, x) for x, content in enumerate(contents)]
        read = [self.memory.address(*row, state) for row in zip(contents, classes, strict=True)]
        random = {y: self._random_values(step, step.batches[1 - y].slots, y, state) for y in (1, 0)}
        drawn = self._drawings(step, noisy, read, state, own, random)
        fakes: list[list[Tensor]] = [[], []]
        for x, y in ((0, 1), (1, 0)):
            if step.wants("self_rec"):
                terms["self_rec"] += l1(drawn["self", x], images[x])  # eq. 7
            if step.wants("latent"):
                terms["latent"] += self._latent_error(drawn["random", y], y, read[x], random[y])
            fakes[y] = [drawn[kind, y] for kind in ("cross", "random") if (kind, y) in drawn]
        if step.wants("cyc_rec", "content_rec"):
            self._back(step, terms, [fakes[1][0], fakes[0][0]], contents, classes, state, own)
        for x in (0, 1):
            if step.wants("adv_domain"):
                terms["adv_domain"] += adversarial(self.domain_critic(torch.cat(fakes[x]), x), 1.0, self.config.gan)
            if step.wants("adv_content"):
                terms["adv_content"] += undecided(self.content_critic(contents[x]))
            if step.wants("kl"):
                terms["kl"] += styles[x].square().mean()  # style maps without variances: DRIT's L2 form
            self._contrast(step, terms, contents[x], styles[x], classes[x], state, x, counted)
        step.cache["written"] = MemoryState(*(item.detach() for item in written))
        step.cache["fakes"] = [torch.cat(fake).detach() for fake in fakes]
        step.cache["contents"] = [content.detach() for content in contents]
        if self.config.memory.revive_after is not None:
            step.cache["written_from"] = [styles[x].detach() for x in (0, 1)], classes
        return terms

    def _drawings(
        self,
        step: Step,
        contents: Sequence[Tensor],
        read: Sequence[Tensor],
        state: MemoryState,
        own: Sequence[Tensor | None],
        random: Mapping[int, Tensor],
    ) -> dict[tuple[str, int], Tensor]:
        """What is drawn of the step's pictures, in one pass, by kind and by the domain it is drawn in.

        `self` of the domain's own pictures; `cross` of the other domain's, with what the memory has; `random` with drawn values.
        """
        wanted: dict[tuple[str, int], Drawing] = {}

        def want(kind: str, x: int, y: int, values: Tensor | None) -> None:
            style = self._passed(self.memory.recall(read[x], y, state, values))
            wanted[kind, y] = Drawing(x, style.to(contents[x].dtype), y)

        for x, y in ((0, 1), (1, 0)):
            if step.wants("self_rec"):
                want("self", x, x, own[x])
            want("cross", x, y, own[y] if self.config.memory.use == "none" else None)  # eq. 1
            if step.wants("latent", "adv_domain"):
                want("random", x, y, random[y])
        return dict(zip(wanted, self.generator.together(contents, list(wanted.values())), strict=True))

    def _back(
        self,
        step: Step,
        terms: Terms,
        fakes: Sequence[Tensor],
        contents: Sequence[Tensor],
        classes: Sequence[Tensor],
        state: MemoryState,
        own: Sequence[Tensor | None],
    ) -> None:
        """The translations of both domains' pictures encoded again, and drawn back."""
        again = self.content_encoder.together(fakes, (1, 0))
        if step.wants("content_rec"):
            for x in (0, 1):
                terms["content_rec"] += l1(again[x], contents[x].detach())
        if step.wants("cyc_rec"):
            noisy = [self._with_noise(content, step, x) for x, content in enumerate(again)]
            drawings = []
            for x in (0, 1):
                style = self.memory.read(again[x], x, classes[x], state, own[x])[0]
                drawings.append(Drawing(x, self._passed(style).to(again[x].dtype), x))
            for x, picture in enumerate(self.generator.together(noisy, drawings)):
                terms["cyc_rec"] += l1(picture, step.batches[x].images)  # eq. 7

    def domain_critic_terms(self, step: Step) -> Terms:
        """Critics tell pictures from translations, whether the style was remembered or random."""
        if not step.wants("critic_domain"):
            return {}
        loss = step.batches[0].images.new_zeros(())
        for x, batch in enumerate(step.batches):
            critic = partial(self.domain_critic, domain=x)
            loss = loss + telling_apart(critic, batch.images, step.cache["fakes"][x], self.config.gan)
        return {"critic_domain": loss}

    def content_critic_terms(self, step: Step) -> Terms:
        """The content critic tells which domain a content map comes from."""
        if not step.wants("critic_content"):
            return {}
        losses = [
            F.cross_entropy(exact(self.content_critic(content)), torch.full((len(content),), x, device=content.device))
            for x, content in enumerate(step.cache["contents"])
        ]
        return {"critic_content": torch.stack(losses).mean()}

    def after_step(self, step: Step) -> None:
        """Commit the step's write to the memory; start anew what has been idle for too long."""
        written, after, anew = step.cache["written"], self.config.memory.revive_after, []
        if after is not None:
            idle = (self.memory.idle_after(written) >= after).nonzero()[:, 0].tolist()
            anew = [(item, x, self._drawn_pixel(step, item, x)) for item in idle for x in range(len(step.batches))]
        self.memory.commit(written)
        for item, x, pixel in anew:
            if pixel is not None:
                self.memory.revive(torch.tensor([item], device=written.keys.device), x, *pixel)

    def health(self) -> dict[str, float]:
        return self.memory.health()

    def translate(self, images: Tensor, source: int, target: int, guide: Guide = Guide()) -> Translation:
        """Class-free translation with the stored values, or those that `guide` (noise, exemplar, values) puts in their place.

        With `guide.classes` each cell reads only items of its class, as in training. The extra `memory_map` (B, h, w) holds for
        every cell the index of the item it reads most.
        """
        refuse(guide, ("noise", "exemplar", "values", "classes"), "mguit")
        if guide.noise is not None and guide.exemplar is not None:
            raise ValueError("mguit takes noise or an exemplar, not both")
        content = self.content_encoder(images, source)
        classes = None if guide.classes is None or self.config.memory.use != "class-aware" else guide.classes
        values = self._guided_values(guide, target, images.shape[0])
        style, weights = self.memory.read(content, target, classes, values=values)
        return Translation(self.generator(content, style.to(content.dtype), target), {"memory_map": weights.argmax(dim=1)})

    def sample_guide(self, target: int, generators: Sequence[torch.Generator]) -> Guide:
        """Random values, one draw a picture: noise (B, N, value_dim), unit vectors."""
        noise = torch.stack([torch.randn(self.memory.values.shape[1:], generator=generator) for generator in generators])
        return Guide(noise=self._drawn(noise, self.memory.values[target].to(noise)))

    def style_classes(self) -> dict[str, int]:
        """The classes of the memory and their numbers of items."""
        return {name: len(self.memory.items_of(name)) for name in self.memory.class_names}

    def stored_values(self, target: int) -> dict[str, Tensor]:
        """The stored values (N_k, C) of a domain, by class."""
        return {name: self.memory.values[target, self.memory.items_of(name)] for name in self.memory.class_names}

    def random_values(self, target: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Values (N_k, C) of one random draw, by class."""
        drawn = self.sample_guide(target, [generator]).noise
        assert drawn is not None
        return {name: drawn[0, self.memory.items_of(name)].to(self.memory.values) for name in self.memory.class_names}

    def exemplar_values(self, picture: Tensor, target: int, classes: Tensor | None = None) -> dict[str, Tensor]:
        """The values (N_k, C) of the classes that a picture (1, 3, H, W) of the target domain shows.

        Items of a class that no cell of it is nearest to take the mean of the class's others. `classes` (1, h, w): which cell
        shows what; None: the class of the nearest key.
        """
        content, style = self.content_encoder(picture, target), self.style_encoder(picture, target)
        values, cells = self.memory.collect(content, style, target, classes if self.config.memory.use == "class-aware" else None)
        found = {}
        for name in self.memory.class_names:
            own, seen = values[0, self.memory.items_of(name)], cells[0, self.memory.items_of(name)]
            if seen.any():
                found[name] = torch.where(seen[:, None] > 0, own, unit(seen @ own, dim=-1))
        return found

    def _guided_values(self, guide: Guide, target: int, batch: int) -> Tensor:
        values = self.memory.values[target].expand(batch, -1, -1)
        if guide.noise is not None:
            values = unit(guide.noise.to(values), dim=-1)
        if guide.exemplar is not None:
            content, style = self.content_encoder(guide.exemplar, target), self.style_encoder(guide.exemplar, target)
            values = self.memory.collect(content, style, target)[0].to(values).expand(batch, -1, -1)
        return self._with_class_values(values, guide.values or {})

    def _with_class_values(self, values: Tensor, chosen: Mapping[str, Tensor]) -> Tensor:
        values = values.clone()
        for name, value in chosen.items():
            items = self.memory.items_of(name)
            if value.shape[-2:] != (len(items), values.shape[-1]):
                raise ValueError(f"values for {name!r} are ({len(items)}, {values.shape[-1]}), not {tuple(value.shape)}")
            values[:, items] = unit(value.to(values), dim=-1)
        return values

    def _classes(self, classes: Tensor | None, images: Tensor) -> Tensor:
        """The class of every cell (B, h, w); 0 everywhere for a memory without classes."""
        if classes is not None and self.config.memory.use == "class-aware":
            return classes
        height, width = images.shape[-2] // self.stride, images.shape[-1] // self.stride
        if len(self.memory.class_names) > 1:
            raise ValueError(f"the memory has {', '.join(self.domains.classes)}, but these pictures have no boxes")
        return torch.zeros(len(images), height, width, dtype=torch.long, device=images.device)

    def _own_values(self, content: Tensor, style: Tensor, domain: int, classes: Tensor) -> Tensor | None:
        """The values that each picture itself shows, where reconstruction reads them; None: it reads the memory's."""
        if not (self.config.memory.own_style or self.config.memory.use == "none"):
            return None
        return self.memory.collect(content, style, domain, classes)[0]

    def _passed(self, style: Tensor) -> Tensor:
        return style.detach() if self.config.memory.detach == "released" else style

    def _with_noise(self, content: Tensor, step: Step, domain: int) -> Tensor:
        if not self.config.content_noise:
            return content
        noise = step.draws.normal(f"content/{domain}", step.batches[domain].slots, tuple(content.shape[1:]), content)
        return content + self.config.content_noise * noise

    def _random_values(self, step: Step, slots: Sequence[int], domain: int, state: MemoryState) -> Tensor:
        noise = step.draws.normal(f"values/{domain}", slots, tuple(self.memory.values.shape[1:]), state.values)
        return self._drawn(noise, state.values[domain].detach())  # (B, N, value_dim)

    def _drawn(self, noise: Tensor, stored: Tensor) -> Tensor:
        """Unit values from Gaussian noise (B, N, value_dim): anywhere on the sphere, or around the stored ones."""
        spread = self.config.memory.random_spread
        if spread is None:
            return unit(noise, dim=-1)
        return unit(stored + spread * noise / noise.shape[-1] ** 0.5, dim=-1)  # the noise's length is about `spread`

    def _latent_error(self, fake: Tensor, domain: int, weights: Tensor, values: Tensor) -> Tensor:
        """L1 between the drawn values and the style of what was drawn with them, pooled over the pixels of each item."""
        style = unit(self.style_encoder(fake, domain)).flatten(2)  # (B, C, P)
        share = weights.detach().flatten(2)  # (B, N, P)
        mass = share.sum(-1)  # (B, N)
        pooled = unit(share @ style.mT, dim=-1)  # (B, N, C)
        errors = (pooled - values).abs().sum(-1)  # (B, N)
        used = (mass > 1).to(errors.dtype)  # an item that reads less than one pixel was not drawn
        return ((errors * used).sum(-1) / used.sum(-1).clamp_min(1)).mean()

    def _translation_terms(self) -> tuple[str, ...]:
        return tuple(name for name in TRANSLATION_TERMS if self.config.contrast != "none" or name not in ("con_k", "con_v"))

    def _counted(self, step: Step, classes: Sequence[Tensor]) -> Tensor | None:
        """How many pixels of each domain are of each class in a share of the joint batch, in the mean (2, K).

        None: nothing is contrasted.
        """
        if self.config.contrast == "none" or not step.wants("con_k", "con_v"):
            return None
        counts = [class_counts(own, len(self.memory.class_names)) for own in classes]
        return step.reduce(torch.stack(counts).to(self.memory.keys)) / step.shares

    def _contrast(
        self,
        step: Step,
        terms: Terms,
        content: Tensor,
        style: Tensor,
        classes: Tensor,
        state: MemoryState,
        domain: int,
        counted: Tensor | None,
    ) -> None:
        if counted is None:
            return
        item_class, keys = self.memory.item_class, state.keys.detach()
        scores = content.detach().movedim(1, -1).flatten(0, 2) @ keys.to(content.dtype).mT
        positives = nearest_items(scores, classes, item_class)  # of the keys, for the values too, so that pairs stay pairs
        for name, features, items in (("con_k", content, keys), ("con_v", style, state.values[domain].detach())):
            if step.wants(name):
                if self.config.contrast == "nce":
                    tau = self.config.memory.contrast_temperature
                    term = memory_contrast(features, items, tau, classes, item_class, positives, counted[domain])  # eq. 8
                else:
                    term = memory_triplet(features, items, 1.0, classes, item_class, positives, counted[domain])
                terms[name] += term

    def _drawn_pixel(self, step: Step, item: int, x: int) -> tuple[Tensor, Tensor] | None:
        """Content (1, C) and style (1, value_dim) of a pixel of an item's class, drawn from domain x of the joint batch.

        The same pixel on every rank; None where nobody in this domain shows the class now.
        """
        styles, classes = step.cache["written_from"]
        slots, shown = step.batches[x].slots, classes[x] == self.memory.item_class[item]
        slot = self._slot_showing(step, shown, slots, f"revive/{item}/{x}")
        if slot is None:
            return None
        pixel = step.cache["contents"][x].new_zeros(self.memory.keys.shape[1] + self.memory.values.shape[2])
        if slot in slots:
            row = slots.index(slot)
            cells = shown[row].nonzero()
            draw = torch.randint(len(cells), (), generator=step.draws.generator(f"revive/{item}/{x}/cell", slot))
            height, width = cells[int(draw)].tolist()
            maps = step.cache["contents"][x][row], styles[x][row]
            pixel = torch.cat([map[:, height, width] for map in maps])
        key, value = step.reduce(pixel).split_with_sizes([self.memory.keys.shape[1], self.memory.values.shape[2]])
        return key[None], value[None]

    @staticmethod
    def _slot_showing(step: Step, shown: Tensor, slots: Sequence[int], name: str) -> int | None:
        """One slot of the joint batch, drawn evenly, whose picture shows something: (B, h, w) bool on this rank."""
        table = torch.zeros(step.joint_size, device=shown.device)
        table[list(slots)] = shown.flatten(1).any(1).float()
        having = step.reduce(table).nonzero()[:, 0].tolist()
        return having[int(torch.randint(len(having), (), generator=step.draws.generator(name, 0)))] if having else None


TRANSLATION_TERMS = (
    *("self_rec", "cyc_rec", "adv_content", "adv_domain", "kl", "latent", "con_k", "con_v"),  # eq. 9
    "content_rec",
)
