"""CycleGAN: unpaired image-to-image translation using cycle-consistent adversarial networks (Zhu, Park, Isola, Efros; ICCV 2017).

Figure 3 in words: two generators, G_y for pictures of domain x and G_x for those of y, and a critic for each domain. A
picture that was translated there and back is itself again. The translation is deterministic: there is no style to choose.

    fake_y = G_y(I_x)   fake_x = G_x(I_y)   I_x^ = G_x(fake_y)   I_y^ = G_y(fake_x)   G_x(I_x) = I_x   G_y(I_y) = I_y

Legend: B pictures, N pictures of the joint batch over all ranks, P places of the image pool, x a domain, y the other.

The critics see translations out of a pool of the last ones (section 4): the first P fill it; after that a fresh one is shown
with probability 1/2, and otherwise changes places with a random old one. The pool obeys the ranks rule: the translations of
all ranks are gathered (a sum of tensors that are zero elsewhere), so that every rank keeps the one pool that a single process
would keep, and shows its critics the pictures at its own slots.

Where this departs from the paper or from its released code, and why:
- All paddings of the generators are reflections, as the paper's appendix says; the released code pads strided ones with zeros.
- The pool keeps its pictures in buffers of a fixed size, so that a run resumes bit-equal: `model.picture_size` must be
  `data.size`. They go wherever buffers go, into bundles too: 2 P pictures in fp32, 79 MB for P = 50 at 256 px.
- `identity`, which the paper uses for paintings only, has a weight of 5 as in the released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, NoReturn

import torch
from pydantic import Field
from torch import Tensor, nn

from recollect.batch import Domains, Guide, Translation
from recollect.config import Choice, ModelConfig, Range, Weights
from recollect.objective import Terms
from recollect.trainable import Draws, Part, Phase, Step, Translator, refuse
from trainables.parts.blocks import InstanceNorm, ResBlock, conv, deconv, initialise
from trainables.parts.critics import telling_apart
from trainables.parts.losses import adversarial
from trainables.parts.passes import in_one_pass


class CycleGANConfig(ModelConfig):
    """The networks. `width` is the channels at full resolution; each of `downs` halvings doubles them."""

    name: Literal["cyclegan"] = "cyclegan"
    width: Annotated[int, Field(ge=4), Choice((16, 24, 32), shape=True)] = 64
    downs: Annotated[int, Field(ge=1, le=3)] = 2
    blocks: Annotated[int, Field(ge=1), Choice((6, 9), shape=True)] = 9  # the paper has 6 below 256 px
    critic_width: Annotated[int, Field(ge=4)] = 64
    critic_layers: Annotated[int, Field(ge=1)] = 3  # strided ones; 3 give patches of 70 px
    pool_size: Annotated[int, Field(ge=0)] = 50  # P; 0: critics see fresh translations only
    picture_size: Annotated[int, Field(ge=16)] = 256  # side of the pool's pictures: data.size
    init_std: float | None = 0.02  # None: Kaiming's


class CycleGANWeights(Weights):
    """The lambdas of eq. 3 and of the identity term, then the critics' own: 1/2 slows them, as section 7.1 says."""

    adv_domain: Annotated[float, Range(0.3, 3, log=True)] = 1.0
    cyc_rec: Annotated[float, Range(3, 50, log=True)] = 10.0
    identity: Annotated[float, Range(0.5, 10, log=True)] = 5.0
    critic_domain: float = 0.5


class Generators(nn.Module):
    """G: for each target domain a residual network (Johnson et al. 2016)."""

    def __init__(self, config: CycleGANConfig, domains: int) -> None:
        super().__init__()
        self.nets = nn.ModuleList(_generator(config) for _ in range(domains))

    def forward(self, images: Tensor, target: int) -> Tensor:
        pictures: Tensor = self.nets[target](images)
        return pictures  # (B, 3, H, W)


def _generator(config: CycleGANConfig) -> nn.Sequential:
    sizes = [config.width * 2**i for i in range(config.downs + 1)]
    return nn.Sequential(
        conv(3, config.width, 7, norm="instance", act=nn.ReLU()),
        *(conv(a, b, 3, 2, norm="instance", act=nn.ReLU()) for a, b in zip(sizes, sizes[1:], strict=False)),
        *(ResBlock(sizes[-1]) for _ in range(config.blocks)),
        *(deconv(b, a, "instance") for a, b in reversed(list(zip(sizes, sizes[1:], strict=False)))),
        conv(config.width, 3, 7, act=nn.Tanh()),
    )


class DomainCritics(nn.Module):
    """D: one patch critic per domain (PatchGAN, Isola et al. 2017)."""

    def __init__(self, config: CycleGANConfig, domains: int) -> None:
        super().__init__()
        self.nets = nn.ModuleList(_patch_critic(config.critic_width, config.critic_layers) for _ in range(domains))

    def forward(self, images: Tensor, domain: int) -> list[Tensor]:
        logits: Tensor = self.nets[domain](images)
        return [logits]


def _patch_critic(width: int, layers: int) -> nn.Sequential:
    """4x4 convolutions: `layers` that halve the picture, one that does not, and the answer; all but the ends normalised."""
    sizes = [width * min(2**i, 8) for i in range(layers + 1)]
    strides = [2] * (layers - 1) + [1]
    body: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    for a, b, stride in zip(sizes, sizes[1:], strides, strict=False):
        body += [nn.Conv2d(a, b, 4, stride, 1), InstanceNorm(), nn.LeakyReLU(0.2)]
    return nn.Sequential(*body, nn.Conv2d(sizes[-1], 1, 4, 1, 1))


class Exchange(NamedTuple):
    """What a pool does with fresh pictures. Numbers below P are the pool's places; P + n is the n-th fresh picture."""

    shown: tuple[int, ...]  # for each fresh picture the one that the critic sees
    held: tuple[int, ...]  # what every place then holds
    filled: int  # places in use


def exchange(size: int, filled: int, draws: Sequence[tuple[bool, int]]) -> Exchange:
    """Offer fresh pictures one after the other to a pool of `size` places of which `filled` are in use.

    Args:
        draws: for each fresh picture whether it changes places with an old one, and which place that is.

    >>> exchange(2, 1, [(True, 0), (True, 0), (False, 1)])  # fills the last place; swaps with place 0; is shown itself
    Exchange(shown=(2, 0, 4), held=(3, 2), filled=2)
    """
    held, shown = list(range(size)), []
    for fresh, (swap, place) in enumerate(draws, start=size):
        if filled < size:
            held[filled] = fresh
            filled += 1
            shown.append(fresh)
        elif swap:
            shown.append(held[place])
            held[place] = fresh
        else:
            shown.append(fresh)
    return Exchange(tuple(shown), tuple(held), filled)


class ImagePool(nn.Module):
    """The last translations into one domain."""

    pictures: Tensor
    filled: Tensor

    def __init__(self, size: int, side: int) -> None:
        super().__init__()
        self.register_buffer("pictures", torch.zeros(size, 3, side, side))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))
        self._known = 0  # the same on the host
        self.register_load_state_dict_post_hook(ImagePool._learn_filled)  # type: ignore[no-untyped-call]

    @staticmethod
    def _learn_filled(pool: nn.Module, keys: object) -> None:
        assert isinstance(pool, ImagePool)
        pool._known = int(pool.filled)

    def offer(self, fresh: int, draws: Draws, name: str) -> Exchange:
        """What happens when `fresh` pictures are offered, one a slot of the joint batch. Changes nothing."""
        size = len(self.pictures)
        generators = [draws.generator(name, slot) for slot in range(fresh)]
        chances = [
            (bool(torch.rand((), generator=generator) > 0.5), int(torch.randint(size, (), generator=generator)))
            for generator in generators
        ]
        return exchange(size, self._known, chances)

    def show(self, numbers: Sequence[int], fresh: Tensor) -> Tensor:
        """The pictures with these numbers, of the pool's own and the fresh ones (N, 3, H, W)."""
        size = len(self.pictures)
        return torch.stack([self.pictures[number] if number < size else fresh[number - size] for number in numbers])

    @torch.no_grad()
    def commit(self, done: Exchange, fresh: Tensor) -> None:
        """Store what an exchange leaves in the pool."""
        size = len(self.pictures)
        for place, number in enumerate(done.held):
            if number >= size:
                self.pictures[place] = fresh[number - size]
        self.filled.fill_(done.filled)
        self._known = done.filled


class CycleGAN(Translator):
    """Cycle-consistent translation between two domains.

    Args:
        config: the networks and the pool.
        domains: two domain names; classes are not used.

    Raises ValueError for another number of domains, and at the first step for pictures that the pool's buffers do not fit.
    Everything obeys the ranks rule, the image pool too.
    """

    Config = CycleGANConfig
    Weights = CycleGANWeights
    domains_most = 2
    config: CycleGANConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {  # 64 px, trains on a CPU in minutes; the size and the settings of mguit:tiny
            "data": {"size": 64},
            "model": {
                "width": 16,
                "downs": 1,
                "blocks": 6,
                "critic_width": 32,
                "critic_layers": 2,  # patches of 34 px; those of 70 px would be larger than the pictures
                "picture_size": 64,
                "init_std": None,
            },
            "optimisers": {"default": {"lr": 1e-3, "hold": 0.5}},
            "engine": {"steps": 1000, "batch_size": 2, "ema": 0.99},
        },
        "paper": {
            "data": {"size": 256, "short_side": 286},
            "optimisers": {"default": {"lr": 2e-4, "weight_decay": 0.0, "hold": 0.5}},
            "engine": {"steps": 267_000, "batch_size": 1},  # 100 + 100 epochs of the 1 335 pictures of horse2zebra
        },
    }

    def __init__(self, config: CycleGANConfig, domains: Domains) -> None:
        super().__init__(config, domains)
        count = len(domains.names)
        self.generator = Generators(config, count)
        self.domain_critic = DomainCritics(config, count)
        pools = count if config.pool_size else 0
        self.pools = nn.ModuleList(ImagePool(config.pool_size, config.picture_size) for _ in range(pools))
        for net in self.children():
            initialise(net, config.init_std)

    @property
    def stride(self) -> int:
        return int(2**self.config.downs)

    def phases(self) -> tuple[Phase, ...]:
        return (
            Phase("translate", (Part(("generator",), self.translation_terms),)),
            Phase("criticise_pictures", (Part(("domain_critic",), self.domain_critic_terms),)),
        )

    def translation_terms(self, step: Step) -> Terms:
        """The terms of the generators (eq. 3 and section 5.2), summed over the domains."""
        images = [batch.images for batch in step.batches]
        drawn = [self._first_translation(images, y, step) for y in (0, 1)]
        fakes = [pictures["fake"] for pictures in drawn]
        terms = {name: images[0].new_zeros(()) for name in ("adv_domain", "cyc_rec", "identity") if step.wants(name)}
        for x, image in enumerate(images):
            if step.wants("adv_domain"):
                terms["adv_domain"] += adversarial(self.domain_critic(fakes[x], x), 1.0, "lsgan")  # eq. 1
            if step.wants("cyc_rec"):
                terms["cyc_rec"] += (self.generator(fakes[1 - x], x) - image).abs().mean()  # eq. 2
            if step.wants("identity"):
                terms["identity"] += (drawn[x]["own"] - image).abs().mean()
        step.cache["fakes"] = [fake.detach() for fake in fakes]
        return terms

    def _first_translation(self, images: Sequence[Tensor], y: int, step: Step) -> dict[str, Tensor]:
        """What the step needs of G_y at first, by name, drawn in one pass."""
        jobs = {"fake": images[1 - y]}
        if step.wants("identity"):
            jobs["own"] = images[y]
        pictures = in_one_pass(partial(self.generator, target=y), list(jobs.values()))
        return dict(zip(jobs, pictures, strict=True))

    def domain_critic_terms(self, step: Step) -> Terms:
        """Critics tell pictures from translations, fresh ones or out of the pool."""
        if not step.wants("critic_domain"):
            return {}
        shown = self._from_pools(step) if self.pools else step.cache["fakes"]
        loss = step.batches[0].images.new_zeros(())
        for x, batch in enumerate(step.batches):
            loss = loss + telling_apart(partial(self.domain_critic, domain=x), batch.images, shown[x], "lsgan")
        return {"critic_domain": loss}

    def after_step(self, step: Step) -> None:
        """Store the step's translations in the pools."""
        for pool, (done, fresh) in zip(self.pools, step.cache.get("exchanges", ()), strict=False):
            assert isinstance(pool, ImagePool)
            pool.commit(done, fresh)

    def translate(self, images: Tensor, source: int, target: int, guide: Guide = Guide()) -> Translation:
        """The one translation of each picture. Raises ValueError for any guide."""
        refuse(guide, (), "cyclegan")
        return Translation(self.generator(images, target), {})

    def sample_guide(self, target: int, generators: Sequence[torch.Generator]) -> NoReturn:
        """Raises ValueError: there is no style to draw."""
        raise ValueError("cyclegan has one translation for each picture and no random styles; leave the seeds out")

    def _from_pools(self, step: Step) -> list[Tensor]:
        """What the critics of this rank see, for each domain; the exchanges are kept for `after_step`."""
        joint = self._gathered(step)
        step.cache["exchanges"], shown = [], []
        for x, (pool, fresh) in enumerate(zip(self.pools, joint, strict=True)):
            assert isinstance(pool, ImagePool)
            done = pool.offer(len(fresh), step.draws, f"pool/{x}")
            step.cache["exchanges"].append((done, fresh))
            shown.append(pool.show([done.shown[slot] for slot in step.batches[x].slots], fresh))
        return shown

    def _gathered(self, step: Step) -> Tensor:
        """The translations (2, N, 3, H, W) of the joint batch, in the order of its slots."""
        fakes = torch.stack(step.cache["fakes"]).to(step.batches[0].images.dtype)
        side = self.config.picture_size
        if fakes.shape[-2:] != (side, side):
            height, width = fakes.shape[-2:]
            raise ValueError(
                f"the image pool is for pictures of {side} x {side}, and these are {height} x {width}: "
                f"set model.picture_size={height}, or model.pool_size=0 to do without a pool"
            )
        joint = fakes.new_zeros(2, step.joint_size, *fakes.shape[2:])
        for x, batch in enumerate(step.batches):
            first = batch.slots[0]
            assert batch.slots == tuple(range(first, first + len(batch))), "a share of the joint batch is in one piece"
            joint[x, first : first + len(batch)] = fakes[x]
        return step.reduce(joint)
