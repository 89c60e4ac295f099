"""What the runs of a table are judged on and by: the promise (`Suite`), and the suite of translations between two domains.

A suite for methods of another kind is a class with these methods; nothing needs to be inherited. For instance, retrievers by
precision at ten, from what `recollect.evaluation` measures:

    @dataclass(frozen=True)
    class RetrieverSuite:
        pictures: int | None = None
        version = "retriever 1"                      # raise it when `judge` measures more, or otherwise: rows are then made anew
        how = "Neighbours are of the test split."    # stands on the page

        def limited(self, pictures): return replace(self, pictures=pictures)
        def equipped(self, place, run, say): return self     # train or fetch below `place` what judging itself needs
        def instrument(self, setting): return ""             # and say what that is, as in "classifier 0123..."
        def settings(self, run):
            return (Setting("faces", "Neighbours among faces", f"test/{run.data.size}/{self.pictures or 'all'}"),)
        def cases(self, run, setting):               # anything with `ids`: what the values by picture are of, in their order
            return queries_of(Store.open(run.data.store), "test", run.data.size, self.pictures)
        def baselines(self, run, setting, cases):
            return [Row("random", "baseline", "ten drawn at random", judgement_of_chance(cases))]
        def judge(self, bundle, cases):
            hits, known = precision_at_ten(open_bundle(bundle), cases)                # both (B,)
            by_picture = {"p_at_10/Male": ByPicture(hits, known.double())}            # weight 0: it does not apply to the query
            return Judgement({"p_at_10/Male": float(hits[known].mean())}, by_picture)
        def grid(self, cases, bundles, reference): return None

Which way a metric is better is what `recollect.evaluation.metrics.register` says of its name or of the family before the last
slash. On the page a name that is registered itself is a column; the parts of a family that has a word for them (`Metric.parts`)
stand in a section of their own; metrics that need a memory stand in another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

if TYPE_CHECKING:  # a recipe is imported for its help as well, which should not take the seconds that torch takes
    from torch import Tensor

    from recollect.config import Run
    from recollect.evaluation.baselines import Row
    from recollect.evaluation.validate import Cases, Judgement
    from recollect.pipeline import Pipeline

    Measure = Callable[[Pipeline, Cases], dict[str, float]]

Direction = tuple[str, str]
SHOWN = 6  # rows of a grid


@dataclass(frozen=True)
class Setting:
    """One thing that runs are judged on; a section of the page.

    Args:
        name: in rows, and in the names of files.
        title: its heading.
        cut: which pictures, and how they are cut, in words: runs in one setting are compared, so they have one cut.
    """

    name: str
    title: str
    cut: str


class WithIds(Protocol):
    """What a run is judged on: whatever the suite likes, with the names of the pictures in the order of values by picture."""

    @property
    def ids(self) -> Sequence[str]: ...


C = TypeVar("C", bound=WithIds)


class Suite(Protocol[C]):
    """What the runs of a table are judged on and by."""

    @property
    def version(self) -> str:
        """Changes whenever what is measured changes, and says what that is; what was judged by another is judged again.

        The same before and after `limited` and `equipped`.
        """
        ...

    @property
    def how(self) -> str:
        """Sentences for the page: how it is judged, and what its baselines had."""
        ...

    def limited(self, pictures: int | None) -> Self:
        """The same suite on at most so many pictures of a setting (None: all)."""
        ...

    def equipped(self, place: str, run: Run, say: Callable[[str], None]) -> Self:
        """The suite with what judging itself needs (a classifier, say), found or built below `place`, a folder or URI.

        Called once, after training and before judging; `run` is one of the table's. It must find what it built the last time.
        """
        ...

    def instrument(self, setting: str) -> str | None:
        """What `equipped` brought to judge by in the setting of that name, by its digest; empty where that is this code alone.

        It stands in the rows and on the page, and what was judged by another is judged again. None where nobody has equipped
        the suite, so that it is not known.
        """
        ...

    def settings(self, run: Run) -> Sequence[Setting]:
        """What it judges of a run; nothing where that cannot stand in the table."""
        ...

    def cases(self, run: Run, setting: Setting) -> C:
        """The pictures of a setting, the same for all runs on one store that have it."""
        ...

    def baselines(self, run: Run, setting: Setting, cases: C) -> Sequence[Row]:
        """What stands beside the arms in a setting."""
        ...

    def judge(self, bundle: str, cases: C) -> Judgement:
        """Judge the bundle at a path or URI. Weights of values by picture belong to the cases: they are the same for all bundles.

        Whatever it raises becomes the failure of this run alone.
        """
        ...

    def grid(self, cases: C, bundles: Mapping[str, str], reference: str) -> Tensor | None:
        """A picture (3, height, width) uint8 of what bundles, by arm, make of some of the cases; None: there is none to show.

        `reference` is the table's, which may be missing among them.
        """
        ...


@dataclass(frozen=True)
class DirectionSuite:
    """Translations between two domains, of pictures of the test split, by what `recollect evaluate` measures and `measures`.

    A run is judged in those of the directions that lie between its domains. A measure is known by its name: one that comes to
    measure something else is to get another.
    """

    directions: tuple[Direction, ...]
    measures: tuple[Measure, ...] = ()
    pictures: int | None = None
    how = """Translations are deterministic. Weights are those that were best on the validation split in the run's own direction,
`evaluation.source` to `evaluation.target` (its first domain to its second, where it says nothing); the other direction had no
say in the choice. The fitted baselines had the truth of validation pictures in hand."""

    @property
    def version(self) -> str:
        """What is measured: raise the number when the usual metrics change."""
        return " + ".join(["directions 2", *(f"{measure.__module__}:{measure.__qualname__}" for measure in self.measures)])

    def limited(self, pictures: int | None) -> Self:
        """At most so many source pictures; None: all of the split."""
        return replace(self, pictures=pictures)

    def equipped(self, place: str, run: Run, say: Callable[[str], None]) -> Self:
        """It needs nothing of its own."""
        return self

    def instrument(self, setting: str) -> str | None:
        """Nothing but this code judges."""
        return ""

    def settings(self, run: Run) -> tuple[Setting, ...]:
        """The directions between the run's domains."""
        data = run.data
        cut = f"test/{data.size}/{data.short_side or data.size}/{self.pictures or 'all'}"
        own = [direction for direction in self.directions if set(direction) <= set(data.domains)]
        return tuple(Setting("-".join(direction), " to ".join(direction), cut) for direction in own)

    def cases(self, run: Run, setting: Setting) -> Cases:
        """Source pictures of the test split, evenly spread, with all that is known of them."""
        return self._gather(run, setting, "test", self.pictures)

    def baselines(self, run: Run, setting: Setting, cases: Cases) -> list[Row]:
        """Doing nothing, and more where there is truth; fitted on the validation split, where that has both domains."""
        from recollect.data.store import Store
        from recollect.evaluation import baselines
        from recollect.evaluation.baselines import Row
        from recollect.evaluation.evaluate import FITTING
        from recollect.evaluation.validate import judge

        store = Store.open(run.data.store)
        fitted = cases.truth is not None and all(store.ids("val", domain) for domain in self._direction(setting))
        fitting = self._gather(run, setting, "val", FITTING) if fitted else None
        rows = []
        for own in baselines.drawn(cases, fitting):
            judgement = judge(own.pictures, own.cases)
            judgement.values.update(self.of_sets(own.pictures, cases))
            rows.append(Row(own.name, own.kind, own.about, judgement))
        return [*rows, baselines.exchanged(cases, fitting)] if fitting is not None and len(cases.classes) > 1 else rows

    def judge(self, bundle: str, cases: Cases) -> Judgement:
        """What `recollect evaluate` measures, and the measures of the table."""
        from recollect.evaluation.memory.use import memory_use
        from recollect.evaluation.validate import examine_memory, judge, translate_all

        pipeline = _opened(bundle)
        translations = translate_all(pipeline, cases)
        judgement = judge(translations, cases)
        for measure in (examine_memory, memory_use, *self.measures):
            judgement.values.update(measure(pipeline, cases))
        judgement.values.update(self.of_sets(translations, cases))
        return judgement

    def of_sets(self, pictures: Tensor, cases: Cases) -> dict[str, float]:
        """What more is measured of pictures (B, 3, S, S) in [0, 1], one of each case: an arm's, or a baseline's."""
        return {}

    def grid(self, cases: Cases, bundles: Mapping[str, str], reference: str) -> Tensor | None:
        """Input | every arm | true render (with truth: the one nearest to the reference's translation)."""
        import torch

        from recollect.data.transforms import to_uint8, to_unit
        from recollect.evaluation.grids import picture_grid

        rows = min(SHOWN, len(cases))
        index = torch.arange(rows) * len(cases) // rows
        columns = {f"{cases.source} (input)": cases.images[index]}
        for arm, bundle in bundles.items():
            answer = _opened(bundle)(to_unit(cases.images[index]), cases.target, source=cases.source)
            columns[arm] = to_uint8(answer.images.cpu())
        if cases.truth is not None:
            nearest_to = columns.get(reference, list(columns.values())[1])
            references = cases.truth.references[index]
            distance = (references.float() - nearest_to[:, None].float()).abs().flatten(2).mean(2)
            columns[f"true {cases.target}"] = references[torch.arange(rows), distance.argmin(1)]
        return picture_grid(columns)

    def _gather(self, run: Run, setting: Setting, split: str, pictures: int | None) -> Cases:
        from recollect.data.store import Store
        from recollect.evaluation.validate import gather

        store, data = Store.open(run.data.store), run.data
        return gather(store, self._direction(setting), split, data.size, pictures, data.short_side)

    def _direction(self, setting: Setting) -> Direction:
        return next(direction for direction in self.directions if "-".join(direction) == setting.name)


def _opened(bundle: str) -> Pipeline:
    """The bundle on the device that it was trained for."""
    from recollect.bundle import open_bundle
    from recollect.pipeline import Pipeline
    from recollect.training.trainer import pick_device

    opened = open_bundle(bundle)
    return Pipeline.open(opened, pick_device(opened.run.engine.device))
