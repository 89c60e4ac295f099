"""One optimiser a net, and its rate as a function of the step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recollect.batch import Domains
from recollect.config import ModelConfig, Optimiser, Run, overlay, preset
from recollect.trainable import Part, Phase, Trainable
from recollect.training.optim import make_optimisers, rate, trained_nets
from trainables.mguit import MGUIT

NETS = ("content_encoder", "style_encoder", "generator", "domain_critic", "content_critic")


@pytest.fixture(scope="module")
def run() -> Run:
    small = {"width": 4, "critic_width": 4, "content_blocks": 1, "generator_blocks": 1, "memory": {"value_dim": 4}}
    return preset("mguit:tiny", model=small)


@pytest.fixture(scope="module")
def model(run: Run) -> MGUIT:
    return MGUIT(run.model, Domains(("sunny", "night"), ("background", "car", "person", "sign")))


@pytest.mark.parametrize(
    ("hold", "steps", "expected"),
    [
        (1.0, 4, [2, 2, 2, 2]),
        (0.5, 8, [2, 2, 2, 2, 2, 1.5, 1, 0.5]),
        (0.0, 4, [2, 1.5, 1, 0.5]),
        (0.75, 4, [2, 2, 2, 2]),  # the one step after the hold would be the one of rate zero
        (0.9, 4, [2, 2, 2, 2]),
    ],
)
def test_the_rate_against_hand_values(hold: float, steps: int, expected: list[float]) -> None:
    config = Optimiser(lr=2.0, hold=hold)
    assert [rate(config, step, steps) for step in range(steps)] == pytest.approx(expected)


@given(hold=st.floats(0, 1), steps=st.integers(1, 10_000), data=st.data())
def test_the_rate_never_rises_jumps_or_ends_before_the_run(hold: float, steps: int, data: st.DataObject) -> None:
    config = Optimiser(lr=1.0, hold=hold)
    step = data.draw(st.integers(0, steps - 1))
    now, then = rate(config, step, steps), rate(config, step + 1, steps)
    assert 0 < now <= 1 and then <= now
    assert now == 1 if step <= hold * steps else now < 1
    assert now - then <= 1 / max(steps * (1 - hold), 1) + 1e-9


def test_every_net_of_a_phase_has_its_own(model: MGUIT, run: Run) -> None:
    assert trained_nets(model) == NETS  # the memory is in no part: gradients do not write it
    optimisers = make_optimisers(model, overlay(run, ["optimisers.generator.kind=adamw", "optimisers.domain_critic.kind=sgd"]))
    assert tuple(optimisers) == NETS
    kinds = {name: type(optimiser) for name, optimiser in optimisers.items()}
    assert (kinds["generator"], kinds["domain_critic"]) == (torch.optim.AdamW, torch.optim.SGD)
    assert kinds["content_critic"] is kinds["style_encoder"] is torch.optim.Adam
    for name, optimiser in optimisers.items():
        own = {id(parameter) for parameter in model.get_submodule(name).parameters()}
        assert {id(parameter) for group in optimiser.param_groups for parameter in group["params"]} == own
    assert {name: optimiser.param_groups[0]["lr"] for name, optimiser in optimisers.items()} == {
        **dict.fromkeys(NETS, run.optimisers["default"].lr),
        "content_critic": run.optimisers["content_critic"].lr,
    }
    assert optimisers["style_encoder"].param_groups[0]["betas"] == (0.5, 0.999)


class OneNet(Trainable):
    """A net that one phase trains, and a frozen one."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, Domains(("a", "b")))
        self.net, self.still = torch.nn.Linear(3, 1), torch.nn.Linear(3, 3)

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("fit", (Part(("net",), lambda step: {}),)),)


@pytest.mark.parametrize(
    ("kind", "twin"),
    [
        ("adam", lambda parameters: torch.optim.Adam(parameters, 0.1, betas=(0.5, 0.9), weight_decay=0.3)),
        ("adamw", lambda parameters: torch.optim.AdamW(parameters, 0.1, betas=(0.5, 0.9), weight_decay=0.3)),
        ("sgd", lambda parameters: torch.optim.SGD(parameters, 0.1, weight_decay=0.3)),
    ],
)
def test_settings_reach_the_optimiser(run: Run, kind: str, twin: Callable[..., torch.optim.Optimizer]) -> None:
    model = OneNet(run.model)
    copy = torch.nn.Linear(3, 1)
    copy.load_state_dict(model.net.state_dict())
    own = {"default": Optimiser(kind=kind, lr=0.1, betas=(0.5, 0.9), weight_decay=0.3)}
    optimisers = make_optimisers(model, run.model_copy(update={"optimisers": own}))
    assert set(optimisers) == {"net"}
    for optimiser, net in ((optimisers["net"], model.net), (twin(copy.parameters()), copy)):
        for _ in range(3):
            optimiser.zero_grad()
            net(torch.ones(2, 3)).square().sum().backward()
            optimiser.step()
    torch.testing.assert_close(model.net.weight, copy.weight)  # the fused optimiser rounds in another order


def test_an_entry_for_no_net_is_refused_with_the_nets_there_are(model: MGUIT, run: Run) -> None:
    with pytest.raises(ValueError, match="optimisers.generater names no net of mguit") as caught:
        make_optimisers(model, overlay(run, ["optimisers.generater.lr=0.1"]))
    assert all(net in str(caught.value) for net in NETS)
    with pytest.raises(ValueError, match="optimisers.memory names no net"):
        make_optimisers(model, overlay(run, ["optimisers.memory.lr=0.1"]))
