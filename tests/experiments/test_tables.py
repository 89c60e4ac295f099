"""Tables end to end on a world that trains in moments: training, judging, the page, failures, and going on after kill -9."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from experiments import mguit_ablation, mguit_init
from experiments.tables import Arm, Bound, Claim, Table, run_table
from experiments.tables.jobs import Outcome, digest_of, look, plan, same_pictures, write
from experiments.tables.locks import at_work
from experiments.tables.numbers import verdict, within
from experiments.tables.rows import PICTURES, ROWS, Judging, Results
from experiments.tables.runs import Spent, train_jobs
from experiments.tables.suites import DirectionSuite
from experiments.tables.table import check, chosen
from recollect.bundle import open_bundle
from recollect.config import Run, overlay, preset
from recollect.data.loader import Feed
from recollect.data.store import Store, write_store
from recollect.data.worlds import build_streets
from recollect.evaluation.evaluate import evaluate, short
from recollect.evaluation.metrics import METRICS, Metric
from recollect.evaluation.numbers import Numbers
from recollect.evaluation.statistics import Measured, difference
from recollect.evaluation.validate import Cases, translate_all
from recollect.pipeline import Pipeline
from recollect.training.session import train

ROOT = Path(__file__).parents[2]
TINY = {
    "model.width": 8,
    "model.critic_width": 8,
    "model.critic_layers": 2,
    "model.content_blocks": 2,
    "model.generator_blocks": 2,
    "model.memory.value_dim": 8,
    "data.size": 32,
    "engine.threads": 1,
    "engine.device": "cpu",
    "evaluation.pictures": 2,
}
Start = Callable[..., subprocess.Popen[str]]
BOTH = (("sunny", "night"), ("night", "sunny"))
CLAIMS = (
    Claim("full beats plain", "full", "plain", "scene_error"),
    Claim("the input beats black", "the input itself", "black", "content_kept"),
    Claim("full beats nobody", "full", "nobody", "scene_error"),
)
TABLE = Table("small-table", "A small table", "What it is about.", DirectionSuite(BOTH), "full", CLAIMS)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    uri = tmp_path_factory.mktemp("streets") / "store"
    build_streets(uri, size=32, train=12, val=4, test=4, references=3)
    return Store.open(uri)


@pytest.fixture(scope="module")
def run(store: Store) -> Run:
    made = preset("mguit:tiny", data={"store": store.uri, "domains": ("sunny", "night")})
    return overlay(made, {**TINY, "engine.steps": 4, "engine.batch_size": 2})


@pytest.fixture(scope="module")
def arms(run: Run) -> list[Arm]:
    return [
        Arm("full", run, "all of it"),
        Arm("plain", overlay(run, {"weights.con_k": 0.0, "weights.con_v": 0.0}), "no contrast"),
        Arm("bad", overlay(run, {"optimisers.default.lr": 1e38}), "a rate that breaks it"),
    ]


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


@pytest.fixture(scope="module")
def outcomes(arms: list[Arm], storage: Path, told: list[str]) -> list[Outcome]:
    return run_table(TABLE, arms, (0, 1), str(storage), command="python -m a.table", say=told.append)


@pytest.fixture(scope="module")
def rows(outcomes: list[Outcome], storage: Path) -> pd.DataFrame:
    return pd.read_parquet(storage / "small-table.parquet")


def test_one_arm_fails_and_the_others_are_there(outcomes: list[Outcome], told: list[str], storage: Path) -> None:
    assert [(outcome.job.arm, outcome.job.seed) for outcome in outcomes][:4] == [
        ("full", 0),
        ("plain", 0),
        ("bad", 0),
        ("full", 1),
    ]
    for outcome in outcomes:
        assert (outcome.facts is None) == (outcome.job.arm == "bad")
        assert ("NotFinite" in outcome.error) == (outcome.job.arm == "bad")
        if outcome.facts:
            assert open_bundle(outcome.bundle).digest == outcome.facts["digest"]
    text = "\n".join(told)
    assert "6 runs: 0 finished, 0 to go on with, 6 to begin" in text and "[6/6]" in text
    assert "FAILED" in text and " left" in text
    assert "Failed (logs" in (storage / "small-table.md").read_text()


def test_rows_are_those_of_the_evaluation_itself(rows: pd.DataFrame, outcomes: list[Outcome], store: Store) -> None:
    assert list(rows.columns) == ROWS and set(rows["data"]) == {store.digest}
    expected = evaluate(outcomes[0].bundle, store.uri).set_index(["name", "metric"])["value"]
    more = ["plain", "best colour map per class"]  # the second is the table's own
    own = rows[(rows["setting"] == "sunny-night") & rows["seed"].isin([0, -1]) & ~rows["arm"].isin(more)]
    found = own.set_index(["arm", "metric"])["value"]
    assert len(found) == len(expected)
    assert found.to_dict() == pytest.approx(expected.to_dict(), nan_ok=True)
    back = overlay(outcomes[0].job.run, {"evaluation": {"source": "night", "target": "sunny"}})
    assert back.direction() == BOTH[1] and set(rows["setting"]) == {"sunny-night", "night-sunny"}
    trained = rows[rows["kind"] == "method"]
    assert (trained["steps"] == 4).all() and (trained["seconds"] > 0).all() and (trained["parameters"] > 1000).all()


def test_pictures_make_the_rows(rows: pd.DataFrame, storage: Path) -> None:
    pictures = pd.read_parquet(storage / "small-table-pictures.parquet")
    assert list(pictures.columns) == PICTURES and pictures["picture"].nunique() == 8
    for metric in ("content_kept", "scene_error/road"):
        own = pictures[(pictures["arm"] == "full") & (pictures["seed"] == 1) & (pictures["setting"] == "night-sunny")]
        own = own[own["metric"] == metric]
        value = (own["value"] * own["weight"]).sum() / own["weight"].sum()
        row = rows[
            (rows["arm"] == "full") & (rows["seed"] == 1) & (rows["setting"] == "night-sunny") & (rows["metric"] == metric)
        ]
        assert row["value"].item() == pytest.approx(value)


def test_seeds_are_paired(outcomes: list[Outcome], store: Store) -> None:
    """The same seed sees the same pictures in the same order, in either arm; another seed another order."""
    seen = {}
    for outcome in outcomes[:4]:
        run = outcome.job.run
        feed = Feed(store, run.data, run.engine.batch_size, 2, run.seed)
        seen[outcome.job.arm, run.seed] = [batch.ids for step in range(4) for batch in feed.batches(step)]
    assert seen["full", 0] == seen["plain", 0] != seen["full", 1]


def test_the_page_says_it_all(rows: pd.DataFrame, storage: Path) -> None:
    page = (storage / "small-table.md").read_text()
    mean = rows[(rows["arm"] == "full") & (rows["setting"] == "sunny-night") & (rows["metric"] == "scene_error")]["value"].mean()
    line = next(line for line in page.splitlines() if line.startswith("| full |"))
    assert line.replace("*", "").split("|")[2].split()[0] == short(mean)
    for words in ("scene_error ↓", "content_kept ↑", "another true render", "### scene_error by region", "### Memory"):
        assert words in page, words
    for words in (
        "Paired differences from full",
        "`python -m a.table`",
        "torch 2",
        "cores",
        "| 0 1 | 4 | 2 |",
        "4 test pictures",
        "best on the validation split in the run's own direction",
    ):
        assert words in page, words
    values = page.split("## sunny to night")[1].split("### ")[0]
    columns = [line.split("|")[2:-1] for line in values.splitlines() if line.startswith(("| full |", "| plain |"))]
    for own, other in zip(*columns, strict=True):  # the best arm of a column is bold; both where they are equal
        assert ("**" in own or "**" in other) and (("**" in own and "**" in other) == (own.split()[0] == other.split()[0]))
    assert "| full beats nobody | scene_error | sunny to night | not measured |  |" in page
    assert "| the input beats black | content_kept | sunny to night | held | +1.000 (+1.000 to +1.000), 1 seed |" in page
    for source, target in BOTH:
        assert f"![{source} to {target}](small-table-{source}-{target}.png)" in page
        with Image.open(storage / f"small-table-{source}-{target}.png") as grid:
            assert (grid.width, grid.height > 4 * 128) == (4 * 131 - 3, True)  # input, two arms, true render; four scenes


def test_the_page_is_the_same_without_training(arms: list[Arm], outcomes: list[Outcome], storage: Path) -> None:
    before = (storage / "small-table.md").read_text()
    told: list[str] = []
    run_table(TABLE, arms, (0, 1), str(storage), report_only=True, command="python -m a.table", say=told.append)
    assert (storage / "small-table.md").read_text() == before and told == [f"page: {storage}/small-table.md"]
    run_table(TABLE, arms, (0, 1, 2), str(storage), report_only=True, say=told.append)
    assert "Not trained: full (sunny-night) seed 2" in (storage / "small-table.md").read_text()


def test_what_is_finished_is_neither_trained_nor_judged_again(arms: list[Arm], outcomes: list[Outcome], storage: Path) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in storage.rglob("*") if path.suffix in (".safetensors", ".parquet")}
    told: list[str] = []
    again = run_table(TABLE, arms[:2], (0, 1), str(storage), say=told.append)
    assert told[0].startswith("4 runs: 4 finished") and not any("judging" in text for text in told)
    assert [outcome.facts for outcome in again] == [outcome.facts for outcome in outcomes if outcome.facts]
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def brightness(pipeline: Pipeline, cases: Cases) -> dict[str, float]:
    """A measure of a table of its own."""
    return {"brightness": float(translate_all(pipeline, cases).mean())}


def test_a_new_measure_makes_rows_new(
    arms: list[Arm], outcomes: list[Outcome], storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METRICS, "brightness", Metric("brightness", True, "of [0, 1]", "pictures", "mean of all pixels"))
    place = shutil.copytree(storage, tmp_path / "copy")
    before = pd.read_parquet(place / "small-table.parquet")
    table = replace(TABLE, suite=DirectionSuite(BOTH, (brightness,)))
    told: list[str] = []
    run_table(table, arms[:1], (0, 1), str(place), report_only=True, say=told.append)
    page = (place / "small-table.md").read_text()
    assert "Judged when the table measured something else, and not since: the input itself, black" in page
    again = run_table(table, arms[:1], (0, 1), str(place), say=told.append)
    assert not any(outcome.error for outcome in again) and sum(text.startswith("judging full") for text in told) == 4
    after = pd.read_parquet(place / "small-table.parquet")
    assert len(after[after["metric"] == "brightness"]) == 4
    assert set(after.loc[after["arm"] == "full", "judged"]) == {f"directions 2 + {__name__}:brightness"}
    keys = ["arm", "seed", "setting", "metric"]
    assert not after.duplicated(keys).any()  # replaced, not added to
    both = before[before["arm"] == "full"].merge(after, on=keys, suffixes=("", "_again"))
    assert len(both) and (both["value"] == both["value_again"]).all()
    page = (place / "small-table.md").read_text()
    assert "brightness ↑" in page and "Judged when" not in page


def test_a_changed_run_is_another_run(run: Run, store: Store) -> None:
    assert digest_of(run, store.digest) == digest_of(overlay(run, {"name": "x", "data.store": "/moved"}), store.digest)
    assert digest_of(run, store.digest) != digest_of(overlay(run, {"engine.steps": 5}), store.digest)
    assert digest_of(run, store.digest) != digest_of(run, "other data")


def test_a_field_that_comes_later_leaves_a_run_what_it_was_and_a_changed_default_is_said(run: Run, tmp_path: Path) -> None:
    arms = [Arm("one", run)]
    (job,) = plan(arms, (0,), str(tmp_path))
    stored = json.loads(job.run.model_dump_json())
    del stored["optimisers"]["default"]["momentum"]  # as if a later version had brought it
    write(job.place, "run.json", stored)
    (again,) = plan(arms, (0,), str(tmp_path))
    assert again.place == job.place and again.digest == job.digest
    stored["optimisers"]["default"]["weight_decay"] = 0.5
    write(job.place, "run.json", stored)
    with pytest.raises(ValueError, match="the default of optimisers.default.weight_decay was 0.5; it is 0.0001 now"):
        plan(arms, (0,), str(tmp_path))


def test_runs_that_were_trained_before_a_field_came_are_known(run: Run, store: Store) -> None:
    """By what was hashed then: the configuration without the fields."""
    config = overlay(run, {"name": "", "data.store": ""}).model_dump(mode="json")
    del config["data"]["known"], config["evaluation"]["features"]
    before = hashlib.sha256(json.dumps([config, store.digest], sort_keys=True).encode()).hexdigest()
    assert digest_of(run, store.digest) == before
    for later in ({"data.known": ("Male",)}, {"evaluation.features": "inception"}):
        assert digest_of(overlay(run, later), store.digest) != before


def test_a_store_without_test_pictures_is_refused_before_anything_is_trained(run: Run, store: Store, tmp_path: Path) -> None:
    assert store.domains.names[:2] == ("sunny", "night")
    records = store.records(store.ids("train", "sunny"))
    night = [replace(record, id=f"n{record.id}", domain="night") for record in records]
    test = [replace(record, id=f"t{record.id}", split="test", scene=None, mode=None) for record in records[:2]]
    names = store.domains
    write_store(
        tmp_path / "bare", [*records, *night, *test], domains=names.names[:2], classes=names.classes, regions=names.regions
    )
    arm = Arm("full", overlay(run, {"data.store": str(tmp_path / "bare")}))
    with pytest.raises(ValueError, match="no test picture of 'night', which small-table judges full on"):
        run_table(TABLE, [arm], (0,), str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_pictures_that_cannot_be_drawn_leave_the_page(
    arms: list[Arm], outcomes: list[Outcome], storage: Path, tmp_path: Path
) -> None:
    class Wrong(DirectionSuite):
        def grid(self, cases: Cases, bundles: Mapping[str, str], reference: str) -> torch.Tensor | None:
            raise RuntimeError("no such index")

    place = shutil.copytree(storage, tmp_path / "copy")
    (place / "small-table.md").unlink()
    told: list[str] = []
    again = run_table(replace(TABLE, suite=Wrong(BOTH)), arms[:1], (0, 1), str(place), say=told.append)
    assert not any(outcome.error for outcome in again) and (place / "small-table.md").exists()
    assert sum(text.startswith("no pictures of ") and "RuntimeError: no such index" in text for text in told) == 2


def test_rows_from_before_instruments_stay_known(outcomes: list[Outcome], storage: Path, tmp_path: Path) -> None:
    frame = pd.read_parquet(storage / "small-table.parquet")
    frame.drop(columns="instrument").to_parquet(tmp_path / "small-table.parquet")
    shutil.copy(storage / "small-table-pictures.parquet", tmp_path)
    told: list[str] = []
    judging = Judging(str(tmp_path / "small-table"), DirectionSuite(BOTH, pictures=500), told.append)
    judging.judge(outcomes)
    assert not any("judging full" in text for text in told) and len(judging.results(outcomes).rows) == len(frame)


def test_a_table_on_a_uri_is_the_same(arms: list[Arm], outcomes: list[Outcome], rows: pd.DataFrame, tmp_path: Path) -> None:
    found = run_table(TABLE, arms[:1], (0,), f"file://{tmp_path}", say=lambda text: None)
    assert found[0].bundle.startswith("file://") and (tmp_path / "small-table.md").exists()
    ours = pd.read_parquet(tmp_path / "small-table.parquet")
    same = rows[(rows["arm"] != "plain") & (rows["seed"] < 1)].reset_index(drop=True)
    order = ["arm", "setting", "metric"]
    ours, same = (frame.sort_values(order).reset_index(drop=True)[[*order, "value"]] for frame in (ours, same))
    pd.testing.assert_frame_equal(ours, same, check_exact=True)


def test_seconds_add_up_over_sessions(tmp_path: Path) -> None:
    first = Spent(tmp_path / "seconds.json")
    first.began -= 10
    first({}, None)
    second = Spent(tmp_path / "seconds.json")
    second.began -= 5
    second({}, None)
    assert second.seconds == pytest.approx(15, abs=1)


def made_up(scores: dict[str, list[list[float]]], kept: dict[str, float]) -> Numbers:
    """Numbers of arms by seed and picture (one region), and of a metric of whole sets."""
    rows, pictures = [], []
    for arm, seeds in scores.items():
        for seed, values in enumerate(seeds):
            about = {"arm": arm, "kind": "method", "seed": seed, "setting": "a-b"}
            rows += [{**about, "metric": "scene_error", "value": sum(values) / len(values)}]
            rows += [{**about, "metric": "feature_distance@pyramid", "value": kept[arm] + seed}]
            for place, value in enumerate(values):
                pictures.append({**about, "picture": str(place), "metric": "scene_error/road", "value": value, "weight": 2.0})
    return Numbers(Results(pd.DataFrame(rows), pd.DataFrame(pictures)))


def test_claims_are_judged_by_the_paired_interval() -> None:
    hard = [0.1, 0.9, 0.4, 0.6, 0.2, 0.7, 0.3, 0.5]
    low = [[value + 0.01 * seed for value in hard] for seed in range(3)]
    high = [[value + 0.05 + 0.002 * (place % 3 - 1) for place, value in enumerate(row)] for row in low]
    numbers = made_up({"low": low, "high": high, "one": low[:1]}, {"low": 0.0, "high": 0.5, "one": 0.0})

    def judged(better: str, worse: str, metric: str = "scene_error") -> str:
        return verdict(Claim("", better, worse, metric), numbers, "a-b")[0]

    assert judged("low", "high") == "held" == judged("low", "high", "feature_distance@pyramid")
    assert judged("high", "low") == "did not hold (the other way round)"
    assert judged("low", "low") == "did not hold (the interval holds 0)"
    assert judged("one", "high") == "held"  # of the seed they share
    assert judged("one", "high", "feature_distance@pyramid") == "not decided"
    assert judged("low", "high", "content_kept") == "not measured" == judged("low", "gone")
    found = numbers.difference("a-b", "low", "high", "scene_error")
    one, other = (Measured(torch.tensor(values)[..., None].double(), torch.full((8, 1), 2.0)) for values in (low, high))
    assert found is not None and found[0] == pytest.approx(difference(one, other)) and found[1] == 3


def test_bounds_are_judged_by_the_mean_and_the_interval() -> None:
    numbers = made_up({"arm": [[0.1, 0.3], [0.11, 0.31]], "one": [[0.2, 0.2]]}, {"arm": 0.0, "one": 0.4})

    def judged(arm: str, metric: str, limit: float) -> str:
        return within(Bound("", arm, metric, limit), numbers, "a-b")[0]

    assert judged("arm", "scene_error", 0.2) == "did not hold"  # less is better
    assert judged("arm", "scene_error", 0.21) == "held in the mean, not over the interval"
    assert judged("arm", "scene_error", 0.9) == "held"
    assert judged("one", "feature_distance@pyramid", 0.5) == "held in the mean, no interval"
    assert judged("arm", "content_kept", 0.5) == "not measured"


def test_arms_that_cannot_be_compared_are_refused(arms: list[Arm], tmp_path: Path) -> None:
    def refused(words: str, *wrong: Arm, table: Table = TABLE) -> None:
        with pytest.raises(ValueError, match=words):
            run_table(table, wrong, (0,), str(tmp_path))

    larger = Arm("larger", overlay(arms[0].run, {"data.size": 64}))
    refused("full and larger are not judged on the same pictures: test/32/32/all and test/64/64/all", arms[0], larger)
    other = Arm("other", overlay(arms[0].run, {"data.flip": False}))
    refused("full and other do not see the same pictures", arms[0], other)
    refused("two arms are called 'full'", arms[0], Arm("full", arms[1].run))
    refused("of which small-table judges nothing", Arm("full", overlay(arms[0].run, {"data.domains": ["sunny", "rainy"]})))
    refused("judged on one store", arms[0], Arm("else", overlay(arms[0].run, {"data.store": "elsewhere"})))
    refused("did you mean 'full'", arms[0], table=Table("t", "", "", DirectionSuite(BOTH), "ful"))
    assert [arm.name for arm in chosen(arms, ["f*", "plain"], None)] == ["full", "plain"]
    with pytest.raises(ValueError, match="no arm of this table is 'ful'; did you mean 'full'"):
        chosen(arms, ["ful"], None)
    with pytest.raises(ValueError, match="sunny-night"):
        chosen(arms, None, ["sunny-rainy"])


def test_two_processes_do_not_work_on_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.tables.locks.PATIENCE", 0.3)
    with at_work(str(tmp_path)), pytest.raises(ValueError, match="another process"), at_work(str(tmp_path)):
        pass
    with at_work(str(tmp_path)):
        pass


@pytest.mark.parametrize("recipe", [mguit_ablation.arms, mguit_init.arms])
@pytest.mark.parametrize("size", ["small", "world", "paper"])
def test_recipes_can_stand_in_one_table(recipe: Callable[..., list[Arm]], size: str, store: Store, tmp_path: Path) -> None:
    table = mguit_ablation.TABLE if recipe is mguit_ablation.arms else mguit_init.TABLE
    made = recipe(store.uri, size == "small", size == "world")
    check(table, made)
    jobs = plan(made, (0,), str(tmp_path))
    same_pictures(jobs)
    sizes = {(job.run.data.size, job.run.engine.steps, job.run.engine.batch_size) for job in jobs}
    assert sizes == {{"small": (64, 900, 2), "world": (128, 40_000, 4), "paper": (360, 500_000, 1)}[size]}
    assert len(jobs) == len(made) and len({job.digest for job in jobs}) == len(made)
    names = {arm.name for arm in made} | {"best colour map"}
    assert all({claim.better, claim.worse} <= names for claim in table.claims)
    assert all(bound.arm in names for bound in table.bounds)


@pytest.mark.parametrize("name", list(mguit_ablation.ARMS))
def test_every_arm_of_the_ablation_trains_and_is_judged(name: str, store: Store, tmp_path: Path) -> None:
    (arm,) = [arm for arm in mguit_ablation.arms(store.uri, True) if arm.name == name]
    arm = Arm(name, overlay(arm.run, {**TINY, "engine.steps": 2}))
    table = Table("one", "", "", DirectionSuite(BOTH[:1]), name)
    (outcome,) = run_table(table, [arm], (0,), str(tmp_path), say=lambda text: None)
    assert not outcome.error and outcome.facts is not None
    assert "scene_error/car" in set(pd.read_parquet(tmp_path / "one.parquet")["metric"])


SMALL = ["--small", "--arms", "none", "class-aware+nce", "--seeds", "0"]
SMALL += [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture
def start(store: Store) -> Iterator[Start]:
    """Starts the ablation as a script on a storage, with further arguments; what a failed test leaves running is ended."""
    started: list[subprocess.Popen[str]] = []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in ("platform", ""))}
    command = [sys.executable, str(ROOT / "experiments" / "mguit_ablation.py"), *SMALL, "--store", store.uri]

    def begin(storage: Path, *arguments: str) -> subprocess.Popen[str]:
        words, pipe = [*command, "--storage", str(storage), *arguments], subprocess.PIPE
        started.append(subprocess.Popen(words, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=environment))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


def wait_for(found: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not found():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)


def values(storage: Path) -> pd.DataFrame:
    """What a table says, without what differs from one training to the next: seconds, and digests of histories with speeds."""
    rows = pd.read_parquet(storage / "mguit-ablation.parquet")
    kept = [name for name in ROWS if name not in ("seconds", "bundle", "step")]
    return rows[kept].sort_values(["arm", "setting", "metric"]).reset_index(drop=True)


def weights(storage: Path) -> dict[str, bytes]:
    files = (storage / "mguit-ablation").rglob("last/model.safetensors")
    return {str(path.relative_to(storage)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_a_table_whose_driver_is_killed_goes_on_and_ends_the_same(start: Start, tmp_path: Path) -> None:
    steps = ["--steps", "60", "--set", "engine.checkpoint_every=20"]
    whole = start(tmp_path / "whole", *steps)
    output, _ = whole.communicate(timeout=280)
    assert whole.returncode == 0, output
    broken = tmp_path / "broken"
    process = start(broken, *steps, "--parallel", "2")
    wait_for(lambda: len(list(broken.glob("*/*/*/last/training.json"))) == 2, process)
    process.kill()
    process.wait()
    ended = list(broken.glob("*/*/*/done.json"))
    again = start(broken, *steps, "--parallel", "2")
    output, _ = again.communicate(timeout=280)
    assert again.returncode == 0, output
    assert f"2 runs: {len(ended)} finished, {2 - len(ended)} to go on with, 0 to begin" in output
    pd.testing.assert_frame_equal(values(broken), values(tmp_path / "whole"), check_exact=True)
    assert weights(broken) == weights(tmp_path / "whole") and len(weights(broken)) == 2


@pytest.mark.slow
def test_a_killed_worker_is_a_failed_run_and_ctrl_c_stops_cleanly(start: Start, tmp_path: Path) -> None:
    steps = ["--steps", "4000", "--set", "engine.checkpoint_every=10", "--parallel", "2"]
    process = start(tmp_path, *steps)
    wait_for(lambda: len(list(tmp_path.glob("*/*/*/last/training.json"))) == 2, process)
    workers = [int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    wait_for(lambda: list(tmp_path.glob("*/*/*/failed.json")), process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "ended with -9" in output and "stopped; the same command goes on" in output
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    for last in tmp_path.glob("*/*/*/last"):
        assert open_bundle(last).run.engine.steps == 4000  # whole, and to go on with


@pytest.mark.slow
def test_on_ray_it_is_the_same_table(start: Start, tmp_path: Path) -> None:
    for name, more in {"here": [], "ray": ["--workers", "1", "--address", "local"]}.items():
        process = start(tmp_path / name, "--steps", "4", *more)
        output, _ = process.communicate(timeout=280)
        assert process.returncode == 0, output
    here, there = values(tmp_path / "here"), values(tmp_path / "ray")
    pd.testing.assert_frame_equal(here.drop(columns="machine"), there.drop(columns="machine"), check_exact=True)
    assert not list((tmp_path / "ray").glob("*/*/*/ray")), "Ray's own checkpoints are gone"


def test_mistakes_are_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in {("--storage", str(tmp_path)): "--store URI", ("--store", str(tmp_path / "none")): "none"}.items():
        assert mguit_ablation.main(arguments) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    with pytest.raises(SystemExit):
        mguit_init.main(["--help"])
    shown = capsys.readouterr().out
    assert "python -m experiments.mguit_init --small --seeds 0 1 2 --parallel 2" in shown and "--report-only" in shown


def test_a_run_is_trained_as_everywhere(outcomes: list[Outcome], tmp_path: Path) -> None:
    job = outcomes[0].job
    alone = open_bundle(train(job.run, tmp_path / "alone"))
    mine = open_bundle(outcomes[0].bundle)
    assert all(torch.equal(tensor, mine.state()[name]) for name, tensor in alone.state().items())
    assert look(job).facts == outcomes[0].facts
    assert [outcome.facts for outcome in train_jobs([job], say=lambda text: None)] == [outcomes[0].facts]
