"""The ingress replica as its endpoints see it: the deployments behind it, the limits, and how a model is chosen."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import ray.serve
import torch
from fastapi import Depends, Header, Query
from ray.serve.handle import DeploymentHandle

from serve import errors
from serve.errors import ApiError
from serve.guard import Guard
from serve.metrics import Meter
from serve.schema import MAX_NAME, ErrorAnswer, Limits
from serve.work import Refusal

T = TypeVar("T")
READY_S = 5.0  # a translator that does not say what it is within this time is not ready
SMALL = 2**20  # bytes; gRPC between replicas takes four times as many at most
Responses = dict[int | str, dict[str, Any]]
ERRORS: Responses = {
    401: {"model": ErrorAnswer, "description": "the server wants a token, and there is none or a wrong one"},
    403: {"model": ErrorAnswer, "description": "nobody may do that here: no admin token is set, or the caller is elsewhere"},
    404: {"model": ErrorAnswer, "description": "this server has no such thing: no index, or no item"},
    413: {"model": ErrorAnswer, "description": "too many bytes or pixels; `GET /v1/model` tells the limits"},
    415: {"model": ErrorAnswer, "description": "neither multipart/form-data nor application/json"},
    422: {"model": ErrorAnswer, "description": "no acceptable picture, an unknown domain, or a wrong field"},
    500: {"model": ErrorAnswer, "description": "a fault of the server"},
    503: {"model": ErrorAnswer, "description": "the queue is full, or nothing runs; try again after `Retry-After` seconds"},
    504: {"model": ErrorAnswer, "description": "no answer within the server's time limit"},
}


def failing(*statuses: int) -> Responses:
    """How an endpoint can fail, for OpenAPI."""
    return {status: ERRORS[status] for status in statuses}


class Front:
    """What an ingress replica holds. `serve.app.Ingress` is one."""

    def __init__(
        self,
        translator: DeploymentHandle,
        shards: Sequence[DeploymentHandle],
        further: Sequence[str],
        limits: Limits,
        guard: Guard,
        time_limit_s: float,
    ) -> None:
        torch.set_num_threads(1)
        self.further = frozenset(further)  # the models that are not in every replica's memory
        self.translator, self.shards, self.limits, self.guard = translator, tuple(shards), limits, guard
        self.time_limit_s, self.meter = time_limit_s, Meter()
        self._peers: DeploymentHandle | None = None
        self._handles: dict[tuple[str, str, bool], Any] = {}

    async def asked(
        self, method: str, *arguments: Any, model: str = "", seconds: float | None = None, tries: int = 3, small: bool = False
    ) -> Any:
        """What the translator answers; its refusals, and Ray Serve's, are raised as ApiError.

        A replica may end under a request; another one then gets it, up to `tries` in all, in the same time. What is `small`, with
        its answer, takes the shorter way between processes, which does not carry SMALL bytes.
        """
        limit = seconds or self.time_limit_s
        until = asyncio.get_running_loop().time() + limit
        for left in reversed(range(tries)):
            try:
                answer = await self._asked(method, arguments, model, limit, until, small)
                break
            except ApiError as error:
                if error.code != "interrupted" or not left:
                    raise
                await asyncio.sleep(0.1)
        if isinstance(answer, Refusal):
            raise answer.error()
        return answer

    async def _asked(self, method: str, arguments: tuple[Any, ...], model: str, limit: float, until: float, small: bool) -> Any:
        handle = self._handle(method, model if model in self.further else "", small)
        with errors.of_serve():
            try:
                return await asyncio.wait_for(handle.remote(*arguments), until - asyncio.get_running_loop().time())
            except TimeoutError:
                raise errors.too_slow(limit) from None

    def _handle(self, method: str, model: str, small: bool) -> Any:
        """The translator's method. Handles are kept: making one takes as long as asking it."""
        key = (method, model, small)
        if key not in self._handles:
            chosen = {"multiplexed_model_id": model} if model else {}
            # By value: over gRPC from process to process. Else through Ray's object store, for which a call is twice the work.
            self._handles[key] = self.translator.options(method_name=method, _by_reference=not small, **chosen)
        return self._handles[key]

    def peers(self) -> DeploymentHandle:
        """All ingress replicas, this one among them."""
        if self._peers is None:
            own = ray.serve.get_replica_context()
            self._peers = ray.serve.get_deployment_handle(own.deployment, own.app_name)
        return self._peers

    async def measured(self) -> list[Any]:
        """The samples of this replica."""
        context = ray.serve.get_replica_context()
        return self.meter.collect(context.deployment, context.replica_tag)

    def a_shard(self) -> DeploymentHandle:
        """Any part of the index. Raises ApiError (404) where none is served."""
        if not self.shards:
            hint = "serve a model that retrieves, with `index` in the server's arguments"
            raise ApiError(404, "no_index", "this server has no index", hint)
        return self.shards[0]


async def front() -> Front:
    """The replica that this request came to."""
    found = ray.serve.get_replica_context().servable_object
    assert isinstance(found, Front)
    return found


async def chosen_model(
    model: Annotated[str, Query(max_length=MAX_NAME, description="which of the server's models; default: the first")] = "",
    header: Annotated[str, Header(alias="X-Recollect-Model", max_length=MAX_NAME, description="the same, as a header")] = "",
) -> str:
    """The name of the model that a GET is about; empty for the first one."""
    return model or header


At = Annotated[Front, Depends(front)]
Of = Annotated[str, Depends(chosen_model)]
