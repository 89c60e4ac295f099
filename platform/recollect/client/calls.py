"""Requests: what is asked, of which path, and what to make of the answer."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypedDict, TypeVar, Union, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from recollect.client import answers
from recollect.client.answers import Item, Retrieved, Translated

Picture = Union[str, os.PathLike[str], bytes, Image.Image, NDArray[Any]]  # noqa: UP007  # a path, a file's bytes, or pixels
Format = Literal["png", "jpeg", "webp"]
Answer = TypeVar("Answer")


class Options(TypedDict, total=False):
    """What may be said of a translation beside the picture and the target; what is left out is the server's default."""

    attributes: Mapping[str, float]  # what the picture shall have, from 0 to 1
    source: str  # the domain the picture is from
    samples: int
    seed: int  # sample i uses seed + i
    random_style: bool
    styles: Mapping[
        str, Mapping[str, Any]
    ]  # class -> {"random": 7}, {"item": 1}, {"exemplar": PICTURE}, {"mix": [.., ..], "amount": 0.3}
    exemplar: Picture  # a picture of the target domain whose style the whole translation takes
    strength: float  # how much of the retrieved neighbours is drawn with, from 0 to 1
    size: int  # pixels of the answer's longer side
    format: Format  # how it travels; the client decodes it
    memory_map: bool
    attention_mask: bool
    neighbours: Literal["none", "ids", "thumbnails"]
    model: str  # which of the server's models


class Search(TypedDict, total=False):
    """What may be said of a search beside the picture."""

    k: int  # how many, nearest first
    attributes: Mapping[str, float]  # alike in content, with these attributes instead of the picture's
    target: str  # alike in content, of this domain
    where: Mapping[str, Literal[0, 1]]  # only pictures that are known to have these
    exclude: Sequence[str]  # ids that are not to be found
    thumbnails: bool
    model: str


@dataclass(frozen=True)
class Call(Generic[Answer]):
    """A request, and what to make of its answer."""

    method: str
    path: str
    read: Callable[[Any], Answer]
    json: Mapping[str, Any] | None = None
    params: Mapping[str, str] | None = None


def translate_call(picture: Picture, target: str | None, **options: Unpack[Options]) -> Call[Translated]:
    """The request for a translation."""
    body: dict[str, Any] = {**options, "image": _base64(picture)}
    if target is not None:
        body["target"] = target
    if "exemplar" in options:
        body["exemplar"] = _base64(options["exemplar"])
    if "styles" in options:
        body["styles"] = {name: _style(style) for name, style in options["styles"].items()}
    return Call("POST", "/v1/translate", answers.translated, json=body)


def retrieve_call(picture: Picture, **options: Unpack[Search]) -> Call[Retrieved]:
    """The request for a search."""
    return Call("POST", "/v1/retrieve", answers.retrieved, json={**options, "image": _base64(picture)})


def about_call(path: str, model: str = "") -> Call[dict[str, Any]]:
    """A request whose answer is taken as it is."""
    return Call("GET", path, dict, params={"model": model} if model else None)


def items_call(model: str = "") -> Call[list[Item]]:
    """The request for a memory's items."""
    return Call("GET", "/v1/items", answers.items, params={"model": model} if model else None)


def change_calls(add: Sequence[str], remove: Sequence[str]) -> list[Call[dict[str, Any]]]:
    """The requests that change the index. Raises ValueError where nothing is to be changed."""
    wanted = [(what, list(ids)) for what, ids in (("add", add), ("remove", remove)) if ids]
    if not wanted:
        raise ValueError("no ids: name pictures to add, or to remove")
    return [Call("POST", f"/v1/index/{what}", dict, json={"ids": ids}) for what, ids in wanted]


def file_of(picture: Picture) -> bytes:
    """The bytes of a picture's file: those of a path as they lie there; pixels become a PNG.

    Raises ValueError for arrays that are not uint8 (H, W, 3) or (H, W), and OSError for a path that cannot be read.
    """
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | os.PathLike):
        return Path(picture).read_bytes()
    if not isinstance(picture, Image.Image):
        pixels = np.asarray(picture)
        if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or pixels.ndim == 3 and pixels.shape[2] == 3):
            raise ValueError(f"an array is uint8 of shape (H, W, 3) or (H, W), not {pixels.dtype} {pixels.shape}")
        picture = Image.fromarray(np.ascontiguousarray(pixels))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def _base64(picture: Picture) -> str:
    return base64.b64encode(file_of(picture)).decode("ascii")


def _style(style: Mapping[str, Any]) -> dict[str, Any]:
    """A style with its exemplars in base64."""
    found = dict(style)
    if "exemplar" in found:
        found["exemplar"] = _base64(found["exemplar"])
    if "mix" in found:
        found["mix"] = [_style(part) for part in found["mix"]]
    return found
