"""What is done to residual blocks: compiled code draws what they drew, and where nothing can be compiled training goes on."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from recollect.batch import Domains
from recollect.config import Optimiser, preset
from recollect.testing import largest_difference, noise_batches
from recollect.training.blocks import blocks
from recollect.training.trainer import Trainer

DOMAINS = Domains(("sunny", "night"), ("background", "car", "person", "sign"))


def trained(**engine: Any) -> Trainer:
    """Two steps of a small MGUIT."""
    small = {"width": 8, "critic_width": 8, "critic_layers": 2, "content_blocks": 1, "generator_blocks": 1}
    data = {"domains": DOMAINS.names, "size": 32}
    run = preset("mguit:tiny", data=data, model=small, engine={"batch_size": 2, "threads": 1, "device": "cpu", **engine})
    run = run.model_copy(update={"optimisers": {"default": Optimiser(kind="sgd", lr=0.01)}})  # Adam makes much of little
    trainer = Trainer(run, DOMAINS, device="cpu")
    for _ in range(2):
        trainer.update(noise_batches(run, DOMAINS, trainer.model.stride, range(2)))
    return trainer


def test_where_nothing_can_be_compiled_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object) -> Any:
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    with caplog.at_level(logging.WARNING, "recollect"):
        found = trained(compile=True)
    assert "engine.compile does nothing here: no C++ compiler; going on without" in caplog.text and "and more" not in caplog.text
    assert largest_difference(found.model.state_dict(), trained().model.state_dict())[0] == 0


@pytest.mark.slow
def test_compiled_blocks_draw_what_they_drew() -> None:
    plain, quick = trained(precision="fp64"), trained(precision="fp64", compile=True)
    assert all(block._compiled_call_impl is not None for block in blocks(quick.model)) and list(blocks(quick.model))
    assert largest_difference(plain.model.state_dict(), quick.model.state_dict())[0] < 1e-10
