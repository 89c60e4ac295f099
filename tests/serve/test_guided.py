"""Attributes, strength, exemplars, masks and neighbours in batches, without Ray; against the pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from recollect import attributes
from recollect.batch import Guide
from recollect.data.transforms import to_uint8, to_unit
from recollect.retrieval.guided import open_pipeline
from serve.batch import BatchTranslator
from serve.work import Done, Job, Pixels, Wish
from tests.serve.conftest import painted
from tests.serve.guided import NEIGHBOURS, SIZE, write_guided
from tests.serve.translators import write_mguit
from trainables.gmm_unit import CELEBA

BLACK, BLOND, BROWN, MALE, YOUNG = CELEBA


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> BatchTranslator:
    return BatchTranslator(str(write_guided(tmp_path_factory.mktemp("guided")).bundle))


def pixels(width: int = 40, height: int = 36, seed: int = 0) -> Pixels:
    return np.asarray(painted(width, height, seed)).transpose(2, 0, 1).copy()


def expected(
    translator: BatchTranslator, picture: Pixels, changes: dict[str, float], seed: int | None, **guide: object
) -> Pixels:
    """What the pipeline makes of the picture alone."""
    pipeline = open_pipeline(str(translator.run.data.index).replace("/index", "/guided"))
    images = to_unit(torch.tensor(picture))[None]
    wanted = attributes.choose(pipeline, images, changes, guide=Guide(**guide))  # type: ignore[arg-type]
    made: Pixels = to_uint8(pipeline(images, "faces", guide=wanted, seeds=None if seed is None else [seed]).images[0]).numpy()
    return made


def test_the_card_says_what_it_takes_and_tells(translator: BatchTranslator) -> None:
    assert translator.guides == ("attributes", "exemplar", "strength")
    assert translator.extras == ("attention_mask", "neighbours", "thumbnails")


def test_a_batch_of_unlike_wishes_is_what_the_pipeline_makes_of_each_alone(translator: BatchTranslator) -> None:
    other = pixels(seed=9)
    asked: list[tuple[Job, Pixels]] = []
    for number, (changes, seed, strength) in enumerate(
        [
            ({BLOND: 1.0}, None, None),
            ({MALE: 0.0, BLOND: 0.25}, None, None),
            ({}, 4, None),
            ({YOUNG: 1.0}, 5, 0.5),
            ({}, None, 0.0),
        ]
    ):
        picture = pixels(38 + number % 2, 36, seed=number)  # 38 and 39 are padded alike
        job = Job(picture, "faces", None, seed, attributes=changes, strength=strength)
        guide = {} if strength is None else {"strength": torch.tensor([strength])}
        asked.append((job, expected(translator, picture, changes, seed, **guide)))
    exemplar = expected(translator, pixels(), {}, None, exemplar=to_unit(torch.tensor(other))[None])
    asked.append((Job(pixels(), "faces", None, None, exemplar=other), exemplar))
    results = translator.translate([job for job, _ in asked])
    assert [result.batch for result in results if isinstance(result, Done)] == [2, 2, 1, 1, 1, 1]
    for result, (job, made) in zip(results, asked, strict=True):
        assert isinstance(result, Done) and result.picture.shape == job.picture.shape
        assert np.abs(result.picture.astype(int) - made).max() <= 1


def test_pictures_of_near_sizes_share_a_forward_and_change_nothing(translator: BatchTranslator) -> None:
    jobs = [Job(pixels(width, height, width), "faces", None, 3) for width, height in ((37, 36), (40, 33), (38, 35))]
    together = translator.translate(jobs)
    for job, result in zip(jobs, together, strict=True):
        assert isinstance(result, Done) and result.batch == 3 and result.picture.shape == job.picture.shape
        assert np.abs(result.picture.astype(int) - expected(translator, job.picture, {}, 3)).max() <= 1


def test_strength_goes_from_the_pictures_own_content_to_the_fused_one(translator: BatchTranslator) -> None:
    picture = pixels()
    drawn = translator.translate([Job(picture, "faces", None, None, strength=strength) for strength in (0.0, 0.5, 1.0, None)])
    none, half, full, default = (result.picture.astype(int) for result in drawn if isinstance(result, Done))
    assert np.abs(full - default).max() <= 1
    assert np.abs(none - full).mean() > np.abs(none - half).mean() > 0
    blank = Guide(strength=torch.zeros(1), neighbours=torch.rand(1, NEIGHBOURS, 3, SIZE, SIZE))
    alone = translator.pipeline(to_unit(torch.tensor(picture))[None], "faces", guide=blank)  # whatever the neighbours show
    assert np.abs(to_uint8(alone.images[0]).numpy().astype(int) - none).max() <= 1


def test_masks_and_neighbours_are_told_to_those_who_ask(translator: BatchTranslator) -> None:
    library = translator.library
    assert library is not None
    known = to_uint8(library.pictures(["p003"])[0]).numpy()
    wants = frozenset({"attention_mask", "neighbours", "thumbnails"})
    asked, plain = translator.translate([Job(known, "faces", None, None, extras=extras) for extras in (wants, frozenset[str]())])
    assert isinstance(asked, Done) and isinstance(plain, Done)
    assert plain.mask is None and plain.neighbours is None
    assert asked.mask is not None and asked.mask.shape == (SIZE, SIZE) and asked.mask.dtype == np.uint8 and asked.mask.std() > 0
    assert asked.neighbours is not None and len(asked.neighbours) == NEIGHBOURS
    first = asked.neighbours[0]
    assert first.id == "p003" and first.distance < 1e-3 and np.array_equal(first.picture, known)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wish", "code", "told"),
    [
        (Wish(attributes={"Blond": 1}), "unknown_attribute", "Blond_Hair"),
        (Wish(attributes={BLOND: 1, BLACK: 1}), "contradictory_attributes", "at most"),
        (Wish(attributes={BLOND: 1}, exemplar=pixels()), "contradiction", "exemplar"),
        (Wish(extras=frozenset({"memory_map"})), "", ""),
        (Wish(target="face"), "unknown_domain", "faces"),
    ],
)
def test_refusals(translator: BatchTranslator, wish: Wish, code: str, told: str) -> None:
    refusal = translator.refusal(wish)
    assert (refusal.code if refusal else "") == code
    assert refusal is None or told in refusal.message


def test_a_fusion_that_replaces_the_content_has_no_strength(tmp_path: Path) -> None:
    paper = BatchTranslator(str(write_guided(tmp_path, fusion="paper").bundle))
    refusal = paper.refusal(Wish(strength=0.5))
    assert "strength" not in paper.guides and refusal is not None and refusal.code == "no_strength"


@pytest.mark.parametrize("strength", [torch.tensor([1.5]), torch.tensor([-0.1]), torch.tensor(0.5), torch.zeros(2)])
def test_a_strength_is_a_number_from_0_to_1_for_each_picture(translator: BatchTranslator, strength: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"guide\.strength is 1 numbers from 0 to 1"):
        translator.pipeline(torch.zeros(1, 3, SIZE, SIZE), "faces", guide=Guide(strength=strength))


def test_a_method_without_neighbours_refuses_a_strength_by_name(tmp_path: Path) -> None:
    memory = BatchTranslator(str(write_mguit(tmp_path)))
    with pytest.raises(ValueError, match="mguit does not take the guide 'strength'"):
        memory.pipeline(torch.zeros(1, 3, 64, 64), "night", guide=Guide(strength=torch.ones(1)))
