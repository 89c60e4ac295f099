"""What the server answers: translations, what was found, and what models and indexes are."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from serve.schema import Format, Limits


class MemoryMap(BaseModel):
    """Which memory item each cell of the picture reads: an indexed PNG, one pixel a cell, its value the item's index."""

    image: Annotated[str, Field(description="PNG, base64; palette colours are only for the eye")]
    cell: Annotated[int, Field(description="pixels of the picture per cell, along each side")]


class NeighbourTold(BaseModel):
    """A picture of the index."""

    id: str
    distance: Annotated[
        float | None, Field(description="Euclidean, in the space of the model's embedding; null: drawn at random")
    ]
    thumbnail: Annotated[str | None, Field(description="PNG, base64, where it was asked for")] = None


class Extras(BaseModel):
    """What the method tells beside the pictures."""

    memory_map: MemoryMap | None = None
    attention_masks: Annotated[
        list[str] | None, Field(description="one a sample: a grey PNG, base64, of the answer's size; white was drawn anew")
    ] = None
    neighbours: Annotated[
        list[list[NeighbourTold]] | None, Field(description="for each sample the pictures that it was drawn with, nearest first")
    ] = None


class TranslateAnswer(BaseModel):
    """Translations with everything needed to get them again."""

    images: Annotated[list[str], Field(description="one base64 picture a sample")]
    seeds: Annotated[
        list[int] | None, Field(description="one a sample; null: the deterministic translation, no seed is involved")
    ]
    model: Annotated[str, Field(description="the name of the model")]
    digest: Annotated[str, Field(description="SHA-256 of the bundle that answered")]
    width: int
    height: int
    format: Format
    index: Annotated[str, Field(description="the digest of the index version that was looked into; empty: none was")] = ""
    extras: Extras


class ModelCard(BaseModel):
    """What this server translates with."""

    name: str
    digest: Annotated[str, Field(description="SHA-256 over the bundle's files")]
    method: str
    domains: list[str]
    classes: list[str]
    size: Annotated[int, Field(description="pixels of the square pictures it was trained on; others work, those work best")]
    random_styles: Annotated[bool, Field(description="whether the method takes `seed`, `samples` and `random_style`")]
    style_classes: Annotated[
        dict[str, int],
        Field(description="the classes that `styles` can name, and the items of each; empty where the method has no memory"),
    ]
    guides: Annotated[
        list[str], Field(description="which of the fields `attributes`, `exemplar`, `strength` and `styles` it takes")
    ]
    extras: Annotated[list[str], Field(description="what it tells beside the pictures")]
    device: str
    recollect: Annotated[str, Field(description="the version of this software")]
    models: Annotated[list[str], Field(description="all models of this server, by the names that the field `model` takes")]
    limits: Limits
    run: Annotated[dict[str, Any], Field(description="everything that determined its training")]


class DomainsAnswer(BaseModel):
    """What a model can be asked for by name."""

    model: str
    domains: Annotated[list[str], Field(description="what `target` and `source` can be")]
    attributes: Annotated[
        list[str], Field(description="what `attributes` can set; empty: the model's targets are its domains only")
    ]
    exclusive: Annotated[list[list[str]], Field(description="groups of attributes of which a picture has one at most")]
    classes: Annotated[dict[str, int], Field(description="what `styles` can name, and how many memory items each has")]


class ItemTold(BaseModel):
    """One item of a memory."""

    index: Annotated[int, Field(description="its value in memory maps")]
    label: Annotated[str, Field(description="its class")]
    number: Annotated[int, Field(description='its number within the class, as in styles: {"item": number}')]
    usage: Annotated[float, Field(description="its share of what its class wrote in training")]
    dead: Annotated[bool, Field(description="whether training hardly ever wrote to it")]
    colour: Annotated[str, Field(description="its colour in memory maps, #rrggbb")]
    thumbnails: Annotated[
        dict[str, str],
        Field(
            description="by domain, where the item is at home: a PNG, base64, around the marked cell that is nearest to its key; "
            "empty where the server does not have the pictures that the model was trained on"
        ),
    ]


class ItemsAnswer(BaseModel):
    """The memory of a model; no items where it has none."""

    model: str
    items: list[ItemTold]


class RetrieveAnswer(BaseModel):
    """What was found."""

    found: list[NeighbourTold]
    model: str
    digest: Annotated[str, Field(description="SHA-256 of the bundle that embedded the picture")]
    index: Annotated[str, Field(description="the digest of the index version that was searched")]


class IndexAnswer(BaseModel):
    """The index that is searched."""

    uri: str
    version: str
    digest: str
    pictures: int
    dimension: int
    back_end: str
    attributes: Annotated[list[str], Field(description="what `where` of /v1/retrieve can name")]
    shards: int
    origin: Annotated[dict[str, Any], Field(description="what its vectors were made with")]


class IndexChanged(BaseModel):
    """An index after a change; whoever asks from now on is answered from it."""

    version: str
    digest: str
    pictures: int
    changed: Annotated[int, Field(description="how many pictures came in, or went")]
