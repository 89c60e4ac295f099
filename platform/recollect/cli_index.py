"""The commands `recollect index ...`: what a retrieval set is made, changed, asked and checked with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from torch import Tensor

    from recollect.retrieval.directory import IndexManifest, Origin
    from recollect.retrieval.index import Index, Matches
    from recollect.retrieval.library import Library

index = typer.Typer(no_args_is_help=True, help="Retrieval sets: make, change, ask and check them.")

Path_ = Annotated[str, typer.Argument(metavar="INDEX", help="An index: a directory, or a URI to read from.")]
Bundle = Annotated[str, typer.Argument(metavar="BUNDLE", help="A bundle that embeds pictures: a retriever, or what one guides.")]
Splits = Annotated[list[str] | None, typer.Option("--split", help="Which pictures (repeat); default: train.")]
Domains = Annotated[list[str] | None, typer.Option("--domain", help="Only of these domains (repeat).")]
SameSplits = Annotated[list[str] | None, typer.Option("--split", help="Which pictures (repeat); default: as it was built.")]
SameDomains = Annotated[list[str] | None, typer.Option("--domain", help="Of these domains (repeat); default: as it was built.")]
Workers = Annotated[int, typer.Option(help="Ray workers that embed; 0: this process, without Ray.")]
Address = Annotated[str | None, typer.Option(help="Ray: `local`, or a cluster's address.")]
Device = Annotated[str, typer.Option(help="`auto`, `cpu` or `cuda`.")]


@index.command()
def build(
    bundle: Bundle,
    store: Annotated[str, typer.Option(help="The image store to embed; default: the one the bundle was trained on.")] = "",
    out: Annotated[str, typer.Option(help="Where the index goes: a directory or URI.")] = "runs/index",
    split: Splits = None,
    domain: Domains = None,
    limit: Annotated[int | None, typer.Option(help="At most so many training pictures a domain.")] = None,
    backend: Annotated[str, typer.Option(help="`faiss`, `exact` or `milvus`.")] = "faiss",
    setting: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of the back-end (repeat).")] = None,
    workers: Workers = 0,
    address: Address = "local",
    device: Device = "auto",
) -> None:
    """Embed a store's pictures and make an index of them. Killed half way, the same command goes on.

    recollect index build runs/retriever/best --store runs/faces --out runs/faces-index\n
    recollect index build runs/retriever/best --store runs/faces --split train --split val --workers 8 --out runs/faces-index\n
    recollect index build runs/retriever/best --store runs/faces --backend milvus --setting uri=http://milvus:19530
    """
    from recollect.bundle import open_bundle
    from recollect.cli_data import progress_line
    from recollect.retrieval.embed import build_index

    manifest = build_index(
        bundle,
        store or open_bundle(bundle).run.data.store,
        out,
        splits=split or ("train",),
        domains=domain,
        limit=limit,
        backend=backend,
        settings=_settings(setting or []),
        workers=workers,
        address=address,
        device=device,
        progress=progress_line("embedding"),
    )
    _say(out, manifest)


@index.command()
def add(
    path: Path_,
    bundle: Bundle,
    store: Annotated[str, typer.Option(help="A store that holds the index's pictures and more; default: the index's own.")] = "",
    split: SameSplits = None,
    domain: SameDomains = None,
    limit: Annotated[
        int | None,
        typer.Option(help="At most so many training pictures a domain, 0 for all; default: as it was built."),
    ] = None,
    workers: Workers = 0,
    address: Address = "local",
    device: Device = "auto",
) -> None:
    """Add those pictures of a store that the index lacks, as a new version; readers go on with the old one.

    Without --split, --domain and --limit all that the index was ever made of is taken again, from a store that may have grown.

    recollect index add runs/faces-index runs/retriever/best --split val\n
    recollect index add runs/faces-index runs/retriever/best --store runs/more-faces
    """
    from recollect.cli_data import progress_line
    from recollect.retrieval.embed import add_to_index

    manifest, added = add_to_index(
        path,
        bundle,
        store,
        splits=split,
        domains=domain,
        limit=limit,
        workers=workers,
        address=address,
        device=device,
        progress=progress_line("embedding"),
    )
    print(f"added {added} pictures")
    _say(path, manifest)


@index.command()
def remove(
    path: Path_,
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Pictures to take out.")] = None,
    list_: Annotated[Path | None, typer.Option("--list", help="A file with an id a line.")] = None,
) -> None:
    """Take pictures out, as a new version; they stay in the store.

    recollect index remove runs/faces-index train-000017-blond-male-young train-000233-black-female-old
    """
    from recollect.retrieval.directory import change_index

    gone = [*(ids or []), *(list_.read_text().split("\n") if list_ else [])]
    gone = [id for id in gone if id]
    if not gone:
        raise ValueError("remove which pictures? give ids, or a file of them with --list")

    def change(found: Index, manifest: IndexManifest) -> Origin:
        found.remove(gone)
        return manifest.origin

    manifest = change_index(path, change)
    print(f"removed {len(gone)} pictures")
    _say(path, manifest)


@index.command()
def search(
    path: Path_,
    picture: Annotated[Path, typer.Argument(help="A picture to find others like.")],
    bundle: Annotated[str, typer.Option(help="The bundle that embeds it: what the index was built with.")],
    k: Annotated[int, typer.Option("-k", help="How many.")] = 5,
    where: Annotated[list[str] | None, typer.Option(metavar="NAME=0|1", help="Only with this attribute (repeat).")] = None,
    exclude: Annotated[list[str] | None, typer.Option(metavar="ID", help="Never this picture (repeat).")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Also draw the picture and what was found into this PNG.")] = None,
    store: Annotated[
        str, typer.Option(help="Where the pictures are, for --sheet; default: the store that the index names.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find the pictures that are most like one, nearest first.

    recollect index search runs/faces-index face.png --bundle runs/retriever/best -k 10 --where Male=1 --sheet found.png
    """
    from recollect.bundle import open_bundle
    from recollect.data.schema import Record
    from recollect.data.transforms import joint_crop, open_image, to_unit
    from recollect.retrieval.directory import open_version
    from recollect.retrieval.embed import embedder, open_embedder

    opened = open_bundle(bundle)
    found, manifest = open_version(path, str(open_embedder(opened).embedding_digest()))
    content = picture.read_bytes()
    width, height = open_image(content).size
    record = Record(str(picture), content, "", width, height, "test")
    image = to_unit(joint_crop(record, manifest.origin.size, manifest.origin.short_side).image)
    matches = found.search(embedder(opened)(image[None]), k, _where(where or []), [exclude or []])
    rows = [{"id": id, "distance": round(distance, 6)} for id, distance in matches.of(0)]
    if as_json:
        print(json.dumps({"index": manifest.digest, "matches": rows}))
    for row in [] if as_json else rows:
        print(f"{row['distance']:10.4f}  {row['id']}")
    if not rows:
        print("no picture matches", file=sys.stderr)
    if sheet is not None:
        from recollect.retrieval.library import Library

        library = Library.open(path, manifest.origin.size, manifest.origin.short_side, store=store)
        _draw(library, image, matches, sheet)
        print(f"sheet: {sheet}", file=sys.stderr)


@index.command()
def verify(
    path: Path_,
    bundle: Annotated[str, typer.Option(help="Also check that it belongs to this bundle.")] = "",
    store: Annotated[str, typer.Option(help="Also check that this store holds its pictures; default: the store it names.")] = "",
) -> None:
    """Check every file of an index against its digest, and that its pictures are in the store.

    recollect index verify runs/faces-index --bundle runs/retriever/best
    """
    from recollect.bundle import open_bundle
    from recollect.data.store import Store
    from recollect.retrieval.directory import open_version
    from recollect.retrieval.embed import open_embedder

    model = str(open_embedder(open_bundle(bundle)).embedding_digest()) if bundle else None
    found, manifest = open_version(path, model, verify=True)
    if len(found) != manifest.count:
        raise ValueError(f"the index at {path} has {len(found)} pictures, and its manifest says {manifest.count}")
    place = store or manifest.origin.store
    if place:
        pictures = Store.open(place)
        lost = [id for id in found.ids() if id not in pictures]
        if lost:
            raise ValueError(f"{len(lost)} pictures of the index are not in the store {place}, such as {lost[0]!r}")
    _say(path, manifest)
    print("verified")


def _settings(given: list[str]) -> dict[str, object]:
    """NAME=VALUE pairs, values as JSON where they are."""
    found: dict[str, object] = {}
    for item in given:
        name, separator, value = item.partition("=")
        if not separator:
            raise ValueError(f"--setting is written NAME=VALUE, as in flat_up_to=100000; not {item!r}")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def _where(given: list[str]) -> dict[str, int]:
    for item in given:
        if item.rpartition("=")[2] not in ("0", "1"):
            raise ValueError(f"--where is written NAME=1 or NAME=0, not {item!r}")
    return {name: int(value) for name, _, value in (item.rpartition("=") for item in given)}


def _draw(library: Library, image: Tensor, matches: Matches, sheet: Path) -> None:
    """The picture and what was found for it, side by side."""
    from recollect.data.transforms import to_uint8
    from recollect.evaluation.grids import picture_grid, save_png

    columns = {"asked": to_uint8(image)[None]}
    for rank, (id, distance) in enumerate(matches.of(0), start=1):
        columns[f"{rank}. {id} at {distance:.3g}"] = to_uint8(library.pictures([id]))
    save_png(picture_grid(columns), sheet)


def _said(splits: tuple[str, ...], domains: tuple[str, ...], limit: int | None) -> str:
    """A selection in words."""
    which = ", ".join(f"{limit} of {name}" if limit and name == "train" else name for name in splits)
    return which + (f" of {', '.join(domains)}" if domains else "")


def _say(path: str, manifest: IndexManifest) -> None:
    origin = manifest.origin
    print(f"index {path} {manifest.version}\n  digest   {manifest.digest}\n  model    {origin.model}")
    chosen = "; ".join(_said(one.splits, one.domains, one.limit) for one in origin.taken())
    print(f"  pictures {manifest.count} of {origin.store} ({chosen}), {manifest.dimension} numbers each")
    print(f"  back-end {manifest.back_end} {json.dumps(manifest.settings)}; {manifest.added} added, {manifest.removed} removed")
    print(f"  where    {', '.join(manifest.attributes) or 'no attributes'}")
