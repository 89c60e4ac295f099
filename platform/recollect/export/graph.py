"""A translator as a function of tensors alone: what is fixed in it, what it takes, for which sizes.

Fixed are the weights, the source and the target domain. Pictures are always an input; so are the attributes of a method that
translates between attributes, and the neighbours of a method that draws with some. The style may be one: what `sample_guide`
draws, `Guide.noise`. Without it the graph gives the method's deterministic translation.

Legend: B pictures, H x W pixels (multiples of `stride`), S attributes, k neighbours, N memory items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from recollect.batch import Guide
from recollect.pipeline import Pipeline
from recollect.trainable import AttributeWise, ClassWise, Guided, Translator

OPTIONAL = ("style",)  # inputs that are there on request
FIELDS = {"style": "noise", "attributes": "attributes", "neighbours": "neighbours"}  # input -> field of Guide
FEWEST_CELLS = 4  # along a side; networks with reflection padding need a few
MOST_CELLS = 4096
Shapes = dict[str, dict[int, Dim]]


class Graph(nn.Module):
    """The translator between two domains. Called with `images` (B, 3, H, W) in [-1, 1] and its other inputs, in order.

    Returns the pictures (B, 3, H, W), then the method's extras in the order of `outputs`.
    """

    def __init__(self, model: Translator, source: int, target: int, inputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.source, self.target, self.inputs = model, source, target, tuple(inputs)

    def forward(self, images: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        guide = guide_of(dict(zip(self.inputs, others, strict=True)))
        result = self.model.translate(images, self.source, self.target, guide)
        return (result.images.clamp(-1, 1), *result.extras.values())


@dataclass(frozen=True)
class Traceable:
    """A graph with all that tracing it takes.

    Args:
        inputs: names, `images` first.
        shapes: for people, by the name of an input or output.
        dynamic: per input, the axes of which any size is allowed.
        stored: for a memory, its stored style (N, C), which as `style` gives the deterministic translation.
    """

    graph: Graph
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: Mapping[str, str]
    example: tuple[Tensor, ...]
    dynamic: Shapes
    stored: Tensor | None = field(default=None, repr=False)

    def program(self) -> torch.export.ExportedProgram:
        """The graph, traced for any batch and size."""
        axes = tuple(self.dynamic[name] for name in self.inputs[1:])
        shapes = (self.dynamic["images"], *([axes] if axes else []))
        with torch.no_grad():
            return torch.export.export(self.graph, self.example, dynamic_shapes=shapes, strict=False)


def traceable(pipeline: Pipeline, target: str, source: str | None = None, wanted: Sequence[str] = ()) -> Traceable:
    """The graph of a pipeline's translator between two domains.

    Args:
        target, source: as `Pipeline` takes them.
        wanted: optional inputs: `style`.

    Raises ValueError for unknown domains, for an input that is not known or that the method has no use for.
    """
    model = pipeline.model.float().cpu().eval()
    to = pipeline.domains.index(target)
    origin = pipeline.domains.index(source or next((name for name in pipeline.domains.names if name != target), target))
    inputs = _inputs(pipeline, wanted)
    stride = model.stride
    batch, rows, columns = (Dim(name, min=low, max=high) for name, low, high in _RANGES)
    height, width = rows * stride, columns * stride
    sides = (6 * stride, 8 * stride) if stride >= 4 else (24 * stride, 32 * stride)  # unlike: else one is taken for both
    example: dict[str, Tensor] = {"images": torch.zeros(2, 3, *sides)}
    dynamic: Shapes = {"images": {0: batch, 2: height, 3: width}}
    shapes = {"images": "(B, 3, H, W) in [-1, 1]"}
    for name in inputs:
        if name == "attributes":
            assert isinstance(model, AttributeWise)
            names = model.style_attributes()
            example[name], dynamic[name] = torch.zeros(2, len(names)), {0: batch}
            shapes[name] = f"(B, {len(names)}) in [0, 1]: {', '.join(names)}"
        elif name == "neighbours":
            k = _neighbours(pipeline)
            example[name], dynamic[name] = torch.zeros(2, k, 3, *sides), {0: batch, 3: height, 4: width}
            shapes[name] = f"(B, {k}, 3, H, W) in [-1, 1], nearest first, of the pictures' size"
        else:
            example[name] = _drawn(model, to, 2)
            dynamic[name] = {0: batch, **_free_axes(example[name])}
            shapes[name] = _shape(example[name], dynamic[name])
    graph = Graph(model, origin, to, inputs)
    with torch.no_grad():
        extras = model.translate(example["images"], origin, to, guide_of(example)).extras
    shapes |= {"translation": "(B, 3, H, W) in [-1, 1]"} | {name: _extra_shape(name, stride) for name in extras}
    stored = torch.cat(list(model.stored_values(to).values())) if "style" in inputs and isinstance(model, ClassWise) else None
    return Traceable(graph, ("images", *inputs), ("translation", *extras), shapes, tuple(example.values()), dynamic, stored)


_RANGES = (("batch", 1, 1024), ("rows", FEWEST_CELLS, MOST_CELLS), ("columns", FEWEST_CELLS, MOST_CELLS))


def _inputs(pipeline: Pipeline, wanted: Sequence[str]) -> tuple[str, ...]:
    """The inputs beside the pictures: what the method cannot do without, and what is wanted."""
    model = pipeline.model
    needed = []
    if isinstance(model, AttributeWise) and model.style_attributes() != pipeline.domains.names:  # else the target says it
        needed.append("attributes")
    if _neighbours(pipeline):
        needed.append("neighbours")
    for name in wanted:
        if name not in OPTIONAL and name not in needed:
            able = [*needed, *(OPTIONAL if pipeline.random_styles else ())]
            raise ValueError(
                f"{model.config.name} has no input {name!r}; it can have: images, {', '.join(able) or 'and no other'}"
            )
    if "style" in wanted and not pipeline.random_styles:
        raise ValueError(f"{model.config.name} has one translation of a picture and no style to choose; leave the input out")
    return (*needed, *(name for name in OPTIONAL if name in wanted))


def _neighbours(pipeline: Pipeline) -> int:
    """With how many neighbours the method draws; 0 where with none."""
    model = pipeline.model
    if not isinstance(model, Guided):
        return 0
    blank = torch.zeros(1, 3, 32 * model.stride, 32 * model.stride)
    with torch.no_grad():
        queries = model.look_up(blank, 0, 0, Guide())
    return 0 if queries is None else queries.k


def _drawn(model: Translator, target: int, count: int) -> Tensor:
    """Styles of pictures, as `sample_guide` draws them."""
    noise = model.sample_guide(target, [torch.Generator().manual_seed(seed) for seed in range(count)]).noise
    assert noise is not None
    return noise


def _free_axes(style: Tensor) -> dict[int, Dim]:
    """A style that is a map is repeated or cut to the pictures, so its height and width are free."""
    return {2: Dim("style_rows", max=MOST_CELLS), 3: Dim("style_columns", max=MOST_CELLS)} if style.ndim == 4 else {}


def _shape(style: Tensor, axes: Mapping[int, Dim]) -> str:
    free = {0: "B", 2: "rows", 3: "columns"}
    return f"({', '.join(free[axis] if axis in axes else str(size) for axis, size in enumerate(style.shape))})"


def _extra_shape(name: str, stride: int) -> str:
    return {
        "memory_map": f"(B, h, w) int64: the memory item that each cell of {stride} x {stride} pixels reads",
        "mask": "(B, 1, H, W) in [0, 1]: what was drawn anew",
    }.get(name, "as the method says")


def guide_of(inputs: Mapping[str, Tensor]) -> Guide:
    """The guide that inputs of a graph make; `images` among them is none."""
    fields: dict[str, Any] = {FIELDS[name]: value for name, value in inputs.items() if name in FIELDS}
    return Guide(**fields)
