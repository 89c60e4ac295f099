"""Gradients of several ranks: what goes out when, and what every rank ends with."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from recollect.training import sync
from recollect.training.sync import Gradients, Group, Ranks


class Twin(Ranks):
    """Two ranks with the same gradients; notes the parameters of each bucket, and whether it went out in the backward pass."""

    world = 2

    def __init__(self) -> None:
        self.sent: list[tuple[int, bool]] = []
        self.waited = 0

    def average(self, flat: Tensor) -> Tensor:
        return flat

    def sum_aside(self, flat: Tensor) -> sync.Going:
        self.sent.append((flat.numel(), torch._C._current_graph_task_id() != -1))
        flat *= 2
        return self

    def wait(self) -> None:
        self.waited += 1


@pytest.fixture(autouse=True)
def _small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "BUCKET", 4 * 4 * 4 * 2)  # two layers of four by four


@pytest.fixture
def layers() -> Iterator[nn.ModuleList]:
    torch.manual_seed(0)
    yield nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(6))


def passed(layers: nn.ModuleList, count: int) -> Tensor:
    x = torch.ones(3, 4)
    for layer in list(layers)[:count]:
        x = layer(x).tanh()
    return x.square().sum()


def test_buckets_go_out_while_the_backward_pass_goes_on(layers: nn.ModuleList) -> None:
    ranks, parameters = Twin(), list(layers.parameters())
    expected = torch.autograd.grad(passed(layers, 6), parameters)
    gradients = Gradients(ranks)
    gradients.take(passed(layers, 6), parameters)
    assert ranks.sent == [(32, True)] * 3
    terms, finite = gradients.finish(torch.tensor([1.0, 2.0]))
    assert terms.tolist() == [1.0, 2.0] and finite and ranks.waited == 3
    for parameter, grad in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_what_a_loss_does_not_reach_is_zero_and_keeps_the_order_of_buckets(layers: nn.ModuleList) -> None:
    """The last layers come first in the order; where they never get a gradient, the others wait for the end."""
    ranks, parameters = Twin(), list(layers.parameters())
    gradients = Gradients(ranks)
    gradients.take(passed(layers, 3), parameters)
    assert [size for size, _ in ranks.sent] == [32] * 3 and not any(inside for _, inside in ranks.sent)
    gradients.finish(torch.ones(1))
    grads = [parameter.grad for parameter in parameters]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads[:3])
    assert all(grad is not None and grad.abs().sum() == 0 for grad in grads[3:])


def test_gradients_that_are_there_already_are_averaged_too(layers: nn.ModuleList) -> None:
    ranks, parameters = Twin(), list(layers.parameters())
    gradients = Gradients(ranks)
    gradients.give([torch.full_like(p, float(i)) if i else None for i, p in enumerate(parameters)], parameters)
    gradients.finish(torch.ones(1))
    assert [float(parameter.grad.mean()) for parameter in parameters if parameter.grad is not None] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_one_number_that_is_not_finite_is_seen(layers: nn.ModuleList, wrong: float) -> None:
    parameters = list(layers.parameters())
    gradients = Gradients(Ranks())
    grads = [torch.zeros_like(p) for p in parameters]
    grads[3][1, 2] = wrong
    gradients.give(grads, parameters)
    assert not gradients.finish(torch.ones(1))[1]
    again = Gradients(Ranks())
    again.take(passed(layers, 6), parameters)
    assert again.finish(torch.ones(1))[1] and not again.finish(torch.tensor([wrong]))[1]


def reach_differently(rank: int, folder: str) -> None:
    """One of two ranks; the loss of the second does not reach the last layer, and both hold a sum over ranks."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=30)
    )
    torch.manual_seed(0)
    first, last = nn.Linear(4, 4), nn.Linear(4, 4)
    ranks, gradients = Group(), Gradients(Group())
    hidden = first(torch.ones(3, 4))
    joined = ranks.reduce(hidden.sum(0))
    loss = (last(hidden).sum() if rank == 0 else hidden.sum()) * joined.mean()
    gradients.take(loss, [*first.parameters(), *last.parameters()])
    gradients.finish(torch.ones(1))
    torch.save([p.grad for p in (*first.parameters(), *last.parameters())], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_ranks_that_reach_different_parameters_do_not_wait_for_each_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=reach_differently, args=(rank, str(tmp_path))) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(map(torch.equal, one, other)) and all(grad.abs().sum() > 0 for grad in one)
