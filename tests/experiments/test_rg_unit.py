"""What RG-UNIT's tables are judged by: end to end on a few faces, with stages that train in moments."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from experiments import rg_unit, rg_unit_celeba, rg_unit_neighbours, rg_unit_scarce
from experiments.rg_unit import StagesSuite
from experiments.tables import Arm, OnRay, Table, run_table
from experiments.tables.command import parser
from experiments.tables.jobs import Outcome, plan, read
from experiments.tables.stages import prepared, write_job
from recollect.bundle import open_bundle
from recollect.config import Run, overlay, preset
from recollect.data.store import Store, write_store
from recollect.data.worlds import build_faces, faces
from recollect.evaluation.attribute_cases import cut
from recollect.evaluation.classification import JudgeByClassifier
from recollect.retrieval import embed
from recollect.training import session
from recollect.training.checkpoint import is_checkpoint
from tests.experiments import chain

HERE = "tests.experiments.test_rg_unit"
TABLE = Table("stages", "Stages", "About.", StagesSuite(), "rg")
STEPS = 6  # of the classifier


def small_classifier(name: str, /, **sections: Any) -> Run:
    """The presets, of a classifier smaller than the smallest."""
    if not name.startswith("classifier"):
        return preset(name, **sections)
    model, engine = {"width": 8, "features": 8}, {"steps": STEPS, "batch_size": 4, "evaluate_every": 2, "threads": 1}
    data = {"size": 32, **sections.pop("data")}
    return preset("classifier:tiny", data=data, model=model, engine=engine, evaluation={"pictures": 8}, **sections)


@pytest.fixture(autouse=True, scope="module")
def _small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rg_unit, "preset", small_classifier)
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = tmp_path_factory.mktemp("store") / "faces"
    build_faces(uri, size=32, train=24, val=12, test=12)
    return str(uri)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="module")
def judges() -> list[JudgeByClassifier]:
    """Those that were made for the table."""
    return []


@pytest.fixture(scope="module")
def told() -> list[str]:
    """What was said while the table was made."""
    return []


@pytest.fixture(scope="module")
def outcomes(store: str, storage: Path, judges: list[JudgeByClassifier], told: list[str]) -> list[Outcome]:
    begin = JudgeByClassifier.__init__

    def noted(self: JudgeByClassifier, *arguments: Any, **options: Any) -> None:
        judges.append(self)
        begin(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JudgeByClassifier, "__init__", noted)
        return run_table(TABLE, chain.arms(store), (0,), str(storage), say=told.append)


def classifier_of(storage: Path) -> str:
    (kept,) = (storage / "stages" / "judging").iterdir()
    return open_bundle(kept).digest


def test_rows_and_page_name_the_classifier(
    outcomes: list[Outcome], judges: list[JudgeByClassifier], store: str, storage: Path
) -> None:
    assert not any(outcome.error for outcome in outcomes) and len(judges) == 1  # the real pictures are classified once
    (kept,) = (storage / "stages" / "judging").iterdir()
    assert kept.name == f"classifier-tiny-{Store.open(store).digest[:12]}"
    rows = pd.read_parquet(storage / "stages.parquet")
    by = {setting: set(own["instrument"]) for setting, own in rows.groupby("setting")}
    assert by == {"translation": {f"classifier {classifier_of(storage)}"}, "retrieval": {""}}
    of_translation = rows[rows["setting"] == "translation"].groupby("metric")["arm"].unique()
    assert set(of_translation["fid@classifier"]) == {"gmm", "rg", "the input itself"}
    page = (storage / "stages.md").read_text()
    assert f"- judged by classifier {classifier_of(storage)}\n" in page and "Judged when" not in page


def test_the_grid_shows_what_guided_the_reference(outcomes: list[Outcome], told: list[str], store: str, storage: Path) -> None:
    assert not [text for text in told if text.startswith("no pictures")]
    with Image.open(storage / "stages-translation.png") as grid:
        pixels = torch.from_numpy(np.array(grid))
    columns = ["input", "wanted", "rg", "gmm", "true", "neighbour 1", "neighbour 2"]  # two neighbours guide it
    side, gap = 128, 3
    assert pixels.shape[1] == len(columns) * (side + gap) - gap
    rows = 6
    top = pixels.shape[0] - (rows * (side + gap) - gap)
    opened = Store.open(store)
    run = outcomes[0].job.run
    training = {picture.numpy().tobytes() for picture in cut(opened, opened.ids("train", "faces"), run)}
    found = []
    for row in range(rows):
        for column in (5, 6):
            y, x = top + row * (side + gap), column * (side + gap)
            found.append(pixels[y : y + side : 4, x : x + side : 4].permute(2, 0, 1).to(torch.uint8).contiguous())
    assert all(picture.numpy().tobytes() in training for picture in found)
    assert len({picture.numpy().tobytes() for picture in found}) > 2


@pytest.mark.slow
def test_what_another_classifier_judged_is_judged_again(
    outcomes: list[Outcome], store: str, storage: Path, tmp_path: Path
) -> None:
    place = shutil.copytree(storage, tmp_path / "copy")
    before = classifier_of(place)
    told: list[str] = []
    run_table(TABLE, chain.arms(store), (0,), str(place), say=told.append)
    assert not any(text.startswith("judging") for text in told)
    shutil.rmtree(place / "stages" / "judging")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rg_unit, "preset", lambda name, **own: overlay(small_classifier(name, **own), {"seed": 7}))
        rest = [arm for arm in chain.arms(store) if arm.name != "rg"]
        run_table(replace(TABLE, reference="gmm"), rest, (0,), str(place), say=told.append)
    after = classifier_of(place)
    assert after != before
    assert [text for text in told if text.startswith("judging")] == [
        "judging baselines, Translation: each attribute changed",
        "judging gmm (faces) seed 0, Translation: each attribute changed",
    ]  # and not the retriever, which no classifier judges
    run_table(TABLE, chain.arms(store), (0,), str(place), report_only=True, say=told.append)
    page = (place / "stages.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("- judged by")]
    assert sorted(lines) == sorted([f"- judged by classifier {after}: the input itself, real pictures, gmm",
                                    f"- judged by classifier {before}: rg"])  # fmt: skip
    told.clear()
    run_table(TABLE, chain.arms(store), (0,), str(place), say=told.append)
    assert [text for text in told if text.startswith("judging")] == [
        "judging rg (faces) seed 0, Translation: each attribute changed"
    ]


def test_every_store_has_a_classifier_of_its_own_and_a_killed_training_goes_on(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Ends a process."""

    begun: list[tuple[Path, bool]] = []
    train = session.train

    def noted(run: Run, directory: Path, **options: Any) -> Path:
        begun.append((directory, is_checkpoint(directory / "last")))
        return train(run, directory, **options)

    def killed(run: Run, directory: Path, **options: Any) -> Path:
        def report(metrics: dict[str, float], checkpoint: Path | None) -> None:
            raise Killed

        return noted(run, directory, report=report, **options)

    run = overlay(chain.arms(store)[0].run, {"data.store": store})
    told: list[str] = []
    monkeypatch.setattr(session, "train", killed)
    with pytest.raises(Killed):
        StagesSuite().equipped(str(tmp_path), run, told.append)
    monkeypatch.setattr(session, "train", noted)
    suite = StagesSuite().equipped(str(tmp_path), run, told.append)
    assert [there for _, there in begun] == [False, True] and begun[0][0] == begun[1][0] == Path(f"{suite.classifier}-training")
    assert "6 steps" in told[0] and "goes on" in told[0] and not begun[0][0].exists()
    whole = StagesSuite().equipped(str(tmp_path / "whole"), run, told.append)
    one, other = (open_bundle(own.classifier).state() for own in (suite, whole))
    assert all(torch.equal(one[name], other[name]) for name in one)
    remote = StagesSuite().equipped(f"file://{tmp_path}/remote", run, told.append)
    assert remote.digest and told[-1].endswith("if this is killed they begin anew")
    build_faces(tmp_path / "other", size=32, train=8, val=4, test=4, seed=1)
    elsewhere = overlay(run, {"data.store": str(tmp_path / "other")})
    assert StagesSuite().equipped(str(tmp_path), elsewhere, told.append).classifier != suite.classifier
    assert suite.version == StagesSuite.version and StagesSuite().instrument("translation") is None


def from_all(run: Run, bundles: Mapping[str, str], place: str, on: OnRay | None) -> Run:
    """A mistake: the index has the test pictures too."""
    (bundle,) = bundles.values()
    embed.build_index(bundle, run.data.store, f"{place}/index-of-all", splits=("train", "test"), backend="exact")
    return overlay(run, {"model.parent.bundle": bundle, "data.index": f"{place}/index-of-all"})


def test_neighbours_of_the_test_split_are_not_judged(outcomes: list[Outcome], store: str, storage: Path, tmp_path: Path) -> None:
    place = shutil.copytree(storage, tmp_path / "copy")
    arms = [replace(arm, prepare=f"{HERE}:from_all") if arm.name == "rg" else arm for arm in chain.arms(store)]
    done = {outcome.job.arm: outcome for outcome in run_table(TABLE, arms, (0,), str(place), say=lambda text: None)}
    assert "index-of-all holds the test split" in done["rg"].error and not done["gmm"].error
    assert "index-of-all holds the test split" in (place / "stages.md").read_text()


def test_on_ray_its_workers_embed_the_pictures(
    outcomes: list[Outcome], store: str, storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(embed, "build_index", lambda bundle, store, out, **options: told.append(options))
    by = {job.arm: job for job in plan(rg_arms(store), (0,), str(storage / "stages"))}
    write_job(by["rg"])
    stage = rg_unit_stage(by["rg"].place)
    for on, expected in ((None, {}), (OnRay("ray://one", 3, 1.0), {"workers": 3, "address": "ray://one"})):
        run, _ = prepared(by["rg"].run, stage, on)
        assert run.data.index.endswith("/index") and told.pop() == {"domains": ("faces",), **expected}


def rg_arms(store: str) -> list[Arm]:
    """The chain, with the function that RG-UNIT's tables have."""
    own = "experiments.rg_unit:from_retriever"
    return [replace(arm, prepare=own) if arm.name == "rg" else arm for arm in chain.arms(store)]


def rg_unit_stage(place: str) -> dict[str, Any]:
    stage = read(place, "stage.json")
    assert stage is not None
    return {**stage, "between": f"{stage['between']}-of-nobody"}


def test_tables_that_share_runs_share_their_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECOLLECT_STORAGE", raising=False)
    modules = (rg_unit_celeba, rg_unit_neighbours, rg_unit_scarce)
    assert {parser(module.TABLE, "a.table").parse_args([]).storage for module in modules} == {"runs/rg-unit"}
    assert parser(chain.TABLE, "a.table").parse_args([]).storage == "runs/chain"


def test_shares_of_the_labels_are_of_the_domain_that_is_trained_on(tmp_path: Path) -> None:
    records = list(faces.records(16, train=40, val=0, test=0))
    records = [replace(record, domain="faces" if number < 12 else "masks") for number, record in enumerate(records)]
    write_store(tmp_path / "two", records, domains=("faces", "masks"), attributes=faces.ATTRIBUTES, regions=faces.REGIONS)
    made = rg_unit_scarce.arms(str(tmp_path / "two"), small=True)
    limits = {arm.name: arm.run.data.limit for arm in made}
    assert limits["GMM-UNIT 25 %"] == 3 and limits["RG-UNIT 50 %"] == 6 and limits["RG-UNIT"] is None
