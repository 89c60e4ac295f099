"""RG-UNIT with fewer labels (Table 3): stages 1 and 2 see a part of the pictures, neighbours come from all of them.

    python -m experiments.rg_unit_scarce --small --seeds 0 --parallel 2
    python -m experiments.rg_unit_scarce --help

The parts are nested, and the same for every seed and method. An index needs no labels, so unlabelled pictures guide too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from experiments import tables
from experiments.rg_unit import StagesSuite, gmm, guided, retriever
from experiments.stores import faces
from experiments.tables import Arm, Claim, Table

SHARES = (25, 50, 100)  # per cent of the training pictures that have labels
METRICS = ("fid@classifier", "counterpart_error")


def named(name: str, share: int) -> str:
    """The name of an arm that sees a share of the labels."""
    return name if share == 100 else f"{name} {share} %"


TABLE = Table(
    name="rg-unit-scarce",
    title="RG-UNIT with scarce labels",
    about="Gomez et al., ACM MM 2020, Table 3: what retrieval is worth with 25, 50 and 100 % of the labels.",
    suite=StagesSuite(),
    reference="RG-UNIT",
    runs="rg-unit",
    same_data=False,
    claims=tuple(
        Claim(f"{share} %: RG-UNIT beats {other}", named("RG-UNIT", share), named(other, share), metric)
        for share in SHARES
        for other in ("RG-UNIT random", "GMM-UNIT longer", "GMM-UNIT")
        for metric in METRICS
    ),
)


def arms(store: str = "", small: bool = False, world: bool = False) -> list[Arm]:
    """The three stages and the controls of stage 3 for each share of the labels."""
    from recollect.data.store import Store

    opened = Store.open(store)
    count = opened.manifest.counts["train"][opened.domains.names[0]]  # of the domain that these runs take; a limit is of one
    size, found = (store, small, world), list[Arm]()
    for share in SHARES:
        # all of them is no limit at all and has no suffix, so that these runs are those of rg_unit_celeba
        part: dict[str, Any] = {"data": {"limit": count * share // 100}} if share < 100 else {}
        found += [
            gmm(*size, name=named("GMM-UNIT", share), **part),
            retriever(*size, name=named("all", share), parent=named("GMM-UNIT", share), shown=False, **part),
            *(
                guided(*size, named(name, share), guidance, named("all", share), **part)
                for name, guidance in (("GMM-UNIT longer", "none"), ("RG-UNIT random", "random"), ("RG-UNIT", "retrieved"))
            ),
        ]
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return tables.main(TABLE, arms, "experiments.rg_unit_scarce", argv, faces)


if __name__ == "__main__":
    sys.exit(main())
