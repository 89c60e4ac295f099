"""RG-UNIT's three stages as arms of a table, and what its tables are judged by. The tables are `rg_unit_*.py`.

    gmm        stage 1: GMM-UNIT
    retriever  stage 2: embeds content and style so that pictures alike in both are near; an index of its embeddings follows
    RG-UNIT    stage 3: GMM-UNIT's decoder, trained on with what the index finds

A later stage starts from the earlier one's bundle of the same seed. The index holds all training pictures, also those that
stages 1 and 2 did not see (`data.limit`): it needs no labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from experiments.tables import Arm, OnRay
from experiments.tables.suites import SHOWN, Setting
from recollect.config import Run, merge, overlay, preset

if TYPE_CHECKING:  # a recipe is imported for its help as well, which should not take the seconds that torch takes
    from torch import Tensor

    from recollect.evaluation.attribute_cases import AttributeCases, Flip
    from recollect.evaluation.baselines import Row
    from recollect.evaluation.classification import JudgeByClassifier
    from recollect.evaluation.retrieval import RetrievalJudge
    from recollect.evaluation.validate import Judgement
    from recollect.pipeline import Pipeline
    from recollect.trainable import Queries as Looked
    from recollect.trainable import Search

HAIR = ("Black_Hair", "Blond_Hair", "Brown_Hair")
STYLE = (*HAIR, "Male", "Young")  # the attributes of section 4; the others of the data are content
SMALL: dict[str, dict[str, Any]] = {  # tiny presets at 64 px: minutes a run on a CPU
    "gmm_unit": {"engine": {"steps": 2000}},
    "retriever": {"engine": {"steps": 400}},
    "rg_unit": {"engine": {"steps": 800}},
}
WORLD: dict[str, dict[str, Any]] = {  # the papers' networks at half their width, on 128 px: hours on a GPU
    "gmm_unit": {"model": {"width": 32, "critic_width": 32}, "engine": {"steps": 60_000, "batch_size": 8}},
    "retriever": {"engine": {"steps": 10_000}},
    "rg_unit": {"engine": {"steps": 30_000, "batch_size": 8}},
}
RETRIEVAL, TRANSLATION = "retrieval", "translation"
NEIGHBOURS = 3  # of a translation, in the grid


def stage(method: str, store: str, small: bool, world: bool, **sections: Any) -> Run:
    """A stage's run: its tiny preset (`small`), the paper's at half the width (`world`), or the paper's. `sections` come last."""
    scale = SMALL[method] if small else WORLD[method] if world else {}
    quiet = {"data": {"store": store}, "engine": {"threads": 1, "log_every": 50}} if small else {"data": {"store": store}}
    return preset(f"{method}:{'tiny' if small else 'paper'}", **merge(merge(quiet, scale), sections))


def from_translator(run: Run, bundles: Mapping[str, str], place: str, on: OnRay | None = None) -> Run:
    """Stage 2 from the bundle of stage 1."""
    (bundle,) = bundles.values()
    return overlay(run, {"model.parent.bundle": bundle})


def from_retriever(run: Run, bundles: Mapping[str, str], place: str, on: OnRay | None = None) -> Run:
    """Stage 3 from the bundle of stage 2, with an index of all training pictures, which is built at `place` once.

    On Ray as many workers embed the pictures as a run has; else this process does.
    """
    from recollect.retrieval.directory import read_manifest
    from recollect.retrieval.embed import build_index

    (bundle,) = bundles.values()
    started = overlay(run, {"model.parent.bundle": bundle})
    if getattr(run.model, "guidance", "none") == "none":
        return started
    index = f"{place}/index"
    try:
        read_manifest(index)
    except ValueError:  # not there: it is written last, and whole
        where: dict[str, Any] = {"workers": on.workers, "address": on.address} if on else {}
        build_index(bundle, run.data.store, index, domains=run.data.domains or None, **where)
    return overlay(started, {"data.index": index})


def gmm(store: str, small: bool, world: bool, name: str = "GMM-UNIT", shown: bool = True, **sections: Any) -> Arm:
    """Stage 1."""
    return Arm(name, stage("gmm_unit", store, small, world, **sections), "stage 1", shown=shown)


def retriever(
    store: str, small: bool, world: bool, name: str = "all", parent: str = "GMM-UNIT", shown: bool = True, **sections: Any
) -> Arm:
    """Stage 2."""
    run = stage("retriever", store, small, world, **sections)
    about = f"stage 2, negatives: {run.model.negatives}, easy ones as {run.model.easy}"  # type: ignore[attr-defined]
    return Arm(name, run, about, (parent,), "experiments.rg_unit:from_translator", shown)


def guided(store: str, small: bool, world: bool, name: str, guidance: str, parent: str = "all", **sections: Any) -> Arm:
    """Stage 3, or one of its controls."""
    run = stage("rg_unit", store, small, world, **merge({"model": {"guidance": guidance}}, sections))
    about = {
        "none": "stage 1 trained on, encoders frozen, nothing to guide",
        "random": "stage 3 with random pictures in place of neighbours",
        "retrieved": f"stage 3, {run.model.neighbours} neighbours",  # type: ignore[attr-defined]
    }[guidance]
    return Arm(name, run, about, (parent,), "experiments.rg_unit:from_retriever")


@dataclass(frozen=True)
class Queries:
    """What retrievers are judged on: queries among the pictures of the test split."""

    ids: tuple[str, ...]
    judge: RetrievalJudge


@dataclass(frozen=True)
class Translations:
    """What translators are judged on: flips of test pictures, and a classifier that has seen the pictures."""

    flips: AttributeCases
    by_classifier: JudgeByClassifier

    @property
    def ids(self) -> tuple[str, ...]:
        return self.flips.ids


@dataclass(frozen=True)
class StagesSuite:
    """Retrievers by precision at ten; translators by exact counterparts where a world has them, and by a classifier.

    Args:
        pictures: test pictures; None: all.
        classifier: the bundle of a classifier of attributes, which `equipped` trains.
        digest: the classifier's.
    """

    pictures: int | None = None
    classifier: str = ""
    digest: str = ""
    version = "rg_unit 1"
    how = """A query asks for the content of a test picture with the style attributes of another one at random; the gallery is
the test split, each face once. Precision at ten is the share of the first ten that have the attribute as asked (style) or as the
query has it (content), each attribute counting alike, attributes that do not apply left out; `lift` is how much of the way from
random retrieval to 1 is made. Translations are deterministic; each face is translated by every attribute that it can change in,
and compared with how the world draws it then. `fid@classifier` and `accuracy@classifier` are by features and answers of a
classifier trained on the training pictures, from one translation a picture to the attributes of another at random; they compare
with each other and with nothing published. Neighbours are training pictures."""

    def limited(self, pictures: int | None) -> Self:
        return replace(self, pictures=pictures)

    def equipped(self, place: str, run: Run, say: Callable[[str], None]) -> Self:
        """With a classifier of all attributes, trained below `place`: the small one on a drawn world, else the paper's.

        There is one for each store. Where `place` is a folder, a training that was killed goes on.
        """
        from recollect.bundle import open_bundle
        from recollect.data.store import Store
        from recollect.training.session import train_instrument

        store = Store.open(run.data.store)
        size = "tiny" if store.manifest.source.startswith("faces ") else "paper"
        kept = f"{place}/classifier-{size}-{store.digest[:12]}"
        try:
            opened = open_bundle(kept)
        except (ValueError, OSError):  # it is not there
            train_instrument(
                preset(f"classifier:{size}", data={"store": run.data.store}), kept, "the classifier that judges", say
            )
            opened = open_bundle(kept)
        return replace(self, classifier=kept, digest=opened.digest)

    def instrument(self, setting: str) -> str | None:
        """The classifier that judges translations."""
        if setting != TRANSLATION:
            return ""
        return f"classifier {self.digest}" if self.digest else None

    def settings(self, run: Run) -> Sequence[Setting]:
        cut = f"test/{run.data.size}/{run.data.short_side or run.data.size}/{self.pictures or 'all'}"
        if run.model.name == "retriever":
            return (Setting(RETRIEVAL, "Retrieval: the content of a picture with other attributes", cut),)
        return (Setting(TRANSLATION, "Translation: each attribute changed", cut),)

    def cases(self, run: Run, setting: Setting) -> Queries | Translations:
        from recollect.data.store import Store
        from recollect.evaluation.attribute_cases import gather
        from recollect.evaluation.classification import JudgeByClassifier
        from recollect.evaluation.retrieval import RetrievalJudge
        from recollect.training.trainer import pick_device

        store = Store.open(run.data.store)
        run = overlay(run, {"data.domains": run.data.domains or store.domains.names[:1]})
        if setting.name == TRANSLATION:
            flips = gather(store, run, "test", STYLE, (HAIR,), self.pictures)
            return Translations(flips, JudgeByClassifier(self.classifier, flips, pick_device(run.engine.device)))
        judge = RetrievalJudge(store, run, "test", self.pictures or len(store))
        return Queries(tuple(judge.ids[place] for place in judge.queries), judge)

    def baselines(self, run: Run, setting: Setting, cases: Queries | Translations) -> list[Row]:
        from recollect.evaluation.attributes import judge_inputs
        from recollect.evaluation.baselines import Row

        if isinstance(cases, Queries):
            expected = cases.judge.expected(_Asking()).judgement()
            return [Row("random retrieval", "baseline", "ten drawn at random: the exact expectation", expected)]
        nothing = _both(judge_inputs(cases.flips), cases.by_classifier.nothing().judgement)
        return [
            Row("the input itself", "baseline", "nothing is translated", nothing),
            Row("real pictures", "ceiling", "with their own attributes", cases.by_classifier.real().judgement),
        ]

    def judge(self, bundle: str, cases: Queries | Translations) -> Judgement:
        from recollect.bundle import open_bundle
        from recollect.evaluation.attributes import check_neighbours, judge_pipeline
        from recollect.training.trainer import pick_device

        opened = open_bundle(bundle)
        if isinstance(cases, Queries):
            model: Any = opened.build().to(pick_device(opened.run.engine.device))
            return cases.judge.judgement(model)
        pipeline = pipeline_of(bundle)
        check_neighbours(pipeline, "test", opened.run.data.index)
        return _both(judge_pipeline(pipeline, cases.flips), cases.by_classifier(pipeline).judgement)

    def grid(self, cases: Queries | Translations, bundles: Mapping[str, str], reference: str) -> Tensor | None:
        """Retrieval: query, what is wanted, what the last arm finds. Translation: what every arm makes of one flip a face."""
        from recollect.bundle import open_bundle

        if isinstance(cases, Queries):
            arm = reference if reference in bundles else list(bundles)[-1]
            model: Any = open_bundle(bundles[arm]).build()
            return cases.judge.grid(model, SHOWN, by=f"found by {arm!r}")
        return flips_shown(cases.flips, bundles, reference)


def pipeline_of(bundle: str) -> Pipeline:
    """The bundle, with what finds its neighbours, on the device that it was trained for."""
    from recollect.bundle import open_bundle
    from recollect.retrieval.guided import open_pipeline
    from recollect.training.trainer import pick_device

    opened = open_bundle(bundle)
    return open_pipeline(opened, pick_device(opened.run.engine.device))


def _both(one: Judgement, other: Judgement) -> Judgement:
    """All that two judgements of the same pictures say."""
    from recollect.evaluation.validate import Judgement

    return Judgement({**one.values, **other.values}, {**one.by_picture, **other.by_picture})


class _Asking:
    """Which attributes are asked for, for a judge that needs to know no more of a model."""

    def style_attributes(self) -> tuple[str, ...]:
        return STYLE

    def exclusive_attributes(self) -> tuple[tuple[str, ...], ...]:
        return (HAIR,)


def flips_shown(cases: AttributeCases, bundles: Mapping[str, str], reference: str) -> Tensor:
    """Input | what is wanted | every arm | the true one | the first neighbours that guided the reference, where some did."""
    import torch

    from recollect.evaluation.attributes import translate_to
    from recollect.evaluation.grids import picture_grid
    from recollect.evaluation.retrieval import named

    by_face = {flip.picture: [other for other in cases.flips if other.picture == flip.picture] for flip in cases.flips}
    faces = sorted(by_face)[:: max(len(by_face) // SHOWN, 1)][:SHOWN]
    chosen = [by_face[face][row % len(by_face[face])] for row, face in enumerate(faces)]
    columns: dict[str, Tensor | list[str]] = {
        "input": cases.images[[flip.picture for flip in chosen]],
        "wanted": [named(cases.names, flip.wanted, cases.groups) for flip in chosen],
    }
    for arm, bundle in bundles.items():
        drawn = translate_to(pipeline_of(bundle), cases, [(flip.picture, flip.wanted) for flip in chosen])
        columns[arm] = (drawn * 255).round().to(torch.uint8)
    if cases.renders is not None:
        columns["true"] = torch.stack([cases.renders[flip.picture][flip.answers[0]] for flip in chosen])
    found = _neighbours(pipeline_of(bundles[reference]), cases, chosen) if reference in bundles else None
    for place in range(0 if found is None else min(NEIGHBOURS, found.shape[1])):
        columns[f"neighbour {place + 1} of {reference}"] = found[:, place]  # type: ignore[index]  # there is something to count
    return picture_grid(columns)


class _Noting:
    """A search that remembers what it found."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self.found: list[Tensor] = []

    def __call__(self, queries: Looked) -> Tensor:
        self.found.append(self.search(queries))
        return self.found[-1]


def _neighbours(pipeline: Pipeline, cases: AttributeCases, flips: Sequence[Flip]) -> Tensor | None:
    """The pictures (F, k, 3, P, P) uint8 that guide a pipeline in these flips; None where nothing does."""
    import torch

    from recollect.data.transforms import to_uint8
    from recollect.evaluation.attributes import translate_to

    if pipeline.search is None:
        return None
    pipeline.search = noting = _Noting(pipeline.search)
    for flip in flips:  # one by one: translations of several domains are not made in order
        translate_to(pipeline, cases, [(flip.picture, flip.wanted)])
    return to_uint8(torch.cat(noting.found)) if noting.found else None
