"""What this server is and has: models, domains, memory items; whether it is up; its measures."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

from serve import metrics
from serve.answers import DomainsAnswer, ItemsAnswer, ItemTold, ModelCard
from serve.describe import MemoryItem
from serve.errors import ApiError
from serve.front import READY_S, At, Of, Responses, failing
from serve.pictures import base64_png, map_colours

logger = logging.getLogger("ray.serve")
router = APIRouter(tags=["about"])
FAILED = failing(401, 422, 503, 504)
MEASURED_S = 5.0  # replicas that do not tell their measures within this time are left out


@router.get("/v1/model", summary="What this server translates with", responses=FAILED)
async def model(front: At, of: Of) -> ModelCard:
    """A model's name, domains, limits, and the run that trained it."""
    card = await front.asked("card", of, model=of)
    return ModelCard(**card, limits=front.limits)


@router.get("/v1/domains", summary="What a model can be asked for", responses=FAILED)
async def domains(front: At, of: Of) -> DomainsAnswer:
    """Domains, attributes, and the classes whose style can be chosen."""
    return DomainsAnswer(**await front.asked("targets", of, model=of))


@router.get("/v1/items", summary="What a model's memory holds", responses=FAILED)
async def items(front: At, of: Of) -> ItemsAnswer:
    """Every item of the memory with its use and, per domain, a picture of what is nearest to it."""
    name, found = await front.asked("memory", of, model=of)
    colours = map_colours(max((item.index for item in found), default=0) + 1)
    return await asyncio.to_thread(_items_told, name, found, colours)


def _items_told(name: str, found: tuple[MemoryItem, ...], colours: list[str]) -> ItemsAnswer:
    told = [
        ItemTold(
            index=item.index,
            label=item.label,
            number=item.number,
            usage=item.usage,
            dead=item.dead,
            colour=colours[item.index],
            thumbnails={domain: base64_png(patch) for domain, patch in item.patches.items()},
        )
        for item in found
    ]
    return ItemsAnswer(model=name, items=told)


@router.get("/healthz", summary="Whether this process is up")
async def healthz() -> dict[str, bool]:
    """Always true: who answers is up."""
    return {"ok": True}


@router.get("/readyz", summary="Whether a translator answers", responses=failing(503))
async def readyz(front: At) -> dict[str, str]:
    """The name of the model that is ready; 503 while there is none."""
    try:
        card = await front.asked("card", seconds=READY_S)
    except ApiError as error:
        if error.code != "too_slow":
            raise
        hint = "it is still starting, or overloaded"
        raise ApiError(503, "not_ready", f"no translator answered within {READY_S:g} s", hint, {"Retry-After": "5"}) from None
    return {"ready": card["name"]}


PROMETHEUS: Responses = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus's text format"}
}


@router.get("/metrics", summary="Measures for Prometheus", response_class=Response, responses=PROMETHEUS)
async def measures(front: At) -> Response:
    """Latency by stage, batch sizes, queues, reads of memory items, errors: of all replicas, with their names as labels."""
    parts = await asyncio.gather(*[_measured(handle) for handle in (front.peers(), front.translator, *front.shards)])
    if not parts[0]:  # the others cannot be reached; this one is here
        parts[0] = [await front.measured()]
    return Response(metrics.page(sample for part in parts for sample in part), media_type="text/plain; version=0.0.4")


async def _measured(handle: Any) -> list[Any]:
    try:
        found: list[Any] = await asyncio.wait_for(handle.broadcast("measured").results_async(), MEASURED_S)
        return found
    except Exception as error:  # a page with the measures of those that answer is better than none
        logger.warning("no measures of %s: %s", handle.deployment_name, error)
        return []
