"""How much a memory is used, on translators whose answers are known by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from recollect.batch import Domains, Guide, Translation
from recollect.config import ModelConfig
from recollect.data.store import Store
from recollect.data.transforms import to_unit
from recollect.evaluation.memory.use import memory_use
from recollect.evaluation.validate import Cases, Truth, gather
from recollect.pipeline import Pipeline
from recollect.trainable import ClassWise, Translator

NAMES = ("background", "car", "person", "sign")
COLOURS = {"background": 0.1, "car": 0.4, "person": 0.7, "sign": 1.0}  # of the true night, as this test has it


class Painter(Translator):
    """Paints every cell in the colour of the values it reads: of its class by `guide.classes`, else of what `believed` says."""

    def __init__(self, domains: Domains, believed: Tensor, ids: Tensor, listens: bool = True) -> None:
        super().__init__(ModelConfig(name="painter"), domains)
        self.believed, self.ids, self.listens = believed, ids, listens  # (B, h, w); (B, 3, H, W) pictures to know them by
        self.scale = torch.nn.Parameter(torch.ones(()))

    @property
    def stride(self) -> int:
        return 2

    def style_classes(self) -> dict[str, int]:
        return {"background": 2, "car": 1, "person": 1, "sign": 1}

    def stored_values(self, target: int) -> dict[str, Tensor]:
        return {name: torch.full((count, 3), COLOURS[name]) for name, count in self.style_classes().items()}

    def random_values(self, target: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {name: torch.rand(count, 3, generator=generator) for name, count in self.style_classes().items()}

    def exemplar_values(self, picture: Tensor, target: int, classes: Tensor | None = None) -> dict[str, Tensor]:
        raise NotImplementedError

    def translate(self, images: Tensor, source: int, target: int, guide: Guide = Guide()) -> Translation:
        rows = [int((self.ids == image).flatten(1).all(1).nonzero()[0]) for image in images]
        classes = self.believed[rows] if guide.classes is None else guide.classes
        values = self.stored_values(target) | dict(guide.values or {} if self.listens else {})
        colours = torch.stack([values[name][0] for name in NAMES])[classes]  # (B, h, w, 3)
        picture = colours.permute(0, 3, 1, 2).repeat_interleave(2, 2).repeat_interleave(2, 3) * 2 - 1
        first = torch.tensor([0, 2, 3, 4])  # the first item of each class
        return Translation(picture, {"memory_map": first[classes]})


@pytest.fixture(scope="module")
def cases(store: Store) -> Cases:
    """Pictures whose true night is one colour a class, by region, the background's regions all in its own."""
    found = gather(store, ("sunny", "night"), "val", 32, pictures=4)
    assert found.truth is not None
    flat = torch.full((len(found.regions),), COLOURS["background"])
    for name in NAMES[1:]:
        flat[found.regions.index(name)] = COLOURS[name]
    picture = (flat[found.truth.regions.long()] * 255).round().to(torch.uint8)[:, None, None].expand(-1, 1, 3, -1, -1)
    return replace(found, truth=Truth(picture, found.truth.modes[:, :1], found.truth.regions))


def painter(cases: Cases, store: Store, believed: Tensor | None = None, listens: bool = True) -> Pipeline:
    classes = cases.class_map(2)
    assert classes is not None
    domains = store.domains.only(("sunny", "night"))
    return Pipeline(Painter(domains, classes if believed is None else believed, to_unit(cases.images), listens))


def test_a_generator_that_uses_its_values_loses_by_their_exchange(cases: Cases, store: Store) -> None:
    assert isinstance(painter(cases, store).model, ClassWise)
    use = memory_use(painter(cases, store), cases)
    assert use["memory_use/found"] == 1 and abs(use["memory_use/class_free"]) < 1e-9
    assert all(use[f"memory_use/shuffled/{name}"] > 0.3 for name in NAMES)
    assert use["memory_use/shuffled"] == pytest.approx(sum(use[f"memory_use/shuffled/{name}"] for name in NAMES) / 4)
    assert use["memory_use/local/sign"] > 3  # a box has corners that are no sign, so not infinitely


def test_a_generator_that_ignores_them_loses_nothing(cases: Cases, store: Store) -> None:
    use = memory_use(painter(cases, store, listens=False), cases)
    assert all(abs(use[f"memory_use/shuffled/{name}"]) < 1e-9 for name in NAMES)
    assert use["memory_use/local/car"] == 0


def test_wrong_addresses_are_counted_and_cost_what_the_true_ones_would_have_saved(cases: Cases, store: Store) -> None:
    classes = cases.class_map(2)
    assert classes is not None
    blind = memory_use(painter(cases, store, torch.zeros_like(classes)), cases)
    assert blind["memory_use/found"] == 0 and blind["memory_use/class_free"] > 0.1
    half = classes.clone()
    half[len(half) // 2 :] = 0
    expected = float((half == classes)[classes > 0].float().mean())
    assert memory_use(painter(cases, store, half), cases)["memory_use/found"] == pytest.approx(expected)


def test_nothing_is_said_without_truth_or_without_a_memory(cases: Cases, store: Store) -> None:
    assert memory_use(painter(cases, store), replace(cases, truth=None)) == {}
    assert memory_use(painter(cases, store), replace(cases, annotated=False)) == {}
