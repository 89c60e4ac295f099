"""The index: what it is, what is found in it, and changing it."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from serve import asked, body, errors
from serve.answers import IndexAnswer, IndexChanged, RetrieveAnswer
from serve.front import ERRORS, At, Front, failing
from serve.openapi import json_body, request_body
from serve.pictures import decode
from serve.routes.told import neighbours_told
from serve.schema import ATTRIBUTES_EXAMPLE, IndexChange, RetrieveForm, RetrieveRequest

router = APIRouter(tags=["index"])
IMAGE = "iVBORw0KGgo..."
EXAMPLES = {
    "alike": {"image": IMAGE, "k": 10, "thumbnails": True},
    "alike, with other attributes": {"image": IMAGE, "attributes": ATTRIBUTES_EXAMPLE, "where": {"Male": 0}},
}
CHANGES = {"two pictures": {"ids": ["train-000017-blond-male-young", "train-000233-black-female-old"]}}
ADMIN = failing(401, 403, 404, 422, 503, 504)


@router.get("/v1/index", summary="The index that is searched", responses=failing(401, 404, 503))
async def index(front: At) -> IndexAnswer:
    """Its version, how many pictures it holds, and what they can be filtered by."""
    with errors.of_serve():
        return IndexAnswer(**await front.a_shard().about.remote())


@router.post(
    "/v1/retrieve",
    summary="Find pictures like one",
    response_model=RetrieveAnswer,
    responses=ERRORS,
    openapi_extra=request_body(RetrieveForm, RetrieveRequest, EXAMPLES),
)
async def retrieve(request: Request, front: At) -> RetrieveAnswer:
    """The pictures of the index that are nearest to one, as the model sees it; or to it with other attributes."""
    front.a_shard()
    with front.meter.stage("read"):
        sought = await asked.search(request, front.limits)
    with front.meter.stage("decode"):
        picture = (await asyncio.to_thread(decode, sought.content, front.limits)).numpy()
    options = sought.options
    question = (picture, options.k, sought.attributes, options.target, sought.where, sought.exclude, options.thumbnails)
    found = await front.asked("retrieve", sought.model, *question, model=sought.model)
    told = await asyncio.to_thread(neighbours_told, found.neighbours)
    return RetrieveAnswer(found=told, model=found.name, digest=found.digest, index=found.index)


@router.post(
    "/v1/index/add",
    summary="Take pictures into the index",
    response_model=IndexChanged,
    responses=ADMIN,
    openapi_extra=json_body(IndexChange, CHANGES),
)
async def add(request: Request, front: At) -> IndexChanged:
    """Pictures that the index's store holds and the index does not, by id. Wants the admin token."""
    return await _change(request, front, "add")


@router.post(
    "/v1/index/remove",
    summary="Take pictures out of the index",
    response_model=IndexChanged,
    responses=ADMIN,
    openapi_extra=json_body(IndexChange, CHANGES),
)
async def remove(request: Request, front: At) -> IndexChanged:
    """Pictures of the index, by id; they stay in the store. Wants the admin token."""
    return await _change(request, front, "remove")


async def _change(request: Request, front: Front, what: str) -> IndexChanged:
    """Write the next version of the index, and have every retriever take it before the answer."""
    front.a_shard()
    ids = (await body.read_json(request, IndexChange, front.limits)).ids
    manifest = await front.asked("change", "", ids if what == "add" else [], ids if what == "remove" else [], tries=1)
    refreshed: list[Any] = [shard.broadcast("refresh").results_async() for shard in front.shards]
    await asyncio.gather(*refreshed)
    return IndexChanged(version=manifest.version, digest=manifest.digest, pictures=manifest.count, changed=len(ids))
