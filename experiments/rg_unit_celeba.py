"""RG-UNIT on faces (Tables 1, 2, 6 and 7): what negatives are worth to the retriever, and what the retriever is to translation.

    python -m experiments.rg_unit_celeba --small --seeds 0 1 2 --parallel 2
    python -m experiments.rg_unit_celeba --store runs/celeba --workers 4
    python -m experiments.rg_unit_celeba --help

Each seed trains stage 1, retrievers with each kind of negatives from it, and three decoders from the retriever with all printed
kinds: guided by what it finds, by random pictures, and by nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments import tables
from experiments.rg_unit import STYLE, StagesSuite, gmm, guided, retriever
from experiments.stores import faces
from experiments.tables import Arm, Claim, Table

NEGATIVES = ("easy", "medium", "hard", "all")  # cumulative, as under Table 6
RELEASED = ", released"  # with the released code's easy negatives, which are not those of the text
ORDER = (("all", "hard"), ("hard", "medium"), ("hard", "easy"), ("all", "easy"))  # Table 6
TABLE = Table(
    name="rg-unit-celeba",
    title="RG-UNIT: retrieval, and translation guided by it",
    about="Gomez et al., ACM MM 2020, Tables 1 and 6 (retrieval by kind of negatives), 2 and 7 (translation).",
    suite=StagesSuite(),
    reference="RG-UNIT",
    references=("all",),
    runs="rg-unit",
    claims=(
        *(
            Claim(f"{better}{easy} beats {worse}{easy}", better + easy, worse + easy, metric)
            for easy in ("", RELEASED)
            for metric in ("lift/average", "counterpart_at_10")
            for better, worse in ORDER
        ),
        *(
            Claim(f"{kind}{easy} beats random retrieval", kind + easy, "random retrieval", "lift/average")
            for easy in ("", RELEASED)
            for kind in NEGATIVES
        ),
        *(Claim(f"{k} beats doing nothing", "RG-UNIT", "the input itself", f"counterpart_error/{k}") for k in STYLE),
        *(Claim(f"{k}: stage 1 beats doing nothing", "GMM-UNIT", "the input itself", f"counterpart_error/{k}") for k in STYLE),
        *(
            Claim(f"RG-UNIT beats {other}", "RG-UNIT", other, metric)
            for metric in ("fid@classifier", "counterpart_error", "accuracy@classifier")
            for other in ("RG-UNIT random", "GMM-UNIT longer", "GMM-UNIT")
        ),
    ),
)


def arms(store: str = "", small: bool = False, world: bool = False) -> list[Arm]:
    """Stage 1, a retriever for each kind of negatives, and stage 3 with its controls."""
    size = (store, small, world)
    return [
        gmm(*size),
        *(retriever(*size, name=kind, model={"negatives": kind}) for kind in NEGATIVES),
        *(retriever(*size, name=kind + RELEASED, model={"negatives": kind, "easy": "released"}) for kind in NEGATIVES),
        guided(*size, "GMM-UNIT longer", "none"),
        guided(*size, "RG-UNIT random", "random"),
        guided(*size, "RG-UNIT", "retrieved"),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return tables.main(TABLE, arms, "experiments.rg_unit_celeba", argv, faces)


if __name__ == "__main__":
    sys.exit(main())
