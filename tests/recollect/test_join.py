"""Several stores as one: what is kept, what must agree, and KITTI with Cityscapes as two domains of one store."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from recollect import cli
from recollect.config import Data
from recollect.data.join import join_stores
from recollect.data.loader import Feed
from recollect.data.schema import SPLITS, Box, Record
from recollect.data.sources import cityscapes, kitti
from recollect.data.store import Store, write_store
from recollect.data.worlds import build_streets
from tests.recollect import test_cityscapes, test_kitti


def store(path: Path, domain: str, count: int = 40, classes: tuple[str, ...] = ("car", "person"), **names: Any) -> Path:
    def records() -> Any:
        for index in range(count):
            sink = io.BytesIO()
            Image.new("RGB", (20, 10), (index, len(domain), 7)).save(sink, "PNG")
            boxes = (Box(classes[index % len(classes)], 1, 2, 3 + index / 8, 9),) if index % 3 else ()
            split, attributes = SPLITS[index % 3], {"wet": index % 2} if names else None
            yield Record(f"{index}", sink.getvalue(), domain, 20, 10, split, boxes, attributes, source=f"{domain} {index}")

    write_store(path, records(), domains=(domain,), classes=("background", *classes), source=f"made {domain}", **names)
    return path


def test_every_record_is_kept(tmp_path: Path) -> None:
    parts = [store(tmp_path / "a", "day"), store(tmp_path / "b", "night", 35, ("person", "car"))]
    seen: list[tuple[int, int]] = []
    manifest = join_stores(parts, tmp_path / "c", progress=lambda done, total: seen.append((done, total)))
    joined = Store.open(tmp_path / "c", verify=True)
    assert joined.manifest == manifest and seen == [(n, 75) for n in range(1, 76)]
    assert joined.domains.names == ("day", "night") and joined.domains.classes == ("background", "car", "person")
    assert manifest.source == "made day + made night"
    for path in parts:
        part = Store.open(path)
        assert {split: part.manifest.counts[split][name] for split in SPLITS for name in part.domains.names} == {
            split: manifest.counts[split][name] for split in SPLITS for name in part.domains.names
        }
        for split in SPLITS:
            for id in part.ids(split, part.domains.names[0]):
                old, new = part.record(id), joined.record(f"{path.name}/{id}")  # both had an id "0"
                assert (new.image, new.boxes, new.split, new.source) == (old.image, old.boxes, old.split, old.source)
    batches = Feed(joined, Data(size=16, short_side=16), 4, 4, 0).batches(0)
    assert [batch.domain.tolist() for batch in batches] == [[0] * 4, [1] * 4] and batches[1].classes is not None


def test_ids_that_do_not_meet_stay(tmp_path: Path) -> None:
    one = join_stores([store(tmp_path / "a", "day"), store(tmp_path / "b", "night")], tmp_path / "c")
    again = join_stores([tmp_path / "c", store(tmp_path / "d", "rain")], tmp_path / "e")
    assert one.counts["train"].keys() <= again.counts["train"].keys()
    opened = Store.open(tmp_path / "e")
    assert "a/0" in opened and "0" in opened and len(opened) == 120


def test_a_domain_of_several_stores_is_one(tmp_path: Path) -> None:
    join_stores([store(tmp_path / "a", "day", 12), store(tmp_path / "b", "day", 15)], f"{tmp_path}/c/")
    assert len(Store.open(tmp_path / "c").ids("train", "day")) == 4 + 5


def test_the_attributes_of_one_store_are_unknown_of_the_others_pictures(tmp_path: Path) -> None:
    parts = [store(tmp_path / "a", "day"), store(tmp_path / "w", "night", attributes=("wet",))]
    assert join_stores(parts, tmp_path / "c").attributes == ("wet",)
    joined = Store.open(tmp_path / "c")
    assert np.isnan(joined.attributes(domain="day")[1]).all()
    assert set(joined.attributes(domain="night")[1].ravel().tolist()) == {0.0, 1.0}
    parts.append(store(tmp_path / "r", "rain", attributes=("warm", "wet")))
    assert join_stores(parts, tmp_path / "d").attributes == ("wet", "warm")
    values = Store.open(tmp_path / "d").attributes(domain="rain")[1]
    assert not np.isnan(values[:, 0]).any() and np.isnan(values[:, 1]).all()  # these records know only "wet"


def test_truth_is_kept(tmp_path: Path) -> None:
    for seed in (0, 1):
        build_streets(tmp_path / f"s{seed}", size=16, train=2, val=1, test=1, references=2, seed=seed)
    manifest = join_stores([tmp_path / "s0", tmp_path / "s1"], tmp_path / "both")
    joined, part = Store.open(tmp_path / "both"), Store.open(tmp_path / "s0")
    assert manifest.truth and manifest.regions == part.manifest.regions and len(joined) == 2 * len(part)
    record = part.record(part.ids("val", "night")[0])
    assert record.scene and len(part.scene(record.scene, "night")) == 2
    for number, name in enumerate(("s0", "s1")):  # both worlds have a scene of that name, and it is not the same place
        renders = joined.records(joined.scene(f"{number}/{record.scene}", "night"))
        wanted = Store.open(tmp_path / name)
        assert [one.image for one in renders] == [one.image for one in wanted.records(wanted.scene(record.scene, "night"))]
        assert all(one.regions for one in renders)


def test_what_must_agree(tmp_path: Path) -> None:
    a, b = store(tmp_path / "a", "day"), store(tmp_path / "b", "night", classes=("car", "rider"))
    with pytest.raises(
        ValueError, match=r"same classes: .*/a has background, car, person; .*/b has background, car, rider; make them with"
    ):
        join_stores([a, b], tmp_path / "c")
    with pytest.raises(ValueError, match="join at least two stores, not 1"):
        join_stores([a], tmp_path / "c")
    with pytest.raises(ValueError, match="there is no image store at .*nowhere"):
        join_stores([a, tmp_path / "nowhere"], tmp_path / "c")
    with pytest.raises(ValueError, match="share ids such as '0', and two of them are both called 'a'"):
        join_stores([a, store(tmp_path / "x" / "a", "night")], tmp_path / "c")
    assert not (tmp_path / "c").exists()
    same = store(tmp_path / "s", "night")
    with pytest.raises(ValueError, match="/s is one of the stores to join; write the new one elsewhere"):
        join_stores([a, same], f"{tmp_path}/./s/")
    assert len(Store.open(same, verify=True)) == 40


def test_kitti_and_cityscapes_are_two_domains_of_one_store(tmp_path: Path) -> None:
    kitti.ingest(test_kitti.some(tmp_path / "k"), tmp_path / "kitti", val=0.2, test=0)
    cityscapes.ingest(test_cityscapes.some(tmp_path / "c"), tmp_path / "city", val=0.3)
    words = ["data", "join", str(tmp_path / "kitti"), str(tmp_path / "city")]
    done = CliRunner().invoke(cli.app, [*words, str(tmp_path / "both")])
    assert done.exit_code == 0, done.output
    assert "classes background, person, car, truck, bicycle" in done.stdout
    both = Store.open(tmp_path / "both", verify=True)
    assert both.domains.names == ("kitti", "cityscapes") and both.domains.classes[1:] == ("person", "car", "truck", "bicycle")
    assert "kitti/000000" in both and "cityscapes/aachen_000000_000019" in both
    batches = Feed(both, Data(size=32, short_side=32), 2, 4, 0).batches(0)
    assert all(batch.classes is not None and (batch.classes > 0).any() for batch in batches)
    failed = CliRunner().invoke(cli.app, words)
    assert "join takes at least two stores and where the new one goes" in str(failed.exception)
