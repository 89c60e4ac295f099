"""Recipes on the streets world.

    recollect train experiments.streets:sunny_night --out runs/streets/sunny-night

A recipe is a function that returns a Run; `small=True` is the same recipe, shrunk until a laptop or a test can hold it.
"""

from __future__ import annotations

from recollect.config import Run, preset


def sunny_night(store: str = "runs/streets-64", small: bool = False) -> Run:
    """MGUIT from sunny to night at 64 px: some minutes on two cores."""
    engine = {"steps": 24, "evaluate_every": 12, "log_every": 6} if small else {"steps": 600, "evaluate_every": 150}
    return preset(
        "mguit:tiny",
        name="streets-sunny-night",
        data={"store": store, "domains": ("sunny", "night")},
        engine=engine,
        evaluation={"source": "sunny", "target": "night", "pictures": 6 if small else 24},
    )


def sunny_rainy(store: str = "runs/streets-64", small: bool = False) -> Run:
    """The same from sunny to rainy."""
    run = sunny_night(store, small)
    return run.model_copy(
        update={
            "name": "streets-sunny-rainy",
            "data": run.data.model_copy(update={"domains": ("sunny", "rainy")}),
            "evaluation": run.evaluation.model_copy(update={"target": "rainy"}),
        }
    )
