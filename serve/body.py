"""The body of a translate request, read no further than the limits allow."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from serve.errors import ApiError
from serve.pictures import PictureError, check_bytes
from serve.schema import Limits, Options, TranslateRequest, explain

SLACK = 64 * 2**10  # bytes of a body beside the picture: fields, boundaries, headers
FIELD_BYTES = 1024  # no text field of a form needs more


@dataclass(frozen=True)
class Asked:
    """A request as understood: what is wanted, of which bytes, and whether the answer is to be a picture or JSON."""

    options: Options
    content: bytes
    as_json: bool


async def read(request: Request, limits: Limits) -> Asked:
    """Read and check a request of either content type.

    Raises:
        ApiError: 413 before the body is read (Content-Length) or as soon as it grows too long, 415 for another content type,
            422 for fields that are missing, unknown or wrong.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        options, content = await _form(bounded(request, limits.max_bytes + SLACK))
        as_json = options.samples > 1 or options.memory_map  # one picture cannot hold these
        return Asked(options, content, as_json)
    if kind == "application/json":
        encoded = (limits.max_bytes + 2) // 3 * 4  # base64: four characters for three bytes
        body = await bounded(request, encoded + encoded // 64 + SLACK).body()  # ... and a line break now and then
        asked = _parse(body)
        return Asked(asked, unbase64(asked.image, limits), True)
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
        413, "too_many_bytes", message, "send a smaller picture; GET /v1/model tells the limits", {"Connection": "close"}
    )


async def _form(request: Request) -> tuple[Options, bytes]:
    try:
        form = await request.form(max_files=1, max_fields=16, max_part_size=FIELD_BYTES)
    except HTTPException as error:  # what the parser found wrong with the multipart syntax
        raise ApiError(422, "bad_form", f"the form cannot be read: {error.detail}", "see /docs for an example") from None
    try:
        return _options(form), await _picture(form)
    finally:
        await form.close()


def _options(form: FormData) -> Options:
    repeated = sorted({name for name in form if len(form.getlist(name)) > 1})
    if repeated:
        raise ApiError(422, f"bad_{repeated[0]}", f"the field {repeated[0]!r} is given more than once", "give each field once")
    texts = {name: value for name, value in form.items() if isinstance(value, str) and name != "image" and value}
    files = [name for name, value in form.items() if isinstance(value, UploadFile) and name != "image"]
    if files:
        raise ApiError(422, "unknown_field", f"the file is in the field {files[0]!r}", "send the picture in the field `image`")
    return _from_strings(texts)


def _from_strings(texts: Mapping[str, str]) -> Options:
    try:
        return Options.model_validate_strings(dict(texts))
    except ValidationError as error:
        raise explain(error, Options) from None


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


def unbase64(text: str, limits: Limits) -> bytes:
    """The bytes behind base64 text, with or without a `data:` URL around it. Raises PictureError (422, or 413)."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    text = "".join(text.split())
    check_bytes(len(text) // 4 * 3 - 2, limits)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        hint = "send the file's bytes as standard base64 (RFC 4648, section 4)"
        raise PictureError("bad_base64", f"the field `image` is no base64: {error}", hint) from None
