"""What requests ask for, as understood: translations and searches, from a form or from JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request

from recollect.config import did_you_mean
from recollect.styles import Exemplar, Mix, Simple, Style, parts
from serve import body
from serve.body import Form, unbase64
from serve.errors import ApiError
from serve.schema import (
    ATTRIBUTES,
    STYLES,
    WHERE,
    Limits,
    Options,
    RetrieveForm,
    RetrieveRequest,
    SearchOptions,
    TranslateForm,
    TranslateRequest,
    explain_style,
)

EXEMPLAR = "style."  # how the parts of a form begin that are pictures for `styles`
HEADER = "x-recollect-model"
EXCLUDE = TypeAdapter(list[str])


@dataclass(frozen=True)
class Asked:
    """A translation: what is wanted, of which bytes, and whether the answer is to be a picture or JSON.

    An exemplar among `styles` is a name in `exemplars`, which has the bytes.
    """

    options: Options
    content: bytes
    as_json: bool
    styles: Mapping[str, Style] = field(default_factory=dict)
    exemplars: Mapping[str, bytes] = field(default_factory=dict)
    exemplar: bytes | None = None
    attributes: Mapping[str, float] = field(default_factory=dict)
    model: str = ""


@dataclass(frozen=True)
class Sought:
    """A search: of which picture, with which attributes, among which pictures."""

    options: SearchOptions
    content: bytes
    attributes: Mapping[str, float]
    where: Mapping[str, int]
    exclude: tuple[str, ...]
    model: str = ""


async def translation(request: Request, limits: Limits) -> Asked:
    """Read and check a translation of either content type.

    Raises:
        ApiError: 413 before the body is read (Content-Length) or as soon as it grows too long, 415 for another content type,
            422 for fields that are missing, unknown or wrong.
    """
    if body.kind_of(request) == body.JSON:
        asked = await body.read_json(request, TranslateRequest, limits)
        exemplar = unbase64(asked.exemplar, limits, "exemplar") if asked.exemplar is not None else None
        image, named = unbase64(asked.image, limits), _named(asked.styles, limits)
        return _checked(Asked(asked, image, True, *named, exemplar, asked.attributes, _model(asked.model, request)))
    form = await body.read_form(request, limits, limits.max_exemplars + 2)
    styled = {name for name in (*form.texts, *form.files) if name.startswith(EXEMPLAR)}
    options = form.fields(Options, TranslateForm, "styles", "attributes", *styled)
    _no_files(form, {"image", "exemplar", *styled})
    if "exemplar" in form.texts:
        raise ApiError(422, "bad_exemplar", "the field `exemplar` is text, not a file", "with curl: -F exemplar=@picture.png")
    attributes = form.json("attributes", ATTRIBUTES, "{}", TranslateForm)
    styles = _styles(form, limits)
    as_json = options.samples > 1 or bool(options.extras())  # one picture cannot hold these
    exemplars = {name: content for name, content in form.files.items() if name.startswith(EXEMPLAR)}
    found = (styles, exemplars, form.files.get("exemplar"), attributes, _model(options.model, request))
    return _checked(Asked(options, form.picture(), as_json, *found))


def _checked(asked: Asked) -> Asked:
    if asked.exemplar is not None and asked.options.seeds() is not None:
        message = "an exemplar gives the style, and seed, samples or random_style ask for random ones"
        raise ApiError(422, "contradiction", message, "leave one of them out")
    return asked


async def search(request: Request, limits: Limits) -> Sought:
    """Read and check a search of either content type. Raises ApiError as `translation`."""
    if body.kind_of(request) == body.JSON:
        asked = await body.read_json(request, RetrieveRequest, limits)
        image, model = unbase64(asked.image, limits), _model(asked.model, request)
        return Sought(asked, image, asked.attributes, asked.where, tuple(asked.exclude), model)
    form = await body.read_form(request, limits, 1)
    _no_files(form, {"image"})
    options = form.fields(SearchOptions, RetrieveForm, "attributes", "where", "exclude")
    attributes = form.json("attributes", ATTRIBUTES, "{}", RetrieveForm)
    where = form.json("where", WHERE, "{}", RetrieveForm)
    exclude = form.json("exclude", EXCLUDE, "[]", RetrieveForm)
    return Sought(options, form.picture(), attributes, where, tuple(exclude), _model(options.model, request))


def _model(named: str, request: Request) -> str:
    return named or request.headers.get(HEADER, "")


def _no_files(form: Form, known: set[str]) -> None:
    strange = sorted(form.files.keys() - known)
    if strange:
        hint = f"send the picture in the field `image`, an exemplar in `exemplar` or `{EXEMPLAR}CLASS`"
        raise ApiError(422, "unknown_field", f"a file is in the field {strange[0][:80]!r}", hint)


def _styles(form: Form, limits: Limits) -> dict[str, Style]:
    """The styles of the field `styles`, and those of classes after which a file's part is called."""
    files = [name for name in form.files if name.startswith(EXEMPLAR)]
    for name in form.texts:
        if name.startswith(EXEMPLAR):
            hint = f"with curl: -F {name}=@picture.png; every other style goes into the field `styles`"
            raise ApiError(422, "bad_styles", f"the field {name[:80]!r} is text, not a file", hint)
    _check_count(len(files), limits)
    try:
        styles = dict(STYLES.validate_json(form.texts.get("styles") or "{}", strict=True))
    except ValidationError as error:
        raise explain_style(error) from None
    named = {part.exemplar for style in styles.values() for part in parts(style) if isinstance(part, Exemplar)}
    for name in sorted(named - set(files)):
        message = f"styles: there is no file in a part {name[:40]!r}{did_you_mean(name[:40], files, '; the files are in: ')}"
        hint = f"in a form, an exemplar is the name of a file's part, which begins with `{EXEMPLAR}`"
        raise ApiError(422, "bad_styles", message, hint)
    for name in sorted(set(files) - named):
        label = name.removeprefix(EXEMPLAR)
        if label in styles:
            message = f"two styles for {label!r}: the file in {name!r}, and {str(styles[label])[:40]}"
            raise ApiError(422, "bad_styles", message, "leave one out, or name the file's part in `styles`")
        styles[label] = Exemplar(exemplar=name)
    return styles


def _named(styles: Mapping[str, Style], limits: Limits) -> tuple[dict[str, Style], dict[str, bytes]]:
    """Styles whose exemplars are names instead of base64, and the bytes behind the names; the same bytes get one name."""
    names: dict[bytes, str] = {}

    def named(style: Simple, place: str) -> Simple:
        if not isinstance(style, Exemplar):
            return style
        name = names.setdefault(unbase64(style.exemplar, limits, place), place)
        _check_count(len(names), limits)
        return Exemplar(exemplar=name, boxes=style.boxes)

    found: dict[str, Style] = {}
    for label, style in styles.items():
        if isinstance(style, Mix):
            first, second = (named(part, f"styles.{label}.mix.{index}") for index, part in enumerate(style.mix))
            found[label] = Mix(mix=(first, second), amount=style.amount)
        else:
            found[label] = named(style, f"styles.{label}")
    return found, {name: content for content, name in names.items()}


def _check_count(count: int, limits: Limits) -> None:
    if count > limits.max_exemplars:
        message = f"the styles name more than {limits.max_exemplars} different pictures"
        raise ApiError(422, "too_many_exemplars", message, "one picture can be the exemplar of several classes")
