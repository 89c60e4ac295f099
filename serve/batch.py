"""A bundle that answers many requests with one forward. Knows nothing of Ray."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recollect import attributes
from recollect.batch import Guide, Translation
from recollect.bundle import open_bundle
from recollect.config import Data
from recollect.data.transforms import to_uint8, to_unit
from recollect.pipeline import Pipeline, pad_to
from recollect.retrieval.guided import open_pipeline
from recollect.retrieval.index import Matches
from recollect.retrieval.library import Library
from recollect.styles import StyleError, check, choose
from recollect.trainable import AttributeWise, ClassWise, Guided, Queries
from serve.metrics import Meter
from serve.work import Done, Job, Neighbour, Pixels, Refusal, Wish, padded_size

logger = logging.getLogger("ray.serve")
Values = Mapping[str, Tensor]  # class name -> (N_k, C)
ON_CPU = 256 * 256  # pixels of a forward on a CPU: with more it leaves the caches, and a picture takes longer than it would alone
MASK = "mask"  # what methods call the extra that requests call attention_mask


class Noted:
    """A library that remembers what it found last, for the thread that asked."""

    def __init__(self, library: Library, meter: Meter) -> None:
        self.library, self.meter = library, meter
        self._last = threading.local()

    def __call__(self, queries: Queries) -> Tensor:
        with self.meter.stage("search"):
            found = self.library.find(queries)
            pictures = self.library.shown(found)
        self._last.found = found, pictures
        return pictures

    def last(self) -> tuple[Matches, Tensor] | None:
        """What this thread's last call found, once."""
        found: tuple[Matches, Tensor] | None = self._last.__dict__.pop("found", None)
        return found


class BatchTranslator:
    """A bundle, ready to translate lists of unlike pictures.

    Args:
        bundle: a path or URI.
        max_pixels: no forward gets more pixels than this, and none on a CPU more than ON_CPU (a single larger picture still gets
            its own).
        library: makes what a guided method looks into, of its run's data and the digest of its embedder; None: what the run was
            trained with.

    Raises ValueError when the bundle cannot be opened, does not translate pictures, or needs an index and there is none.
    """

    def __init__(
        self,
        bundle: str,
        device: str = "cpu",
        max_pixels: int = 2048 * 2048,
        library: Callable[[Data, str], Library] | None = None,
        meter: Meter | None = None,
    ) -> None:
        opened = open_bundle(bundle)
        self.run, self.digest = opened.run, opened.digest
        self.meter = meter or Meter()
        if library is None:
            self.pipeline = open_pipeline(opened, device)
        else:
            self.pipeline = Pipeline.open(opened, device)
            if isinstance(self.pipeline.model, Guided):
                self.pipeline.search = library(opened.run.data, self.pipeline.model.embedding_digest())
        self.library = self.pipeline.search if isinstance(self.pipeline.search, Library) else None
        if self.library is not None:
            self.pipeline.search = Noted(self.library, self.meter)
        self.name = self.pipeline.name
        self.gpu = self.pipeline.device.type == "cuda"
        self.max_pixels = max_pixels if self.gpu else min(max_pixels, ON_CPU)
        if self.gpu:
            self.pipeline.model.to(memory_format=torch.channels_last)
        self.random_styles, self.guides, self.extras = self._warm_up()

    def _warm_up(self) -> tuple[bool, tuple[str, ...], tuple[str, ...]]:
        """Translate at the training size: the first request pays for nothing, and we learn what the method can do."""
        size, domains = self.run.data.size, self.pipeline.domains.names
        blank = torch.zeros(1, 3, size, size)
        told = self._translated(blank, domains[-1], None, Guide(), None).extras
        extras = [name for name, key in (("memory_map", "memory_map"), ("attention_mask", MASK)) if key in told]
        guided = isinstance(self.pipeline.search, Noted) and self.pipeline.search.last() is not None
        extras += ["neighbours", "thumbnails"] if guided else []
        guides = ["attributes"] if isinstance(self.pipeline.model, AttributeWise) else []
        tried = {"exemplar": Guide(exemplar=blank)} | ({"strength": Guide(strength=torch.ones(1))} if guided else {})
        for name, guide in tried.items():
            with contextlib.suppress(ValueError):  # a method refuses by name what it does not take
                self._translated(blank, domains[-1], None, guide, None)
                guides.append(name)
        guides += ["styles"] if isinstance(self.pipeline.model, ClassWise) else []
        return self.pipeline.random_styles, tuple(guides), tuple(extras)

    def _translated(
        self, images: Tensor, target: str, source: str | None, guide: Guide, seeds: Sequence[int] | None
    ) -> Translation:
        """The pipeline's answer; in bf16 on a GPU, where that is what makes it fast."""
        if not self.gpu:
            return self.pipeline(images, target, source, guide, seeds)
        with torch.autocast("cuda", torch.bfloat16):
            images = images.to(self.pipeline.device).contiguous(memory_format=torch.channels_last)
            return self.pipeline(images, target, source, guide, seeds)

    def refusal(self, wish: Wish) -> Refusal | None:
        """Why such a request cannot be met, or None when it can."""
        name, domains, changes = self.run.model.name, self.pipeline.domains.names, wish.attributes
        for field, domain in (("target", wish.target), ("source", wish.source)):
            try:
                if domain is not None:
                    self.pipeline.domains.index(domain)
            except ValueError as error:
                return Refusal("unknown_domain", str(error), f"{field} is one of: {', '.join(domains)}")
        if wish.target is None and len(domains) > 1 and not changes:
            hint = f"give the field `target`, one of: {', '.join(domains)}"
            return Refusal("missing_target", f"target: which domain? the model has {', '.join(domains)}", hint)
        if wish.seeds is not None and not self.random_styles:
            message = f"{name} has one translation per picture and no random styles"
            return Refusal("no_random_styles", message, "leave out seed, samples and random_style")
        if wish.exemplar is not None and "exemplar" not in self.guides:
            return Refusal("no_exemplar", f"{name} takes no exemplar", "GET /v1/model lists the guides that it takes")
        if wish.strength is not None and "strength" not in self.guides:
            return Refusal("no_strength", f"{name} has no strength to set: {self._why_no_strength()}", "leave strength out")
        missing = sorted(set(wish.extras) - {*self.extras, "memory_map"})  # a map is only told where there is one
        if missing:
            hint = f"GET /v1/model lists the extras; here: {', '.join(self.extras) or 'none'}"
            return Refusal("no_extra", f"{name} does not tell {missing[0]}", hint)
        try:
            if changes:
                known = attributes.check(self.pipeline.model, changes).style_attributes()
                if wish.exemplar is not None:
                    return Refusal("contradiction", "attributes and an exemplar both say what is wanted", "leave one of them out")
                if wish.target in known:
                    message = f"the attributes of {self.name} are its domains, and {wish.target!r} is named as target too"
                    return Refusal("contradiction", message, "name it as target or among attributes, not both")
            if wish.styles:
                check(self.pipeline.model, wish.styles.chosen)
        except (StyleError, attributes.TargetError) as error:
            return refused(error)
        return None

    def _why_no_strength(self) -> str:
        if "neighbours" not in self.extras:
            return "no neighbours guide it"
        return "its fusion replaces the content, so it learned to draw with all that its neighbours show"

    def jobs(self, picture: Pixels, wish: Wish) -> list[Job]:
        """One job a sample, of a wish that is no `refusal`."""
        target = wish.target or self.pipeline.domains.names[0]
        shared = (wish.styles, wish.attributes, wish.strength, wish.exemplar, wish.extras)
        return [Job(picture, target, wish.source, seed, *shared) for seed in wish.seeds or (None,)]

    def translate(self, jobs: Sequence[Job]) -> list[Done | Exception]:
        """Translate pictures of any sizes and targets; like ones share a forward. One that fails does not harm the others."""
        results = dict(self.each(jobs))
        return [results[index] for index in range(len(jobs))]

    def each(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Done | Exception]]:
        """The same: index and result of each, as soon as it is computed."""
        groups: defaultdict[tuple[object, ...], list[int]] = defaultdict(list)
        chosen: dict[int, Values] = {}
        for index, found in enumerate(self._values(jobs)):
            if isinstance(found, Exception):
                yield index, found
            else:
                chosen[index] = found
                groups[jobs[index].key(self.pipeline.model.stride)].append(index)
        for indices in groups.values():
            for part in self._parts(indices, jobs[indices[0]].picture):
                yield from zip(part, self._done(part, jobs, chosen), strict=True)

    def _done(self, part: Sequence[int], jobs: Sequence[Job], chosen: Mapping[int, Values]) -> Sequence[Done | Exception]:
        self.meter.batch.labels(self.name).observe(len(part))
        try:
            with self.meter.stage("forward"):
                return self._forward([jobs[index] for index in part], [chosen[index] for index in part])
        except attributes.TargetError as error:
            return [error] * len(part)
        except Exception as error:
            logger.exception("a forward of %d pictures failed", len(part))
            return [error] * len(part)

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

    def _guide(self, jobs: Sequence[Job], images: Tensor, values: Sequence[Values]) -> Guide:
        """The guide of B jobs with one key."""
        first, exemplar, strength = jobs[0], None, None
        if first.exemplar is not None:
            exemplar = to_unit(torch.tensor(np.stack([job.exemplar for job in jobs if job.exemplar is not None])))
        if first.strength is not None:
            strength = torch.tensor([job.strength or 0.0 for job in jobs])
        wanted = self._attributes(jobs, images) if first.attributes else None
        return Guide(exemplar=exemplar, strength=strength, attributes=wanted, values=self._stacked(first.target, values))

    def _attributes(self, jobs: Sequence[Job], images: Tensor) -> Tensor:
        """The attributes (B, S) that the pictures shall have: what is read in them, with what each job changes."""
        model = self.pipeline.model
        assert isinstance(model, AttributeWise)
        own = attributes.read_attributes(self.pipeline, model, images, jobs[0].source)
        names, exclusive = model.style_attributes(), model.exclusive_attributes()
        rows = [attributes.changed(own[row : row + 1], job.attributes, names, exclusive) for row, job in enumerate(jobs)]
        return torch.cat(rows)

    def _stacked(self, target: str, values: Sequence[Values]) -> dict[str, Tensor] | None:
        """The values (B, N_k, C) of all classes that any of B jobs chooses; the others have the stored ones."""
        names = sorted({name for own in values for name in own})
        if not names:
            return None
        model = self.pipeline.model
        assert isinstance(model, ClassWise)
        stored = model.stored_values(self.pipeline.domains.index(target))
        rows = {name: [own.get(name, stored[name]).to(self.pipeline.device) for own in values] for name in names}
        return {name: torch.stack(row) for name, row in rows.items()}

    def _parts(self, indices: list[int], picture: Pixels) -> list[list[int]]:
        height, width = padded_size(picture.shape[1:], self.pipeline.model.stride)
        step = max(1, self.max_pixels // (height * width))
        return [indices[start : start + step] for start in range(0, len(indices), step)]

    def _forward(self, jobs: Sequence[Job], values: Sequence[Values]) -> list[Done]:
        images = self._images(jobs)
        seeds = [job.seed for job in jobs if job.seed is not None]
        translation = self._translated(images, jobs[0].target, jobs[0].source, self._guide(jobs, images, values), seeds or None)
        pictures = to_uint8(translation.images.float()).cpu().numpy()
        maps, masks = translation.extras.get("memory_map"), translation.extras.get(MASK)
        cells = maps.cpu().numpy() if maps is not None else None
        drawn = to_uint8(masks.float() * 2 - 1).cpu().numpy() if masks is not None and _any(jobs, "attention_mask") else None
        found = self.pipeline.search.last() if isinstance(self.pipeline.search, Noted) else None
        done = []
        for row, job in enumerate(jobs):
            height, width = job.picture.shape[1:]
            cell = images.shape[-2] // cells.shape[-2] if cells is not None else 0
            own = cells[row, : -(-height // cell), : -(-width // cell)] if cells is not None else None
            mask = drawn[row, 0, :height, :width] if drawn is not None and "attention_mask" in job.extras else None
            near = _neighbours(job, row, found) if found is not None else None
            done.append(Done(pictures[row, :, :height, :width], len(jobs), own, cell, mask, near))
        self._count([one.memory_map for one in done if one.memory_map is not None])
        return done

    def _images(self, jobs: Sequence[Job]) -> Tensor:
        """The pictures (B, 3, H, W) in [-1, 1], padded to the one size that all of them would be padded to alone."""
        arrays = [torch.tensor(job.picture) for job in jobs]
        if len({array.shape for array in arrays}) == 1:
            return pad_to(to_unit(torch.stack(arrays)), self.pipeline.model.stride)[0]
        return torch.cat([pad_to(to_unit(array)[None], self.pipeline.model.stride)[0] for array in arrays])

    def _count(self, maps: Sequence[NDArray[np.int64]]) -> None:
        """Which items were read, for whoever watches."""
        if maps:
            counts = np.bincount(np.concatenate([own.ravel() for own in maps]))
            for item in np.flatnonzero(counts).tolist():
                self.meter.reads.labels(self.name, str(item)).inc(int(counts[item]))

    def check(self) -> None:
        """Raise RuntimeError when a weight or buffer is not finite: broken memory, not a broken request."""
        for name, tensor in self.pipeline.model.state_dict().items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise RuntimeError(f"{self.name}: {name} is not finite")


def refused(error: StyleError | attributes.TargetError) -> Refusal:
    """What the ingress is told of styles and attributes that cannot be had."""
    if isinstance(error, StyleError):
        hint = "GET /v1/model lists style_classes, the classes and the items of each; see /docs"
    else:
        hint = "GET /v1/domains lists the attributes, and the groups of which a picture has one"
    return Refusal(error.code, str(error), hint)


def _any(jobs: Sequence[Job], extra: str) -> bool:
    return any(extra in job.extras for job in jobs)


def _neighbours(job: Job, row: int, found: tuple[Matches, Tensor]) -> tuple[Neighbour, ...] | None:
    if not job.extras & {"neighbours", "thumbnails"}:
        return None
    matches, pictures = found
    return near(matches, row, pictures[row] if "thumbnails" in job.extras else None)


def near(matches: Matches, row: int, pictures: Tensor | None) -> tuple[Neighbour, ...]:
    """What was found for one query, with its pictures (k, 3, S, S) in [-1, 1] where they are given."""
    shown = to_uint8(pictures).numpy() if pictures is not None else None
    pairs = matches.of(row)
    return tuple(
        Neighbour(id, distance, shown[place] if shown is not None else None) for place, (id, distance) in enumerate(pairs)
    )
