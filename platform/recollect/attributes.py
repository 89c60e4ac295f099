"""Attributes as targets: from names and values to what a translator is asked for.

    Blond_Hair=1            set it; the others of its exclusive group are cleared
    Male=0                  clear it
    Blond_Hair=0.3          between: three tenths blond, seven tenths the hair colour that the picture has

Attributes that are not named stay what the picture has: as somebody says, or as the model sees it. In JSON they are an object:
{"Blond_Hair": 1, "Male": 0}.

Legend: B pictures, S attributes that the model can set, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from recollect.batch import Guide
from recollect.config import did_you_mean, find_method, methods
from recollect.pipeline import Pipeline, check_attributes, pad_to
from recollect.trainable import AttributeWise, Translator


class TargetError(ValueError):
    """Attributes that cannot be asked for. `code` is a stable name for programs."""

    code = "bad_attributes"


class UnknownAttribute(TargetError):
    """An attribute that the model cannot set."""

    code = "unknown_attribute"


class Contradiction(TargetError):
    """More than one attribute of an exclusive group."""

    code = "contradictory_attributes"


class NotAttributeWise(TargetError):
    """Attributes for a method that has none."""

    code = "no_attributes"


def parse_changes(texts: Iterable[str]) -> dict[str, float]:
    """Values by attribute from `NAME=VALUE` texts. Raises TargetError for another form, and for an attribute named twice.

    >>> parse_changes(["Blond_Hair=1", "Male=0.5"])
    {'Blond_Hair': 1.0, 'Male': 0.5}
    """
    found: dict[str, float] = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not equals or not name or not 0 <= number <= 1:
            raise TargetError(f"{text!r} is not of the form NAME=VALUE with a VALUE from 0 to 1, as in Blond_Hair=1")
        if name in found:
            raise TargetError(f"two values for {name!r}: {found[name]:g} and {number:g}; leave one out")
        found[name] = number
    return found


def check(model: Translator, changes: Mapping[str, float]) -> AttributeWise:
    """The model, known to have these attributes.

    Raises NotAttributeWise, UnknownAttribute, Contradiction, and TargetError for a value that is not in [0, 1]; each says what
    would have worked.
    """
    if not isinstance(model, AttributeWise):
        able = [name for name in methods() if issubclass(find_method(name), AttributeWise)]
        raise NotAttributeWise(f"{model.config.name} has no attributes to set; {' and '.join(able) or 'no method here'} has")
    names = model.style_attributes()
    for name, value in changes.items():
        if name not in names:
            raise UnknownAttribute(f"the model cannot set {name!r}{did_you_mean(name, names, '; it can set: ')}")
        if not 0 <= value <= 1:
            raise TargetError(f"{name} is {value}; an attribute is a number from 0 (not at all) to 1")
    for group in model.exclusive_attributes():
        asked = {name: changes[name] for name in group if changes.get(name)}
        if sum(asked.values()) > 1:
            said = " and ".join(f"{name}={value:g}" for name, value in asked.items())
            raise Contradiction(f"a picture has one of {', '.join(group)} at most, and {said} is more; leave one out")
    return model


def changed(own: Tensor, changes: Mapping[str, float], names: Sequence[str], exclusive: Iterable[Sequence[str]] = ()) -> Tensor:
    """The attributes (B, S) of pictures with some of them changed; the unnamed ones of an exclusive group make room.

    >>> changed(torch.tensor([[1.0, 0.0, 1.0]]), {"blond": 0.3}, ("black", "blond", "male"), [("black", "blond")])
    tensor([[0.7000, 0.3000, 1.0000]])
    """
    wanted = own.clone()
    for group in exclusive:
        named = sum(changes.get(name, 0.0) for name in group)
        others = [names.index(name) for name in group if name not in changes]
        wanted[:, others] *= 1 - named
    for name, value in changes.items():
        wanted[:, names.index(name)] = value
    return wanted


def choose(
    pipeline: Pipeline,
    images: Tensor,
    changes: Mapping[str, float],
    source: str | None = None,
    own: Tensor | None = None,
    guide: Guide = Guide(),
) -> Guide:
    """`guide` with the attributes that pictures shall have: their own with these changes; without any, `guide` as it is.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        changes: values from 0 to 1 by attribute.
        source: the domain of the pictures; None: the first.
        own: (B, S) what they have, in the order of the model's `style_attributes`; the model reads what is NaN or not given.

    Raises TargetError (see `check`), and ValueError for an unknown domain, for `own` of another shape, and for pictures that
    are said to have two attributes of an exclusive group of which none is named.
    """
    if not changes:
        return guide
    model = check(pipeline.model, changes)
    names, exclusive = model.style_attributes(), model.exclusive_attributes()
    if own is not None and tuple(own.shape) != (len(images), len(names)):
        raise ValueError(f"own is {(len(images), len(names))} here, {', '.join(names)}; not {tuple(own.shape)}")
    if own is None or own.isnan().any():
        read = read_attributes(pipeline, model, images, source)
        own = read if own is None else torch.where(own.isnan(), read.to(own), own)
    wanted = changed(own, changes, names, exclusive)
    check_attributes(model, wanted, len(images))
    return replace(guide, attributes=wanted)


def read_attributes(pipeline: Pipeline, model: AttributeWise, images: Tensor, source: str | None) -> Tensor:
    """The attributes (B, S) that the model sees, on the CPU."""
    origin = pipeline.domains.index(source) if source else 0
    with torch.no_grad():
        padded, _ = pad_to(images.to(pipeline.device, pipeline.dtype), pipeline.model.stride)
        return model.read_attributes(padded, origin).float().cpu()
