"""MGUIT's ablation (Table 4): what a class-aware memory and the contrastive loss are worth; no memory at all; DRIT and MUNIT.

    python -m experiments.mguit_ablation --small --seeds 0 1 2 --steps 900 --storage runs/mguit-ablation --parallel 2
    python -m experiments.mguit_ablation --help

The paper trains on INIT, sunny and night, and reports LPIPS, IS and CIS; on a world with truth the question can be asked
directly, by the error in each region.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from experiments import tables
from experiments.tables import Arm, Bound, Claim, Table
from experiments.tables.suites import DirectionSuite
from recollect.config import Run, merge, preset

# Scalings of the methods' presets, the same for every method, so that methods are compared at one size and one length.
SMALL: dict[str, Any] = {"engine": {"steps": 900, "batch_size": 2, "log_every": 50, "threads": 1}}
WORLD: dict[str, Any] = {
    "data": {"size": 128},
    "model": {"width": 32, "critic_width": 48},
    "engine": {"steps": 40_000, "batch_size": 4, "log_every": 200, "evaluate_every": 4000},
}
PAPER: dict[str, Any] = {
    "data": {"size": 360, "short_side": 360},
    "engine": {"steps": 500_000, "batch_size": 1, "log_every": 500, "evaluate_every": 25_000},
}
FULL = "class-aware+nce"
ARMS = {  # name: memory, contrast, the paper's name
    "none": ("none", "none", "no memory"),
    "single+triplet": ("single", "triplet", "sm+tl"),
    "single+nce": ("single", "nce", "sm+cl"),
    "class-aware+triplet": ("class-aware", "triplet", "cm+tl"),
    FULL: ("class-aware", "nce", "cm+cl"),
}
OBJECTS = ("car", "person", "sign")
FAMILY = {"drit": "DRIT", "munit": "MUNIT"}  # beside Table 4: what a memory is to be better than at equal steps
ORDERINGS = (  # Table 4, every pair that differs in one thing, and the ends
    (FULL, "class-aware+triplet"),
    (FULL, "single+nce"),
    ("class-aware+triplet", "single+triplet"),
    ("single+nce", "single+triplet"),
    (FULL, "single+triplet"),
    (FULL, "none"),
    *((FULL, name) for name in FAMILY),
)
TABLE = Table(
    name="mguit-ablation",
    title="MGUIT's ablation: memory and contrast",
    about="Jeong et al., CVPR 2021, Table 4: a memory with or without classes, contrastive or triplet loss; and no memory.",
    suite=DirectionSuite((("sunny", "night"), ("night", "sunny"))),
    reference=FULL,
    claims=(
        *(Claim(f"{better} beats {worse}", better, worse, "scene_error") for better, worse in ORDERINGS),
        # section 4.3: without classes "even small instances disappear into the background"
        *(Claim(f"{FULL} keeps instances: {k}", FULL, "single+nce", f"scene_error/{k}") for k in OBJECTS),
        Claim(f"{FULL} beats single+nce", FULL, "single+nce", "feature_distance@pyramid"),
        Claim(f"{FULL} beats the best colour map", FULL, "best colour map", "scene_error"),
        *(Claim(f"{FULL} beats the best colour map: {k}", FULL, "best colour map", f"scene_error/{k}") for k in OBJECTS),
    ),
    bounds=(  # a generator can learn to ignore a memory; then none of the above would be its doing
        *(Bound(f"exchanged values hurt: {k}", FULL, f"memory_use/shuffled/{k}", 0.3) for k in ("background", *OBJECTS)),
        Bound("cells in boxes read their class", FULL, "memory_use/found", 0.8),
        Bound("reading needs no classes at test", FULL, "memory_use/class_free", 0.1),
        Bound("a car's style changes cars", FULL, "memory_use/local/car", 5.0),
    ),
)


def scaled(method: str, domains: tuple[str, str], store: str, small: bool, world: bool, **sections: Any) -> Run:
    """A method's run on two domains: its tiny preset (`small`), the same at twice the width on 128 px (`world`), or its paper's.

    `sections` change it last.
    """
    scale = SMALL if small else WORLD if world else PAPER
    own: dict[str, Any] = {"data": {"store": store, "domains": domains}}
    if method == "drit" and not (small or world):
        own["model"] = {"d_iter": 1}  # else two of three steps would train its content critic alone
    if method == "cyclegan":  # its pool keeps pictures of a fixed size
        own["model"] = {"picture_size": scale.get("data", {}).get("size", 64)}
    return preset(f"{method}:{'tiny' if small or world else 'paper'}", **merge(merge(scale, own), sections))


def mguit(memory: str = "class-aware", contrast: str = "nce", store: str = "", small: bool = False, world: bool = False) -> Run:
    """MGUIT with one of the memories and one of the contrasts, on sunny and night."""
    return scaled("mguit", ("sunny", "night"), store, small, world, model={"memory": {"use": memory}, "contrast": contrast})


def arms(store: str = "", small: bool = False, world: bool = False) -> list[Arm]:
    """The rows of the table: those of Table 4, no memory at all, and the family."""
    own = [Arm(name, mguit(memory, contrast, store, small, world), about) for name, (memory, contrast, about) in ARMS.items()]
    return [*own, *(Arm(name, scaled(name, ("sunny", "night"), store, small, world), title) for name, title in FAMILY.items())]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return tables.main(TABLE, arms, "experiments.mguit_ablation", argv)


if __name__ == "__main__":
    sys.exit(main())
