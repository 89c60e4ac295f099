"""The folder with an exported translator:

    model.onnx or model.pt2
    export.json           what it is from, what it takes and gives, and how far it is from the bundle
    stored_style.npy      for a memory whose style is an input: the stored one, (N, C)
    README.md             how to run it

The folder is there when the comparison with the bundle has passed, and not before.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import recollect
from recollect.bundle import Bundle
from recollect.export import onnx, program
from recollect.export.graph import Traceable, traceable
from recollect.export.parity import Parity, compare, real_pictures
from recollect.pipeline import Pipeline

Kind = Literal["torch-export", "onnx"]
FORMS = {"torch-export": program, "onnx": onnx}
ABOUT = "export.json"


def export(
    bundle: Bundle,
    pipeline: Pipeline,
    kind: Kind,
    out: str | os.PathLike[str],
    *,
    target: str,
    source: str | None = None,
    inputs: Sequence[str] = (),
    pictures: Sequence[str | os.PathLike[str]] = (),
) -> Parity:
    """Write the translator of a bundle between two domains, and compare what was written with the bundle.

    Args:
        bundle, pipeline: the bundle, and the pipeline that it was opened as.
        out: a folder; one with an export already is replaced.
        target, source, inputs: as `traceable` takes them.
        pictures: files and folders to compare on; none: test pictures of the bundle's data.

    Raises ValueError where there is no place, no such input, nothing to compare on, or the comparison fails; nothing is left
    behind then.
    """
    final = Path(out)
    if final.exists() and not (final.is_dir() and (not any(final.iterdir()) or (final / ABOUT).exists())):
        raise ValueError(f"{out} is there already and is no export; choose another place")
    traced, form = traceable(pipeline, target, source, inputs), FORMS[kind]
    compared_on = real_pictures(pictures, bundle.run.data.store, pipeline.domains.names[traced.graph.source])
    final.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    try:
        form.save(traced.program(), traced, work)
        parity = compare(pipeline, traced, form.runner(work, traced), compared_on)
        parity.check()
        if traced.stored is not None:
            np.save(work / "stored_style.npy", traced.stored.numpy())
        about = _about(bundle, pipeline, kind, traced, parity)
        (work / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
        (work / "README.md").write_text(_readme(about, form.USE))
        work.chmod(0o755)
        shutil.rmtree(final, ignore_errors=True)
        work.rename(final)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return parity


def _about(bundle: Bundle, pipeline: Pipeline, kind: Kind, traced: Traceable, parity: Parity) -> dict[str, Any]:
    names = pipeline.domains.names
    return {
        "format": kind,
        "name": pipeline.name,
        "method": bundle.run.model.name,
        "bundle": bundle.digest,
        "source": names[traced.graph.source],
        "target": names[traced.graph.target],
        "stride": pipeline.model.stride,  # heights and widths are multiples of it, and at least four times it
        "inputs": {name: traced.shapes[name] for name in traced.inputs},
        "outputs": {name: traced.shapes[name] for name in traced.outputs},
        "parity": {"pictures": parity.pictures, "largest_difference": dict(parity.worst)},
        "recollect": recollect.__version__,
        "torch": torch.__version__,
    }


def _readme(about: dict[str, Any], use: str) -> str:
    def table(rows: dict[str, str]) -> str:
        return "\n".join(f"| `{name}` | {shape} |" for name, shape in rows.items())

    stride, names = about["stride"], list(about["inputs"])
    inputs = ", ".join(names) if about["format"] == "torch-export" else ", ".join(f'"{name}": {name}' for name in names)
    worst = ", ".join(f"{name} {far:.1e}" for name, far in about["parity"]["largest_difference"].items())
    direction = "" if about["source"] == about["target"] else f": {about['source']} to {about['target']}"
    return f"""# {about["name"]}{direction}

`{about["method"]}`, exported from the bundle {about["bundle"][:16]} by recollect {about["recollect"]}. All numbers are float32.

{use.format(inputs=inputs)}

| input | |
|---|---|
{table(about["inputs"])}

| output | |
|---|---|
{table(about["outputs"])}

B is any number of pictures; H and W are multiples of {stride}, at least {4 * stride}. Pad other pictures at the right and
bottom by repeating their last column and row, and cut the translation; that is what recollect does. From a grey level g to a
number: g / 127.5 - 1.

Compared with the bundle on {about["parity"]["pictures"]} pictures, alone and in pairs; largest difference: {worst}.
"""
