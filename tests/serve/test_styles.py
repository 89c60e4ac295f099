"""Styles class by class: in the translator that answers batches, and over real HTTP against a real Ray Serve."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import ray
import torch
from numpy.typing import NDArray
from PIL import Image

from recollect.data.schema import Box
from recollect.data.transforms import decode, to_unit
from recollect.pipeline import Pipeline
from recollect.styles import ClassNotShown, Exemplar, Item, Mix, Random, Shown, Stored, Style, choose
from serve import run
from serve.batch import BatchTranslator
from serve.describe import card
from serve.work import ClassStyles, Done, Job, Wish
from tests.browser import chromium, needs_chromium
from tests.serve.conftest import encoded, painted
from tests.serve.site import downloaded, give, translated, visiting
from tests.serve.translators import STREETS, write_bundle, write_mguit

ITEMS = {"background": 10, "car": 5, "person": 3, "sign": 2}
SMALL = {"width": 8, "content_blocks": 1, "generator_blocks": 1, "memory": {"value_dim": 8}}
MAX_BYTES, MAX_EXEMPLARS, MAX_BATCH = 60_000, 3, 6
Pixels = NDArray[np.int64]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mguit(tmp_path_factory.mktemp("bundles"), **SMALL)


def unit(image: Image.Image) -> torch.Tensor:
    return to_unit(decode(encoded(image)))[None]


def expected(pipeline: Pipeline, image: Image.Image, styles: Mapping[str, Style], seed: int | None, **shown: Shown) -> Pixels:
    """What the pipeline draws, as pixels (H, W, 3)."""
    guide = choose(pipeline, "night", styles, shown.__getitem__)
    answer = pipeline(unit(image), "night", None, guide, None if seed is None else [seed]).images[0]
    return ((answer.permute(1, 2, 0) + 1) * 127.5).round().numpy().astype(np.int64)


def far(a: Pixels, b: Pixels) -> int:
    return int(np.abs(a - b).max())


# --- the translator


def array(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image).transpose(2, 0, 1).copy()


def test_different_styles_share_a_forward_and_do_not_mix(path: Path) -> None:
    translator, street, other = BatchTranslator(str(path)), painted(), painted(50, 30, 8)
    everywhere = (Box("car", 0, 0, 50, 30),)
    exemplar = ClassStyles({"car": Exemplar(exemplar="x", boxes=everywhere)}, {"x": array(other)})
    choices = [
        None,
        ClassStyles({"car": Random(random=1)}, {}),
        ClassStyles({"car": Random(random=2), "background": Item(item=3)}, {}),
        ClassStyles({"background": Mix(mix=(Stored(), Random(random=1)), amount=0.5)}, {}),
        exemplar,
    ]
    jobs = [Job(array(street), "night", None, None, styles) for styles in choices]
    results = translator.translate(jobs)
    drawn = []
    for job, result in zip(jobs, results, strict=True):
        assert isinstance(result, Done) and result.batch == len(jobs)
        (alone,) = translator.translate([job])
        assert isinstance(alone, Done) and alone.batch == 1
        assert far(alone.picture.astype(int), result.picture.astype(int)) <= 1
        drawn.append(result.picture)
    for index, one in enumerate(drawn):
        assert all(far(one.astype(int), two.astype(int)) > 3 for two in drawn[:index]), index
    shown = Shown(unit(other))
    wanted = expected(translator.pipeline, street, exemplar.chosen, None, x=shown)
    assert far(drawn[4].transpose(1, 2, 0).astype(np.int64), wanted) <= 1


def test_beside_seeds_the_same_classes_share_a_forward(path: Path) -> None:
    translator, street = BatchTranslator(str(path)), painted()
    car, sign = (ClassStyles({name: Item(item=1)}, {}) for name in ("car", "sign"))
    again = ClassStyles({"car": Random(random=3)}, {})
    jobs = [Job(array(street), "night", None, seed, styles) for seed, styles in ((1, car), (2, again), (3, sign), (4, None))]
    results = translator.translate(jobs)
    assert [result.batch for result in results if isinstance(result, Done)] == [2, 2, 1, 1]
    for job, result in zip(jobs, results, strict=True):
        assert isinstance(result, Done)
        wanted = expected(translator.pipeline, street, job.styles.chosen if job.styles else {}, job.seed)
        assert far(result.picture.transpose(1, 2, 0).astype(np.int64), wanted) <= 1


def test_an_exemplar_that_shows_nothing_harms_no_other_job(path: Path) -> None:
    translator, street = BatchTranslator(str(path)), array(painted())
    empty = ClassStyles({"car": Exemplar(exemplar="x", boxes=())}, {"x": street})
    outside = ClassStyles({"car": Exemplar(exemplar="x", boxes=(Box("car", 40, 0, 60, 9),))}, {"x": street})
    good, none, wrong = translator.translate([Job(street, "night", None, None, styles) for styles in (None, empty, outside)])
    assert isinstance(good, Done) and good.batch == 1
    assert isinstance(none, ClassNotShown) and "shows no car, but background" in str(none)
    assert isinstance(wrong, ValueError) and "is not inside the picture of 48x40" in str(wrong)


def test_a_method_without_a_memory(tmp_path: Path) -> None:
    translator = BatchTranslator(str(write_bundle(tmp_path)))
    assert card(translator)["style_classes"] == {}
    refusal = translator.refusal(Wish("night", styles=ClassStyles({"car": Stored()}, {})))
    assert refusal is not None and refusal.code == "no_class_styles"
    assert refusal.message == "tint cannot choose styles class by class; mguit can"


# --- over HTTP


@dataclass(frozen=True)
class Server:
    url: str
    pipeline: Pipeline

    def form(self, styles: Any = None, files: Mapping[str, bytes] | None = None, **fields: Any) -> httpx.Response:
        if styles is not None:
            fields["styles"] = styles if isinstance(styles, str) else json.dumps(styles)
        data = {"target": "night", **fields}
        files = {"image": encoded(painted()), **(files or {})}
        return httpx.post(f"{self.url}/v1/translate", files=files, data=data, timeout=30, trust_env=False)

    def json(self, styles: Any, **fields: Any) -> httpx.Response:
        body = {"image": text(encoded(painted())), "target": "night", "styles": styles, **fields}
        return httpx.post(f"{self.url}/v1/translate", json=body, timeout=30, trust_env=False)


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def pixels(content: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(np.int64)


def refused(answer: httpx.Response, status: int, code: str, says: str) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code and says in error["message"] and error["hint"], error


@pytest.fixture(scope="module")
def server(path: Path) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    limits: dict[str, Any] = {"max_bytes": MAX_BYTES, "max_exemplars": MAX_EXEMPLARS, "max_batch_size": MAX_BATCH}
    with run.start(path, port=port, batch_wait_s=0.1, **limits) as running:
        yield Server(running.url, Pipeline.open(path))
    assert not ray.is_initialized()


OTHER = painted(70, 36, 5)
BOXES = [{"label": "car", "x1": 8, "y1": 4, "x2": 30.5, "y2": 20}]
BOXED = Exemplar(exemplar="x", boxes=(Box("car", 8, 4, 30.5, 20),))
CHOSEN: dict[str, Style] = {
    "car": BOXED,
    "background": Random(random=7),
    "sign": Item(item=1),
    "person": Mix(mix=(Stored(), Random(random=3)), amount=0.3),
}
ASKED = {
    "background": {"random": 7},
    "sign": {"item": 1},
    "person": {"mix": [{"stored": True}, {"random": 3}], "amount": 0.3},
}


@pytest.mark.parametrize("seed", [None, 11])
def test_json_and_form_get_what_the_pipeline_draws(server: Server, seed: int | None) -> None:
    wanted = expected(server.pipeline, painted(), CHOSEN, seed, x=Shown(unit(OTHER)))
    plain = expected(server.pipeline, painted(), {}, seed)
    seeds = {} if seed is None else {"seed": seed}
    answer = server.json({**ASKED, "car": {"exemplar": text(encoded(OTHER)), "boxes": BOXES}}, **seeds)
    assert answer.status_code == 200, answer.text
    assert far(pixels(base64.b64decode(answer.json()["images"][0])), wanted) <= 1 < 3 < far(plain, wanted)
    part = {"style.anything": encoded(OTHER)}
    answer = server.form({**ASKED, "car": {"exemplar": "style.anything", "boxes": BOXES}}, part, **seeds)
    assert answer.headers["content-type"] == "image/png" and far(pixels(answer.content), wanted) <= 1


def test_a_file_is_the_exemplar_of_the_class_it_is_called_after(server: Server) -> None:
    shows = server.pipeline.model.exemplar_values(unit(OTHER), 1)  # type: ignore[operator]
    name = next(iter(shows))
    wanted = expected(server.pipeline, painted(), {name: Exemplar(exemplar="x")}, None, x=Shown(unit(OTHER)))
    answer = server.form(files={f"style.{name}": encoded(OTHER)})
    assert answer.status_code == 200, answer.text
    assert far(pixels(answer.content), wanted) <= 1
    missing = sorted(ITEMS.keys() - shows.keys())
    for label in missing:
        refused(server.form(files={f"style.{label}": encoded(OTHER)}), 422, "class_not_shown", f"style.{label} shows no {label}")


def test_samples_keep_what_is_chosen(server: Server) -> None:
    answer = server.json({"car": {"item": 0}, "background": {"stored": True}}, samples=2, seed=4).json()
    assert answer["seeds"] == [4, 5]
    for seed, image in zip(answer["seeds"], answer["images"], strict=True):
        wanted = expected(server.pipeline, painted(), {"car": Item(item=0), "background": Stored()}, seed)
        assert far(pixels(base64.b64decode(image)), wanted) <= 1


def test_requests_with_different_styles_share_batches_and_do_not_mix(server: Server) -> None:
    """Each answer is what the same request gets alone: nothing of a neighbour's values reaches it."""
    asked: list[tuple[bytes, dict[str, str], dict[str, bytes]]] = []
    kinds: list[Any] = [{"car": {"random": 1}}, {"background": {"item": 2}, "car": {"random": 2}}, {}, {"sign": {"item": 0}}]
    for index in range(12):
        styles = {name: {"random": index} if "random" in style else style for name, style in kinds[index % 4].items()}
        files = {}
        if index % 3 == 0:
            styles["background"] = {"exemplar": "style.x", "boxes": []}
            files = {"style.x": encoded(painted(40, 40, 100 + index))}
        seeds = {"seed": str(index)} if index % 5 == 4 else {}
        asked.append((encoded(painted(seed=index)), {"target": "night", "styles": json.dumps(styles), **seeds}, files))

    async def all_at_once() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
            url = f"{server.url}/v1/translate"
            posts = [client.post(url, files={"image": image, **files}, data=data) for image, data, files in asked]
            return list(await asyncio.gather(*posts))

    together = asyncio.run(all_at_once())
    assert {answer.status_code for answer in together} == {200}, [answer.text for answer in together]
    assert max(int(answer.headers["x-recollect-batch"]) for answer in together) > 1
    for (image, data, files), answer in zip(asked, together, strict=True):
        alone = httpx.post(f"{server.url}/v1/translate", files={"image": image, **files}, data=data, timeout=30, trust_env=False)
        assert alone.headers["x-recollect-batch"] == "1"
        assert far(pixels(alone.content), pixels(answer.content)) <= 1


@pytest.mark.parametrize(
    ("styles", "code", "says"),
    [
        ({"cra": {"random": 1}}, "unknown_class", "did you mean 'car'"),
        ({"sign": {"item": 2}}, "bad_style", "'sign' has no item 2; it has 2: 0 to 1"),
        ({"car": {"random": "7"}}, "bad_styles", "styles: car.random: Input should be a valid integer"),
        ({"car": {"random": 2**32}}, "bad_styles", "car.random: Input should be less than"),
        ({"car": {"random": 7, "item": 1}}, "bad_styles", "car.random.item: Extra inputs"),
        (
            {"car": {"mix": [{"random": 1}, {"item": 0}], "amount": 1.5}},
            "bad_styles",
            "car.mix.amount: Input should be less than",
        ),
        ({"car": {"mix": [{"random": 1}, {"item": 0}]}}, "bad_styles", "car.mix.amount: Field required"),
        ({"car": {"mix": [{"random": 1}], "amount": 1}}, "bad_styles", "car.mix.1: Field required"),
        (
            {"car": {"mix": [{"stored": True}, {"mix": []}], "amount": 1}},
            "bad_styles",
            "a style is an object with one of the keys",
        ),
        ({"car": "random:7"}, "bad_styles", "a style is an object with one of the keys stored"),
        ({"car": {"radnom": 7}}, "bad_styles", "a style is an object with one of the keys stored"),
        ({"car": {"stored": False}}, "bad_styles", "car.stored: Input should be True"),
        ({f"c{index}": {"stored": True} for index in range(257)}, "bad_styles", "at most 256"),
        ([], "bad_styles", "styles: Input should be an object"),
    ],
)
def test_what_cannot_be_chosen_is_told(server: Server, styles: Any, code: str, says: str) -> None:
    refused(server.json(styles), 422, code, says)
    refused(server.form(styles), 422, code, says)


def test_what_is_wrong_with_a_form(server: Server) -> None:
    picture = encoded(OTHER)
    refused(server.form("{"), 422, "bad_styles", "the field is no JSON")
    refused(server.form({"car": {"exemplar": "style.x"}}, {"style.y": picture}), 422, "bad_styles", "no file in a part 'style.x'")
    refused(server.form({"car": {"exemplar": text(picture)}}), 422, "bad_styles", "no file in a part")
    refused(server.form({"car": {"random": 1}}, {"style.car": picture}), 422, "bad_styles", "two styles for 'car'")
    refused(server.form(None, None, **{"style.car": "random:7"}), 422, "bad_styles", "'style.car' is text, not a file")
    refused(server.form(files={"style.truck": picture}), 422, "unknown_class", "no class 'truck'")
    refused(server.form(files={"styles": b"{}"}), 422, "unknown_field", "a file is in the field 'styles'")
    refused(server.form(style="{}"), 422, "unknown_field", "did you mean 'styles'")
    several = [("style.car", picture), ("style.car", picture), ("image", encoded(painted()))]
    answer = httpx.post(f"{server.url}/v1/translate", files=several, data={"target": "night"}, trust_env=False)
    refused(answer, 422, "bad_styles", "given more than once")


@pytest.mark.parametrize(
    ("picture", "status", "code"),
    [
        (b"", 422, "empty"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, "not_a_picture"),
        (encoded(painted())[:300], 422, "truncated"),
        (encoded(painted(12, 40)), 422, "too_small"),
        (encoded(Image.new("RGB", (2100, 2100))), 413, "too_many_pixels"),
    ],
)
def test_hostile_exemplars_are_refused_as_pictures_are(server: Server, picture: bytes, status: int, code: str) -> None:
    assert len(picture) < MAX_BYTES
    answer = server.form(files={"style.car": picture})
    refused(answer, status, code, "style.car: the picture" if code not in ("not_a_picture",) else "style.car: this is no picture")
    if picture:
        mix = {"car": {"mix": [{"stored": True}, {"exemplar": text(picture)}], "amount": 0.5}}
        refused(server.json(mix), status, code, "styles.car.mix.1: ")


def test_exemplars_are_counted_and_their_bytes_too(server: Server) -> None:
    different = [encoded(painted(16, 16, seed)) for seed in range(MAX_EXEMPLARS + 1)]
    styles = {name: {"exemplar": text(content)} for name, content in zip(ITEMS, different, strict=True)}
    refused(server.json(styles), 422, "too_many_exemplars", f"more than {MAX_EXEMPLARS} different pictures")
    files = {f"style.{name}": content for name, content in zip(ITEMS, different, strict=True)}
    refused(server.form(files=files), 422, "too_many_exemplars", f"more than {MAX_EXEMPLARS} different pictures")
    everywhere = [{"label": name, "x1": 4 * index, "y1": 0, "x2": 4 * index + 4, "y2": 16} for index, name in enumerate(ITEMS)]
    same = {name: {"exemplar": text(different[0]), "boxes": everywhere} for name in ITEMS}
    assert server.json(same).status_code == 200  # one picture, four classes
    noise = np.random.default_rng(0).integers(0, 256, (120, 120, 3), dtype=np.uint8)
    large = encoded(Image.fromarray(noise))
    assert MAX_BYTES > len(large) > MAX_BYTES / 2  # each may be sent, all three may not
    files = {"style.car": large, "style.sign": large, "style.person": large}
    refused(server.form(files=files), 413, "too_many_bytes", "bytes")


def test_boxes_of_a_request_are_checked(server: Server) -> None:
    for boxes, code, says in (
        ([{"label": "cat", "x1": 0, "y1": 0, "x2": 9, "y2": 9}], "unknown_class", "did you mean 'car'"),
        ([{"label": "car", "x1": 60, "y1": 0, "x2": 90, "y2": 9}], "bad_style", "is not inside the picture of 70x36"),
        ([{"label": "car", "x1": 9, "y1": 0, "x2": 9, "y2": 9}], "bad_style", "is not inside"),
        ([{"label": "sign", "x1": 0, "y1": 0, "x2": 9, "y2": 9}], "class_not_shown", "shows no car, but background, sign"),
        ([{"label": "car"}], "bad_styles", "boxes.0.x1: Field required"),
        (BOXES * 1001, "bad_styles", "at most 1000"),
    ):
        refused(server.json({"car": {"exemplar": text(encoded(OTHER)), "boxes": boxes}}), 422, code, says)


def test_the_card_and_the_documentation_tell(server: Server) -> None:
    card = httpx.get(f"{server.url}/v1/model", trust_env=False).json()
    assert card["style_classes"] == ITEMS and card["limits"]["max_exemplars"] == MAX_EXEMPLARS
    assert list(card["style_classes"]) == list(STREETS.classes)
    body = httpx.get(f"{server.url}/openapi.json", trust_env=False).json()
    content = body["paths"]["/v1/translate"]["post"]["requestBody"]["content"]
    schema = content["application/json"]["schema"]
    assert "$ref" not in json.dumps(content)  # they would point nowhere
    kinds = [set(kind["properties"]) for kind in schema["properties"]["styles"]["additionalProperties"]["oneOf"]]
    assert kinds == [{"stored"}, {"random"}, {"item"}, {"exemplar", "boxes"}, {"mix", "amount"}]
    assert "style.NAME" in content["multipart/form-data"]["schema"]["properties"]["styles"]["description"]
    example = content["application/json"]["examples"]["styles class by class"]["value"]
    picture = text(encoded(OTHER))
    everything = [{"label": "car", "x1": 0, "y1": 0, "x2": 9, "y2": 9}]
    sent = {
        name: {"exemplar": picture, "boxes": everything} if "exemplar" in style else style
        for name, style in example["styles"].items()
    }
    assert server.json(sent).status_code == 200  # the example is one that works
    assert server.form(content["multipart/form-data"]["schema"]["properties"]["styles"]["examples"][0]).status_code == 200


@needs_chromium
def test_the_page_translates_class_by_class(server: Server, tmp_path: Path) -> None:
    """The page's other tests are in test_page.py, which are slow; this one shares the endpoint."""
    picture = tmp_path / "street.png"
    picture.write_bytes(encoded(painted()))
    with chromium() as browser, visiting(browser, server.url) as page:
        give(page, picture)
        plain = downloaded(page)
        car = page.get_by_role("group", name="Style of car").get_by_label("car")
        answer = translated(page, lambda: car.select_option("item"))
        assert far(downloaded(page), expected(server.pipeline, painted(), {"car": Item(item=0)}, None)) <= 1
        assert far(downloaded(page), plain) > 1 and answer["seeds"] is None
