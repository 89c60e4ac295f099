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
MAX_NAME = 200  # characters of the name of a domain, class, attribute or model
MAX_ATTRIBUTES = 256  # that one request may name
MAX_SIDE = 65_536  # pixels; what a picture may have at most is the server's limits
MAX_FOUND = 100  # pictures that one search returns
MAX_IDS = 10_000  # of one change to the index
MAX_ID = 1024  # characters of a picture's id
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


Model = Annotated[
    str,
    Field(
        max_length=MAX_NAME,
        description="which of the server's models; empty: the header `X-Recollect-Model`, or the first. `/v1/model` lists them",
    ),
]
Attributes = Annotated[
    dict[Annotated[str, Field(max_length=MAX_NAME)], Annotated[float, Field(ge=0, le=1)]], Field(max_length=MAX_ATTRIBUTES)
]
ATTRIBUTES = TypeAdapter(Attributes)
ATTRIBUTES_HELP = (
    "what the picture shall have, from 0 (not) to 1, where the model translates between attributes; the others stay what the "
    "model sees in it. `/v1/domains` lists them"
)
ATTRIBUTES_EXAMPLE: dict[str, float] = {"Blond_Hair": 1, "Male": 0}
Where = Annotated[dict[Annotated[str, Field(max_length=MAX_NAME)], Literal[0, 1]], Field(max_length=MAX_ATTRIBUTES)]
WHERE = TypeAdapter(Where)


class Options(BaseModel):
    """What is wanted of a translation, whichever way it is asked for."""

    model_config = ConfigDict(extra="forbid")

    model: Model = ""
    target: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=MAX_NAME,
            description="the domain to translate to; `/v1/domains` lists them. Not needed with one domain, or `attributes`",
            examples=["night"],
        ),
    ] = None
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
    strength: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="how much of the retrieved neighbours is drawn with, from 0 (the picture's own content) to 1 (all, the "
            "default), where `guides` of `/v1/model` has it",
        ),
    ] = None
    format: Annotated[Format, Field(description="how the answer is encoded")] = "png"
    size: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_SIDE,
            description="pixels of the answer's longer side: the picture is resized to it first, in its aspect; default: as sent",
        ),
    ] = None
    memory_map: Annotated[
        bool, Field(description="also return which memory item each cell of the picture reads, where the method has a memory")
    ] = False
    attention_mask: Annotated[
        bool, Field(description="also return where the picture was drawn anew, where the method says so")
    ] = False
    neighbours: Annotated[
        Literal["none", "ids", "thumbnails"],
        Field(description="also return which pictures were retrieved to draw with, by id, or with thumbnails"),
    ] = "none"

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

    def extras(self) -> frozenset[str]:
        """The names of what is wanted beside the pictures."""
        found = {name for name in ("memory_map", "attention_mask") if getattr(self, name)}
        return frozenset(
            found | {"none": set(), "ids": {"neighbours"}, "thumbnails": {"neighbours", "thumbnails"}}[self.neighbours]
        )

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


IMAGE_HELP = "the picture (PNG, JPEG, WebP or BMP), base64; a `data:` URL is fine too"
EXEMPLAR_HELP = "a picture of the target domain whose style the whole translation takes, where `guides` of `/v1/model` has it"


class TranslateRequest(Options):
    """A translation asked for in JSON."""

    image: Annotated[str, Field(description=IMAGE_HELP, examples=["iVBORw0KGgo..."])]
    exemplar: Annotated[str | None, Field(description=f"{EXEMPLAR_HELP}; base64")] = None
    attributes: Annotated[Attributes, Field(description=ATTRIBUTES_HELP, examples=[ATTRIBUTES_EXAMPLE])] = {}
    styles: Annotated[Styles, Field(description=STYLES_HELP, examples=[STYLES_EXAMPLE])] = {}


class TranslateForm(Options):
    """A translation asked for by a form. Without a domain of its own for files, OpenAPI calls the picture binary."""

    image: Annotated[str, Field(description="the picture: PNG, JPEG, WebP or BMP", json_schema_extra={"format": "binary"})]
    exemplar: Annotated[str | None, Field(description=EXEMPLAR_HELP, json_schema_extra={"format": "binary"})] = None
    attributes: Annotated[str, Field(description=f"JSON: {ATTRIBUTES_HELP}", examples=[json.dumps(ATTRIBUTES_EXAMPLE)])] = ""
    styles: Annotated[
        str,
        Field(
            description=f"JSON: {STYLES_HELP}. A picture is a file in a part `style.NAME`: the exemplar of the class NAME, or of "
            'those that name the part, as in {"car": {"exemplar": "style.NAME", "boxes": [...]}}',
            examples=[json.dumps(STYLES_EXAMPLE)],
        ),
    ] = ""


class SearchOptions(BaseModel):
    """What is looked for in the index, whichever way it is asked for."""

    model_config = ConfigDict(extra="forbid")

    model: Model = ""
    k: Annotated[int, Field(ge=1, le=MAX_FOUND, description="how many, nearest first")] = 5
    thumbnails: Annotated[bool, Field(description="also return the pictures found, as the model sees them")] = False
    target: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=MAX_NAME,
            description="look for pictures alike in content that are of this domain, where styles are of domains",
        ),
    ] = None


WHERE_HELP = "attribute -> 0 or 1: only pictures that are known to have these; `/v1/index` lists the attributes"


class RetrieveRequest(SearchOptions):
    """A search asked for in JSON."""

    image: Annotated[str, Field(description=IMAGE_HELP, examples=["iVBORw0KGgo..."])]
    attributes: Annotated[
        Attributes,
        Field(
            description="look for pictures alike in content with these attributes instead of those that the picture has",
            examples=[ATTRIBUTES_EXAMPLE],
        ),
    ] = {}
    where: Annotated[Where, Field(description=WHERE_HELP, examples=[{"Male": 1}])] = {}
    exclude: Annotated[
        list[Annotated[str, Field(max_length=MAX_ID)]],
        Field(max_length=MAX_FOUND, description="ids that are not to be found, for instance the picture's own"),
    ] = []


class RetrieveForm(SearchOptions):
    """A search asked for by a form; `attributes`, `where` and `exclude` are JSON in text fields."""

    image: Annotated[str, Field(description="the picture: PNG, JPEG, WebP or BMP", json_schema_extra={"format": "binary"})]
    attributes: Annotated[
        str, Field(description="JSON, as in the request by JSON", examples=[json.dumps(ATTRIBUTES_EXAMPLE)])
    ] = ""
    where: Annotated[str, Field(description=f"JSON: {WHERE_HELP}", examples=['{"Male": 1}'])] = ""
    exclude: Annotated[str, Field(description="JSON: a list of ids", examples=['["train-000017"]'])] = ""


class IndexChange(BaseModel):
    """Pictures of the index's store to take in or out, by id."""

    model_config = ConfigDict(extra="forbid")

    ids: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=MAX_ID)]],
        Field(min_length=1, max_length=MAX_IDS, examples=[["train-000017-blond-male-young"]]),
    ]


class Error(BaseModel):
    """What was wrong, and what would have worked."""

    code: Annotated[str, Field(description="a stable name for programs", examples=["unknown_domain"])]
    message: Annotated[str, Field(examples=["there is no domain 'nigth'; did you mean 'night'?; known: night, sunny"])]
    hint: Annotated[str, Field(examples=["GET /v1/model lists the domains"])]


class ErrorAnswer(BaseModel):
    """The one form of every error."""

    error: Error


def explain(error: ValidationError, model: type[BaseModel], inside: str = "") -> ApiError:
    """A 422 from what pydantic found wrong with a request: `missing_target`, `bad_seed`, `unknown_field`, ...

    `inside` is the field whose text was read as JSON, where it is that.
    """
    first = error.errors(include_url=False)[0]
    field = inside or (str(first["loc"][0]) if first["loc"] else "")
    if field == "styles" and len(first["loc"]) > 1:
        return explain_style(error)
    if field in JSON_FIELDS and first["type"] not in ("missing", "extra_forbidden"):
        where = ".".join(str(part)[:MAX_NAME] for part in first["loc"] if part != field)
        told = "the field is no JSON" if first["type"] == "json_invalid" else ": ".join(filter(None, [where, first["msg"]]))
        return ApiError(422, f"bad_{field}", f"{field}: {told}", _hint(field, model))
    if first["type"] == "json_invalid":
        return ApiError(422, "invalid_json", f"the body is no JSON: {first['msg']}", "see /docs for an example")
    if first["type"] == "extra_forbidden":
        return ApiError(
            422, "unknown_field", f"there is no field {field[:80]!r}{did_you_mean(field[:80], model.model_fields)}", "see /docs"
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


JSON_FIELDS = ("attributes", "where", "exclude", "ids")


def _others(errors: Sequence[Any]) -> str:
    told = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in errors]
    return f" (also: {'; '.join(told)})" if told else ""


def _hint(field: str, model: type[BaseModel]) -> str:
    known = model.model_fields.get(field)
    return known.description or "" if known else ""
