"""The commands `recollect features ...`: networks trained to describe pictures, and whether to trust them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from recollect.config import Run
    from recollect.evaluation.darkening import Darkening

features = typer.Typer(
    no_args_is_help=True, help="Features of pictures, for FID, KID, IS and CIS: train them on your data, test them."
)

Changes = Annotated[list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="Fields to change, by dotted name.")]


@features.command()
def train(
    store: Annotated[str, typer.Argument(metavar="STORE", help="The image store whose pictures are to be described.")],
    changes: Changes = None,
    out: Annotated[str, typer.Option(help="Where the bundle goes.")] = "runs/features",
) -> None:
    """Train features on a store, of all its domains, and test them. Killed half way, the same command goes on.

    Ends with exit code 1 where they fail the test: no score would be measured with them.

    recollect features train runs/streets-64 --out runs/streets-features\n
    recollect features train runs/photos engine.steps=2000 --out runs/photo-features
    """
    from recollect.bundle import open_bundle
    from recollect.data.store import Store
    from recollect.training.session import train_instrument

    run = _run(store, list(changes or []))
    try:
        found = open_bundle(out)
    except (ValueError, OSError):  # it is not there
        train_instrument(run, out, "features", print)
        found = open_bundle(out)
    if found.run.model.name != "features" or found.run.data.store != run.data.store:
        raise ValueError(f"{out} holds {found.run.model.name!r} trained on {found.run.data.store}; choose another --out")
    held_out = next((split for split in ("val", "test") if any(Store.open(store).manifest.counts.get(split, {}).values())), "val")
    passed = _tested(out, store, held_out)
    print(f"bundle: {out}\nnext:   recollect evaluate BUNDLE --suite quick --features {out}")
    raise typer.Exit(0 if passed else 1)


@features.command()
def test(
    which: Annotated[str, typer.Argument(metavar="FEATURES", help="A bundle of features or of a classifier, or `inception`.")],
    store: Annotated[str, typer.Option(help="The pictures; default: those that the bundle was trained on.")] = "",
    split: str = "test",
) -> None:
    """Whether features may be trusted on some data: darkened pictures of another domain must not pass for the target's.

    recollect features test runs/streets-features --store runs/streets-64
    """
    from recollect.bundle import open_bundle

    raise typer.Exit(0 if _tested(which, store or open_bundle(which).run.data.store, split) else 1)


def _run(store: str, changes: list[str]) -> Run:
    from recollect.bundle import absolute
    from recollect.config import overlay, preset
    from recollect.data.store import Store

    opened = Store.open(store)
    run = preset("features:tiny", name="features", data={"store": absolute(store), "domains": opened.domains.names})
    return overlay(run, changes)


def _tested(which: str, store: str, split: str) -> bool:
    """Print the test in every pair of domains; whether all of them passed."""
    from recollect.bundle import open_bundle
    from recollect.data.store import Store
    from recollect.evaluation.darkening import Cut, examine
    from recollect.evaluation.extractors import PUBLISHED, features_named, open_extractor

    opened = Store.open(store)
    extractor = open_extractor(features_named(which))
    data = None if which in PUBLISHED else open_bundle(which).run.data
    cut = Cut(size=data.size if data else 64, short_side=data.short_side if data else None, split=split)
    names = data.domains if data and set(data.domains) <= set(opened.domains.names) else opened.domains.names
    pairs = [(one, other) for one in names for other in names if one != other] or [(names[0], "")]
    found = [examine(extractor.describe, opened, target, other, cut) for target, other in pairs]
    _show(extractor.name, found)
    return all(one.passed for one in found)


def _show(name: str, found: list[Darkening]) -> None:
    """A table with a row a pair."""
    from rich.console import Console
    from rich.table import Table

    from recollect.evaluation.darkening import SHARE
    from recollect.evaluation.evaluate import short

    shown = Table(title=f"{name}: distance to true pictures of the target", title_justify="left", show_edge=False, pad_edge=False)
    for head in ("target", "from"):
        shown.add_column(head)
    for head in ("held-out", "chance", "darkened", "as it is", f"share ≥ {SHARE:g}"):
        shown.add_column(head, justify="right")
    shown.add_column("")
    for one in found:
        numbers = [short(value) for value in (one.held_out, one.spread, one.darkened, one.other_distance, one.share)]
        shown.add_row(one.target, one.other, *numbers, "passed" if one.passed else "[bold red]FAILED[/bold red]")
    Console(width=None if sys.stdout.isatty() else 120).print(shown)
