"""The card: the README.md of a bundle, for a person who finds it on a disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recollect.batch import Domains
from recollect.config import Run
from recollect.evaluation.memory.items import memory_of, usage_markdown
from recollect.trainable import Trainable, Translator


def card_of(run: Run, domains: Domains, history: Sequence[Mapping[str, Any]], model: Trainable) -> str:
    """Markdown: what this is, how it was trained, its losses by name with their weights, its last metrics, its health.

    For a method with a memory, also what each item was written.
    """
    step = history[-1]["step"] if history else 0
    newest: dict[str, Any] = {}
    for row in history:
        newest |= row
    weights = dict(run.weights)
    losses = "\n".join(
        f"| {name} | {weights[name]:g} | {newest[f'loss/{name}']:.4f} |" for name in weights if f"loss/{name}" in newest
    )
    hidden = ("step", "rate", "images_per_s", "device_hours")
    metrics = "\n".join(f"| {k} | {v:.4f} |" for k, v in newest.items() if not k.startswith("loss/") and k not in hidden)
    memory = memory_of(model)
    remembered = f"\n## Memory\n{usage_markdown(memory)}\n" if memory is not None else ""
    health = "\n".join(f"| {name} | {value:.4f} |" for name, value in model.health().items())
    judged, use = _purpose(run, domains, model)
    return f"""# {run.name}

`{run.model.name}`, trained for {step} steps at {run.data.size} px on `{run.data.store}`: {", ".join(domains.names)}
(classes: {", ".join(domains.classes)}). Judged on {judged}.

Use it: {use}.

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
{remembered}"""


def _purpose(run: Run, domains: Domains, model: Trainable) -> tuple[str, str]:
    """What it was judged on, and the commands to use it with."""
    if not isinstance(model, Translator):
        return f"its own task in {', '.join(domains.names)}", "`recollect evaluate BUNDLE`"
    source, target = run.direction() if len(run.data.domains) > 1 else ("", "")
    return (
        f"{source} to {target}",
        f"`recollect translate BUNDLE picture.png --to {target or domains.names[-1]}`, or `recollect serve BUNDLE`",
    )
