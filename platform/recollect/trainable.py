"""What every method promises, and what it may rely on.

A `Trainable` knows the mathematics of one paper and nothing of devices, ranks, disks or Ray. It promises:

1. `phases()` lists its updates in order. A phase's parts are (nets, terms): the gradient of a part's terms reaches only its
   nets. Net names are names of direct children of the module.
2. Terms are means over samples, unweighted, and every term has a weight of the same name in `Weights`; a term whose weight
   is zero is not computed (`step.wants(name)`).
3. Every random number comes from `step.draws`, keyed by (seed, step, name, slot): the same on one rank or on many.
4. Every sum over samples that is not a mean over the batch (a memory write) goes through `step.reduce` BEFORE it is
   normalised, so that N ranks with a batch of B take the step that one process takes with N * B, and so that a batch can be
   taken in parts. What cannot obey (batch statistics) is listed in the docstring of the method.
5. State that gradients do not write lives in persistent buffers and changes only in `after_step`, after all its sums.
6. `translate` is deterministic given its arguments, works per picture (no answer depends on its batch), and takes any height
   and width divisible by `stride`.

`recollect.testing.TrainableContract` enforces these for every method that inherits it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from recollect.batch import Batch, Domains, Guide, Translation, onto
from recollect.config import ModelConfig, Weights
from recollect.objective import Terms

Reduce = Callable[[Tensor], Tensor]


class Queries(NamedTuple):
    """What to look up in a retrieval set: for each query the `k` nearest pictures, or (a control) as many drawn at random."""

    k: int
    exclude: tuple[str, ...]  # (Q,) ids that must not be found: each query's own picture; "" where it has none
    vectors: Tensor | None = None  # (Q, E) in the space of `Embedder.embed`
    seeds: tuple[int, ...] | None = None  # (Q,) instead of vectors: draw at random, each by its seed


Search = Callable[[Queries], Tensor]  # the pictures found (Q, k, 3, H, W) in [-1, 1], nearest first


def alone(tensor: Tensor) -> Tensor:
    """The `Reduce` of a single process: the identity."""
    return tensor


def weights_digest(*nets: nn.Module) -> str:
    """SHA-256 over names, shapes and values of all weights and buffers.

    Floating-point numbers count as float32, so that a net has one digest whatever it computes in.
    """
    digest = hashlib.sha256()
    for position, net in enumerate(nets):
        for name, tensor in net.state_dict().items():
            value = tensor.detach().cpu()
            value = value.float() if value.is_floating_point() else value
            digest.update(f"{position}/{name}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Draws:
    """Random numbers that depend on (seed, step, name, slot) only: not on ranks, order of calls, or device."""

    def __init__(self, seed: int, step: int) -> None:
        self.seed, self.step = seed, step

    def generator(self, name: str, slot: int) -> torch.Generator:
        """A CPU generator for one name and one slot of the joint batch."""
        key = hashlib.blake2b(f"{self.seed}/{self.step}/{name}/{slot}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)  # torch takes 63 bits

    def normal(self, name: str, slots: Sequence[int], shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Standard normal draws (B, *shape), one generator a slot, on the device and in the dtype of `like`."""
        rows = [torch.randn(shape, generator=self.generator(name, slot)) for slot in slots]
        return onto(torch.stack(rows), like.device, like.dtype)


@dataclass
class Step:
    """All that one update may use: what makes draws, sums and features reproducible on any number of ranks."""

    batches: tuple[Batch, ...]  # one per domain, drawn independently (unpaired)
    number: int
    draws: Draws
    active: frozenset[str]  # names of the terms with a weight above zero
    reduce: Reduce = alone  # differentiable sum over the shares of the joint batch
    shares: int = 1  # so many of one size make the joint batch: ranks, and the parts of their batches; this is one of them
    neighbours: Tensor | None = None  # (Q, k, 3, H, W): what was found for the method's `queries(step)`, nearest first
    cache: dict[str, Any] = field(default_factory=dict)  # features computed once, shared by the step's phases

    @property
    def joint_size(self) -> int:
        """Pictures a domain of the joint batch."""
        return self.shares * len(self.batches[0])

    def wants(self, *names: str) -> bool:
        """Whether any of these terms has a weight above zero."""
        return any(name in self.active for name in names)


class Part(NamedTuple):
    """Nets, and the terms whose gradient they (and nothing else) receive."""

    nets: tuple[str, ...]
    terms: Callable[[Step], Terms]


class Phase(NamedTuple):
    """One update: each part's gradient reaches only its nets; then the optimisers of all these nets step once."""

    name: str
    parts: tuple[Part, ...]
    every: int = 1  # DRIT's d_iter, lazy regularisation
    clip: float | None = None  # largest norm of each net's gradient


class Block(nn.Module):
    """A part that is heavy and repeated, and whose output depends on its inputs and weights alone: a residual block.

    `engine.recompute` lets it forget its activations; `engine.compile` compiles it.
    """


class Trainable(nn.Module):
    """A method. Subclasses set `Config`, `Weights` and `presets`, and are listed in the catalogue."""

    Config: ClassVar[type[ModelConfig]]
    Weights: ClassVar[type[Weights]]
    presets: ClassVar[dict[str, dict[str, Any]]]  # name -> sections of a Run; the first is the default
    domains_needed: ClassVar[int] = 2  # at least so many; what a run without data.domains takes from its store
    domains_most: ClassVar[int | None] = None  # at most so many; None: any number
    frozen: ClassVar[tuple[str, ...]] = ()  # nets that come from a parent and never change: in no part, checked by digest
    learns_truth: ClassVar[bool] = False  # whether its batches say what only a world knows (`Batch.regions`, `Batch.modes`)
    judged_by: ClassVar[str] = "recollect.evaluation.validate:Validator"  # what chooses its best checkpoint, by name

    def __init__(self, config: ModelConfig, domains: Domains) -> None:
        super().__init__()
        count = len(domains.names)
        if self.domains_most is not None and not self.domains_needed <= count <= self.domains_most:
            raise ValueError(f"{config.name} translates between {self.domains_most} domains, not {count}; set data.domains")
        self.config, self.domains = config, domains

    @property
    def stride(self) -> int:
        """Pixels per cell of the grid on which the method wants its class maps; picture sizes are multiples of it."""
        raise NotImplementedError

    def phases(self) -> Iterable[Phase]:
        """The updates of one step, in order."""
        raise NotImplementedError

    def begin(self) -> None:
        """Called once, before the first step of a run that resumes nothing: the place to read published weights.

        Not for what drawn weights need (that is the constructor's), and not called when a bundle is opened.
        """

    def queries(self, step: Step) -> Queries | None:
        """What to look up before the phases of this step run; None: nothing.

        Computed one step ahead, so it may use frozen nets, the step's batches and its draws, and nothing that training changes.
        """
        return None

    def train(self, mode: bool = True) -> Self:
        """As torch's; frozen nets stay in evaluation mode."""
        super().train(mode)
        for net in self.frozen:
            self.get_submodule(net).eval()
        return self

    def frozen_digest(self) -> str:
        """SHA-256 of the frozen nets."""
        return weights_digest(*(self.get_submodule(net) for net in self.frozen))

    def after_step(self, step: Step) -> None:
        """Commit what gradients do not write: a memory, an image pool."""

    def health(self) -> dict[str, float]:
        """Numbers about the method's own state for the log and the card, by name; empty where there is none."""
        return {}


class Translator(Trainable):
    """A method that translates pictures."""

    def translate(self, images: Tensor, source: int, target: int, guide: Guide = Guide()) -> Translation:
        """Translate pictures (B, 3, H, W) in [-1, 1] from one domain to another, by domain index.

        Raises ValueError for guides that the method does not understand.
        """
        raise NotImplementedError

    def sample_guide(self, target: int, generators: Sequence[torch.Generator]) -> Guide:
        """A random style for `target`, one generator per picture, so that an answer does not depend on its batch."""
        raise NotImplementedError


@runtime_checkable
class ClassWise(Protocol):
    """A translator whose styles can be chosen class by class. Values are unit vectors: N_k of C channels for class k."""

    def style_classes(self) -> dict[str, int]:
        """The number N_k of items of each class."""
        ...

    def stored_values(self, target: int) -> dict[str, Tensor]:
        """What training left for a domain: (N_k, C) by class."""
        ...

    def random_values(self, target: int, generator: torch.Generator) -> dict[str, Tensor]:
        """One draw: (N_k, C) by class."""
        ...

    def exemplar_values(self, picture: Tensor, target: int, classes: Tensor | None = None) -> dict[str, Tensor]:
        """The style of each class that a picture (1, 3, H, W) of the target domain shows: (N_k, C); others are absent.

        `classes` (1, h, w) says which cells of the feature grid show which class; without it the memory's own reading does.
        """
        ...


@runtime_checkable
class AttributeWise(Protocol):
    """A translator whose targets are attributes: `Guide.attributes` (B, S) says which, in the order of `style_attributes`."""

    def style_attributes(self) -> tuple[str, ...]:
        """The S attributes that it can set."""
        ...

    def exclusive_attributes(self) -> tuple[tuple[str, ...], ...]:
        """Groups of attributes of which a picture has at most one."""
        ...

    def read_attributes(self, images: Tensor, source: int) -> Tensor:
        """The attributes (B, S) in {0, 1} that it sees in pictures (B, 3, H, W)."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """A method that puts pictures where those alike in content and style are near: what an index is made of."""

    def embed(self, images: Tensor) -> Tensor:
        """Vectors (B, E) of pictures (B, 3, H, W) in [-1, 1]; distances between them are Euclidean."""
        ...

    def embedding_digest(self) -> str:
        """SHA-256 of the weights behind `embed`: an index belongs to whatever has the same."""
        ...


@runtime_checkable
class Guided(Embedder, Protocol):
    """A translator that draws with what a retrieval set shows: it says what to look up, and gets `Guide.neighbours`."""

    def look_up(self, images: Tensor, source: int, target: int, guide: Guide) -> Queries | None:
        """What to look up for this very translation; None where it is not guided by neighbours."""
        ...


def refuse(guide: Guide, understood: Sequence[str], method: str) -> None:
    """Raise ValueError for guides that `method` does not understand."""
    strange = [name for name in guide.given() if name not in understood]
    if strange:
        raise ValueError(f"{method} does not take the guide {strange[0]!r}; it takes: {', '.join(understood) or 'none'}")
