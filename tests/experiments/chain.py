"""A recipe of three stages that train in moments: GMM-UNIT, a retriever that starts from it, RG-UNIT with an index of that.

python -m tests.experiments.chain --small --store URI --storage FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch

from experiments import tables
from experiments.tables import Arm, Claim, OnRay, Table
from experiments.tables.suites import Setting
from recollect.batch import Guide
from recollect.bundle import open_bundle
from recollect.config import Run, overlay, preset
from recollect.data.store import Store
from recollect.data.transforms import decode, to_uint8, to_unit
from recollect.evaluation.baselines import Row
from recollect.evaluation.grids import picture_grid
from recollect.evaluation.metrics import content_kept
from recollect.evaluation.retrieval import RetrievalJudge
from recollect.evaluation.validate import ByPicture, Judgement
from recollect.retrieval.embed import build_index
from recollect.retrieval.guided import open_pipeline
from trainables.gmm_unit import CELEBA

STAGE1 = {
    "attributes": CELEBA,
    "exclusive": (CELEBA[:3],),
    "dims": 2,
    "width": 8,
    "content_blocks": 1,
    "generator_blocks": 1,
    "mlp_width": 16,
    "critic_width": 8,
    "critic_layers": 2,
}
SMALL = {"translator": STAGE1, "embedding": {"widths": (8, 8, 8), "hidden": 16, "dim": 6, "dropout": 0.5}}
NEIGHBOURS, TRANSLATIONS = "neighbours", "translations"


@dataclass(frozen=True)
class Pictures:
    """Test pictures, and what is asked of them."""

    kind: str
    ids: tuple[str, ...]
    images: torch.Tensor  # (B, 3, 32, 32) uint8
    run: Run


@dataclass(frozen=True)
class ChainSuite:
    """Retrievers by their neighbours, translators by the content that they keep when hair becomes black."""

    pictures: int | None = None
    version = "chain 1"
    how = "Queries and pictures are of the test split."

    def limited(self, pictures: int | None) -> Self:
        return replace(self, pictures=pictures)

    def equipped(self, place: str, run: Run, say: Callable[[str], None]) -> Self:
        return self

    def instrument(self, setting: str) -> str:
        return ""

    def settings(self, run: Run) -> Sequence[Setting]:
        kind = NEIGHBOURS if run.model.name == "retriever" else TRANSLATIONS
        return (Setting(kind, kind.capitalize(), f"test/{run.data.size}/{self.pictures or 'all'}"),)

    def cases(self, run: Run, setting: Setting) -> Pictures:
        store = Store.open(run.data.store)
        ids = store.ids("test", "faces")[: self.pictures]
        images = torch.stack([decode(store.record(id).image).as_subclass(torch.Tensor) for id in ids])
        return Pictures(setting.name, ids, images, run)

    def baselines(self, run: Run, setting: Setting, cases: Pictures) -> Sequence[Row]:
        if cases.kind == NEIGHBOURS:
            return []
        return [Row("the input itself", "baseline", "nothing is translated", kept(cases, cases.images.float() / 255))]

    def judge(self, bundle: str, cases: Pictures) -> Judgement:
        if cases.kind == TRANSLATIONS:
            return kept(cases, (translated(bundle, cases) + 1) / 2)
        model: Any = open_bundle(bundle).build()
        judge = RetrievalJudge(Store.open(cases.run.data.store), cases.run, "test", len(cases.ids), len(cases.ids))
        return judge.retrieved(model).judgement()

    def grid(self, cases: Pictures, bundles: Mapping[str, str], reference: str) -> torch.Tensor | None:
        if cases.kind == NEIGHBOURS:
            return None
        return picture_grid({arm: to_uint8(translated(bundle, cases)) for arm, bundle in bundles.items()})


def translated(bundle: str, cases: Pictures) -> torch.Tensor:
    """The pictures with black hair, (B, 3, 32, 32) in [-1, 1], guided by the index where the bundle is."""
    wanted = torch.tensor([[1.0, 0, 0, 0, 1]]).expand(len(cases.ids), -1)
    return open_pipeline(bundle)(to_unit(cases.images), "faces", guide=Guide(attributes=wanted)).images


def kept(cases: Pictures, translations: torch.Tensor) -> Judgement:
    """The content kept by translations (B, 3, 32, 32) in [0, 1]."""
    values = content_kept(cases.images.float() / 255, translations)
    by_picture = ByPicture(values, torch.ones_like(values))
    return Judgement({"content_kept": float(values.double().mean())}, {"content_kept": by_picture})


def from_gmm(run: Run, bundles: dict[str, str], place: str, on: OnRay | None) -> Run:
    """Stage 2 starts from stage 1."""
    (bundle,) = bundles.values()
    return overlay(run, {"model.parent.bundle": bundle})


def from_retriever(run: Run, bundles: dict[str, str], place: str, on: OnRay | None) -> Run:
    """Stage 3 starts from stage 2, and looks up neighbours in an index of its embeddings."""
    index = f"{place}/index"
    if not Path(index).exists():
        build_index(bundles["retriever"], run.data.store, index, backend="exact")
    return overlay(run, {"model.parent.bundle": bundles["retriever"], "data.index": index})


def arms(store: str, small: bool = True, world: bool = False) -> list[Arm]:
    """The stages; children before their parents, as a table may have them."""
    common = {
        "data": {"store": store, "domains": ("faces",), "size": 32},
        "engine": {"steps": 4, "batch_size": 2, "threads": 1, "device": "cpu"},
    }
    gmm = preset("gmm_unit:tiny", **common, model=STAGE1)
    retriever = preset("retriever:tiny", **common, model=SMALL)
    guided = preset("rg_unit:tiny", **common, model={"neighbours": 2})
    return [
        Arm("rg", guided, "stage 3", ("retriever",), f"{HERE}:from_retriever"),
        Arm("gmm", gmm, "stage 1"),
        Arm("retriever", retriever, "stage 2", ("gmm",), f"{HERE}:from_gmm"),
    ]


HERE = "tests.experiments.chain"
TABLE = Table(
    name="chain",
    title="Three stages",
    about="Each starts from the one before.",
    suite=ChainSuite(),
    reference="gmm",
    claims=(
        Claim("rg keeps more", "rg", "gmm", "content_kept"),
        Claim("the input keeps more", "the input itself", "rg", "content_kept"),
        Claim("rg finds more", "rg", "retriever", "p_at_10/average"),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return tables.main(TABLE, arms, HERE, argv)


if __name__ == "__main__":
    sys.exit(main())
