"""The class-aware key-values memory of MGUIT (Jeong et al., CVPR 2021, section 3.2).

Every item n belongs to one class and holds a key (shared content) and one value per domain (style). Pixels read a weighted
average of values by the similarity of their content to the keys, and write their content and style back.

Legend: B pictures, P pixels of the feature grid (B * h * w), N items, K classes, D domains, C channels.

What is decided here, and why:
- Taken literally (soft assignment, both temperatures 1) the memory collapses: cosines lie in [-1, 1], so a softmax over
  thousands of pixels is nearly flat and every item of a class becomes the class mean. The default assigns each pixel to its
  nearest item; the literal form stays available and is tested against the equations.
- Eq. 6 prints a norm; an L2-normalisation is meant.
- An item that received no mass keeps its keys and values bit for bit.
- Similarities and sums are computed in fp32 (or fp64) also under autocast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recollect.config import did_you_mean
from recollect.trainable import Reduce, alone


class MemoryState(NamedTuple):
    """What a write makes of the memory: keys (N, key_dim), values (D, N, value_dim), the mass (D, N) each item received."""

    keys: Tensor
    values: Tensor
    mass: Tensor


class ClassAwareMemory(nn.Module):
    """A memory with `items_per_class[name]` items for each class, in the order of the mapping (class 0 first).

    Args:
        items_per_class: class name -> number of items N_k, at least 1.
        key_dim, value_dim: channels of content and style.
        num_domains: number of value sets D.
        read_temperature: divides the cosines of eq. 2 (paper: 1, where a read averages nearly all items).
        update_temperature: divides the cosines of eq. 5.
        assignment: `hard` gives each pixel to its nearest item of its class, `soft` to all of them (eq. 5 as printed).
        update_rate: m of new = normalise((1 - m) old + m sum); None: normalise(old + sum), eq. 6 as printed.
        generator: draws the first keys and values; they are random unit vectors.
    """

    keys: Tensor
    values: Tensor
    item_class: Tensor
    usage: Tensor
    idle: Tensor

    def __init__(
        self,
        items_per_class: Mapping[str, int],
        key_dim: int,
        value_dim: int,
        num_domains: int = 2,
        read_temperature: float = 0.1,
        update_temperature: float = 0.1,
        assignment: Literal["hard", "soft"] = "hard",
        update_rate: float | None = 0.1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        empty = [name for name, count in items_per_class.items() if count < 1]
        if empty or not items_per_class:
            raise ValueError(f"every class needs at least one memory item; without: {', '.join(empty) or 'all'}")
        if min(read_temperature, update_temperature) <= 0:
            raise ValueError("memory temperatures are above 0; 1 is the paper's literal form, 0.1 reads about one item")
        if update_rate is not None and not 0 < update_rate <= 1:
            raise ValueError(f"update_rate is {update_rate}; it lies in (0, 1], or is None for the paper's plain sum")
        self.class_names = tuple(items_per_class)
        self.read_temperature, self.update_temperature = read_temperature, update_temperature
        self.assignment, self.update_rate = assignment, update_rate
        num_items = sum(items_per_class.values())
        owner = [index for index, count in enumerate(items_per_class.values()) for _ in range(count)]
        self.register_buffer("keys", F.normalize(torch.randn(num_items, key_dim, generator=generator), dim=-1))
        self.register_buffer("values", F.normalize(torch.randn(num_domains, num_items, value_dim, generator=generator), dim=-1))
        self.register_buffer("item_class", torch.tensor(owner))
        self.register_buffer("usage", torch.zeros(num_items))  # running share of its class's mass each item receives
        self.register_buffer("idle", torch.zeros(num_items, dtype=torch.long))  # writes of its class since an item had a share

    def items_of(self, name: str) -> Tensor:
        """The indices (N_k,) of a class's items. Raises ValueError with the known classes."""
        if name not in self.class_names:
            raise ValueError(f"the memory has no class {name!r}{did_you_mean(name, self.class_names)}")
        return (self.item_class == self.class_names.index(name)).nonzero()[:, 0]

    def stored(self) -> MemoryState:
        """The memory as it stands."""
        return MemoryState(self.keys, self.values, self.values.new_zeros(self.values.shape[:2]))

    def read(
        self,
        content: Tensor,
        domain: int,
        classes: Tensor | None = None,
        state: MemoryState | None = None,
        values: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Read a style for every pixel from the values of `domain` (eqs. 2-4).

        Args:
            content: (B, key_dim, h, w).
            classes: (B, h, w) int64: pixels read only items of their class. None: all items, as at test time.
            state: read this instead of the stored memory.
            values: read these values, (N, value_dim) or one set a picture (B, N, value_dim), instead of the domain's.

        Returns:
            style (B, value_dim, h, w) and read weights (B, N, h, w), which sum to 1 over N.
        """
        weights = self.address(content, classes, state)
        style = self.recall(weights, domain, state, values)
        return style, weights

    def address(self, content: Tensor, classes: Tensor | None = None, state: MemoryState | None = None) -> Tensor:
        """Which items every pixel reads (eqs. 2-3): weights (B, N, h, w), the same for all domains and values. See `read`."""
        keys = (state or self.stored()).keys
        with torch.autocast(content.device.type, enabled=False):
            pixels = unit(content).flatten(2)  # (B, C, P)
            scores = unit(keys, dim=-1).to(pixels.dtype) / self.read_temperature @ pixels  # (B, N, P)  eq. 3
            if classes is not None:
                scores = scores.masked_fill(~self._allowed(classes.flatten(1)).mT, -torch.inf)
            weights = scores.softmax(dim=1)  # eq. 2
        return weights.reshape(weights.shape[0], -1, *content.shape[-2:])

    def recall(self, weights: Tensor, domain: int, state: MemoryState | None = None, values: Tensor | None = None) -> Tensor:
        """The style (B, value_dim, h, w) of pixels that read with these weights (eq. 4). See `read`."""
        chosen = (state or self.stored()).values[domain] if values is None else values
        with torch.autocast(weights.device.type, enabled=False):
            style = chosen.to(weights.dtype).mT @ weights.flatten(2)  # (B, C, P)  eq. 4
        return style.reshape(weights.shape[0], -1, *weights.shape[-2:])

    def update(
        self,
        contents: Sequence[Tensor | None],
        styles: Sequence[Tensor | None],
        classes: Sequence[Tensor | None],
        reduce: Reduce | None = None,
    ) -> MemoryState:
        """What the memory becomes when these pixels are written to it (eqs. 5-6). Differentiable; stores nothing.

        Args:
            contents: per domain (B, key_dim, h, w), or None where the domain is absent.
            styles: per domain (B, value_dim, h, w).
            classes: per domain (B, h, w) int64.
            reduce: differentiable sum over ranks, applied to numerators and denominators before they meet.
        """
        reduce = reduce or alone
        if not len(contents) == len(styles) == len(classes) == len(self.values):
            raise ValueError(f"update takes one content, style and class map for each of the {len(self.values)} domains")
        with torch.autocast(self.keys.device.type, enabled=False):
            sums = [
                self._weighted_sums(c, s, k) if c is not None and s is not None and k is not None else None
                for c, s, k in zip(contents, styles, classes, strict=True)
            ]
            like = next((item for item in sums if item is not None), self.keys)
            empty = like.new_zeros(len(self.keys), 1 + self.keys.shape[1] + self.values.shape[2])
            joint = reduce(torch.stack([empty if item is None else item for item in sums]))  # (D, N, 1 + C_k + C_v)
            mass, content, style = joint.split_with_sizes([1, self.keys.shape[1], self.values.shape[2]], dim=-1)
            mean = mass.clamp_min(torch.finfo(mass.dtype).tiny)
            touched = mass > 0
            keys = self._blend(self.keys, (content / mean).sum(0), touched.any(0))
            values = self._blend(self.values, style / mean, touched)
        return MemoryState(keys, values, mass[..., 0].detach())

    def commit(self, state: MemoryState, usage_rate: float = 0.02) -> None:
        """Store a state, detached, and note which items it wrote."""
        with torch.no_grad():
            self.keys.copy_(state.keys)
            self.values.copy_(state.values)
            mass, total = self._mass_of(state)
            share = mass / total.clamp_min(torch.finfo(mass.dtype).tiny)
            self.usage.copy_(torch.where(total > 0, self.usage.lerp(share, usage_rate), self.usage))
            self.idle.copy_(self._idle_after(mass, total))

    def idle_after(self, state: MemoryState) -> Tensor:
        """What `idle` (N,) becomes when this state is stored."""
        return self._idle_after(*self._mass_of(state))

    def _idle_after(self, mass: Tensor, total: Tensor) -> Tensor:
        return torch.where(total > 0, torch.where(mass > 0, 0, self.idle + 1), self.idle)

    def _mass_of(self, state: MemoryState) -> tuple[Tensor, Tensor]:
        """What a state wrote to each item (N,), and to all items of its class."""
        mass = state.mass.sum(0).to(self.usage.dtype)
        of_class = torch.zeros(len(self.class_names), dtype=mass.dtype, device=mass.device).index_add(0, self.item_class, mass)
        return mass, of_class[self.item_class]

    def revive(self, items: Tensor, domain: int, keys: Tensor, values: Tensor) -> None:
        """Start items (M,) anew from pixels of a domain: contents (M, key_dim) and styles (M, value_dim)."""
        with torch.no_grad():
            self.keys[items] = unit(keys, dim=-1).to(self.keys)
            self.values[domain, items] = unit(values, dim=-1).to(self.values)
            self.idle[items] = 0

    def collect(self, content: Tensor, style: Tensor, domain: int, classes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The values that each picture alone would give, each cell to its nearest item (of its class (B, h, w), if given).

        Returns values (B, N, value_dim), differentiable in `style`, and the number of cells (B, N) behind each; items that a
        picture does not show keep the stored value.
        """
        with torch.autocast(content.device.type, enabled=False):
            pixels, styles = unit(content).flatten(2).mT, unit(style).flatten(2).mT  # (B, P, C)
            scores = pixels.detach() @ unit(self.keys, dim=-1).to(pixels.dtype).mT  # (B, P, N)
            if classes is not None:
                scores = scores.masked_fill(~self._allowed(classes.flatten(1)), -torch.inf)
            chosen = F.one_hot(scores.argmax(-1), len(self.keys)).to(scores.dtype)
            sums, cells = chosen.mT @ styles, chosen.sum(1)  # (B, N, C), (B, N)
            return torch.where(cells[..., None] > 0, unit(sums, dim=-1), self.values[domain].to(sums.dtype)), cells

    def health(self) -> dict[str, float]:
        """Per class: mean cosine between different keys, and the number of items that receive under 1 % of an even share."""
        report: dict[str, float] = {}
        for index, name in enumerate(self.class_names):
            items = self.item_class == index
            keys, count = self.keys[items], int(items.sum())
            if count > 1:
                report[f"memory/cosine/{name}"] = float((keys @ keys.mT).fill_diagonal_(0).sum() / (count * (count - 1)))
            report[f"memory/dead/{name}"] = float((self.usage[items] < 0.01 / count).sum())
        return report

    def _allowed(self, classes: Tensor) -> Tensor:
        return classes[..., None] == self.item_class  # (..., P, N)

    def _weighted_sums(self, content: Tensor, style: Tensor, classes: Tensor) -> Tensor:
        """Per item the sums over pixels of w, w * c and w * s, side by side (N, 1 + key_dim + value_dim)."""
        pixels = unit(content).movedim(1, -1).flatten(0, 2)  # (P, C)
        styles = style.movedim(1, -1).flatten(0, 2).to(pixels.dtype)
        cosines = pixels @ self.keys.to(pixels.dtype).mT  # (P, N)  eq. 3
        allowed = self._allowed(classes.flatten())
        if self.assignment == "hard":
            nearest = cosines.masked_fill(~allowed, -torch.inf).argmax(-1)
            allowed = allowed & F.one_hot(nearest, len(self.keys)).bool()
        weights = ((cosines - 1) / self.update_temperature).exp() * allowed  # -1: cosines end at 1, so exp cannot overflow; eq. 5
        return weights.mT @ torch.cat([torch.ones_like(pixels[:, :1]), pixels, styles], dim=1)

    def _blend(self, old: Tensor, new: Tensor, touched: Tensor) -> Tensor:
        old = old.to(new.dtype)
        mixed = old + new if self.update_rate is None else torch.lerp(old, new, self.update_rate)
        return torch.where(touched, unit(mixed, dim=-1), old)  # eq. 6


def unit(tensor: Tensor, dim: int = 1) -> Tensor:
    """L2-normalised along `dim`, in fp32 or better."""
    wide = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
    return F.normalize(wide, dim=dim)
