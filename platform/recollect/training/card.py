"""The card: the README.md of a bundle, for a person who finds it on a disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recollect.batch import Domains
from recollect.config import Run
from recollect.trainable import Trainable


def card_of(run: Run, domains: Domains, history: Sequence[Mapping[str, Any]], model: Trainable) -> str:
    """Markdown: what this is, how it was trained, its losses by name with their weights, its last metrics, its health."""
    step = history[-1]["step"] if history else 0
    newest: dict[str, Any] = {}
    for row in history:
        newest |= row
    weights = dict(run.weights)
    losses = "\n".join(
        f"| {name} | {weights[name]:g} | {newest[f'loss/{name}']:.4f} |" for name in weights if f"loss/{name}" in newest
    )
    hidden = ("step", "rate", "images_per_s")
    metrics = "\n".join(f"| {k} | {v:.4f} |" for k, v in newest.items() if not k.startswith("loss/") and k not in hidden)
    health = "\n".join(f"| {name} | {value:.4f} |" for name, value in model.health().items())
    source, target = run.direction() if len(run.data.domains) > 1 else ("", "")
    return f"""# {run.name}

`{run.model.name}`, trained for {step} steps at {run.data.size} px on `{run.data.store}`: {", ".join(domains.names)}
(classes: {", ".join(domains.classes)}). Judged on {source} to {target}.

Use it: `recollect translate BUNDLE picture.png --to {target or domains.names[-1]}`, or `recollect serve BUNDLE`.

## Losses at the end
| term | weight | value |
|---|---|---|
{losses}

## Validation
| metric | value |
|---|---|
{metrics}

## State
| | |
|---|---|
{health}
"""
