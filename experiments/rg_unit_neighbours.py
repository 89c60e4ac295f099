"""How many neighbours guide best (Table 4): RG-UNIT with r = 1, 3 and 10, from one retriever.

python -m experiments.rg_unit_neighbours --small --seeds 0 --parallel 2
python -m experiments.rg_unit_neighbours --help
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments import tables
from experiments.rg_unit import StagesSuite, gmm, guided, retriever
from experiments.stores import faces
from experiments.tables import Arm, Claim, Table

COUNTS = (1, 3, 10)
TABLE = Table(
    name="rg-unit-neighbours",
    title="RG-UNIT by number of neighbours",
    about="Gomez et al., ACM MM 2020, Table 4: r = 1, 3, 10.",
    suite=StagesSuite(),
    reference="r = 3",
    runs="rg-unit",
    claims=tuple(
        Claim(f"three neighbours beat {other}", "r = 3", f"r = {other}", metric)
        for metric in ("fid@classifier", "counterpart_error")
        for other in (1, 10)
    ),
)


def arms(store: str = "", small: bool = False, world: bool = False) -> list[Arm]:
    """Stage 3 with each number of neighbours."""
    size = (store, small, world)
    return [
        gmm(*size, shown=False),
        retriever(*size, shown=False),
        *(guided(*size, f"r = {count}", "retrieved", model={"neighbours": count}) for count in COUNTS),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return tables.main(TABLE, arms, "experiments.rg_unit_neighbours", argv, faces)


if __name__ == "__main__":
    sys.exit(main())
