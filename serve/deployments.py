"""The deployment that translates: it holds the bundle, and answers many requests with one forward."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray.serve
import torch
from numpy.typing import NDArray
from torch import Tensor

import recollect
from recollect.batch import Guide
from recollect.bundle import open_bundle
from recollect.data.transforms import to_unit
from recollect.pipeline import pad_to
from recollect.retrieval.guided import open_pipeline
from recollect.styles import Shown, Style, StyleError, check, choose
from recollect.trainable import ClassWise
from serve.errors import ApiError

logger = logging.getLogger("ray.serve")
Pixels = NDArray[np.uint8]
Values = Mapping[str, Tensor]  # class name -> (N_k, C)


@dataclass(frozen=True, slots=True)
class ClassStyles:
    """Styles by class, and the pictures (3, H, W) that they name."""

    chosen: Mapping[str, Style]
    pictures: Mapping[str, Pixels]

    def open(self, name: str) -> Shown:
        """One of the pictures."""
        return Shown(to_unit(torch.tensor(self.pictures[name]))[None])


@dataclass(frozen=True, slots=True)
class Job:
    """One picture to translate. Arrays travel between deployments without a copy; tensors would not."""

    picture: Pixels  # (3, H, W)
    target: str
    source: str | None
    seed: int | None  # None: the method's own deterministic style
    styles: ClassStyles | None = None  # those of single classes; the samples of one request share one object

    def key(self) -> tuple[object, ...]:
        """Jobs with the same key can share one forward.

        Without a seed, a class without a choice has its stored values, so all choices fit together; beside a seed it has what
        the seed draws, which is the method's own business, so there the same classes must be chosen.
        """
        classes = frozenset(self.styles.chosen) if self.styles and self.seed is not None else frozenset()
        return (*self.picture.shape, self.target, self.source, self.seed is None, classes)


@dataclass(frozen=True, slots=True)
class Done:
    """A translated picture (3, H, W), how many shared its forward, and its memory map (h, w) with cells of `cell` pixels."""

    picture: Pixels
    batch: int
    memory_map: NDArray[np.int64] | None = None
    cell: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the ingress gets: one `Done` a sample, and which model they are from."""

    done: tuple[Done, ...]
    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """The request cannot be met by this model. A value and no exception, so that it crosses processes as it is."""

    code: str
    message: str
    hint: str

    def error(self) -> ApiError:
        """The same as a 422."""
        return ApiError(422, self.code, self.message, self.hint)


def refused(error: StyleError) -> Refusal:
    """What the ingress is told of styles that cannot be had."""
    return Refusal(error.code, str(error), "GET /v1/model lists style_classes, the classes and the items of each; see /docs")


class BatchTranslator:
    """A bundle, ready to translate lists of unlike pictures. Knows nothing of Ray.

    Args:
        bundle: a path or URI.
        max_pixels: no forward gets more pixels than this (a single larger picture still gets its own).

    Raises ValueError when the bundle cannot be opened or does not translate pictures.
    """

    def __init__(self, bundle: str, device: str = "cpu", max_pixels: int = 2048 * 2048) -> None:
        opened = open_bundle(bundle)
        self.run, self.digest, self.max_pixels = opened.run, opened.digest, max_pixels
        self.pipeline = open_pipeline(opened, device)
        self.name = self.pipeline.name
        self.random_styles, self.extras = self._warm_up()

    def _warm_up(self) -> tuple[bool, tuple[str, ...]]:
        """Translate once at the training size: the first request pays for nothing, and we learn what the method can do."""
        size, domains = self.run.data.size, self.pipeline.domains.names
        blank = torch.zeros(1, 3, size, size)
        extras = self.pipeline(blank, domains[-1]).extras
        return self.pipeline.random_styles, tuple(extras)

    def card(self) -> dict[str, Any]:
        """What `GET /v1/model` tells, but for the limits."""
        domains = self.pipeline.domains
        return {
            "name": self.name,
            "digest": self.digest,
            "method": self.run.model.name,
            "domains": domains.names,
            "classes": domains.classes,
            "size": self.run.data.size,
            "random_styles": self.random_styles,
            "style_classes": self.pipeline.model.style_classes() if isinstance(self.pipeline.model, ClassWise) else {},
            "extras": self.extras,
            "device": str(self.pipeline.device),
            "recollect": recollect.__version__,
            "run": self.run.model_dump(mode="json"),
        }

    def refusal(self, target: str, source: str | None, seeded: bool, styles: ClassStyles | None = None) -> Refusal | None:
        """Why such a request cannot be met, or None when it can."""
        for field, name in (("target", target), ("source", source)):
            try:
                if name is not None:
                    self.pipeline.domains.index(name)
            except ValueError as error:
                hint = f"{field} is one of: {', '.join(self.pipeline.domains.names)}"
                return Refusal("unknown_domain", str(error), hint)
        if seeded and not self.random_styles:
            message = f"{self.run.model.name} has one translation per picture and no random styles"
            return Refusal("no_random_styles", message, "leave out seed, samples and random_style")
        try:
            if styles:
                check(self.pipeline.model, styles.chosen)
        except StyleError as error:
            return refused(error)
        return None

    def translate(self, jobs: Sequence[Job]) -> list[Done | Exception]:
        """Translate pictures of any sizes and targets; like ones share a forward. One that fails does not harm the others."""
        groups: defaultdict[tuple[object, ...], list[int]] = defaultdict(list)
        results: dict[int, Done | Exception] = {}
        chosen: dict[int, Values] = {}
        for index, found in enumerate(self._values(jobs)):
            if isinstance(found, Exception):
                results[index] = found
            else:
                chosen[index] = found
                groups[jobs[index].key()].append(index)
        for indices in groups.values():
            for part in self._parts(indices, jobs[indices[0]].picture):
                try:
                    done = self._forward([jobs[index] for index in part], [chosen[index] for index in part])
                    results.update(zip(part, done, strict=True))
                except Exception as error:
                    logger.exception("a forward of %d pictures failed", len(part))
                    results.update(dict.fromkeys(part, error))
        return [results[index] for index in range(len(jobs))]

    def _values(self, jobs: Sequence[Job]) -> list[Values | Exception]:
        """What each job chooses, computed once for all samples of a request."""
        keys = [(id(job.styles), job.target) for job in jobs]
        found = {key: self._values_of(job) for key, job in dict(zip(keys, jobs, strict=True)).items()}
        return [found[key] for key in keys]

    def _values_of(self, job: Job) -> Values | Exception:
        """The values of the classes that a job chooses, or why there are none."""
        if job.styles is None:
            return {}
        try:
            return choose(self.pipeline, job.target, job.styles.chosen, job.styles.open).values or {}
        except StyleError as error:
            return error
        except Exception as error:
            logger.exception("the styles of a request failed")
            return error

    def _guide(self, target: str, values: Sequence[Values]) -> Guide:
        """The values (B, N_k, C) of all classes that any of B jobs chooses; the others have the stored ones."""
        names = sorted({name for own in values for name in own})
        if not names:
            return Guide()
        model = self.pipeline.model
        assert isinstance(model, ClassWise)
        stored = model.stored_values(self.pipeline.domains.index(target))
        rows = {name: [own.get(name, stored[name]).to(self.pipeline.device) for own in values] for name in names}
        return Guide(values={name: torch.stack(row) for name, row in rows.items()})

    def _parts(self, indices: list[int], picture: Pixels) -> list[list[int]]:
        step = max(1, self.max_pixels // (picture.shape[1] * picture.shape[2]))
        return [indices[start : start + step] for start in range(0, len(indices), step)]

    def _forward(self, jobs: Sequence[Job], values: Sequence[Values]) -> list[Done]:
        images = torch.from_numpy(np.stack([job.picture for job in jobs])).to(torch.float32).div_(127.5).sub_(1)  # (B, 3, H, W)
        seeds = [job.seed for job in jobs if job.seed is not None]
        guide = self._guide(jobs[0].target, values)
        translation = self.pipeline(images, jobs[0].target, jobs[0].source, guide, seeds or None)
        pictures = translation.images.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        maps, cell = self._maps(translation.extras.get("memory_map"), images)
        return [Done(pictures[row], len(jobs), maps[row] if maps is not None else None, cell) for row in range(len(jobs))]

    def _maps(self, maps: Tensor | None, images: Tensor) -> tuple[NDArray[np.int64] | None, int]:
        """Memory maps without the cells that only padding fills, and the pixels a cell has."""
        if maps is None:
            return None, 0
        height, width = images.shape[-2:]
        padded, _ = pad_to(images[:1, :1], self.pipeline.model.stride)
        cell = padded.shape[-2] // maps.shape[-2]
        return maps[:, : -(-height // cell), : -(-width // cell)].cpu().numpy(), cell

    def check(self) -> None:
        """Raise RuntimeError when a weight or buffer is not finite: broken memory, not a broken request."""
        for name, tensor in self.pipeline.model.state_dict().items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise RuntimeError(f"{self.name}: {name} is not finite")


class Translator:
    """A `BatchTranslator` as a deployment (`serve.app.build` makes it one): all samples under way are translated together."""

    def __init__(self, bundle: str, device: str, threads: int, max_batch_size: int, batch_wait_s: float, max_pixels: int) -> None:
        torch.set_num_threads(threads)
        self.model = BatchTranslator(bundle, device, max_pixels)
        self.batched.set_max_batch_size(max_batch_size)
        self.batched.set_batch_wait_timeout_s(batch_wait_s)
        self.idle = asyncio.Event()
        self.idle.set()

    @ray.serve.batch  # type: ignore[untyped-decorator]  # Ray's types are not read
    async def batched(self, jobs: list[Job]) -> list[Done | Exception]:
        """In a thread, so that this replica goes on taking requests and answering health checks."""
        self.idle.clear()
        try:
            return await asyncio.to_thread(self.model.translate, jobs)
        finally:
            self.idle.set()

    async def _translated(self, job: Job) -> Done | Exception:
        """Join a batch only when no forward is under way: Ray closes a batch after its wait even if it must then queue behind
        another, so under load, without this, many small batches would form where one large one could."""
        await self.idle.wait()
        result: Done | Exception = await self.batched(job)
        return result

    async def translate(
        self, picture: Pixels, target: str, source: str | None, seeds: list[int] | None, styles: ClassStyles | None = None
    ) -> Answer | Refusal:
        """Translate one picture (3, H, W) once for each seed, or once without; `styles` hold for all of them."""
        refusal = self.model.refusal(target, source, seeds is not None, styles)
        if refusal:
            return refusal
        wanted: Sequence[int | None] = seeds or [None]
        results = await asyncio.gather(*[self._translated(Job(picture, target, source, seed, styles)) for seed in wanted])
        done = [result for result in results if isinstance(result, Done)]
        for result in results:
            if isinstance(result, StyleError):  # what only the exemplar itself could tell
                return refused(result)
            if isinstance(result, Exception):
                raise result
        return Answer(tuple(done), self.model.name, self.model.digest)

    async def card(self) -> dict[str, Any]:
        """What this replica translates with."""
        return self.model.card()

    def check_health(self) -> None:
        """Called by Ray Serve; a replica that raises here is replaced."""
        self.model.check()
