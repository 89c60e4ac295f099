"""Names that people write into scripts, tables and configurations change on purpose only.

`tests/public_names.json` holds them. After a change that is meant, run `python -m tests.test_public_names` at the root (with
the project installed) and commit the file with the reason.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from recollect import cli
from recollect.config import find_method, overlay, preset
from recollect.evaluation.metrics import METRICS
from recollect.objective import active
from trainables.catalogue import METHODS

FROZEN = Path(__file__).with_name("public_names.json")
HOW = "if this is meant, run `python -m tests.test_public_names` at the root and say why in the commit"


def verbs(group: typer.Typer = cli.app) -> list[str]:
    """The verbs of the command line, those of a group behind its name."""
    own = [command.name or getattr(command.callback, "__name__", "") for command in group.registered_commands]
    inner = [
        f"{part.name} {verb}" for part in group.registered_groups if part.typer_instance for verb in verbs(part.typer_instance)
    ]
    return sorted(own + inner)


def dotted(section: Any, prefix: str = "") -> list[str]:
    """The names that `overlay` takes."""
    if not isinstance(section, dict):
        return [prefix]
    return sorted(name for key, value in section.items() for name in dotted(value, f"{prefix}.{key}".strip(".")))


def names() -> dict[str, Any]:
    """Everything that is frozen."""
    return {
        "verbs": verbs(),
        "run": dotted(preset("mguit:tiny").model_dump()),
        "metrics": sorted(METRICS),
        "methods": {
            name: {
                "presets": list(find_method(name).presets),
                "terms": sorted(find_method(name).Weights.model_fields),
                "off by default": sorted(find_method(name).Weights.model_fields.keys() - active(find_method(name).Weights())),
            }
            for name in METHODS
        },
    }


@pytest.fixture(autouse=True)
def _own_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECOLLECT_CATALOGUE", raising=False)  # other tests list methods of their own


def flat(tree: Any, prefix: str = "") -> set[str]:
    """Every leaf of nested dictionaries and lists as one text."""
    if isinstance(tree, dict):
        return {leaf for key, value in tree.items() for leaf in flat(value, f"{prefix}{key} / ")}
    return {f"{prefix}{leaf}" for leaf in tree}


def test_public_names_are_what_they_were() -> None:
    before, now = flat(json.loads(FROZEN.read_text())), flat(names())
    assert sorted(before - now) == [], f"public names are gone: {HOW}"
    assert sorted(now - before) == [], f"there are new public names: {HOW}"


def test_every_frozen_field_is_one_that_overlay_takes() -> None:
    run = preset("mguit:tiny")
    for name in json.loads(FROZEN.read_text())["run"]:
        value: Any = run.model_dump()
        for key in name.split("."):
            value = value[key]
        assert overlay(run, {name: value}) == run


if __name__ == "__main__":
    FROZEN.write_text(json.dumps(names(), indent=1) + "\n")
    print(f"wrote {FROZEN}")
