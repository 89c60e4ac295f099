"""The body of a translate request, read no further than the limits allow."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from recollect.config import did_you_mean
from recollect.styles import Exemplar, Mix, Simple, Style, parts
from serve.errors import ApiError
from serve.pictures import PictureError, check_bytes
from serve.schema import STYLES, Limits, Options, TranslateForm, TranslateRequest, explain, explain_style

SLACK = 64 * 2**10  # bytes of a body beside the picture: fields, boundaries, headers
FIELD_BYTES = 16 * 2**10  # no text field of a form needs more; `styles` is the longest
EXEMPLAR = "style."  # how the parts of a form begin that are pictures for `styles`


@dataclass(frozen=True)
class Asked:
    """A request as understood: what is wanted, of which bytes, and whether the answer is to be a picture or JSON.

    An exemplar among `styles` is a name in `exemplars`, which has the bytes.
    """

    options: Options
    content: bytes
    as_json: bool
    styles: Mapping[str, Style] = field(default_factory=dict)
    exemplars: Mapping[str, bytes] = field(default_factory=dict)


async def read(request: Request, limits: Limits) -> Asked:
    """Read and check a request of either content type.

    Raises:
        ApiError: 413 before the body is read (Content-Length) or as soon as it grows too long, 415 for another content type,
            422 for fields that are missing, unknown or wrong.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _form(bounded(request, limits.max_bytes + SLACK), limits)
    if kind == "application/json":
        encoded = (limits.max_bytes + 2) // 3 * 4  # base64: four characters for three bytes
        body = await bounded(request, encoded + encoded // 64 + SLACK).body()  # ... and a line break now and then
        asked = _parse(body)
        return Asked(asked, unbase64(asked.image, limits), True, *_named(asked.styles, limits))
    message = f"the content type is {kind!r}" if kind else "the request has no content type"
    hint = "send multipart/form-data (field `image`) or application/json (field `image`, base64); see /docs"
    raise ApiError(415, "unsupported_content_type", message, hint)


def bounded(request: Request, limit: int) -> Request:
    """The same request, whose body raises ApiError (413) as soon as it is known to be more than `limit` bytes."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_long(limit)
    seen, receive = 0, request.receive

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise _too_long(limit)
        return message

    return Request(request.scope, counted)


def _too_long(limit: int) -> ApiError:
    message = f"the request's body is more than {limit:,} bytes"
    return ApiError(
        413, "too_many_bytes", message, "send smaller pictures; GET /v1/model tells the limits", {"Connection": "close"}
    )


async def _form(request: Request, limits: Limits) -> Asked:
    try:
        # One file more than there may be, so that it is us who say what is wrong.
        form = await request.form(max_files=limits.max_exemplars + 2, max_fields=16, max_part_size=FIELD_BYTES)
    except HTTPException as error:  # what the parser found wrong with the multipart syntax
        raise ApiError(422, "bad_form", f"the form cannot be read: {error.detail}", "see /docs for an example") from None
    try:
        options, styles = _options(form), _styles(form, limits)
        as_json = options.samples > 1 or options.memory_map  # one picture cannot hold these
        exemplars = {name: await file.read() for name, file in _exemplars(form).items()}
        return Asked(options, await _picture(form), as_json, styles, exemplars)
    finally:
        await form.close()


def _options(form: FormData) -> Options:
    repeated = sorted({name for name in form if len(form.getlist(name)) > 1})
    if repeated:
        code = "bad_styles" if repeated[0].startswith(EXEMPLAR) else f"bad_{repeated[0]}"
        raise ApiError(422, code, f"the field {repeated[0]!r} is given more than once", "give each field once")
    own = {name: value for name, value in form.items() if name not in ("image", "styles") and not name.startswith(EXEMPLAR)}
    files = [name for name, value in form.items() if isinstance(value, UploadFile) and (name in own or name == "styles")]
    if files:
        hint = f"send the picture in the field `image`, an exemplar in `{EXEMPLAR}CLASS`"
        raise ApiError(422, "unknown_field", f"a file is in the field {files[0]!r}", hint)
    return _from_strings({name: value for name, value in own.items() if isinstance(value, str) and value})


def _from_strings(texts: Mapping[str, str]) -> Options:
    try:
        return Options.model_validate_strings(dict(texts))
    except ValidationError as error:
        raise explain(error, TranslateForm) from None


def _exemplars(form: FormData) -> dict[str, UploadFile]:
    return {name: file for name, file in form.items() if name.startswith(EXEMPLAR) and isinstance(file, UploadFile)}


def _styles(form: FormData, limits: Limits) -> dict[str, Style]:
    """The styles of the field `styles`, and those of classes after which a file's part is called."""
    files, text = _exemplars(form), form.get("styles") or "{}"
    for name, value in form.items():
        if name.startswith(EXEMPLAR) and isinstance(value, str):
            hint = f"with curl: -F {name}=@picture.png; every other style goes into the field `styles`"
            raise ApiError(422, "bad_styles", f"the field {name!r} is text, not a file", hint)
    _check_count(len(files), limits)
    try:
        styles = dict(STYLES.validate_json(str(text), strict=True))
    except ValidationError as error:
        raise explain_style(error) from None
    named = {part.exemplar for style in styles.values() for part in parts(style) if isinstance(part, Exemplar)}
    for name in sorted(named - files.keys()):
        message = f"styles: there is no file in a part {name[:40]!r}{did_you_mean(name[:40], files, '; the files are in: ')}"
        hint = f"in a form, an exemplar is the name of a file's part, which begins with `{EXEMPLAR}`"
        raise ApiError(422, "bad_styles", message, hint)
    for name in sorted(files.keys() - named):
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


async def _picture(form: FormData) -> bytes:
    image = form.get("image")
    if image is None:
        raise ApiError(422, "missing_image", "the form has no field `image`", "send the picture as a file in the field `image`")
    if isinstance(image, str):
        raise ApiError(422, "bad_image", "the field `image` is text, not a file", "with curl: -F image=@picture.png")
    return await image.read()


def _parse(body: bytes) -> TranslateRequest:
    try:
        return TranslateRequest.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise explain(error, TranslateRequest) from None


def unbase64(text: str, limits: Limits, place: str = "image") -> bytes:
    """The bytes behind base64 text, with or without a `data:` URL around it. Raises PictureError (422, or 413)."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    text = "".join(text.split())
    check_bytes(len(text) // 4 * 3 - 2, limits)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        hint = "send the file's bytes as standard base64 (RFC 4648, section 4)"
        raise PictureError("bad_base64", f"the field `{place}` is no base64: {error}", hint) from None
