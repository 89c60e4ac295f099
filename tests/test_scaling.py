"""The model of a step: what it says at its ends, and that the page shows what the numbers of the last measurement say."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import scaling
from benchmarks.step_model import Assumed, Measured, allreduce, assumptions, cpus_to_decode, step, table
from recollect.config import preset

ROOT = Path(__file__).parents[1]
MEASURED = Measured(flops=6e12, pictures=2, messages=(200_000_000, 50_000_000, 40), decode=0.005)


def test_the_page_is_what_the_numbers_say() -> None:
    numbers = json.loads((ROOT / scaling.NUMBERS).read_text())
    assert (ROOT / scaling.PAGE).read_text() == scaling.page(numbers)
    text = (ROOT / scaling.MODEL).read_text()
    assert scaling.with_part(text, scaling.model_part(numbers)) == text and table(Measured.of(numbers, 8)) in text
    assert {"1", "2", "4"} == numbers["workers"].keys() and numbers["step"]["bytes"] >= 4 * numbers["step"]["parameters"]


def test_one_gpu_sends_nothing_and_waits_for_nobody() -> None:
    alone = step(1, MEASURED)
    assert (alone.allreduce, alone.straggler) == (0, 0) and alone.seconds == max(alone.compute, alone.feed)
    assert alone.compute == pytest.approx(MEASURED.flops / Assumed().flops)


def test_large_messages_are_bound_by_the_narrowest_link_and_small_ones_by_latency() -> None:
    assumed = Assumed()
    inside, between = (allreduce(10**10, gpus, assumed) for gpus in (8, 512))
    assert inside == pytest.approx(2 * 7 / 8 * 10**10 / assumed.inside, rel=0.01)
    assert between == pytest.approx(2 * 10**10 / assumed.between, rel=0.01)
    small = [allreduce(40, gpus, assumed) for gpus in (16, 256, 1024)]
    assert small == sorted(small) and small[-1] < 2 * (7 * 15e-6 + 3 * 5e-6) + 1e-6, "by a tree: the logarithm of the nodes"
    free = replace(assumed, latency_between=0.0, latency_inside=0.0)
    assert allreduce(10**6, 64, free) == pytest.approx(2 * 63 / 64 * 10**6 / free.between), "and a ring never sends more"


def test_more_gpus_are_less_than_as_many_times_as_fast_and_a_slow_feed_holds_them_all() -> None:
    times = [step(gpus, MEASURED).seconds for gpus in (1, 8, 64, 512, 1024)]
    assert times == sorted(times)
    starved = step(8, MEASURED, Assumed(cpus_a_gpu=0.01))
    assert starved.feed > starved.compute and starved.seconds > starved.feed
    wanted = cpus_to_decode(starved, MEASURED)
    enough = step(8, MEASURED, Assumed(cpus_a_gpu=1.01 * wanted / 8))
    assert enough.feed <= enough.compute + enough.allreduce + enough.straggler
    assert step(64, MEASURED).straggler == pytest.approx(0.02 * MEASURED.flops / 60e12 * math.sqrt(2 * math.log(64)))
    assert "`spread`: 2 %" in assumptions()


def test_what_a_step_sends_is_counted_in_the_step_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "PRESET", "mguit:tiny")
    found = scaling.counted_step()
    assert found["size"] == preset("mguit:tiny").data.size == scaling.COUNTED_AT
    gradients = 4 * found["parameters"]  # in fp32, each phase's once
    assert gradients <= found["bytes"] <= 1.1 * gradients and max(found["messages"]) < gradients and found["flops"] > 1e9
