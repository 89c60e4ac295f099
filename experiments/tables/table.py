"""What a table is said to be, and doing it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a recipe is imported for its help as well, which should not take the seconds that torch takes
    from experiments.tables.jobs import Outcome
    from experiments.tables.suites import Suite
    from recollect.config import Run
    from recollect.evaluation.numbers import Numbers

PICTURES = 500  # of a split, evenly spread: a real data set has tens of thousands


@dataclass(frozen=True)
class Arm:
    """A row of a table: its name, its run (the table sets the seed, the store its classes), and what it is in words.

    An arm may start from what other arms of the table end with, seed by seed:

    Args:
        parents: their names. They are trained first, and one that changes makes this one another run.
        prepare: `module:function`, called as `prepare(run, bundles, place, on) -> Run` in the process that trains. It puts the
            parents' bundles (paths or URIs, by the arm's name) into the run, and may build what lies between (an index, a store)
            below `place`, a folder or URI that belongs to just these bundles and is shared by all arms that start from them. It
            is called again when the run goes on after a kill, and must then find what it built and return the same run. `on` is
            the Ray that the run is trained on (an `OnRay`, and the process is connected to it), or None.
        shown: False for one that others start from and that is no row itself: trained, and not judged.
    """

    name: str
    run: Run
    about: str = ""
    parents: tuple[str, ...] = ()
    prepare: str = ""
    shown: bool = True


@dataclass(frozen=True)
class Claim:
    """An ordering: `better` (an arm or a baseline) is to be better than `worse` in `metric`, wherever that is measured."""

    text: str
    better: str
    worse: str
    metric: str


@dataclass(frozen=True)
class Bound:
    """What is expected of one arm: `metric` is at least `limit`, or at most where less is better, wherever it is measured."""

    text: str
    arm: str
    metric: str
    limit: float


@dataclass(frozen=True)
class Table:
    """What a table shows.

    Args:
        suite: what its arms are judged on and by.
        reference: the arm that the others are compared with; where a setting lacks it, the first of `references` that is there.
        runs: the folder of its runs, for tables that share some: a run of one is then not trained again for another, whatever its
            arm is called there. Empty: the table's name.
        more: called with the numbers and the name of a setting; what it says, in Markdown, stands behind the setting's tables.
        same_data: whether all arms are to see the same training pictures in the same order; False where these are what differs.
    """

    name: str
    title: str
    about: str
    suite: Suite[Any]
    reference: str
    claims: tuple[Claim, ...] = ()
    bounds: tuple[Bound, ...] = ()
    runs: str = ""
    same_data: bool = True
    references: tuple[str, ...] = ()
    more: Callable[[Numbers, str], str] | None = None

    def compared_with(self, arms: Sequence[str]) -> str | None:
        """The arm among these that the others are compared with."""
        return next((name for name in (self.reference, *self.references) if name in arms), None)


@dataclass(frozen=True)
class OnRay:
    """Where on Ray the runs go: the cluster's address, workers a run, and GPUs a worker."""

    address: str
    workers: int = 1
    gpus_per_worker: float = 0.0


def run_table(
    table: Table,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    storage: str,
    *,
    parallel: int = 1,
    on: OnRay | None = None,
    pictures: int | None = PICTURES,
    report_only: bool = False,
    command: str = "",
    say: Callable[[str], None] = print,
) -> list[Outcome]:
    """Train what is not trained, judge what is not judged, and write the page; returns how every run stands.

    Args:
        arms: with their stores in `run.data.store`.
        seeds: every arm is trained with each; equal seeds see equal pictures in equal order.
        storage: a folder, or a URI (then only finished runs are kept, and Ray's checkpoints).
        parallel, on: see `runs.train_jobs`.
        pictures: how many pictures of the test split a setting has; None: all.
        report_only: write the page of what is there; train and judge nothing.
        command: for the page.

    Raises ValueError for arms that cannot stand in one table. A run that fails is reported, here and on the page.
    """
    from experiments.tables.jobs import look, plan, same_pictures
    from experiments.tables.locks import at_work
    from experiments.tables.report import write_grids, write_page
    from experiments.tables.rows import Judging
    from experiments.tables.runs import train_jobs

    check(table, arms)
    storage = storage if "://" in storage else os.path.abspath(storage)
    place = f"{storage}/{table.name}"
    runs = f"{storage}/{table.runs or table.name}"
    jobs = plan(arms, seeds, runs, shared=bool(table.runs))
    if table.same_data:
        same_pictures(jobs)
    suite = table.suite.limited(pictures)
    with at_work(runs):
        outcomes = [look(job) for job in jobs] if report_only else train_jobs(jobs, parallel, on, say)
        if not report_only and outcomes:
            suite = suite.equipped(f"{runs}/judging", outcomes[0].job.run, say)
        judging = Judging(place, suite, say)
        if not report_only:
            outcomes = judging.judge(outcomes)
            write_grids(place, table, outcomes, judging)
        page = write_page(place, table, arms, outcomes, judging, command)
    say(f"page: {page}")
    return outcomes


def check(table: Table, arms: Sequence[Arm]) -> None:
    """Raise ValueError, saying what is wrong, for arms that cannot stand in one table."""
    from recollect.config import did_you_mean, resolve

    shown = [arm for arm in arms if arm.shown]
    if not shown:
        raise ValueError(f"{table.name} has no arms to train and judge")
    judged: dict[str, tuple[str, str]] = {}
    for arm in shown:
        settings = table.suite.settings(arm.run)
        if not settings:
            raise ValueError(f"{arm.name} is trained on {arm.run.data.domains}, of which {table.name} judges nothing")
        for setting in settings:
            first, cut = judged.setdefault(setting.name, (arm.name, setting.cut))
            if cut != setting.cut:
                raise ValueError(f"{first} and {arm.name} are not judged on the same pictures: {cut} and {setting.cut}")
    stores = sorted({arm.run.data.store for arm in shown})
    if len(stores) > 1:
        raise ValueError(f"the arms of a table are judged on one store, not on {' and '.join(stores)}")
    names = {arm.name for arm in shown}
    if table.reference not in names:
        raise ValueError(f"the reference {table.reference!r} is not among the arms{did_you_mean(table.reference, names)}")
    for arm in arms:
        if arm.parents and not arm.prepare:
            raise ValueError(f"{arm.name} starts from {', '.join(arm.parents)} and has no prepare that takes their bundles")
        if arm.prepare:
            resolve(arm.prepare)
    _check_test_pictures(table, shown, stores[0])


def _check_test_pictures(table: Table, arms: Sequence[Arm], uri: str) -> None:
    """Raise ValueError where the store has no test pictures of the arms' domains: every suite judges on these."""
    from recollect.config import find_method
    from recollect.data.store import Store

    store = Store.open(uri)
    counts = store.manifest.counts.get("test", {})
    for arm in arms:
        needed: int = find_method(arm.run.model.name).domains_needed
        for domain in arm.run.data.domains or store.domains.names[:needed]:
            if not counts.get(domain):
                raise ValueError(
                    f"{uri} has no test picture of {domain!r}, which {table.name} judges {arm.name} on; it has "
                    f"{store.manifest.counts}"
                )


def parent_of(arm: Arm, name: str, arms: Sequence[Arm]) -> Arm:
    """The parent of that name: of several (an arm can be there for several pairs of domains) the one on the arm's own domains.

    Raises ValueError where there is none, or where it is not clear which.
    """
    from recollect.config import did_you_mean

    named = [other for other in arms if other.name == name]
    if not named:
        others = {other.name for other in arms if other is not arm}
        raise ValueError(f"{arm.name} starts from {name!r}, which is no arm of this table{did_you_mean(name, others)}")
    found = named if len(named) == 1 else [other for other in named if other.run.data.domains == arm.run.data.domains]
    if len(found) != 1:
        raise ValueError(f"{arm.name} starts from {name!r}, and there are {len(named)} of that name, on other domains")
    return found[0]


def parents_first(arms: Sequence[Arm]) -> list[Arm]:
    """The arms in their order, but those that others start from before these. Raises ValueError for a circle."""
    placed: list[Arm] = []

    def put(arm: Arm, path: tuple[Arm, ...]) -> None:
        if any(arm is other for other in path):
            raise ValueError(f"arms start from each other in a circle: {' from '.join(other.name for other in (*path, arm))}")
        for name in arm.parents:
            put(parent_of(arm, name, arms), (*path, arm))
        if not any(arm is other for other in placed):
            placed.append(arm)

    for arm in arms:
        put(arm, ())
    return placed


def chosen(arms: Sequence[Arm], names: Sequence[str] | None, pairs: Sequence[str] | None) -> list[Arm]:
    """The arms whose name matches one of `names` (globs) and whose domains are one of `pairs` (`sunny-night`); None: all.

    What they start from comes with them. Raises ValueError, with what there is, for one that chooses nothing.
    """
    from recollect.config import did_you_mean

    found = list(arms)
    for wanted, of in ((names, lambda arm: arm.name), (pairs, lambda arm: "-".join(arm.run.data.domains))):
        for pattern in wanted or ():
            if not any(fnmatch(of(arm), pattern) for arm in arms):
                raise ValueError(f"no arm of this table is {pattern!r}{did_you_mean(pattern, {of(arm) for arm in arms})}")
        found = [arm for arm in found if wanted is None or any(fnmatch(of(arm), pattern) for pattern in wanted)]
    if not found:
        raise ValueError("no arm of this table has both such a name and such domains")
    needed = list(found)
    for arm in needed:  # grows while it is read
        needed += [parent for name in arm.parents if not _among(parent := parent_of(arm, name, arms), needed)]
    return [arm for arm in arms if _among(arm, needed)]


def _among(arm: Arm, arms: Sequence[Arm]) -> bool:
    return any(arm is other for other in arms)
