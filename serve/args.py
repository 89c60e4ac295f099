"""How to serve: what `args` in config.yaml may hold."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from recollect.config import did_you_mean
from serve.guard import Guard
from serve.schema import MAX_NAME, Limits

Digest = Annotated[str, Field(pattern=re.compile(r"^([0-9a-f]{64})?$"), description="SHA-256 of a token, in hex; empty: none")]


def checked_args(**given: Any) -> Args:
    """`Args` of what a user gave. Raises ValueError, in one line, for what is none or cannot be."""
    try:
        return Args(**given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        raise ValueError(f"there is no argument {name!r} of a server{did_you_mean(name, Args.model_fields)}")
    told = first["msg"].removeprefix("Value error, ")
    raise ValueError(f"{name} is {first['input']!r}: {told}" if name else told)


class Args(Limits):
    """How to serve bundles and an index. The limits on pictures are fields too."""

    bundle: Annotated[str, Field(min_length=1)]  # a path or URI that every node reaches
    bundles: dict[
        Annotated[str, Field(min_length=1, max_length=MAX_NAME)], str
    ] = {}  # further ones, by the name that requests give
    loaded: Annotated[int, Field(ge=1)] = 2  # of these, at most so many in a translator's memory
    index: str = ""  # where guided bundles look; a path or URI that every node reaches
    shards: Annotated[int, Field(ge=1)] = 1  # parts of the index, each in a process of its own
    index_poll_s: Annotated[float, Field(gt=0)] = 2.0  # how often a retriever looks for a new version of the index
    device: Literal["cpu", "cuda"] = "cpu"
    replicas: Annotated[int, Field(ge=1)] = 1  # translators
    max_replicas: Annotated[int, Field(ge=0)] = 0  # above `replicas`: as many more as ongoing requests ask for
    cpus_per_replica: Annotated[float, Field(gt=0)] = 1.0  # also the threads of each, rounded up
    gpus_per_replica: Annotated[float, Field(gt=0)] = 1.0  # only with device cuda; 0.5: two replicas share one
    ingress_replicas: Annotated[int, Field(ge=1)] = 1
    retriever_replicas: Annotated[int, Field(ge=1)] = 1  # of each shard
    retriever_cpus: Annotated[float, Field(gt=0)] = 0.5  # of each of these
    max_batch_size: Annotated[int, Field(ge=1)] = 8  # pictures taken at a time; like ones share a forward
    batch_wait_s: Annotated[float, Field(ge=0)] = (
        0.0  # how long the first picture of a batch waits for others, beside a forward under way
    )
    max_queued: Annotated[int, Field(ge=0)] = 64  # requests that wait at a translator, then at each ingress; more get a 503
    time_limit_s: Annotated[float, Field(gt=0)] = 30.0  # an answer that takes longer becomes a 504
    drain_s: Annotated[float, Field(gt=0)] = 20.0  # a replica that is stopped finishes what it has for so long
    token_sha256: Digest = ""  # of the token that opens everything but changing the index
    admin_token_sha256: Digest = ""  # of the token that also changes the index
    near_only: bool = False  # answer callers on the same machine only

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.shards > 1 and not self.index:
            raise ValueError("shards are parts of the index, and none is named; give index, or leave shards out")
        if 0 < self.max_replicas < self.replicas:
            raise ValueError(
                f"max_replicas is {self.max_replicas}, below replicas ({self.replicas}); 0 means as many as replicas"
            )
        return self

    def limits(self) -> Limits:
        """The limits alone."""
        return Limits(**{name: getattr(self, name) for name in Limits.model_fields})

    def guard(self) -> Guard:
        """Who may ask."""
        return Guard(self.token_sha256, self.admin_token_sha256, self.near_only)
