"""Styles class by class: the notation and its errors, the values that a style makes, and the command that takes them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter
from torch import Tensor
from torch.nn import functional as F
from typer.testing import CliRunner

from recollect import bundle, cli
from recollect.batch import Domains, Guide
from recollect.config import Run, preset
from recollect.data.schema import Box
from recollect.data.transforms import to_uint8
from recollect.pipeline import Pipeline
from recollect.styles import (
    KINDS,
    MAX_SEED,
    ClassNotShown,
    Exemplar,
    Item,
    Mix,
    NotClassWise,
    Random,
    Shown,
    Stored,
    Style,
    StyleError,
    UnknownClass,
    choose,
    class_map,
    open_file,
    parse,
    parse_choices,
)
from tests.serve import translators
from trainables.mguit import MGUIT

ITEMS = {"background": 4, "car": 3, "sign": 1}
DOMAINS = Domains(("sunny", "night"), tuple(ITEMS))
STRIDE, CHANNELS = 2, 8


@pytest.fixture(scope="module")
def run() -> Run:
    small = {"width": 8, "critic_width": 4, "content_blocks": 1, "generator_blocks": 1}
    memory = {"value_dim": CHANNELS, "items_per_class": ITEMS, "read_temperature": 0.001}  # a cell reads one item
    return preset("mguit:tiny", name="small", data={"domains": DOMAINS.names}, model={**small, "memory": memory})


@pytest.fixture(scope="module")
def pipeline(run: Run) -> Pipeline:
    torch.manual_seed(1)
    return Pipeline(MGUIT(run.model, DOMAINS), "small")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.rand(3, 3, 30, 42, generator=torch.Generator().manual_seed(0)) * 2 - 1


def model_of(pipeline: Pipeline) -> MGUIT:
    assert isinstance(pipeline.model, MGUIT)
    return pipeline.model


def values(guide: Guide) -> dict[str, Tensor]:
    assert guide.values is not None
    return dict(guide.values)


def never(name: str) -> Shown:
    raise AssertionError(f"{name} was opened")


# --- the notation

paths = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda text: text.split(":")[0] not in KINDS
)
simple = st.one_of(
    st.just(Stored()),
    st.builds(Random, random=st.integers(0, MAX_SEED)),
    st.builds(Item, item=st.integers(0, 10**6)),
    st.builds(Exemplar, exemplar=paths),
)
styles = st.one_of(simple, st.builds(Mix, mix=st.tuples(simple, simple), amount=st.floats(0, 1)))


@given(style=styles)
@settings(deadline=None)
def test_the_notation_gives_every_style_back(style: Style) -> None:
    assert parse(str(style)) == style


@given(style=styles)
@settings(deadline=None)
def test_json_gives_every_style_back(style: Style) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(Style)
    assert adapter.validate_json(adapter.dump_json(style), strict=True) == style


@given(
    words=st.lists(st.sampled_from([*KINDS, "0.5", "3", "-1", "a.jpg", "a%3Ab.jpg", "%25", "", "x@y.json", "nan"]), max_size=7)
)
@settings(deadline=None)
def test_any_text_is_a_style_or_an_error_that_shows_the_notation(words: list[str]) -> None:
    text = ":".join(words)
    try:
        style = parse(text)
    except StyleError as error:
        assert repr(text) in str(error) and "mix:AMOUNT:A:B" in str(error)
    else:
        assert parse(str(style)) == style


@pytest.mark.parametrize(
    ("text", "style"),
    [
        ("stored", Stored()),
        ("random:7", Random(random=7)),
        ("item:0", Item(item=0)),
        ("C:/streets/night.jpg", Exemplar(exemplar="C:/streets/night.jpg")),
        ("./random:7", Exemplar(exemplar="./random:7")),
        ("photo@2x.jpg", Exemplar(exemplar="photo@2x.jpg")),
        ("mix:1:a@b.json:stored", Mix(mix=(Exemplar(exemplar="a@b.json"), Stored()), amount=1)),
        ("mix:.25:item:2:a%3Ab%25.jpg", Mix(mix=(Item(item=2), Exemplar(exemplar="a:b%.jpg")), amount=0.25)),
        ("mix:0:50%.jpg:random:1", Mix(mix=(Exemplar(exemplar="50%.jpg"), Random(random=1)), amount=0)),
    ],
)
def test_what_the_notation_means(text: str, style: Style) -> None:
    assert parse(text) == style


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "there is nothing where a style should be"),
        ("random", rf"'' is not SEED, a whole number from 0 to {MAX_SEED} \(a file of that name is \./random\)"),
        ("random:many", "'many' is not SEED"),
        ("random:7.5", "'7.5' is not SEED"),
        (f"random:{MAX_SEED + 1}", "is not SEED"),
        ("random:7:8", "nothing follows random:7"),
        ("item:-1", "'-1' is not N, counted from 0"),
        ("exemplar:a.jpg", "'exemplar' cannot stand there"),
        ("mix:0.3:stored", "a mix is mix:AMOUNT:A:B, as in"),
        ("mix:1.01:stored:item:1", r"the amount '1\.01' is not a number from 0 to 1"),
        ("mix:-0.1:stored:item:1", "the amount '-0.1'"),
        ("mix:nan:stored:item:1", "the amount 'nan'"),
        ("mix:half:stored:item:1", "the amount 'half'"),
        ("mix:0.3:stored:item", "'' is not N"),
        ("mix:0.3:a:b.jpg:stored", "nothing follows b.jpg; a colon in a path is written %3A in a mix"),
        ("mix:0.3:mix:0.5:stored:item:1", "'mix' cannot stand there"),
        ("mix:0.3::stored", "there is nothing where a style should be"),
    ],
)
def test_what_is_no_style_is_told(text: str, says: str) -> None:
    with pytest.raises(StyleError, match=says):
        parse(text)


def test_choices_name_each_class_once() -> None:
    assert parse_choices([]) == {}
    assert parse_choices(["car=a=b.jpg", "sign=item:0"]) == {"car": Exemplar(exemplar="a=b.jpg"), "sign": Item(item=0)}
    with pytest.raises(StyleError, match=r"two styles for 'car': random:1 and item:0; leave one out, or take mix"):
        parse_choices(["car=random:1", "sign=stored", "car=item:0"])
    for text in ("car", "=stored"):
        with pytest.raises(StyleError, match="is not of the form CLASS=STYLE, as in car=random:7"):
            parse_choices([text])


# --- the values


def test_stored_values_change_nothing(pipeline: Pipeline, pictures: Tensor) -> None:
    guide = choose(pipeline, "night", dict.fromkeys(ITEMS, "stored"))
    torch.testing.assert_close(pipeline(pictures, "night", guide=guide).images, pipeline(pictures, "night").images)
    assert choose(pipeline, "night", {}) == Guide()


def test_an_item_is_the_style_of_its_whole_class(pipeline: Pipeline) -> None:
    memory = model_of(pipeline).memory
    found = values(choose(pipeline, "night", {"car": Item(item=2)}))
    assert set(found) == {"car"}
    assert torch.equal(found["car"], memory.values[1, [6, 6, 6]])  # car's items are 4, 5, 6
    assert torch.equal(values(choose(pipeline, "sunny", {"car": "item:0"}))["car"], memory.values[0, [4, 4, 4]])


def test_a_seed_draws_what_it_draws_for_whole_pictures(pipeline: Pipeline, pictures: Tensor) -> None:
    guide = choose(pipeline, "night", dict.fromkeys(ITEMS, "random:7"))
    one = pictures[:1]
    torch.testing.assert_close(pipeline(one, "night", guide=guide).images, pipeline(one, "night", seeds=[7]).images)
    assert not torch.equal(values(guide)["car"], values(choose(pipeline, "night", {"car": "random:8"}))["car"])


@given(amount=st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_a_mix_lies_between(pipeline: Pipeline, amount: float) -> None:
    mix = Mix(mix=(Item(item=0), Random(random=3)), amount=amount)
    found = values(choose(pipeline, "night", {"car": mix}))["car"]
    ends = [values(choose(pipeline, "night", {"car": part}))["car"] for part in mix.mix]
    for row in range(3):
        pair = zip(ends[0][row].tolist(), ends[1][row].tolist(), strict=True)
        summed = [(1 - amount) * a + amount * b for a, b in pair]
        length = math.sqrt(sum(value * value for value in summed))
        torch.testing.assert_close(found[row], torch.tensor([value / length for value in summed]))


def test_an_exemplar_gives_the_class_its_style(pipeline: Pipeline, pictures: Tensor, tmp_path: Path) -> None:
    Image.fromarray(to_uint8(pictures[1, :, :29]).permute(1, 2, 0).numpy()).save(tmp_path / "a:b.png")  # 29 x 42: needs padding
    path, opened = str(tmp_path / "a:b.png"), []

    def opening(name: str) -> Shown:
        opened.append(name)
        return open_file(name)

    image = open_file(path).image
    padded = F.pad(image, (0, 0, 0, 1), mode="replicate")
    with torch.no_grad():
        expected = model_of(pipeline).exemplar_values(padded, 1)
    names = list(expected)
    guide = choose(pipeline, "night", dict.fromkeys(names, path), opening)
    assert opened == [path] and values(guide).keys() == expected.keys()
    for name in names:
        torch.testing.assert_close(values(guide)[name], expected[name])
    before = pipeline(pictures[:1], "night").images
    assert not torch.equal(pipeline(pictures[:1], "night", guide=guide).images, before)


def coco(path: Path, picture: str, boxes: dict[str, list[int]]) -> str:
    categories = {name: index for index, name in enumerate(boxes, 1)}
    content = {
        "images": [{"id": 1, "file_name": picture}],
        "annotations": [
            {"id": index, "image_id": 1, "category_id": index, "bbox": boxes[name]} for name, index in categories.items()
        ],
        "categories": [{"id": index, "name": name} for name, index in categories.items()],
    }
    path.write_text(json.dumps(content))
    return str(path)


def test_boxes_say_which_cells_are_of_the_class(pipeline: Pipeline, pictures: Tensor, tmp_path: Path) -> None:
    Image.fromarray(to_uint8(pictures[1]).permute(1, 2, 0).numpy()).save(tmp_path / "street.png")
    boxes = coco(tmp_path / "boxes.json", "street.png", {"car": [4, 6, 10, 8], "sign": [20, 0, 4, 30]})
    reference = f"{tmp_path / 'street.png'}@{boxes}"
    grid = torch.zeros(1, 15, 21, dtype=torch.long)
    grid[0, 3:7, 2:7], grid[0, :, 10:12] = 1, 2
    with torch.no_grad():
        expected = model_of(pipeline).exemplar_values(open_file(reference).image, 1, grid)
    found = values(choose(pipeline, "night", dict.fromkeys(ITEMS, reference)))
    given_boxes = (Box("car", 4, 6, 14, 14), Box("sign", 20, 0, 24, 30))
    direct = Exemplar(exemplar=str(tmp_path / "street.png"), boxes=given_boxes)
    again = values(choose(pipeline, "night", dict.fromkeys(ITEMS, direct)))
    for name in ITEMS:
        torch.testing.assert_close(found[name], expected[name])
        torch.testing.assert_close(again[name], expected[name])
    with pytest.raises(ClassNotShown, match=r"shows no sign, but background, car; take another, or give boxes"):
        choose(pipeline, "night", {"sign": Exemplar(exemplar=direct.exemplar, boxes=given_boxes[:1])})


boxes_on_a_picture = st.lists(
    st.tuples(st.sampled_from(list(ITEMS)), st.integers(0, 20), st.integers(0, 12), st.integers(8, 20), st.integers(8, 12)),
    max_size=5,
)


@given(drawn=boxes_on_a_picture, stride=st.sampled_from([1, 2, 4]), height=st.integers(24, 27), width=st.integers(40, 43))
@settings(deadline=None)
def test_cells_of_oblong_pictures_belong_to_the_smallest_box(drawn: list[Any], stride: int, height: int, width: int) -> None:
    boxes = [Box(label, x, y, x + w, y + h) for label, x, y, w, h in drawn]
    grid = class_map(boxes, DOMAINS.classes, height, width, stride)
    assert grid.shape == (1, math.ceil(height / stride), math.ceil(width / stride))
    for row in range(grid.shape[1]):
        for column in range(grid.shape[2]):
            x, y = (column + 0.5) * stride, (row + 0.5) * stride
            over = [box for box in boxes if box.x1 <= x < box.x2 and box.y1 <= y < box.y2]
            smallest = min(
                reversed(over), key=lambda box: (box.x2 - box.x1) * (box.y2 - box.y1), default=Box("background", 0, 0, 0, 0)
            )
            assert grid[0, row, column] == DOMAINS.class_index(smallest.label)


def style_maps(pipeline: Pipeline, pictures: Tensor, guide: Guide) -> tuple[Tensor, Tensor]:
    """The style map (B, C, h, w) that the generator is given, and the pictures that it draws."""
    seen: list[Tensor] = []
    hook = model_of(pipeline).generator.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[1]))
    images = pipeline(pictures, "night", guide=guide).images
    hook.remove()
    return seen[0], images


@pytest.mark.parametrize("name", ITEMS)
def test_a_class_changes_where_it_is_read_and_nowhere_else(pipeline: Pipeline, pictures: Tensor, name: str) -> None:
    items = model_of(pipeline).memory.items_of(name)
    guide = choose(pipeline, "night", {name: "random:5"})
    plain, before = style_maps(pipeline, pictures, Guide())
    styled, after = style_maps(pipeline, pictures, guide)
    read = torch.isin(pipeline(pictures, "night").extras["memory_map"], items)
    change = (styled - plain).abs().amax(1)
    assert read.any() and not read.all()
    assert change[read].min() > 0.05 and change[~read].quantile(0.95) < 1e-3  # near a tie a cell reads two items
    pixels = read.repeat_interleave(STRIDE, 1).repeat_interleave(STRIDE, 2)
    moved = (after - before).abs().amax(1)
    assert moved[pixels].mean() > moved[~pixels].mean() > 0  # the generator looks further than one cell


def test_given_classes_keep_the_change_inside(pipeline: Pipeline, pictures: Tensor) -> None:
    classes = torch.zeros(3, 15, 21, dtype=torch.long)
    classes[:, 4:9, 5:12] = DOMAINS.class_index("car")
    plain, _ = style_maps(pipeline, pictures, Guide(classes=classes))
    guide = choose(pipeline, "night", {"car": "random:5"}, guide=Guide(classes=classes))
    styled, _ = style_maps(pipeline, pictures, guide)
    assert torch.equal((styled != plain).any(1), classes == 1)


def test_values_of_a_class_override_seed_and_exemplar(pipeline: Pipeline, pictures: Tensor) -> None:
    guide = choose(pipeline, "night", {"car": "item:1", "background": "random:9"})
    noise = pipeline.model.sample_guide(1, [torch.Generator().manual_seed(seed) for seed in (4, 5, 6)]).noise
    assert noise is not None
    drawn = model_of(pipeline).random_values(1, torch.Generator().manual_seed(9))
    noise[:, :4], noise[:, 4:7] = drawn["background"], model_of(pipeline).memory.values[1, 5]
    expected = pipeline(pictures, "night", guide=Guide(noise=noise)).images
    torch.testing.assert_close(pipeline(pictures, "night", guide=guide, seeds=[4, 5, 6]).images, expected)
    exemplar = choose(pipeline, "night", {"car": "item:1"}, guide=Guide(exemplar=pictures[1:2]))
    answers = [pipeline(pictures[:1], "night", guide=g).images for g in (exemplar, Guide(exemplar=pictures[1:2]), guide)]
    assert not torch.equal(answers[0], answers[1]) and not torch.equal(answers[0], answers[2])


def test_values_may_be_one_set_a_picture(pipeline: Pipeline, pictures: Tensor) -> None:
    guides = [choose(pipeline, "night", {"car": f"random:{seed}"}) for seed in range(3)]
    stacked = torch.stack([values(guide)["car"] for guide in guides])
    together = pipeline(pictures, "night", guide=Guide(values={"car": stacked})).images
    for index, guide in enumerate(guides):
        alone = pipeline(pictures[index : index + 1], "night", guide=guide).images[0]
        torch.testing.assert_close(together[index], alone, atol=1e-3, rtol=0)  # a cold read enlarges rounding
    with pytest.raises(ValueError, match="values for 'car' are of 3 pictures; there are 2"):
        pipeline(pictures[:2], "night", guide=Guide(values={"car": stacked}))


# --- what cannot be chosen


@pytest.mark.parametrize(
    ("choices", "kind", "says"),
    [
        ({"cra": "stored"}, UnknownClass, r"no class 'cra'; did you mean 'car'\?; known: background, car, sign"),
        ({"car": "item:3"}, StyleError, "'car' has no item 3; it has 3: 0 to 2"),
        ({"sign": "mix:0.5:stored:item:1"}, StyleError, "'sign' has no item 1; it has 1: 0 to 0"),
        ({"car": "radnom:7"}, StyleError, r"there is no picture 'radnom:7'; a style is stored, random:SEED, item:N"),
        ({"car": "{tmp}/text.png"}, StyleError, r"text\.png is no exemplar: it is not a picture"),
        ({"car": "{tmp}/a.png@{tmp}/other.json"}, ValueError, r"other\.json has boxes for none of the pictures"),
        ({"car": "{tmp}/a.png@{tmp}/outside.json"}, ValueError, r"box .* is not inside the picture of 24x20"),
        ({"car": "{tmp}/a.png@{tmp}/strange.json"}, UnknownClass, r"a box is of the class 'cat'; did you mean 'car'\?"),
        ({"car": "{tmp}/a.png@{tmp}/none.json"}, ValueError, r"there is no file .*none\.json"),
        ({"car": "{tmp}/a.png@{tmp}/sign.json"}, ClassNotShown, r"shows no car, but background, sign"),
    ],
)
def test_what_cannot_be_chosen_is_told(
    pipeline: Pipeline, tmp_path: Path, choices: dict[str, str], kind: type[Exception], says: str
) -> None:
    Image.new("RGB", (24, 20), "red").save(tmp_path / "a.png")
    (tmp_path / "text.png").write_text("no picture")
    coco(tmp_path / "other.json", "b.png", {"car": [0, 0, 4, 4]})
    coco(tmp_path / "outside.json", "a.png", {"car": [20, 0, 8, 4]})
    coco(tmp_path / "strange.json", "a.png", {"cat": [0, 0, 4, 4]})
    coco(tmp_path / "sign.json", "a.png", {"sign": [0, 0, 4, 4]})
    with pytest.raises(kind, match=says):
        choose(pipeline, "night", {name: text.format(tmp=tmp_path) for name, text in choices.items()})


def test_nothing_is_opened_before_the_names_are_known(pipeline: Pipeline) -> None:
    with pytest.raises(UnknownClass):
        choose(pipeline, "night", {"car": "a.png", "truck": "stored"}, never)
    with pytest.raises(ValueError, match="no domain 'nigth'"):
        choose(pipeline, "nigth", {"car": "a.png"}, never)


def test_a_method_without_a_memory_says_which_have_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RECOLLECT_CATALOGUE", translators.CATALOGUE)
    flat = Pipeline.open(translators.write_bundle(tmp_path, "flat", "flat"))
    with pytest.raises(NotClassWise, match=r"^flat cannot choose styles class by class; mguit can$"):
        choose(flat, "night", {"car": "stored"}, never)
    assert choose(flat, "night", {}) == Guide()


# --- the command


@pytest.fixture
def translate(
    run: Run, pipeline: Pipeline, pictures: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """`recollect translate` of a picture with these options, beside an exemplar: what typer's runner found."""
    monkeypatch.chdir(tmp_path)
    bundle.write(tmp_path / "bundle", run, DOMAINS, pipeline.model.state_dict())
    for name, picture in zip(("street", "exemplar", "other"), pictures, strict=True):
        Image.fromarray(to_uint8(picture).permute(1, 2, 0).numpy()).save(tmp_path / f"{name}.png")
    return lambda *options: CliRunner().invoke(cli.app, ["translate", "bundle", "street.png", "--to", "night", *options])


def read(path: str) -> Tensor:
    return open_file(path).image


def test_the_command_takes_styles(translate: Callable[..., Any], pipeline: Pipeline) -> None:
    choices = {"car": "exemplar.png", "background": "mix:0.4:random:7:other.png", "sign": "stored"}
    words = [word for name, style in choices.items() for word in ("--style", f"{name}={style}")]
    done = translate(*words)
    assert done.exit_code == 0, done.output
    expected = pipeline(read("street.png"), "night", guide=choose(pipeline, "night", choices)).images
    assert (read("translated/street-night.png") - expected).abs().max() <= 1 / 127.5
    done = translate(*words, "--samples", "2", "--seed", "3")
    assert done.exit_code == 0, done.output
    expected = pipeline(read("street.png"), "night", guide=choose(pipeline, "night", choices), seeds=[4]).images
    assert (read("translated/street-night-4.png") - expected).abs().max() <= 1 / 127.5
    done = translate("--exemplar", "other.png", "--style", "car=item:1", "--out", "both")
    guide = choose(pipeline, "night", {"car": "item:1"}, guide=Guide(exemplar=read("other.png")))
    assert (read("both/street-night.png") - pipeline(read("street.png"), "night", guide=guide).images).abs().max() <= 1 / 127.5


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--style", "cra=stored"], "did you mean 'car'?"),
        (["--style", "car=item:9"], "it has 3: 0 to 2"),
        (["--style", "car=stored", "--style", "car=item:1"], "two styles for 'car'"),
        (["--style", "car"], "CLASS=STYLE"),
        (["--style", "car=mix:2:stored:item:1"], "not a number from 0 to 1"),
        (["--style", "car=nowhere.png"], "there is no picture 'nowhere.png'"),
    ],
)
def test_the_command_says_what_is_wrong(translate: Callable[..., Any], options: list[str], says: str) -> None:
    done = translate(*options)
    assert isinstance(done.exception, ValueError) and says in str(done.exception)  # `main` makes it one line
    assert not Path("translated").exists()
