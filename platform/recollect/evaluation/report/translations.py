"""What the methods make of pictures: beside one another, with random styles and exemplars, with what was retrieved.

Every part asks the method what it can do, and is left out where it cannot.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from recollect.batch import Guide
from recollect.config import find_method, resolve
from recollect.data.store import Store
from recollect.data.transforms import to_uint8, to_unit
from recollect.evaluation.attributes import AttributeJudge
from recollect.evaluation.grids import picture_grid
from recollect.evaluation.memory.items import memory_of
from recollect.evaluation.memory.report import memory_panels
from recollect.evaluation.report.html import Section, heading, picture, said, steps
from recollect.evaluation.report.memory import panel
from recollect.evaluation.report.sources import Source
from recollect.evaluation.retrieval import named
from recollect.evaluation.validate import Cases, Validator, spread
from recollect.pipeline import Pipeline, pad_to
from recollect.retrieval.guided import open_pipeline
from recollect.trainable import AttributeWise, Guided, Translator

DETAILED = 6  # runs of which single pictures are drawn; a page of more says so
REMEMBERED = 3  # runs whose memory is laid open: a t-SNE takes seconds
BESIDE = 8  # runs beside one another in one grid
EXEMPLARS = 4
STYLES = 3
KINDS = {
    "Validator": "A row a picture: the input, its translation, random styles, and where there is truth the nearest true render.",
    "AttributeJudge": "A row a picture, with another attribute changed in every column; beneath, the true picture where known.",
    "RetrievalJudge": "A row a query: the picture, the attributes asked for, and what was found, nearest first.",
    "ClassificationJudge": "A row a picture: what the classifier says rightly, and what it says wrongly or misses.",
    "DetectionJudge": "A row a picture: true boxes, and the detections with a score of at least one half.",
}


@dataclass
class Studio:
    """Opens what is shown, each once.

    Args:
        store: where pictures are; empty: each run's own store.
        split: of the pictures; where a store has none of it, its validation split.
        rows: pictures of a grid.
        tell: told in words what is being done.
    """

    store: str
    split: str
    rows: int
    device: str
    tell: Callable[[str], None]
    index: str = ""
    library: str = ""
    _stores: dict[str, Store] = field(default_factory=dict)
    _subjects: dict[str, Any] = field(default_factory=dict)

    def store_of(self, run: Source) -> Store:
        """The run's store. Raises ValueError or OSError where it is gone."""
        uri = self.store or run.run.data.store
        if uri not in self._stores:
            self._stores[uri] = Store.open(uri)
        return self._stores[uri]

    def split_of(self, run: Source) -> str:
        """The split to show."""
        counts = self.store_of(run).manifest.counts.get(self.split, {})
        return self.split if all(counts.get(name) for name in run.run.data.domains) else "val"

    def subject(self, run: Source) -> Any:
        """A Pipeline for a translator, else the method itself, ready to use."""
        if run.name not in self._subjects:
            if issubclass(find_method(run.run.model.name), Translator):
                guided = issubclass(find_method(run.run.model.name), Guided)
                where = {"index": self.index, "library": self.library} if guided else {}
                self._subjects[run.name] = open_pipeline(run.bundle, self.device, **where)
            else:
                self._subjects[run.name] = run.bundle.build().to(self.device)
        return self._subjects[run.name]

    def judge(self, run: Source) -> Any:
        """What judges the method, on the pictures to show; by its own first metric, which needs no other networks."""
        kind = resolve(find_method(run.run.model.name).judged_by)
        few = run.run.evaluation.model_copy(update={"pictures": self.rows, "metric": "auto"})
        return kind(self.store_of(run), run.run.model_copy(update={"evaluation": few}), self.split_of(run))


def pictures_section(runs: Sequence[Source], studio: Studio) -> Section:
    """Grids of every run, and of comparable runs side by side."""
    content = _beside(runs, studio) if len(runs) > 1 else ""
    shown = [(run.name, _guarded(run, lambda run=run: _of_run(run, studio))) for run in runs[:DETAILED]]  # type: ignore[misc]
    content += (heading("Run by run") if len(shown) > 1 else "") + steps("pictures", shown, "run")
    if len(runs) > DETAILED:
        content += said(f"Single pictures are drawn of the first {DETAILED} of {len(runs)} runs.")
    return Section("Pictures", content)


def memory_section(runs: Sequence[Source], studio: Studio) -> Section:
    """The memory of every run that has one with several items."""
    having = [run for run in runs if _has_memory(run, studio)]
    shown = [(run.name, _guarded(run, lambda run=run: _memory(run, studio))) for run in having[:REMEMBERED]]  # type: ignore[misc]
    content = steps("memory", shown, "run")
    if len(having) > REMEMBERED:
        content += said(f"Of the first {REMEMBERED} of {len(having)} runs with a memory.")
    return Section("Inside the memory", content)


def _memory(run: Source, studio: Studio) -> str:
    studio.tell(f"looking into the memory of {run.name}")
    return "".join(map(panel, memory_panels(studio.subject(run), studio.store_of(run), run.run, studio.split_of(run))))


def _has_memory(run: Source, studio: Studio) -> bool:
    if not hasattr(find_method(run.run.model.name), "stored_values"):  # not even opened
        return False
    try:
        subject = studio.subject(run)
    except (ValueError, OSError):
        return False
    return isinstance(subject, Pipeline) and memory_of(subject.model) is not None


def _guarded(run: Source, draw: Callable[[], str]) -> str:
    """What `draw` returns, or in words why it cannot be drawn: a store that has moved takes no report with it."""
    try:
        return draw()
    except (ValueError, OSError) as error:
        return said(f"Left out for {run.name}: {error}".splitlines()[0])


def _of_run(run: Source, studio: Studio) -> str:
    studio.tell(f"drawing pictures of {run.name}")
    judge, subject = studio.judge(run), studio.subject(run)
    split = studio.split_of(run)
    about = KINDS.get(type(judge).__name__, "")
    content = said(about) + picture(f"{run.name} on {split} pictures", judge.grid(subject, rows=studio.rows))
    if isinstance(judge, Validator):
        return content + _exemplars(subject, *_ends(judge.cases))
    if isinstance(judge, AttributeJudge):
        return content + _attributes(subject, judge, studio)
    return content


def _ends(cases: Cases) -> tuple[Tensor, Tensor, str, str]:
    """Inputs, exemplars of the target domain, and the names of both domains."""
    return cases.images, cases.targets, cases.source, cases.target


def _chosen(pictures: Tensor, count: int) -> Tensor:
    return pictures[[int(row) for row in spread([str(row) for row in range(len(pictures))], count)]]


def _exemplars(pipeline: Pipeline, images: Tensor, others: Tensor, source: str, target: str) -> str:
    """Inputs down, exemplars across: each translation has the style of the picture above it."""
    inputs, exemplars = _chosen(images, STYLES), _chosen(others, EXEMPLARS)
    blank = torch.full_like(inputs[:1], 255)
    columns = {f"{source} (input)": torch.cat([blank, inputs])}
    for place, exemplar in enumerate(exemplars):
        guide = Guide(exemplar=to_unit(exemplar[None]).expand(len(inputs), -1, -1, -1).contiguous())
        try:
            drawn = pipeline(to_unit(inputs), target, source=source, guide=guide).images
        except (ValueError, NotImplementedError):  # the method takes no exemplars
            return ""
        columns[f"style of exemplar {place + 1}"] = torch.cat([exemplar[None], to_uint8(drawn.cpu())])
    about = "The top row are pictures whose style is taken; beneath each the inputs, translated with it."
    return said(about) + picture(f"{pipeline.name} with the style of exemplars", picture_grid(columns))


def _attributes(pipeline: Pipeline, judge: AttributeJudge, studio: Studio) -> str:
    """Random styles of one attribute translation, what was looked up for it, and styles of exemplars."""
    cases = judge.cases(pipeline)
    first = {flip.picture: flip for flip in reversed(cases.flips)}
    flips = [first[row] for row in sorted(first)][: studio.rows]
    images = cases.images[[flip.picture for flip in flips]]
    sources = [cases.domains[flip.picture] for flip in flips]
    source, target = sources[0], cases.target(flips[0].picture, flips[0].wanted)
    same = [place for place, flip in enumerate(flips)
            if sources[place] == source and cases.target(flip.picture, flip.wanted) == target]  # fmt: skip
    flips, images = [flips[place] for place in same], images[same]
    guide = Guide(attributes=torch.tensor([list(flip.wanted) for flip in flips]))
    assert isinstance(pipeline.model, AttributeWise)  # or its judge would have refused it
    groups = pipeline.model.exclusive_attributes()
    words = [named(list(cases.names), list(flip.wanted), groups) for flip in flips]
    content = _neighbours(pipeline, images, source, target, guide, words)
    if pipeline.random_styles:
        columns: dict[str, Tensor | list[str]] = {"input": images, "wanted": words}
        for style in range(STYLES):
            drawn = pipeline(to_unit(images), target, source=source, guide=guide, seeds=[style] * len(images))
            columns[f"random style {style + 1}"] = to_uint8(drawn.images.cpu())
        content += said("The same attributes, drawn with random styles.")
        content += picture(f"{pipeline.name} with random styles", picture_grid(columns))
    if isinstance(pipeline.model, Guided):
        return content
    return content + _exemplars(pipeline, images, cases.images.flip(0), source, target)


def _neighbours(pipeline: Pipeline, images: Tensor, source: str, target: str, guide: Guide, words: list[str]) -> str:
    """What a guided method looked up for each picture, and what it drew with it."""
    model = pipeline.model
    if not isinstance(model, Guided) or pipeline.search is None:
        return ""
    with torch.inference_mode():
        padded, _ = pad_to(to_unit(images).to(pipeline.device, pipeline.dtype), model.stride)
        ends = pipeline.domains.index(source), pipeline.domains.index(target)
        queries = model.look_up(padded, *ends, guide)
        if queries is None:
            return ""
        found = pipeline.search(queries)  # (B, k, 3, H, W)
    drawn = pipeline(to_unit(images), target, source=source, guide=guide).images
    columns: dict[str, Tensor | list[str]] = {"input": images, "wanted": words}
    for place in range(min(found.shape[1], EXEMPLARS)):
        columns[f"retrieved {place + 1}"] = to_uint8(found[:, place].cpu())
    columns["translation"] = to_uint8(drawn.cpu())
    about = "What was looked up for each picture and its wanted attributes, nearest first, and the translation drawn with it."
    return said(about) + picture(f"{pipeline.name}: retrieved neighbours", picture_grid(columns))


def _beside(runs: Sequence[Source], studio: Studio) -> str:
    """The same inputs through all runs that translate in the same direction of the same store, at the same size."""
    groups: dict[Any, list[Source]] = {}
    for run in runs:
        method = find_method(run.run.model.name)
        if issubclass(method, Translator) and method.judged_by == Translator.judged_by and len(run.run.data.domains) > 1:
            place = os.fspath(studio.store or run.run.data.store)
            groups.setdefault((place, run.run.direction(), run.run.data.size, run.run.data.short_side), []).append(run)
    content = ""
    for members in groups.values():
        if len(members) > 1:
            content += _guarded(members[0], lambda members=members: _side_by_side(members, studio))  # type: ignore[misc]
    return content


def _side_by_side(runs: Sequence[Source], studio: Studio) -> str:
    studio.tell(f"drawing {len(runs[:BESIDE])} runs side by side")
    cases = studio.judge(runs[0]).cases
    columns = {f"{cases.source} (input)": cases.images}
    for run in runs[:BESIDE]:
        drawn = studio.subject(run)(to_unit(cases.images), cases.target, source=cases.source).images
        columns[run.name] = to_uint8(drawn.cpu())
    if cases.truth:
        columns["a true render"] = cases.truth.references[:, 0]
    about = f"The same pictures through every run, {cases.source} to {cases.target}, each with its style without chance."
    about += f" The first {BESIDE} of {len(runs)} runs." if len(runs) > BESIDE else ""
    return heading(f"Side by side: {cases.source} to {cases.target}") + said(about) + picture(
        f"{cases.source} to {cases.target}, all runs", picture_grid(columns)
    )  # fmt: skip
