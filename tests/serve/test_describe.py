"""What a model tells of itself: its memory's items, with patches of pictures where the server has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recollect.data.schema import Record
from recollect.data.store import write_store
from serve.batch import BatchTranslator
from serve.describe import PATCH, card, items, targets
from serve.pictures import map_colours
from tests.serve.conftest import encoded, painted
from tests.serve.guided import write_guided
from tests.serve.translators import STREETS, write_bundle, write_mguit


def test_items_have_patches_of_the_runs_own_pictures(tmp_path: Path) -> None:
    records = [
        Record(f"{split}-{domain}-{number}", encoded(painted(64, 64, 10 * number + at)), domain, 64, 64, split)
        for at, domain in enumerate(STREETS.names)
        for split in ("train", "val")
        for number in range(3)
    ]
    write_store(str(tmp_path / "store"), records, domains=STREETS.names, classes=STREETS.classes)
    model = BatchTranslator(str(write_mguit(tmp_path, str(tmp_path / "store"))))
    found = items(model)
    assert found is not None and [item.index for item in found] == list(range(20))
    counts = targets(model)["classes"]
    assert counts == {name: sum(item.label == name for item in found) for name in STREETS.classes}
    assert [item.number for item in found if item.label == "car"] == list(range(counts["car"]))
    for item in found:
        assert item.patches.keys() == set(STREETS.names)
        for patch in item.patches.values():
            assert patch.shape == (3, PATCH, PATCH) and patch.dtype == np.uint8 and patch.std() > 0
    assert len(set(map_colours(20))) == 20 and all(colour.startswith("#") and len(colour) == 7 for colour in map_colours(20))


def test_without_its_pictures_or_a_memory_nothing_is_shown(tmp_path: Path) -> None:
    bare = items(BatchTranslator(str(write_mguit(tmp_path))))
    assert bare is not None and all(item.patches == {} for item in bare)
    tint = BatchTranslator(str(write_bundle(tmp_path)))
    assert items(tint) is None and targets(tint)["attributes"] == ()


def test_what_can_be_asked_for_by_name(tmp_path: Path) -> None:
    guided = BatchTranslator(str(write_guided(tmp_path).bundle))
    told = targets(guided)
    assert told["domains"] == ("faces",) and told["exclusive"] == (told["attributes"][:3],)
    assert card(guided)["guides"] == ("attributes", "exemplar", "strength")
