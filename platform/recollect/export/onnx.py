"""A translator as an ONNX model, run by onnxruntime. Needs the extra `export`."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from recollect.export.graph import Traceable
from recollect.export.parity import Run

FILE = "model.onnx"
USE = """```python
import numpy, onnxruntime                             # no torch, no recollect
session = onnxruntime.InferenceSession("model.onnx")
translation, *extras = session.run(None, {{{inputs}}})
```"""
LARGEST_BYTES = 2**31 - 2**20  # of one protobuf file; beyond it weights would have to lie beside


def save(program: torch.export.ExportedProgram, traced: Traceable, folder: Path) -> None:
    """Write the model, weights inside. Raises ValueError without the packages that it takes, and for over 2 GB of weights."""
    try:
        import onnx
        import onnxscript  # noqa: F401  # what torch writes ONNX with
    except ImportError as error:
        raise ValueError(f"ONNX needs {error.name}: pip install 'recollect[export]'") from None
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    if size > LARGEST_BYTES:
        raise ValueError(f"{size / 2**30:.1f} GB of weights do not fit into one ONNX file; --to torch-export can hold them")
    with _quiet():
        made = torch.onnx.export(
            program,
            traced.example,
            dynamo=True,
            verbose=False,
            input_names=list(traced.inputs),
            output_names=list(traced.outputs),
        )
    assert made is not None
    model = made.model_proto
    for values in (model.graph.input, model.graph.output):
        for value in values:
            _name_axes(value, traced)
    onnx.checker.check_model(model)
    onnx.save_model(model, str(folder / FILE))


def runner(folder: Path, traced: Traceable) -> Run:
    """The model as it was written, in onnxruntime. Raises ValueError without it."""
    try:
        import onnxruntime
    except ImportError:
        raise ValueError("comparing the ONNX model needs onnxruntime: pip install 'recollect[export]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(folder / FILE), options, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
        arrays = session.run(None, {name: inputs[name].contiguous().numpy() for name in traced.inputs})
        return [torch.from_numpy(array) for array in arrays]

    return run


AXES = {  # what the free axes are called, in place of the tracer's names
    "images": {0: "B", 2: "H", 3: "W"},
    "neighbours": {0: "B", 3: "H", 4: "W"},
    "attributes": {0: "B"},
    "style": {0: "B", 2: "rows", 3: "columns"},
    "translation": {0: "B", 2: "H", 3: "W"},
    "mask": {0: "B", 2: "H", 3: "W"},
    "memory_map": {0: "B", 1: "h", 2: "w"},
}


def _name_axes(value: object, traced: Traceable) -> None:
    """Call the free axes of an input or output what people call them."""
    for axis, size in enumerate(value.type.tensor_type.shape.dim):  # type: ignore[attr-defined]
        name = AXES.get(value.name, {}).get(axis)  # type: ignore[attr-defined]
        if size.dim_param and name:
            size.dim_param = name


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter and onnxscript tell their developers."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
