"""The one training loop, without Ray. Ray Train calls it in every worker; tests and a lone GPU call it in process.

A step, in order: look up neighbours where the method asks for them (done by a thread while the step before is taken); for each
phase compute its parts' terms, weigh them, take each part's gradient for its nets only, average gradients over ranks in one
bucket, look whether everything is finite, clip, step the optimisers; then let the method commit its own state, and update the
averaged weights.

A run's directory:

    last/           the newest checkpoint: a bundle with training state
    best/           the bundle with the best validation metric
    metrics.jsonl   the history;  tensorboard/ curves;  samples/ grids
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from recollect import bundle as bundles
from recollect.batch import Batch, Domains
from recollect.config import Run, find_method
from recollect.objective import active, weigh
from recollect.pipeline import Pipeline
from recollect.trainable import Draws, Embedder, Phase, Queries, Search, Step, Trainable, Translator
from recollect.training import checkpoint
from recollect.training.blocks import compiled, recompute
from recollect.training.card import card_of
from recollect.training.mlflow import Sink
from recollect.training.optim import make_optimisers, rate, trained_nets
from recollect.training.sync import Ranks, average_gradients
from recollect.training.tracking import Tracker

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


class NotFinite(ValueError):
    """A loss or gradient that is not finite; says the step, the phase and terms, and where the state was saved."""


def build(run: Run, domains: Domains) -> Trainable:
    """The run's method with weights drawn from the run's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        model: Trainable = find_method(run.model.name)(run.model, domains)
    return model


def pick_device(name: str) -> torch.device:
    """`auto` is the current GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else torch.device(name)


class Trainer:
    """A model, its optimisers, its averaged weights and the step it stands at; `update` takes one step."""

    def __init__(
        self,
        run: Run,
        domains: Domains,
        ranks: Ranks | None = None,
        device: str | None = None,
        search: Search | None = None,
    ) -> None:
        self.run, self.domains, self.ranks, self.search = run, domains, ranks or Ranks(), search
        self.device = pick_device(device or run.engine.device)
        self.dtype = torch.float64 if run.engine.precision == "fp64" else torch.float32
        self.model = build(run, domains).to(self.device, self.dtype)
        if run.engine.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.ranks.broadcast(self.model)
        self.optimisers = make_optimisers(self.model, run)
        self.ema: AveragedModel | None = None
        if run.engine.ema:
            self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(run.engine.ema))  # type: ignore[no-untyped-call]
        if run.engine.recompute:  # after the copy that is averaged, which is never trained
            recompute(self.model)
        if run.engine.compile:
            compiled(self.model)
        self.active = active(run.weights)
        self.phases = tuple(self.model.phases())
        for phase in self.phases:
            nets = [net for part in phase.parts for net in part.nets]
            assert len(nets) == len(set(nets)), f"a net stands in two parts of phase {phase.name}"
        self.step, self.best = 0, None
        self._frozen = self.model.frozen_digest()

    best: float | None

    def update(self, batches: tuple[Batch, ...]) -> dict[str, Tensor]:
        """One training step on the batches of all domains; returns the terms, averaged over ranks, on the device."""
        step = self.prepare(self.step, batches)
        if (queries := self.queries(step)) is not None:
            step.neighbours = self.found(self._searched(queries))
        return self.take(step)

    def prepare(self, number: int, batches: tuple[Batch, ...]) -> Step:
        """The step of that number with its batches on the device; neighbours are still to be looked up."""
        batches = tuple(batch.to(self.device, self.dtype, self.run.engine.channels_last) for batch in batches)
        return Step(batches, number, Draws(self.run.seed, number), self.active, self.ranks.reduce)

    def queries(self, step: Step) -> Queries | None:
        """What the method wants to look up for this step; may be asked before the step is the next one."""
        self.model.train()
        with torch.no_grad(), self._autocast():
            return self.model.queries(step)

    def ahead(self, stream: Iterable[tuple[int, tuple[Batch, ...]]]) -> Iterator[Step]:
        """The steps of a stream, with their neighbours: searched and decoded by a thread while the step before is taken."""
        with ThreadPoolExecutor(1, thread_name_prefix="recollect-search") as thread:
            waiting: tuple[Step, Future[Tensor] | None] | None = None
            for number, batches in stream:
                step = self.prepare(number, batches)
                queries = self.queries(step)
                coming = step, thread.submit(self._searched, queries) if queries is not None else None
                if waiting is not None:
                    yield self._complete(*waiting)
                waiting = coming
            if waiting is not None:
                yield self._complete(*waiting)

    def _complete(self, step: Step, future: Future[Tensor] | None) -> Step:
        step.neighbours = None if future is None else self.found(future.result())
        return step

    def _searched(self, queries: Queries) -> Tensor:
        if self.search is None:
            raise ValueError(
                f"{self.run.model.name} is guided by neighbours, and data.index is empty; build an index with "
                "`recollect index build` and give its place"
            )
        return self.search(queries)

    def found(self, pictures: Tensor) -> Tensor:
        """The neighbours (Q, k, 3, H, W) as the nets take them."""
        return pictures.to(self.device, self.dtype)

    def take(self, step: Step) -> dict[str, Tensor]:
        """Take a prepared step: its phases, the method's own state, the averaged weights."""
        assert step.number == self.step
        self.model.train()
        terms: dict[str, Tensor] = {}
        for phase in self.phases:
            if self.step % phase.every == 0:
                terms |= self.run_phase(phase, step)
        self.model.after_step(step)
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        self.step += 1
        return terms

    def run_phase(self, phase: Phase, step: Step) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        parameters: list[torch.nn.Parameter] = []
        for part in phase.parts:
            owned = [p for net in part.nets for p in self.model.get_submodule(net).parameters()]
            with self._autocast():
                found = part.terms(step)
            if not found:  # every term of this part has weight zero
                continue
            grads = torch.autograd.grad(weigh(found, self.run.weights), owned, allow_unused=True)
            for parameter, grad in zip(owned, grads, strict=True):
                parameter.grad = grad
            parameters += owned
            terms |= {name: term.detach() for name, term in found.items()}
        if not parameters:
            return {}
        values = torch.stack(list(terms.values()))
        averaged, finite = average_gradients(parameters, values, self.ranks)
        if not finite:
            wrong = [name for name, value in zip(terms, averaged, strict=True) if not value.isfinite()]
            raise NotFinite(f"step {step.number}, phase {phase.name}: {', '.join(wrong) or 'a gradient'} is not finite")
        for net in dict.fromkeys(net for part in phase.parts for net in part.nets):
            self._step_optimiser(net, phase.clip)
        return dict(zip(terms, averaged, strict=True))

    def _step_optimiser(self, net: str, clip: float | None) -> None:
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.get_submodule(net).parameters(), clip)
        optimiser = self.optimisers[net]
        for group in optimiser.param_groups:
            group["lr"] = rate(self.run.optimiser(net), self.step, self.run.engine.steps)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    def _autocast(self) -> contextlib.AbstractContextManager[None]:
        if self.run.engine.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def subject(self) -> Pipeline | Trainable:
        """What a judge judges: the averaged weights where they are kept, else the live ones; ready to translate, or to use."""
        model = self.ema.module if self.ema is not None else self.model
        assert isinstance(model, Trainable)
        return Pipeline(model, self.run.name, self.device, self.search) if isinstance(model, Translator) else model.eval()

    def save(self, path: Path, history: list[dict[str, Any]], parents: Mapping[str, str], training: bool = True) -> None:
        """Write a bundle of the present state; with `training` one that training can go on from."""
        assert self.model.frozen_digest() == self._frozen, f"frozen nets have changed: {', '.join(self.model.frozen)}"
        averaged = int(self.ema.n_averaged) if self.ema is not None else None
        bundles.write(
            path,
            self.run,
            self.domains,
            self.model.state_dict(),
            ema=self.ema.module.state_dict() if self.ema is not None else None,
            metrics=history,
            parents=parents,
            card=card_of(self.run, self.domains, history, self.model),
            extra=checkpoint.pack(self.step, self.optimisers, averaged, self.best) if training else None,
        )

    def begin(self) -> list[dict[str, Any]]:
        """Let the method read what it starts from; returns the history of a run that begins, which is empty."""
        self.model.begin()
        self._frozen = self.model.frozen_digest()
        if self.ema is not None:
            self.ema.module.load_state_dict(self.model.state_dict())
        return []

    def resume(self, path: Path, parents: Mapping[str, str]) -> list[dict[str, Any]]:
        """Go on from a checkpoint; returns its history. The step after this is the one that would have come.

        Raises ValueError where model, seed, batch size, data (by settings, or by digest in `parents`) or the index are not what
        they were.
        """
        opened = bundles.open_bundle(path)
        own, now, elsewhere = opened.run, self.run, {"store": ""}  # a store may have moved; its digest tells
        same = {
            "model": own.model == now.model and opened.domains == self.domains,
            "seed": own.seed == now.seed,
            "engine.batch_size": own.engine.batch_size == now.engine.batch_size,
            "data": own.data.model_copy(update=elsewhere) == now.data.model_copy(update=elsewhere)
            and opened.manifest["parents"].get("data") == parents.get("data"),
        }
        before = opened.manifest["parents"].get("index")
        same["index"] = before is None or parents.get("index") in (None, before)  # the neighbours would be others
        other = [name for name, equal in same.items() if not equal]
        if other:
            raise ValueError(
                f"{path} was trained with another {', another '.join(other)}; resume it as it was, or start a new run"
            )
        self.model.load_state_dict(opened.state("model"))
        self._frozen = self.model.frozen_digest()
        scalars = checkpoint.unpack(opened.path, self.optimisers)
        if self.ema is not None and scalars["averaged"] is not None:
            self.ema.module.load_state_dict(opened.state("ema"))
            self.ema.n_averaged.fill_(scalars["averaged"])
        self.step, self.best = int(scalars["step"]), scalars["best"]
        return opened.metrics()


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
        for step in trainer.ahead(stream):
            loop.advance(step)
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

    def advance(self, prepared: Step) -> None:
        """One step and whatever is due after it."""
        trainer, engine = self.trainer, self.trainer.run.engine
        try:
            terms = trainer.take(prepared)
        except NotFinite as error:
            self._save_broken(error)
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, 0) + term
            self.counts[name] = self.counts.get(name, 0) + 1
        self.pictures += sum(len(batch) for batch in prepared.batches) * trainer.ranks.world
        step, last = trainer.step, trainer.step >= engine.steps
        if step % engine.log_every == 0 or last:
            self._log()
        if last or _due(step, engine.evaluate_every):
            self.pause(evaluate=True)
        elif _due(step, engine.checkpoint_every):
            self.pause(evaluate=False)
        if self.tracker and _due(step, engine.sample_every) and not last and not _due(step, engine.evaluate_every):
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
