"""The final table: a bundle judged on a split, beside its baselines, as rows that can be appended to a Parquet file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from recollect.bundle import Bundle, open_bundle
from recollect.config import Data, find_method, overlay, resolve
from recollect.data.schema import SPLITS
from recollect.data.store import Store
from recollect.evaluation import baselines
from recollect.evaluation.memory.use import memory_use
from recollect.evaluation.metrics import METRICS, find_metric
from recollect.evaluation.results import COLUMNS, NO_SEED, SETTING, Results, append, by_picture, nothing
from recollect.evaluation.statistics import bounds, draw_pictures
from recollect.evaluation.validate import DISTANCE, Cases, Judgement, examine_memory, gather, halved, judge, translate_all
from recollect.retrieval.directory import read_manifest
from recollect.retrieval.guided import check_guided, open_pipeline
from recollect.trainable import Guided, Trainable, Translator

logger = logging.getLogger("recollect")

__all__ = ["COLUMNS", "KINDS", "append", "evaluate", "measure", "show", "table"]
RESAMPLES = 1000
KINDS = ("method", "baseline", "ceiling")
WIDE = 12  # parts side by side; more stand one below the other
DETECTOR = "recollect.evaluation.detection:DetectionJudge"
FITTING = 64  # pairs that baselines are fitted on: their handful of numbers do not improve with more


def evaluate(
    bundle: str | os.PathLike[str] | Bundle,
    store_uri: str | os.PathLike[str],
    split: str = "test",
    pictures: int | None = None,
    progress: Callable[[str], None] | None = None,
    device: str = "cpu",
    domains: Sequence[str] | None = None,
    index: str = "",
    library: str = "",
) -> pd.DataFrame:
    """The rows of `measure`."""
    return measure(bundle, store_uri, split, pictures, progress, device, domains, index, library).rows


def measure(
    bundle: str | os.PathLike[str] | Bundle,
    store_uri: str | os.PathLike[str],
    split: str = "test",
    pictures: int | None = None,
    progress: Callable[[str], None] | None = None,
    device: str = "cpu",
    domains: Sequence[str] | None = None,
    index: str = "",
    library: str = "",
    known: Results | None = None,
) -> Results:
    """A bundle and its baselines on a split of a store, one row a metric (see COLUMNS), with the values by picture.

    Baselines are fitted on the validation split; where that is the one to judge, every second scene is judged and the others
    serve for fitting. `low` and `high` bound what is made of pictures at 95 % (bootstrap over the pictures).

    Args:
        bundle: what to judge; its run says the direction and the size.
        pictures: how many source pictures; None: all of the split (of scenes, where there are scenes), but of those that are
            translated by attributes 500 at most, which is said.
        progress: told in words what is being done.
        domains: where a detector is judged; None: in those that it was trained on. Translators have a direction instead.
        index, library: as `open_pipeline` takes them, for a method that is guided by neighbours.
        known: what was measured before; a bundle that was judged on these very pictures is not judged again.

    Raises ValueError for unknown splits, and for stores without the bundle's domains.
    """
    tell = progress or (lambda text: None)
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    check_guided(opened, index, library)
    judge_name = find_method(opened.run.model.name).judged_by
    if judge_name == DETECTOR:
        from recollect.evaluation.detection import evaluate_detector  # which makes its rows with this module

        return Results(evaluate_detector(opened, store_uri, split, domains, pictures, device), nothing().pictures)
    if domains is not None:
        raise ValueError(f"{opened.path} holds {opened.run.model.name!r}; only a detector is judged by domain")
    store = Store.open(store_uri)
    if judge_name != Trainable.judged_by:
        return _by_its_judge(opened, store, split, pictures, tell, device, index, library, known)
    run = opened.run
    cases, fitting = _cases(store, run.direction(), split, run.data.size, run.data.short_side, pictures)
    about = facts_of(opened, store, cases.source, cases.target, split, len(cases), index=index)
    if (found := _judged(known, about)) is not None:
        tell(f"{len(cases)} pictures from {cases.source} to {cases.target} were judged before")
        return found
    pipeline = open_pipeline(opened, device, index=index, library=library)
    tell(f"translating {len(cases)} pictures from {cases.source} to {cases.target}")
    judgement = judge(translate_all(pipeline, cases), cases)
    judgement.values.update(examine_memory(pipeline, cases) | memory_use(pipeline, cases))
    result = results_of(about, judgement, cases.ids)
    tell("fitting and judging baselines")
    for row in baselines.rows(cases, fitting):
        result += results_of(_beside(about, row), row.judgement, cases.ids)
    return result


def _by_its_judge(
    opened: Bundle,
    store: Store,
    split: str,
    pictures: int | None,
    tell: Callable[[str], None],
    device: str,
    index: str,
    library: str,
    known: Results | None,
) -> Results:
    """A method that is judged otherwise than by a direction between two domains, by the judge that it names."""
    _check_split(split)
    run = opened.run
    if index:  # judges look at it too
        run = run.model_copy(update={"data": run.data.model_copy(update={"index": index, "library": library})})
    kind = resolve(find_method(run.model.name).judged_by)
    judge = kind(store, run, split, pictures or getattr(kind, "most", len(store)))
    if pictures is None and (left_out := getattr(judge, "left_out", 0)):
        text = "%d of %d %s pictures are judged, at even distances; `pictures` says how many"
        logger.warning(text, len(judge.ids), len(judge.ids) + left_out, split)
    translates = issubclass(find_method(run.model.name), Translator)
    subject: Any = open_pipeline(opened, device, index=index, library=library) if translates else opened.build().to(device)
    ids = judge.cases(subject).ids if translates else judge.ids
    where = "+".join(run.data.domains)
    about = facts_of(opened, store, where, where, split, len(ids), subject, index)
    if translates and (found := _judged(known, about)) is not None:
        tell(f"{len(ids)} pictures were judged before")
        return found
    tell(f"judging {judge.about.rpartition(': ')[2] or run.model.name}")
    judgement = judge.judgement(subject)
    count = max((len(own.values) for own in judgement.by_picture.values()), default=len(ids))
    about["pictures"] = count
    result = results_of(about, judgement, ids)
    for row in judge.baselines(subject):
        result += results_of(_beside(about, row), row.judgement, ids)
    return result


def facts_of(
    opened: Bundle, store: Store, source: str, target: str, split: str, pictures: int, subject: Any = None, index: str = ""
) -> dict[str, Any]:
    """What the rows of a bundle say beside metric and value.

    Args:
        subject: its pipeline or model, where that may be told attributes.
        index: as `open_pipeline` takes it.
    """
    run = opened.run
    method = {"name": run.name, "kind": "method", "method": run.model.name, "about": f"{steps_of(opened)} steps"}
    where = {"source": source, "target": target, "split": split, "pictures": pictures, "cut": cut_of(run.data, subject)}
    digests = {"bundle": opened.digest, "index": guide_of(opened, index), "data": store.digest, "config": config_of(opened)}
    return {**method, **where, **digests, "seed": run.seed}


def cut_of(data: Data, subject: Any = None) -> str:
    """How pictures are cut, and which attributes are asked for: `64 px`, `64 of 72 px, Male Young`."""
    size = f"{data.size} px" if data.short_side in (None, data.size) else f"{data.size} of {data.short_side} px"
    asked: Sequence[str] = getattr(getattr(subject, "model", subject), "style_attributes", tuple)()
    return f"{size}, {' '.join(asked)}" if asked else size


def guide_of(opened: Bundle, index: str = "") -> str:
    """The digest of the index that a bundle is guided by: that one, or the one that it was trained with; empty for others."""
    place = index or (opened.run.data.index if issubclass(find_method(opened.run.model.name), Guided) else "")
    return read_manifest(place).digest if place else ""


def config_of(opened: Bundle) -> str:
    """What runs that differ in nothing but their seed have in common: a digest of the rest, without names and places.

    Of places the digest of the data stands for the store; each seed has parents and an index of its own.
    """
    nowhere = {"name": "", "seed": 0, "data.store": "", "data.index": "", "data.library": ""}
    config = overlay(opened.run, nowhere).model_dump(mode="json")
    if "parent" in config["model"]:
        config["model"]["parent"] = ""
    config["data"]["store"] = opened.manifest["parents"].get("data", "")
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def _beside(about: dict[str, Any], row: baselines.Row) -> dict[str, Any]:
    own = {"name": row.name, "kind": row.kind, "method": "", "about": row.about, "seed": NO_SEED}
    return {**about, **own, "bundle": "", "index": "", "config": ""}


def _judged(known: Results | None, about: dict[str, Any]) -> Results | None:
    """What is known of these pictures of the bundle and of what stands beside it, where both are there; without scores."""
    if known is None:
        return None
    here = known.of({name: about[name] for name in SETTING})
    frames = (here.rows, here.pictures)
    own = [(frame["bundle"] == about["bundle"]) & (frame["index"] == about["index"]) for frame in frames]
    rows, pictures = (frame[mine | (frame["kind"] != "method")] for frame, mine in zip(frames, own, strict=True))
    rows = rows[rows["features"].isin(["", "pyramid"])]
    if not all((rows["kind"] == kind).any() for kind in ("method", "baseline")):
        return None
    return Results(rows, pictures[pictures["metric"].isin(rows["metric"])])


def results_of(about: dict[str, Any], judgement: Judgement, ids: Sequence[str], features: str = "") -> Results:
    """A judgement of the pictures with these ids, as results; `features` is the digest of those that it was made with."""
    fits = all(len(own.values) == len(ids) for own in judgement.by_picture.values())  # a retriever's are of its queries
    pictures = by_picture(about, judgement, ids) if fits else nothing().pictures
    return Results(pd.DataFrame(_rows(about, judgement, features), columns=COLUMNS), pictures)


def steps_of(bundle: Bundle) -> int:
    """The step that the bundle's weights are from: the best ones may be older than the run."""
    return int(max((row["step"] for row in bundle.metrics()), default=0))


def _cases(
    store: Store, direction: tuple[str, str], split: str, size: int, short_side: int | None, pictures: int | None
) -> tuple[Cases, Cases | None]:
    """What is judged, and what baselines are fitted on (None where the store has no truth or no other pairs)."""
    _check_split(split)
    cases = gather(store, direction, split, size, pictures, short_side, halved(store, split))
    if cases.truth is None or not all(store.ids("val", domain) for domain in direction):
        return cases, None
    fitting = gather(store, direction, "val", size, FITTING, short_side, 1 if split == "val" else None)
    return cases, fitting if len(fitting) else None


def _check_split(split: str) -> None:
    if split not in SPLITS or split == "train":
        raise ValueError(f"there is nothing to judge on the split {split!r}; it is val or test")


def _rows(facts: dict[str, Any], judgement: Judgement, by: str = "") -> list[dict[str, Any]]:
    intervals = bootstrap(judgement)
    nothing = (float("nan"), float("nan"))
    found = []
    for metric, value in judgement.values.items():
        low, high = intervals.get(metric, nothing)
        features = "pyramid" if metric.split("/")[0] == DISTANCE else by
        found.append({**facts, "metric": metric, "value": value, "low": low, "high": high, "features": features})
    return found


def bootstrap(judgement: Judgement, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % intervals by resampling the pictures 1000 times, of every metric that is made of pictures."""
    found = {}
    for metric in judgement.values:
        measured = judgement.measured(metric)
        if measured is not None:
            times = draw_pictures(measured.values.shape[1], RESAMPLES, seed)
            found[metric] = bounds(measured.scores(times)[:, 0])  # nan: not drawn
    return found


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows as a wide table for reading: methods, baselines, ceiling; the mean over regions first, then each region.

    Several evaluations of the same name are told apart by the bundle's digest.
    """
    labels = frame["name"].where(~_ambiguous(frame), frame["name"] + " " + frame["bundle"].str[:6])
    rows = [(kind, label) for kind in KINDS for label in labels[frame["kind"] == kind].unique()]
    wide = frame.assign(label=labels).pivot_table(index=["kind", "label"], columns="metric", values="value", aggfunc="last")
    columns = sorted(wide.columns, key=_column_order(list(frame["metric"])))
    result = wide.reindex(index=pd.MultiIndex.from_tuples(rows, names=["kind", "name"]), columns=columns)
    result.columns.name = None
    return result


def _ambiguous(frame: pd.DataFrame) -> pd.Series[bool]:
    return frame.groupby(["kind", "name"])["bundle"].transform("nunique") > 1


def _column_order(seen: list[str]) -> Callable[[str], tuple[int, int]]:
    """Metrics in the registry's order, each followed by its parts as they were measured; unknown ones (health) last."""
    known = list(METRICS)

    def order(metric: str) -> tuple[int, int]:
        try:
            place = known.index(find_metric(metric).name)
        except ValueError:
            place = len(known)
        return place, -1 if metric in METRICS else seen.index(metric)

    return order


def show(frame: pd.DataFrame, console: Console | None = None) -> None:
    """Print the rows: what decides, with 95 % intervals; then the errors of the regions; then the memory."""
    console = console or Console(width=None if sys.stdout.isatty() else 120)  # a log has no 80 columns to keep to
    wide = table(frame)
    bounds = {side: _bounds(frame, side, wide) for side in ("low", "high")}
    first = frame.iloc[0]
    scores = [column for column in wide.columns if column not in METRICS and is_whole(column)]
    where = first["source"] if first["source"] == first["target"] else f"{first['source']} to {first['target']}"
    title = f"{where}, {first['pictures']} {first['split']} pictures"
    families = _families(list(wide.columns))
    parts = [column for columns in families.values() for column in columns]
    memory = [column for column in wide.columns if column not in [*parts, *scores] and _needs_memory(column)]
    deciding = [column for column in wide.columns if column in METRICS and column not in memory]
    console.print(_rich(wide[deciding], title, bounds))
    if scores:
        console.print(_upright(wide[scores].dropna(how="all"), "scores by protocol", bounds))
    for family, columns in families.items():
        heading = f"{family} {find_metric(family).arrow} by {find_metric(family).parts}"
        console.print(_rich(wide[columns], heading, None) if len(columns) <= WIDE else _upright(wide[columns], heading))
    for name, row in wide[memory].dropna(how="all").droplevel("kind").iterrows():
        facts = "  ".join(f"{key} {short(value)}" for key, value in row.dropna().items())
        console.print(f"[bold]memory of {name}[/bold]  {facts}", highlight=False)


def _families(columns: Sequence[str]) -> dict[str, list[str]]:
    """The parts of a metric, which have a table of their own: those of a family that says by what it is parted."""
    found: dict[str, list[str]] = {}
    for column in columns:
        family, slash, _ = column.rpartition("/")
        if slash and column not in METRICS and not _needs_memory(column) and find_metric(column).parts:
            found.setdefault(family, []).append(column)
    return found


def is_whole(metric: str) -> bool:
    """Whether a metric is one itself, or one measured by a protocol, and no part of one.

    >>> is_whole("scene_error"), is_whole("fid_60@features:0a1b2c3d"), is_whole("cis_20x10@inception/exp")
    (True, True, False)
    """
    if metric in METRICS:
        return True
    try:
        return find_metric(metric).protocols and "/" not in metric
    except ValueError:
        return False


def _upright(wide: pd.DataFrame, title: str, bounds: dict[str, pd.DataFrame] | None = None) -> Table:
    """A table of many parts: one a row, and a column for each name."""
    shown = Table(title=title, title_justify="left", header_style="bold", show_edge=False, pad_edge=False)
    shown.add_column("")
    for _, name in wide.index:
        shown.add_column(name, justify="right")
    for column in wide.columns:
        name = f"{column} {find_metric(column).arrow}" if bounds else column.rpartition("/")[2]
        ends = [bounds[side].loc[wide.index, column] for side in ("low", "high")] if bounds else []
        shown.add_row(name, *(_cell(*own) for own in zip(wide[column], *ends, strict=True)))
    return shown


def _needs_memory(metric: str) -> bool:
    try:
        return find_metric(metric).needs == "memory"
    except ValueError:
        return True


def _bounds(frame: pd.DataFrame, side: str, like: pd.DataFrame) -> pd.DataFrame:
    values = frame.assign(value=frame[side], name=frame["name"]).dropna(subset=["value"])
    return table(values).reindex(index=like.index, columns=like.columns) if len(values) else like * float("nan")


def _rich(wide: pd.DataFrame, title: str, bounds: dict[str, pd.DataFrame] | None) -> Table:
    shown = Table(title=title, title_justify="left", header_style="bold", show_edge=False, pad_edge=False)
    shown.add_column("")
    for metric in wide.columns:
        shown.add_column(f"{_short(metric)} {find_metric(metric).arrow}", justify="right")
    kind = None
    for place, values in wide.iterrows():
        assert isinstance(place, tuple)
        if kind not in (None, place[0]):
            shown.add_section()
        kind = place[0]
        cells = [_cell(values[m], *((bounds[s].at[place, m] for s in ("low", "high")) if bounds else ())) for m in wide.columns]
        shown.add_row(place[1], *cells, style="bold" if kind == "method" else "")
    return shown


def _short(metric: str) -> str:
    """A part by its own name where it stands among others of its family."""
    return metric if metric in METRICS or _needs_memory(metric) else metric.rpartition("/")[2]


def _cell(value: float, low: float = float("nan"), high: float = float("nan")) -> str:
    if pd.isna(value):
        return ""
    return short(value) + ("" if pd.isna(low) else f" ({short(low)} to {short(high)})")


def short(value: float) -> str:
    """Three decimals below ten, three digits above.

    >>> short(0.12345), short(12.345), short(1234.5)
    ('0.123', '12.3', '1234')
    """
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"
