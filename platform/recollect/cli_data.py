"""The group `recollect data`: everything that makes image stores or looks at them. Heavy imports happen inside the commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from recollect.data.sources.pictures import Ingest
    from recollect.data.taking import OnRay

data = typer.Typer(no_args_is_help=True, help="Make and look at image stores.")

SHOWN = 50  # of the pictures that were left out

Out = Annotated[str, typer.Argument(help="Where the store goes: a path or URI.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Fail at the first picture or box that is not right instead of listing it.")
]
MaxSide = Annotated[int | None, typer.Option(help="Shrink pictures to at most this long a side.")]
Classes = Annotated[str | None, typer.Option(help="OWN=NAME,...: the others are dropped. Default: all by their own names.")]
Workers = Annotated[int, typer.Option(help="Ray workers that decode and write shards; 0: this process, without Ray.")]
Address = Annotated[str | None, typer.Option(help="Ray: `local`, or a cluster's address.")]
FourClasses = Annotated[str | None, typer.Option(help="OWN=NAME,..., or `own`. Default: person, car, truck, bicycle.")]


@data.command("streets")
def data_streets(
    out: Annotated[str, typer.Argument(help="Where the store goes: a path or URI.")],
    size: Annotated[int, typer.Option(help="Pixels a side.")] = 64,
    train: Annotated[int, typer.Option(help="Unpaired training pictures a domain.")] = 600,
    val: Annotated[int, typer.Option(help="Validation scenes.")] = 48,
    test: Annotated[int, typer.Option(help="Test scenes.")] = 60,
    references: Annotated[int, typer.Option(help="True renders of each scene in each domain.")] = 6,
    seed: int = 0,
) -> None:
    """Draw the streets world: sunny, night, rainy, cloudy, with boxes and exact truth.

    recollect data streets runs/streets-128 --size 128 --train 2000
    """
    from recollect.data.worlds import build_streets

    manifest = build_streets(
        out, size=size, train=train, val=val, test=test, references=references, seed=seed, progress=progress_line("drawing")
    )
    say_store(out, manifest)


@data.command("faces")
def data_faces(
    out: Out,
    size: Annotated[int, typer.Option(help="Pixels a side.")] = 64,
    train: Annotated[int, typer.Option(help="Training faces, each drawn once.")] = 2000,
    val: Annotated[int, typer.Option(help="Validation faces, each drawn in all twelve combinations.")] = 60,
    test: Annotated[int, typer.Option(help="Test faces, each drawn in all twelve combinations.")] = 100,
    correlation: Annotated[float, typer.Option(help="0: independent attributes; 1: imbalanced as CelebA's.")] = 0.0,
    seed: int = 0,
) -> None:
    """Draw the faces world: hair colour, gender and age, with attributes, exact counterparts and regions.

    recollect data faces runs/faces-128 --size 128 --train 20000 --correlation 1
    """
    from recollect.data.worlds import build_faces

    manifest = build_faces(
        out, size=size, train=train, val=val, test=test, correlation=correlation, seed=seed, progress=progress_line("drawing")
    )
    say_store(out, manifest)


@data.command("folders")
def data_folders(
    folder: Annotated[Path, typer.Argument(help="trainA/ trainB/ (testA/ testB/), train/DOMAIN/ test/DOMAIN/, or DOMAIN/.")],
    out: Annotated[str, typer.Argument(help="Where the store goes: a path or URI.")],
    boxes: Annotated[list[str] | None, typer.Option(help="COCO boxes: FILE for all, or SPLIT=FILE (repeat).")] = None,
    names: Annotated[str | None, typer.Option(help="Names for A and B: 'day,night'.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail at the first broken picture instead of skipping it.")] = False,
    max_side: Annotated[int | None, typer.Option(help="Shrink pictures to at most this long a side.")] = None,
    workers: Workers = 0,
    address: Address = "local",
) -> None:
    """Read folders of pictures into a store; broken pictures are listed and skipped.

    With --workers, Ray workers decode and write; what was killed goes on with the same command, and the store is the same.

    recollect data folders photos runs/photos --names summer,winter --max-side 512\n
    recollect data folders /mnt/photos s3://bucket/photos --workers 32 --address auto
    """
    from recollect.data.sources.folders import ingest

    pair = tuple(names.split(",")) if names else None
    if pair is not None and len(pair) != 2:
        raise ValueError(f"--names takes two names with a comma, as in day,night; not {names!r}")
    found = ingest(
        folder,
        out,
        boxes=_boxes(boxes),
        names=pair,
        strict=strict,
        max_side=max_side,
        workers=_workers(workers, address),
        progress=progress_line("reading"),
    )
    _say_ingest(out, found)


@data.command("init")
def data_init(
    folder: Annotated[Path, typer.Argument(help="INIT: batch1_anno/sunny1.txt and sunny/..., or label/sunny_train/...")],
    out: Out,
    domains: Annotated[str | None, typer.Option(help="These only: 'sunny,night'.")] = None,
    split: Annotated[
        str | None, typer.Option(help="`given` keeps the phases of label/DOMAIN_PHASE, `85-15` divides anew.")
    ] = None,
    together: Annotated[bool, typer.Option("--together", help="Keep the pictures of one folder (a drive) in one split.")] = False,
    val: Annotated[float, typer.Option(help="Share of the pictures for validation.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Of the division into splits.")] = 0,
    frame: Annotated[str, typer.Option(help="Pixels that the boxes of label/ are in.")] = "572x360",
    classes: Classes = None,
    strict: Strict = False,
    max_side: MaxSide = None,
    workers: Workers = 0,
    address: Address = "local",
) -> None:
    """Read INIT: streets in four weathers with boxes of cars, signs and persons.

    recollect data init INIT runs/init --domains sunny,night --max-side 572
    """
    from recollect.data.sources.init import ingest

    width, x, height = frame.partition("x")
    if not (x and width.isdecimal() and height.isdecimal()):
        raise ValueError(f"--frame is written WIDTHxHEIGHT, as in 572x360; not {frame!r}")
    found = ingest(
        folder,
        out,
        domains=domains.split(",") if domains else None,
        split=split,  # type: ignore[arg-type]  # checked there
        together=together,
        val=val,
        seed=seed,
        frame=(int(width), int(height)),
        classes=_classes(classes),
        strict=strict,
        max_side=max_side,
        workers=_workers(workers, address),
        progress=progress_line("reading"),
    )
    _say_ingest(out, found)


@data.command("kitti")
def data_kitti(
    folder: Annotated[Path, typer.Argument(help="KITTI's object data set: training/image_2 and training/label_2.")],
    out: Out,
    domain: Annotated[str, typer.Option(help="What to call the domain.")] = "kitti",
    classes: FourClasses = None,
    lists: Annotated[list[str] | None, typer.Option("--list", help="SPLIT=FILE with one 000000 a line (repeat).")] = None,
    val: Annotated[float, typer.Option(help="Share of the pictures for validation, without --list.")] = 0.1,
    test: Annotated[float, typer.Option(help="Share of the pictures for testing, without --list.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of the division into splits.")] = 0,
    strict: Strict = False,
    max_side: MaxSide = None,
    workers: Workers = 0,
    address: Address = "local",
) -> None:
    """Read KITTI's object detection pictures; DontCare regions are no objects.

    recollect data kitti KITTI runs/kitti --classes 'Pedestrian=person,Car=car,Van=car'
    """
    from recollect.data.sources.kitti import FOUR_CLASSES, ingest

    found = ingest(
        folder,
        out,
        domain=domain,
        classes=_classes(classes, FOUR_CLASSES),
        lists=_pairs("--list", lists),
        val=val,
        test=test,
        seed=seed,
        strict=strict,
        max_side=max_side,
        workers=_workers(workers, address),
        progress=progress_line("reading"),
    )
    _say_ingest(out, found)


@data.command("cityscapes")
def data_cityscapes(
    folder: Annotated[Path, typer.Argument(help="Cityscapes: leftImg8bit/ and gtFine/.")],
    out: Out,
    domain: Annotated[str, typer.Option(help="What to call the domain.")] = "cityscapes",
    boxes: Annotated[str, typer.Option(help="`modal`: what is seen of an object; `amodal`: all of its outline.")] = "modal",
    classes: FourClasses = None,
    val: Annotated[float, typer.Option(help="Share of the training pictures for validation; its own val is the test.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of the division into splits.")] = 0,
    strict: Strict = False,
    max_side: MaxSide = None,
    workers: Workers = 0,
    address: Address = "local",
) -> None:
    """Read Cityscapes, with boxes made from its polygons.

    recollect data cityscapes cityscapes runs/cityscapes --boxes modal --max-side 1024
    """
    from recollect.data.sources.cityscapes import FOUR_CLASSES, ingest

    found = ingest(
        folder,
        out,
        domain=domain,
        boxes=boxes,  # type: ignore[arg-type]  # checked there
        classes=_classes(classes, FOUR_CLASSES),
        val=val,
        seed=seed,
        strict=strict,
        max_side=max_side,
        workers=_workers(workers, address),
        progress=progress_line("reading"),
    )
    _say_ingest(out, found)


@data.command("coco")
def data_coco(
    out: Out,
    part: Annotated[list[str], typer.Option(help="DOMAIN/SPLIT=IMAGES,ANNOTATIONS, or without /SPLIT (repeat).")],
    classes: Classes = None,
    val: Annotated[float, typer.Option(help="Share of training pictures for validation, where no part is val.")] = 0.1,
    test: Annotated[float, typer.Option(help="Share of training pictures for testing, where no part is test.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of the division into splits.")] = 0,
    strict: Strict = False,
    max_side: MaxSide = None,
    workers: Workers = 0,
    address: Address = "local",
) -> None:
    """Read data sets in COCO's form: a folder of pictures and a JSON file for each part.

    recollect data coco runs/streets --part day/train=day,day.json --part night/train=night,night.json
    """
    from recollect.data.sources.coco import ingest, parse_part

    found = ingest(
        [parse_part(text) for text in part],
        out,
        classes=_classes(classes),
        val=val,
        test=test,
        seed=seed,
        strict=strict,
        max_side=max_side,
        workers=_workers(workers, address),
        progress=progress_line("reading"),
    )
    _say_ingest(out, found)


@data.command("celeba")
def data_celeba(
    folder: Annotated[Path, typer.Argument(help="CelebA: list_attr_celeba.txt, list_eval_partition.txt, img_align_celeba/.")],
    out: Out,
    size: Annotated[int, typer.Option(help="Pixels a side in the store.")] = 128,
    crop: Annotated[int, typer.Option(help="Pixels a side to cut from the middle first.")] = 178,
    split: Annotated[
        str | None, typer.Option(help="`official`, or `rg-unit`: pictures 1 to 2000 are test. Default: rg-unit with --bits.")
    ] = None,
    val: Annotated[
        float | None, typer.Option(help="With rg-unit: the share of the other pictures for validation. Default: 0.01.")
    ] = None,
    bits: Annotated[list[Path] | None, typer.Option(help="A list of RG-UNIT's, 000001.jpg<TAB>00101 (repeat).")] = None,
    attributes: Annotated[str | None, typer.Option(help="These only: 'Male,Young'. Default: all.")] = None,
    labelled: Annotated[float, typer.Option(help="Share of training pictures that keep their attributes.")] = 1.0,
    one_hair: Annotated[
        bool, typer.Option("--one-hair", help="Only pictures with exactly one of black, blond and brown hair.")
    ] = False,
    domain: Annotated[str, typer.Option(help="What to call the domain.")] = "celeba",
    seed: Annotated[int, typer.Option(help="Of the choices of --val and --labelled.")] = 0,
    strict: Strict = False,
    workers: Workers = 0,
    address: Address = "local",
) -> None:
    """Read CelebA's aligned faces with their 40 attributes.

    recollect data celeba celeba runs/celeba-128 --split rg-unit --one-hair
    """
    from recollect.data.sources.celeba import ingest

    found = ingest(
        folder,
        out,
        size=size,
        crop=crop,
        split=split,  # type: ignore[arg-type]  # checked there
        val=val,
        bits=bits or (),
        attributes=attributes.split(",") if attributes else None,
        labelled=labelled,
        one_hair=one_hair,
        domain=domain,
        seed=seed,
        strict=strict,
        workers=_workers(workers, address),
        progress=progress_line("reading"),
    )
    _say_ingest(out, found)


@data.command("attributes")
def data_attributes(
    folder: Annotated[Path, typer.Argument(help="What the files in the table are relative to.")],
    out: Out,
    table: Annotated[Path | None, typer.Option(help="A .csv or .parquet file. Default: the only one in the folder.")] = None,
    attributes: Annotated[str | None, typer.Option(help="These columns only: 'Male,Young'. Default: all.")] = None,
    domain: Annotated[str, typer.Option(help="What to call the domain, where the table has no such column.")] = "pictures",
    val: Annotated[float, typer.Option(help="Share for validation, where the table has no column `split`.")] = 0.1,
    test: Annotated[float, typer.Option(help="Share for testing, where the table has no column `split`.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of the division into splits.")] = 0,
    strict: Strict = False,
    max_side: MaxSide = None,
    workers: Workers = 0,
    address: Address = "local",
) -> None:
    """Read a folder of pictures with a table of binary attributes.

    recollect data attributes portraits runs/portraits --table portraits/labels.csv
    """
    from recollect.data.sources.attributes import ingest

    found = ingest(
        folder,
        out,
        table=table,
        attributes=attributes.split(",") if attributes else None,
        domain=domain,
        val=val,
        test=test,
        seed=seed,
        strict=strict,
        max_side=max_side,
        workers=_workers(workers, address),
        progress=progress_line("reading"),
    )
    _say_ingest(out, found)


@data.command("join")
def data_join(
    stores: Annotated[
        list[str], typer.Argument(metavar="STORE STORE... OUT", help="Stores with the same classes; last, the new one.")
    ],
) -> None:
    """Make one store of several whose classes agree.

    recollect data join runs/kitti runs/cityscapes runs/both
    """
    from recollect.data.join import join_stores

    *parts, out = stores
    if len(parts) < 2:
        raise ValueError(f"join takes at least two stores and where the new one goes, not {', '.join(stores)}")
    say_store(out, join_stores(parts, out, progress=progress_line("joining")))


@data.command("show")
def data_show(store: Annotated[str, typer.Argument(help="A store.")]) -> None:
    """What a store holds, after checking its files against their digests.

    recollect data show runs/streets-64
    """
    from recollect.data.store import Store

    say_store(store, Store.open(store, verify=True).manifest)


def progress_line(verb: str) -> Any:
    def say(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{verb} {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif done == total:
            print(f"{verb} {done}/{total}", file=sys.stderr)

    return say


def _boxes(given: list[str] | None) -> Any:
    if not given:
        return None
    if len(given) == 1 and "=" not in given[0]:
        return given[0]
    return _pairs("--boxes", given)


def _pairs(option: str, given: list[str] | None) -> dict[str, str] | None:
    """`NAME=FILE` of a repeated option."""
    for item in given or ():
        if "=" not in item:
            raise ValueError(f"{option} is written SPLIT=FILE, as in train=train.txt; not {item!r}")
    return dict(item.split("=", 1) for item in given) if given else None


def _workers(workers: int, address: str | None) -> int | OnRay:
    """Two threads of this process, or workers on Ray."""
    from recollect.data.taking import OnRay

    return OnRay(workers, address) if workers else 2


def _classes(given: str | None, default: dict[str, str] | None = None) -> dict[str, str] | None:
    """A class map; None: the data set's own names."""
    from recollect.data.sources.class_map import parse_classes

    if given is None:
        return default
    return None if given == "own" else parse_classes(given)


def _say_ingest(uri: str, found: Ingest) -> None:
    for path, reason in found.skipped[:SHOWN]:
        print(f"skipped {path}: {reason}", file=sys.stderr)
    if len(found.skipped) > SHOWN:
        print(f"skipped {len(found.skipped) - SHOWN} more pictures", file=sys.stderr)
    for text in found.warnings:
        print(f"note: {text}", file=sys.stderr)
    say_store(uri, found.manifest)


def say_store(uri: str, manifest: Any) -> None:
    print(f"store {uri}\n  digest  {manifest.digest}\n  source  {manifest.source}")
    print(f"  classes {', '.join(manifest.classes)}{'' if manifest.annotated else ' (no boxes)'}")
    if manifest.attributes:
        print(f"  attributes {', '.join(manifest.attributes)}")
    for split, counts in manifest.counts.items():
        print(f"  {split:7} {', '.join(f'{count} {name}' for name, count in counts.items())}")
