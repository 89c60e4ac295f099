"""The one training loop, without Ray. Ray Train calls it in every worker; tests and a lone GPU call it in process.

`recollect.training.trainer` takes the steps; this is what happens around them: evaluation, checkpoints, the log.

A run's directory:

    last/           the newest checkpoint: a bundle with training state
    best/           the bundle with the best validation metric
    metrics.jsonl   the history;  tensorboard/ curves;  samples/ grids
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from recollect import bundle as bundles
from recollect.batch import Batch, Domains
from recollect.config import Run
from recollect.trainable import Embedder, Search
from recollect.training.card import card_of
from recollect.training.finite import NotFinite
from recollect.training.heap import keep_freed_memory
from recollect.training.mlflow import Sink
from recollect.training.optim import rate, trained_nets
from recollect.training.sync import Ranks
from recollect.training.tracking import Tracker
from recollect.training.trainer import Parts, Trainer

logger = logging.getLogger("recollect")

Report = Callable[[dict[str, float], Path | None], None]


class Batches(Protocol):
    """Where batches come from: a pure function of the step (`recollect.data.loader.Feed`)."""

    def stream(self, start: int, stop: int) -> Iterator[tuple[int, tuple[Batch, ...]]]: ...


class Judge(Protocol):
    """What judges a method during training: the class that `Trainable.judged_by` names (`Validator`, `DetectionJudge`).

    It is given what `Trainer.subject` returns: a Pipeline for a translator, else the method itself.
    """

    metric: str
    about: str  # what it does, in words

    @property
    def mode(self) -> Literal["min", "max"]: ...

    def __call__(self, subject: Any, /) -> dict[str, float]: ...
    def grid(self, subject: Any, /) -> Tensor: ...


def fit(
    run: Run,
    batches: Batches,
    domains: Domains,
    directory: Path,
    *,
    judge: Judge | None = None,
    report: Report | None = None,
    resume: Path | None = None,
    ranks: Ranks | None = None,
    parents: Mapping[str, str] | None = None,
    search: Callable[[str], Search] | None = None,
) -> Path:
    """Train to `run.engine.steps` and return the bundle's directory: `best` where a judge chose one, else `last`.

    Args:
        batches: a source of batches for this rank.
        domains: the run's domains, with the classes of the data.
        directory: where checkpoints, history, curves and samples go (written by rank 0).
        judge: judges the model at every evaluation, on rank 0.
        report: called on every rank at every evaluation and checkpoint, with the metrics and (on rank 0) the checkpoint.
        resume: a checkpoint to go on from, bit-equal on the CPU to never having stopped.
        ranks: the process group; a single process by default.
        parents: digests of what the run is made from, for the manifest.
        search: opens what finds neighbours, given the digest of the method that embeds (`Embedder.embedding_digest`).

    Raises NotFinite, with the state saved in `directory/broken`.
    """
    if run.engine.threads:
        torch.set_num_threads(run.engine.threads)
    trainer = Trainer(run, domains, ranks)
    if trainer.device.type == "cpu":
        keep_freed_memory()
    history = trainer.resume(resume, parents or {}) if resume is not None else trainer.begin()
    if resume is not None and trainer.ranks.rank == 0 and not (directory / "best").exists():
        trainer.best = _bring_best(resume.parent / "best", directory / "best", trainer.best)
    if search is not None and isinstance(trainer.model, Embedder):
        trainer.search = search(trainer.model.embedding_digest())
    loop = _Loop(trainer, directory, judge, report, dict(parents or {}), history)
    if trainer.step >= run.engine.steps:
        logger.info("nothing to do: the checkpoint stands at step %d of %d", trainer.step, run.engine.steps)
        loop.pause(evaluate=not loop.evaluated())
    with contextlib.closing(batches.stream(trainer.step, run.engine.steps)) as stream:  # type: ignore[type-var]
        for parts in trainer.ahead(stream):
            loop.advance(parts)
    loop.close()
    return directory / ("best" if (directory / "best").exists() else "last")


def _bring_best(old: Path, new: Path, value: float | None) -> float | None:
    """Copy the best bundle that stands beside a checkpoint; without one the best so far is forgotten, not only its bundle."""
    if not (old / "manifest.json").exists():
        return None
    new.parent.mkdir(parents=True, exist_ok=True)
    bundles.copy(old, str(new))
    return value


class _Loop:
    """What happens around the steps: logging, evaluation, checkpoints."""

    def __init__(
        self,
        trainer: Trainer,
        directory: Path,
        judge: Judge | None,
        report: Report | None,
        parents: dict[str, str],
        history: list[dict[str, Any]],
    ) -> None:
        self.trainer, self.directory, self.judge, self.report, self.parents = trainer, directory, judge, report, parents
        self.main = trainer.ranks.rank == 0
        self.tracker = self._tracker(history) if self.main else None
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}  # by term: a phase may not run at every step
        self.pictures, self.since = 0, time.monotonic()
        self.logged, self.costs = trainer.step, {"parameters": float(sum(p.numel() for p in trainer.model.parameters()))}

    def _tracker(self, history: list[dict[str, Any]]) -> Tracker:
        run, start, directory = self.trainer.run, self.trainer.step, self.directory
        directory.mkdir(parents=True, exist_ok=True)
        sink = Sink(run.engine.mlflow, run, directory, start) if run.engine.mlflow else None
        return Tracker(directory, run.engine.steps, start, history, devices=self.trainer.ranks.world, sink=sink)

    def advance(self, parts: Parts) -> None:
        """One step and whatever is due after it."""
        trainer, engine = self.trainer, self.trainer.run.engine
        step = trainer.step + 1
        last, logs, samples = step >= engine.steps, step % engine.log_every == 0, _due(step, engine.sample_every)
        evaluates, saves = last or _due(step, engine.evaluate_every), _due(step, engine.checkpoint_every)
        try:
            terms = trainer.take(parts)
            if last or logs or samples or evaluates or saves:  # who looks at the state shall not see one that is not finite
                trainer.settle()
        except NotFinite as error:
            self._save_broken(error)
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, 0) + term
            self.counts[name] = self.counts.get(name, 0) + 1
        self.pictures += sum(len(batch) for part in parts for batch in part.batches) * trainer.ranks.world
        if logs or last:
            self._log()
        if evaluates or saves:
            self.pause(evaluate=evaluates)
        if samples and not evaluates:
            self._sample()

    def pause(self, evaluate: bool) -> None:
        """Evaluate where asked, save a checkpoint, report. Every rank comes here at the same steps."""
        began, metrics = time.monotonic(), dict[str, float]()
        if self.trainer.step > self.logged:  # else the interval that was just logged has said it
            self.costs["seconds_per_step"] = (began - self.since) / (self.trainer.step - self.logged)
        if self.tracker is not None:
            try:
                metrics = self._evaluate() if evaluate else {}
            finally:  # a judge that cannot judge does not take the training with it
                self.trainer.save(self.directory / "last", self.tracker.history, self.parents)
        self.trainer.ranks.barrier()
        if self.report is not None:
            self.report(
                {"step": float(self.trainer.step), **self.costs, **metrics}, self.directory / "last" if self.main else None
            )
        self.since += time.monotonic() - began  # evaluation is not training time

    def evaluated(self) -> bool:
        """Whether the history ends with an evaluation."""
        return self.judge is None or bool(self.tracker and self.tracker.history and self.judge.metric in self.tracker.history[-1])

    def close(self) -> None:
        if self.tracker is not None:
            card = card_of(self.trainer.run, self.trainer.domains, self.tracker.history, self.trainer.model)
            self.tracker.close(card=card)

    def _evaluate(self) -> dict[str, float]:
        assert self.tracker is not None
        if self.judge is None:
            return {}
        subject = self.trainer.subject()
        metrics = self.judge(subject)
        self.tracker.metrics(self.trainer.step, metrics)
        self.tracker.pictures(self.trainer.step, self.judge.grid(subject))
        value, sign = metrics["objective"], 1 if self.judge.mode == "min" else -1
        if self.trainer.best is None or sign * value < sign * self.trainer.best:
            self.trainer.best = value
            self.trainer.save(self.directory / "best", self.tracker.history, self.parents, training=False)
        return metrics

    def _sample(self) -> None:
        if self.tracker and self.judge is not None:
            self.tracker.pictures(self.trainer.step, self.judge.grid(self.trainer.subject()))

    def _log(self) -> None:
        if self.tracker is not None:
            means = {
                name: float(total) / self.counts[name] for name, total in self.sums.items()
            }  # the only host sync of the interval
            net = trained_nets(self.trainer.model)[0]
            lr = rate(self.trainer.run.optimiser(net), self.trainer.step - 1, self.trainer.run.engine.steps)
            seconds = max(time.monotonic() - self.since, 1e-9)
            self.tracker.losses(self.trainer.step, means, lr, self.pictures / seconds)
            self.costs["seconds_per_step"] = seconds / (self.trainer.step - self.logged)
        self.logged = self.trainer.step
        self.sums, self.counts, self.pictures, self.since = {}, {}, 0, time.monotonic()

    def _save_broken(self, error: NotFinite) -> None:
        where = self.directory / "broken"
        if self.tracker is not None:
            self.trainer.save(where, self.tracker.history, self.parents)
            self.tracker.close("FAILED", str(error))
        raise NotFinite(
            f"{error}. The phase changed nothing and the run stopped; its state is saved in {where} to look at. "
            "A lower optimisers.default.lr, engine.precision=fp32 or a lower weight for that term usually helps"
        ) from None


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
