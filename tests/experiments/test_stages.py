"""Arms that start from other arms: order, digests, what is built between, failures, and going on after kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from experiments.tables import Arm, OnRay, run_table
from experiments.tables.command import changed
from experiments.tables.jobs import Job, Outcome, plan
from experiments.tables.report import write_page
from experiments.tables.rows import Judging
from experiments.tables.runs import train_jobs
from experiments.tables.table import check, chosen
from recollect.bundle import open_bundle
from recollect.config import Run, overlay
from recollect.data.schema import Record
from recollect.data.store import Store, write_store
from recollect.evaluation.validate import Judgement
from tests.experiments import chain
from trainables.gmm_unit import CELEBA

ROOT = Path(__file__).parents[2]
ATTRIBUTES = (*CELEBA, "Smiling")


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    stream = BytesIO()
    Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("store") / "faces")
    records = []
    for number in range(36):
        flags = (number % 3 == 0, number % 3 == 1, number % 3 == 2, number // 3 % 2, number // 2 % 2, number % 2)
        attributes = {name: int(flag) for name, flag in zip(ATTRIBUTES, flags, strict=True)}
        split = ("train", "val", "test")[number // 12]
        records.append(Record(f"p{number:02}", picture(number), "faces", 32, 32, split, attributes=attributes))
    write_store(uri, records, domains=("faces",), attributes=ATTRIBUTES)
    return uri


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chain")


@pytest.fixture(scope="module")
def outcomes(store: str, storage: Path) -> list[Outcome]:
    return run_table(chain.TABLE, chain.arms(store), (0, 1), str(storage), say=lambda text: None)


def of(jobs: list[Job], arm: str, seed: int = 0) -> Job:
    return next(job for job in jobs if (job.arm, job.seed) == (arm, seed))


def test_every_stage_starts_from_the_bundle_of_its_own_seed(outcomes: list[Outcome], storage: Path) -> None:
    assert [(o.job.arm, o.job.seed) for o in outcomes] == [(arm, seed) for seed in (0, 1) for arm in ("gmm", "retriever", "rg")]
    assert not any(outcome.error for outcome in outcomes)
    by = {(o.job.arm, o.job.seed): o for o in outcomes}
    for seed in (0, 1):
        gmm, retriever, rg = (by[arm, seed] for arm in ("gmm", "retriever", "rg"))
        parents = open_bundle(retriever.bundle).manifest["parents"]
        assert gmm.facts and retriever.facts and rg.facts
        assert parents["translator"] == gmm.facts["digest"] and retriever.facts["parents"] == {"gmm": gmm.facts["digest"]}
        manifest = open_bundle(rg.bundle).manifest
        assert manifest["parents"]["retriever"] == retriever.facts["digest"] == rg.facts["parents"]["retriever"]
        assert Path(open_bundle(rg.bundle).run.data.index).is_relative_to(storage / "chain" / "between")
    assert by["gmm", 0].facts != by["gmm", 1].facts
    assert len(list((storage / "chain" / "between").glob("*/index"))) == 2  # an index a seed


def test_each_stage_is_judged_in_its_own_setting(outcomes: list[Outcome], storage: Path) -> None:
    rows = pd.read_parquet(storage / "chain.parquet")
    settings = rows.groupby("arm")["setting"].unique().map(list).to_dict()
    both = {"gmm": ["translations"], "rg": ["translations"], "the input itself": ["translations"]}
    assert settings == {**both, "retriever": ["neighbours"]}
    page = (storage / "chain.md").read_text()
    assert "## Translations" in page and "## Neighbours" in page and "### p_at_10 by attribute" in page
    assert "Male ↑" in page and "p_at_10/average ↑" in page
    assert "(chain-translations.png)" in page and "neighbours.png" not in page
    assert "| the input keeps more | content_kept | Translations | " in page and "+0." in page  # with a baseline's row
    assert "rg finds more | p_at_10/average | Neighbours | not measured" in page
    assert page.count("| rg keeps more |") == 1  # neighbours are not judged by what is kept
    assert "| rg | faces | stage 3; from retriever | rg_unit | 0 1 |" in page and "Queries and pictures" in page


def test_the_same_table_again_trains_and_judges_nothing(outcomes: list[Outcome], store: str, storage: Path) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in storage.rglob("*") if path.suffix in (".safetensors", ".parquet")}
    told: list[str] = []
    again = run_table(chain.TABLE, chain.arms(store), (0, 1), str(storage), say=told.append)
    assert told[0].startswith("6 runs: 6 finished") and [o.facts for o in again] == [o.facts for o in outcomes]
    assert not any(text.startswith("judging") and "baselines" not in text for text in told)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_a_changed_stage_makes_what_starts_from_it_new_and_nothing_else(store: str, tmp_path: Path) -> None:
    def digests(arms: list[Arm]) -> dict[str, str]:
        return {job.arm: job.digest for job in plan(arms, (0,), str(tmp_path))}

    def changes(arm: str, **change: object) -> set[str]:
        arms = [replace(own, **change) if own.name == arm else own for own in chain.arms(store)]  # type: ignore[arg-type]
        now = digests(arms)
        return {name for name in now if now[name] != before[name]}

    before = digests(chain.arms(store))
    gmm, retriever = (next(arm.run for arm in chain.arms(store) if arm.name == name) for name in ("gmm", "retriever"))
    assert changes("gmm", run=overlay(gmm, {"engine.steps": 5})) == {"gmm", "retriever", "rg"}
    assert changes("retriever", run=overlay(retriever, {"engine.steps": 5})) == {"retriever", "rg"}
    assert changes("rg", prepare="tests.experiments.chain:from_gmm") == {"rg"}
    assert changes("gmm", about="other words", shown=False) == set()
    places = [job.place for job in plan(chain.arms(store), (0, 1), str(tmp_path))]
    assert len(set(places)) == 6


@pytest.mark.slow
def test_what_starts_from_a_failed_run_says_so_and_is_not_started(store: str, tmp_path: Path) -> None:
    arms = changed(chain.arms(store), 2, ["gmm:optimisers.default.lr=1e38"])
    for parallel in (1, 2):
        told: list[str] = []
        jobs = plan(arms, (0,), str(tmp_path / str(parallel)))
        gmm, retriever, rg = train_jobs(jobs, parallel, say=told.append)
        assert "NotFinite" in gmm.error
        assert retriever.error == f"not started: gmm (faces) seed 0, which it starts from, failed: {gmm.error}"
        assert rg.error.startswith("not started: retriever (faces) seed 0") and "[3/3]" in told[-1]
        assert not (Path(rg.job.place) / "last").exists()
    healed = train_jobs(plan(changed(chain.arms(store), 2, []), (0,), str(tmp_path / "1")), say=lambda text: None)
    assert not any(outcome.error for outcome in healed)


def test_an_arm_that_is_not_shown_is_trained_and_not_judged(store: str, tmp_path: Path) -> None:
    arms = [replace(arm, shown=arm.name == "retriever") for arm in chain.arms(store) if arm.name != "rg"]
    table = replace(chain.TABLE, reference="retriever", claims=())
    done = run_table(table, arms, (0,), str(tmp_path), say=lambda text: None)
    assert [outcome.facts is not None for outcome in done] == [True, True]
    rows = pd.read_parquet(tmp_path / "chain.parquet")
    assert set(rows["arm"]) == {"retriever"}
    page = (tmp_path / "chain.md").read_text()
    assert "| gmm | faces | stage 1 |" in page and "## Translations" not in page


def test_rows_of_another_version_of_the_suite_are_judged_again(outcomes: list[Outcome], store: str, storage: Path) -> None:
    class More(chain.ChainSuite):
        version = "chain 2"

    place = str(storage / "chain")
    old = Judging(place, chain.ChainSuite(500), lambda text: None)
    told: list[str] = []
    judging = Judging(place, More(500), told.append)
    assert not old.outdated(old.results(outcomes))
    assert set(judging.outdated(judging.results(outcomes))) == {"gmm", "retriever", "rg", "the input itself"}
    write_page(place, chain.TABLE, chain.arms(store), outcomes, judging, "")
    assert (
        "Judged when the table measured something else, and not since: the input itself, gmm"
        in (storage / "chain.md").read_text()
    )
    before = pd.read_parquet(f"{place}.parquet")
    assert not any(outcome.error for outcome in judging.judge(outcomes))
    assert sum("judging baselines, T" in text for text in told) == 1 and sum("seed" in text for text in told) == 6
    assert not judging.outdated(judging.results(outcomes))
    after = pd.read_parquet(f"{place}.parquet")
    assert len(after) == len(before) and set(after["judged"]) == {"chain 2"}  # replaced, not added to
    pictures = pd.read_parquet(f"{place}-pictures.parquet")
    assert not pictures.duplicated(["arm", "seed", "setting", "metric", "picture"]).any()
    told.clear()
    judging.judge(outcomes)
    assert not any("seed" in text for text in told)
    old.judge(outcomes)  # as it was, for the other tests


def test_judgements_that_break_their_promise_are_refused(outcomes: list[Outcome], tmp_path: Path) -> None:
    class Wrong(chain.ChainSuite):
        def judge(self, bundle: str, cases: chain.Pictures) -> Judgement:
            right = chain.ChainSuite.judge(self, bundle, cases)
            return right._replace(values={name: value + 0.01 for name, value in right.values.items()})

    judged = Judging(str(tmp_path / "chain"), Wrong(), lambda text: None).judge(outcomes[:1])
    assert "but its values by picture give" in judged[0].error


def test_stages_that_make_no_sense_are_refused(store: str, tmp_path: Path) -> None:
    rg, gmm, retriever = chain.arms(store)

    def refused(words: str, *arms: Arm) -> None:
        with pytest.raises(ValueError, match=words):
            run_table(replace(chain.TABLE, reference=arms[0].name), arms, (0,), str(tmp_path))

    refused("rg starts from 'retriever', which is no arm of this table", rg, gmm)
    refused("did you mean 'gmm'", gmm, replace(retriever, parents=("gm",)))
    refused("in a circle: rg from retriever from rg", rg, replace(retriever, parents=("rg",)))
    refused("has no prepare that takes their bundles", gmm, replace(retriever, prepare=""))
    refused("has no 'from_gm'", gmm, replace(retriever, prepare="tests.experiments.chain:from_gm"))
    refused("has no arms to train and judge", replace(gmm, shown=False))
    elsewhere = [replace(gmm, run=overlay(gmm.run, {"data.domains": (name,)})) for name in ("a", "b")]
    with pytest.raises(ValueError, match="there are 2 of that name, on other domains"):
        chosen([*elsewhere, retriever], ["retriever"], None)


def no_run(run: Run, bundles: dict[str, str], place: str, on: OnRay | None) -> None:
    """A prepare that forgets to return."""


def test_what_prepare_raises_or_returns_becomes_the_failure_of_its_run(store: str, tmp_path: Path) -> None:
    _, gmm, retriever = chain.arms(store)
    wrong = replace(retriever, prepare="tests.experiments.test_stages:no_run")
    lost = replace(retriever, name="lost", prepare="tests.experiments.chain:from_retriever")
    done = train_jobs(plan(changed([gmm, wrong, lost], 2, []), (0,), str(tmp_path)), say=lambda text: None)
    assert [bool(outcome.facts) for outcome in done] == [True, False, False]
    assert "no_run returned NoneType, not a Run" in done[1].error and "KeyError: 'retriever'" in done[2].error


def test_chosen_arms_bring_what_they_start_from(store: str) -> None:
    arms = chain.arms(store)
    assert [arm.name for arm in chosen(arms, ["rg"], None)] == ["rg", "gmm", "retriever"]
    assert [arm.name for arm in chosen(arms, ["retriever"], None)] == ["gmm", "retriever"]
    assert [arm.name for arm in chosen(arms, ["gmm"], None)] == ["gmm"]


def test_fields_can_be_changed_in_one_stage_alone(store: str) -> None:
    made = changed(chain.arms(store), 7, ["retriever:model.margin=0.25", "engine.batch_size=3", "r*:engine.steps=9"])
    by = {arm.name: arm.run for arm in made}
    assert by["retriever"].model.model_dump()["margin"] == 0.25
    assert {name: run.engine.steps for name, run in by.items()} == {"gmm": 7, "retriever": 9, "rg": 9}
    assert {run.engine.batch_size for run in by.values()} == {3}
    check(chain.TABLE, made)
    named = [replace(arm, name=f"r = {number}", parents=()) for number, arm in enumerate(chain.arms(store))]
    steps = [arm.run.engine.steps for arm in changed(named, 7, ["r = 1:engine.steps=9", "r = [02]:data.store=s3://b/faces"])]
    assert steps == [7, 9, 7]
    with pytest.raises(ValueError, match="no arm of this table is 'retriver'; did you mean 'retriever'"):
        changed(chain.arms(store), None, ["retriver:model.margin=0.25"])


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(store: str) -> Iterator[Start]:
    """Starts the chain in a process; what a failed test leaves running is ended."""
    started: list[subprocess.Popen[str]] = []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in ("platform", ""))}
    command = [sys.executable, "-m", "tests.experiments.chain", "--small", "--seeds", "0", "--store", store]

    def begin(storage: Path, *arguments: str) -> subprocess.Popen[str]:
        words, pipe = [*command, "--storage", str(storage), *arguments], subprocess.PIPE
        started.append(subprocess.Popen(words, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


def wait_for(found: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not found():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


def weights(storage: Path) -> dict[str, bytes]:
    files = (storage / "chain").glob("*/*/last/model.safetensors")
    return {str(path.relative_to(storage)): path.read_bytes() for path in files}


STEPS = ["--set", "retriever:engine.steps=60", "--set", "retriever:engine.checkpoint_every=10"]


@pytest.fixture(scope="module")
def whole(store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chain trained without anything happening to it."""
    place = tmp_path_factory.mktemp("whole")
    assert chain.main(["--small", "--seeds", "0", "--store", store, "--storage", str(place), *STEPS]) == 0
    return place


@pytest.mark.slow
def test_a_chain_whose_second_stage_is_killed_goes_on_and_ends_the_same(start: Start, whole: Path, tmp_path: Path) -> None:
    process = start(tmp_path, *STEPS)
    wait_for(lambda: list(tmp_path.glob("chain/retriever-*/*/last/training.json")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(tmp_path.glob("chain/*/*/done.json"))) == 1 and not list(tmp_path.glob("chain/rg-*/*/last"))
    again = start(tmp_path, *STEPS)
    output, _ = again.communicate(timeout=200)
    assert again.returncode == 0 and "3 runs: 1 finished, 1 to go on with, 1 to begin" in output, output
    assert weights(tmp_path) == weights(whole) and len(weights(whole)) == 3


@pytest.mark.slow
def test_a_killed_worker_keeps_back_what_starts_from_it_until_the_next_time(start: Start, whole: Path, tmp_path: Path) -> None:
    process = start(tmp_path, *STEPS, "--parallel", "2")
    wait_for(lambda: list(tmp_path.glob("chain/retriever-*/*/last/training.json")), process)
    (worker,) = (int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    os.kill(worker, signal.SIGKILL)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 1 and "ended with -9" in output and "not started: retriever" in output, output
    assert "not started: retriever" in (tmp_path / "chain.md").read_text()
    again = start(tmp_path, *STEPS, "--parallel", "2")
    output, _ = again.communicate(timeout=200)
    assert again.returncode == 0, output
    assert weights(tmp_path) == weights(whole)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_ray_the_stages_are_the_same(start: Start, whole: Path, tmp_path: Path) -> None:
    process = start(tmp_path, *STEPS, "--workers", "1", "--address", "local")
    output, _ = process.communicate(timeout=800)
    assert process.returncode == 0, output
    assert weights(tmp_path) == weights(whole)
    assert Store.open(open_bundle(next(tmp_path.glob("chain/rg-*/*/last"))).run.data.store).domains.names == ("faces",)


def test_tables_share_runs_whatever_their_arms_are_called(store: str, tmp_path: Path) -> None:
    def renamed(arms: list[Arm]) -> list[Arm]:
        return [replace(arm, name=f"{arm.name} 100 %", parents=tuple(f"{name} 100 %" for name in arm.parents)) for arm in arms]

    first = replace(chain.TABLE, name="first", runs="shared", claims=())
    own = [arm for arm in chain.arms(store) if arm.name != "rg"]
    one = run_table(first, own, (0,), str(tmp_path), say=lambda text: None)
    told: list[str] = []
    second = replace(first, name="second", reference="gmm 100 %")
    twice = [*renamed(own), replace(own[0], name="gmm again")]  # two arms that are one run
    other = run_table(second, twice, (0,), str(tmp_path), parallel=2, say=told.append)
    assert told[0].startswith("2 runs: 2 finished, 0 to go on with, 0 to begin")
    assert [outcome.facts for outcome in other] == [*(outcome.facts for outcome in one), one[0].facts]
    rows = pd.read_parquet(tmp_path / "second.parquet")
    assert {"gmm 100 %", "gmm again", "retriever 100 %"} <= set(rows["arm"])
    assert (tmp_path / "first.md").exists() and (tmp_path / "second.md").exists()
    assert {path.name for path in (tmp_path / "shared").iterdir() if path.is_dir()} >= {"gmm-unit-faces", "retriever-faces"}


def test_arms_that_are_one_run_are_trained_once(store: str, tmp_path: Path) -> None:
    gmm = next(arm for arm in chain.arms(store) if arm.name == "gmm")
    retriever = next(arm for arm in chain.arms(store) if arm.name == "retriever")
    arms = [gmm, replace(gmm, name="same"), replace(retriever, parents=("same",))]
    told: list[str] = []
    done = train_jobs(plan(arms, (0,), str(tmp_path), shared=True), 2, say=told.append)
    assert not any(outcome.error for outcome in done) and told[0].startswith("2 runs: 0 finished")
    assert done[0].facts == done[1].facts and len(list(tmp_path.glob("gmm-unit-faces/*"))) == 1
