"""The application: the HTTP interface, and the builder that wires ingress, translator and retrievers.

No `from __future__ import annotations` here: Ray Serve finds the type of `build`'s argument by its annotation, and a string
would leave it an unchecked dictionary.
"""

import math
from typing import Any

import ray.serve
from fastapi import FastAPI

import recollect
from serve import errors, page
from serve.args import Args
from serve.deployments import Translator
from serve.front import Front
from serve.guard import Guarded
from serve.metrics import Measured
from serve.retrieval import Retriever
from serve.routes import about, index, translate

INGRESS_CPUS = 0.1  # what Ray sets aside for an ingress replica; it computes little beside decoding pictures
DESCRIPTION = """Translates pictures between the domains of a model, or to other attributes, guided by what the model remembers or
finds.

`POST /v1/translate` takes a picture as a form (and answers with a picture) or as JSON (and answers with JSON). The answer has
the size of the picture sent. Without a seed, one sample is the model's deterministic translation; with a seed, or with several
samples, each sample has a random style that its seed determines, whatever else the server is computing at that moment. Where the
model has a memory, `styles` chooses the style of single classes: from another picture, a random draw, an item, or between two.
Where it draws with what it retrieves, `POST /v1/retrieve` shows what it would find.

Where the server wants a token, send `Authorization: Bearer TOKEN`.

Every answer other than 2xx is `{"error": {"code", "message", "hint"}}`. After a 503, try again when `Retry-After` says.
"""
api = FastAPI(title="Recollect", version=recollect.__version__, description=DESCRIPTION, docs_url=None, redoc_url=None)
for topic in (translate, index, about):
    api.include_router(topic.router)
page.install(api)
api.add_middleware(Guarded)
errors.install(api)  # around everything, the guard too
api.add_middleware(Measured)  # around that


@ray.serve.ingress(api)
class Ingress(Front):
    """Reads and checks requests, decodes pictures, and encodes answers; the translator sees only arrays."""


def build(args: Args) -> ray.serve.Application:
    """The application that serves `args.bundle`; `ray.serve.run` and `serve deploy` take it from here."""
    shards = [_retriever(args, number) for number in range(args.shards)] if args.index else []
    room = max(args.replicas, args.max_replicas) * _ongoing(args) + args.max_queued + 16
    ingress = ray.serve.deployment(
        num_replicas=args.ingress_replicas,
        max_ongoing_requests=room,
        max_queued_requests=8 * room,  # at the proxy, whose own 503 is plain text: ours is to be reached first, in bursts too
        backpressure_config={"retry_after_s": errors.RETRY_AFTER_S},
        ray_actor_options={"num_cpus": INGRESS_CPUS},
        **_stopping(args),
    )(Ingress)
    wanted = (list(args.bundles), args.limits(), args.guard(), args.time_limit_s)
    return ingress.bind(_translator(args, shards), shards, *wanted)


def _ongoing(args: Args) -> int:
    """What a translator takes: a batch that is computed, one that gathers, and its own queue.

    Ray Serve's queue at the ingress is for what no translator takes. It looks for room every half second when it is long, so with
    that alone a translator would stand idle half of the time, and some requests would wait several times as long as others.
    """
    return 2 * args.max_batch_size + args.max_queued


def _stopping(args: Args) -> dict[str, Any]:
    """How replicas are replaced and stopped: new ones first, and what is under way is finished."""
    return {
        "max_surge_percent": 100,
        "graceful_shutdown_timeout_s": args.drain_s,
        "graceful_shutdown_wait_loop_s": 0.5,  # how often it looks whether all requests are answered
    }


def _translator(args: Args, shards: list[Any]) -> Any:
    gpus = {"num_gpus": args.gpus_per_replica} if args.device == "cuda" else {}
    count: dict[str, Any] = {"num_replicas": args.replicas}
    if args.max_replicas > args.replicas:
        count = {
            "autoscaling_config": {
                "min_replicas": args.replicas,
                "max_replicas": args.max_replicas,
                "target_ongoing_requests": args.max_batch_size,  # a batch under way is what a replica is for; more are a queue
                "upscale_delay_s": 5,
                "downscale_delay_s": 120,
            }
        }
    translator = ray.serve.deployment(
        **count,
        max_ongoing_requests=_ongoing(args),
        max_queued_requests=args.max_queued,
        ray_actor_options={"num_cpus": args.cpus_per_replica, **gpus},
        health_check_period_s=10,
        health_check_timeout_s=30,
        max_constructor_retry_count=2,  # a bundle that does not open will not open the tenth time either
        **_stopping(args),
    )(Translator)
    return translator.bind(
        args.bundle,
        args.bundles,
        shards,
        device=args.device,
        threads=math.ceil(args.cpus_per_replica),
        max_batch_size=args.max_batch_size,
        batch_wait_s=args.batch_wait_s,
        max_pixels=args.max_pixels,
        loaded=args.loaded,
    )


def _retriever(args: Args, number: int) -> Any:
    retriever = ray.serve.deployment(
        name=f"Retriever-{number}" if args.shards > 1 else "Retriever",
        num_replicas=args.retriever_replicas,
        max_ongoing_requests=8 * args.max_batch_size,
        max_queued_requests=args.max_queued,
        ray_actor_options={"num_cpus": args.retriever_cpus},
        health_check_period_s=10,
        health_check_timeout_s=30,
        max_constructor_retry_count=2,
        **_stopping(args),
    )(Retriever)
    return retriever.bind(args.index, number, args.shards, args.index_poll_s, math.ceil(args.retriever_cpus))
