"""The one inference path: sizes, names, seeds, and which weights it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from recollect import bundle
from recollect.batch import Domains, Guide, Translation
from recollect.config import ModelConfig, Run, Weights, preset
from recollect.pipeline import Pipeline, pad_to
from recollect.trainable import Guided, Queries, Trainable
from recollect.training.trainer import build
from trainables.gmm_unit import CELEBA, GMMUNIT
from trainables.mguit import MGUIT

DOMAINS = Domains(("sunny", "night"), ("background", "car"))
SECTIONS: dict[str, Any] = {
    "name": "small",
    "data": {"domains": DOMAINS.names},
    "model": {"width": 4, "downs": 2, "critic_width": 4, "content_blocks": 1, "generator_blocks": 1, "memory": {"value_dim": 4}},
}


@pytest.fixture(scope="module")
def run() -> Run:
    run = preset("mguit:tiny", **SECTIONS)
    return run.model_copy(update={"model": run.model.suited_to(DOMAINS.classes)})


@pytest.fixture(scope="module")
def pipeline(run: Run) -> Pipeline:
    torch.manual_seed(0)
    return Pipeline(MGUIT(run.model, DOMAINS), "small")


def pictures(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@settings(max_examples=25, deadline=None)
@given(height=st.integers(17, 80), width=st.integers(17, 80))
@example(height=1, width=1)
@example(height=3, width=64)
def test_any_size_in_is_the_size_out(pipeline: Pipeline, height: int, width: int) -> None:
    result = pipeline(pictures(1, height, width), "night")
    assert result.images.shape == (1, 3, height, width) and result.images.dtype == torch.float32
    assert result.images.abs().max() <= 1 and result.images.isfinite().all()


def test_the_answer_is_the_methods_own(pipeline: Pipeline) -> None:
    images = pictures(2, 32, 48)
    with torch.inference_mode():
        plain = pipeline.model.translate(images, 1, 0).images
        assert torch.equal(pipeline(images, "sunny").images, plain)  # nothing to pad: from the first other domain
        assert torch.equal(pipeline(images, "sunny", "night").images, plain)
        assert not torch.equal(pipeline(images, "sunny", "sunny").images, plain)
        padded = torch.nn.functional.pad(images[..., :30, :45], (0, 3, 0, 2), mode="replicate")
        cut = pipeline.model.translate(padded, 1, 0).images[..., :30, :45]
        assert torch.equal(pipeline(images[..., :30, :45], "sunny").images, cut)


@given(height=st.integers(1, 60), width=st.integers(1, 60), stride=st.sampled_from([1, 2, 4, 8]))
@settings(max_examples=40, deadline=None)
def test_padding_adds_only_what_the_grid_needs(height: int, width: int, stride: int) -> None:
    images = pictures(1, height, width)
    padded, size = pad_to(images, stride)
    assert size == (height, width) and torch.equal(padded[..., :height, :width], images)
    for old, new in zip((height, width), padded.shape[-2:], strict=True):
        assert new % stride == 0 and new == max(-(-old // stride) * stride, 4 * stride)
    assert torch.equal(padded[..., -1, -1], images[..., -1, -1])


@settings(max_examples=8, deadline=None)
@given(seeds=st.lists(st.integers(0, 2**40), min_size=2, max_size=4), height=st.integers(17, 40), batch=st.randoms())
def test_an_answer_does_not_depend_on_its_batch(pipeline: Pipeline, seeds: list[int], height: int, batch: Any) -> None:
    images = pictures(len(seeds), height, 33, seed=batch.randrange(1000))
    for given_seeds in (seeds, None):
        together = pipeline(images, "night", seeds=given_seeds)
        for index in range(len(seeds)):
            own = [seeds[index]] if given_seeds else None
            alone = pipeline(images[index : index + 1], "night", seeds=own)
            torch.testing.assert_close(alone.images[0], together.images[index], atol=1e-4, rtol=0)
            assert alone.extras["memory_map"].shape == together.extras["memory_map"][index : index + 1].shape


def test_a_seed_is_a_style(pipeline: Pipeline) -> None:
    one = pictures(1, 24, 24).expand(3, -1, -1, -1)
    a, b, again = pipeline(one, "night", seeds=[1, 2, 1]).images
    assert torch.equal(a, again) and (a - b).abs().max() > 1e-3
    assert torch.equal(pipeline(one, "night").images, pipeline(one, "night").images)


def test_an_exemplar_may_have_its_own_size(pipeline: Pipeline) -> None:
    images = pictures(1, 30, 22)
    styled = [pipeline(images, "night", guide=Guide(exemplar=pictures(1, 41, 27, seed))).images for seed in (5, 6)]
    assert styled[0].shape == images.shape and not torch.equal(*styled)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"target": "nigth"}, r"there is no domain 'nigth'; did you mean 'night'\?; known: night, sunny"),
        ({"target": "night", "source": "foggy"}, r"there is no domain 'foggy'; known: night, sunny"),
        ({"target": "night", "seeds": [1, 2], "guide": Guide(noise=torch.zeros(2, 5, 4))}, r"seeds or a guide, not both .*noise"),
        ({"target": "night", "seeds": [1]}, r"there are 2 pictures and 1 seeds"),
        ({"target": "night", "seeds": []}, r"there are 2 pictures and 0 seeds"),
        (
            {"target": "night", "guide": Guide(neighbours=torch.zeros(1))},
            r"mguit does not take the guide 'neighbours'; it takes:",
        ),
        ({"target": "night", "images": torch.zeros(3, 8, 8)}, r"floats of shape \(B, 3, H, W\), not torch.float32 \(3, 8, 8\)"),
        ({"target": "night", "images": torch.zeros(1, 1, 8, 8)}, r"floats of shape .* \(1, 1, 8, 8\)"),
        ({"target": "night", "images": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}, r"floats of shape .* torch.uint8"),
    ],
)
def test_what_cannot_be_translated_is_told(pipeline: Pipeline, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        pipeline(**{"images": pictures(2, 20, 20), **arguments})


def test_a_bundle_opens_with_its_best_weights(tmp_path: Path, run: Run) -> None:
    live, averaged = (MGUIT(run.model, DOMAINS) for _ in range(2))
    path = bundle.write(tmp_path / "b", run, DOMAINS, live.state_dict(), ema=averaged.state_dict()).path
    images = pictures(1, 24, 20)
    answers = {which: Pipeline.open(path, which=which)(images, "night").images for which in ("best", "ema", "model")}
    assert torch.equal(answers["best"], Pipeline(averaged)(images, "night").images) and torch.equal(
        answers["best"], answers["ema"]
    )
    assert torch.equal(answers["model"], Pipeline(live)(images, "night").images)
    assert not torch.equal(answers["best"], answers["model"])
    bundle.write(path, run, DOMAINS, live.state_dict())
    opened = Pipeline.open(bundle.open_bundle(path))
    assert torch.equal(opened(images, "night").images, answers["model"])  # without averaged weights the best are the live ones
    assert (opened.name, opened.domains) == ("small", DOMAINS)


FACES = Domains(("faces",), attributes=CELEBA)
TARGETS = torch.tensor([[0.0, 1, 0, 0, 1], [0.5, 0.5, 0, 1, 0]])


class Finder(GMMUNIT):
    """Guided by neighbours: what is drawn is the mean of the nearest ones' pixels. Queries are the mean colours of pictures."""

    guided = True

    def look_up(self, images: Tensor, source: int, target: int, guide: Guide) -> Queries | None:
        return Queries(2, ("",) * len(images), images.mean(dim=(2, 3))) if self.guided else None

    def embed(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))

    def embedding_digest(self) -> str:
        return "0" * 64

    def translate(self, images: Tensor, source: int, target: int, guide: Guide = Guide()) -> Translation:
        mean = images if guide.neighbours is None else guide.neighbours.mean(dim=(1, 3, 4))[..., None, None].expand_as(images)
        return Translation(mean, {})


def finder(**more: Any) -> Pipeline:
    small = {"width": 4, "content_blocks": 1, "generator_blocks": 1, "critic_width": 4}
    return Pipeline(Finder(preset("gmm_unit:tiny", model=small).model, FACES), **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def faces() -> Pipeline:
    small = {"width": 4, "content_blocks": 1, "generator_blocks": 1, "critic_width": 4, "mlp_width": 8}
    model = build(preset("gmm_unit:tiny", data={"domains": FACES.names}, model=small), FACES)
    assert isinstance(model, GMMUNIT)
    return Pipeline(model, "faces")


def test_one_domain_is_source_and_target(faces: Pipeline) -> None:
    images = pictures(2, 32, 48)
    with torch.inference_mode():
        expected = faces.model.translate(images, 0, 0, Guide(attributes=TARGETS)).images
    assert torch.equal(faces(images, "faces", guide=Guide(attributes=TARGETS.double())).images, expected)
    assert torch.equal(faces(images, "faces", "faces", Guide(attributes=TARGETS)).images, expected)


def test_attributes_stand_beside_seeds(faces: Pipeline) -> None:
    images = pictures(1, 20, 24).expand(2, -1, -1, -1)
    a, b = faces(images, "faces", guide=Guide(attributes=TARGETS[:1].expand(2, -1)), seeds=[1, 2]).images
    assert (a - b).abs().max() > 1e-3
    drawn = faces.model.sample_guide(0, [torch.Generator().manual_seed(1)])
    guide = Guide(attributes=TARGETS[:1], noise=drawn.noise)
    torch.testing.assert_close(faces(images[:1], "faces", guide=guide).images[0], a, atol=1e-5, rtol=0)
    assert not torch.equal(faces(images[:1], "faces", seeds=[1]).images[0], a)


def test_extras_of_the_pictures_size_are_cut_as_the_pictures_are(faces: Pipeline) -> None:
    answer = faces(pictures(1, 17, 30), "faces")
    assert answer.extras["mask"].shape == (1, 1, 17, 30)


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        (TARGETS[:1], r"guide.attributes is \(2, 5\) here, Black_Hair, .*Young; not \(1, 5\)"),
        (TARGETS[:, :4], r"not \(2, 4\)"),
        (TARGETS + 0.2, "numbers from 0 to 1"),
        (TARGETS * torch.nan, "numbers from 0 to 1"),
        (
            torch.tensor([[0.0, 0, 0, 0, 0], [0, 1, 1, 0, 0]]),
            "a picture has one of .* at most; Blond_Hair=1 and Brown_Hair=1 is more",
        ),
    ],
)
def test_attributes_that_nobody_can_have_are_told(faces: Pipeline, attributes: Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        faces(pictures(2, 20, 20), "faces", guide=Guide(attributes=attributes))


def test_neighbours_are_looked_up_where_none_are_given() -> None:
    asked: list[Queries] = []

    def search(queries: Queries) -> Tensor:
        asked.append(queries)
        return torch.stack([torch.full((2, 3, 9, 7), value) for value in (0.25, -0.5)])

    pipeline, images = finder(search=search), pictures(2, 18, 21)
    assert isinstance(pipeline.model, Guided)
    answer = pipeline(images, "faces").images
    torch.testing.assert_close(answer[:, 0, 0, 0], torch.tensor([0.25, -0.5]))
    (queries,) = asked
    assert queries.k == 2 and queries.vectors is not None
    torch.testing.assert_close(queries.vectors, pad_to(images, 4)[0].mean(dim=(2, 3)))  # of the pictures as the model sees them
    given_ones = torch.full((2, 3, 3, 8, 8), 0.75)
    for seeds in (None, [1, 2]):
        answer = pipeline(images, "faces", guide=Guide(neighbours=given_ones), seeds=seeds).images
        assert len(asked) == 1 and float(answer.mean()) == pytest.approx(0.75), "what is given is not searched for"


def test_where_nothing_finds_neighbours_it_is_told() -> None:
    pipeline, images = finder(), pictures(2, 16, 16)
    with pytest.raises(
        ValueError, match="gmm_unit draws with 2 neighbours of a picture, and nothing finds them here; open the pip"
    ):
        pipeline(images, "faces")
    with pytest.raises(ValueError, match=r"guide.neighbours is \(2, k, 3, H, W\) here, not \(1, 2, 3, 8, 8\)"):
        pipeline(images, "faces", guide=Guide(neighbours=torch.zeros(1, 2, 3, 8, 8)))
    assert isinstance(pipeline.model, Finder)
    pipeline.model.guided = False
    torch.testing.assert_close(pipeline(images, "faces").images, images)


class Judge(Trainable):
    """A method that does not translate."""

    class Config(ModelConfig):
        name: str = "judge"

    class Weights(Weights):
        cross: float = 1.0

    presets: ClassVar[dict[str, dict[str, Any]]] = {"plain": {}}


METHODS = {"judge": f"{__name__}:Judge"}


def test_what_does_not_translate_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECOLLECT_CATALOGUE", f"{__name__}:METHODS")
    path = bundle.write(tmp_path / "j", preset("judge"), DOMAINS, {}).path
    with pytest.raises(ValueError, match="holds 'judge', which does not translate pictures"):
        Pipeline.open(path)
