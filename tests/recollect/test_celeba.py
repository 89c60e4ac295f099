"""CelebA and RG-UNIT's lists into stores, beside torchvision's own reader and transforms; and what is not this format."""

from __future__ import annotations

import io
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets
from torchvision.transforms import v2
from typer.testing import CliRunner

from recollect import cli
from recollect.data.schema import SPLITS
from recollect.data.sources.celeba import BITS, held_out, ingest, read_cut
from recollect.data.sources.pictures import Ingest
from recollect.data.store import Store

NAMES = [
    "5_o_Clock_Shadow",
    "Arched_Eyebrows",
    "Attractive",
    "Bags_Under_Eyes",
    "Bald",
    "Bangs",
    "Big_Lips",
    "Big_Nose",
    "Black_Hair",
    "Blond_Hair",
    "Blurry",
    "Brown_Hair",
    "Bushy_Eyebrows",
    "Chubby",
    "Double_Chin",
    "Eyeglasses",
    "Goatee",
    "Gray_Hair",
    "Heavy_Makeup",
    "High_Cheekbones",
    "Male",
    "Mouth_Slightly_Open",
    "Mustache",
    "Narrow_Eyes",
    "No_Beard",
    "Oval_Face",
    "Pale_Skin",
    "Pointy_Nose",
    "Receding_Hairline",
    "Rosy_Cheeks",
    "Sideburns",
    "Smiling",
    "Straight_Hair",
    "Wavy_Hair",
    "Wearing_Earrings",
    "Wearing_Hat",
    "Wearing_Lipstick",
    "Wearing_Necklace",
    "Wearing_Necktie",
    "Young",
]
NUMBERS = (1, 2, 3, 4, 5, 1999, 2000, 2001, 2002, 202599)
PARTS = (0, 0, 1, 0, 2, 0, 1, 0, 2, 0)


def values(number: int) -> list[int]:
    return random.Random(number).choices((1, -1), k=40)


def write(root: Path, numbers: tuple[int, ...] = NUMBERS, anno: str = "", evaluation: str = "", images: str = "") -> Path:
    """CelebA as it is published: columns are aligned, so a 1 has two spaces before it and a -1 has one."""
    folder = root / images / "img_align_celeba"
    folder.mkdir(parents=True)
    for number in numbers:
        noise = Image.frombytes("RGB", (30, 36), random.Random(number).randbytes(3240))
        noise.resize((178, 218), Image.Resampling.BICUBIC).save(folder / f"{number:06}.jpg", quality=95)
    lines = [str(len(numbers)), " ".join(NAMES) + " "]
    lines += [f"{number:06}.jpg " + " ".join(f"{value:2}" for value in values(number)) for number in numbers]
    for place in (anno, evaluation):
        (root / place).mkdir(exist_ok=True)
    (root / anno / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    parts = [f"{number:06}.jpg {part}" for number, part in zip(numbers, PARTS, strict=False)]
    (root / evaluation / "list_eval_partition.txt").write_text("\n".join(parts) + "\n")
    return root


def into(tmp_path: Path, root: Path, **options: Any) -> tuple[Ingest, Store]:
    result = ingest(root, tmp_path / "store", **options)
    return result, Store.open(tmp_path / "store", verify=True)


def bits(number: int) -> dict[str, int]:
    """What RG-UNIT's lists say, which here is not what CelebA's says."""
    return dict(zip(BITS, random.Random(-number).choices((0, 1), k=5), strict=True))


def write_bits(path: Path, numbers: tuple[int, ...]) -> Path:
    path.write_text("".join(f"{n:06}.jpg\t{''.join(map(str, bits(n).values()))}\n" for n in numbers))
    return path


@pytest.mark.parametrize("places", [{}, {"anno": "Anno", "evaluation": "Eval", "images": "Img"}])
def test_attributes_and_splits_are_those_that_torchvision_reads(tmp_path: Path, places: dict[str, Any]) -> None:
    root = write(tmp_path / "celeba", **places)
    result, store = into(tmp_path, root)
    assert result.skipped == () and store.domains.names == ("celeba",) and store.domains.attributes == tuple(NAMES)
    if not places:  # torchvision wants all in one folder, and two lists more
        for name in ("identity_CelebA", "list_bbox_celeba", "list_landmarks_align_celeba"):
            head = "" if name.startswith("identity") else f"{len(NUMBERS)}\nx y\n"
            (root / f"{name}.txt").write_text(head + "".join(f"{number:06}.jpg 1 2\n" for number in NUMBERS))
    theirs: dict[str, list[int]] = {}
    if not places:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(datasets.CelebA, "_check_integrity", lambda self: True)
            for split, ours in zip(("train", "valid", "test"), SPLITS, strict=True):
                part = datasets.CelebA(str(tmp_path), split=split, target_type="attr")
                assert [f"celeba/{Path(name).stem}" for name in part.filename] == list(store.ids(ours, "celeba"))
                theirs |= {f"celeba/{Path(n).stem}": row.tolist() for n, row in zip(part.filename, part.attr, strict=True)}
    else:
        theirs = {f"celeba/{number:06}": [max(0, value) for value in values(number)] for number in NUMBERS}
    ids, table = store.attributes()
    assert sorted(ids) == sorted(theirs) and table.astype(int).tolist() == [theirs[id] for id in ids]


def test_pictures_are_cut_and_resized_as_by_torchvision(tmp_path: Path) -> None:
    root = write(tmp_path / "celeba")
    store = into(tmp_path, root)[1]
    for number in (1, 2001):
        original = Image.open(root / "img_align_celeba" / f"{number:06}.jpg").convert("RGB")
        expected = np.asarray(v2.Resize(128)(v2.CenterCrop(178)(original)), float)
        record = store.record(f"celeba/{number:06}")
        got = np.asarray(Image.open(io.BytesIO(record.image)), float)
        assert (record.width, record.height, got.shape) == (128, 128, (128, 128, 3))
        assert np.abs(got - expected).mean() < 2  # it is a JPEG again
    path = root / "img_align_celeba" / "000001.jpg"
    whole = np.asarray(Image.open(path).convert("RGB"), float)
    got = np.asarray(Image.open(io.BytesIO(read_cut(path, crop=178, size=178).content)), float)
    assert np.abs(got - whole[20:198]).mean() < 2 < np.abs(got - whole[19:197]).mean()


def test_rg_units_lists_say_which_pictures_and_their_five_attributes(tmp_path: Path) -> None:
    root = write(tmp_path / "celeba")
    lists = [write_bits(tmp_path / "train.lst", (2001, 202599)), write_bits(tmp_path / "val.lst", (2, 2000))]
    store = into(tmp_path, root, bits=lists)[1]
    assert store.ids("train", "celeba") == ("celeba/002001", "celeba/202599")
    assert store.ids("test", "celeba") == ("celeba/000002", "celeba/002000") and store.ids("val", "celeba") == ()
    for number in (2, 2000, 2001, 202599):
        known = dict(zip(NAMES, (max(0, v) for v in values(number)), strict=True)) | bits(number)
        assert store.record(f"celeba/{number:06}").attributes == known
    (root / "list_attr_celeba.txt").unlink()
    alone = into(tmp_path, root, bits=lists)[1]
    assert alone.domains.attributes == BITS and alone.record("celeba/000002").attributes == bits(2)


def test_rg_units_division_without_its_lists(tmp_path: Path) -> None:
    store = into(tmp_path, write(tmp_path / "celeba"), split="rg-unit", attributes=["Young", "Male"])[1]
    assert [len(store.ids(split, "celeba")) for split in SPLITS] == [3, 0, 7]
    assert store.ids("test", "celeba")[-1] == "celeba/002000" and store.domains.attributes == ("Young", "Male")
    row = values(2001)
    assert store.record("celeba/002001").attributes == {name: max(0, row[NAMES.index(name)]) for name in ("Male", "Young")}


def test_validation_pictures_are_a_share_of_those_that_rg_unit_trains_on(tmp_path: Path) -> None:
    counts = Counter(held_out(f"{number:06}.jpg") for number in range(1, 202600))
    assert counts["test"] == 2000 and counts["val"] == pytest.approx(2006, abs=135)  # three deviations
    assert {held_out(f"{number:06}.jpg", val=0.999) for number in range(1, 2001)} == {"test"}
    root = write(tmp_path / "celeba", (1, 2, *range(2001, 2061)))
    small, more, other = (into(tmp_path, root, split="rg-unit", val=v, seed=s)[1] for v, s in ((0.2, 0), (0.5, 0), (0.5, 1)))
    parts = [{split: set(store.ids(split, "celeba")) for split in SPLITS} for store in (small, more, other)]
    assert all(part["test"] == {"celeba/000001", "celeba/000002"} for part in parts)
    assert all(part["train"] | part["val"] == {f"celeba/{n:06}" for n in range(2001, 2061)} for part in parts)
    assert 3 < len(parts[0]["val"]) < len(parts[1]["val"]) < 45 and parts[0]["val"] < parts[1]["val"] != parts[2]["val"]
    assert "0.2 val" in small.manifest.source
    store = into(tmp_path, root, split="rg-unit", val=0.3, labelled=0.3)[1]  # two hashes: labels say nothing of validation
    assert not np.isnan(store.attributes(split="val")[1]).any()
    known = ~np.isnan(store.attributes(split="train")[1]).any(axis=1)
    assert 0.1 < known.mean() < 0.5
    assert into(tmp_path, root, split="rg-unit", val=0)[1].ids("val", "celeba") == ()


def test_one_hair_colour_and_a_share_of_labels(tmp_path: Path) -> None:
    root = write(tmp_path / "celeba", tuple(range(1, 4)) + tuple(range(2001, 2061)))
    hairs = [NAMES.index(name) for name in BITS[:3]]
    single = {f"celeba/{n:06}" for n in (*range(1, 4), *range(2001, 2061)) if sum(values(n)[h] > 0 for h in hairs) == 1}
    store = into(tmp_path, root, split="rg-unit", one_hair=True)[1]
    assert {id for split in SPLITS for id in store.ids(split, "celeba")} == single and 10 < len(single) < 40
    sets = []
    for share in (0.25, 0.5):
        result, store = into(tmp_path, root, split="rg-unit", labelled=share, val=0)
        ids, table = store.attributes(split="train")
        known = {id for id, row in zip(ids, table, strict=True) if not np.isnan(row).any()}
        assert len(ids) == 60 and abs(len(known) / 60 - share) < 0.15
        assert {id for id, row in zip(ids, table, strict=True) if np.isnan(row).all()} == set(ids) - known
        assert f"{60 - len(known)} of 63 pictures have no attributes" in " ".join(result.warnings)
        assert not np.isnan(store.attributes(split="test")[1]).any()
        sets.append(known)
    assert sets[0] < sets[1]


def test_missing_broken_and_small_pictures_are_listed(tmp_path: Path) -> None:
    root = write(tmp_path / "celeba")
    images = root / "img_align_celeba"
    (images / "000001.jpg").unlink()
    (images / "000002.jpg").write_bytes((images / "000002.jpg").read_bytes()[:900])
    Image.new("RGB", (100, 218)).save(images / "002001.jpg")
    result, store = into(tmp_path, root)
    reasons = dict(result.skipped)
    assert reasons["img_align_celeba/000001.jpg"] == "the picture is missing"
    assert "cannot be decoded" in reasons["img_align_celeba/000002.jpg"]
    assert "100x218 pixels, too small to cut 178" in reasons["img_align_celeba/002001.jpg"] and len(store) == 7
    with pytest.raises(ValueError, match=r"000001\.jpg: the picture is missing"):
        ingest(root, tmp_path / "strict", strict=True)


def changed(root: Path, name: str, old: str, new: str) -> None:
    path = root / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


BROKEN: dict[str, tuple[str, str, str]] = {
    r"list_attr_celeba.txt:3 must be a picture and 40 times 1 or -1": ("list_attr_celeba.txt", "000001.jpg ", "000001.jpg  0 "),
    r"list_attr_celeba.txt:2 must name CelebA's attributes once each; Male": ("list_attr_celeba.txt", " Male ", " Female "),
    r"says 11 pictures in its first line and has 10: it is cut off": ("list_attr_celeba.txt", "10\n", "11\n"),
    r"no list of attributes: line 1 must be the number": ("list_attr_celeba.txt", "10\n", ""),
    r"list_attr_celeba.txt:4: 000001.jpg is there twice": ("list_attr_celeba.txt", "000002.jpg", "000001.jpg"),
    r"list_eval_partition.txt:2 must be a picture and 0, 1 or 2, not '000002.jpg 3'": (
        "list_eval_partition.txt",
        "000002.jpg 0",
        "000002.jpg 3",
    ),
    r"does not name 000003.jpg": ("list_eval_partition.txt", "000003.jpg 1\n", ""),
}


@pytest.mark.parametrize("message", BROKEN)
def test_lists_that_are_not_this_format(tmp_path: Path, message: str) -> None:
    root = write(tmp_path / "celeba")
    changed(root, *BROKEN[message])
    with pytest.raises(ValueError, match=message):
        ingest(root, tmp_path / "store")


def test_errors_name_what_would_have_worked(tmp_path: Path) -> None:
    root = write(tmp_path / "celeba")
    refused: dict[str, dict[str, Any]] = {
        "no attribute 'Smile'; did you mean 'Smiling'": {"attributes": ["Smile"]},
        "no division 'oficial'; did you mean 'official'": {"split": "oficial"},
        "labelled 0 above 0": {"labelled": 0},
        "official division names its validation pictures itself.*--split rg-unit": {"val": 0.1},
        "share of val 1 leaves no training pictures": {"val": 1, "split": "rg-unit"},
        "there is no list .*nowhere.lst": {"bits": [tmp_path / "nowhere.lst"]},
    }
    for message, options in refused.items():
        with pytest.raises(ValueError, match=message):
            ingest(root, tmp_path / "store", **options)
    four = tmp_path / "four.lst"
    four.write_text("000001.jpg\t0010\n")
    with pytest.raises(ValueError, match=r"four.lst:1 must be a picture, a tab and five bits \(Black_Hair, Blond_Hair"):
        ingest(root, tmp_path / "store", bits=[four])
    twice = write_bits(tmp_path / "twice.lst", (2001, 2001))
    with pytest.raises(ValueError, match=r"twice.lst:2: 002001.jpg is there twice"):
        ingest(root, tmp_path / "store", bits=[twice])
    one, two = write_bits(tmp_path / "one.lst", (2001,)), write_bits(tmp_path / "two.lst", (2001,))
    with pytest.raises(ValueError, match=r"two.lst names 002001.jpg, which another list has already"):
        ingest(root, tmp_path / "store", bits=[one, two])
    (root / "list_eval_partition.txt").unlink()
    with pytest.raises(ValueError, match=r"no .*Eval/list_eval_partition.txt.*take --split rg-unit"):
        ingest(root, tmp_path / "store")
    with pytest.raises(ValueError, match="is not CelebA: there is no .*img_align_celeba"):
        ingest(tmp_path / "elsewhere", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_the_command_reads_it(tmp_path: Path) -> None:
    root = write(tmp_path / "celeba")
    listed = write_bits(tmp_path / "all.lst", (2, 2001, 202599))
    words = [
        "data",
        "celeba",
        str(root),
        str(tmp_path / "s"),
        "--bits",
        str(listed),
        "--size",
        "64",
        "--attributes",
        "Male,Young",
        "--val",
        "0.5",
    ]
    made = CliRunner().invoke(cli.app, words, catch_exceptions=False)
    assert made.exit_code == 0 and "attributes Male, Young" in made.stdout, made.stderr
    store = Store.open(tmp_path / "s")
    assert [store.ids(split, "celeba") for split in SPLITS] == [("celeba/002001",), ("celeba/202599",), ("celeba/000002",)]
    assert store.record("celeba/000002").width == 64
