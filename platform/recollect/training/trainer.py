"""A model in training, without Ray: what one step does.

A step, in order: look up neighbours where the method asks for them (done by a thread while the step before is taken); for each
phase compute its parts' terms, weigh them, take each part's gradient for its nets only, average gradients over ranks, look
whether everything is finite, clip, step the optimisers; then let the method commit its own state, and update the averaged
weights.

With `engine.accumulate` above 1 a step comes in so many parts, which together take the step of the whole batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from recollect import bundle as bundles
from recollect.batch import Batch, Domains, onto
from recollect.config import Run, find_method
from recollect.objective import Terms, active, weigh
from recollect.pipeline import Pipeline
from recollect.trainable import Draws, Part, Phase, Queries, Search, Step, Trainable, Translator
from recollect.training import checkpoint
from recollect.training.accumulate import accumulated, committed
from recollect.training.blocks import compiled, recompute
from recollect.training.card import card_of
from recollect.training.finite import NotFinite, Watch
from recollect.training.optim import make_optimisers, rate
from recollect.training.sync import Gradients, Ranks

Parts = tuple[Step, ...]  # of one step: its batch, in parts of one size


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
        self.watch = Watch(self.device)
        self.ema: AveragedModel | None = None
        if run.engine.ema:
            self.ema = AveragedModel(self.model)
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
        share = run.engine.batch_size // self.ranks.world
        if share % run.engine.accumulate:
            raise ValueError(
                f"engine.accumulate={run.engine.accumulate} does not divide the {share} pictures of a batch that a process has "
                f"(engine.batch_size={run.engine.batch_size}, workers: {self.ranks.world})"
            )

    best: float | None

    def update(self, batches: tuple[Batch, ...]) -> dict[str, Tensor]:
        """One training step on the batches of all domains; returns the terms, averaged over ranks, on the device."""
        parts = self.prepare(self.step, batches)
        for part in parts:
            if (queries := self.queries(part)) is not None:
                part.neighbours = self.found(self._searched(queries))
        return self.take(parts)

    def prepare(self, number: int, batches: tuple[Batch, ...]) -> Parts:
        """The step of that number, in parts, with its batches on the device; neighbours are still to be looked up."""
        batches = tuple(batch.to(self.device, self.dtype, self.run.engine.channels_last) for batch in batches)
        split = zip(*(batch.parts(self.run.engine.accumulate) for batch in batches), strict=True)
        draws, shares = Draws(self.run.seed, number), self.ranks.world * self.run.engine.accumulate
        return tuple(Step(part, number, draws, self.active, self.ranks.reduce, shares) for part in split)

    def queries(self, step: Step) -> Queries | None:
        """What the method wants to look up for this step; may be asked before the step is the next one."""
        self.model.train()
        with torch.no_grad(), self._autocast():
            return self.model.queries(step)

    def ahead(self, stream: Iterable[tuple[int, tuple[Batch, ...]]]) -> Iterator[Parts]:
        """The steps of a stream, with their neighbours: searched and decoded by a thread while the step before is taken."""
        with ThreadPoolExecutor(1, thread_name_prefix="recollect-search") as thread:
            waiting: list[tuple[Step, Future[Tensor] | None]] = []
            for number, batches in stream:
                coming = []
                for part in self.prepare(number, batches):
                    queries = self.queries(part)
                    coming.append((part, thread.submit(self._searched, queries) if queries is not None else None))
                if waiting:
                    yield self._complete(waiting)
                waiting = coming
            if waiting:
                yield self._complete(waiting)

    def _complete(self, waiting: Iterable[tuple[Step, Future[Tensor] | None]]) -> Parts:
        parts = []
        for part, future in waiting:
            part.neighbours = None if future is None else self.found(future.result())
            parts.append(part)
        return tuple(parts)

    def _searched(self, queries: Queries) -> Tensor:
        if self.search is None:
            raise ValueError(
                f"{self.run.model.name} is guided by neighbours, and data.index is empty; build an index with "
                "`recollect index build` and give its place"
            )
        return self.search(queries)

    def found(self, pictures: Tensor) -> Tensor:
        """The neighbours (Q, k, 3, H, W) as the nets take them."""
        return onto(pictures, self.device, self.dtype)

    def take(self, parts: Parts) -> dict[str, Tensor]:
        """Take a prepared step: its phases, the method's own state, the averaged weights.

        Raises NotFinite, with `step` and state as they were before what was not finite: on a GPU that can be the step before.
        """
        assert parts[0].number == self.step
        self.model.train()
        terms: dict[str, Tensor] = {}
        for phase in self.phases:
            if self.step % phase.every == 0:
                terms |= self.run_phase(phase, parts)
        self._commit(parts)
        if self.ema is not None:
            self._average(self.ema)
        self.step += 1
        self.settle(self.step - 1)
        return terms

    def settle(self, before: int | None = None) -> None:
        """Raise NotFinite where a step before this one was not finite; by default any."""
        try:
            self.watch.check(self.step if before is None else before)
        except NotFinite as error:
            if self.ema is not None:
                self.ema.n_averaged -= self.step - error.step  # which averaged nothing
            self.step = error.step
            raise

    def run_phase(self, phase: Phase, parts: Parts) -> dict[str, Tensor]:
        """The update of one phase; returns its terms, averaged over ranks."""
        gradients, terms = Gradients(self.ranks), Terms()
        for part in phase.parts:
            terms |= self._differentiate(part, parts, gradients)
        if not terms:  # all have weight zero
            return {}
        averaged, finite = gradients.finish(torch.stack(list(terms.values())))
        self.watch.note(parts[0].number, phase.name, list(terms), averaged, finite)
        for net in dict.fromkeys(net for part in phase.parts for net in part.nets):
            self._step_optimiser(net, phase.clip)
        return dict(zip(terms, averaged, strict=True))

    def _differentiate(self, part: Part, parts: Parts, gradients: Gradients) -> Terms:
        """The terms of a part, detached; the gradients of its nets go where they are collected."""
        owned = [parameter for net in part.nets for parameter in self.model.get_submodule(net).parameters()]

        def terms(step: Step) -> Terms:
            with self._autocast():
                return part.terms(step)

        if len(parts) > 1:
            found, grads = accumulated(terms, lambda found: weigh(found, self.run.weights), parts, owned)
            if found:
                gradients.give(grads, owned)
            return found
        found = terms(parts[0])
        if found:
            gradients.take(weigh(found, self.run.weights), owned)
        return {name: term.detach() for name, term in found.items()}

    def _step_optimiser(self, net: str, clip: float | None) -> None:
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.get_submodule(net).parameters(), clip)
        optimiser = self.optimisers[net]
        for group in optimiser.param_groups:
            group["lr"] = rate(self.run.optimiser(net), self.step, self.run.engine.steps)
        if self.watch.behind:
            optimiser.found_inf = self.watch.broken  # type: ignore[attr-defined]  # fused ones leave everything as it is then
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _average(self, ema: AveragedModel) -> None:
        """Move the averaged weights towards the current ones; not at all where something was not finite.

        AveragedModel's own way copies its count to the device, for which the host would wait.
        """
        averaged, current = (list[Tensor](module.parameters()) for module in (ema.module, self.model))
        if ema.n_averaged == 0:
            torch._foreach_copy_(averaged, current)
        elif self.watch.behind:
            share = (1 - self.run.engine.ema) * (1 - self.watch.broken)
            for mean, new in zip(averaged, current, strict=True):
                mean.lerp_(new, share.to(mean))
        else:
            torch._foreach_lerp_(averaged, current, 1 - self.run.engine.ema)
        for kept, state in zip(ema.module.buffers(), self.model.buffers(), strict=True):
            kept.copy_(state)
        ema.n_averaged += 1

    @torch.no_grad()
    def _commit(self, parts: Parts) -> None:
        """Let the method write its own state, which stays as it was where something was not finite."""
        state = list(self.model.buffers()) if self.watch.behind else []
        before = [buffer.clone() for buffer in state]
        if len(parts) > 1:
            committed(self.model.after_step, parts)
        else:
            self.model.after_step(parts[0])
        for buffer, old in zip(state, before, strict=True):
            buffer.copy_(torch.where(self.watch.broken > 0, old, buffer))

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
