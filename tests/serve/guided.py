"""A guided translator with its index and store, untrained: the published method at its smallest."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from recollect import bundle
from recollect.batch import Domains
from recollect.config import preset
from recollect.data.schema import Record
from recollect.data.store import write_store
from recollect.retrieval.embed import build_index
from tests.serve.conftest import encoded, painted
from trainables.gmm_unit import CELEBA
from trainables.rg_unit import RGUNIT

DOMAINS = Domains(("faces",), attributes=(*CELEBA, "Smiling"))
SIZE, NEIGHBOURS = 32, 2


class Guided(NamedTuple):
    """Where everything is."""

    bundle: Path
    index: Path
    store: Path


def records(count: int, start: int = 0) -> list[Record]:
    """Pictures of SIZE x SIZE with all attributes known."""
    found = []
    for number in range(start, start + count):
        hair = number % 3
        values = (hair == 0, hair == 1, hair == 2, number // 3 % 2, number // 2 % 2, number % 2)
        attributes = {name: int(value) for name, value in zip(DOMAINS.attributes, values, strict=True)}
        content = encoded(painted(SIZE, SIZE, seed=number))
        found.append(Record(f"p{number:03}", content, "faces", SIZE, SIZE, "train", attributes=attributes))
    return found


def write_guided(
    root: Path, count: int = 40, indexed: int = 32, backend: str = "exact", fusion: str = "residual", name: str = "guided"
) -> Guided:
    """A store of `count` pictures, an index of the first `indexed` of them, and the bundle that was trained with it."""
    write_store(str(root / "store"), records(count), domains=DOMAINS.names, attributes=DOMAINS.attributes)
    model = {
        "attributes": CELEBA,
        "exclusive": (CELEBA[:3],),
        "dims": 2,
        "width": 8,
        "content_blocks": 1,
        "generator_blocks": 1,
        "mlp_width": 16,
        "critic_width": 8,
        "critic_layers": 2,
        "neighbours": NEIGHBOURS,
        "fusion": fusion,
        "embedding": {"widths": (8, 8, 8), "hidden": 16, "dim": 6, "dropout": 0.5},
    }
    data = {"domains": DOMAINS.names, "size": SIZE, "store": str(root / "store"), "index": str(root / "index")}
    run = preset("rg_unit:tiny", data=data, model=model).model_copy(update={"name": name})
    torch.manual_seed(5)
    net = RGUNIT(run.model, DOMAINS)
    assert net.fusion is not None
    torch.nn.init.normal_(net.fusion.outer[0].weight, std=0.3)  # as if it had learned: from zero, neighbours change nothing
    path = bundle.write(root / "guided", run, DOMAINS, net.state_dict()).path
    build_index(path, root / "store", root / "index", backend=backend, limit=indexed)
    return Guided(path, root / "index", root / "store")
