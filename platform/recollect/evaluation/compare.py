"""Bundles beside each other, from a table of results: values with intervals, and paired differences from the first of them.

Runs that differ in nothing but their seed are one row. Where values by picture are there, differences are of equal pictures;
distances between sets have intervals over seeds alone, so one seed has none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from recollect.bundle import Bundle, open_bundle
from recollect.config import did_you_mean, find_method
from recollect.evaluation.evaluate import KINDS, guide_of
from recollect.evaluation.metrics import find_metric
from recollect.evaluation.numbers import Numbers, cell, signed
from recollect.evaluation.results import NO_SEED, SETTING, Results
from recollect.evaluation.statistics import Interval
from recollect.trainable import Guided

NOTHING = "the input itself"


@dataclass(frozen=True)
class Section:
    """One setting: the arms and what stands beside them, a value for each metric, and differences from the reference."""

    title: str
    names: tuple[str, ...]  # arms first, as they were given; then baselines and ceilings
    seeds: dict[str, int]
    reference: str
    values: dict[tuple[str, str], Interval]  # by metric and name
    differences: dict[tuple[str, str], Interval]

    @property
    def metrics(self) -> list[str]:
        """Those that an arm has, in the registry's order."""
        return list(dict.fromkeys(metric for metric, _ in self.values))


def compare(results: Results, chosen: Sequence[str], parts: bool = False, beside: bool = False) -> list[Section]:
    """The chosen bundles in every setting that the first of them was measured in.

    Args:
        results: what was measured.
        chosen: digests of bundles (or how they begin), as `as_subject` writes them, and names of runs.
        parts: also the parts of metrics (regions, attributes).
        beside: also all baselines and ceilings; else doing nothing alone.

    Raises ValueError for what is not in the results, and where nothing was measured of two of them in one setting.
    """
    results = Results(*(frame.assign(subject=_subjects(frame)) for frame in (results.rows, results.pictures)))
    methods = results.rows[results.rows["kind"] == "method"]
    subjects = list(dict.fromkeys(subject for word in chosen for subject in _meant(methods, word)))
    if len(subjects) < 2:
        raise ValueError("compare what with what? give two bundles or names, or more")
    labels = _labels(methods, subjects)
    first = methods[methods["subject"] == subjects[0]]
    found = []
    for _, where in first[SETTING].drop_duplicates().iterrows():
        here = results.of({name: where[name] for name in SETTING})
        rows, seen = (
            frame[frame["subject"].isin(subjects) | (frame["kind"] != "method")] for frame in (here.rows, here.pictures)
        )
        if rows.loc[rows["kind"] == "method", "subject"].map(labels).nunique() > 1:
            found.append(_section(Results(rows, seen), labels, where, parts, beside))
    if not found:
        there = "; ".join(dict.fromkeys(_title(row) for _, row in first.iterrows()))
        raise ValueError(
            f"{labels[subjects[0]]} was measured on {there}, and no other of these on the same pictures: evaluate them alike"
        )
    return found


def _subjects(frame: pd.DataFrame) -> pd.Series[str]:
    """What was judged: a bundle, with the index that guided it if any; `digest` or `digest:digest`."""
    return frame["bundle"] + frame["index"].where(frame["index"] == "", ":" + frame["index"])


def _meant(methods: pd.DataFrame, word: str) -> list[str]:
    """The subjects that a word means."""
    is_digest = re.fullmatch("[0-9a-f]{6,64}(:[0-9a-f]{64})?", word)
    by_digest = methods[methods["subject"].str.startswith(word)] if is_digest else methods[:0]
    found = by_digest if len(by_digest) else methods[methods["name"] == word]
    if not len(found):
        raise ValueError(
            f"{word!r} is neither a bundle nor a run in the table of results{did_you_mean(word, methods['name'].unique())}"
        )
    return [str(subject) for subject in found["subject"].unique()]


def _labels(methods: pd.DataFrame, subjects: Sequence[str]) -> dict[str, str]:
    """What to call each subject: the same for runs that differ in their seed alone."""
    facts: Any = methods.drop_duplicates("subject").set_index("subject")  # pandas' stubs take a cell for anything
    groups: dict[tuple[str, ...], list[str]] = {}
    for subject in subjects:
        config, method = str(facts.at[subject, "config"]), str(facts.at[subject, "method"])
        groups.setdefault((config, method, _guide(subject, subjects)) if config else (subject,), []).append(subject)
    labels: dict[str, str] = {}
    for members in groups.values():
        seeds = [int(facts.at[subject, "seed"]) for subject in members]
        alike = members if len(set(seeds)) == len(seeds) else []
        for subject in members:
            own = str(facts.at[subject, "name"])
            labels[subject] = _common([str(facts.at[other, "name"]) for other in alike]) or own if len(alike) > 1 else own
        if not alike:
            labels |= {subject: f"{labels[subject]} {_short(subject, subjects)}" for subject in members}
    by_label: dict[str, set[tuple[str, ...]]] = {}
    for key, members in groups.items():
        for subject in members:
            by_label.setdefault(labels[subject], set()).add(key)
    return {
        subject: f"{label} {_short(subject, subjects)}" if len(by_label[label]) > 1 else label
        for subject, label in labels.items()
    }


def _guide(subject: str, subjects: Sequence[str]) -> str:
    """The index of a subject whose bundle was judged with several; otherwise nothing: each seed has an index of its own."""
    bundle, _, guide = subject.partition(":")
    return guide if len([other for other in subjects if other.partition(":")[0] == bundle]) > 1 else ""


def _short(subject: str, subjects: Sequence[str]) -> str:
    guide = _guide(subject, subjects)
    return f"{subject[:6]} with index {guide[:6]}" if guide else subject[:6]


def _common(names: Sequence[str]) -> str:
    """What names of several seeds have in common.

    >>> _common(["mguit-0", "mguit-1"]), _common(["night", "night"])
    ('mguit', 'night')
    """
    return names[0] if len(set(names)) == 1 else re.sub(r"[-_ ]*(seed)?[-_ ]*$", "", os.path.commonprefix(list(names)))


def _section(here: Results, labels: dict[str, str], where: pd.Series[str], parts: bool, beside: bool) -> Section:
    title = _title(where)
    frames = [
        frame.assign(setting=title, arm=frame["subject"].map(labels).fillna(frame["name"]))
        for frame in (here.rows, here.pictures)
    ]
    numbers = Numbers(Results(*frames))
    order = list(dict.fromkeys(labels.values()))
    arms = sorted(numbers.names(title, "method"), key=order.index)
    others = [name for kind in KINDS[1:] for name in numbers.names(title, kind) if beside or name == NOTHING]
    main, families, memory = numbers.metrics(title)
    metrics = [*main, *(part for own in families.values() for part in own if parts), *memory]
    values: dict[tuple[str, str], Interval] = {}
    differences: dict[tuple[str, str], Interval] = {}
    for metric in metrics:
        for name in (*arms, *others):
            if (interval := numbers.estimate(title, name, metric)) is not None:
                values[metric, name] = interval
            if name in arms[1:] and (pair := numbers.difference(title, name, arms[0], metric)) is not None:
                differences[metric, name] = pair[0]
    seeds = {name: len([seed for seed in numbers.seeds(title, name) if seed != NO_SEED]) for name in (*arms, *others)}
    return Section(title, (*arms, *others), seeds, arms[0], values, differences)


def _title(row: pd.Series[str]) -> str:
    where = row["source"] if row["source"] == row["target"] else f"{row['source']} to {row['target']}"
    cut = f", {row['cut']}" if row["cut"] else ""
    return f"{where}, {row['pictures']} {row['split']} pictures of {row['data'][:8]}{cut}"


def tables(section: Section) -> list[tuple[str, list[list[str]]]]:
    """A section as tables of words, heads first: the values, and the differences where there are any."""
    heads = [f"{name} ({section.seeds[name]} seeds)" if section.seeds[name] > 1 else name for name in section.names]
    rows = [["", *heads]]
    for metric in section.metrics:
        own = [section.values.get((metric, name)) for name in section.names]
        rows.append([_head(metric), *(cell(value) for value in own)])
    found = [(section.title, rows)]
    arms = [name for name in section.names if any(name == other for _, other in section.differences)]
    if arms:
        rows = [["", *arms]]
        for metric in section.metrics:
            own = [section.differences.get((metric, name)) for name in arms]
            if any(own):
                rows.append([_head(metric), *("" if value is None else signed(value) + _mark(value) for value in own)])
        found.append((f"paired differences from {section.reference}; * where the interval does not hold 0", rows))
    return found


def _mark(interval: Interval) -> str:
    return " *" if interval.sign else ""


def _head(metric: str) -> str:
    return f"{metric} {find_metric(metric).arrow}"


def markdown(sections: Sequence[Section]) -> str:
    """The sections as a page."""
    parts = ["# Comparison"]
    for section in sections:
        for level, (title, rows) in zip(("##", "###"), tables(section), strict=False):
            lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
            text = "\n".join("| " + " | ".join(word.replace("|", "\\|") for word in line) + " |" for line in lines)
            parts.append(f"{level} {title[0].upper()}{title[1:]}\n\n{text}")
    parts.append(
        "In brackets are 95 % intervals over pictures (bootstrap) and, with two seeds or more, over seeds (t-distribution); "
        "distances between sets of pictures have the latter alone. Differences are of equal seeds and equal pictures."
    )
    return "\n\n".join(parts) + "\n"


def frame(sections: Sequence[Section]) -> pd.DataFrame:
    """The sections as rows: setting, name, seeds, metric, value with its ends, difference from the reference with its ends."""
    nothing = Interval(float("nan"), float("nan"), float("nan"))
    rows = []
    for section in sections:
        for (metric, name), value in section.values.items():
            difference = section.differences.get((metric, name), nothing)
            facts = {"setting": section.title, "name": name, "seeds": section.seeds[name], "metric": metric}
            ends = {"value": value.value, "low": value.low, "high": value.high, "reference": section.reference}
            rows.append({**facts, **ends, **{f"difference_{key}": part for key, part in difference._asdict().items()}})
    return pd.DataFrame(rows)


def as_subject(word: str, guide: Mapping[str, str], evaluate: Callable[[str, Bundle, Mapping[str, str]], object]) -> str:
    """The digest of a bundle, and of the index that guides it if any, where `word` is the place of one; else the word itself.

    Args:
        guide: `index` and `library` as `open_pipeline` takes them, for bundles that neighbours guide.
        evaluate: called with the word, the bundle, and what guides it (nothing where no neighbours do).
    """
    try:
        opened = open_bundle(word)
    except (ValueError, OSError):
        return word
    own = guide if issubclass(find_method(opened.run.model.name), Guided) else {}
    evaluate(word, opened, own)
    index = guide_of(opened, own.get("index", ""))
    return f"{opened.digest}:{index}" if index else opened.digest
