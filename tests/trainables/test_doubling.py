"""A doubling convolution is nearest-neighbour doubling, reflection padding and a convolution: numbers and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from trainables.parts.blocks import DoublingConv


def three_steps(x: Tensor, layer: DoublingConv) -> Tensor:
    doubled = F.interpolate(x, scale_factor=2, mode="nearest")
    return F.conv2d(F.pad(doubled, (layer.kernel_size[0] // 2,) * 4, mode="reflect"), layer.weight, layer.bias)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([3, 5]), st.integers(0, 5), st.integers(0, 5), st.integers(1, 3), st.integers(1, 4), st.integers(0, 99))
def test_values_and_gradients_are_those_of_the_three_steps(
    kernel: int, higher: int, wider: int, inputs: int, outputs: int, seed: int
) -> None:
    torch.manual_seed(seed)
    layer = DoublingConv(inputs, outputs, kernel).double()
    x = torch.randn(2, inputs, 2 + higher, 2 + wider, dtype=torch.float64, requires_grad=True)
    tensors = [x, layer.weight, layer.bias]
    assert layer.bias is not None
    wanted, found = three_steps(x, layer), layer(x)
    assert found.shape == wanted.shape and torch.allclose(found, wanted, rtol=0, atol=1e-13)
    weights = torch.randn_like(wanted)
    for expected, gradient in zip(
        torch.autograd.grad((wanted * weights).sum(), tensors), torch.autograd.grad((found * weights).sum(), tensors), strict=True
    ):
        assert torch.allclose(gradient, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", [3, 5])
def test_in_bf16_it_errs_no_more_than_the_three_steps(kernel: int) -> None:
    torch.manual_seed(0)
    layer, x = DoublingConv(64, 32, kernel), torch.randn(2, 64, 16, 16)
    true = three_steps(x.double(), layer.double())
    layer = layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        one, three = layer(x), three_steps(x, layer)
    assert one.dtype == torch.bfloat16
    assert (one - true).abs().mean() < 1.1 * (three - true).abs().mean()


def test_it_has_fewer_products_and_no_other_state() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    counts = {}
    for kernel in (3, 5):
        layer, x = DoublingConv(64, 32, kernel), torch.randn(1, 64, 32, 32)
        for name, call in {"one": layer, "three": lambda x, layer=layer: three_steps(x, layer)}.items():
            with FlopCounterMode(display=False) as counter:
                call(x)
            counts[kernel, name] = counter.get_total_flops()
        assert layer.state_dict().keys() == {"weight", "bias"}
    assert counts[3, "one"] < 0.5 * counts[3, "three"] and counts[5, "one"] < 0.45 * counts[5, "three"]


def test_other_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="3 or 5"):
        DoublingConv(1, 1, 7)
