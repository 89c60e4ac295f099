"""RG-UNIT keeps the promises of a Trainable; its three stages chain through bundles and an index; eq. 9 is what fuses."""

from __future__ import annotations

import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from recollect.batch import Guide
from recollect.bundle import open_bundle
from recollect.config import Run, overlay, preset
from recollect.data.join import join_stores
from recollect.data.loader import Feed
from recollect.data.schema import Record
from recollect.data.store import Store, write_store
from recollect.pipeline import Pipeline
from recollect.retrieval.directory import change_index
from recollect.retrieval.embed import build_index
from recollect.retrieval.guided import open_pipeline
from recollect.search.space import searchable
from recollect.testing import TrainableContract, noise_batches, noise_search
from recollect.trainable import Embedder, Guided, Queries
from recollect.training.session import suit, train
from recollect.training.trainer import Trainer, build
from tests.trainables.test_retriever import DOMAINS, SMALL, STAGE1
from trainables.gmm_unit import CELEBA, GMMUNIT
from trainables.rg_unit import RGUNIT

OWN = {**STAGE1, "embedding": SMALL["embedding"], "neighbours": 2}
TRAIN, VAL = 12, 12


def small(**model: object) -> Run:
    return preset("rg_unit:tiny", data={"domains": DOMAINS.names, "size": 32}, model={**OWN, **model})


class TestContract(TrainableContract):
    run = small(fusion="paper")
    domains = DOMAINS
    guides = ("attributes", "noise", "exemplar", "neighbours")

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _with_weights_of_vgg16(cls, vgg16_file: dict[str, str]) -> None:
        cls.run = small(fusion="paper", vgg16=vgg16_file)


class TestRandomControl(TrainableContract):
    variant = True
    run = small(guidance="random")
    domains = DOMAINS
    guides = ("attributes", "noise", "exemplar", "neighbours")

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _with_weights_of_vgg16(cls, vgg16_file: dict[str, str]) -> None:
        cls.run = small(guidance="random", vgg16=vgg16_file)


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    stream = BytesIO()
    Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("store") / "faces")
    records = []
    for number in range(TRAIN + VAL):
        hair, male, young = number % 3, number // 3 % 2, number // 2 % 2
        flags = dict(zip(DOMAINS.attributes, (hair == 0, hair == 1, hair == 2, male, young, number % 2), strict=True))
        attributes = {name: int(flag) for name, flag in flags.items()}
        split = "train" if number < TRAIN else "val"
        records.append(Record(f"p{number:02}", picture(number), "faces", 32, 32, split, attributes=attributes))
    write_store(uri, records, domains=DOMAINS.names, attributes=DOMAINS.attributes)
    return uri


@pytest.fixture(scope="module")
def stages(store: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The three stages, a few steps each, as a user chains them."""
    root = tmp_path_factory.mktemp("stages")
    common = {"data": {"store": store, "size": 32}, "engine": {"steps": 2, "batch_size": 2, "threads": 1}}
    kept = Store.open(store)

    def trained(name: str, run: Run) -> Path:
        return train(suit(run, kept, lambda text: None), root / name)

    gmm = trained("gmm", preset("gmm_unit:tiny", **common, model=STAGE1))
    retriever = trained("retriever", preset("retriever:tiny", **common, model={**SMALL, "parent": {"bundle": str(gmm)}}))
    build_index(retriever, store, root / "index")
    run = preset("rg_unit:tiny", **common, model={"parent": {"bundle": str(retriever)}, "neighbours": 2})
    guided = trained("rg", overlay(run, {"data.index": str(root / "index")}))
    return {"gmm": gmm, "retriever": retriever, "index": root / "index", "rg": guided}


def test_three_stages_chain_and_each_names_its_parents(stages: dict[str, Path], store: str) -> None:
    gmm, retriever, guided = (open_bundle(stages[name]) for name in ("gmm", "retriever", "rg"))
    data = Store.open(store).digest
    assert retriever.manifest["parents"] == {"data": data, "translator": gmm.digest}
    assert guided.manifest["parents"].keys() == {"data", "retriever", "index"}
    assert guided.manifest["parents"]["retriever"] == retriever.digest
    model, parent = guided.build(), retriever.build()
    assert isinstance(model, RGUNIT) and isinstance(model, Guided) and isinstance(parent, Embedder)
    assert model.embedding_digest() == parent.embedding_digest()  # so one index serves both
    assert model.config.width == 8 and model.config.dims == 2  # from stage 1, through stage 2


def test_stage_3_starts_at_what_stage_1_ended_with(stages: dict[str, Path], store: str) -> None:
    parent = {"bundle": str(stages["retriever"])}
    run = preset("rg_unit:tiny", data={"domains": DOMAINS.names, "size": 32}, model={"parent": parent})
    run = run.model_copy(update={"model": run.model.with_parents()})
    trainer = Trainer(run, DOMAINS, device="cpu", search=noise_search)
    trainer.begin()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    wanted = torch.tensor([[0.0, 1, 0, 1, 1], [1, 0, 0, 0, 0]])
    guide = Guide(attributes=wanted)
    ours = Pipeline(trainer.model, search=noise_search)(images, "faces", guide=guide).images  # type: ignore[arg-type]
    theirs = Pipeline.open(stages["gmm"])(images, "faces", guide=guide).images
    torch.testing.assert_close(ours, theirs)


def test_eq_9(stages: dict[str, Path]) -> None:
    """In the paper's form, against a statement of it."""
    model = build(small(fusion="paper", neighbours=3), DOMAINS).eval()
    assert isinstance(model, RGUNIT) and model.fusion is not None
    x, neighbours = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 3, 32, 32)
    found = model.fused(model.content(x), model.guidance(neighbours))
    for i in range(2):
        maps = [model.content_encoder(neighbours[i, n : n + 1]) for n in range(3)]
        inner = torch.nn.functional.conv2d(torch.cat(maps, 1), *model.fusion.inner[0].parameters(), padding=1).relu()
        joined = torch.cat([model.content_encoder(x[i : i + 1]), inner], 1)
        expected = torch.nn.functional.conv2d(joined, *model.fusion.outer[0].parameters(), padding=1).relu()
        torch.testing.assert_close(found[i : i + 1], expected, rtol=1e-4, atol=1e-5)


def test_both_fusing_convolutions_get_a_gradient_from_the_second_step_on(stages: dict[str, Path]) -> None:
    """The outer one starts at zero in the residual form, so the inner one's first gradient is zero; then it learns."""
    for fusion, steps in (("paper", 1), ("residual", 2)):
        run = small(fusion=fusion)
        trainer = Trainer(run, DOMAINS, device="cpu", search=noise_search)
        before = {name: p.clone() for name, p in trainer.model.named_parameters() if name.startswith("fusion")}
        for step in range(steps):
            trainer.update(noise_batches(run, DOMAINS, trainer.model.stride, range(2), step))
        for name, old in before.items():
            assert not torch.equal(old, trainer.model.get_parameter(name)), f"{fusion}: {name} did not learn"


class Seen:
    """A search that remembers what it was asked."""

    def __init__(self) -> None:
        self.queries: list[Queries] = []

    def __call__(self, queries: Queries) -> torch.Tensor:
        self.queries.append(queries)
        return noise_search(queries)


def test_a_training_picture_never_finds_itself(stages: dict[str, Path], store: str) -> None:
    pipeline = open_pipeline(stages["rg"])
    model, library = pipeline.model, pipeline.search
    assert isinstance(model, RGUNIT) and library is not None
    images = library.pictures(["p00", "p01"])  # type: ignore[attr-defined]
    own = model.embed(images)
    alone = library.find(Queries(2, ("", ""), own))  # type: ignore[attr-defined]
    assert [row[0] for row in alone.ids] == ["p00", "p01"]  # it would be its own nearest
    excluded = library.find(Queries(2, ("p00", "p01"), own))  # type: ignore[attr-defined]
    assert "p00" not in excluded.ids[0] and "p01" not in excluded.ids[1]
    seen = Seen()
    trainer = Trainer(open_bundle(stages["rg"]).run, DOMAINS, device="cpu", search=seen)
    feed = Feed(Store.open(store), trainer.run.data, 2, trainer.model.stride, 0)
    for step, batches in feed.stream(0, 3):
        trainer.update(batches)
        assert seen.queries[-1].exclude == tuple(id for batch in batches for id in batch.ids), step


def test_the_controls_ask_for_nothing_and_for_random_pictures(stages: dict[str, Path]) -> None:
    images = torch.rand(3, 3, 32, 32)
    none = build(small(guidance="none"), DOMAINS)
    assert isinstance(none, RGUNIT) and none.look_up(images, 0, 0, Guide()) is None
    assert {net for phase in none.phases() for part in phase.parts for net in part.nets} == {"decoder", "critic"}
    random = build(small(guidance="random"), DOMAINS)
    assert isinstance(random, RGUNIT)
    first, again = random.look_up(images, 0, 0, Guide()), random.look_up(images.flip(0), 0, 0, Guide())
    assert first is not None and again is not None and first.seeds is not None and again.seeds is not None
    assert first.vectors is None and len(set(first.seeds)) == 3 and first.seeds == again.seeds[::-1]


def test_neighbours_change_the_translation_and_must_be_as_many_as_it_knows(stages: dict[str, Path]) -> None:
    model = build(small(fusion="paper"), DOMAINS).eval()
    assert isinstance(model, RGUNIT)
    images = torch.rand(1, 3, 32, 32)
    one, other = (model.translate(images, 0, 0, Guide(neighbours=torch.rand(1, 2, 3, 32, 32))).images for _ in range(2))
    assert not torch.allclose(one, other, atol=1e-4)
    with pytest.raises(ValueError, match="draws with 2 neighbours, and there are 3"):
        model.translate(images, 0, 0, Guide(neighbours=torch.rand(1, 3, 3, 32, 32)))
    with pytest.raises(ValueError, match="draws with 2 neighbours, and there are none"):
        model.translate(images, 0, 0)


def test_bad_parents_and_indices_are_named(stages: dict[str, Path], store: str, tmp_path: Path) -> None:
    common: dict[str, Any] = {"data": {"store": store, "size": 32}, "engine": {"steps": 1, "batch_size": 2}}
    kept = Store.open(store)

    def start(index: str, parent: Path, **model: object) -> None:
        run = preset("rg_unit:tiny", **common, model={"parent": {"bundle": str(parent)}, **model})
        train(suit(overlay(run, {"data.index": index}), kept, lambda text: None), tmp_path / "run", resume=True)

    with pytest.raises(ValueError, match="starts from a trained retriever, and .* holds 'gmm_unit'"):
        start(str(stages["index"]), stages["gmm"])
    with pytest.raises(ValueError, match="data.index is empty"):
        start("", stages["retriever"])
    with pytest.raises(ValueError, match=f"has {TRAIN} pictures, and {TRAIN} beside the excluded"):
        start(str(stages["index"]), stages["retriever"], neighbours=TRAIN)
    other = preset("retriever:tiny", **common, model={**SMALL, "parent": {"bundle": str(stages["gmm"])}})
    another = train(suit(overlay(other, {"seed": 5}), kept, lambda text: None), tmp_path / "other")
    with pytest.raises(ValueError, match="the index at .* belongs to another embedder"):
        start(str(stages["index"]), another)
    with pytest.raises(ValueError, match="model.sigma comes from .*retriever.*, where it is 0.5; leave it out"):
        start(str(stages["index"]), stages["retriever"], sigma=0.9)


def test_what_the_parents_determine_is_not_searched() -> None:
    known = searchable(small())
    assert "model.neighbours" in known and "weights.cyc_rec" in known
    assert not {"model.sigma", "model.width", "model.embedding.dim", "weights.kl"} & set(known)


def test_a_run_that_goes_on_with_another_index_is_refused(stages: dict[str, Path], store: str, tmp_path: Path) -> None:
    run = suit(overlay(open_bundle(stages["rg"]).run, {"engine.steps": 3}), Store.open(store), lambda text: None)
    index = tmp_path / "index"
    shutil.copytree(stages["index"], index)
    run = overlay(run, {"data.index": str(index)})

    def stop(metrics: dict[str, float], checkpoint: Path | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(overlay(run, {"engine.checkpoint_every": 2}), tmp_path / "run", report=stop)
    change_index(index, lambda found, manifest: (found.remove(["p03"]), manifest.origin)[1])
    with pytest.raises(ValueError, match="was trained with another index"):
        train(run, tmp_path / "run", resume=True)


def test_a_stage_that_was_killed_goes_on_bit_equal(stages: dict[str, Path], store: str, tmp_path: Path) -> None:
    kept = Store.open(store)
    run = open_bundle(stages["rg"]).run
    run = suit(overlay(run, {"engine.steps": 4, "engine.checkpoint_every": 2, "data.store": store}), kept, lambda text: None)
    whole = open_bundle(train(run, tmp_path / "whole"))

    class Killed(Exception):
        pass

    def stop(metrics: dict[str, float], checkpoint: Path | None) -> None:
        raise Killed

    with pytest.raises(Killed):
        train(run, tmp_path / "stopped", report=stop)
    resumed = open_bundle(train(run, tmp_path / "stopped", resume=True))
    for which in ("model", "ema"):
        for name, tensor in whole.state(which).items():
            assert torch.equal(tensor, resumed.state(which)[name]), name


def test_the_index_may_be_larger_than_the_labelled_set(stages: dict[str, Path], store: str, tmp_path: Path) -> None:
    """Scarce labels: training sees a part, neighbours come from all."""
    common = {"data": {"store": store, "size": 32, "limit": 4}, "engine": {"steps": 1, "batch_size": 2}}
    run = preset("rg_unit:tiny", **common, model={"parent": {"bundle": str(stages["retriever"])}, "neighbours": 6})
    run = suit(overlay(run, {"data.index": str(stages["index"])}), Store.open(store), lambda text: None)
    trained = open_bundle(train(run, tmp_path / "run"))
    assert isinstance(trained.build(), GMMUNIT)


def test_an_index_that_knows_the_training_pictures_by_other_names_is_said(
    stages: dict[str, Path], store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Joined stores that share ids give them prefixes; by those names nothing is kept from finding itself."""
    shutil.copytree(store, tmp_path / "same")
    join_stores([store, tmp_path / "same"], tmp_path / "twice")
    renamed = Store.open(tmp_path / "twice")
    common = {"data": {"store": renamed.uri, "size": 32}, "engine": {"steps": 1, "batch_size": 2}}
    run = preset("rg_unit:tiny", **common, model={"parent": {"bundle": str(stages["retriever"])}, "neighbours": 2})
    run = suit(overlay(run, {"data.index": str(stages["index"]), "data.library": store}), renamed, lambda text: None)
    train(run, tmp_path / "run")
    assert f"knows none of the {2 * TRAIN} training pictures by id" in caplog.text
    caplog.clear()
    train(suit(overlay(run, {"data.store": store, "data.library": ""}), Store.open(store), lambda text: None), tmp_path / "own")
    assert "by id" not in caplog.text


def test_sizes_of_the_papers_preset() -> None:
    run = preset("rg_unit:paper", data={"domains": DOMAINS.names}, model={"attributes": CELEBA})
    with torch.device("meta"):
        model = build(run, DOMAINS)
    assert isinstance(model, RGUNIT) and model.fusion is not None
    count = lambda net: sum(p.numel() for p in net.parameters())  # noqa: E731
    assert (count(model.fusion.inner), count(model.fusion.outer)) == (1_769_728, 1_179_904)  # measured on the released code
