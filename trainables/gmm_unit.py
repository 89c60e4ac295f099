"""GMM-UNIT: translation between many domains, a mixture of Gaussians its style space (Liu et al. 2020; stage 1 of RG-UNIT).

The text is that of RG-UNIT (Gomez, Liu, De Nadai, Karatzas, Lepri, Sebe; ACM MM 2020), section 3.1 and appendix A.1.

Figure 1 in words, without its retrieval half: one content encoder E_c, one style encoder E_s and one decoder G serve all
domains. A domain is a choice of attributes (hair colour, gender, age), and a component of a mixture of Gaussians over styles. A
picture is translated by drawing its content with a style from the component of the attributes that are wanted. G also draws a
mask M of what it changes; everything else is the picture's own. One critic D tells pictures from translations and names their
attributes.

    c = E_c(x)   s = E_s(x)   z ~ N(mu_y, sigma^2)   x~, M = G(c, z)   x^ = x~ M + x (1 - M)   with   E_c(x^) = c,  E_s(x^) = z

Legend: B pictures of all domains of the batch, S attributes, Z style dimensions, C channels, h x w cells of the content,
x a picture, y its attributes, z a style of the attributes that are wanted.

With `attributes` empty the domains of the data are the attributes, one of them set: so it translates between any number of
folders of pictures.

Where this departs from the paper or from its released codes (which also differ from each other), and why:
- Style reconstruction (eq. 3) asks for the style that was drawn, z; printed is the picture's own, which G was not given.
- Image reconstruction (eq. 4) compares what G draws before the mask, and the cycle (eq. 5) mixes with the translation. Released,
  both mix with the picture they should give back, and an empty mask satisfies them.
- The critic strives for 1 on pictures and 0 on translations; eqs. 6 and 7 are printed with 0 and 1.
- A training step's target differs from the source in one attribute, and attributes that exclude each other (`exclusive`) are
  never asked for together: the released codes ask for black and blond hair. As labels of a picture they are taken as they are.
- The isometry term, in the appendix only, is that of the released code of 2020, its difference taken picture by picture, so that
  it does not depend on the batch: two styles of one component, drawn with one content, are as far apart as what E_s reads.
- The divergence is summed over the dimensions and has its right sign. E_s's variances enter nothing else: its means are the
  styles.
- The decoder has nearest-neighbour doublings as released (the paper says bilinear), and the critic five layers (the paper: four).
- The critic's classifier pools, so that pictures of any size work; see `AttributeCritic`.
- The perceptual loss compares a picture with its cycle, as released. It is off: it needs torchvision's VGG16 (`model.vgg16`).
- `keep_unchanged_attributes`: half of the targets keep the picture's own style in the blocks of attributes that do not change (in
  the newer released code), and so does a translation without noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from recollect.batch import Batch, Domains, Guide, Translation, onto
from recollect.config import Choice, ModelConfig, Range, Weights, did_you_mean
from recollect.objective import Terms
from recollect.pretrained import WeightsFile
from recollect.trainable import Part, Phase, Step, Translator, refuse
from trainables.parts.blocks import (
    AdaINResBlock,
    GlobalStyleEncoder,
    Mlp,
    content_layers,
    conv,
    doublings,
    initialise,
)
from trainables.parts.critics import AttributeCritic, Verdict
from trainables.parts.losses import Gan, adversarial, l1, misnamed
from trainables.parts.mixture import Mixture, Posterior, flipped
from trainables.parts.passes import in_one_pass
from trainables.parts.perceptual import Perceptual

CELEBA = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young")


class GMMUNITConfig(ModelConfig):
    """The networks. `width` is the channels at full resolution; each of `downs` halvings doubles them."""

    name: Literal["gmm_unit"] = "gmm_unit"
    attributes: tuple[str, ...] = ()  # of the data, that can be set; empty: the domains of the data, one of them set
    exclusive: tuple[tuple[str, ...], ...] = ()  # groups of which a picture has at most one; domains are one group
    dims: Annotated[int, Field(ge=1), Choice((4, 8, 16), shape=True)] = 8  # of the style, an attribute
    sigma: Annotated[float, Field(gt=0), Range(0.1, 1, log=True)] = 0.5
    width: Annotated[int, Field(ge=4), Choice((16, 24, 32), shape=True)] = 64
    downs: Annotated[int, Field(ge=1, le=3)] = 2  # of the content
    style_downs: Annotated[int, Field(ge=1)] = 4
    content_blocks: Annotated[int, Field(ge=1)] = 4
    generator_blocks: Annotated[int, Field(ge=1)] = 4
    mlp_width: Annotated[int, Field(ge=1)] = 256
    attention: bool = True
    mask_bias: float = 0.0  # where the mask's logit starts: below zero, translations start as the picture itself
    keep_unchanged_attributes: bool = False
    critic_width: Annotated[int, Field(ge=4)] = 64
    critic_layers: Annotated[int, Field(ge=1)] = 5
    critic_scales: Annotated[int, Field(ge=1)] = 2
    critic_cells: Annotated[int, Field(ge=1)] = 4  # the classifier's kernel at the first scale
    gan: Gan = "lsgan"
    init_std: float | None = None  # None: Kaiming's
    critic_init_std: float | None = 0.02
    vgg16: WeightsFile = WeightsFile()  # read where `perceptual` has a weight

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.attributes)) < len(self.attributes):
            raise ValueError(f"attributes must be distinct names, not {', '.join(self.attributes)}")
        if self.style_downs > self.downs + 2:  # the smallest pictures have four cells of the content
            raise ValueError(f"style_downs is {self.style_downs}; with downs {self.downs} it is at most {self.downs + 2}")
        if not self.attributes:  # the domains exclude each other
            object.__setattr__(self, "exclusive", ())
        grouped = [name for group in self.exclusive for name in group]
        for name in grouped:
            if name not in self.attributes:
                raise ValueError(f"exclusive has {name!r}, which is not among attributes{did_you_mean(name, self.attributes)}")
            if grouped.count(name) > 1:
                raise ValueError(f"exclusive has {name!r} twice")
        if any(len(group) < 2 for group in self.exclusive):
            raise ValueError("a group of exclusive has at least two attributes")
        return self


class GMMUNITWeights(Weights):
    """The lambdas of section 3.1 and appendix A.1 by name; then the critic's own terms."""

    image_rec: Annotated[float, Range(1, 30, log=True)] = 1.0
    cyc_rec: Annotated[float, Range(3, 30, log=True)] = 10.0
    content_rec: Annotated[float, Range(0.1, 10, log=True)] = 1.0
    style_rec: Annotated[float, Range(1, 30, log=True)] = 10.0
    kl: Annotated[float, Range(0.01, 1, log=True)] = 0.1
    iso: Annotated[float, Range(0.01, 1, log=True)] = 0.1
    perceptual: Annotated[float, Range(0.03, 3, log=True)] = 0.0  # the paper's 0.1 needs model.vgg16
    adv: Annotated[float, Range(0.3, 3, log=True)] = 1.0
    cls: Annotated[float, Range(0.1, 3, log=True)] = 1.0
    critic: float = 1.0
    critic_cls: float = 1.0


class ContentEncoder(nn.Module):
    """E_c."""

    def __init__(self, config: GMMUNITConfig) -> None:
        super().__init__()
        self.net = content_layers(config.width, config.downs, config.content_blocks)

    def forward(self, images: Tensor) -> Tensor:
        content: Tensor = self.net(images)
        return content  # (B, C, h, w)


class StyleEncoder(nn.Module):
    """E_s: means and log-variances; no normalisation, which would erase the style."""

    def __init__(self, config: GMMUNITConfig, size: int) -> None:
        super().__init__()
        self.net = GlobalStyleEncoder(config.width, 2 * size, config.style_downs)

    def forward(self, images: Tensor) -> Posterior:
        answer: Tensor = self.net(images).to(images.dtype)  # fp32 under autocast too: an exponential follows
        return Posterior(*answer.chunk(2, dim=1))  # (B, Z) each


class Drawing(NamedTuple):
    """What G draws, and where."""

    images: Tensor  # (B, 3, H, W) in [-1, 1]
    mask: Tensor | None  # (B, 1, H, W) in [0, 1]; None: everywhere

    def over(self, background: Tensor) -> Tensor:
        """The picture, with the background (B, 3, H, W) where nothing is drawn."""
        return self.images if self.mask is None else self.images * self.mask + background * (1 - self.mask)


class Decoder(nn.Module):
    """G: AdaIN residual blocks, whose parameters a perceptron makes of the style, doublings, and a picture with its mask."""

    def __init__(self, config: GMMUNITConfig, size: int) -> None:
        super().__init__()
        top, blocks = config.width * 2**config.downs, config.generator_blocks
        self.mlp = Mlp(size, config.mlp_width, 4 * top * blocks)
        self.blocks = nn.ModuleList(AdaINResBlock(top) for _ in range(blocks))
        self.ups = nn.Sequential(*doublings(config.width, config.downs))
        self.picture = conv(config.width, 3, 7, act=nn.Tanh())
        self.mask = conv(config.width, 1, 7, act=nn.Sigmoid()) if config.attention else None

    def start_mask_at(self, logit: float) -> None:
        """The bias of the mask's last layer, of which initialisation makes zero."""
        if self.mask is not None:
            nn.init.constant_(self.mask[1].bias, logit)  # type: ignore[arg-type]

    def forward(self, content: Tensor, style: Tensor) -> Drawing:
        x = content
        for block, parameters in zip(self.blocks, self.mlp(style).chunk(len(self.blocks), dim=1), strict=True):
            x = block(x, parameters)
        x = self.ups(x)  # (B, width, H, W)
        return Drawing(self.picture(x), self.mask(x) if self.mask is not None else None)


@dataclass(frozen=True, slots=True)
class Task:
    """What a step is about: the pictures of all its domains, and the styles to draw them with."""

    images: Tensor  # (B, 3, H, W)
    own: Tensor  # (B, S) the attributes that they have
    wanted: Tensor  # (B, S) those that they shall have
    noise: tuple[Tensor, Tensor]  # (B, Z) two draws of the style
    kept: Tensor  # (B, S) bool: attributes whose block of the picture's own style is kept
    here: tuple[Tensor, Tensor]  # `own` and `wanted` on the host, for who reads them number by number
    keeps: bool  # whether any is kept


class GMMUNIT(Translator):
    """Translation between all domains that some attributes make, or between the domains of the data.

    Args:
        config: the attributes and the networks, and where the weights of the perceptual loss are.
        domains: the domains and attributes of the data; box classes are not used.

    Raises ValueError for attributes that the data lacks, and where there is nothing to translate between. Everything obeys
    `step.reduce`: nothing joins samples.
    """

    Config = GMMUNITConfig
    Weights = GMMUNITWeights
    config: GMMUNITConfig
    domains_needed = 1
    judged_by = "recollect.evaluation.attributes:AttributeJudge"
    guides: ClassVar[tuple[str, ...]] = ("attributes", "noise", "exemplar")  # those that it understands
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {  # 64 px, trains on a CPU in minutes
            "data": {"size": 64},
            "model": {
                "attributes": CELEBA,
                "exclusive": (CELEBA[:3],),
                "width": 16,
                "style_downs": 4,
                "content_blocks": 2,
                "generator_blocks": 3,
                "mlp_width": 64,
                "critic_width": 24,
                "critic_layers": 4,
                "critic_init_std": None,
            },
            "optimisers": {"default": {"lr": 1e-3, "hold": 0.5}},
            "engine": {"steps": 2000, "batch_size": 4, "ema": 0.99},
        },
        "paper": {  # appendix A.1; add weights.perceptual=0.1 with model.vgg16.path and model.vgg16.sha256
            "data": {"size": 128},
            "model": {"attributes": CELEBA, "exclusive": (CELEBA[:3],)},
            "optimisers": {"default": {"lr": 1e-4, "halve_every": 200_000}},
            "engine": {"steps": 1_000_000, "batch_size": 1},
        },
    }

    def __init__(self, config: GMMUNITConfig, domains: Domains) -> None:
        super().__init__(config, domains)
        self.attributes = config.attributes or domains.names
        for name in config.attributes:
            if name not in domains.attributes:
                raise ValueError(
                    f"the data has no attribute {name!r}{did_you_mean(name, domains.attributes)}; set model.attributes, to [] "
                    "for its domains in their place"
                )
        if not config.attributes and len(domains.names) < 2:
            raise ValueError(
                f"{config.name} without model.attributes translates between the domains of the data, which are "
                f"{', '.join(domains.names)} only; set data.domains or model.attributes"
            )
        groups = self.exclusive_attributes()
        self.groups = tuple(tuple(self.attributes.index(name) for name in group) for group in groups)
        self.columns = [domains.attributes.index(name) for name in config.attributes]  # of a batch's attributes
        self.mixture = Mixture(len(self.attributes), config.dims, config.sigma)
        self.content_encoder = ContentEncoder(config)
        self.style_encoder = StyleEncoder(config, self.mixture.size)
        self.decoder = Decoder(config, self.mixture.size)
        self.critic = AttributeCritic(
            *(config.critic_width, config.critic_layers, config.critic_scales), len(self.attributes), config.critic_cells
        )
        for name, net in self.named_children():
            initialise(net, config.critic_init_std if name == "critic" else config.init_std)
        self.decoder.start_mask_at(config.mask_bias)
        self.perceptual = Perceptual(config.vgg16)

    @property
    def stride(self) -> int:
        return int(2**self.config.downs)

    def phases(self) -> tuple[Phase, ...]:
        return (
            Phase("translate", (Part(("content_encoder", "style_encoder", "decoder"), self.translation_terms),)),
            Phase("criticise", (Part(("critic",), self.critic_terms),)),
        )

    def content(self, images: Tensor) -> Tensor:
        """c = E_c(x): (B, C, h, w)."""
        content: Tensor = self.content_encoder(images)
        return content

    def style(self, images: Tensor) -> Tensor:
        """s = E_s(x), its means: (B, Z)."""
        posterior: Posterior = self.style_encoder(images)
        return posterior.mean

    def guidance(self, neighbours: Tensor | None) -> Any:
        """What `fused` takes of neighbours (B, k, 3, H, W), made once a step; nothing here (RG-UNIT: their contents)."""
        return None

    def fused(self, content: Tensor, guidance: Any, strength: Tensor | None = None) -> Tensor:
        """c~, what G is given for a content: the content itself here (RG-UNIT: with what its neighbours show)."""
        return content

    def decode(self, content: Tensor, style: Tensor, background: Tensor | None = None) -> Drawing:
        """G(c~, s): the drawing, over a background (B, 3, H, W) where it is masked; without one all that is drawn."""
        drawing: Drawing = self.decoder(content, style)
        return drawing if background is None else drawing._replace(images=drawing.over(background))

    def task(self, step: Step) -> Task:
        """The step's pictures, targets and draws. Raises ValueError for a picture whose attributes are not known."""
        if "task" not in step.cache:
            parts = [self._task(index, batch, step) for index, batch in enumerate(step.batches)]
            images, own, wanted, first, second, kept = (torch.cat(column) for column in zip(*parts, strict=True))
            there = [onto(labels, images.device, labels.dtype) for labels in (own, wanted, kept)]
            step.cache["task"] = Task(images, there[0], there[1], (first, second), there[2], (own, wanted), bool(kept.any()))
        task: Task = step.cache["task"]
        return task

    def _task(self, index: int, batch: Batch, step: Step) -> tuple[Tensor, ...]:
        """The pictures and draws of a batch, on the device, and its attributes, on the host."""
        own, rows = self._labels(batch), []
        for label, slot in zip(own.int().tolist(), batch.slots, strict=True):
            rows.append(flipped(label, self.groups, step.draws.generator(f"target/{index}", slot)))
        wanted = own.new_tensor(rows)
        noise = [
            step.draws.normal(f"{name}/{index}", batch.slots, (self.mixture.size,), batch.images) for name in ("style", "second")
        ]
        kept = torch.zeros_like(own, dtype=torch.bool)
        if self.config.keep_unchanged_attributes:
            coins = [bool(torch.rand((), generator=step.draws.generator(f"keep/{index}", slot)) < 0.5) for slot in batch.slots]
            kept = (own == wanted) & own.new_tensor(coins, dtype=torch.bool)[:, None]
        return batch.images, own, wanted, *noise, kept

    def _labels(self, batch: Batch) -> Tensor:
        """The attributes (B, S) that the pictures of a batch have."""
        if not self.config.attributes:
            return F.one_hot(batch.domain, len(self.attributes)).to(batch.images.dtype)
        assert batch.attributes is not None, "data with attributes has them in every batch"
        own = batch.attributes[:, self.columns].to(batch.images.dtype)
        if own.isnan().any():
            row, column = own.isnan().nonzero()[0].tolist()
            raise ValueError(
                f"nobody says whether picture {batch.ids[row]!r} has {self.attributes[column]}; {self.config.name} trains on "
                f"pictures of which {', '.join(self.attributes)} are all known"
            )
        return own

    def target_style(self, task: Task, own_style: Tensor, draw: int = 0) -> Tensor:
        """z: the styles (B, Z) that the pictures are drawn with, given their own (without a gradient for those)."""
        drawn = self.mixture.sample(task.wanted, task.noise[draw])
        return torch.where(self.mixture.blocks(task.kept), own_style.detach().to(drawn), drawn)

    def translation_terms(self, step: Step) -> Terms:
        """The terms of encoders and decoder."""
        task, guidance = self.task(step), self.guidance(step.neighbours)
        images, content = task.images, self.content(task.images)
        posterior: Posterior = self.style_encoder(images)
        style = self.target_style(task, posterior.mean)
        fused = self.fused(content, guidance)
        styles = {"fake": style}
        if step.wants("image_rec"):
            styles["own"] = posterior.mean
        if step.wants("iso"):
            styles["other"] = self.target_style(task, posterior.mean, draw=1)
        drawn = self._drawings(fused, styles)
        fake = drawn["fake"].over(images)
        step.cache["fakes"] = fake.detach()
        terms: Terms = {}
        if step.wants("image_rec"):
            terms["image_rec"] = l1(drawn["own"].images, images)  # eq. 4
        if step.wants("kl"):
            terms["kl"] = self.mixture.kl(posterior, task.own)
        if step.wants("style_rec", "iso"):
            pictures = [fake, drawn["other"].over(images)] if step.wants("iso") else [fake]
            read = in_one_pass(self.style, pictures)
            if step.wants("style_rec"):
                terms["style_rec"] = l1(read[0], style)  # eq. 3
            if step.wants("iso"):
                terms["iso"] = isometry(style, styles["other"], *read)
        if step.wants("content_rec", "cyc_rec", "perceptual"):
            terms |= self._back(step, fake, content, posterior.mean, guidance)
        if step.wants("adv", "cls"):
            terms |= self._judged(step, self.critic(fake), task.wanted)
        return terms

    def _drawings(self, fused: Tensor, styles: Mapping[str, Tensor]) -> dict[str, Drawing]:
        """A content drawn in several styles (B, Z) by name, in one pass."""
        images, mask = self.decode(torch.cat([fused] * len(styles)), torch.cat(list(styles.values())))
        masks = (None,) * len(styles) if mask is None else mask.chunk(len(styles))
        return {
            name: Drawing(*pair) for name, pair in zip(styles, zip(images.chunk(len(styles)), masks, strict=True), strict=True)
        }

    def _back(self, step: Step, fake: Tensor, content: Tensor, own_style: Tensor, guidance: Any) -> Terms:
        """The translations encoded again, and drawn with the pictures' own styles."""
        images, terms, again = self.task(step).images, Terms(), self.content(fake)
        if step.wants("content_rec"):
            terms["content_rec"] = l1(again, content)  # eq. 2
        if step.wants("cyc_rec", "perceptual"):
            # over the translation: over the picture, an empty mask would satisfy the cycle
            cycle = self.decode(self.fused(again, guidance), own_style, fake).images
            if step.wants("cyc_rec"):
                terms["cyc_rec"] = l1(cycle, images)  # eq. 5
            if step.wants("perceptual"):
                terms["perceptual"] = self.perceptual(cycle, images)
        return terms

    def _judged(self, step: Step, verdict: Verdict, wanted: Tensor) -> Terms:
        terms = Terms()
        if step.wants("adv"):
            terms["adv"] = adversarial(verdict.real, 1.0, self.config.gan)  # eq. 7
        if step.wants("cls"):
            terms["cls"] = misnamed(verdict.attributes, wanted)
        return terms

    def critic_terms(self, step: Step) -> Terms:
        """The critic tells pictures from translations, and names the attributes of pictures."""
        if not step.wants("critic", "critic_cls"):
            return {}
        task, terms = self.task(step), Terms()
        pictures = [task.images, step.cache["fakes"]] if step.wants("critic") else [task.images]
        verdict, *of_fakes = self.critic.apart(pictures)
        if step.wants("critic"):
            terms["critic"] = adversarial(verdict.real, 1.0, self.config.gan) + adversarial(
                of_fakes[0].real, 0.0, self.config.gan
            )  # eq. 6
        if step.wants("critic_cls"):
            terms["critic_cls"] = misnamed(verdict.attributes, task.own)
        return terms

    def translate(self, images: Tensor, source: int, target: int, guide: Guide = Guide()) -> Translation:
        """The content of the pictures in a style.

        It is of the component of `attributes` (B, S), or of the target domain where the domains are the attributes: its mean, or
        with `noise` (B, Z) a draw of it. `exemplar` gives a style by itself. Where attributes are neither given nor domains, it
        is the picture's own; with noise a draw of the component that the picture is read to be of.

        The extra `mask` (B, 1, H, W) in [0, 1] is what was drawn anew.
        """
        refuse(guide, self.guides, self.config.name)
        content = self.fused(self.content(images), self.guidance(guide.neighbours), guide.strength)
        drawing = self.decode(content, self.guided_style(images, source, target, guide), images)
        return Translation(drawing.images, {} if drawing.mask is None else {"mask": drawing.mask})

    def guided_style(self, images: Tensor, source: int, target: int, guide: Guide) -> Tensor:
        """The style (B, Z) that a guide asks for. Raises ValueError for guides that contradict each other or do not fit."""
        name, shape = self.config.name, (images.shape[0], self.mixture.size)
        if guide.exemplar is not None:
            if guide.noise is not None or guide.attributes is not None:
                raise ValueError(f"{name} takes an exemplar, or attributes and noise; not both")
            return self.style(guide.exemplar).expand(shape)
        if guide.noise is not None and tuple(guide.noise.shape) != shape:
            raise ValueError(f"{name}'s noise is (B, Z) = {shape} here, not {tuple(guide.noise.shape)}")
        wanted = guide.attributes
        if wanted is not None and tuple(wanted.shape) != (images.shape[0], len(self.attributes)):
            raise ValueError(
                f"{name}'s attributes are (B, {len(self.attributes)}): {', '.join(self.attributes)}; not {tuple(wanted.shape)}"
            )
        if wanted is None and not self.config.attributes:
            wanted = F.one_hot(torch.full((images.shape[0],), target, device=images.device), len(self.attributes))
        if guide.noise is not None:
            wanted = self.read_attributes(images, source) if wanted is None else wanted
            return self.mixture.sample(wanted.to(images), guide.noise.to(images))
        if wanted is None:
            return self.style(images)
        means = self.mixture.means(wanted.to(images))
        if not self.config.keep_unchanged_attributes:
            return means
        own = self.style(images)
        kept = self.mixture.most_likely(own, self.groups) == wanted
        return torch.where(self.mixture.blocks(kept), own, means)

    def sample_guide(self, target: int, generators: Sequence[torch.Generator]) -> Guide:
        """What makes a style a draw of its component: noise (B, Z), standard normal."""
        return Guide(noise=torch.stack([torch.randn(self.mixture.size, generator=generator) for generator in generators]))

    def style_attributes(self) -> tuple[str, ...]:
        """The attributes that it can set: those of the configuration, or the domains."""
        return tuple(self.attributes)

    def exclusive_attributes(self) -> tuple[tuple[str, ...], ...]:
        """Groups of which a picture has at most one; the domains are one group."""
        return self.config.exclusive if self.config.attributes else (tuple(self.attributes),)

    def read_attributes(self, images: Tensor, source: int) -> Tensor:
        """The attributes (B, S) of the component that the pictures' styles are most likely of."""
        return self.mixture.most_likely(self.style(images), self.groups)


def isometry(one: Tensor, other: Tensor, read: Tensor, read_other: Tensor) -> Tensor:
    """How far the distance between two styles (B, Z) is from that of what is read in their pictures; mean over pictures.

    >>> one, other = torch.zeros(1, 4), torch.ones(1, 4)
    >>> isometry(one, other, one, other / 2)  # 4 apart, and 2 apart as read
    tensor(2.)
    """
    wanted, found = (one - other).abs().sum(dim=1), (read - read_other).abs().sum(dim=1)
    return (wanted - found).abs().mean()
