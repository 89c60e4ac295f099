"""The command `recollect`. Heavy imports happen inside the commands, so that `recollect --help` answers at once.

Methods, recipes and the endpoint are reached by name, as uvicorn reaches applications; nothing here imports upward.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recollect.cli_data import data, data_show
from recollect.cli_evaluate import Index, Library, compare, evaluate, metrics
from recollect.cli_export import export
from recollect.cli_features import features
from recollect.cli_index import index
from recollect.cli_look import board, report

if TYPE_CHECKING:
    from recollect.config import Run

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
app.add_typer(data, name="data")
app.add_typer(index, name="index")
app.command()(report)
app.command()(board)
app.add_typer(features, name="features")

app.command("export")(export)

Also = Annotated[
    list[str] | None, typer.Option(metavar="NAME=BUNDLE", help="A further model that requests choose by `model` (repeat).")
]
ServeSettings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="An argument of serve/config.yaml, as in replicas=2 (repeat)."),
]
Insecure = Annotated[bool, typer.Option("--insecure", help="Listen beyond this machine without a token.")]
Changes = Annotated[list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="Fields to change, by dotted name.")]


@app.callback()
def root() -> None:
    """Image translators guided by memory and by retrieval: train, search, evaluate, serve.

    recollect data streets runs/streets-64\n
    recollect train mguit:tiny data.store=runs/streets-64 --out runs/first\n
    recollect evaluate runs/first/best --store runs/streets-64\n
    recollect serve runs/first/best
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)


@app.command()
def train(
    what: Annotated[
        str,
        typer.Argument(help="method:preset (mguit:tiny) or module:recipe (experiments.streets:sunny_night); not with --resume."),
    ] = "",
    changes: Changes = None,
    out: Annotated[str, typer.Option(help="The run's directory; with --workers also a URI, as in s3://bucket/run.")] = "runs/run",
    workers: Annotated[int, typer.Option(help="Ray Train workers; 0 trains in this process, without Ray.")] = 0,
    min_workers: Annotated[
        int | None, typer.Option(help="Go on with so many where hosts die, and with more where they come; default: always all.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ray: `local`, or a cluster's address.")] = "local",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, with its own configuration.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")] = False,
) -> None:
    """Train a translator, or a detector.

    recollect train mguit:tiny data.store=runs/streets-64 --out runs/first\n
    recollect train detector:tiny data.store=runs/streets-64 'data.domains=["night"]' --out runs/night-detector\n
    recollect train mguit:tiny data.store=runs/photos engine.steps=2000 weights.con_k=0.5 --out runs/photos-1 --workers 2\n
    recollect train mguit:tiny data.store=runs/photos engine.mlflow=http://127.0.0.1:5000 --out runs/photos-2\n
    recollect train --resume engine.steps=4000 --out runs/first
    """
    from recollect.config import Run, overlay

    changes = list(changes or [])
    if "=" in what:  # the first word is a change already
        what, changes = "", [what, *changes]
    run = overlay(_begun(out, what), changes) if resume else _fresh(what, changes, dry_run)
    if run.name == Run.model_fields["name"].default:
        run = overlay(run, {"name": os.path.basename(out.rstrip("/"))})
    if dry_run:
        print(run.model_dump_json(indent=2))
        return
    if min_workers is not None and not workers:
        raise ValueError("--min-workers is of a training on Ray; say --workers too")
    bundle = _train_on_ray(run, out, workers, min_workers, address, resume) if workers else _train_here(run, out, resume)
    print(f"bundle: {bundle}")
    if "://" not in out:
        print(f"curves: recollect board {out}\npage:   recollect report {out}")
    print(f"next:   recollect {_next(run)} {bundle}")


def _next(run: Run) -> str:
    """The verb for a bundle that was just trained."""
    from recollect.config import find_method
    from recollect.trainable import Translator

    method = find_method(run.model.name)
    return "serve" if issubclass(method, Translator) else "evaluate"


def _fresh(what: str, changes: list[str], dry_run: bool) -> Run:
    """The run that a method or recipe and the changes make, suited to its store."""
    from recollect.config import find_run, overlay

    if not what:
        raise ValueError("train what? a method:preset such as mguit:tiny, or a recipe such as experiments.streets:sunny_night")
    early = [change for change in changes if change.startswith(("data.", "model.name="))]
    run = overlay(find_run(what), early)
    if run.data.store or not dry_run:
        run = _suited(run)
    run = overlay(run, [change for change in changes if change not in early])  # the store says which classes there are
    if run.data.store:
        _check_boxes(run)
    return run


def _begun(out: str, what: str) -> Run:
    """The run in `out`, as it was begun."""
    from recollect.bundle import read_text
    from recollect.config import Run

    if what:
        raise ValueError(f"--resume goes on with the run in {out}, with its own configuration; leave {what!r} out")
    text = read_text(f"{out}/last/config.json") or read_text(f"{out}/run.json")
    if text is None:
        raise ValueError(f"{out} holds no run to go on with; leave --resume out to begin one")
    return Run.model_validate_json(text)


def _suited(run: Run) -> Run:
    from recollect.data.store import Store
    from recollect.training.session import suit

    if not run.data.store:
        raise ValueError("which pictures? give data.store=..., made by `recollect data streets` or `recollect data folders`")
    return suit(run, Store.open(run.data.store), lambda text: print(text, file=sys.stderr))  # --dry-run prints JSON


def _check_boxes(run: Run) -> None:
    from recollect.data.store import Store
    from recollect.training.session import check_boxes

    check_boxes(run, Store.open(run.data.store), lambda text: print(text, file=sys.stderr))


def _train_here(run: Run, out: str, resume: bool) -> Path:
    from recollect.training.session import train as train_here

    if "://" in out:
        raise ValueError(f"--out {out}: a training in this process writes to a directory; with --workers 1 it can go to a URI")
    return train_here(run, Path(out), resume=resume)


def _train_on_ray(run: Run, out: str, workers: int, fewest: int | None, address: str | None, resume: bool) -> str:
    from recollect.cluster import connect, disconnect
    from recollect.training import launch

    place = launch.claim(run, out, resume)
    try:
        return launch.train_into(run, place, launch.Resources.fitting(workers, connect(address).gpus, fewest=fewest))
    finally:
        disconnect()


@app.command()
def search(
    what: Annotated[str, typer.Argument(help="method:preset or module:recipe.")] = "mguit:tiny",
    changes: Changes = None,
    store: Annotated[str, typer.Option(help="An image store; default: the streets world.")] = "",
    over: Annotated[list[str] | None, typer.Option(help="Fields or globs to search (repeat).")] = None,
    trials: int = 24,
    steps: int = 600,
    objective: Annotated[
        list[str] | None, typer.Option(metavar="METRIC", help="Steer by this, in its own direction; several are traded off.")
    ] = None,
    minimise: Annotated[list[str] | None, typer.Option(metavar="METRIC", help="The same, for what is better lower.")] = None,
    maximise: Annotated[list[str] | None, typer.Option(metavar="METRIC", help="The same, for what is better higher.")] = None,
    limit: Annotated[
        list[str] | None, typer.Option(metavar="COST=NUMBER", help="At most so many parameters, or seconds_per_step (repeat).")
    ] = None,
    start: Annotated[
        list[str] | None, typer.Option(metavar="PLACE", help="Begin with what a trials.parquet, a JSON file or a bundle says.")
    ] = None,
    scheduler: Annotated[str, typer.Option(help="`asha`, `pbt` or `none`.")] = "asha",
    seeds: Annotated[int, typer.Option(help="Of the final, in which the best settings meet those it began from; 0: none.")] = 3,
    workers_per_trial: int = 1,
    storage: Annotated[str, typer.Option(help="Where results go.")] = "runs/search",
    address: Annotated[str | None, typer.Option(help="Ray: `local`, or a cluster's address.")] = "local",
    resume: Annotated[bool, typer.Option("--resume")] = False,
    fields: Annotated[bool, typer.Option("--fields", help="List the searchable fields and stop.")] = False,
) -> None:
    """Search settings with Ray Tune, Optuna and ASHA.

    recollect search mguit:tiny --store runs/photos --over 'weights.*' --trials 16\n
    recollect search mguit:tiny --minimise scene_error --maximise class_found --limit parameters=2e6\n
    recollect search mguit:tiny --over 'weights.*' --start runs/search/trials.parquet --storage runs/search-2\n
    recollect search mguit:tiny --fields
    """
    from recollect.config import find_run, overlay, resolve
    from recollect.search.space import searchable

    if fields:
        for name, (spread, value) in searchable(overlay(find_run(what), changes or [])).items():
            print(f"{name} = {value}   {spread}")
        return
    arguments = ["--method", what, "--store", store, "--trials", str(trials), "--steps", str(steps), "--storage", storage]
    arguments += ["--workers-per-trial", str(workers_per_trial), *(["--address", address] if address else [])]
    arguments += ["--scheduler", scheduler, "--seeds", str(seeds)]
    repeated = {"over": over, "objective": objective, "minimise": minimise, "maximise": maximise, "limit": limit, "start": start}
    arguments += [word for option, values in repeated.items() for value in values or [] for word in (f"--{option}", value)]
    arguments += [word for change in changes or [] for word in ("--set", change)] + (["--resume"] if resume else [])
    code = resolve("experiments.tune_memory:main")(arguments)
    raise typer.Exit(code)


app.command()(evaluate)
app.command()(compare)
app.command()(metrics)


@app.command()
def translate(
    bundle: Annotated[str, typer.Argument(help="A bundle.")],
    pictures: Annotated[list[Path], typer.Argument(help="Pictures to translate.")],
    to: Annotated[str | None, typer.Option(help="The domain wanted; a model with one domain, or --set, needs none.")] = None,
    source: Annotated[str | None, typer.Option("--from", help="The domain they are from.")] = None,
    out: Annotated[Path, typer.Option(help="Where the translations go.")] = Path("translated"),
    samples: Annotated[int, typer.Option(help="Random styles a picture; 0: the one style without chance.")] = 0,
    seed: int = 0,
    exemplar: Annotated[Path | None, typer.Option(help="A picture of the wanted domain whose style to take.")] = None,
    style: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS=STYLE", help="The style of one class (repeat), over whatever the others have."),
    ] = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="An attribute wanted (repeat); VALUE is 1, 0, or between."),
    ] = None,
    index: Index = "",
    library: Library = "",
    device: str = "cpu",
) -> None:
    """Translate pictures; each keeps its size.

    A STYLE is `stored`, `random:SEED`, `item:N`, PICTURE (of the wanted domain), PICTURE@BOXES.json (COCO), or
    `mix:AMOUNT:A:B` of two of these. Attributes that are not --set stay as the model sees them in the picture.

    recollect translate runs/first/best street.png --to night --samples 3\n
    recollect translate runs/first/best street.png --to night --style car=exemplar.jpg --style background=random:7\n
    recollect translate runs/first/best street.png --to night --samples 3 --style sign=stored --style car=mix:0.3:stored:item:1\n
    recollect translate runs/faces/best face.png --set Blond_Hair=1 --set Male=0 --samples 3
    """
    from recollect import attributes
    from recollect.batch import Guide
    from recollect.data.transforms import decode, to_uint8, to_unit
    from recollect.evaluation.grids import save_png
    from recollect.retrieval.guided import open_pipeline
    from recollect.styles import choose, parse_choices

    pipeline = open_pipeline(bundle, device, index=index, library=library)
    guide = Guide(exemplar=to_unit(decode(exemplar.read_bytes()))[None]) if exemplar else Guide()
    if exemplar and samples:
        raise ValueError("--exemplar gives the style already; leave --samples out")
    changes = attributes.parse_changes(attribute or [])
    names = pipeline.domains.names
    if to is None and len(names) > 1 and not changes:
        raise ValueError(f"--to which domain? {pipeline.name} has {', '.join(names)}")
    target = to or names[0]
    if to and changes and to in attributes.check(pipeline.model, changes).style_attributes():
        raise ValueError(f"the attributes of {pipeline.name} are its domains: --set says which is wanted; leave --to out")
    words = [*([to] if to else []), *(f"{name}={value:g}" for name, value in changes.items())]
    label = "-".join(words or [target]).replace("/", "_")  # names are whatever the data has
    guide = choose(pipeline, target, parse_choices(style or []), guide=guide)
    stems = [path.stem for path in pictures]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise ValueError(f"two pictures are called {twice[0]!r}, and their translations would be too; translate them one by one")
    out.mkdir(parents=True, exist_ok=True)
    for path in pictures:
        image = to_unit(decode(path.read_bytes()))[None]
        wanted = attributes.choose(pipeline, image, changes, source, guide=guide)
        for number in range(max(samples, 1)):
            seeds = [seed + number] if samples else None
            result = pipeline(image, target, source, wanted, seeds)
            name = out / (f"{path.stem}-{label}-{seed + number}.png" if samples else f"{path.stem}-{label}.png")
            save_png(to_uint8(result.images[0]), name)
            print(name)


@app.command("translate-store")
def translate_whole_store(
    bundle: Annotated[str, typer.Argument(help="A bundle.")],
    store: Annotated[str, typer.Option(help="The image store to translate.")],
    source: Annotated[str, typer.Option("--from", help="The domain of the store whose pictures are taken.")],
    to: Annotated[str, typer.Option(help="The domain wanted.")],
    out: Annotated[str, typer.Option(help="Where the new store goes: a path or URI.")],
    short_side: Annotated[int | None, typer.Option(help="Bring pictures to this short side first; default: their own.")] = None,
    seed: Annotated[int | None, typer.Option(help="Draw a random style for every picture; default: no chance.")] = None,
    index: Index = "",
    library: Library = "",
    device: str = "cpu",
) -> None:
    """Translate a domain of a store into a new store, with the boxes it had.

    recollect translate-store runs/first/best --store runs/streets-64 --from sunny --to night --out runs/sunny-to-night\n
    recollect train detector:tiny data.store=runs/sunny-to-night --out runs/night-detector
    """
    from recollect.cli_data import progress_line, say_store
    from recollect.translated import translate_store

    manifest = translate_store(
        bundle,
        store,
        out,
        source=source,
        target=to,
        short_side=short_side,
        seed=seed,
        device=device,
        index=index,
        library=library,
        progress=progress_line("translating"),
    )
    say_store(out, manifest)


@app.command()
def serve(
    bundle: Annotated[str, typer.Argument(help="A bundle.")],
    host: Annotated[
        str | None, typer.Option(help="The address to listen on; default: 127.0.0.1, and on a cluster 0.0.0.0.")
    ] = None,
    port: int = 8000,
    index: Index = "",
    also: Also = None,
    set_: ServeSettings = None,
    insecure: Insecure = False,
    address: Annotated[
        str, typer.Option(help="Ray: `local`, or a cluster's address (`auto`: the one of this machine).")
    ] = "local",
) -> None:
    """Deploy a bundle with Ray Serve until Ctrl-C.

    RECOLLECT_TOKEN, where it is set, is the token that callers send; RECOLLECT_ADMIN_TOKEN that of who may change the index.

    recollect serve runs/first/best --port 8000\n
    recollect serve runs/rg/best --index runs/faces-index --also plain=runs/gmm/best --set replicas=2\n
    recollect serve s3://bucket/search/winner --address auto\n
    curl -F image=@street.png -F target=night http://127.0.0.1:8000/v1/translate -o night.png
    """
    import recollect.cluster  # noqa: F401  before Ray: it tells Ray of the token that clusters ask for
    from recollect.config import resolve

    options = {"index": index, "bundles": _pairs(also or [], "--also"), **_pairs(set_ or [], "--set")}
    resolve("serve.run:main")(bundle, host=host, port=port, address=address, insecure=insecure, **_tokens(), **options)


@app.command()
def deploy(
    what: Annotated[str, typer.Argument(help="`winner`, or a bundle.")],
    storage: Annotated[str, typer.Option("--from", help="Where `recollect search` put its results.")] = "",
    index: Index = "",
    write: Annotated[Path | None, typer.Option(help="Only write a file for `serve deploy`.")] = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    also: Also = None,
    set_: ServeSettings = None,
    insecure: Insecure = False,
) -> None:
    """Serve the best bundle of a search with the index it was trained with, or write what `serve deploy` takes.

    recollect deploy winner --from runs/search\n
    recollect deploy winner --from s3://bucket/search --set replicas=4 --write winner.yaml
    """
    from recollect.config import resolve

    bundle = resolve("serve.winner:find")(what, storage)
    options = {"bundles": _pairs(also or [], "--also"), **_pairs(set_ or [], "--set")}
    if write is None:
        resolve("serve.run:main")(bundle, host=host, port=port, index=index, insecure=insecure, **_tokens(), **options)
        return
    digests = {f"{name}_sha256": resolve("serve.guard:checked")(token, name) for name, token in _tokens().items()}
    options["index"] = resolve("serve.winner:index_of")(bundle, index)
    write.write_text(resolve("serve.winner:config")(bundle, port, insecure, **digests, **options))
    print(f"{write}: serve deploy {write} -a http://HEAD:8265")


def _tokens() -> dict[str, str]:
    """The tokens of the environment: arguments would show in a list of processes."""
    names = {"token": "RECOLLECT_TOKEN", "admin_token": "RECOLLECT_ADMIN_TOKEN"}
    return {name: os.environ.get(variable, "") for name, variable in names.items()}


def _pairs(texts: list[str], option: str) -> dict[str, str]:
    """Values by name from `NAME=VALUE` texts."""
    found = dict(text.partition("=")[::2] for text in texts)
    wrong = [text for text in texts if "=" not in text or text[0] == "="] or texts[len(found) :]
    if wrong:
        raise ValueError(f"{option} {wrong[0]!r}: give NAME=VALUE, and each name once")
    return found


@app.command()
def show(what: Annotated[str, typer.Argument(help="A bundle, a run's directory, a store, or `methods`.")]) -> None:
    """What a thing is: the card of a bundle or of a run's best, a store's counts, the catalogue.

    recollect show runs/first/best
    """
    from recollect.bundle import open_bundle
    from recollect.config import find_method, methods

    if what == "methods":
        for name in methods():
            kind = find_method(name)
            title = (sys.modules[kind.__module__].__doc__ or kind.__doc__ or "").strip().splitlines()[0]
            print(f"{name}: {title}\n    presets: {', '.join(kind.presets)}")
        return
    path = Path(what)
    if (path / "manifest.json").exists() and not (path / "config.json").exists():
        return data_show(what)
    inner = next((path / name for name in ("best", "last") if (path / name / "manifest.json").exists()), path)
    opened = open_bundle(inner)
    print((opened.path / "README.md").read_text())
    print(f"digest {opened.digest}\nparents {opened.manifest['parents']}\nfiles {', '.join(opened.manifest['files'])}")


def main() -> None:
    """Run the command; errors that a user can mend are one line, with exit code 2."""
    try:
        app()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
