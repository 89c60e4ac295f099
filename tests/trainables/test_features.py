"""The features keep the promises of a Trainable; each task has its loss, on any ranks, and is silent where nothing is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from recollect.batch import Batch, Domains
from recollect.config import Run, overlay, preset
from recollect.testing import TrainableContract, noise_batches
from recollect.trainable import Draws, Step
from recollect.training.trainer import build
from trainables.features import CELL, Features
from trainables.parts.tampering import colours, tampered

EVERYTHING = Domains(("day", "night"), ("background", "car"), ("Male",), ("sky", "road", "car"))
PLAIN = Domains(("day", "night"))
ALL = frozenset(("domain", "tampered", "turned", "counts", "regions", "attributes", "modes"))


def small(domains: Domains) -> Run:
    return preset("features:tiny", data={"domains": domains.names, "size": 32}, model={"width": 8, "features": 8})


class TestContract(TrainableContract):
    run = small(EVERYTHING)
    domains = EVERYTHING


def features(domains: Domains = EVERYTHING) -> Features:
    model = build(small(domains), domains)
    assert isinstance(model, Features)
    return model


def batches(slots: range = range(4), domains: Domains = EVERYTHING) -> tuple[Batch, ...]:
    return noise_batches(small(domains), domains, CELL, slots)


def step(own: tuple[Batch, ...], number: int = 0) -> Step:
    return Step(own, number, Draws(0, number), ALL)


def test_data_that_knows_nothing_has_the_tasks_that_need_nothing() -> None:
    model = features(PLAIN)
    own = tuple(replace(batch, modes=None, regions=None) for batch in batches(domains=PLAIN))
    terms = model.terms(step(own))
    assert set(terms) == {"domain", "tampered", "turned", "modes"} and terms["modes"].item() == 0
    model.after_step(step(own))
    assert not model.seen_modes.any() and model.mode_logits(torch.zeros(2, 8), 1).shape == (2, 0)


def test_regions_are_told_by_their_share_in_a_cell_where_all_of_it_is_known() -> None:
    model, own = features(), batches(range(1))
    places = model.body(torch.cat([batch.images for batch in own]))
    maps = torch.zeros(2, 32, 32, dtype=torch.int64)
    maps[0, :8, :8], maps[0, :8, :2] = 2, 1  # one cell: a quarter sky, the rest road
    maps[1, 8:16, :5] = 3  # a cell of which a part is unknown
    own = tuple(replace(batch, regions=maps[index : index + 1]) for index, batch in enumerate(own))
    said = model.heads["regions"](places).log_softmax(1)[0, :, 0, 0]
    expected = -(0.25 * said[0] + 0.75 * said[1])
    torch.testing.assert_close(model.terms(step(own))["regions"], expected)


def test_styles_are_counted_and_only_those_that_were_seen_are_asked_for() -> None:
    model, own = features(), batches(range(6))
    model.after_step(step(own))
    assert model.seen_modes[0].tolist()[:3] == [2, 2, 0]  # of slots 0..5 the styles -1 0 1 -1 0 1
    logits = model.mode_logits(torch.rand(5, 8), 1)
    assert logits.shape == (5, 2)
    torch.testing.assert_close(logits.softmax(1).sum(1), torch.ones(5))
    untaught = features()
    untaught.after_step(replace(step(own), active=ALL - {"modes"}))  # without a weight nothing is learnt of styles
    assert not untaught.seen_modes.any()
    strange = (replace(own[0], modes=torch.full((6,), 99)), own[1])
    with pytest.raises(ValueError, match=r"style 99; set model.modes above it, not to 16"):
        model.terms(step(strange))


def test_counts_are_of_the_boxes() -> None:
    model, own = features(), batches()
    said = model.answers(model.features(torch.cat([batch.images for batch in own])), "counts")
    truth = torch.tensor([[float(len(labels))] for batch in own for labels in batch.labels or ()]).log1p()
    torch.testing.assert_close(model.terms(step(own))["counts"], F.smooth_l1_loss(said, truth))


@given(st.integers(0, 2**31))
def test_tampering_changes_colours_for_sure(seed: int) -> None:
    matrix, shift, gamma = colours(torch.Generator().manual_seed(seed))
    assert matrix.shape == (3, 3) and shift.shape == (3,) and gamma.shape == ()
    assert matrix.isfinite().all() and 0.2 < float(gamma) <= 4
    assert not (torch.allclose(matrix, torch.eye(3), atol=0.05) and shift.abs().max() < 0.05 and 0.7 < gamma < 1.5)


def test_a_tampered_picture_depends_on_its_slot_alone() -> None:
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    draws = Draws(3, 5)
    together = tampered(images, draws, (0, 1, 2, 3))
    assert together.shape == images.shape and together.abs().max() <= 1 + 1e-6
    for slot in range(4):
        torch.testing.assert_close(tampered(images[slot : slot + 1], draws, (slot,))[0], together[slot])
    many = tampered(images[:1].expand(60, -1, -1, -1), draws, range(60))
    assert (many - images[:1]).abs().mean((1, 2, 3)).min() > 0.02 and len(many.flatten(1).unique(dim=0)) > 50
    assert not torch.equal(tampered(images, Draws(3, 6), (0, 1, 2, 3)), together)


def test_overlay_knows_the_weights() -> None:
    with pytest.raises(ValueError, match="did you mean 'tampered'"):
        overlay(small(PLAIN), {"weights.tamperd": 1.0})
