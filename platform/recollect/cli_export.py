"""`recollect export`: a bundle in forms that others read."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Form(StrEnum):
    """What a bundle can become."""

    TORCH_EXPORT = "torch-export"
    ONNX = "onnx"
    HUB_FOLDER = "hub-folder"


def export(
    bundle: Annotated[str, typer.Argument(help="A bundle.")],
    form: Annotated[Form, typer.Option("--to", help="What it becomes.")],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    target: Annotated[str | None, typer.Option(help="The domain that the graph translates to; default: the run's own.")] = None,
    source: Annotated[str | None, typer.Option(help="The domain of the pictures; default: the run's own.")] = None,
    inputs: Annotated[
        list[str] | None, typer.Option("--input", help="A further input of the graph: `style`, what a seed would draw.")
    ] = None,
    pictures: Annotated[
        list[Path] | None,
        typer.Option(help="Pictures or folders (repeat) to compare on; default: test pictures of the bundle's data."),
    ] = None,
    license: Annotated[str, typer.Option(help="What the hub's card says: an SPDX name.")] = "",
) -> None:
    """Write a bundle as a torch.export program, an ONNX model, or a folder for a hub of models.

    A graph is for one direction, any number of pictures and any size; it is compared with the bundle on real pictures before the
    folder appears.

    recollect export runs/first/best --to onnx runs/first-onnx\n
    recollect export runs/first/best --to torch-export runs/first-pt2 --target sunny --source night --input style\n
    recollect export runs/first/best --to hub-folder runs/first-hub --license apache-2.0
    """
    from recollect.bundle import open_bundle
    from recollect.export import hub, write
    from recollect.pipeline import Pipeline

    opened = open_bundle(bundle)
    graph_only = {"--target": target, "--source": source, "--input": inputs, "--pictures": pictures}
    if form is Form.HUB_FOLDER:
        given = [name for name, value in graph_only.items() if value]
        if given:
            raise ValueError(f"{given[0]} is for a graph (--to onnx, --to torch-export); a hub's folder has the whole model")
        print(f"{hub.export(opened, out, license).path}: a bundle with a model card")
        return
    if license:
        raise ValueError("--license is for a hub's card (--to hub-folder)")
    pipeline = Pipeline.open(opened)
    names = pipeline.domains.names
    if not (target or source) and len(opened.run.data.domains) > 1:
        source, target = opened.run.direction()
    parity = write.export(
        opened,
        pipeline,
        "onnx" if form is Form.ONNX else "torch-export",
        out,
        target=target or next((name for name in names if name != source), names[0]),
        source=source,
        inputs=inputs or (),
        pictures=pictures or (),
    )
    worst = ", ".join(f"{name} {far:.1e}" for name, far in parity.worst.items())
    print(f"{out}: as the bundle on {parity.pictures} pictures, alone and in pairs (largest difference: {worst})")
