"""MGUIT beside its family (Tables 1 and 2): CycleGAN, UNIT, MUNIT, DRIT and MGUIT on sunny with night, rainy and cloudy.

    python -m experiments.mguit_init --small --pairs sunny-night --seeds 0 1 2 --storage runs/mguit-init --parallel 2
    python -m experiments.mguit_init --help

The paper reports IS, CIS and LPIPS on INIT. All methods are trained at one size, batch and length. In the paper's version that
is MGUIT's own (360 px, batch 1, 500,000 steps), whatever the other papers say of theirs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments import tables
from experiments.mguit_ablation import scaled
from experiments.tables import Arm, Claim, Table
from experiments.tables.suites import DirectionSuite

METHODS = {"cyclegan": "CycleGAN", "unit": "UNIT", "munit": "MUNIT", "drit": "DRIT", "mguit": "MGUIT"}
PAIRS = (("sunny", "night"), ("sunny", "rainy"), ("sunny", "cloudy"))
TABLE = Table(
    name="mguit-init",
    title="MGUIT beside its family",
    about="Jeong et al., CVPR 2021, Tables 1 and 2: five methods on three pairs of domains, in the directions of Table 1.",
    suite=DirectionSuite((("sunny", "night"), ("night", "sunny"), ("sunny", "rainy"), ("sunny", "cloudy"), ("cloudy", "sunny"))),
    reference="mguit",
    claims=(
        *(
            Claim(f"MGUIT beats {title}", "mguit", name, metric)
            for metric in ("scene_error", "feature_distance@pyramid")
            for name, title in METHODS.items()
            if name != "mguit"
        ),
        Claim("MGUIT beats the best colour map", "mguit", "best colour map", "scene_error"),
    ),
)


def arms(store: str = "", small: bool = False, world: bool = False) -> list[Arm]:
    """The rows of the table: every method on every pair."""
    return [Arm(name, scaled(name, pair, store, small, world), title) for pair in PAIRS for name, title in METHODS.items()]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return tables.main(TABLE, arms, "experiments.mguit_init", argv)


if __name__ == "__main__":
    sys.exit(main())
