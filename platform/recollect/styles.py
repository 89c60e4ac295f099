"""Styles chosen class by class: what may be chosen, its notation for people and for JSON, and the guide that it makes.

    stored                 what training left (what a class without a choice has, unless the picture has a seed or an exemplar)
    random:SEED            a random style
    item:N                 the style of the class's item N, for all its items
    PICTURE                the style that the class has in a picture of the target domain; PICTURE@BOXES.json with COCO boxes,
                           otherwise the memory itself reads which cells are of the class
    mix:AMOUNT:A:B         from A (0) to B (1), each one of the above; a colon in a path is written %3A here

Only these words before a colon mean something: `a:b.jpg` is a path, and so is `./random:7`. In JSON a style is an object with
the word as its key: {"random": 7}, {"mix": [{"stored": true}, {"item": 2}], "amount": 0.3}.

Legend: C channels of a value, N_k items of class k, H x W pixels, h x w cells of the feature grid.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import torch
from pydantic import Discriminator, Field, Tag
from torch import Tensor
from torch.nn import functional as F

from recollect.batch import Guide
from recollect.config import Frozen, did_you_mean, find_method, methods
from recollect.data.schema import Box
from recollect.data.sources.coco import Entry, read_coco
from recollect.data.transforms import decode, rasterise, to_unit
from recollect.pipeline import Pipeline, pad_to
from recollect.trainable import ClassWise, Translator

MAX_SEED = 2**32 - 1
GRAMMAR = "stored, random:SEED, item:N, PICTURE, PICTURE@BOXES.json, or mix:AMOUNT:A:B"
KINDS = ("stored", "random", "item", "exemplar", "mix")  # `exemplar` is a key in JSON; as a word it is kept free
OBJECTS = (
    "a style is an object with one of the keys stored (true), random (a seed), item (its number), exemplar (a picture), or mix "
    "(two of these) with an amount"
)


class StyleError(ValueError):
    """A style that is none, or that this model cannot give. `code` is a stable name for programs."""

    code = "bad_style"


class UnknownClass(StyleError):
    """A style for a class that the memory does not have."""

    code = "unknown_class"


class NotClassWise(StyleError):
    """Styles by class for a method without a memory."""

    code = "no_class_styles"


class ClassNotShown(StyleError):
    """An exemplar that shows no cell of the class."""

    code = "class_not_shown"


class Stored(Frozen):
    """What training left for the class."""

    stored: Literal[True] = True

    def __str__(self) -> str:
        return "stored"


class Random(Frozen):
    """One random draw; all classes with the same seed share it, and it is the one that the seed of a whole picture makes."""

    random: Annotated[int, Field(ge=0, le=MAX_SEED, description="the seed")]

    def __str__(self) -> str:
        return f"random:{self.random}"


class Item(Frozen):
    """The stored value of one item of the class, for all of them."""

    item: Annotated[int, Field(ge=0, description="the item's number within its class, from 0")]

    def __str__(self) -> str:
        return f"item:{self.item}"


class Exemplar(Frozen):
    """The style that the class has in a picture of the target domain."""

    exemplar: Annotated[str, Field(min_length=1, description="the picture in base64; in a form, the name of its file's part")]
    boxes: Annotated[
        tuple[Box, ...] | None,
        Field(max_length=1000, description="where it shows what, in pixels; default: the memory reads it"),
    ] = None

    def __str__(self) -> str:
        return self.exemplar


def _kind(value: Any) -> str | None:
    keys = value if isinstance(value, Mapping) else type(value).model_fields if isinstance(value, Frozen) else ()
    return next((kind for kind in KINDS if kind in keys), None)


_BY_KEY = Discriminator(_kind, custom_error_type="style", custom_error_message=OBJECTS)
_Simple: TypeAlias = (
    Annotated[Stored, Tag("stored")]
    | Annotated[Random, Tag("random")]
    | Annotated[Item, Tag("item")]
    | Annotated[Exemplar, Tag("exemplar")]
)
Simple: TypeAlias = Annotated[_Simple, _BY_KEY]


class Mix(Frozen):
    """Between two styles: their weighted sum, normalised."""

    mix: Annotated[tuple[Simple, Simple], Field(description="two styles, neither of them a mix")]
    amount: Annotated[float, Field(ge=0, le=1, description="0 is the first, 1 the second")]

    def __str__(self) -> str:
        texts = [str(part) for part in self.mix]
        for index, part in enumerate(self.mix):
            if isinstance(part, Exemplar):
                texts[index] = part.exemplar.replace("%", "%25").replace(":", "%3A")
        return f"mix:{self.amount!r}:{':'.join(texts)}"


Style: TypeAlias = Annotated[_Simple | Annotated[Mix, Tag("mix")], _BY_KEY]


def parse(text: str) -> Style:
    """A style from its notation; `str` gives it back. Raises StyleError with what would have worked.

    >>> parse("mix:0.25:random:7:streets/night.jpg")
    Mix(mix=(Random(random=7), Exemplar(exemplar='streets/night.jpg', boxes=None)), amount=0.25)
    >>> parse("C:/night.jpg")
    Exemplar(exemplar='C:/night.jpg', boxes=None)
    """
    word, *rest = text.split(":")
    if word == "mix":
        return _mix(text, rest)
    if text and word not in KINDS:
        return Exemplar(exemplar=text)
    style, rest = _simple(text, [word, *rest])
    if rest:
        raise _wrong(text, f"nothing follows {style}")
    return style


def _mix(text: str, words: Sequence[str]) -> Mix:
    if len(words) < 3:
        raise _wrong(text, "a mix is mix:AMOUNT:A:B, as in mix:0.3:stored:random:7")
    amount, *rest = words
    first, rest = _simple(text, rest)
    second, rest = _simple(text, rest)
    if rest:
        raise _wrong(text, f"nothing follows {second}; a colon in a path is written %3A in a mix")
    try:
        return Mix(mix=(first, second), amount=float(amount))
    except ValueError:  # also pydantic's
        raise _wrong(text, f"the amount {amount!r} is not a number from 0 to 1") from None


def _simple(text: str, words: Sequence[str]) -> tuple[Simple, list[str]]:
    """The style at the beginning of these words, and the words behind it."""
    word, *rest = words or [""]
    if not word:
        raise _wrong(text, "there is nothing where a style should be")
    if word == "stored":
        return Stored(), rest
    if word in ("random", "item"):
        kind, what = (Random, f"SEED, a whole number from 0 to {MAX_SEED}") if word == "random" else (Item, "N, counted from 0")
        number = rest[0] if rest else ""
        if not re.fullmatch(r"[0-9]{1,12}", number) or word == "random" and int(number) > MAX_SEED:
            raise _wrong(text, f"{number!r} is not {what} (a file of that name is ./{word})")
        return kind.model_validate({word: int(number)}), rest[1:]
    if word in KINDS:
        raise _wrong(text, f"{word!r} cannot stand there (a file of that name is ./{word})")
    return Exemplar(exemplar=re.sub("%3A|%25", lambda match: {"%3A": ":", "%25": "%"}[match[0]], word)), rest


def _wrong(text: str, reason: str) -> StyleError:
    return StyleError(f"{text!r} is no style: {reason}; a style is {GRAMMAR}")


def parts(style: Style) -> tuple[Simple, ...]:
    """The two styles of a mix, or the style itself."""
    return style.mix if isinstance(style, Mix) else (style,)


def parse_choices(texts: Iterable[str]) -> dict[str, Style]:
    """Styles by class from `CLASS=STYLE` texts. Raises StyleError for another form, and for two styles for one class."""
    found: dict[str, Style] = {}
    for text in texts:
        name, equals, style = text.partition("=")
        if not equals or not name:
            raise StyleError(f"{text!r} is not of the form CLASS=STYLE, as in car=random:7; a style is {GRAMMAR}")
        if name in found:
            raise StyleError(f"two styles for {name!r}: {found[name]} and {style}; leave one out, or take mix:0.5:A:B")
        found[name] = parse(style)
    return found


class Shown(NamedTuple):
    """An exemplar, opened."""

    image: Tensor  # (1, 3, H, W) in [-1, 1]
    boxes: tuple[Box, ...] | None = None  # in its pixels; None: nobody annotated it


def open_file(reference: str) -> Shown:
    """The picture at a path, or at PICTURE@BOXES.json with its boxes from a COCO file.

    Raises StyleError when there is no such picture or it cannot be decoded, ValueError for what is wrong with the boxes.
    """
    match = re.fullmatch(r"(.+)@([^@]+\.json)", reference, re.DOTALL)
    path, boxes = (match[1], match[2]) if match else (reference, None)
    file = Path(path)
    if not file.is_file():
        raise StyleError(f"there is no picture {path!r}; a style is {GRAMMAR}")
    try:
        image = to_unit(decode(file.read_bytes()))[None]
    except ValueError as error:
        raise StyleError(f"{path} is no exemplar: {error}") from None
    if boxes is None:
        return Shown(image)
    entry = read_coco(boxes).match([file.as_posix()])[file.as_posix()]
    return Shown(image, entry.boxes_within(image.shape[-1], image.shape[-2]))


def check(model: Translator, styles: Mapping[str, Style]) -> ClassWise:
    """The model, known to have these classes and items.

    Raises NotClassWise, UnknownClass, and StyleError for an item that is not there; each says what would have worked.
    """
    if not isinstance(model, ClassWise):
        able = [name for name in methods() if issubclass(find_method(name), ClassWise)]
        raise NotClassWise(
            f"{model.config.name} cannot choose styles class by class; {' and '.join(able) or 'no method here'} can"
        )
    counts = model.style_classes()
    for name, style in styles.items():
        if name not in counts:
            raise UnknownClass(f"the memory has no class {name!r}{did_you_mean(name, counts)}")
        for part in parts(style):
            if isinstance(part, Item) and part.item >= counts[name]:
                raise StyleError(f"{name!r} has no item {part.item}; it has {counts[name]}: 0 to {counts[name] - 1}")
    return model


def choose(
    pipeline: Pipeline,
    target: str,
    styles: Mapping[str, Style | str],
    open_picture: Callable[[str], Shown] = open_file,
    guide: Guide = Guide(),
) -> Guide:
    """`guide` with the values of the named classes replaced by these styles (or by what their notation says).

    The other classes keep what `guide`, or the seeds that `Pipeline` is called with, gives them. `open_picture` opens what an
    exemplar names; each is opened and encoded once.

    Raises StyleError (see `check`), ClassNotShown among them, and ValueError for an unknown domain.
    """
    if not styles:
        return guide
    parsed = {name: parse(style) if isinstance(style, str) else style for name, style in styles.items()}
    values = _Values(pipeline, target, check(pipeline.model, parsed), open_picture)
    chosen = {name: values.of(name, style) for name, style in parsed.items()}
    return replace(guide, values={**(guide.values or {}), **chosen})


class _Values:
    """The values of classes in one domain, each draw made and each exemplar encoded once."""

    def __init__(self, pipeline: Pipeline, target: str, model: ClassWise, open_picture: Callable[[str], Shown]) -> None:
        self.pipeline, self.model, self.open_picture = pipeline, model, open_picture
        self.target = pipeline.domains.index(target)
        self.known: dict[Stored | Random | Exemplar, Mapping[str, Tensor]] = {}

    def of(self, name: str, style: Style) -> Tensor:
        """The values (N_k, C) of a class."""
        if isinstance(style, Mix):
            first, second = (self.of(name, part) for part in style.mix)
            return F.normalize(torch.lerp(first, second, style.amount), dim=-1)
        if isinstance(style, Item):
            values = self.of(name, Stored())
            return values[style.item].expand_as(values)
        if style not in self.known:
            made = self._make(style)
            self.known[style] = {key: value.to(self.pipeline.device, self.pipeline.dtype) for key, value in made.items()}
        values_of = self.known[style]
        if name not in values_of:
            shown = ", ".join(values_of)
            raise ClassNotShown(f"the exemplar {style} shows no {name}, but {shown}; take another, or give boxes for it")
        return values_of[name]

    @torch.no_grad()
    def _make(self, style: Stored | Random | Exemplar) -> Mapping[str, Tensor]:
        if isinstance(style, Stored):
            return self.model.stored_values(self.target)
        if isinstance(style, Random):
            return self.model.random_values(self.target, torch.Generator().manual_seed(style.random))
        return self._shown(style)

    def _shown(self, style: Exemplar) -> Mapping[str, Tensor]:
        image, boxes = self.open_picture(style.exemplar)
        height, width = image.shape[-2:]
        if style.boxes is not None:
            try:
                boxes = Entry("the style", style.exemplar, None, None, style.boxes).boxes_within(width, height)
            except ValueError as error:
                raise StyleError(str(error)) from None
        stride = self.pipeline.model.stride
        padded, _ = pad_to(image.to(self.pipeline.device, self.pipeline.dtype), stride)
        if boxes is None:
            return self.model.exemplar_values(padded, self.target)
        grid = class_map(boxes, self.pipeline.domains.classes, height, width, stride)
        cells = [torch.arange(padded.shape[axis] // stride).clamp(max=grid.shape[axis - 1] - 1) for axis in (2, 3)]
        grid = grid[:, cells[0]][:, :, cells[1]]  # padded as the picture is
        return self.model.exemplar_values(padded, self.target, grid.to(self.pipeline.device))


def class_map(boxes: Sequence[Box], classes: Sequence[str], height: int, width: int, stride: int) -> Tensor:
    """The class of every cell of a picture of any shape, (1, h, w) int64 with h = ceil(height / stride), as `rasterise` has it.

    Raises UnknownClass.
    """
    names = {name: index for index, name in enumerate(classes)}
    for box in boxes:
        if box.label not in names:
            raise UnknownClass(f"a box is of the class {box.label!r}{did_you_mean(box.label, names)}")
    rows, columns = -(-height // stride), -(-width // stride)
    corners = torch.tensor([[box.x1, box.y1, box.x2, box.y2] for box in boxes], dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor([names[box.label] for box in boxes], dtype=torch.int64)
    return rasterise(corners, labels, max(rows, columns) * stride, stride)[None, :rows, :columns]
