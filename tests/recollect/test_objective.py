"""Terms meet their weights, by name, in one place."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recollect.config import Weights, overlay, preset
from recollect.objective import active, weigh


class Three(Weights):
    rec: float = 10.0
    adv: float = 0.5
    kl: float = 0.0


def test_the_sum_against_a_hand_sum() -> None:
    terms = {"rec": torch.tensor(0.25), "adv": torch.tensor(4.0), "kl": torch.tensor(1e9)}
    assert weigh(terms, Three()).item() == 10 * 0.25 + 0.5 * 4.0
    assert weigh({"adv": torch.tensor(3.0)}, Three()).item() == 1.5  # a phase has some of the terms
    assert weigh(terms, Three(rec=0, kl=2e-9)).item() == pytest.approx(2.0 + 2.0)


def test_each_terms_gradient_is_its_weight() -> None:
    terms = {name: torch.tensor(value, requires_grad=True) for name, value in {"rec": 1.0, "adv": 2.0, "kl": 3.0}.items()}
    total = weigh(terms, Three())
    assert total.shape == ()
    rec, adv, kl = torch.autograd.grad(total, list(terms.values()), allow_unused=True)
    assert (rec, adv) == (torch.tensor(10.0), torch.tensor(0.5))
    assert kl is None  # not 0 * x: a term that is infinite at weight zero would poison the rest


def test_a_zero_weight_switches_a_term_off_even_where_it_is_not_finite() -> None:
    assert weigh({"rec": torch.tensor(1.0), "kl": torch.tensor(float("nan"))}, Three()).item() == 10.0


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.floats(-100, 100), min_size=3, max_size=3),
    weights=st.lists(st.floats(0, 100), min_size=3, max_size=3).filter(any),
)
def test_any_weights_against_a_dot_product(values: list[float], weights: list[float]) -> None:
    names = list(Three.model_fields)
    terms = {name: torch.tensor(value, dtype=torch.float64) for name, value in zip(names, values, strict=True)}
    own = Three(**dict(zip(names, weights, strict=True)))
    expected = sum(a * b for a, b in zip(values, weights, strict=True))
    assert weigh(terms, own).item() == pytest.approx(expected, abs=1e-9)
    assert active(own) == {name for name, weight in zip(names, weights, strict=True) if weight > 0}


def test_a_term_without_a_weight_is_refused_with_the_weights_there_are() -> None:
    with pytest.raises(ValueError, match=r"no weight is named 'rek'; did you mean 'rec'\?; known: adv, kl, rec"):
        weigh({"adv": torch.tensor(1.0), "rek": torch.tensor(1.0)}, Three())


@pytest.mark.parametrize("terms", [{}, {"kl": torch.tensor(1.0)}])
def test_a_phase_without_anything_to_minimise_is_refused(terms: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="no term with a weight above zero"):
        weigh(terms, Three())


def test_the_search_name_of_a_weight_is_the_terms_name() -> None:
    run = preset("mguit:tiny")
    assert "content_rec" not in active(run.weights) and "con_k" in active(run.weights)
    changed = overlay(run, ["weights.content_rec=1", "weights.con_k=0"])
    assert active(changed.weights) == active(run.weights) - {"con_k"} | {"content_rec"}
