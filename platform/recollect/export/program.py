"""A translator as a `torch.export` program: one `.pt2` file that torch alone runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from recollect.export.graph import Traceable
from recollect.export.parity import Run

FILE = "model.pt2"
USE = """```python
import torch
translate = torch.export.load("model.pt2").module()   # torch alone; no recollect
translation, *extras = translate({inputs})
```"""


def save(program: torch.export.ExportedProgram, traced: Traceable, folder: Path) -> None:
    """Write the program."""
    torch.export.save(program, folder / FILE)


def runner(folder: Path, traced: Traceable) -> Run:
    """The program as it was written, read again."""
    module = torch.export.load(folder / FILE).module()

    def run(inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
        with torch.no_grad():
            outputs: tuple[Tensor, ...] = module(*(inputs[name] for name in traced.inputs))
        return outputs

    return run
