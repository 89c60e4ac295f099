"""What is not finite changes nothing, also where a GPU is asked for the answer a step later."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from recollect.batch import Batch, Domains
from recollect.config import Run, preset
from recollect.testing import largest_difference, noise_batches
from recollect.training.finite import NotFinite, Watch
from recollect.training.trainer import Trainer

DOMAINS = Domains(("sunny", "night"), ("background", "car"))
SMALL = {"width": 8, "critic_width": 8, "critic_layers": 2, "content_blocks": 2, "generator_blocks": 2}


def late(kind: str = "adam") -> Trainer:
    """A trainer that asks for the answer a step later, as on a GPU."""
    memory = {"value_dim": 8, "items_per_class": {"background": 3, "car": 2}}
    run: Run = preset(
        "mguit:tiny",
        data={"domains": DOMAINS.names, "size": 32},
        model={**SMALL, "memory": memory},
        optimisers={"default": {"kind": kind, "momentum": 0.5}} if kind == "sgd" else {"default": {"kind": kind}},
        engine={"batch_size": 2, "ema": 0.9},
    )
    trainer = Trainer(run, DOMAINS, device="cpu")
    trainer.watch = Watch(trainer.device, behind=True)
    return trainer


def batches(trainer: Trainer, step: int, poisoned: bool = False) -> tuple[Batch, ...]:
    made = noise_batches(trainer.run, DOMAINS, trainer.model.stride, range(2), step)
    if poisoned:
        made[1].images[0, 0, 0, 0] = float("nan")
    return made


def everything(trainer: Trainer) -> dict[str, Tensor]:
    """Weights, buffers and the optimisers' state."""
    found = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    assert trainer.ema is not None
    found |= {f"ema/{name}": tensor.clone() for name, tensor in trainer.ema.state_dict().items()}
    for net, optimiser in trainer.optimisers.items():
        for index, state in optimiser.state_dict()["state"].items():
            found |= {f"{net}/{index}/{name}": value.clone() for name, value in state.items() if isinstance(value, Tensor)}
    return found


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_nothing_changes_from_the_first_phase_on_that_is_not_finite(kind: str) -> None:
    trainer = late(kind)
    for step in range(2):
        trainer.update(batches(trainer, step))
    before = everything(trainer)
    trainer.update(batches(trainer, 2, poisoned=True))  # nobody has looked yet
    assert trainer.step == 3
    with pytest.raises(NotFinite, match=r"step 2, phase translate: .*self_rec.* is not finite"):
        trainer.update(batches(trainer, 3))
    assert trainer.step == 2
    assert largest_difference(before, everything(trainer))[0] == 0


def test_who_looks_at_the_state_asks_at_once() -> None:
    trainer = late()
    trainer.update(batches(trainer, 0))
    trainer.settle()
    trainer.update(batches(trainer, 1, poisoned=True))
    with pytest.raises(NotFinite, match="step 1, phase translate"):
        trainer.settle()


def test_a_gradient_that_is_not_finite_is_named_where_all_terms_are() -> None:
    watch = Watch(torch.device("cpu"))
    watch.note(4, "translate", ("cyc_rec",), torch.ones(1), torch.tensor(True))
    with pytest.raises(NotFinite, match="step 5, phase criticise: a gradient is not finite"):
        watch.note(5, "criticise", ("critic",), torch.ones(1), torch.tensor(False))


def test_looking_late_takes_the_same_steps() -> None:
    one, other = late(), late()
    other.watch = Watch(other.device)
    for step in range(3):
        for trainer in (one, other):
            trainer.update(batches(trainer, step))
    assert largest_difference(everything(one), everything(other))[0] == 0
