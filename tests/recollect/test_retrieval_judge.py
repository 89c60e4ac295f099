"""P@10 by hand, against every possible draw, and of retrievers that know everything or nothing."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recollect.config import Run, overlay, preset
from recollect.data.store import Store, write_store
from recollect.data.transforms import to_uint8, to_unit
from recollect.data.worlds import build_faces, build_streets, faces
from recollect.evaluation.attribute_cases import attributes_of, cut, own_pictures, random_targets, scenes_of
from recollect.evaluation.metrics import find_metric
from recollect.evaluation.retrieval import RetrievalJudge
from recollect.evaluation.retrieved import Retrieved, agreement, chance, lift, nearest
from recollect.evaluation.statistics import Measured, draw_pictures

NAN = torch.nan
cells = st.sampled_from([0.0, 1.0, NAN])


@st.composite
def galleries(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Attributes (G, A) of a gallery, what is wanted (Q, A) of each query, and the queries' places (Q,)."""
    count, attributes = draw(st.integers(4, 7)), draw(st.integers(1, 3))
    rows = st.lists(cells, min_size=attributes, max_size=attributes)
    gallery = draw(st.lists(rows, min_size=count, max_size=count))
    wanted = draw(st.lists(rows, min_size=1, max_size=4))
    own = draw(st.lists(st.integers(0, count - 1), min_size=len(wanted), max_size=len(wanted)))
    return torch.tensor(gallery), torch.tensor(wanted), torch.tensor(own)


@given(galleries())
@settings(max_examples=60, deadline=None)
def test_chance_is_the_mean_over_every_possible_draw(drawn: tuple[Tensor, Tensor, Tensor]) -> None:
    gallery, wanted, own = drawn
    expected = chance(wanted, gallery, own)
    for query in range(len(wanted)):
        others = [place for place in range(len(gallery)) if place != int(own[query])]
        shares = [agreement(wanted[query][None], gallery[list(some)][None])[0] for some in itertools.combinations(others, 3)]
        torch.testing.assert_close(torch.stack(shares).nanmean(0), expected[query], equal_nan=True)


@given(galleries())
@settings(max_examples=40, deadline=None)
def test_what_agrees_in_all_that_is_known_scores_one(drawn: tuple[Tensor, Tensor, Tensor]) -> None:
    _, wanted, _ = drawn
    shares = agreement(wanted, wanted[:, None].expand(-1, 10, -1))
    assert torch.equal(shares.isnan(), wanted.isnan()) and bool((shares[~shares.isnan()] == 1).all())
    assert bool((agreement(wanted, 1 - wanted[:, None].expand(-1, 10, -1)).nan_to_num() == 0).all())


@given(galleries(), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_gallery_changes_nothing(drawn: tuple[Tensor, Tensor, Tensor], seed: int) -> None:
    gallery, wanted, own = drawn
    generator = torch.Generator().manual_seed(seed)
    vectors, queries = torch.randn(len(gallery), 3, generator=generator), torch.randn(len(wanted), 3, generator=generator)
    order = torch.randperm(len(gallery), generator=generator)
    moved = order.argsort()[own]  # where the queries' own pictures are now
    before = agreement(wanted, gallery[nearest(queries, vectors, 3, own)])
    after = agreement(wanted, gallery[order][nearest(queries, vectors[order], 3, moved)])
    torch.testing.assert_close(after, before, equal_nan=True)
    torch.testing.assert_close(chance(wanted, gallery[order], moved), chance(wanted, gallery, own), equal_nan=True)


def test_the_nearest_are_those_of_plain_distances_even_far_from_the_origin() -> None:
    generator = torch.Generator().manual_seed(0)
    gallery = torch.randn(50, 7, generator=generator) + 300
    queries = torch.randn(20, 7, generator=generator) + 300
    own = torch.arange(20)
    distances = torch.cdist(queries.double(), gallery.double(), compute_mode="donot_use_mm_for_euclid_dist")
    distances[torch.arange(20), own] = torch.inf
    assert torch.equal(nearest(queries, gallery, 5, own), distances.argsort(1)[:, :5])
    with pytest.raises(ValueError, match="5 others"):
        nearest(queries, gallery[:5], 5, own.clamp(max=4))


def test_scores_by_hand() -> None:
    """Two queries, two neighbours each, the style attribute `a` and the content attributes `b` and `c`."""
    wanted = torch.tensor([[1.0, 0.0, NAN], [0.0, 1.0, 1.0]])
    found = torch.tensor([[[1.0, 1.0, 1.0], [1.0, 0.0, 1.0]], [[0.0, NAN, 1.0], [1.0, 1.0, 0.0]]])
    by_chance = torch.tensor([[0.5, 0.25, NAN], [0.5, 0.75, 0.5]])
    values = Retrieved(("a", "b", "c"), ("a",), agreement(wanted, found), by_chance).judgement().values
    expected = {"a": (0.75, 0.5), "b": (0.75, 0.5), "c": (0.5, 0.5), "attributes": (0.75, 0.5), "content": (0.625, 0.5)}
    for name, (precision, random) in {**expected, "average": (0.6875, 0.5)}.items():
        assert values[f"p_at_10/{name}"] == precision and values[f"chance/{name}"] == random
        assert values[f"lift/{name}"] == lift(precision, random) == (precision - random) / (1 - random)
    assert lift(1.0, 1.0) == 0.0
    assert all(find_metric(name).higher_is_better for name in values)


def test_a_score_is_the_mean_of_what_each_query_adds_and_its_interval_that_of_resampling() -> None:
    generator = torch.Generator().manual_seed(1)
    table = torch.randint(0, 11, (300, 6), generator=generator).double() / 10
    table[torch.rand(table.shape, generator=generator) < torch.tensor([0, 0, 0, 0, 0.3, 0.6])] = NAN
    retrieved = Retrieved(tuple("abcdef"), ("a", "b"), table, torch.full_like(table, 0.4))
    judgement = retrieved.judgement()
    times = draw_pictures(len(table), 2000)
    for name in ("p_at_10/average", "p_at_10/content", "lift/average", "p_at_10/f"):
        measured = judgement.measured(name)
        assert isinstance(measured, Measured)
        torch.testing.assert_close(measured.by_seed()[0], torch.tensor(judgement.values[name], dtype=torch.double))
    known = (~table.isnan()).double()
    means = (times @ table.nan_to_num()) / (times @ known)  # of every resample, as the score is defined
    direct = (means[:, :2].mean(1) + means[:, 2:].mean(1)) / 2
    measured = judgement.measured("p_at_10/average")
    assert measured is not None
    assert float(measured.scores(times)[:, 0].std()) == pytest.approx(float(direct.std()), rel=0.03)


@given(st.integers(2, 9), st.integers(0, 100), st.data())
@settings(max_examples=60, deadline=None)
def test_a_target_is_another_picture_of_which_all_is_known(count: int, seed: int, data: st.DataObject) -> None:
    attributes = torch.tensor(data.draw(st.lists(st.tuples(cells, cells), min_size=count, max_size=count)))
    fit = [not bool(row.isnan().any()) and float(row.sum()) <= 1 for row in attributes]
    queries = torch.arange(count)
    if sum(fit) < 2:
        with pytest.raises(ValueError, match="at least 2"):
            random_targets(attributes, queries, [(0, 1)], seed)
        return
    targets = random_targets(attributes, queries, [(0, 1)], seed)
    assert all(fit[target] and target != query for query, target in enumerate(targets.tolist()))


def test_every_other_picture_is_as_likely_a_target() -> None:
    attributes = torch.tensor([[0.0], [NAN], [1.0], [1.0], [0.0]])
    for query, others in ((2, (0, 3, 4)), (1, (0, 2, 3, 4)), (4, (0, 2, 3)), (0, (2, 3, 4))):
        targets = random_targets(attributes, torch.full((6000,), query))
        counts = Counter(targets.tolist())
        assert set(counts) == set(others)
        assert all(abs(counts[other] / 6000 - 1 / len(others)) < 0.03 for other in others)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    uri = tmp_path_factory.mktemp("faces") / "store"
    build_faces(uri, size=32, train=4, val=30, test=12)
    return Store.open(uri)


def run_of(store: Store, **sections: dict[str, object]) -> Run:
    settings = {"evaluation": {"pictures": 30}, **sections}
    return preset("gmm_unit:tiny", data={"store": store.uri, "domains": ("faces",), "size": 32}, **settings)


class Knowing(nn.Module):
    """Knows every picture by heart: which face it is, and its attributes, each as sure as its weight says."""

    def __init__(self, store: Store, run: Run, style: float, content: float, face: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        ids = [id for split in ("val", "test") for id in store.ids(split, "faces")]
        scenes = {scene: index for index, scene in enumerate(dict.fromkeys(store.column("scene", ids)))}
        table = attributes_of(store, ids, store.domains.attributes).nan_to_num(0.5)
        self.scales = torch.tensor([style if name in faces.STYLE else content for name in store.domains.attributes])
        who = nn.functional.one_hot(torch.tensor([scenes[scene] for scene in store.column("scene", ids)])).float() * face
        pictures = cut(store, ids, run)
        self.known = {picture.numpy().tobytes(): index for index, picture in enumerate(pictures)}
        self.table, self.who = table, who
        self.columns = [store.domains.attributes.index(name) for name in faces.STYLE]

    def style_attributes(self) -> tuple[str, ...]:
        return faces.STYLE

    def _rows(self, images: Tensor) -> list[int]:
        return [self.known[picture.numpy().tobytes()] for picture in to_uint8(images)]

    def embed(self, images: Tensor) -> Tensor:
        rows = self._rows(images)
        return torch.cat([self.table[rows] * self.scales, self.who[rows]], dim=1)

    def query(self, images: Tensor, attributes: Tensor) -> Tensor:
        rows = self._rows(images)
        wanted = self.table[rows]
        wanted[:, self.columns] = attributes
        return torch.cat([wanted * self.scales, self.who[rows]], dim=1)


class Blind(nn.Module):
    """Embeds pictures anywhere, by their bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def style_attributes(self) -> tuple[str, ...]:
        return faces.STYLE

    def embed(self, images: Tensor) -> Tensor:
        seeds = (to_uint8(images).flatten(1).long() * torch.arange(1, images[0].numel() + 1)).sum(1).tolist()
        return torch.stack([torch.randn(8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    def query(self, images: Tensor, attributes: Tensor) -> Tensor:
        return -self.embed(images)


def test_what_a_retriever_knows_is_what_it_is_good_at(store: Store) -> None:
    run = run_of(store)
    judge = RetrievalJudge(store, run)
    assert judge.mode == "max" and judge.metric == "lift/average" and len(judge.ids) == len(judge.queries) == 30
    assert judge.domains(run) == ("faces",)
    style, content, both = (
        judge(Knowing(store, run, *weights)) for weights in ((9.0, 0.01, 0.0), (0.01, 9.0, 0.0), (3.0, 1.0, 0.0))
    )
    blind = judge(Blind())
    assert style["lift/attributes"] > 0.5 > style["lift/content"] and content["lift/content"] > 0.1 > content["lift/attributes"]
    assert both["lift/average"] > blind["lift/average"] and abs(blind["lift/average"]) < 0.12
    assert style["objective"] == style["lift/average"]
    chances = {name: value for name, value in style.items() if name.startswith("chance/")}
    assert chances == {name: blind[name] for name in chances}  # a matter of the data alone
    assert all(find_metric(name) for name in style if name != "objective")


def test_the_counterpart_is_found_by_who_knows_the_face_and_what_was_asked(store: Store) -> None:
    run = run_of(store)
    judge = RetrievalJudge(store, run)
    seeing = judge.counterparts(Knowing(store, run, 1.0, 0.0, 9.0))
    assert seeing["counterpart_at_10"] == 1.0  # of the face's eleven others one is left out, and it is another one
    assert seeing["chance/counterpart_at_10"] == pytest.approx(10 / (30 * 12 - 1))
    judgement = judge.judgement(Blind())
    assert judgement.values["counterpart_at_10"] < 0.3
    measured = judgement.measured("counterpart_at_10")
    assert measured is not None and float(measured.by_seed()[0]) == pytest.approx(judgement.values["counterpart_at_10"])
    targets, own = judge.targets(Blind()), attributes_of(store, judge.ids, faces.STYLE)
    same = [bool((own[query] == own[target]).all()) for query, target in zip(judge.queries, targets.tolist(), strict=True)]
    assert measured.weights[:, 0].tolist() == [float(not equal) for equal in same]  # of those something is to change


def test_what_is_expected_is_chance(store: Store) -> None:
    judge = RetrievalJudge(store, run_of(store))
    expected = judge.expected(Blind()).judgement().values
    for name, value in expected.items():
        kind, _, part = name.partition("/")
        assert value == (0.0 if kind == "lift" else expected[f"chance/{part}"])


def test_grids_and_bounds(store: Store) -> None:
    run = run_of(store)
    judge = RetrievalJudge(store, run, queries=8, gallery=20)
    assert len(judge.ids) == 20 and len(judge.queries) == 8
    assert sum(map(len, judge.scenes.values())) <= 20
    grid = judge.grid(Blind(), rows=3)
    assert grid.dtype == torch.uint8 and grid.shape[0] == 3
    query = cut(store, [judge.ids[judge.queries[0]]], run)[0]
    scale = 128 // 32
    head = grid.shape[1] - (3 * (128 + 3) - 3)
    assert torch.equal(grid[:, head : head + 128 : scale, 0:128:scale], query)
    assert bool((grid[:, head : head + 128, 131:259] < 100).any())  # words
    with pytest.raises(ValueError, match="lift/average"):
        RetrievalJudge(store, overlay(run, {"evaluation.metric": "scene_error"}))
    with pytest.raises(ValueError, match="too few"):
        RetrievalJudge(store, run, gallery=10)
    assert RetrievalJudge(store, overlay(run, {"evaluation.metric": "p_at_10/content"})).metric == "p_at_10/content"


def test_the_gallery_has_each_face_once_as_it_comes(store: Store) -> None:
    own = own_pictures(store, "val", ("faces",))
    assert len(own) == 30 and len(set(store.column("scene", own))) == 30
    assert [scene[0] for scene in scenes_of(store, own, ("faces",))] == list(own)
    with pytest.raises(ValueError, match="split"):
        own_pictures(store, "valid", ("faces",))
    assert bool((to_unit(cut(store, own[:2], run_of(store))) <= 1).all())


def test_an_attribute_that_the_data_lacks(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Blind, "style_attributes", lambda self: ("Black_Hare",))
    with pytest.raises(ValueError, match="Black_Hair"):
        RetrievalJudge(store, run_of(store))(Blind())


class OfDomains(Blind):
    """Asks for domains, and knows them (`sure`) or is blind."""

    def __init__(self, store: Store, run: Run, sure: float) -> None:
        super().__init__()
        ids = [id for domain in run.data.domains for id in store.ids("val", domain)]
        self.names, self.sure = run.data.domains, sure
        of = dict(zip(ids, store.column("domain", ids), strict=True))
        self.known = {cut(store, [id], run)[0].numpy().tobytes(): self.names.index(of[id]) for id in ids}

    def style_attributes(self) -> tuple[str, ...]:
        return self.names

    def exclusive_attributes(self) -> tuple[tuple[str, ...], ...]:
        return (self.names,)

    def embed(self, images: Tensor) -> Tensor:
        own = [self.known[picture.numpy().tobytes()] for picture in to_uint8(images)]
        return torch.cat([self.sure * nn.functional.one_hot(torch.tensor(own), len(self.names)), super().embed(images)], dim=1)

    def query(self, images: Tensor, attributes: Tensor) -> Tensor:
        return torch.cat([self.sure * attributes, -super().embed(images)], dim=1)


def test_a_retriever_over_domains_is_judged_by_the_domains_that_it_finds(tmp_path: Path) -> None:
    build_streets(tmp_path / "store", size=32, train=4, val=12, test=1, references=2)
    streets = Store.open(tmp_path / "store")
    run = overlay(run_of(streets), {"data.domains": ("sunny", "night")})
    judge = RetrievalJudge(streets, run)
    sure, blind = (judge.judgement(OfDomains(streets, run, weight)).values for weight in (50.0, 0.0))
    assert len(judge.ids) == 24 and streets.domains.attributes == ()
    for name in ("sunny", "night", "attributes", "average"):
        assert sure[f"p_at_10/{name}"] == 1.0 and sure[f"chance/{name}"] == blind[f"chance/{name}"] < 0.6
        assert abs(blind[f"lift/{name}"]) < 0.3
    assert "p_at_10/content" not in sure and sure["counterpart_at_10"] >= blind["counterpart_at_10"]
    assert judge.grid(OfDomains(streets, run, 50.0), rows=2).shape[0] == 3
    with pytest.raises(ValueError, match="night"):
        judge.judgement(OfDomains(streets, overlay(run, {"data.domains": ("night", "nigt")}), 1.0))


def test_a_counterpart_is_any_of_the_pictures_that_have_what_was_asked(tmp_path: Path) -> None:
    """Each place is there three times in either domain; ten are drawn of the 71 others, and any of the three is an answer."""
    build_streets(tmp_path / "store", size=32, train=4, val=12, test=1, references=3)
    streets = Store.open(tmp_path / "store")
    run = overlay(run_of(streets), {"data.domains": ("sunny", "night")})
    judge = RetrievalJudge(streets, run)
    model = OfDomains(streets, run, 0.0)
    pairs = judge._counterparts(model)
    assert pairs and {len(others) for _, others in pairs.values()} == {3}
    for own, others in pairs.values():
        (domain,) = set(streets.column("domain", others))
        assert domain != streets.column("domain", [own])[0]
    expected = 1 - np.prod([(71 - 3 - i) / (71 - i) for i in range(10)])
    assert judge.counterparts(model)["chance/counterpart_at_10"] == pytest.approx(expected)


def test_nobody_is_asked_for_two_of_a_group(tmp_path: Path) -> None:
    """Pictures with two hair colours can be found, and are queries; what they have is asked of nobody."""
    records = list(faces.records(16, train=31, val=0, test=0, seed=2))
    for number, record in enumerate(records):
        assert record.attributes is not None
        if number % 3:
            record.attributes.update(Black_Hair=1, Blond_Hair=1)
    made = [replace(record, split="val", scene=None, mode=None, regions=None) for record in records[:30]]
    made.append(replace(records[30], scene=None, mode=None, regions=None))
    write_store(tmp_path / "store", made, domains=faces.DOMAINS, attributes=faces.ATTRIBUTES)
    store = Store.open(tmp_path / "store")
    judge = RetrievalJudge(store, overlay(run_of(store), {"data.size": 16}))

    class Grouped(Blind):
        def exclusive_attributes(self) -> tuple[tuple[str, ...], ...]:
            return (faces.HAIRS,)

    asked = judge.asked(Grouped())
    assert len(asked.targets) == 30 and bool((asked.wanted[:, asked.style][:, :3].sum(1) == 1).all())
