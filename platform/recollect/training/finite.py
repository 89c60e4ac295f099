"""Whether everything stayed finite, asked of a GPU without waiting for it.

A step's updates are handed to the device together with a number that says whether anything so far was not finite; an optimiser
that is given it (`found_inf`, as gradient scalers do) changes nothing then, on the device. What the number was is read when the
device has the next step to work on, so it never stands still for the answer, and the state is still that of the first phase that
failed. On a CPU nothing is gained by waiting, and it is read at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class NotFinite(ValueError):
    """A loss or gradient that is not finite; says the step, the phase and terms, and where the state was saved."""

    step: int  # which is not taken


class _Note(NamedTuple):
    """What a phase had to say."""

    step: int
    phase: str
    names: Sequence[str]
    values: Tensor
    broken: Tensor  # on the host, once `there` has come
    there: torch.cuda.Event | None


class Watch:
    """Looks after the steps of a training.

    Args:
        device: where the steps are taken.
        behind: read the answer a step later; None: on a GPU.

    `broken` (a scalar on the device) is 1 from the first phase on that was not finite.
    """

    def __init__(self, device: torch.device, behind: bool | None = None) -> None:
        self.behind = device.type == "cuda" if behind is None else behind
        self.broken = torch.zeros((), device=device)
        self._notes: list[_Note] = []

    def note(self, step: int, phase: str, names: Sequence[str], values: Tensor, finite: Tensor) -> None:
        """Note whether a phase was finite (a bool on the device). Raises NotFinite where that can be known at once."""
        self.broken = torch.maximum(self.broken, (~finite).to(self.broken))
        self._notes.append(_Note(step, phase, names, values, *_on_its_way(self.broken)))
        if not self.behind:
            self.check(step + 1)

    def check(self, before: int) -> None:
        """Raise NotFinite for the first phase of the steps before this one that was not finite."""
        while self._notes and self._notes[0].step < before:
            note = self._notes.pop(0)
            if note.there is not None:
                note.there.synchronize()
            if note.broken:
                self._notes.clear()
                wrong = [name for name, value in zip(note.names, note.values.tolist(), strict=True) if not abs(value) < torch.inf]
                error = NotFinite(f"step {note.step}, phase {note.phase}: {', '.join(wrong) or 'a gradient'} is not finite")
                error.step = note.step
                raise error


def _on_its_way(flag: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A scalar on the host, and what says that it is there."""
    if flag.device.type != "cuda":
        return flag, None
    here, there = torch.empty((), dtype=flag.dtype, pin_memory=True), torch.cuda.Event()  # type: ignore[no-untyped-call]
    here.copy_(flag, non_blocking=True)
    there.record()
    return here, there
