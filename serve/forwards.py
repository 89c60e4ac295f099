"""Dynamic batching: one thread computes, and whatever arrives meanwhile is the next batch."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from serve.batch import BatchTranslator
from serve.metrics import Meter
from serve.work import Done, Job

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job, who does it, and where its result goes."""

    model: BatchTranslator
    job: Job
    result: asyncio.Future[Done | Exception]
    asked: float = field(default_factory=time.perf_counter)


class Forwards:
    """The forwards of a replica, one after the other: two at once would only share the cores.

    A job that finds the thread idle starts at once. Those that arrive while it computes wait for their turn together, the oldest
    first. Each is answered as soon as its own forward is done, whoever was taken with it.

    Args:
        size: at most so many jobs are taken at a time.
        wait_s: for so long the first job of a batch waits for others, even when the thread is idle.
    """

    def __init__(self, size: int, wait_s: float, meter: Meter) -> None:
        self.size, self.wait_s, self.meter = size, wait_s, meter
        self.loop = asyncio.get_running_loop()
        self.waiting: deque[Waiting] = deque()
        self.arrived = threading.Condition()
        threading.Thread(target=self._run, name="forwards", daemon=True).start()

    async def __call__(self, model: BatchTranslator, jobs: Sequence[Job]) -> list[Done | Exception]:
        """The results of a request's jobs. They arrive together, so that they can share a forward."""
        waiting = [Waiting(model, job, self.loop.create_future()) for job in jobs]
        gauge = self.meter.waiting.labels(model.name)
        gauge.inc(len(jobs))
        try:
            with self.arrived:
                self.waiting.extend(waiting)
                self.arrived.notify()
            return await asyncio.gather(*[one.result for one in waiting])
        finally:
            gauge.dec(len(jobs))

    def _run(self) -> None:
        while True:
            self._compute(self._taken())

    def _compute(self, taken: Sequence[Waiting]) -> None:
        now = time.perf_counter()
        for one in taken:
            self.meter.stages.labels("queue").observe(now - one.asked)
        for model in {id(one.model): one.model for one in taken}.values():
            own = [one for one in taken if one.model is model]
            try:
                for index, result in model.each([one.job for one in own]):
                    self._deliver([own[index]], result)
            except Exception as error:  # nothing may end this thread
                logger.exception("a batch of %d pictures failed", len(own))
                self._deliver(own, error)

    def _deliver(self, ones: Sequence[Waiting], result: Done | Exception) -> None:
        for one in ones:
            self.loop.call_soon_threadsafe(_answer, one.result, result)

    def _taken(self) -> list[Waiting]:
        """The next jobs, without those that nobody waits for any more."""
        with self.arrived:
            self.arrived.wait_for(lambda: self.waiting)
            if self.wait_s:
                self.arrived.wait_for(lambda: len(self.waiting) >= self.size, self.wait_s)
            taken = [self.waiting.popleft() for _ in range(min(self.size, len(self.waiting)))]
        return [one for one in taken if not one.result.done()]


def _answer(future: asyncio.Future[Done | Exception], result: Done | Exception) -> None:
    if not future.done():  # its request may have been given up
        future.set_result(result)
