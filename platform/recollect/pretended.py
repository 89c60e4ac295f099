"""A GPU that is not there, for tests on machines without one: tensors on it have shapes and devices, and no numbers.

What runs on it shows two faults that only a GPU would show: a tensor left on the host where one on the device is needed, and a
number that is read from the device, for which a GPU has to finish all that it was given (`.item()`, `bool(tensor)`, `nonzero`).
Either raises here. Tensors on the host are real.
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


class _Pretended(FakeTensorMode):
    """Fakes what touches the device, and runs the rest."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(isinstance(leaf, FakeTensor) or _is_device(leaf) for leaf in tree_leaves((args, kwargs))):
            answer = super().__torch_dispatch__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
            self.fake_tensor_converter.tensor_memo.clear()  # its references keep parameters from being moved
            return answer
        return func(*args, **kwargs)


def _is_device(leaf: object) -> bool:
    return isinstance(leaf, torch.device) and leaf.type == "cuda"


@contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """Inside, `cuda` is a device to which everything can be handed and from which nothing can be read.

    There is no backward pass: its threads want a real one, so gradients are zeros of their parameters' shapes.
    """

    def grad(loss: Tensor, parameters: Sequence[Tensor], *args: Any, **kwargs: Any) -> list[Tensor]:
        assert loss.device.type == "cuda" and loss.ndim == 0
        return [torch.zeros_like(parameter) for parameter in parameters]

    fine = mock.patch.object(finite, "_on_its_way", lambda flag: (torch.zeros(()), None))  # an event would want a driver
    with mock.patch.object(torch.autograd, "grad", grad), fine, _Pretended():
        yield torch.device("cuda")
