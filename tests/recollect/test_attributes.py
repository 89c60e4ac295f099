"""Attributes as targets: the notation and its errors, what becomes of the others, and the command that takes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from recollect import bundle, cli
from recollect.attributes import Contradiction, NotAttributeWise, TargetError, UnknownAttribute, changed, choose, parse_changes
from recollect.batch import Domains, Guide
from recollect.config import Run, preset
from recollect.pipeline import Pipeline
from recollect.training.trainer import build
from trainables.gmm_unit import CELEBA, GMMUNIT

FACES = Domains(("faces",), attributes=CELEBA)
STREETS = Domains(("sunny", "night", "rainy"))
SMALL = {"width": 4, "downs": 1, "style_downs": 2, "content_blocks": 1, "generator_blocks": 1, "mlp_width": 8, "critic_width": 4}


def small(domains: Domains = FACES) -> Run:
    chosen = {} if domains is FACES else {"attributes": ()}
    return preset("gmm_unit:tiny", name="small", data={"domains": domains.names}, model={**SMALL, **chosen})


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    model = build(small(), FACES)
    assert isinstance(model, GMMUNIT)
    return Pipeline(model, "small")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 18, 23, generator=torch.Generator().manual_seed(0)) * 2 - 1


OWN = torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 0, 0, 1]])  # black-haired and male; no hair colour, young


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"Blond_Hair": 1}, [[0, 1, 0, 1, 0], [0, 1, 0, 0, 1]]),  # its group makes room, the others stay
        ({"Male": 0}, [[1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]),
        ({"Male": 0, "Young": 1, "Brown_Hair": 1}, [[0, 0, 1, 0, 1], [0, 0, 1, 0, 1]]),
        ({"Blond_Hair": 0.25}, [[0.75, 0.25, 0, 1, 0], [0, 0.25, 0, 0, 1]]),  # a quarter of the way there
        ({"Blond_Hair": 0}, [[1, 0, 0, 1, 0], [0, 0, 0, 0, 1]]),
        ({"Black_Hair": 0.25}, [[0.25, 0, 0, 1, 0], [0.25, 0, 0, 0, 1]]),  # less black than it was, and no other colour
        ({"Black_Hair": 0.5, "Brown_Hair": 0.5}, [[0.5, 0, 0.5, 1, 0], [0.5, 0, 0.5, 0, 1]]),
        ({"Black_Hair": 1, "Brown_Hair": 0}, [[1, 0, 0, 1, 0], [1, 0, 0, 0, 1]]),
    ],
)
def test_what_is_not_named_stays(pipeline: Pipeline, images: Tensor, changes: dict[str, float], expected: list[Any]) -> None:
    before = OWN.clone()
    found = choose(pipeline, images, changes, own=OWN).attributes
    assert found is not None
    assert found.tolist() == expected and torch.equal(OWN, before)


@given(own=st.tuples(st.sampled_from([0, 2, None]), st.integers(0, 1), st.integers(0, 1)), value=st.floats(0, 1))
def test_between_lies_on_the_line_from_the_picture_to_the_target(own: tuple[int | None, int, int], value: float) -> None:
    row = torch.tensor([[float(own[0] == i) for i in range(3)] + [*own[1:]]], dtype=torch.float64)
    there = changed(row, {"Blond_Hair": 1.0, "Young": 1.0}, CELEBA, [CELEBA[:3]])
    between = changed(row, {"Blond_Hair": value}, CELEBA, [CELEBA[:3]])
    torch.testing.assert_close(between[:, :4], torch.lerp(row, there, value)[:, :4])
    assert between[:, :3].sum() <= 1 + 1e-12


def test_what_nobody_says_is_read_by_the_model(pipeline: Pipeline, images: Tensor) -> None:
    model = pipeline.model
    assert isinstance(model, GMMUNIT)
    with torch.no_grad():
        read = model.read_attributes(torch.nn.functional.pad(images, (0, 1, 0, 0), mode="replicate"), 0)
    found = choose(pipeline, images, {"Young": 1}).attributes
    assert found is not None and torch.equal(found[:, :4], read[:, :4]) and found[:, 4].tolist() == [1, 1]
    partly = OWN.clone()
    partly[0, 3] = torch.nan
    found = choose(pipeline, images, {"Young": 1}, own=partly).attributes
    assert found is not None and float(found[0, 3]) == float(read[0, 3])
    assert torch.equal(found[:, :3], OWN[:, :3]) and float(found[1, 3]) == 0


def test_without_changes_the_guide_is_as_it_was(pipeline: Pipeline, images: Tensor) -> None:
    guide = Guide(exemplar=images)
    assert choose(pipeline, images, {}, guide=guide) is guide
    assert choose(pipeline, images, {"Male": 1}, guide=guide).exemplar is images


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        (
            {"Blond": 1},
            UnknownAttribute,
            "cannot set 'Blond'; did you mean 'Blond_Hair'\\?; it can set: Black_Hair, Blond_Hair, ",
        ),
        (
            {"Black_Hair": 1, "Blond_Hair": 1},
            Contradiction,
            "one of Black_Hair, Blond_Hair, Brown_Hair at most, and Black_Hair=1 and",
        ),
        ({"Black_Hair": 0.6, "Blond_Hair": 0.6}, Contradiction, "Black_Hair=0.6 and Blond_Hair=0.6 is more"),
        ({"Male": 1.5}, TargetError, "Male is 1.5; an attribute is a number from 0"),
        ({"Male": float("nan")}, TargetError, "Male is nan"),
    ],
)
def test_what_cannot_be_asked_for_is_told(
    pipeline: Pipeline, images: Tensor, changes: dict[str, float], kind: type[TargetError], says: str
) -> None:
    with pytest.raises(kind, match=says):
        choose(pipeline, images, changes)


def test_the_errors_have_names_for_programs() -> None:
    assert [kind.code for kind in (TargetError, UnknownAttribute, Contradiction, NotAttributeWise)] == [
        *("bad_attributes", "unknown_attribute", "contradictory_attributes", "no_attributes")
    ]


def test_a_picture_that_is_said_to_have_two_hair_colours(pipeline: Pipeline, images: Tensor) -> None:
    own = torch.tensor([[1.0, 0, 1, 0, 0], [0, 0, 0, 0, 0]])
    with pytest.raises(ValueError, match="Black_Hair=1 and Brown_Hair=1 is more than one"):
        choose(pipeline, images, {"Male": 1}, own=own)
    found = choose(pipeline, images, {"Black_Hair": 1}, own=own).attributes
    assert found is not None and found.tolist() == [[1, 0, 0, 0, 0], [1, 0, 0, 0, 0]]
    with pytest.raises(ValueError, match=r"own is \(2, 5\) here, Black_Hair, .*; not \(1, 5\)"):
        choose(pipeline, images, {"Male": 1}, own=own[:1])


def test_a_method_without_attributes_says_who_has_some(images: Tensor) -> None:
    domains = Domains(("sunny", "night"))
    munit = Pipeline(build(preset("munit:tiny", data={"domains": domains.names}), domains))  # type: ignore[arg-type]
    with pytest.raises(NotAttributeWise, match="munit has no attributes to set; .*gmm_unit.* has"):
        choose(munit, images, {"Male": 1})
    with pytest.raises(ValueError, match="munit does not take the guide 'attributes'"):
        munit(images, "night", guide=Guide(attributes=OWN))


@given(st.dictionaries(st.text(min_size=1).filter(lambda name: "=" not in name), st.floats(0, 1)))
def test_the_notation_comes_back(changes: dict[str, float]) -> None:
    assert parse_changes(f"{name}={value!r}" for name, value in changes.items()) == changes


@pytest.mark.parametrize("text", ["Male", "Male=", "=1", "Male=yes", "Male=2", "Male=-0.1", "Male=nan", "Male=inf", ""])
def test_what_is_no_setting_is_told(text: str) -> None:
    with pytest.raises(TargetError, match="NAME=VALUE with a VALUE from 0 to 1, as in Blond_Hair=1"):
        parse_changes([text])


def test_an_attribute_is_set_once() -> None:
    with pytest.raises(TargetError, match="two values for 'Male': 1 and 0; leave one out"):
        parse_changes(["Male=1", "Male=0"])


# --- the command


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    for name, domains in (("faces", FACES), ("streets", STREETS)):
        bundle.write(folder / name, small(domains), domains, build(small(domains), domains).state_dict())
    Image.linear_gradient("L").resize((23, 18)).convert("RGB").save(folder / "face.png")
    return folder


@pytest.fixture
def translate(bundles: Path, tmp_path: Path) -> Callable[[str], list[str]]:
    """Runs `recollect translate`; gives the names of the files it wrote."""

    def run(words: str) -> list[str]:
        model, *options = words.split()
        arguments = ["translate", str(bundles / model), str(bundles / "face.png"), *options, "--out", str(tmp_path)]
        result = CliRunner().invoke(cli.app, arguments)
        if result.exception is not None:
            raise result.exception
        return [Path(line).name for line in result.stdout.split()]

    return run


def shown(path: Path) -> Tensor:
    with Image.open(path) as image:
        return (
            torch.tensor(list(image.get_flattened_data())).view(image.height, image.width, 3).permute(2, 0, 1)[None] / 127.5 - 1
        )


def test_the_command_sets_attributes(translate: Callable[[str], list[str]], bundles: Path, tmp_path: Path) -> None:
    (name,) = translate("faces --set Blond_Hair=1 --set Male=0")
    assert name == "face-Blond_Hair=1-Male=0.png"
    pipeline, picture = Pipeline.open(bundles / "faces"), shown(bundles / "face.png")
    guide = choose(pipeline, picture, {"Blond_Hair": 1, "Male": 0})
    assert (shown(tmp_path / name) - pipeline(picture, "faces", guide=guide).images).abs().max() <= 1 / 127.5
    names = translate("faces --set Blond_Hair=0.5 --samples 2 --seed 7")
    assert names == ["face-Blond_Hair=0.5-7.png", "face-Blond_Hair=0.5-8.png"]
    drawn = pipeline(picture, "faces", guide=choose(pipeline, picture, {"Blond_Hair": 0.5}), seeds=[8]).images
    assert (shown(tmp_path / names[1]) - drawn).abs().max() <= 1 / 127.5
    assert (tmp_path / names[0]).read_bytes() != (tmp_path / names[1]).read_bytes()
    assert translate("faces") == ["face-faces.png"]  # its own style: a reconstruction
    assert translate("streets --set night=0.5") == ["face-night=0.5.png"]
    assert translate("streets --to night") == ["face-night.png"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("faces --set Bald=1", "cannot set 'Bald'"),
        ("faces --set Blond_Hair=1 --set Black_Hair=1", "at most"),
        ("faces --set Male", "NAME=VALUE"),
        ("faces --set Male=1 --exemplar {face}", "not both"),
        ("streets", "--to which domain\\? small has sunny, night, rainy"),
        ("streets --to night --set rainy=1", "leave --to out"),
    ],
)
def test_the_command_tells_what_is_wrong(translate: Callable[[str], list[str]], bundles: Path, words: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        translate(words.format(face=bundles / "face.png"))
