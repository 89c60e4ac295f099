"""The HTTP ingress, and the builder that wires it to the translator.

No `from __future__ import annotations` here: Ray Serve finds the type of `build`'s argument by its annotation, and a string
would leave it an unchecked dictionary.
"""

import asyncio
import base64
import math
from typing import Annotated, Any, Literal

import ray.serve
import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field
from ray.serve.handle import DeploymentHandle

import recollect
from serve import body, errors, page
from serve.deployments import Answer, ClassStyles, Pixels, Refusal, Translator
from serve.errors import ApiError
from serve.pictures import PictureError, decode, encode, encode_map
from serve.schema import (
    STYLES_EXAMPLE,
    ErrorAnswer,
    Extras,
    Limits,
    MemoryMap,
    ModelCard,
    Options,
    TranslateAnswer,
    TranslateForm,
    TranslateRequest,
)

INGRESS_CPUS = 0.1  # what Ray sets aside for an ingress replica; it computes little beside decoding pictures
READY_S = 5.0  # a translator that does not say what it is within this time is not ready
ERRORS: dict[int | str, dict[str, Any]] = {
    413: {"model": ErrorAnswer, "description": "too many bytes or pixels; `GET /v1/model` tells the limits"},
    415: {"model": ErrorAnswer, "description": "neither multipart/form-data nor application/json"},
    422: {"model": ErrorAnswer, "description": "no acceptable picture, an unknown domain, or a wrong field"},
    500: {"model": ErrorAnswer, "description": "a fault of the server"},
    503: {"model": ErrorAnswer, "description": "the queue is full; try again after `Retry-After` seconds"},
}
DESCRIPTION = """Translates pictures between the domains of one model, guided by what the model remembers.

`POST /v1/translate` takes a picture as a form (and answers with a picture) or as JSON (and answers with JSON). The answer has
the size of the picture sent. Without a seed, one sample is the model's deterministic translation; with a seed, or with several
samples, each sample has a random style that its seed determines, whatever else the server is computing at that moment. Where the
model has a memory, `styles` chooses the style of single classes: from another picture, a random draw, an item, or between two.
"""
api = FastAPI(title="Recollect", version=recollect.__version__, description=DESCRIPTION, redoc_url=None)
errors.install(api)
page.install(api)


def _translate_docs() -> dict[str, Any]:
    """The request body of /v1/translate for OpenAPI; by hand, because one path takes two content types."""
    plain = {"image": "iVBORw0KGgo...", "target": "night", "samples": 2, "seed": 7, "format": "webp"}
    styles = {**STYLES_EXAMPLE, "background": {"exemplar": "iVBORw0KGgo..."}}
    examples = {
        "random styles": {"value": plain},
        "styles class by class": {"value": {"image": "iVBORw0KGgo...", "target": "night", "styles": styles}},
    }
    content = {
        "multipart/form-data": {"schema": TranslateForm.model_json_schema()},
        "application/json": {"schema": _inlined(TranslateRequest.model_json_schema()), "examples": examples},
    }
    return {"requestBody": {"required": True, "content": content}}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without `$defs`: in OpenAPI, references start at the document's root, where they are not."""
    definitions = schema.pop("$defs", {})

    def resolved(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return resolved(definitions[node["$ref"].rpartition("/")[2]])
            return {key: resolved(value) for key, value in node.items()}
        return [resolved(item) for item in node] if isinstance(node, list) else node

    result: dict[str, Any] = resolved(schema)
    return result


def _picture_docs() -> dict[str, Any]:
    text = {"schema": {"type": "string"}}
    headers = {
        "X-Recollect-Model": {**text, "description": "the model's name"},
        "X-Recollect-Digest": {**text, "description": "SHA-256 of the bundle that answered"},
        "X-Recollect-Seed": {**text, "description": "the seed of the style; absent for the deterministic translation"},
        "X-Recollect-Batch": {**text, "description": "how many pictures shared the forward, for those who tune the server"},
    }
    pictures = {f"image/{kind}": {"schema": {"type": "string", "format": "binary"}} for kind in ("png", "jpeg", "webp")}
    description = "the translated picture; JSON if the request was JSON, or wants several samples or a memory map"
    return {"description": description, "headers": headers, "model": TranslateAnswer, "content": pictures}


def _decoded(asked: body.Asked, limits: Limits) -> tuple[Pixels, ClassStyles | None]:
    """The picture, and the styles with the pictures that they name. Raises PictureError, which names the picture if it is one
    of several."""
    pictures = {"": asked.content, **asked.exemplars}
    arrays: dict[str, Pixels] = {}
    for name, content in pictures.items():
        try:
            arrays[name] = decode(content, limits).numpy()
        except PictureError as error:
            raise PictureError(error.code, f"{name}: {error.message}", error.hint, error.status) if name else error from None
    picture = arrays.pop("")
    return picture, ClassStyles(asked.styles, arrays) if asked.styles else None


# What the endpoints call stands above them: `ingress` pickles them at this point, with the names that exist by then.
def _picture_answer(answer: Answer, options: Options, seeds: list[int] | None) -> Response:
    done = answer.done[0]
    headers = {
        "X-Recollect-Model": answer.name.encode("ascii", "backslashreplace").decode(),  # headers carry no other letters
        "X-Recollect-Digest": answer.digest,
        "X-Recollect-Batch": str(done.batch),
    }
    if seeds:
        headers["X-Recollect-Seed"] = str(seeds[0])
    content = encode(torch.tensor(done.picture), options.format)
    return Response(content, media_type=f"image/{options.format}", headers=headers)


def _json_answer(answer: Answer, options: Options, seeds: list[int] | None) -> Response:
    first = answer.done[0]
    extras = Extras()
    if options.memory_map and first.memory_map is not None:  # content decides it, so it is the same for every sample
        extras.memory_map = MemoryMap(image=_base64(encode_map(torch.tensor(first.memory_map))), cell=first.cell)
    result = TranslateAnswer(
        images=[_base64(encode(torch.tensor(done.picture), options.format)) for done in answer.done],
        seeds=seeds,
        model=answer.name,
        digest=answer.digest,
        width=first.picture.shape[2],
        height=first.picture.shape[1],
        format=options.format,
        extras=extras,
    )
    return JSONResponse(result.model_dump(), headers={"X-Recollect-Batch": str(max(done.batch for done in answer.done))})


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


@ray.serve.ingress(api)
class Ingress:
    """Reads and checks requests, decodes pictures, and encodes answers; the translator sees only arrays."""

    def __init__(self, translator: DeploymentHandle, limits: Limits) -> None:
        torch.set_num_threads(1)
        self.translator, self.limits = translator, limits

    @api.post(
        "/v1/translate",
        summary="Translate a picture",
        responses={200: _picture_docs(), **ERRORS},
        openapi_extra=_translate_docs(),
    )
    async def translate(self, request: Request) -> Response:
        """Translate a picture to another domain. See the schemas for every field."""
        asked = await body.read(request, self.limits)
        picture, styles = await asyncio.to_thread(_decoded, asked, self.limits)  # the loop goes on reading other requests
        options, seeds = asked.options, asked.options.seeds()
        with errors.of_serve():
            answer = await self.translator.translate.remote(picture, options.target, options.source, seeds, styles)
        if isinstance(answer, Refusal):
            raise answer.error()
        make = _json_answer if asked.as_json else _picture_answer
        return await asyncio.to_thread(make, answer, options, seeds)

    @api.get("/v1/model", summary="What this server translates with", responses={503: ERRORS[503]})
    async def model(self) -> ModelCard:
        """The model's name, domains, limits, and the run that trained it."""
        with errors.of_serve():
            card = await self.translator.card.remote()
        return ModelCard(**card, limits=self.limits)

    @api.get("/healthz", summary="Whether this process is up")
    async def healthz(self) -> dict[str, bool]:
        """Always true: who answers is up."""
        return {"ok": True}

    @api.get("/readyz", summary="Whether a translator answers", responses={503: ERRORS[503]})
    async def readyz(self) -> dict[str, str]:
        """The name of the model that is ready; 503 while there is none."""
        try:
            with errors.of_serve():
                card = await asyncio.wait_for(self.translator.card.remote(), READY_S)
        except TimeoutError:
            hint = "it is still starting, or overloaded"
            raise ApiError(503, "not_ready", f"no translator answered within {READY_S:g} s", hint, {"Retry-After": "5"}) from None
        return {"ready": card["name"]}


class Args(Limits):
    """How to serve a bundle; what `args` in config.yaml may hold. The limits on pictures are fields too."""

    bundle: Annotated[str, Field(min_length=1)]  # a path or URI that every node reaches
    device: Literal["cpu", "cuda"] = "cpu"
    replicas: Annotated[int, Field(ge=1)] = 1  # translators
    cpus_per_replica: Annotated[float, Field(gt=0)] = 1.0  # also the threads of each, rounded up
    gpus_per_replica: Annotated[float, Field(gt=0)] = 1.0  # only with device cuda; 0.5: two replicas share one
    ingress_replicas: Annotated[int, Field(ge=1)] = 1
    max_batch_size: Annotated[int, Field(ge=1)] = 8  # pictures in one forward
    batch_wait_s: Annotated[float, Field(ge=0)] = 0.005  # how long the first picture of a batch waits for others
    max_queued: Annotated[int, Field(ge=0)] = 64  # requests waiting at each ingress replica; more are answered by a 503


def build(args: Args) -> ray.serve.Application:
    """The application that serves `args.bundle`; `ray.serve.run` and `serve deploy` take it from here."""
    ongoing = 2 * args.max_batch_size  # one batch being computed, one gathering
    gpus = {"num_gpus": args.gpus_per_replica} if args.device == "cuda" else {}
    translator = ray.serve.deployment(
        num_replicas=args.replicas,
        max_ongoing_requests=ongoing,
        max_queued_requests=args.max_queued,
        ray_actor_options={"num_cpus": args.cpus_per_replica, **gpus},
        graceful_shutdown_timeout_s=20,
        graceful_shutdown_wait_loop_s=0.5,  # how often it looks whether all requests are answered
        health_check_period_s=10,
        health_check_timeout_s=30,
        max_constructor_retry_count=2,  # a bundle that does not open will not open the tenth time either
    )(Translator).bind(
        bundle=args.bundle,
        device=args.device,
        threads=math.ceil(args.cpus_per_replica),
        max_batch_size=args.max_batch_size,
        batch_wait_s=args.batch_wait_s,
        max_pixels=args.max_pixels,
    )
    room = args.replicas * ongoing + args.max_queued + 16
    ingress = ray.serve.deployment(
        num_replicas=args.ingress_replicas,
        max_ongoing_requests=room,
        max_queued_requests=8 * room,  # at the proxy, whose own 503 is plain text: ours is to be reached first, in bursts too
        backpressure_config={"retry_after_s": errors.RETRY_AFTER_S},
        ray_actor_options={"num_cpus": INGRESS_CPUS},
        graceful_shutdown_timeout_s=20,
        graceful_shutdown_wait_loop_s=0.5,  # how often it looks whether all requests are answered
    )(Ingress)
    return ingress.bind(translator, Limits(**{name: getattr(args, name) for name in Limits.model_fields}))
