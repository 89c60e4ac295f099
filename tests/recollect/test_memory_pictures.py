"""Pictures of a memory: colours, patches, styles, samples and numbers against plain loops, and what a page shows of them."""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from torch import Tensor

from recollect.batch import Domains, Guide, Translation
from recollect.config import ModelConfig, Run, overlay, preset
from recollect.data.store import Store
from recollect.data.transforms import to_uint8, to_unit
from recollect.evaluation.grids import GAP, TEXT, item_colours, picture_grid
from recollect.evaluation.memory.cells import Cells, cells_of, labels_of, nearest_cells
from recollect.evaluation.memory.items import ClassUse, class_use, memory_of, percent, usage_chart, usage_markdown
from recollect.evaluation.memory.pictures import LINE, PATCH, item_thumbnails, memory_map, patch_window, random_styles
from recollect.evaluation.memory.report import memory_panels
from recollect.evaluation.memory.space import domains_drawing, embed, even_sample, items_drawing, neighbours_alike, separation
from recollect.evaluation.report.html import Section, write_page
from recollect.evaluation.report.memory import panel
from recollect.evaluation.validate import Cases, gather
from recollect.pipeline import Pipeline
from recollect.trainable import Translator
from recollect.training.card import card_of
from trainables.mguit import MGUIT
from trainables.parts.memory import ClassAwareMemory

DOMAINS = ("sunny", "night")


def run_of(store: Store, **memory: object) -> Run:
    run = preset("mguit:tiny", data={"store": store.uri, "domains": DOMAINS, "size": 32}, model={"memory": {"value_dim": 16}})
    return overlay(run, {f"model.memory.{name}": value for name, value in memory.items()})


def pipeline_of(run: Run, store: Store) -> Pipeline:
    """An untrained MGUIT whose keys are contents of pictures, so that items differ, with some of them dead."""
    torch.manual_seed(0)
    assert isinstance(run.model, MGUIT.Config)
    model = MGUIT(run.model, store.domains.only(DOMAINS)).eval()
    images = gather(store, DOMAINS, "val", 32, 2).images
    with torch.no_grad():
        content = model.content_encoder(to_unit(images), 0).movedim(1, -1).flatten(0, 2)
        model.memory.keys.copy_(content[torch.randperm(len(content))[: len(model.memory.keys)]])
        model.memory.usage.copy_(torch.arange(len(model.memory.keys)).float() / 10)
    return Pipeline(model, "untrained")


@pytest.fixture(scope="module")
def pipeline(store: Store) -> Pipeline:
    return pipeline_of(run_of(store), store)


@pytest.fixture(scope="module")
def parts(store: Store) -> tuple[Cases, Cases]:
    return gather(store, DOMAINS, "val", 32), gather(store, DOMAINS[::-1], "val", 32)


@pytest.fixture(scope="module")
def cells(pipeline: Pipeline, parts: tuple[Cases, Cases]) -> Cells:
    return cells_of(pipeline, parts)


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that is drawn into a picture."""
    drawn: list[str] = []
    draw = ImageDraw.ImageDraw.text

    def listen(self: Any, xy: Any, text: str, **how: Any) -> None:
        drawn.append(text)
        draw(self, xy, text, **how)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", listen)
    return drawn


def items_read(pipeline: Pipeline, images: Tensor, domain: int) -> list[list[list[int]]]:
    """The item with the most similar key for every cell, by loops."""
    model: Any = pipeline.model
    with torch.no_grad():
        content = model.content_encoder(to_unit(images), domain)
    keys = model.memory.keys
    return [
        [
            [max(range(len(keys)), key=lambda n: float(picture[:, y, x] @ keys[n])) for x in range(picture.shape[2])]
            for y in range(picture.shape[1])
        ]
        for picture in content
    ]


def test_the_maps_colours_name_the_item_that_each_cell_reads(
    pipeline: Pipeline, parts: tuple[Cases, Cases], words: list[str]
) -> None:
    cases, memory = parts[0], pipeline.model.memory
    sheet = memory_map(pipeline, cases, rows=2)
    shown = cases.images[[0, 2]]
    read = items_read(pipeline, shown, 0)
    palette = item_colours(memory.item_class.tolist())  # type: ignore[union-attr, operator]
    colours = torch.tensor([[[palette[item] for item in row] for row in picture] for picture in read], dtype=torch.uint8)
    column = colours.permute(0, 3, 1, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    captions = ("sunny (input)", "night (translated)", "memory items read", "classes annotated")
    grid = picture_grid(dict.fromkeys(captions, column))
    width, across = 128, slice(2 * 131, 2 * 131 + 128)
    assert torch.equal(sheet[:, : grid.shape[1], across], grid[..., across])
    inputs = picture_grid(dict.fromkeys(captions, shown))
    assert torch.equal(sheet[:, : grid.shape[1], :width], inputs[..., :width])

    counts = Counter(item for picture in read for row in picture for item in row)
    cells = 2 * 16 * 16
    for use in class_use(memory_of(pipeline.model)):  # type: ignore[arg-type]
        share = sum(counts[item] for item in use.items) / cells
        assert f"{use.name} {percent(share)}" in words
        for place, item in enumerate(use.items):
            assert f"{place + 1}: {percent(counts[item] / cells)}" in words
            swatch = (sheet[:, grid.shape[1] :] == torch.tensor(palette[item], dtype=torch.uint8)[:, None, None]).all(0)
            assert swatch.sum() == TEXT * TEXT


def test_annotated_classes_have_the_hues_of_their_items(pipeline: Pipeline, parts: tuple[Cases, Cases]) -> None:
    cases = parts[0]
    sheet = memory_map(pipeline, cases, rows=1)
    truth = cases.class_map(2)
    assert truth is not None and len(set(truth[0].flatten().tolist())) > 1
    palette = torch.tensor(item_colours([0, 1, 2, 3]), dtype=torch.uint8)
    wanted = palette[truth[:1]].permute(0, 3, 1, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    captions = ("sunny (input)", "night (translated)", "memory items read", "classes annotated")
    grid = picture_grid(dict.fromkeys(captions, wanted))
    assert torch.equal(sheet[:, : grid.shape[1], 3 * 131 :], grid[..., 3 * 131 :])


def test_pictures_of_any_size_are_read_and_drawn(pipeline: Pipeline, parts: tuple[Cases, Cases]) -> None:
    odd = tuple(replace(cases, images=cases.images[..., :31, :27], truth=None) for cases in parts)
    cells = cells_of(pipeline, odd)
    assert len(cells) == 2 * 4 * 16 * 14 and (cells.shown == -1).all()
    labels, names = labels_of(cells, pipeline.model.memory)  # type: ignore[arg-type]
    assert names == pipeline.model.memory.class_names  # type: ignore[union-attr]
    assert torch.equal(labels, pipeline.model.memory.item_class[cells.item])  # type: ignore[union-attr, index]
    assert memory_map(pipeline, odd[0]).shape[0] == item_thumbnails(pipeline, cells).shape[0] == 3


def test_cells_know_where_they_are_and_what_they_read(pipeline: Pipeline, cells: Cells, parts: tuple[Cases, Cases]) -> None:
    assert cells.domains == DOMAINS and len(cells) == 2 * 4 * 16 * 16
    assert torch.allclose(cells.content.norm(dim=1), torch.ones(len(cells)), atol=1e-5)
    reads = [items_read(pipeline, cases.images, domain) for domain, cases in enumerate(parts)]
    truth = [cases.class_map(2) for cases in parts]
    for cell in range(0, len(cells), 97):
        domain, picture, row, column = (int(of[cell]) for of in (cells.domain, cells.picture, cells.row, cells.column))
        assert int(cells.item[cell]) == reads[domain][picture][row][column]
        assert int(cells.shown[cell]) == int(truth[domain][picture, row, column])  # type: ignore[index]


def made_up(seed: int, counts: tuple[int, ...], grid: int = 3, classes: int = 2, channels: int = 4) -> Cells:
    """Random contents of `counts` pictures a domain, on a grid of `grid` cells a side."""
    generator = torch.Generator().manual_seed(seed)
    places = [
        (domain, picture, row, column)
        for domain, count in enumerate(counts)
        for picture in range(count)
        for row in range(grid)
        for column in range(grid)
    ]
    where = torch.tensor(places).T
    content = torch.nn.functional.normalize(torch.randn(len(places), channels, generator=generator), dim=1)
    return Cells(
        domains=tuple(f"d{domain}" for domain in range(len(counts))),
        pictures=tuple(torch.zeros(count, 3, 2 * grid, 2 * grid, dtype=torch.uint8) for count in counts),
        stride=2,
        content=content,
        item=torch.randint(3, (len(places),), generator=generator),
        domain=where[0],
        picture=where[1],
        row=where[2],
        column=where[3],
        shown=torch.randint(classes, (len(places),), generator=generator) * (torch.rand(len(places), generator=generator) < 0.6),
        classes=tuple(f"c{kind}" for kind in range(classes)),
    )


@given(st.integers(0, 1000), st.tuples(st.integers(1, 5), st.integers(1, 5)), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_the_nearest_cells_are_those_of_a_plain_search(seed: int, counts: tuple[int, int], wanted: int) -> None:
    cells = made_up(seed, counts)
    keys = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed + 1))
    found = nearest_cells(cells, keys, wanted)
    for item, key in enumerate(keys):
        for domain, count in enumerate(counts):
            best = []
            for picture in range(count):
                own = [p for p in range(len(cells)) if (int(cells.domain[p]), int(cells.picture[p])) == (domain, picture)]
                best.append(max(own, key=lambda p: float(cells.content[p] @ key)))
            best.sort(key=lambda p: -float(cells.content[p] @ key))
            assert found[item][domain].tolist() == best[:wanted]


def test_thumbnails_show_the_nearest_cells_the_reads_and_the_dead(pipeline: Pipeline, cells: Cells, words: list[str]) -> None:
    memory: Any = pipeline.model.memory
    sheet = item_thumbnails(pipeline, cells, patches=2)
    uses = class_use(memory)
    assert words.count("dead") == sum(sum(use.dead) for use in uses) == 1
    counts = Counter(cells.item.tolist())
    for use in uses:
        for place, item in enumerate(use.items):
            assert any(text.startswith(f"{place + 1}: {counts[item]} read") for text in words)
    nearest = nearest_cells(cells, memory.keys, 2)
    left, top, side = patch_window(cells, int(nearest[1][1][1]))
    crop = cells.pictures[1][int(cells.picture[nearest[1][1][1]])][:, top : top + side, left : left + side]
    large = Image.fromarray(crop.permute(1, 2, 0).numpy()).resize((PATCH, PATCH), Image.Resampling.NEAREST)
    patch = torch.from_numpy(np.array(large)).permute(2, 0, 1)
    x, y = 2 * (PATCH + 2) - 2 + 4 * GAP + PATCH + 2, LINE + 2 + 3 * GAP + LINE + PATCH + 2  # second tile, lower right
    agreeing = (sheet[:, y : y + PATCH, x : x + PATCH] == patch).all(0)
    assert agreeing.float().mean() > 0.75  # all but the mark


def test_patches_lie_inside_the_picture_and_hold_their_cell(cells: Cells) -> None:
    for cell in range(0, len(cells), 7):
        left, top, side = patch_window(cells, cell)
        assert side == 8 and 0 <= left <= 32 - side and 0 <= top <= 32 - side
        x, y = int(cells.column[cell]) * 2, int(cells.row[cell]) * 2
        assert left <= x and x + 2 <= left + side and top <= y and y + 2 <= top + side


def test_random_styles_are_those_of_the_seeds(pipeline: Pipeline, parts: tuple[Cases, Cases]) -> None:
    cases = parts[0]
    found = random_styles(pipeline, cases, styles=2, rows=2)
    inputs = to_unit(cases.images[[0, 2]])
    second = to_uint8(pipeline(inputs, "night", source="sunny", seeds=[1, 1]).images)
    captions = ("sunny (input)", "night (stored style)", "random style 1", "random style 2")
    grid = picture_grid(dict.fromkeys(captions, second))
    assert torch.equal(found.picture[..., 3 * 131 :], grid[..., 3 * 131 :])
    assert found.inside > 0 and math.isnan(found.outside)


def test_the_styles_of_one_class_change_only_its_values(pipeline: Pipeline, parts: tuple[Cases, Cases]) -> None:
    cases, model = parts[0], pipeline.model
    assert isinstance(model, MGUIT)
    found = random_styles(pipeline, cases, "car", styles=2, rows=1)
    read = torch.tensor(items_read(pipeline, cases.images, 0))
    car = model.memory.item_class[read] == 1
    row = int(car.flatten(1).sum(1).argmax())
    inputs, stored = to_unit(cases.images[row : row + 1]), model.memory.values[1].clone()
    change = []
    for seed in range(2):
        values = stored.clone()
        drawn = model.sample_guide(1, [torch.Generator().manual_seed(seed)]).noise
        assert drawn is not None
        values[10:15] = drawn[0, 10:15]
        by_class = {name: values[model.memory.items_of(name)] for name in model.memory.class_names}
        answer = pipeline(inputs, "night", source="sunny", guide=Guide(values=by_class)).images
        change.append((answer - pipeline(inputs, "night", source="sunny").images).abs().mean(1) / 2)
    captions = ("sunny (input)", "night (stored style)", "random style 1 of car", "random style 2 of car")
    grid = picture_grid(dict.fromkeys(captions, to_uint8(answer)))
    difference = found.picture[..., 3 * 131 :].int() - grid[..., 3 * 131 :].int()
    assert difference.abs().max() <= 1  # values that are normalised once more round differently
    where = car[row].repeat_interleave(2, 0).repeat_interleave(2, 1).expand(2, -1, -1)
    assert found.inside == pytest.approx(float(torch.cat(change)[where].mean()), rel=1e-4)
    assert found.outside == pytest.approx(float(torch.cat(change)[~where].mean()), rel=1e-4)
    with pytest.raises(ValueError, match="did you mean 'car'"):
        random_styles(pipeline, cases, "caar")


@given(st.integers(0, 1000), st.tuples(st.integers(2, 6), st.integers(2, 6)), st.integers(4, 120))
@settings(max_examples=30, deadline=None)
def test_the_sample_is_even_over_classes_and_domains_and_repeats(seed: int, counts: tuple[int, int], total: int) -> None:
    cells = made_up(seed, counts)
    memory = ClassAwareMemory({"c0": 2, "c1": 1}, 4, 4)
    index = even_sample(cells, memory, total, seed)
    assert torch.equal(index, even_sample(cells, memory, total, seed)) and len(set(index.tolist())) == len(index) <= total
    there = Counter(zip(cells.shown.tolist(), cells.domain.tolist(), strict=True))
    taken = Counter(zip(cells.shown[index].tolist(), cells.domain[index].tolist(), strict=True))
    assert taken == Counter({stratum: min(count, total // 4) for stratum, count in there.items()})


def test_other_seeds_take_other_cells() -> None:
    cells, memory = made_up(0, (6, 6)), ClassAwareMemory({"c0": 2, "c1": 1}, 4, 4)
    assert not torch.equal(even_sample(cells, memory, 20, 0), even_sample(cells, memory, 20, 1))


def test_the_embedding_repeats_and_keeps_what_lies_together_together() -> None:
    cells, memory = made_up(0, (8, 8)), ClassAwareMemory({"c0": 2, "c1": 1}, 4, 4)
    generator = torch.Generator().manual_seed(1)
    near = torch.nn.functional.normalize(torch.eye(4)[cells.item] + 0.1 * torch.randn(len(cells), 4, generator=generator), dim=1)
    cells = replace(cells, content=near)
    memory.keys.copy_(torch.eye(4)[:3])
    space = embed(cells, memory, 80, seed=3)
    again = embed(cells, memory, 80, seed=3)
    assert all(torch.equal(one, other) for one, other in zip(space, again, strict=True))
    assert not torch.equal(space.points, embed(cells, memory, 80, seed=4).points)
    own = torch.cdist(space.keys, space.points).argsort(1)[:, :5]  # the points around a key read its item
    assert (cells.item[space.cells][own] == torch.arange(3)[:, None]).all()
    with pytest.raises(ValueError, match="at least 10"):
        embed(cells, memory, 8)


@given(st.integers(0, 1000), st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_neighbours_are_counted_as_by_a_plain_search(seed: int, count: int) -> None:
    cells = made_up(seed, (3, 3), grid=2)
    places = cells.domain * 3 + cells.picture
    alike, chance = neighbours_alike(cells.content, cells.shown, places, count)
    same, by_chance = [], []
    for p in range(len(cells)):
        others = [q for q in range(len(cells)) if places[q] != places[p]]
        by_chance.append(sum(int(cells.shown[q] == cells.shown[p]) for q in others) / len(others))
        others.sort(key=lambda q: -float(cells.content[p] @ cells.content[q]))
        same += [int(cells.shown[q] == cells.shown[p]) for q in others[:count]]
    assert alike == pytest.approx(sum(same) / len(same)) and chance == pytest.approx(sum(by_chance) / len(by_chance))


def test_separated_items_and_mixed_domains_are_told_in_numbers() -> None:
    cells, memory = made_up(0, (6, 6)), ClassAwareMemory({"c0": 2, "c1": 1}, 4, 4)
    generator = torch.Generator().manual_seed(1)
    near = torch.eye(4)[cells.item] + 0.05 * torch.randn(len(cells), 4, generator=generator)
    cells = replace(cells, content=torch.nn.functional.normalize(near, dim=1))
    index = torch.arange(len(cells))
    found = separation(cells, memory, index).astype(float).to_dict("index")
    assert found["item"]["alike"] > 0.99 and found["item"]["by chance"] < 0.5
    assert found["domain"]["alike"] == pytest.approx(found["domain"]["by chance"], abs=0.1)
    distance = 1 - cells.content @ cells.content.T
    scores = []
    for p in range(len(cells)):
        mean = [float(distance[p, (cells.item == n) & (index != p)].mean()) for n in range(3)]
        own, other = mean[int(cells.item[p])], min(mean[n] for n in range(3) if n != int(cells.item[p]))
        scores.append((other - own) / max(own, other))
    assert found["item"]["silhouette"] == pytest.approx(sum(scores) / len(scores), abs=1e-4)
    assert abs(found["domain"]["silhouette"]) < 0.05


def test_drawings_have_a_dot_for_every_cell_in_the_colour_of_its_item(pipeline: Pipeline, cells: Cells) -> None:
    memory: Any = pipeline.model.memory
    space = embed(cells, memory, 60)
    for drawing, labels, colours in (
        (items_drawing(space, cells, memory), cells.item, item_colours(memory.item_class.tolist())),
        (domains_drawing(space, cells), cells.domain, [(43, 99, 198), (224, 148, 24)]),
    ):
        dots = Counter[str]()
        for colour, path in re.findall(r'class="dots" stroke="rgb\(([\d,]+)\)" d="([^"]+)"', drawing):
            dots[colour] += path.count("h0")
        wanted = Counter(",".join(map(str, colours[int(label)])) for label in labels[space.cells])
        assert dots == wanted
        height = int(re.findall(r'viewBox="0 0 400 (\d+)"', drawing)[0])
        places = [(float(x), float(y)) for x, y in re.findall(r"M([\d.-]+) ([\d.-]+)h0", drawing)]
        assert all(0 <= x <= 400 and 0 <= y <= height for x, y in places)
    assert items_drawing(space, cells, memory).count("<circle") == 2 * 20  # a key in the plane, and in the legend
    assert "background" in items_drawing(space, cells, memory) and "night" in domains_drawing(space, cells)


@given(st.lists(st.floats(0, 1), min_size=6, max_size=6), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_shares_and_dead_items_are_those_of_the_memorys_own_health(usage: list[float], seed: int) -> None:
    memory = ClassAwareMemory({"background": 3, "car": 2, "sign": 1}, 4, 4, generator=torch.Generator().manual_seed(seed))
    memory.usage.copy_(torch.tensor(usage))
    health = memory.health()
    for use in class_use(memory):
        assert sum(use.dead) == health[f"memory/dead/{use.name}"]
        assert (
            math.isnan(use.cosine)
            if len(use.items) == 1
            else use.cosine == pytest.approx(health[f"memory/cosine/{use.name}"], abs=1e-5)
        )
        written = sum(usage[item] for item in use.items)
        assert sum(use.shares) == pytest.approx(1 if any(memory.usage[list(use.items)] > 0) else 0)
        assert all(
            share * written == pytest.approx(usage[item], abs=1e-5) for item, share in zip(use.items, use.shares, strict=True)
        )
        assert 0 <= use.effective <= len(use.items) + 1e-9


def test_the_table_names_shares_and_the_dead() -> None:
    memory = ClassAwareMemory({"background": 4, "car": 2, "sign": 1}, 4, 4)
    memory.usage.copy_(torch.tensor([0.5, 0.25, 0.25, 0.0, 0.0, 0.0, 0.2]))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in usage_markdown(memory).splitlines()]
    assert [row[0] for row in rows[2:]] == ["background", "car", "sign"] and len({len(row) for row in rows}) == 1
    assert rows[2][1:4] == ["4", "█▅▅▁ 50 %, 25 %, 25 %, 0 %", "2.8"] and rows[2][5] == "4"
    assert rows[3][2] == "never written" and rows[3][5] == "1, 2"
    assert rows[4][1:] == ["1", "█ 100 %", "1.0", "", "none"]


@pytest.mark.parametrize("count", [1, 3, 20])
def test_bars_are_as_high_as_shares(count: int) -> None:
    shares = tuple((place + 1) / (count * (count + 1) / 2) for place in range(count))
    use = ClassUse("car", tuple(range(2, 2 + count)), shares, (True, *[False] * (count - 1)), 0.5)
    drawing = usage_chart(use, [0, 0] + [1] * count)
    bars = re.findall(r'<rect [^>]*height="([\d.]+)" fill="rgb\(([^)]+)\)"', drawing)
    assert [colour for _, colour in bars] == [", ".join(map(str, c)) for c in item_colours([0, 0] + [1] * count)[2:]]
    tallest = float(bars[-1][0])
    assert [float(height) / tallest for height, _ in bars] == pytest.approx([share / shares[-1] for share in shares], abs=0.01)
    assert drawing.count("×") == 1


def test_a_memory_of_one_class_has_a_hue_for_each_item() -> None:
    colours = item_colours([0] * 20)
    assert len(set(colours)) == 20 and all(len(set(colour)) > 1 for colour in colours)
    assert item_colours([0]) == [(140, 140, 140)]


class Plain(Translator):
    """A translator without a memory."""

    def __init__(self, domains: Domains) -> None:
        super().__init__(ModelConfig(name="plain"), domains)
        self.scale = torch.nn.Parameter(torch.ones(()))

    @property
    def stride(self) -> int:
        return 1

    def translate(self, images: Tensor, source: int, target: int, guide: Guide = Guide()) -> Translation:
        return Translation(images * self.scale, {})

    def sample_guide(self, target: int, generators: Any) -> Guide:
        return Guide()


HEADINGS = ["What is read where", "What each item stands for", "Random styles", "Where contents lie", "What was written"]


def page_of(pipeline: Pipeline, store: Store, run: Run, folder: Path) -> str:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("recollect.evaluation.memory.report.embed", partial(embed, count=150))  # a t-SNE of all takes seconds
        content = "".join(map(panel, memory_panels(pipeline, store, run, pictures=4)))
    return write_page(folder / "page.html", "t", "", [Section("Inside the memory", content)]).read_text()


def test_the_page_shows_what_the_memory_does(pipeline: Pipeline, store: Store, tmp_path: Path) -> None:
    page = page_of(pipeline, store, run_of(store), tmp_path)
    assert re.findall("<h2>(.*?)</h2>", page) == ["Inside the memory"]
    assert re.findall("<h3>(.*?)</h3>", page) == HEADINGS
    assert page.count("data:image/webp;base64,") == 2 + 1 + 5 and page.count("<svg") == 2 + 4
    for shown in ("Only the values of car random", "change where it is read", "silhouette", "effective", "sunny to night"):
        assert shown in page, shown


def test_a_single_memory_is_shown_without_classes(store: Store, tmp_path: Path) -> None:
    run = run_of(store, use="single")
    page = page_of(pipeline_of(run, store), store, run, tmp_path)
    assert re.findall("<h3>(.*?)</h3>", page) == HEADINGS
    assert "a hue for each item" in page and "Only the values of" not in page
    assert page.count("data:image/webp;base64,") == 2 + 1 + 1 and page.count("<svg") == 2 + 1


def test_without_a_memory_nothing_is_shown_and_functions_say_so(
    store: Store, parts: tuple[Cases, Cases], cells: Cells, tmp_path: Path
) -> None:
    run = overlay(run_of(store), {"model.memory.use": "none", "model.contrast": "none"})
    assert isinstance(run.model, MGUIT.Config)
    for model in (MGUIT(run.model, store.domains.only(DOMAINS)), Plain(store.domains.only(DOMAINS))):
        pipeline = Pipeline(model, "poor")
        assert memory_of(model) is None and memory_panels(pipeline, store, run) == ()
        page = page_of(pipeline, store, run, tmp_path)
        assert "Inside the memory" not in page and "<h2>" not in page
        for show in (
            lambda: memory_map(pipeline, parts[0]),  # noqa: B023  (called at once)
            lambda: cells_of(pipeline, parts),  # noqa: B023
            lambda: item_thumbnails(pipeline, cells),  # noqa: B023
            lambda: random_styles(pipeline, parts[0]),  # noqa: B023
        ):
            with pytest.raises(ValueError, match="poor has no memory of several items"):
                show()
        assert "## Memory" not in card_of(run, store.domains.only(DOMAINS), [], model)


def test_the_card_tells_what_each_item_was_written(pipeline: Pipeline, store: Store) -> None:
    card = card_of(run_of(store), store.domains.only(DOMAINS), [], pipeline.model)
    assert usage_markdown(pipeline.model.memory) in card  # type: ignore[arg-type]


def test_without_scikit_learn_the_page_says_what_is_missing(
    pipeline: Pipeline, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    page = page_of(pipeline, store, run_of(store), tmp_path)
    assert re.findall("<h3>(.*?)</h3>", page) == HEADINGS and "recollect[evaluate]" in page
    assert page.count("<svg") == 4
