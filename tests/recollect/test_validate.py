"""The validator: which pictures it takes, what it steers by, and that perfect and worthless translators score so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from recollect.batch import Domains, Guide, Translation
from recollect.config import ModelConfig, Run, preset
from recollect.data.loader import fixed_batch
from recollect.data.store import Store, write_store
from recollect.data.transforms import joint_crop, to_unit
from recollect.data.worlds import streets
from recollect.evaluation.metrics import METRICS, find_metric
from recollect.evaluation.validate import ByPicture, Cases, Judgement, Validator, gather, judge, translate_all
from recollect.pipeline import Pipeline
from recollect.trainable import Translator
from recollect.training.trainer import build
from trainables.mguit import MGUIT

DOMAINS = ("sunny", "night")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("streets")
    drawn = streets.records(64, train=2, val=8, test=8, references=4, domains=DOMAINS)
    write_store(path, drawn, domains=DOMAINS, classes=streets.CLASSES, regions=streets.REGIONS)
    return Store.open(path)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The same pictures, half of them a domain, without truth and boxes; no place is in both domains."""
    path = tmp_path_factory.mktemp("bare")
    drawn = streets.records(64, train=2, val=16, test=0, references=1, domains=DOMAINS)
    first = [r for r in drawn if r.split == "train" or (int(r.id.split("-")[1]) % 2 == 0) == (r.domain == "sunny")]
    write_store(path, (replace(r, scene=None, mode=None, regions=None, boxes=None) for r in first), domains=DOMAINS)
    return Store.open(path)


def run_of(store: Store, **sections: dict[str, object]) -> Run:
    return preset("mguit:tiny", data={"store": store.uri, "domains": DOMAINS}, **sections)


def untrained(run: Run, store: Store) -> Pipeline:
    torch.manual_seed(0)
    config = run.model.suited_to(store.domains.classes)
    assert isinstance(config, MGUIT.Config)
    return Pipeline(MGUIT(config, store.domains.only(DOMAINS)))


class LookedUp(Translator):
    """A translator that knows the answer to every input by heart; the yardstick of a validator."""

    def __init__(self, inputs: Tensor, answers: Tensor, domains: Domains) -> None:
        super().__init__(ModelConfig(name="looked-up"), domains)
        self.inputs, self.answers = inputs, nn.Parameter(answers, requires_grad=False)

    @property
    def stride(self) -> int:
        return 1

    def translate(self, images: Tensor, source: int, target: int, guide: Guide = Guide()) -> Translation:
        distance = (images[:, None] - self.inputs).flatten(2).abs().sum(2)
        assert distance.amin(1).max() == 0, "an input nobody gave"
        return Translation(self.answers[distance.argmin(1)], {})

    def sample_guide(self, target: int, generators: Sequence[torch.Generator]) -> Guide:
        return Guide()


def knowing(cases: Cases, answers: Tensor, domains: Domains) -> Pipeline:
    return Pipeline(LookedUp(to_unit(cases.images), to_unit(answers), domains))


def test_the_objective_of_a_store_with_truth_is_the_scene_error(store: Store) -> None:
    run = run_of(store)
    validator = Validator(store, run, pictures=4)
    assert (validator.metric, validator.mode) == ("scene_error", "min")
    assert "minimises scene_error" in validator.about and "4 val pictures, sunny to night" in validator.about
    pipeline = untrained(run, store)
    values = validator(pipeline)
    assert values == validator(pipeline) == Validator(store, run, pictures=4)(pipeline)
    assert values["objective"] == values["scene_error"] > 0.2
    wanted = {"content_kept", "modes_hit", "mode_entropy", "feature_distance@pyramid", "effective_items", "class_found/car"}
    assert wanted | {"scene_error/sign", "memory/cosine/car", "memory/dead/background"} <= set(values)
    assert all(find_metric(name) for name in values if name != "objective")
    assert 1 <= values["effective_items"] <= 20 and 0 <= values["class_found"] <= 1


def test_a_true_render_scores_perfectly_and_the_truth_belongs_to_the_inputs(store: Store) -> None:
    validator = Validator(store, run_of(store))
    cases = validator.cases
    assert cases.truth is not None and cases.truth.references.shape == (8, 4, 3, 64, 64)
    answers = torch.stack([cases.truth.references[i, i % 4] for i in range(len(cases))])
    values = validator(knowing(cases, answers, store.domains))
    assert max(values["objective"], values["scene_error/car"]) < 1e-6
    assert values["modes_hit"] == 1.0 and values["content_kept"] > 0.5
    wrong = validator(knowing(cases, answers.roll(1, 0), store.domains))
    assert wrong["objective"] > 0.05 and wrong["content_kept"] < 0.2
    assert "effective_items" not in values


def test_it_takes_distinct_scenes_evenly_in_turning_styles(store: Store) -> None:
    records = store.records(Validator(store, run_of(store), pictures=4).cases.ids)
    assert [record.scene for record in records] == ["val-000000", "val-000002", "val-000004", "val-000006"]
    assert all(record.domain == "sunny" for record in records)
    everything = store.records(gather(store, DOMAINS, "test", 64).ids)
    assert len({record.scene for record in everything}) == len(everything) == 8
    assert len({record.mode for record in everything}) == len(streets.MODES["sunny"])
    halves = [set(gather(store, DOMAINS, "val", 64, half=half).ids) for half in (0, 1)]
    assert len(halves[0]) == len(halves[1]) == 4 and not halves[0] & halves[1]


@pytest.mark.parametrize(("size", "short_side"), [(48, 64), (32, None), (64, None), (40, 56)])
def test_pictures_references_and_regions_are_cut_alike(store: Store, size: int, short_side: int | None) -> None:
    cases = gather(store, DOMAINS, "val", size, 3, short_side)
    assert cases.truth is not None
    assert torch.equal(to_unit(cases.images), fixed_batch(store, cases.ids, size, 1, short_side).images)
    for row, id in enumerate(cases.ids):
        place = store.record(id).scene
        assert place is not None
        for k, render in enumerate(store.records(store.scene(place, "night"))):
            cut = joint_crop(render, size, short_side, classes=store.domains.classes, with_regions=True)
            assert torch.equal(cut.image.as_subclass(Tensor), cases.truth.references[row, k])
            assert cut.regions is not None
            assert torch.equal(cut.regions.as_subclass(Tensor), cases.truth.regions[row])


def test_the_memory_is_judged_on_the_methods_own_grid(store: Store) -> None:
    cases = gather(store, DOMAINS, "val", 64, 5)
    classes = cases.class_map(2)
    assert classes is not None
    expected = fixed_batch(store, cases.ids, 64, 2).classes
    assert expected is not None and torch.equal(classes, expected)


def test_without_truth_it_steers_by_features_and_content(bare: Store) -> None:
    run = run_of(bare, evaluation={"content_floor": 0.3})
    validator = Validator(bare, run)
    assert (validator.metric, validator.mode) == ("feature_distance@pyramid", "min")
    assert "penalty where content_kept is below 0.3" in validator.about
    cases = validator.cases
    unchanged = validator(knowing(cases, cases.images, bare.domains))
    assert unchanged["objective"] == unchanged["feature_distance@pyramid"]
    assert "scene_error" not in unchanged and "modes_hit" not in unchanged
    elsewhere = validator(knowing(cases, cases.targets[: len(cases)], bare.domains))  # real nights of other places
    assert elsewhere["feature_distance@pyramid"] < 0.1 * unchanged["feature_distance@pyramid"]
    assert elsewhere["objective"] > unchanged["objective"]


def test_the_penalty_is_the_formula(bare: Store) -> None:
    validator = Validator(bare, run_of(bare, evaluation={"content_floor": 0.4}))
    far = 100.0  # farther than the input, so that the penalty scales with the distance itself
    for kept, factor in ((0.9, 1.0), (0.4, 1.0), (0.3, 3.5), (0.0, 11.0)):
        values = {"feature_distance@pyramid": far, "content_kept": kept}
        assert validator.objective(values) == pytest.approx(far * factor)


def test_metrics_that_do_not_exist_or_do_not_apply_are_refused(store: Store, bare: Store) -> None:
    with pytest.raises(ValueError, match="there is no metric 'scene_err'.*did you mean 'scene_error'"):
        Validator(store, run_of(store, evaluation={"metric": "scene_err"}))
    with pytest.raises(ValueError, match="needs true renders.*content_kept"):
        Validator(bare, run_of(bare, evaluation={"metric": "scene_error"}))
    region = Validator(store, run_of(store, evaluation={"metric": "scene_error/lamp"}), pictures=2)
    with pytest.raises(ValueError, match=r"'scene_error/lamp' is not measured here.*scene_error/sign"):
        region(untrained(run_of(store), store))
    with pytest.raises(ValueError, match="no test picture of 'sunny'"):
        Validator(bare, run_of(bare), split="test")
    chosen = Validator(store, run_of(store, evaluation={"metric": "content_kept"}), pictures=2)
    assert chosen.mode == "max" and "maximises content_kept" in chosen.about
    values = chosen(untrained(run_of(store), store))
    assert values["objective"] == values["content_kept"]
    assert METRICS["content_kept"].higher_is_better


def test_it_runs_without_boxes(bare: Store) -> None:
    run = run_of(bare)
    values = Validator(bare, run, pictures=3)(untrained(run, bare))
    assert "effective_items" in values and "class_found" not in values


def test_batches_do_not_matter(store: Store) -> None:
    cases, pipeline = gather(store, DOMAINS, "test", 64), untrained(run_of(store), store)
    longer = replace(cases, ids=(*cases.ids, *cases.ids[:3]), images=torch.cat([cases.images, cases.images[:3]]))
    whole = translate_all(pipeline, longer)  # batches of 8 and 3
    assert torch.allclose(whole[:3], whole[8:], atol=1e-5)
    assert judge(whole[:8], cases).by_picture["content_kept"].values.shape == (8,)


def test_the_grid_shows_what_it_says(store: Store, bare: Store) -> None:
    run = run_of(store)
    pipeline, validator = untrained(run, store), Validator(store, run)
    grid = validator.grid(pipeline, rows=3, styles=2)
    assert grid.dtype == torch.uint8
    assert grid.shape[0] == 3 and grid.shape[2] == 6 * 128 + 5 * 3  # input, translation, 2 styles, truth, memory; enlarged twice
    assert torch.equal(grid, validator.grid(pipeline, rows=3, styles=2))
    head = grid.shape[1] - (3 * 128 + 2 * 3)
    assert 10 < head < 50
    assert torch.equal(grid[:, head : head + 128 : 2, 0:128:2], validator.cases.images[0])
    assert grid[:, :head].float().std() > 5  # captions were drawn
    styles = [grid[:, head : head + 128, 131 * column : 131 * column + 128] for column in (1, 2, 3)]
    assert not torch.equal(styles[1], styles[2]) and not torch.equal(styles[0], styles[1])
    plain = preset("cyclegan:tiny", data={"store": store.uri, "domains": DOMAINS, "size": 64}, model={"picture_size": 64})
    single = build(plain, store.domains.only(DOMAINS)).eval()
    assert isinstance(single, Translator)
    assert Validator(store, plain).grid(Pipeline(single), rows=1).shape[2] == 3 * 128 + 2 * 3  # one translation a picture
    bare_grid = Validator(bare, run_of(bare)).grid(untrained(run_of(bare), bare), rows=2, styles=1)
    assert bare_grid.shape[2] == 4 * 128 + 3 * 3  # no truth


def test_a_judgement_is_measured_by_its_pictures_or_by_those_of_its_parts() -> None:
    nan = float("nan")
    rows = {
        "error/a": ByPicture(torch.tensor([1.0, 2.0, nan]), torch.tensor([1.0, 3.0, 0.0])),
        "error/b": ByPicture(torch.tensor([4.0, nan, 8.0]), torch.tensor([1.0, 0.0, 1.0])),
        "kept": ByPicture(torch.tensor([0.5, 1.0, 0.0]), torch.ones(3)),
    }
    judgement = Judgement({}, rows)
    scores = {}
    for name in ("error", "error/a", "kept"):
        measured = judgement.measured(name)
        assert measured is not None
        scores[name] = float(measured.by_seed())
    assert scores == pytest.approx({"error": (1.75 + 6) / 2, "error/a": 1.75, "kept": 0.5})
    assert judgement.measured("distance") is None
