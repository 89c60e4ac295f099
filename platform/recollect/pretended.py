"""A GPU that is not there, for tests on machines without one: tensors on it have shapes and devices, and no numbers.

What runs on it shows faults that only a GPU would show: a tensor left on the host where one on the device is needed; a number
that is read from the device, for which a GPU has to finish all that it was given (`.item()`, `bool(tensor)`, `nonzero`); and a
copy to it that waits until it has. Each raises here. Tensors on the host are real.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from recollect.training import finite

COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class _Pretended(FakeTensorMode):
    """Fakes what touches the device, and runs the rest."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.strict = False  # whether a copy to the device that the host waits for is an error

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.strict and func in COPIES and _arrives(args, kwargs) and not kwargs.get("non_blocking"):
            raise AssertionError("the host waits for the device: a copy to it that is not `recollect.batch.onto`'s")
        if any(isinstance(leaf, FakeTensor) or _is_device(leaf) for leaf in tree_leaves((args, kwargs))):
            answer = super().__torch_dispatch__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
            self.fake_tensor_converter.tensor_memo.clear()  # its references keep parameters from being moved
            return answer
        return func(*args, **kwargs)


def _arrives(args: Any, kwargs: Any) -> bool:
    """Whether a copy goes from the host to the device."""
    if kwargs.get("device") is not None:
        return _is_device(kwargs["device"]) and bool(args[0].device.type == "cpu")
    return len(args) > 1 and isinstance(args[1], Tensor) and bool(args[0].device.type == "cuda" and args[1].device.type == "cpu")


def _is_device(leaf: object) -> bool:
    return isinstance(leaf, torch.device) and leaf.type == "cuda"


@contextmanager
def pretended_gpu() -> Iterator[_Pretended]:
    """Inside, `cuda` is a device to which everything can be handed and from which nothing can be read.

    While `strict` is set on what it gives, a copy to the device for which the host would wait is an error too.

    There is no backward pass: its threads want a real one, so gradients are zeros of their parameters' shapes.
    """

    def grad(loss: Tensor, parameters: Sequence[Tensor], *args: Any, **kwargs: Any) -> list[Tensor]:
        assert loss.device.type == "cuda" and loss.ndim == 0
        return [torch.zeros_like(parameter) for parameter in parameters]

    fine = mock.patch.object(finite, "_on_its_way", lambda flag: (torch.zeros(()), None))  # an event would want a driver
    pinned = mock.patch.object(Tensor, "pin_memory", lambda tensor: tensor)  # likewise
    with mock.patch.object(torch.autograd, "grad", grad), fine, pinned, _Pretended() as pretended:
        yield pretended
