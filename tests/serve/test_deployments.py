"""The translator behind the ingress, without Ray: groups, limits, faults, health."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from serve.batch import BatchTranslator
from serve.describe import card as card_of
from serve.work import Done, Job, Refusal, Wish
from tests.serve.conftest import painted
from tests.serve.translators import write_bundle

BAD_WIDTH = 100


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> BatchTranslator:
    return BatchTranslator(
        str(write_bundle(tmp_path_factory.mktemp("bundles"), fails_at_width=BAD_WIDTH)), max_pixels=3 * 40 * 48
    )


def job(width: int = 48, target: str = "night", seed: int | None = None, painting: int = 0) -> Job:
    return Job(np.asarray(painted(width, 40, painting)).transpose(2, 0, 1).copy(), target, "sunny", seed)


def done(results: list[Done | Exception]) -> list[Done]:
    assert all(isinstance(result, Done) for result in results), results
    return [result for result in results if isinstance(result, Done)]


def test_like_jobs_share_a_forward_and_order_is_kept(translator: BatchTranslator) -> None:
    jobs = [job(), job(60), job(target="rainy"), job(painting=1), job(seed=4), job(60, painting=2), job(seed=9)]
    results = done(translator.translate(jobs))
    assert [result.batch for result in results] == [2, 2, 1, 2, 2, 2, 2]
    for one, result in zip(jobs, results, strict=True):
        (alone,) = done(translator.translate([one]))
        assert alone.batch == 1
        assert np.abs(alone.picture.astype(int) - result.picture).max() <= 1
        assert np.array_equal(alone.memory_map, result.memory_map)  # type: ignore[arg-type]


def test_a_seeded_style_is_the_pipelines(translator: BatchTranslator) -> None:
    one = job(seed=12)
    images = torch.from_numpy(one.picture)[None] / 127.5 - 1
    expected = (translator.pipeline(images, "night", "sunny", seeds=[12]).images[0] + 1) * 127.5
    assert np.abs(done(translator.translate([job(seed=3), one]))[1].picture - expected.numpy()).max() <= 0.51


def test_no_forward_exceeds_the_limit_on_pixels(translator: BatchTranslator) -> None:
    results = done(translator.translate([job(painting=painting) for painting in range(7)]))
    assert [result.batch for result in results] == [3, 3, 3, 3, 3, 3, 1]


def test_a_fault_harms_no_other_job(translator: BatchTranslator) -> None:
    good, bad, other = translator.translate([job(), job(BAD_WIDTH), job(60)])
    assert isinstance(good, Done) and isinstance(other, Done)
    assert isinstance(bad, RuntimeError)


def test_refusals_say_what_would_work(translator: BatchTranslator, tmp_path: Path) -> None:
    assert translator.refusal(Wish("night", seeds=(1,))) is None
    target = translator.refusal(Wish("nigth"))
    assert isinstance(target, Refusal) and target.code == "unknown_domain" and "'night'" in target.message
    source = translator.refusal(Wish("night", "fog"))
    assert isinstance(source, Refusal) and source.hint == "source is one of: sunny, night, rainy"


def test_a_method_without_random_styles(tmp_path: Path) -> None:
    flat = BatchTranslator(str(write_bundle(tmp_path, "flat", "flat")))
    card = card_of(flat)
    assert card["random_styles"] is False and card["extras"] == ()
    refusal = flat.refusal(Wish("night", seeds=(1,)))
    assert refusal is not None and refusal.code == "no_random_styles" and refusal.error().status == 422
    (result,) = done(flat.translate([job()]))
    assert result.memory_map is None


def test_health_fails_when_a_weight_is_not_finite(tmp_path: Path) -> None:
    translator = BatchTranslator(str(write_bundle(tmp_path)))
    translator.check()
    with torch.no_grad():
        translator.pipeline.model.get_parameter("style.weight")[0, 0] = float("nan")
    with pytest.raises(RuntimeError, match=r"style\.weight"):
        translator.check()


def test_a_bundle_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no bundle"):
        BatchTranslator(str(tmp_path))
