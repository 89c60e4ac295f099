"""Suites of scores: from the command to the table, what is not measured twice, and what is refused."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from recollect import cli
from recollect.bundle import open_bundle, write
from recollect.config import overlay, preset
from recollect.data.store import Store
from recollect.data.worlds import build_faces, build_streets
from recollect.evaluation import suite as suites
from recollect.evaluation.compare import compare, frame, markdown
from recollect.evaluation.diversity import LPIPS_PROTOCOLS, Pairing, Sampling
from recollect.evaluation.evaluate import config_of, evaluate, measure
from recollect.evaluation.frechet import Stack, fid
from recollect.evaluation.measuring import measure_suite
from recollect.evaluation.metrics import METRICS, find_metric
from recollect.evaluation.own_features import OwnDistance, OwnFeatures
from recollect.evaluation.results import KEY, Results, beside, load, save
from recollect.evaluation.suite import Bench, Request
from recollect.evaluation.validate import Validator, gather, translate_all
from recollect.pipeline import Pipeline
from recollect.training.session import domains_of, train_instrument
from recollect.training.trainer import build

DOMAINS = ("sunny", "night")
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, features trained on it that pass the test, and two seeds of a translator that has learnt nothing."""
    folder = tmp_path_factory.mktemp("suite")
    build_streets(folder / "store", size=32, train=40, val=16, test=16, references=1)
    uri = str(folder / "store")
    data = {"store": uri, "domains": DOMAINS, "size": 32}
    engine = {"steps": 120, "batch_size": 4, "threads": 1, "device": "cpu"}
    features = preset("features:tiny", data=data, model={"width": 8, "features": 16}, engine=engine, weights={"turned": 0})
    train_instrument(features, str(folder / "features"), "features", lambda text: None)
    store = Store.open(uri)
    for name, seed in (("one-0", 0), ("one-1", 1), ("wide", 0)):
        width = 16 if name == "wide" else 8
        run = preset("munit:tiny", name=name, seed=seed, data=data, model={"width": width, "critic_width": 8})
        write(folder / name, run, domains_of(run, store), build(run, domains_of(run, store)).state_dict(), parents={"data": "x"})
    return folder


@pytest.fixture(scope="module")
def measured(place: Path) -> Path:
    """A table of results with two seeds of a translator by a suite that takes moments, and another translator without one."""
    out = place / "measured.parquet"
    with pytest.MonkeyPatch.context() as patched:
        moments(patched)
        patched.setenv("XDG_CACHE_HOME", str(place / "cache"))
        for name in ("one-0", "one-1"):
            measure_suite(request(place, name), out=out)
        save(out, measure(place / "wide", place / "store"))
    return out


@pytest.fixture(autouse=True)
def cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """The command as `main` runs it: exit code, what went to stdout, what went to stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["recollect", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
            sys.exit(0)
        said = capfd.readouterr()
        return int(stopped.value.code or 0), said.out, said.err

    return run


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite that takes moments."""
    moments(monkeypatch)


def moments(patched: pytest.MonkeyPatch) -> None:
    patched.setitem(suites.INCEPTION_PROTOCOLS, "moments", Sampling(4, 3))
    patched.setitem(LPIPS_PROTOCOLS, "moments", Pairing(4, 3, "all"))
    patched.setitem(suites.SUITES, "moments", ("moments", "moments"))


def request(place: Path, name: str = "one-0", **changes: object) -> Request:
    made = Request(str(place / name), str(place / "store"), "moments", features=str(place / "features"))
    return replace(made, **changes)  # type: ignore[arg-type]


def test_a_suite_is_what_its_parts_are(place: Path, measured: Path) -> None:
    kept = load(measured)
    own = OwnFeatures(place / "features", target="night")
    rows = kept.rows[kept.rows["name"] == "one-0"]
    values = rows.set_index("metric")["value"]
    assert own.classes > 1 and own.questions == ("",)
    cases = gather(Store.open(place / "store"), DOMAINS, "test", 32)
    fakes = Stack(translate_all(Pipeline.open(place / "one-0"), cases) * 2 - 1)
    (expected,) = fid(Stack(cases.targets), fakes, own, 16).judgement.values.items()
    assert expected[0] == f"fid_16@{own.name}" and values[expected[0]] == pytest.approx(expected[1], rel=1e-5)
    assert {f"kid_16@{own.name}", f"cis_4x3@{own.name}", f"is_4x3@{own.name}/exp", f"lpips_4x3all@{own.name}"} <= set(
        values.index
    )
    assert values[f"is_4x3@{own.name}"] >= values[f"cis_4x3@{own.name}"] >= 0
    assert {"scene_error", "content_kept", "feature_distance@pyramid"} <= set(values.index)
    scores = rows[rows["metric"].str.contains(own.name)]
    assert set(scores["features"]) == {own.digest} and set(kept.rows["data"]) == {Store.open(place / "store").digest}
    assert {"content_kept", f"cis_4x3@{own.name}", f"lpips_4x3all@{own.name}"} <= set(kept.pictures["metric"])
    assert not kept.rows.duplicated(KEY).any()


class Told:
    """Notes what is said of the progress."""

    def __init__(self) -> None:
        self.said, self.ticks = list[str](), 0

    def begin(self, total: int) -> None:
        self.said.append(str(total))

    def now(self, what: str) -> None:
        self.said.append(what)

    def tick(self, translations: int) -> None:
        self.ticks += translations

    def scores(self) -> int:
        return len([one for one in self.said if "@features" in one])


class Stopping:
    """Stops when the first score is to be measured."""

    def __init__(self, told: Told) -> None:
        self.begin, self.tick, self.told = told.begin, told.tick, told

    def now(self, what: str) -> None:
        if "@" in what:
            raise KeyboardInterrupt
        self.told.now(what)


def test_what_is_there_is_not_measured_again(place: Path, measured: Path, small: None, tmp_path: Path) -> None:
    """Killed between two scores, it goes on behind the last; under other digests, or when asked to, all is measured."""
    out, whole = tmp_path / "results.parquet", load(measured)
    scored = whole.rows["features"].str.len() == 64
    name = next(metric for metric in whole.rows["metric"] if metric.startswith("kid_"))
    killed = whole.rows[~scored | (whole.rows["metric"] <= name)]  # it had measured is, cis, fid and kid
    save(out, Results(killed, whole.pictures[whole.pictures["metric"].isin(killed["metric"])]))
    told = Told()
    found, _ = measure_suite(request(place), out=out, progress=told)
    assert told.said[:2] == ["16 pictures from sunny to night were judged before", "12"] and told.scores() == 1
    assert told.said[2].startswith("lpips_") and told.ticks == 12
    expected = whole.rows[(whole.rows["name"] == "one-0") | (whole.rows["kind"] != "method")]
    one, other = (rows.sort_values(KEY, ignore_index=True) for rows in (found.rows, expected))
    pd.testing.assert_frame_equal(one[other.columns], other)
    told = Told()
    measure_suite(request(place), out=out, progress=told)
    assert told.said == ["16 pictures from sunny to night were judged before", "0"]
    blank = open_bundle(place / "features").build()
    store, run = Store.open(place / "store"), open_bundle(place / "features").run
    write(place / "other", overlay(run, {"name": "other"}), domains_of(run, store), blank.state_dict())
    told = Told()
    with pytest.raises(KeyboardInterrupt):
        measure_suite(request(place, features=str(place / "other")), out=out, progress=Stopping(told))
    assert told.said == ["16 pictures from sunny to night were judged before", str(16 + 12 + 12)]


def test_on_validation_scenes_the_scores_are_of_the_half_that_everything_is_judged_on(place: Path, small: None) -> None:
    bench = Bench(request(place, split="val"))
    rows = measure(place / "one-0", place / "store", "val").rows
    assert set(rows["pictures"]) == {len(bench.asked.ids)} == {8}


def test_what_cannot_be_measured_is_named_before_anything_is(place: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="there is no suite 'mguti'; did you mean 'mguit'"):
        Bench(request(place, suite="mguti"))
    with pytest.raises(
        ValueError, match=r"suite mguit: its protocols need 100 inputs, and there are 16 test pictures.*or take --suite quick"
    ):
        Bench(request(place, suite="mguit"))
    with pytest.raises(ValueError, match="neither a bundle .* nor a published network .*inception"):
        Bench(request(place, features=str(place / "nowhere")))
    with pytest.raises(ValueError, match=r"holds 'munit', which describes no pictures; `recollect features train`"):
        Bench(request(place, features=str(place / "one-0")))
    monkeypatch.setenv("TORCH_HOME", str(place / "empty"))
    with pytest.raises(ValueError, match=r"--features: .*inception.*\.pth is not there.*--download, or give a bundle"):
        Bench(request(place, features="inception"))
    with pytest.raises(ValueError, match=r"--lpips: .*alexnet.* is not there"):
        Bench(request(place, lpips="alex"))
    with pytest.raises(ValueError, match="holds 'features'; suites are of what translates pictures"):
        Bench(request(place, "features"))
    with pytest.raises(ValueError, match="too few pictures to test features by"):
        Bench(request(place, pictures=4, store=str(few(place))))


def few(place: Path) -> Path:
    """A store with too few test pictures."""
    build_streets(place / "few", size=32, train=20, val=1, test=2, references=1)
    return place / "few"


def test_features_that_fail_are_refused_and_one_style_is_no_question(place: Path, small: None) -> None:
    store = Store.open(place / "store")
    run = open_bundle(place / "features").run
    model = build(run, domains_of(run, store))
    with torch.no_grad():
        for parameter in model.body.parameters():  # type: ignore[union-attr]
            parameter.zero_()
    write(place / "blind", run, domains_of(run, store), model.state_dict())
    with pytest.raises(ValueError, match="fail the darkening test on this data"):
        Bench(request(place, features=str(place / "blind")))
    trained = open_bundle(place / "features").build()
    trained.seen_modes[1:] = 0  # type: ignore[index]
    write(place / "styleless", run, domains_of(run, store), trained.state_dict())
    bench = Bench(request(place, features=str(place / "styleless")))
    assert list(bench.left_out) == ["is, cis"] and not any(name.startswith("cis") for name in bench.scores)
    trained.seen_modes[1, 0] = 3  # type: ignore[index]
    write(place / "single", run, domains_of(run, store), trained.state_dict())
    assert "one style" in Bench(request(place, features=str(place / "single"))).left_out["is, cis"]


def test_translations_that_are_no_pictures_are_named(place: Path, small: None) -> None:
    store = Store.open(place / "store")
    run = overlay(open_bundle(place / "one-0").run, {"name": "broken"})
    model = build(run, domains_of(run, store))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    write(place / "broken", run, domains_of(run, store), model.state_dict())
    for measured in (lambda: evaluate(place / "broken", store.uri), lambda: measure_suite(request(place, "broken"))):
        with pytest.raises(ValueError, match="the translations of test-000000-sunny-0.* have values that are not finite"):
            measured()


def test_own_distance_is_zero_for_equals_and_grows_with_difference(place: Path) -> None:
    distance = OwnDistance(OwnFeatures(place / "features"))
    cases = gather(Store.open(place / "store"), DOMAINS, "test", 32)
    one, other, night = cases.images[0], cases.images[1], cases.targets[0]
    pictures = torch.stack([one, one, other, night]).float() / 127.5 - 1
    found = distance.between(pictures, torch.tensor([[0, 1], [0, 2], [0, 3]])).tolist()
    assert found[0] == pytest.approx(0, abs=1e-9) and 0 < found[1] < found[2] < 4


def test_seeds_are_one_column_and_differences_are_paired(place: Path, measured: Path, tmp_path: Path, call: Call) -> None:
    words = ["--results", measured, "--markdown", tmp_path / "page.md", "--parquet", tmp_path / "compared.parquet"]
    code, said, error = call("compare", place / "one-0", place / "one-1", place / "wide", *words)
    assert code == 0, error
    assert "one (2 seeds)" in said and "paired differences from one" in said and "were judged before" in error
    found = pd.read_parquet(tmp_path / "compared.parquet").set_index(["metric", "name"])
    by_hand = load(measured).pictures
    kept = by_hand[by_hand["metric"] == "content_kept"].pivot_table(index="picture", columns="name", values="value")
    expected = (kept["wide"] - kept["one-0"]).mean()  # of the seed that both have
    assert found.loc[("content_kept", "wide"), "difference_value"] == pytest.approx(expected, abs=1e-9)
    low, high = found.loc[("content_kept", "wide"), ["difference_low", "difference_high"]]
    assert low < expected < high
    assert found.loc[("content_kept", "one"), "value"] == pytest.approx(kept[["one-0", "one-1"]].mean().mean())
    score = next(metric for metric, _ in found.index if metric.startswith("fid_16"))
    assert (score, "wide") not in found.index and found.loc[(score, "one"), "seeds"] == 2
    page = (tmp_path / "page.md").read_text()
    assert "# Comparison" in page and "| content_kept ↑ |" in page and "the input itself" in page
    assert call("compare", "one-0", "wide", "--results", measured)[0] == 0
    code, _, error = call("compare", "one-0", "wdie", "--results", measured)
    assert code == 2 and "did you mean 'wide'" in error
    assert call("compare", "one-0", "--results", measured)[0] == 2
    for command in (("compare", "one-0", "wide", "--results", measured), ("evaluate", place / "one-0")):
        code, _, error = call(*command, "--workers", 2, "--lpips", "vgg")
        assert code == 2 and "--lpips, --workers would do nothing without a suite" in error
    code, _, error = call("compare", place / "one-0", place / "wide", "--results", measured, "--index", "anywhere")
    assert code == 2 and "no neighbours guide any of these bundles" in error


def test_what_was_measured_on_other_pictures_is_not_compared(place: Path, measured: Path, tmp_path: Path) -> None:
    whole = load(measured)
    part = whole.rows.assign(pictures=whole.rows["pictures"].where(whole.rows["name"] != "wide", 6))
    with pytest.raises(ValueError, match=r"one-0 was measured on sunny to night, 16 test pictures of .*no other of these"):
        compare(Results(part, whole.pictures), ["one-0", "wide"])
    sections = compare(whole, ["wide", "one-0"], parts=True)
    assert any(name == "scene_error/car" for name in sections[0].metrics) and sections[0].reference == "wide"
    assert len(frame(sections)) and "* where" in markdown(sections)


def test_what_is_cut_otherwise_is_another_setting(place: Path, measured: Path, tmp_path: Path, call: Call) -> None:
    """Its baselines too: in one table neither replaces the other."""
    out, store = tmp_path / "results.parquet", Store.open(place / "store")
    run = preset(
        "munit:tiny", name="larger", data={"store": str(place / "store"), "domains": DOMAINS, "size": 32, "short_side": 40}
    )
    domains = domains_of(run, store)
    write(tmp_path / "larger", run, domains, build(run, domains).state_dict())
    save(out, load(measured))
    code, _, error = call("compare", place / "one-0", tmp_path / "larger", "--results", out)
    assert code == 2 and "16 test pictures of " in error and ", 32 px, and no other of these" in error
    rows = load(out).rows
    assert set(rows["cut"]) == {"32 px", "32 of 40 px"}
    inputs = rows[(rows["name"] == "the input itself") & (rows["metric"] == "scene_error")]
    assert len(inputs) == 2 and inputs["value"].nunique() == 2
    old = rows.drop(columns=["cut", "index"])  # from before rows knew
    old.to_parquet(tmp_path / "old.parquet")
    assert set(load(tmp_path / "old.parquet").rows["cut"]) == {""}


def test_runs_on_other_data_are_no_seeds_of_each_other(place: Path, tmp_path: Path) -> None:
    facts = []
    for name, seed, data in (("a", 0, "x"), ("b", 1, "x"), ("c", 1, "y")):
        run = overlay(open_bundle(place / "one-0").run, {"name": name, "seed": seed})
        domains = domains_of(run, Store.open(place / "store"))
        write(tmp_path / name, run, domains, build(run, domains).state_dict(), parents={"data": data})
        facts.append(config_of(open_bundle(tmp_path / name)))
    assert facts[0] == facts[1] != facts[2]


def test_a_bundle_of_the_same_name_that_nobody_chose_is_not_averaged_in(measured: Path) -> None:
    whole = load(measured)
    chosen = [str(whole.rows.loc[whole.rows["name"] == name, "bundle"].iloc[0]) for name in ("one-0", "wide")]
    others = [frame[frame["name"] == "one-0"].assign(bundle="f" * 64) for frame in (whole.rows, whole.pictures)]
    both = whole + Results(*(frame.assign(value=frame["value"] + 1) for frame in others))
    (alone,), (beside,) = compare(whole, chosen), compare(both, chosen)
    assert ("content_kept", "one-0") in beside.values and beside.values == alone.values
    assert beside.differences == alone.differences


def test_the_commands_say_what_they_did(place: Path, measured: Path, small: None, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "results.parquet"
    words = ["--suite", "moments", "--features", place / "features", "--out", out]
    save(out, load(measured))
    code, said, error = call("evaluate", place / "one-0", *words, "--again")
    assert code == 0, error
    assert "scores by protocol" in said and "measuring fid_16@features" in error
    assert said.replace("\n", "").endswith(f"rows in {out}") and Path(beside(out)).exists()
    code, _, error = call("evaluate", place / "one-0", *words, "--domain", "night")
    assert code == 2 and "leave --suite out" in error
    code, said, _ = call("features", "test", place / "features", "--store", place / "store")
    assert "passed" in said and "share ≥ 0.05" in said and code == int("FAILED" in said)
    code, said, _ = call("metrics")
    assert code == 0 and "scene_error ↓" in said and "costs" in said
    (tmp_path / "strange.parquet").write_bytes(b"nothing")
    code, _, error = call("compare", "a", "b", "--results", tmp_path / "strange.parquet")
    assert code == 2 and "is no table of results" in error


def test_every_metric_says_what_it_needs_and_costs() -> None:
    for metric in METRICS.values():
        assert metric.unit and metric.needs and metric.cost and metric.about and metric.arrow in "↑↓"
    assert find_metric("fid_16@features:0a1b2c3d/Male").name == "fid"


def test_a_run_can_be_steered_by_a_score(place: Path) -> None:
    """The same functions as in the table, on the validation pictures."""
    store, own = Store.open(place / "store"), OwnFeatures(place / "features", target="night")
    run = open_bundle(place / "one-0").run
    steered = overlay(run, {"evaluation.features": str(place / "features"), "evaluation.metric": "fid_quick@features"})
    judge = Validator(store, overlay(steered, {"evaluation.pictures": 12}))
    pipeline = Pipeline.open(place / "one-0")
    values = judge(pipeline)
    assert judge.mode == "min" and judge.metric == f"fid_12@{own.name}" and "penalty" in judge.about
    fakes = Stack(translate_all(pipeline, judge.cases) * 2 - 1)
    (expected,) = fid(Stack(judge.cases.targets), fakes, own, 12).judgement.values.values()
    assert values[judge.metric] == pytest.approx(expected) and f"kid_12@{own.name}" in values
    assert values["objective"] >= values[judge.metric]
    noted = Validator(store, overlay(steered, {"evaluation.metric": "auto"}))
    assert noted.metric == "scene_error" and any(name.startswith("fid_") for name in noted(pipeline))
    with pytest.raises(ValueError, match="needs evaluation.features: a bundle"):
        Validator(store, overlay(run, {"evaluation.metric": "fid_quick@features"}))
    with pytest.raises(ValueError, match="did you mean 'fid_quick@features'"):
        Validator(store, overlay(steered, {"evaluation.metric": "fid_quik@features"}))
    with pytest.raises(ValueError, match="cis_quick needs 20 inputs, and there are 12"):
        Validator(store, overlay(steered, {"evaluation.metric": "cis_quick@features", "evaluation.pictures": 12}))


@pytest.mark.slow
def test_translations_into_attributes_have_a_distance_for_each(small: None, tmp_path: Path) -> None:
    build_faces(tmp_path / "store", size=32, train=160, val=4, test=24)
    store = Store.open(tmp_path / "store")
    run = preset("gmm_unit:tiny", name="faces", data={"store": store.uri, "domains": ("faces",), "size": 32})
    run = overlay(run, {"model.width": 8, "model.critic_width": 8})
    write(tmp_path / "faces", run, domains_of(run, store), build(run, domains_of(run, store)).state_dict())
    engine = {"steps": 120, "batch_size": 16, "threads": 1, "device": "cpu"}
    data = {"store": store.uri, "domains": ("faces",), "size": 32}
    features = preset("features:tiny", data=data, model={"width": 8, "features": 16}, engine=engine)
    train_instrument(features, str(tmp_path / "features"), "features", lambda text: None)
    asked = Request(str(tmp_path / "faces"), store.uri, "moments", features=str(tmp_path / "features"))
    found, left_out = measure_suite(asked, out=tmp_path / "results.parquet")
    values = found.rows[found.rows["kind"] == "method"].set_index("metric")["value"]
    name = next(metric for metric in values.index if metric.startswith("fid_") and "/" not in metric)
    parts = values[[metric for metric in values.index if metric.startswith(f"{name}/")]]
    assert {part.rpartition("/")[2] for part in parts.index} == {"Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young"}
    assert values[name] == pytest.approx(parts.mean()) and not left_out
    cis = next(metric for metric in values.index if metric.startswith("cis_") and "/" not in metric)
    assert f"{cis}/Blond_Hair" in values.index and "counterpart_error" in values.index
    save(tmp_path / "twice.parquet", found)
    assert len(load(tmp_path / "twice.parquet").rows) == len(save(tmp_path / "twice.parquet", found).rows)


@pytest.mark.slow
def test_workers_on_ray_say_what_one_process_says(place: Path, small: None) -> None:
    """Two Ray workers, which know the suite by the environment's catalogue of nothing: it is the real `quick` one."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    wanted = request(place, suite="quick")
    alone, _ = measure_suite(wanted)
    together, _ = measure_suite(wanted, workers=2)
    one, other = (found.rows.set_index(["kind", "name", "metric"])["value"] for found in (alone, together))
    assert set(one.index) == set(other.index) and any(metric.startswith("kid") for _, _, metric in one.index)
    for key, value in one.items():
        assert other[key] == pytest.approx(value, rel=1e-6, abs=1e-6), key
