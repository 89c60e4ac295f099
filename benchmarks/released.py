"""A step of the authors' released MGUIT and GMM-UNIT code beside ours: the same networks, sizes and batches, in one process.

None of that code is here; `--released FOLDER` names a folder with checkouts of the repositories (MGUIT/ of somijeong, RG-UNIT/ of
yhlleo). It runs as it is but for three things: `.cuda()` does nothing; the content critic, which needs pictures of 216 px, gets
padding below that, as ours has; and GMM-UNIT runs without its perceptual loss, whose weights are a download. What it logs and
draws around a step is not counted. Steps are those of `train.py` and of the solver, from pictures to updated weights.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.steps import step
from benchmarks.timing import Time, Work, ceilings, interleaved, table

ITEMS = (10, 5, 2, 3)
GMM_UNIT: dict[str, Any] = {"model": {"attention": False}, "weights": {"iso": 0.0}}  # as released
AVERAGED: dict[str, Any] = {"ema": 0.999}


def measure(folder: Path, sizes: tuple[int, ...], repeats: int) -> dict[str, Time]:
    """The released step and ours, at batch 1, plain and in bfloat16."""
    work: dict[str, Work] = dict(ceilings())
    bf16 = {"precision": "bf16"}
    with _without_cuda(), _importing(folder / "MGUIT", "model.py"), _importing(folder / "RG-UNIT", "core"):
        for size in sizes:
            work[f"MGUIT released, {size} px"] = _mguit(size)
            work[f"MGUIT ours, {size} px"] = step("mguit:released", size, 1)
            work[f"MGUIT ours, bf16, {size} px"] = step("mguit:released", size, 1, engine=bf16)
            work[f"GMM-UNIT released, {size} px"] = _gmm_unit(size, folder / "RG-UNIT")
            work[f"GMM-UNIT ours, {size} px"] = step("gmm_unit:paper", size, 1, **GMM_UNIT, engine=AVERAGED)
            work[f"GMM-UNIT ours, bf16, {size} px"] = step("gmm_unit:paper", size, 1, **GMM_UNIT, engine=AVERAGED | bf16)
        work["memory released, P 8100"] = _memory(90)
        from benchmarks.parts import memory

        work["memory ours, P 8100"] = memory(8100, value_dim=128)
        return interleaved(work, repeats)


def page(times: dict[str, Time]) -> str:
    """Ratios to the released code first."""
    rows, released = [], 1.0
    for name, time in times.items():
        if "released" in name:
            released = time.median
        if "released" in name or "ours" in name:
            rows.append([name, f"{released / time.median:.2f}", f"{time.median * 1e3:.0f}", f"{time.flops / 1e9:.0f}"])
    return table(["step, batch 1", "times as fast", "CPU ms", "GFLOP"], rows)


def _mguit(size: int) -> Work:
    made: Any = importlib.import_module("model")
    known = {"input_dim_a": 3, "input_dim_b": 3, "dis_scale": 3, "dis_norm": "Instance", "dis_spectral_norm": False}
    model = made.MGUIT(SimpleNamespace(**known, kdim=256, vdim=128, msize=ITEMS))
    model.gpu = 0
    model.initialize()
    if size < 216:
        model.disContent = _PaddedContentCritic()
        model.disContent_opt = torch.optim.Adam(model.disContent.parameters(), lr=4e-5, betas=(0.5, 0.999), weight_decay=1e-4)
    items = _items()
    pictures = [torch.rand(1, 3, size, size) * 2 - 1 for _ in range(2)]
    masks = _masks(size // 4)

    def work() -> None:
        nonlocal items
        items = model.update_D(*pictures, masks, masks, items)
        model.update_EG()

    return work


def _gmm_unit(size: int, folder: Path) -> Work:
    """One update of the critic and one of the generator, with a drawn style.

    An iteration of theirs takes both once more with the style of a picture, so it is two of these.
    """
    for name, what in (("munch", {"Munch": SimpleNamespace}), ("timm.scheduler.cosine_lr", {}), ("timm.scheduler.step_lr", {})):
        stand_in = types.ModuleType(name)  # of packages that a step does not use
        stand_in.__dict__.update({"CosineLRScheduler": None, "StepLRScheduler": None, **what})
        sys.modules.setdefault(name, stand_in)
    core: Any = importlib.import_module("core.gmmunit_solver")
    settings = yaml.safe_load((folder / "configs" / "gmmunit_celeba.yaml").read_text())
    settings |= {"batch_size": 1, "lambda_vgg": 0.0}
    settings["dis"]["img_size"] = size
    generator, critic = core.AdaINGen(settings["gen"]), core.MsImageDis(settings["dis"])
    generator.apply(core.weights_init("kaiming"))
    critic.apply(core.weights_init("gaussian"))
    averages = [copy.deepcopy(net) for net in (generator, critic)]
    optimisers = [core.build_optimizer(net, base_lr=settings["lr"]) for net in (generator, critic)]
    image, wanted, own = (
        torch.rand(1, 3, size, size) * 2 - 1,
        torch.tensor([[1.0, 0, 0, 1, 1]]),
        torch.tensor([[0.0, 1, 0, 1, 1]]),
    )
    mixtures = [core.assign_gmm_componet(labels, num_cls=5, mode="CelebA") for labels in (own, wanted)]

    def update(which: int, loss: Tensor) -> None:
        optimisers[which].zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_((generator, critic)[which].parameters(), 2.0)
        optimisers[which].step()

    def work() -> None:
        update(1, core.compute_d_loss(critic, generator, settings, image, None, own, *mixtures, False, "cpu")[0])
        update(0, core.compute_g_loss(critic, generator, settings, image, None, own, wanted, *mixtures, False, device="cpu")[0])
        for net, average in zip((generator, critic), averages, strict=True):
            core.moving_average(net, average)

    return work


def _memory(side: int) -> Work:
    memory: Any = importlib.import_module("memory").Memory(ITEMS, 256, 128)
    items, masks = _items(), _masks(side)
    contents = [F.normalize(torch.randn(1, 256, side, side), dim=1) for _ in range(2)]
    styles = [torch.randn(1, 128, side, side) for _ in range(2)]

    def work() -> None:
        with torch.no_grad():
            memory.forward(contents[0], styles[0], contents[1], styles[1], masks, masks, items)

    return work


class _PaddedContentCritic(nn.Module):
    """Its convolutions and widths, with the padding that small pictures need."""

    def __init__(self) -> None:
        super().__init__()
        layers = [layer for _ in range(3) for layer in (nn.Conv2d(256, 256, 7, 2, 3), nn.LeakyReLU())]
        self.body = nn.Sequential(*layers, nn.Conv2d(256, 1, 1))

    def forward(self, content: Tensor) -> list[Tensor]:
        return [self.body(content).mean(dim=(-2, -1)).view(-1)]


def _items() -> list[list[Tensor]]:
    return [[F.normalize(torch.randn(count, 256), dim=1), torch.randn(count, 128), torch.randn(count, 128)] for count in ITEMS]


def _masks(side: int) -> Tensor:
    """Four classes that all show: background, and three boxes."""
    classes = torch.zeros(1, side, side, dtype=torch.long)
    classes[:, : side // 4, : side // 4] = 1
    classes[:, side // 2 : side // 2 + 3, :4] = 2
    classes[:, -4:, -4:] = 3
    return torch.stack([(classes == index).float() for index in range(len(ITEMS))], dim=1)


@contextlib.contextmanager
def _without_cuda() -> Iterator[None]:
    kept = torch.Tensor.cuda, torch.nn.Module.cuda
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    torch.nn.Module.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.cuda, torch.nn.Module.cuda = kept  # type: ignore[method-assign]


@contextlib.contextmanager
def _importing(folder: Path, part: str) -> Iterator[None]:
    if not (folder / part).exists():
        raise ValueError(f"{folder} is no checkout of the released code: it has no {part}")
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
