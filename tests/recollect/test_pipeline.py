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
from recollect.batch import Domains, Guide
from recollect.config import ModelConfig, Run, Weights, preset
from recollect.pipeline import Pipeline, pad_to
from recollect.trainable import Trainable
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
