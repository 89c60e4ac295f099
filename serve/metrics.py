"""What a process of the server measures, and how the measures of all of them become one page for Prometheus.

Every replica of every deployment has a `Meter`. Whoever asks an ingress for `/metrics` gets those of all replicas, each sample
with the labels `deployment` and `replica`, so that a sum over replicas is Prometheus's business and no sample is lost between
two scrapes that reach different ingresses.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import ray.serve
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

disable_created_metrics()  # type: ignore[no-untyped-call]  # a time beside every counter, which nobody here asks for
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
CODE = "x-recollect-error"  # the header with an error's code
PICTURES = (1, 2, 4, 8, 16, 32, 64)


class Meter:
    """The measures of one process. Families without a sample are not shown, so each deployment shows its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        to = self.registry
        self.requests = Counter("recollect_requests", "Requests by path and status", ["path", "status"], registry=to)
        self.errors = Counter("recollect_errors", "Answers that are no 2xx, by their code", ["code"], registry=to)
        self.seconds = Histogram(
            "recollect_request_seconds", "From a request's headers to its answer", ["path"], buckets=SECONDS, registry=to
        )
        self.stages = Histogram(
            "recollect_stage_seconds",
            "Where the time goes: read, decode, queue (until a forward), forward (of a batch, with its search), search, encode",
            ["stage"],
            buckets=SECONDS,
            registry=to,
        )
        self.batch = Histogram(
            "recollect_batch_pictures", "Pictures that shared a forward", ["model"], buckets=PICTURES, registry=to
        )
        self.waiting = Gauge("recollect_waiting_pictures", "Pictures that wait for a forward", ["model"], registry=to)
        self.reads = Counter("recollect_item_reads", "Cells that read a memory item most", ["model", "item"], registry=to)
        self.models = Gauge("recollect_loaded_models", "Bundles that a translator has in memory", ["model"], registry=to)
        self.index = Gauge(
            "recollect_index_pictures", "Pictures of the index that can be found", ["shard", "version"], registry=to
        )
        self.swaps = Counter("recollect_index_swaps", "Versions of the index taken, or refused", ["outcome"], registry=to)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the time of a stage, whether it succeeds or not."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.stages.labels(name).observe(time.perf_counter() - start)

    def collect(self, deployment: str, replica: str) -> list[Metric]:
        """All samples so far, with these labels."""
        found = []
        for family in self.registry.collect():
            if family.samples:
                family.samples = [
                    sample._replace(labels={**sample.labels, "deployment": deployment, "replica": replica})
                    for sample in family.samples
                ]
                found.append(family)
        return found


class Measured:
    """ASGI middleware: counts requests and errors, and how long answers take, by the path of the endpoint."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        meter: Meter = ray.serve.get_replica_context().servable_object.meter
        start, said = time.perf_counter(), dict[str, str]()

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                said["status"] = str(message["status"])
                said["code"] = Headers(raw=message.get("headers", [])).get(CODE, "")
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            path = getattr(scope.get("route"), "path", "other")  # strangers must not invent labels
            meter.requests.labels(path, said.get("status", "none")).inc()
            meter.seconds.labels(path).observe(time.perf_counter() - start)
            if said.get("code"):
                meter.errors.labels(said["code"]).inc()


class _Given(Collector):
    def __init__(self, families: Sequence[Metric]) -> None:
        self.families = families

    def collect(self) -> Iterable[Metric]:
        return self.families


def page(parts: Iterable[Iterable[Metric]]) -> bytes:
    """The samples of many processes in Prometheus's text format, each family once."""
    families: dict[str, Metric] = {}
    for part in parts:
        for family in part:
            known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type, family.unit))
            known.samples += family.samples
    registry = CollectorRegistry()
    registry.register(_Given(list(families.values())))
    return generate_latest(registry)
