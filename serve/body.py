"""The body of a request, read no further than the limits allow: JSON, or a form's text fields and files."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from serve.errors import ApiError
from serve.pictures import PictureError, check_bytes
from serve.schema import Limits, RetrieveForm, TranslateForm, explain

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")
SLACK = 64 * 2**10  # bytes of a body beside the pictures: fields, boundaries, headers
FIELD_BYTES = 16 * 2**10  # no text field of a form needs more; `styles` is the longest
KNOWN = TranslateForm.model_fields.keys() | RetrieveForm.model_fields.keys()
FORM, JSON = "multipart/form-data", "application/json"


def kind_of(request: Request) -> str:
    """FORM or JSON. Raises ApiError (415) for another content type."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in (FORM, JSON):
        return kind
    message = f"the content type is {kind[:80]!r}" if kind else "the request has no content type"
    hint = "send multipart/form-data (field `image`) or application/json (field `image`, base64); see /docs"
    raise ApiError(415, "unsupported_content_type", message, hint)


async def read_json(request: Request, model: type[M], limits: Limits) -> M:
    """The JSON body as `model`. Raises ApiError: 413 as `bounded`, 422 for what is wrong with it."""
    encoded = (limits.max_bytes + 2) // 3 * 4  # base64: four characters for three bytes
    body = await bounded(request, encoded + encoded // 64 + SLACK).body()  # ... and a line break now and then
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise explain(error, model) from None


@dataclass(frozen=True)
class Form:
    """The parts of a form by name, each there once: those with text, and those with a file's bytes."""

    texts: Mapping[str, str]
    files: Mapping[str, bytes]

    def picture(self) -> bytes:
        """The file in the field `image`. Raises ApiError where there is none."""
        if "image" in self.files:
            return self.files["image"]
        if "image" in self.texts:
            raise ApiError(422, "bad_image", "the field `image` is text, not a file", "with curl: -F image=@picture.png")
        raise ApiError(422, "missing_image", "the form has no field `image`", "send the picture as a file in the field `image`")

    def fields(self, model: type[M], known: type[BaseModel], *beside: str) -> M:
        """The text fields as `model`, but for those named in `beside`. Raises ApiError; `known` is what all fields are."""
        own = {name: text for name, text in self.texts.items() if text and name not in ("image", *beside)}
        try:
            return model.model_validate_strings(own)
        except ValidationError as error:
            raise explain(error, known) from None

    def json(self, name: str, of: TypeAdapter[T], empty: str, known: type[BaseModel]) -> T:
        """The JSON in a text field; `empty` is what it is where it is not given. Raises ApiError."""
        try:
            return of.validate_json(self.texts.get(name) or empty, strict=True)
        except ValidationError as error:
            raise explain(error, known, name) from None


async def read_form(request: Request, limits: Limits, pictures: int) -> Form:
    """The form, with at most so many files. Raises ApiError: 413 as `bounded`, 422 for what is wrong with it."""
    body = bounded(request, limits.max_bytes + SLACK)
    try:
        # One file more than there may be, so that it is us who say what is wrong.
        form = await body.form(max_files=pictures + 1, max_fields=24, max_part_size=FIELD_BYTES)
    except HTTPException as error:  # what the parser found wrong with the multipart syntax
        raise ApiError(422, "bad_form", f"the form cannot be read: {error.detail}", "see /docs for an example") from None
    try:
        repeated = sorted({name for name in form if len(form.getlist(name)) > 1})
        if repeated:
            code = (
                f"bad_{repeated[0]}" if repeated[0] in KNOWN else "bad_styles" if repeated[0][:6] == "style." else "unknown_field"
            )
            raise ApiError(422, code, f"the field {repeated[0][:80]!r} is given more than once", "give each field once")
        files = {name: await value.read() for name, value in form.items() if isinstance(value, UploadFile)}
        return Form({name: value for name, value in form.items() if isinstance(value, str)}, files)
    finally:
        await form.close()


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
