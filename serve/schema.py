"""What goes over the wire: requests, answers, limits, errors. FastAPI's documentation is made from these."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from recollect.config import did_you_mean
from recollect.styles import MAX_SEED, Style
from serve.errors import ApiError

MAX_SAMPLES = 8
MAX_NAME = 200  # characters of a domain's or class's name
Format = Literal["png", "jpeg", "webp"]


class Limits(BaseModel):
    """What a picture may be at most and at least. Pixels are height times width; bytes are of the encoded file, and of all
    files of one request together."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: Annotated[int, Field(ge=1)] = 16 * 2**20
    max_pixels: Annotated[int, Field(ge=16 * 16)] = 2048 * 2048
    min_side: Annotated[int, Field(ge=1)] = 16
    max_aspect: Annotated[float, Field(ge=1)] = 16.0  # long side over short side
    max_exemplars: Annotated[int, Field(ge=0)] = 4  # different pictures that the styles of one request may name


class Options(BaseModel):
    """What is wanted of a translation, whichever way it is asked for."""

    model_config = ConfigDict(extra="forbid")

    target: Annotated[
        str,
        Field(
            min_length=1,
            max_length=MAX_NAME,
            description="the domain to translate to; `/v1/model` lists them",
            examples=["night"],
        ),
    ]
    source: Annotated[
        str | None,
        Field(
            max_length=MAX_NAME, description="the domain the picture is from; default: the first domain that is not the target"
        ),
    ] = None
    samples: Annotated[
        int, Field(ge=1, le=MAX_SAMPLES, description="how many translations, each in a random style of its own")
    ] = 1
    seed: Annotated[
        int | None,
        Field(
            ge=0,
            le=MAX_SEED,
            description="draws the random style; sample i uses seed + i. The same seed, picture and model give the same answer",
        ),
    ] = None
    random_style: Annotated[
        bool | None,
        Field(
            description="default: random if `seed` is given or `samples` is above 1, otherwise the method's own deterministic "
            "translation. `true` without a seed draws one and returns it"
        ),
    ] = None
    format: Annotated[Format, Field(description="how the answer is encoded")] = "png"
    memory_map: Annotated[
        bool, Field(description="also return which memory item each cell of the picture reads, where the method has a memory")
    ] = False

    @model_validator(mode="after")
    def _styles_differ(self) -> Self:
        if self.random_style is False and (self.seed is not None or self.samples > 1):
            given = "seed" if self.seed is not None else "samples"
            raise PydanticCustomError(
                "contradiction",
                "random_style is false, but {given} asks for random styles; leave one of them out",
                {"given": given},
            )
        return self

    def seeds(self) -> list[int] | None:
        """One seed a sample, drawn if none is given; None for the deterministic translation."""
        if self.seed is None and self.samples == 1 and not self.random_style:
            return None
        first = secrets.randbelow(MAX_SEED + 1) if self.seed is None else self.seed
        return [first + sample for sample in range(self.samples)]


MAX_STYLES = 256  # classes that one request may name
Styles = Annotated[dict[Annotated[str, Field(max_length=MAX_NAME)], Style], Field(max_length=MAX_STYLES)]
STYLES = TypeAdapter(Styles)
STYLES_HELP = (
    "the style of single classes, over whatever the others have (`/v1/model` lists the classes and their items): what training "
    "left, a random draw, one of the class's items, the class in another picture of the target domain, or a mix of two of these"
)
STYLES_EXAMPLE: dict[str, Any] = {
    "car": {"random": 7},
    "sign": {"item": 1},
    "person": {"mix": [{"stored": True}, {"random": 3}], "amount": 0.3},
}


class TranslateRequest(Options):
    """A translation asked for in JSON."""

    image: Annotated[
        str,
        Field(description="the picture (PNG, JPEG, WebP or BMP), base64; a `data:` URL is fine too", examples=["iVBORw0KGgo..."]),
    ]
    styles: Annotated[Styles, Field(description=STYLES_HELP, examples=[STYLES_EXAMPLE])] = {}


class TranslateForm(Options):
    """A translation asked for by a form. Without a domain of its own for files, OpenAPI calls the picture binary."""

    image: Annotated[str, Field(description="the picture: PNG, JPEG, WebP or BMP", json_schema_extra={"format": "binary"})]
    styles: Annotated[
        str,
        Field(
            description=f"JSON: {STYLES_HELP}. A picture is a file in a part `style.NAME`: the exemplar of the class NAME, or of "
            'those that name the part, as in {"car": {"exemplar": "style.NAME", "boxes": [...]}}',
            examples=[json.dumps(STYLES_EXAMPLE)],
        ),
    ] = ""


class MemoryMap(BaseModel):
    """Which memory item each cell of the picture reads: an indexed PNG, one pixel a cell, its value the item's index."""

    image: Annotated[str, Field(description="PNG, base64; palette colours are only for the eye")]
    cell: Annotated[int, Field(description="pixels of the picture per cell, along each side")]


class Extras(BaseModel):
    """What the method tells beside the pictures."""

    memory_map: MemoryMap | None = None


class TranslateAnswer(BaseModel):
    """Translations with everything needed to get them again."""

    images: Annotated[list[str], Field(description="one base64 picture a sample")]
    seeds: Annotated[
        list[int] | None, Field(description="one a sample; null: the deterministic translation, no seed is involved")
    ]
    model: Annotated[str, Field(description="the name of the model")]
    digest: Annotated[str, Field(description="SHA-256 of the bundle that answered")]
    width: int
    height: int
    format: Format
    extras: Extras


class ModelCard(BaseModel):
    """What this server translates with."""

    name: str
    digest: Annotated[str, Field(description="SHA-256 over the bundle's files")]
    method: str
    domains: list[str]
    classes: list[str]
    size: Annotated[int, Field(description="pixels of the square pictures it was trained on; others work, those work best")]
    random_styles: Annotated[bool, Field(description="whether the method takes `seed`, `samples` and `random_style`")]
    style_classes: Annotated[
        dict[str, int],
        Field(description="the classes that `styles` can name, and the items of each; empty where the method has no memory"),
    ]
    extras: Annotated[list[str], Field(description="what it tells beside the pictures")]
    device: str
    recollect: Annotated[str, Field(description="the version of this software")]
    limits: Limits
    run: Annotated[dict[str, Any], Field(description="everything that determined its training")]


class Error(BaseModel):
    """What was wrong, and what would have worked."""

    code: Annotated[str, Field(description="a stable name for programs", examples=["unknown_domain"])]
    message: Annotated[str, Field(examples=["there is no domain 'nigth'; did you mean 'night'?; known: night, sunny"])]
    hint: Annotated[str, Field(examples=["GET /v1/model lists the domains"])]


class ErrorAnswer(BaseModel):
    """The one form of every error."""

    error: Error


def explain(error: ValidationError, model: type[BaseModel]) -> ApiError:
    """A 422 from what pydantic found wrong with a request: `missing_target`, `bad_seed`, `unknown_field`, ..."""
    first = error.errors(include_url=False)[0]
    field = str(first["loc"][0]) if first["loc"] else ""
    if field == "styles" and len(first["loc"]) > 1:
        return explain_style(error)
    if first["type"] == "json_invalid":
        return ApiError(422, "invalid_json", f"the body is no JSON: {first['msg']}", "see /docs for an example")
    if first["type"] == "extra_forbidden":
        return ApiError(
            422, "unknown_field", f"there is no field {field!r}{did_you_mean(field, model.model_fields)}", "see /docs"
        )
    if first["type"] == "contradiction":
        return ApiError(422, "contradiction", first["msg"], "random_style: false goes with one sample and no seed")
    if not field:
        return ApiError(422, "invalid_request", first["msg"], "send a JSON object; see /docs for an example")
    code = "missing" if first["type"] == "missing" else "bad"
    others = _others(error.errors(include_url=False)[1:])
    return ApiError(422, f"{code}_{field}", f"{field}: {first['msg']}{others}", _hint(field, model))


def explain_style(error: ValidationError) -> ApiError:
    """A 422 from what pydantic found wrong with `styles`: `bad_styles`, with the class and what would have worked."""
    first = error.errors(include_url=False)[0]
    where = [str(part) for part in first["loc"] if part != "styles"]
    # The place names the style's key twice, once as the kind of style: car.random.random.
    place = ".".join(part for index, part in enumerate(where) if index == 0 or part != where[index - 1])
    if first["type"] == "json_invalid":
        place = "the field is no JSON"
    message = f"styles: {place}: {first['msg']}" if place else f"styles: {first['msg']}"
    return ApiError(422, "bad_styles", message, f"for instance {json.dumps(STYLES_EXAMPLE)}; see /docs")


def _others(errors: Sequence[Any]) -> str:
    told = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in errors]
    return f" (also: {'; '.join(told)})" if told else ""


def _hint(field: str, model: type[BaseModel]) -> str:
    known = model.model_fields.get(field)
    return known.description or "" if known else ""
