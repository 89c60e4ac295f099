"""POST /v1/translate."""

from __future__ import annotations

import asyncio
from typing import Any

import torch
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from serve import asked
from serve.answers import Extras, MemoryMap, TranslateAnswer
from serve.asked import Asked
from serve.front import ERRORS, SMALL, At
from serve.metrics import Meter
from serve.openapi import picture_answer, request_body
from serve.pictures import PictureError, base64_png, decode, encode, encode_map, resized, to_base64
from serve.routes.told import neighbours_told
from serve.schema import ATTRIBUTES_EXAMPLE, STYLES_EXAMPLE, Limits, Options, TranslateForm, TranslateRequest
from serve.work import Answer, ClassStyles, Pixels, Wish

router = APIRouter(tags=["pictures"])
IMAGE = "iVBORw0KGgo..."
EXAMPLES = {
    "random styles": {"image": IMAGE, "target": "night", "samples": 2, "seed": 7, "format": "webp"},
    "the style of another picture": {"image": IMAGE, "target": "night", "exemplar": IMAGE, "size": 512},
    "styles class by class": {
        "image": IMAGE,
        "target": "night",
        "styles": {**STYLES_EXAMPLE, "background": {"exemplar": IMAGE}},
        "memory_map": True,
    },
    "attributes": {
        "image": IMAGE,
        "attributes": ATTRIBUTES_EXAMPLE,
        "strength": 0.5,
        "neighbours": "thumbnails",
        "attention_mask": True,
    },
}


@router.post(
    "/v1/translate",
    summary="Translate a picture",
    response_model=None,
    responses={200: picture_answer(), **ERRORS},
    openapi_extra=request_body(TranslateForm, TranslateRequest, EXAMPLES),
)
async def translate(request: Request, front: At) -> Response:
    """Translate a picture to another domain, or to other attributes. See the schemas for every field."""
    with front.meter.stage("read"):
        wanted = await asked.translation(request, front.limits)
    picture, wish = await asyncio.to_thread(_wish, wanted, front.limits, front.meter)  # the loop reads other requests
    small = wish.bytes(picture) < SMALL
    answer = await front.asked("translate", wanted.model, picture, wish, model=wanted.model, small=small)
    make = _json if wanted.as_json else _picture
    return await asyncio.to_thread(make, answer, wanted.options, wish.seeds, front.meter)


def _wish(wanted: Asked, limits: Limits, meter: Meter) -> tuple[Pixels, Wish]:
    """The picture, and what is wanted of it with all further pictures.

    Raises PictureError, which names the picture if it is one of several.
    """
    options, arrays = wanted.options, dict[str, Pixels]()
    further = {**wanted.exemplars, **({"exemplar": wanted.exemplar} if wanted.exemplar is not None else {})}
    with meter.stage("decode"):
        picture = resized(decode(wanted.content, limits), options.size, limits).numpy()
        for name, content in further.items():
            try:
                arrays[name] = decode(content, limits).numpy()
            except PictureError as error:
                raise PictureError(error.code, f"{name}: {error.message}", error.hint, error.status) from None
    exemplar = arrays.pop("exemplar", None)
    styles = ClassStyles(wanted.styles, arrays) if wanted.styles else None
    seeds = options.seeds()
    return picture, Wish(
        options.target,
        options.source,
        None if seeds is None else tuple(seeds),
        wanted.attributes,
        options.strength,
        exemplar,
        styles,
        options.extras(),
    )


def _picture(answer: Answer, options: Options, seeds: tuple[int, ...] | None, meter: Meter) -> Response:
    done = answer.done[0]
    headers = {
        "X-Recollect-Model": answer.name.encode("ascii", "backslashreplace").decode(),  # headers carry no other letters
        "X-Recollect-Digest": answer.digest,
        "X-Recollect-Batch": str(done.batch),
    }
    if seeds:
        headers["X-Recollect-Seed"] = str(seeds[0])
    with meter.stage("encode"):
        content = encode(torch.tensor(done.picture), options.format)
    return Response(content, media_type=f"image/{options.format}", headers=headers)


def _json(answer: Answer, options: Options, seeds: tuple[int, ...] | None, meter: Meter) -> Response:
    first = answer.done[0]
    with meter.stage("encode"):
        result = TranslateAnswer(
            images=[to_base64(encode(torch.tensor(done.picture), options.format)) for done in answer.done],
            seeds=None if seeds is None else list(seeds),
            model=answer.name,
            digest=answer.digest,
            width=first.picture.shape[2],
            height=first.picture.shape[1],
            format=options.format,
            index=answer.index,
            extras=_extras(answer, options),
        )
        headers = {"X-Recollect-Batch": str(max(done.batch for done in answer.done))}
        return JSONResponse(result.model_dump(), headers=headers)


def _extras(answer: Answer, options: Options) -> Extras:
    first, told = answer.done[0], dict[str, Any]()
    if options.memory_map and first.memory_map is not None:  # content decides it, so it is the same for every sample
        told["memory_map"] = MemoryMap(image=to_base64(encode_map(torch.tensor(first.memory_map))), cell=first.cell)
    if first.mask is not None:
        told["attention_masks"] = [base64_png(done.mask) for done in answer.done if done.mask is not None]
    if first.neighbours is not None:
        told["neighbours"] = [neighbours_told(done.neighbours or ()) for done in answer.done]
    return Extras(**told)
