"""Translations judged by a trained classifier; Frechet's distance against scipy and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn

from recollect import bundle as bundles
from recollect.batch import Guide, Translation
from recollect.bundle import Bundle, open_bundle
from recollect.config import ModelConfig, Run, overlay, preset
from recollect.data.store import Store
from recollect.data.worlds import build_faces
from recollect.evaluation.attribute_cases import Pictures, choose, cut
from recollect.evaluation.classification import JudgeByClassifier, accuracy, answer
from recollect.evaluation.frechet import frechet
from recollect.evaluation.metrics import find_metric
from recollect.pipeline import Pipeline
from recollect.trainable import Translator
from recollect.training.session import suit, train
from recollect.training.trainer import build
from trainables.classifier import Classifier

STYLE = ("Blond_Hair", "Black_Hair", "Brown_Hair")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    uri = tmp_path_factory.mktemp("faces") / "store"
    build_faces(uri, size=32, train=160, val=40, test=2)
    return Store.open(uri)


@pytest.fixture(scope="module")
def trained(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A classifier that tells hair colours apart."""
    engine = {"steps": 150, "batch_size": 16, "ema": 0.0, "threads": 1}
    model = {"width": 16, "features": 8, "attributes": STYLE[:2] + ("Smiling",) + STYLE[2:]}
    data = {"store": store.uri, "size": 32}
    run = suit(preset("classifier:tiny", data=data, model=model, engine=engine, evaluation={"pictures": 96}), store)
    return open_bundle(train(run, tmp_path_factory.mktemp("classifier") / "run"))


def run_of(store: Store) -> Run:
    return preset("gmm_unit:tiny", data={"store": store.uri, "domains": ("faces",), "size": 32})


class Dyeing(Translator):
    """Gives every picture the true hair colour, or leaves it."""

    def __init__(self, store: Store, run: Run, able: bool) -> None:
        super().__init__(ModelConfig(name="dyeing"), store.domains)
        self.weight = nn.Parameter(torch.zeros(1))
        self.able = able
        ids = store.ids("val", "faces")
        pictures = cut(store, ids, run)
        records = store.records(ids)
        rest = [(r.scene, tuple((r.attributes or {})[name] for name in ("Male", "Young"))) for r in records]
        self.scenes = {picture.numpy().tobytes(): key for picture, key in zip(pictures, rest, strict=True)}
        hairs = [tuple((r.attributes or {})[name] for name in STYLE) for r in records]
        self.pictures = {(*key, hair): picture for key, hair, picture in zip(rest, hairs, pictures, strict=True)}

    @property
    def stride(self) -> int:
        return 1

    def style_attributes(self) -> tuple[str, ...]:
        return STYLE

    def exclusive_attributes(self) -> tuple[tuple[str, ...], ...]:
        return (STYLE,)

    def read_attributes(self, images: Tensor, source: int) -> Tensor:
        raise NotImplementedError

    def translate(self, images: Tensor, source: int, target: int, guide: Guide = Guide()) -> Translation:
        assert guide.attributes is not None
        if not self.able:
            return Translation(images, {})
        found = []
        for picture, row in zip(((images + 1) * 127.5).round().to(torch.uint8), guide.attributes.int().tolist(), strict=True):
            found.append(self.pictures[(*self.scenes[picture.numpy().tobytes()], tuple(row))].float() / 127.5 - 1)
        return Translation(torch.stack(found), {})


@pytest.fixture(scope="module")
def pictures(store: Store) -> Pictures:
    return choose(store, run_of(store), "val", STYLE, (STYLE,))


def test_who_dyes_well_is_told_from_who_does_nothing(store: Store, trained: Bundle, pictures: Pictures) -> None:
    judge = JudgeByClassifier(trained, pictures)
    assert len(pictures) == 40 and bool((judge.wanted.sum(1) == 1).all())
    able, idle = (judge(Pipeline(Dyeing(store, run_of(store), able))) for able in (True, False))
    assert able.classifier == idle.classifier == trained.digest and able.pictures == 40
    good, bad, real = able.judgement.values, idle.judgement.values, judge.real().judgement.values
    assert set(real) == {"accuracy@classifier", *(f"accuracy@classifier/{name}" for name in STYLE)}
    assert good["accuracy@classifier"] > 0.85 and abs(good["accuracy@classifier"] - real["accuracy@classifier"]) < 0.08
    same = (pictures.own == judge.wanted).double().mean()
    assert bad["accuracy@classifier"] == pytest.approx(float(same), abs=0.1)
    assert bad["fid@classifier"] == pytest.approx(0, abs=1e-6)  # the input is as real as can be; see the docstring
    for name in STYLE:
        assert good[f"fid@classifier/{name}"] < 0.5 * bad[f"fid@classifier/{name}"]
    for name in good:
        metric = find_metric(name)
        assert metric.name == name.partition("/")[0] and metric.higher_is_better == name.startswith("accuracy")
    measured = able.judgement.measured("accuracy@classifier")
    assert measured is not None and float(measured.by_seed()[0]) == pytest.approx(good["accuracy@classifier"])
    assert able.judgement.measured("fid@classifier") is None  # it belongs to the whole set


@pytest.mark.filterwarnings("ignore::scipy.linalg.LinAlgWarning")  # a feature that no picture has is constant
def test_what_was_measured_is_what_the_classifier_says(store: Store, trained: Bundle, pictures: Pictures) -> None:
    model = trained.build()
    assert isinstance(model, Classifier)
    said, features = answer(model, pictures.images / 127.5 - 1)
    columns = [model.attributes.index(name) for name in STYLE]
    right = ((said[:, columns] > 0) == (pictures.own == 1)).double().mean(0)
    judge = JudgeByClassifier(str(trained.path), pictures)
    values = judge.real().judgement.values
    assert [values[f"accuracy@classifier/{name}"] for name in STYLE] == pytest.approx(right.tolist())
    half = pictures.images[:20].float() / 255
    shown = torch.cat([half, half])
    expected = reference(features, torch.cat([features[:20], features[:20]]))
    assert judge.judge(shown).judgement.values["fid@classifier"] == pytest.approx(expected, rel=1e-6)


def test_pictures_of_another_size_are_brought_to_the_classifiers(store: Store, trained: Bundle) -> None:
    run = overlay(run_of(store), {"data.size": 64})
    larger = JudgeByClassifier(trained, choose(store, run, "val", STYLE, (STYLE,)))
    assert larger.size == 32 and larger.pictures.images.shape[-1] == 64
    assert larger.real().judgement.values["accuracy@classifier"] > 0.8


def test_what_is_no_classifier_or_does_not_tell_what_is_asked(
    store: Store, trained: Bundle, pictures: Pictures, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="Black_Hair"):
        JudgeByClassifier(trained, choose(store, run_of(store), "val", ("Male",)))
    small = {"width": 4, "mlp_width": 8, "critic_width": 4, "content_blocks": 1, "generator_blocks": 1}
    run = overlay(run_of(store), {f"model.{name}": value for name, value in small.items()})
    other = bundles.write(tmp_path / "gmm", run, store.domains, build(run, store.domains).state_dict())
    with pytest.raises(ValueError, match="gmm_unit"):
        JudgeByClassifier(other, pictures)
    with pytest.raises(ValueError, match="nobody knows"):
        accuracy(torch.zeros(2, 1), torch.full((2, 1), torch.nan), ("Male",), "accuracy")


def reference(one: Tensor, other: Tensor) -> float:
    """Frechet's distance as written: with the matrix square root, by scipy."""
    first, second = np.cov(one.numpy(), rowvar=False), np.cov(other.numpy(), rowvar=False)
    root = scipy.linalg.sqrtm(first @ second)
    mean = one.mean(0).numpy() - other.mean(0).numpy()
    return float(mean @ mean + np.trace(first + second - 2 * np.real(root)))


def test_frechets_distance_is_scipys_and_that_of_gaussians() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(5, 5, generator=generator, dtype=torch.double)
    one = torch.randn(400, 5, generator=generator, dtype=torch.double) @ mixing
    other = torch.randn(300, 5, generator=generator, dtype=torch.double) + 0.5
    assert frechet(one, other) == pytest.approx(reference(one, other), rel=1e-9)
    assert frechet(one, other) == pytest.approx(frechet(other, one), rel=1e-9)
    assert frechet(one, one) == pytest.approx(0, abs=1e-8)
    line = torch.tensor([[-1.0], [1.0]])  # mean 0, variance 2; and mean 3, variance 8: 3^2 + (sqrt 8 - sqrt 2)^2
    assert frechet(line, 2 * line + 3) == pytest.approx(9 + 2)
    few = torch.randn(4, 9, generator=generator, dtype=torch.double)  # fewer pictures than features: singular
    assert frechet(few, few + 1) == pytest.approx(9, rel=1e-6)
    with pytest.raises(ValueError, match="at least 2"):
        frechet(one[:1], other)


def test_every_picture_goes_through_the_body_once(
    store: Store, trained: Bundle, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    features = Classifier.features

    def noted(self: Classifier, images: Tensor) -> Tensor:
        seen.append(len(images))
        return features(self, images)

    monkeypatch.setattr(Classifier, "features", noted)
    judge = JudgeByClassifier(trained, pictures)
    judge.real(), judge.nothing()
    assert sum(seen) == len(pictures)
    translated = judge.judge(pictures.images.float() / 255).judgement.values
    assert sum(seen) == 2 * len(pictures)
    assert judge.nothing().judgement.values == pytest.approx(translated, abs=1e-5)
    model = trained.build()
    assert isinstance(model, Classifier)
    images = pictures.images[:4] / 127.5 - 1
    said, _ = answer(model, images)
    torch.testing.assert_close(said, model.logits(images).detach())
