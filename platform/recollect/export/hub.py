"""A bundle for a hub of models: the same files, the weights that are used, and a card that hubs can read.

The folder is a bundle itself: `Pipeline.open`, `recollect serve` and everything else take it as it is. The card's front matter
and tables are written from the bundle's own metrics; what nobody measured is not in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from recollect import bundle
from recollect.bundle import Bundle
from recollect.config import find_method
from recollect.trainable import Translator

HIDDEN = ("step", "rate", "images_per_s", "objective")  # of the history: what says nothing of the model
HIDDEN_BEGINNINGS = ("loss/", "memory/")


def export(opened: Bundle, out: str | os.PathLike[str], license: str = "") -> Bundle:
    """Write the folder, and open it.

    Args:
        out: a folder; a bundle that is there is replaced.
        license: what the card says (an SPDX name); empty: it says nothing.

    Raises ValueError when something else is there, and for a license that would break the card.
    """
    if not all(letter.isalnum() or letter in "-.+" for letter in license):
        raise ValueError(f"{license!r} is no name of a license; an SPDX name is, such as apache-2.0")
    return bundle.write(
        out,
        opened.run,
        opened.domains,
        opened.state("best"),
        metrics=opened.metrics(),
        parents={**opened.manifest["parents"], "exported": opened.digest},
        card=card(opened, license),
    )


def card(opened: Bundle, license: str = "") -> str:
    """The model card: front matter, then what the bundle's own card says, then how to use it."""
    own = (opened.path / "README.md").read_text()
    told = f"{own.rstrip()}\n\n## Use\n{_use(opened)}\n\n## Where it is from\n{_origin(opened)}\n"
    return f"---\n{_front(opened, license)}---\n\n{told}"


def _front(opened: Bundle, license: str) -> str:
    """YAML, every value in it JSON, which YAML can read."""
    run, translates = opened.run, _translates(opened)
    kinds = ["recollect", run.model.name, *(["unpaired-image-translation"] if translates else [])]
    lines = [f"license: {json.dumps(license)}"] if license else []
    lines += ["library_name: recollect", *(["pipeline_tag: image-to-image"] if translates else []), f"tags: {json.dumps(kinds)}"]
    found = measured(opened)
    if found:
        data = {"name": PurePath(run.data.store).name or "not named", "type": "image-folder", "split": "validation"}
        lines += [
            "model-index:",
            f"- name: {json.dumps(run.name)}",
            "  results:",
            f"  - task: {json.dumps({'type': 'image-to-image' if translates else 'other'})}",
            f"    dataset: {json.dumps(data)}",
            "    metrics:",
            *(f"    - {json.dumps({'type': name, 'name': name, 'value': value})}" for name, value in found.items()),
        ]
    return "\n".join(lines) + "\n"


def _translates(opened: Bundle) -> bool:
    return issubclass(find_method(opened.run.model.name), Translator)


def measured(opened: Bundle) -> dict[str, float]:
    """The last value of every metric of the validation, by name."""
    newest: dict[str, Any] = {}
    for row in opened.metrics():
        newest |= row
    return {name: value for name, value in newest.items() if _told(name, value)}


def _told(name: str, value: Any) -> bool:
    return isinstance(value, int | float) and value == value and name not in HIDDEN and not name.startswith(HIDDEN_BEGINNINGS)


def _use(opened: Bundle) -> str:
    if not _translates(opened):
        return "```sh\nrecollect show THIS_FOLDER\n```"
    names = opened.domains.names
    source, target = opened.run.direction() if len(opened.run.data.domains) > 1 else (names[0], names[-1])
    return f"""```python
from recollect.pipeline import Pipeline

translate = Pipeline.open("THIS_FOLDER")            # verifies the digests of all files
result = translate(images, {json.dumps(target)}, {json.dumps(source)}).images  # images: (B, 3, H, W) in [-1, 1]
```
```sh
recollect serve THIS_FOLDER
```"""


def _origin(opened: Bundle) -> str:
    parents: Mapping[str, str] = opened.manifest["parents"]
    rows = "".join(f"| {name} | `{digest}` |\n" for name, digest in parents.items())
    return f"""| | SHA-256 |
|---|---|
| bundle | `{opened.digest}` |
{rows}
`config.json` is the whole configuration of the run, `metrics.jsonl` its history, `manifest.json` the digest of every file.
Weights are safetensors; nothing here is a pickle."""
