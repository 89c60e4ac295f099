"""Translators into attributes are judged by hand-made numbers, by exact counterparts and by real pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from recollect import bundle as bundles
from recollect.batch import Domains, Guide, Translation
from recollect.bundle import open_bundle
from recollect.config import ModelConfig, Run, overlay, preset
from recollect.data.store import Store, write_store
from recollect.data.transforms import decode, to_unit
from recollect.data.worlds import build_faces, faces
from recollect.evaluation import attributes as evaluation
from recollect.evaluation.attribute_cases import AttributeCases, Flip, choose, cut, flips_of, gather, scenes_of
from recollect.evaluation.attributes import (
    AttributeJudge,
    check_neighbours,
    inputs_of,
    judge_flips,
    judge_inputs,
    translate_flips,
)
from recollect.evaluation.evaluate import evaluate
from recollect.evaluation.metrics import find_metric
from recollect.evaluation.statistics import estimate
from recollect.evaluation.validate import DISTANCE
from recollect.pipeline import Pipeline, check_attributes
from recollect.retrieval.directory import back_end, write_index
from recollect.retrieval.library import Library
from recollect.retrieval.manifest import Origin
from recollect.trainable import Translator
from recollect.training.session import judge_of, suit, train
from recollect.training.trainer import build

GROUPS = (faces.HAIRS,)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    uri = tmp_path_factory.mktemp("faces") / "store"
    build_faces(uri, size=32, train=8, val=10, test=2)
    return Store.open(uri)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Other faces, each once, without truth; of every seventh nobody knows the age."""
    uri = tmp_path_factory.mktemp("bare") / "store"
    splits = ("train", *["val"] * 120)
    drawn = faces.records(32, train=len(splits), val=0, test=0, seed=1)
    records = [
        replace(record, scene=None, mode=None, regions=None, split=split) for record, split in zip(drawn, splits, strict=True)
    ]
    for record in records[::7]:
        assert record.attributes is not None
        record.attributes.pop("Young")
    write_store(uri, records, domains=faces.DOMAINS, attributes=faces.ATTRIBUTES)
    return Store.open(uri)


def run_of(store: Store, **changes: object) -> Run:
    run = preset("gmm_unit:tiny", data={"store": store.uri, "domains": store.domains.names, "size": 32})
    return overlay(run, {"evaluation.pictures": 100, **changes})


class Doing(Translator):
    """Translates as a function says that is given pictures in [0, 1], the attributes wanted, and the target domain."""

    def __init__(self, function: object, names: Sequence[str], groups: Sequence[Sequence[str]], domains: Domains) -> None:
        super().__init__(ModelConfig(name="doing"), domains)
        self.function, self.names, self.groups = function, tuple(names), tuple(map(tuple, groups))
        self.weight = nn.Parameter(torch.zeros(1))

    @property
    def stride(self) -> int:
        return 1

    def style_attributes(self) -> tuple[str, ...]:
        return self.names

    def exclusive_attributes(self) -> tuple[tuple[str, ...], ...]:
        return self.groups

    def read_attributes(self, images: Tensor, source: int) -> Tensor:
        return images.new_zeros(len(images), len(self.names))

    def translate(self, images: Tensor, source: int, target: int, guide: Guide = Guide()) -> Translation:
        assert guide.attributes is not None and callable(self.function)
        return Translation(self.function((images + 1) / 2, guide.attributes, target) * 2 - 1, {})


def doing(
    function: object, store: Store, names: Sequence[str] = faces.STYLE, groups: Sequence[Sequence[str]] = GROUPS
) -> Pipeline:
    return Pipeline(Doing(function, names, groups, store.domains))


def nothing(images: Tensor, wanted: Tensor, target: int) -> Tensor:
    return images


def knowing(store: Store, run: Run, split: str = "val") -> object:
    """The exact counterpart of every picture of a split."""
    ids = store.ids(split, "faces")
    pictures = (picture.numpy().tobytes() for picture in cut(store, ids, run))
    scenes = dict(zip(pictures, store.column("scene", ids), strict=True))

    def translate(images: Tensor, wanted: Tensor, target: int) -> Tensor:
        found = []
        for picture, row in zip((images * 255).round().to(torch.uint8), wanted.int().tolist(), strict=True):
            asked = dict(zip(faces.STYLE, row, strict=True))
            scene = store.records(store.scene(scenes[picture.numpy().tobytes()], "faces"))
            (right,) = [record for record in scene if asked.items() <= (record.attributes or {}).items()]
            found.append(cut(store, [right.id], run)[0].float() / 255)
        return torch.stack(found)

    return translate


attributes = st.lists(st.sampled_from([0.0, 1.0]), min_size=5, max_size=5).filter(lambda own: sum(own[:3]) <= 1)


@given(attributes)
def test_a_flip_changes_one_attribute_and_contradicts_nothing(own: list[float]) -> None:
    flips = flips_of(own, faces.STYLE, GROUPS)
    assert len(flips) == 5 - sum(own[:3])  # each colour that it has not, and the two others either way
    for index, wanted in flips:
        assert wanted[index] == 1 - own[index]
        assert all(wanted[other] == own[other] for other in (3, 4) if other != index)
        assert sum(wanted[:3]) == 1 if index < 3 else wanted[:3] == tuple(own[:3])
    asked = torch.tensor([wanted for _, wanted in flips])
    check_attributes(Doing(nothing, faces.STYLE, GROUPS, Domains(("faces",))), asked, len(flips))


@pytest.fixture(scope="module")
def ambiguous(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Faces without truth, of which every third has two hair colours and every third none."""
    uri = tmp_path_factory.mktemp("ambiguous") / "store"
    records = []
    for number, record in enumerate(faces.records(32, train=91, val=0, test=0, seed=3)):
        assert record.attributes is not None
        if number % 3:
            record.attributes.update(dict.fromkeys(faces.HAIRS, 0))
        if number % 3 == 1:
            record.attributes.update(Black_Hair=1, Brown_Hair=1)
        records.append(replace(record, scene=None, mode=None, regions=None, split="val" if number < 90 else "train"))
    write_store(uri, records, domains=faces.DOMAINS, attributes=faces.ATTRIBUTES)
    return Store.open(uri)


def test_pictures_with_two_of_a_group_are_left_out_and_those_with_none_stay(ambiguous: Store) -> None:
    """Of CelebA's pictures 1 % have two hair colours: whatever else is asked of one, it would be to have both."""
    run = run_of(ambiguous)
    judge = AttributeJudge(ambiguous, run)
    pipeline = doing(nothing, ambiguous)  # which refuses attributes that contradict each other
    assert judge(pipeline)["content_kept"] == pytest.approx(1)
    own = judge.cases(pipeline).own[:, :3].sum(1)
    assert len(own) == 60 and own.tolist().count(0) == 30 and own.max() == 1
    assert judge.grid(pipeline, rows=4).shape[0] == 3
    pools = [ambiguous.record(id).attributes or {} for id in judge.cases(pipeline).ids]
    assert all(sum(one[name] for name in faces.HAIRS) <= 1 for one in pools)
    chosen = choose(ambiguous, run, "val", ("Male",))  # whoever sets no hair is asked for all of them
    assert len(chosen) == 90


def by_hand() -> AttributeCases:
    """A picture of one row of four pixels: the first two are the hair, of which the true blond is 0.8 and the true black 0."""
    black = torch.tensor([0, 0, 102, 102], dtype=torch.uint8).expand(3, 1, 4)
    blond = torch.tensor([204, 204, 102, 102], dtype=torch.uint8).expand(3, 1, 4)
    shown = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    flips = (Flip(0, 1, (0.0, 1.0), answers=(1,)),)
    names = ("Black_Hair", "Blond_Hair")
    truth = (torch.stack([black, blond]),), (shown,), None
    return AttributeCases(names, (names,), ("a",), ("faces",), black[None], shown[:1], flips, *truth)


def test_the_errors_by_hand() -> None:
    cases = by_hand()
    picture = torch.tensor([0.6, 0.4, 0.5, 0.4]).expand(1, 3, 1, 4)
    judgement = judge_flips(picture, cases)
    expected = {
        "counterpart_error": (0.2 + 0.4 + 0.1 + 0) / 4,
        "identity_error": 0.05,
        "change_error": 0.3,
        "attribute_accuracy": 1.0,  # 0.7 in all from the blond, 1.1 from the black
    }
    for name, value in expected.items():
        assert judgement.values[name] == judgement.values[f"{name}/Blond_Hair"] == pytest.approx(value, abs=1e-6)
    assert "counterpart_error/Black_Hair" not in judgement.values and "attributes_kept" not in judgement.values
    assert judge_flips(picture * 0.5, cases).values["attribute_accuracy"] == 0.0
    untouched = judge_flips(inputs_of(cases), cases).values
    assert [untouched[name] for name in expected] == pytest.approx([0.4, 0, 0.8, 0])


def test_where_a_hat_hides_the_hair_any_colour_is_right() -> None:
    cases = by_hand()
    same = cases.images[0][None].expand(2, -1, -1, -1)
    hidden = judge_flips(inputs_of(cases), replace(cases, renders=(same,))).values
    assert hidden["attribute_accuracy"] == 1.0 and hidden["counterpart_error"] == 0.0
    assert "change_error" not in hidden  # there is no pixel to change


def test_exact_counterparts_score_best_and_doing_nothing_as_the_input(store: Store) -> None:
    run = run_of(store)
    judge = AttributeJudge(store, run)
    assert (judge.metric, judge.mode, judge.truth) == ("counterpart_error", "min", True) and "10 val" in judge.about
    best, idle = judge(doing(knowing(store, run), store)), judge(doing(nothing, store))
    for name in ("counterpart_error", "identity_error", "change_error"):
        assert best[name] < 1e-6, name
    assert best["attribute_accuracy"] == best["attributes_kept"] == 1.0
    assert idle["objective"] == idle["counterpart_error"] > 0.01
    assert idle["attribute_accuracy"] < 0.1 and idle["identity_error"] < 2 / 255
    for name in [name for name in idle if "@input" not in name and name != "objective"]:
        family, slash, part = name.partition("/")
        assert idle[name] == pytest.approx(idle[f"{family}@input{slash}{part}"], abs=1e-6), name
        assert find_metric(name).name == family and find_metric(f"{family}@input{slash}{part}").name == f"{family}@input"
    parts = {name for name in best if name.startswith("counterpart_error/")}
    assert parts == {f"counterpart_error/{name}" for name in faces.STYLE}


def test_what_is_kept_by_picture_gives_the_scores_and_their_intervals(store: Store) -> None:
    run = run_of(store)
    pipeline = doing(nothing, store)
    judgement = AttributeJudge(store, run).judgement(pipeline)
    for name, value in judgement.values.items():
        measured = judgement.measured(name)
        assert measured is not None and measured.values.shape[1] == 10
        interval = estimate(measured, resamples=200)
        assert interval.value == pytest.approx(value) and interval.low <= value <= interval.high
    black = judgement.by_picture["counterpart_error/Black_Hair"]
    cases = AttributeJudge(store, run).cases(pipeline)
    assert torch.equal(black.weights, 1 - cases.own[:, 0].double())  # who has black hair is not asked for it
    assert cases.renders is not None
    inputs, errors = inputs_of(cases), []
    for place, flip in enumerate(cases.flips):
        if cases.names[flip.attribute] == "Male":
            errors.append(float((inputs[place] - cases.renders[flip.picture][flip.answers[0]] / 255).abs().mean()))
    assert judgement.values["counterpart_error/Male"] == pytest.approx(sum(errors) / 10, abs=1e-6)


def test_a_method_that_sets_fewer_attributes_is_judged_by_the_picture_that_differs_in_nothing_else(store: Store) -> None:
    run = run_of(store)
    cases = gather(store, run, "val", ("Male",))
    assert len(cases.flips) == 10 and cases.renders is not None
    scenes = scenes_of(store, cases.ids, ("faces",))
    for flip in cases.flips:
        (answer,) = flip.answers
        own, other = (store.record(id).attributes or {} for id in (cases.ids[flip.picture], scenes[flip.picture][answer]))
        assert {name for name in own.keys() & other.keys() if own[name] != other[name]} == {"Male"}


def test_translations_are_asked_for_in_batches_and_come_back_in_order(store: Store) -> None:
    run = run_of(store)

    def written(images: Tensor, wanted: Tensor, target: int) -> Tensor:
        return torch.cat([wanted[:, None, None, :].expand(-1, 3, 1, -1), images[:, :, :1, 5:]], dim=-1).expand_as(images)

    pipeline = doing(written, store)
    cases = AttributeJudge(store, run).cases(pipeline)
    translations = translate_flips(pipeline, cases)
    for picture, flip in zip(translations, cases.flips, strict=True):
        assert picture[0, 0, :5].tolist() == pytest.approx(list(flip.wanted), abs=1e-6)
        torch.testing.assert_close(picture[:, 0, 5:], cases.images[flip.picture, :, 0, 5:] / 255, rtol=0, atol=1e-6)


def test_without_truth_real_pictures_of_what_was_wanted_are_the_measure(bare: Store) -> None:
    run = run_of(bare, **{"evaluation.pictures": 50})
    judge = AttributeJudge(bare, run)
    assert (judge.metric, judge.mode, judge.truth) == (DISTANCE, "min", False)
    cases = judge.cases(doing(nothing, bare))
    assert all("Young" in (bare.record(id).attributes or {}) for id in cases.ids) and cases.real is not None
    assert len(cases.flips) == len(cases.real) > 100 and not any(flip.answers for flip in cases.flips)
    seeds = iter(range(10**6, 2 * 10**6))

    def shown(images: Tensor, wanted: Tensor, target: int) -> Tensor:
        """Another face with the attributes wanted."""
        found = []
        for row in wanted.int().tolist():
            one = faces.Combination(row[:3].index(1), bool(row[3]), bool(row[4]))
            face = faces.draw_face(next(seeds))
            found.append(decode(faces.record(face, one, "x", "test", 32).image).float() / 255)
        return torch.stack(found)

    swapped, idle = judge(doing(shown, bare)), judge(doing(nothing, bare))
    assert swapped[DISTANCE] < 0.5 * idle[DISTANCE] and idle[f"{DISTANCE}@input"] > 0.02
    assert idle[DISTANCE] == pytest.approx(idle[f"{DISTANCE}@input"], rel=1e-4)
    assert idle["content_kept"] == pytest.approx(1) and idle["objective"] == idle[DISTANCE]
    assert swapped["content_kept"] < 0.3 and swapped["objective"] > idle["objective"]  # the content is lost, and that costs
    careless = AttributeJudge(bare, overlay(run, {"evaluation.content_floor": 0.0}))
    assert careless.objective(swapped, idle) == swapped[DISTANCE]
    parts = [value for name, value in idle.items() if name.startswith(f"{DISTANCE}/")]
    assert len(parts) == 5 and idle[DISTANCE] == pytest.approx(sum(parts) / 5)
    assert judge.grid(doing(nothing, bare), rows=2).shape[0] == 3


@pytest.mark.parametrize("truth", [True, False])
def test_chunks_give_what_the_whole_gives(truth: bool, store: Store, bare: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real data set has tens of thousands of flips, which do not fit into memory as floats."""
    of = store if truth else bare
    pipeline = doing(lambda images, wanted, target: images * 0.9 + 0.01 * wanted.sum(1)[:, None, None, None], of)
    judge = AttributeJudge(of, run_of(of, **{"evaluation.pictures": 10}))
    cases = judge.cases(pipeline)
    whole, idle = judge_flips(translate_flips(pipeline, cases), cases), judge_flips(inputs_of(cases), cases)
    together: list[int] = []

    def noted(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*arguments: Any) -> Tensor:
            found = function(*arguments)
            together.append(len(found))
            return found

        return call

    for name in ("_inputs", "translate_to", "pyramid"):
        monkeypatch.setattr(evaluation, name, noted(getattr(evaluation, name)))
    monkeypatch.setattr(evaluation, "CHUNK", 8)
    assert judge.judgement(pipeline).values == pytest.approx(whole.values, rel=1e-6, nan_ok=True)
    assert judge_inputs(cases).values == pytest.approx(idle.values, rel=1e-6, abs=1e-9, nan_ok=True)
    assert len(cases.flips) > 30 and max(together) == 8


def test_of_many_pictures_some_are_judged_and_it_is_said(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small = {"width": 4, "mlp_width": 8, "critic_width": 4, "content_blocks": 1, "generator_blocks": 1}
    run = overlay(run_of(store), {f"model.{name}": value for name, value in small.items()})
    bundle = bundles.write(tmp_path / "gmm", run, store.domains, build(run, store.domains).state_dict())
    assert AttributeJudge.most == 500
    monkeypatch.setattr(AttributeJudge, "most", 4)
    assert set(evaluate(bundle, store.uri, "val")["pictures"]) == {4}
    assert "4 of 10 val pictures are judged" in caplog.text
    caplog.clear()
    assert set(evaluate(bundle, store.uri, "val", pictures=6)["pictures"]) == {6} and not caplog.text


def test_neighbours_of_the_judged_split_are_refused(store: Store, tmp_path: Path) -> None:
    """Of a world's validation faces all combinations are there: the nearest neighbour would be the answer."""
    run = run_of(store)
    for splits, refused in ((("train",), False), (("train", "val"), True)):
        ids = [id for split in splits for id in store.ids(split, "faces")]
        vectors = np.random.default_rng(0).normal(size=(len(ids), 4)).astype(np.float32)
        index = str(tmp_path / "-".join(splits))
        origin = Origin(model="one", store=store.uri, store_digest=store.digest, size=32, splits=splits)
        write_index(index, back_end("exact").build(vectors, ids, {}), origin)
        pipeline = doing(nothing, store)
        pipeline.search = Library.open(index, 32)
        guided = overlay(run, {"data.index": index})
        if not refused:
            assert AttributeJudge(store, guided)(pipeline)["counterpart_error"] > 0
            check_neighbours(pipeline, "val", index)
            continue
        with pytest.raises(ValueError, match=f"{index} holds the val split"):
            AttributeJudge(store, guided)
        with pytest.raises(ValueError, match=f"{index} holds the val split"):
            check_neighbours(pipeline, "val", index)
        with pytest.raises(ValueError, match="index that guides it holds the val split"):
            AttributeJudge(store, run)(pipeline)
        check_neighbours(pipeline, "test", index)


def test_domains_can_be_the_attributes(tmp_path: Path) -> None:
    from recollect.data.worlds import build_streets

    build_streets(tmp_path / "store", size=32, train=4, val=4, test=1, references=2)
    streets = Store.open(tmp_path / "store")
    run = overlay(run_of(streets), {"data.domains": ("sunny", "night"), "model.attributes": ()})
    names = ("sunny", "night")
    judge = AttributeJudge(streets, run)
    targets: list[int] = []

    def noted(images: Tensor, wanted: Tensor, target: int) -> Tensor:
        targets.extend([target] * len(images))
        assert wanted.tolist() == [[float(target == 0), float(target == 1)]] * len(images)
        return images

    pipeline = Pipeline(Doing(noted, names, (names,), streets.domains.only(names)))
    values = judge(pipeline)
    assert judge.metric == "counterpart_error" and sorted(targets) == [0] * 4 + [1] * 4
    assert values["counterpart_error/night"] > 0.1 and values["counterpart_error/sunny"] > 0.1
    assert judge.cases(pipeline).own.tolist() == [[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 4


def test_grids_show_the_flips_and_the_truth_beneath(store: Store) -> None:
    run = run_of(store)
    grid = AttributeJudge(store, run).grid(doing(knowing(store, run), store), rows=2)
    side, gap = 128, 3
    body = grid[:, grid.shape[1] - (4 * (side + gap) - gap) :]
    assert grid.shape[2] == 6 * (side + gap) - gap
    for row in (0, 2):
        top = row * (side + gap)
        for column in range(1, 6):
            left = column * (side + gap)
            drawn, true = (body[:, y : y + side, left : left + side] for y in (top, top + side + gap))
            assert torch.equal(drawn, true), (row, column)


def test_what_cannot_be_judged(store: Store, bare: Store) -> None:
    run = run_of(store)
    for wrong, known in (("content_kept", "counterpart_error"), ("scene_error", "identity_error")):
        with pytest.raises(ValueError, match=known):
            AttributeJudge(store, overlay(run, {"evaluation.metric": wrong}))
    with pytest.raises(ValueError, match=DISTANCE):
        AttributeJudge(bare, run_of(bare, **{"evaluation.metric": "counterpart_error"}))
    assert AttributeJudge(store, overlay(run, {"evaluation.metric": "attribute_accuracy"})).mode == "max"
    with pytest.raises(ValueError, match="Black_Hair"):
        AttributeJudge(store, run)(doing(nothing, store, names=("Black_Hare",), groups=()))
    with pytest.raises(ValueError, match="too few"):
        AttributeJudge(bare, run, pictures=1)(doing(nothing, bare))


def test_gmm_unit_trains_and_is_judged_so(store: Store, tmp_path: Path) -> None:
    small = {"width": 4, "mlp_width": 8, "critic_width": 4, "content_blocks": 1, "generator_blocks": 1}
    engine = {"steps": 2, "batch_size": 2, "evaluate_every": 1, "threads": 1}
    data = {"store": store.uri, "size": 32}
    run = suit(preset("gmm_unit:tiny", data=data, model=small, engine=engine, evaluation={"pictures": 4}), store)
    assert isinstance(judge_of(run, store), AttributeJudge)
    bundle = open_bundle(train(run, tmp_path / "run"))
    rows = [row for row in bundle.metrics() if "counterpart_error" in row]
    assert rows and all(row["objective"] == row["counterpart_error"] for row in rows)
    again = AttributeJudge(store, run)(Pipeline.open(bundle))
    assert again["counterpart_error"] == pytest.approx(min(row["counterpart_error"] for row in rows), rel=1e-4)
    assert list((tmp_path / "run" / "samples").glob("*.png"))
    picture = to_unit(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert Pipeline.open(bundle)(picture, "faces", guide=Guide(attributes=torch.zeros(1, 5))).images.shape == picture.shape
