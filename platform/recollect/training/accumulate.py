"""Gradient accumulation: a batch in parts, one after the other, for less memory; the step is that of the whole batch.

Most terms are means over samples, and their gradients add up. What joins samples (the memory of MGUIT, an image pool, a mean over
what is known) goes through `step.reduce`, as it does over ranks, and a part is told the sum over all parts: parts are asked for
their summands first, without gradients, and a sum's own gradient goes back through each part's summand at the end (as Gao et al.
2021, GradCache, do for the embeddings of a contrastive loss). So a method that obeys the ranks rule needs nothing more for this.

A summand is computed again for each sum that comes after it: sums that are asked for early cost little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from recollect.objective import Terms
from recollect.trainable import Reduce, Step

_Answer = TypeVar("_Answer")


class _AsksForMore(Exception):
    """A part came to a sum that is not known yet; its summand stands last in `_Sums.given`."""


class _Sums:
    """The `reduce` of a step in parts: answers with the sums over parts and ranks that are known, in the order they are asked."""

    def __init__(self, reduce: Reduce) -> None:
        self.reduce = reduce
        self.known: list[Tensor] = []  # leaves, with a gradient where their summands have one
        self.given: list[Tensor] = []  # the summands of the part that is being asked
        self.up_to: int | None = None  # answer only so many

    def __call__(self, summand: Tensor) -> Tensor:
        self.given.append(summand)
        index = len(self.given) - 1
        if index >= (len(self.known) if self.up_to is None else self.up_to):
            raise _AsksForMore
        return self.known[index]

    def _end(self) -> Tensor:
        """The summand that was given last; no graph is kept."""
        last = self.given[-1]
        self.given = []
        return last

    def ask(self, call: Callable[[Step], _Answer], part: Step) -> _Answer:
        """What `call` says of a part, whose cache stays as it was unless the answer is whole."""
        self.given = []
        attempt = replace(part, reduce=self, cache=dict(part.cache))
        answer = call(attempt)
        part.cache.update(attempt.cache)
        return answer

    def others(self, call: Callable[[Step], _Answer], part: Step) -> _Answer:
        """What `call` says of a part when all sums are known."""
        try:
            return self.ask(call, part)
        except _AsksForMore:
            raise AssertionError("one part of a batch asks for a sum that another does not ask for") from None

    def summand(self, call: Callable[[Step], object], part: Step, index: int) -> Tensor:
        """What a part gives to the sum of this index."""
        self.up_to = index
        try:
            self.ask(call, part)
        except _AsksForMore:
            return self._end()
        finally:
            self.up_to = None
        raise AssertionError("one part of a batch asks for a sum that another does not ask for")

    def first(self, call: Callable[[Step], _Answer], parts: Sequence[Step]) -> _Answer:
        """What `call` says of the first part, when every sum that it asks for has been found."""
        while True:
            try:
                return self.ask(call, parts[0])
            except _AsksForMore:
                total = self._end().detach().clone()
            with torch.no_grad():
                for part in parts[1:]:
                    total += self.summand(call, part, len(self.known))
                total = self.reduce(total)
            self.known.append(total.requires_grad_(total.is_floating_point()))  # the same on every rank and in every part


def accumulated(
    terms: Callable[[Step], Terms],
    loss: Callable[[Terms], Tensor],
    parts: Sequence[Step],
    parameters: Sequence[nn.Parameter],
) -> tuple[Terms, list[Tensor | None]]:
    """The terms of a batch in parts of one size, and the gradients of its loss for these parameters.

    Args:
        terms: the terms of a step, by name.
        loss: what is differentiated, of terms.
        parts: the parts of a step; what `terms` leaves in their caches is theirs.
    """
    sums, share = _Sums(parts[0].reduce), 1 / len(parts)
    found: Terms = {}
    grads: list[Tensor | None] = [None] * len(parameters)  # then those of the sums
    for number, part in enumerate(parts):
        own = sums.first(terms, parts) if number == 0 else sums.others(terms, part)
        if not own:  # every term has weight zero
            return {}, grads
        joined = [total for total in sums.known if total.requires_grad]
        grads += [None] * (len(parameters) + len(joined) - len(grads))
        _add(grads, torch.autograd.grad(loss(own) * share, [*parameters, *joined], allow_unused=True))
        for name, term in own.items():
            found[name] = found.get(name, 0) + term.detach() * share
    _through_sums(terms, sums, parts, parameters, grads)
    return found, grads[: len(parameters)]


def _through_sums(
    terms: Callable[[Step], Terms],
    sums: _Sums,
    parts: Sequence[Step],
    parameters: Sequence[nn.Parameter],
    grads: list[Tensor | None],
) -> None:
    """Add what reaches the parameters through the sums, the last one first: it may itself be made of those before."""
    places = [index for index, total in enumerate(sums.known) if total.requires_grad]
    for order in reversed(range(len(places))):
        grad = grads[len(parameters) + order]
        grad = torch.zeros_like(sums.known[places[order]]) if grad is None else grad
        with torch.no_grad():
            grad = parts[0].reduce(grad)  # every rank's loss depends on every rank's summands
        before = [sums.known[place] for place in places[:order]]
        for part in parts:
            summand = sums.summand(terms, part, places[order])
            if summand.requires_grad:
                _add(grads, torch.autograd.grad(summand, [*parameters, *before], grad, allow_unused=True))


def _add(grads: list[Tensor | None], more: Sequence[Tensor | None]) -> None:
    """Add to the first of some gradients, where they have anything."""
    for place, new in enumerate(more):
        if new is not None:
            old = grads[place]
            grads[place] = new if old is None else old + new


def committed(after_step: Callable[[Step], None], parts: Sequence[Step]) -> None:
    """Let a method commit its state once, from all parts of a step: it asks for its sums before it changes anything."""
    _Sums(parts[0].reduce).first(after_step, parts)
