"""Bundles: what is written is what is read, whatever is broken is told, and a killed writer never leaves half a bundle."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import fs

from recollect import bundle as module
from recollect.batch import Domains
from recollect.bundle import Bundle, copy, list_bundles, localise, open_bundle, write
from recollect.config import Run, overlay, preset
from recollect.data.worlds import build_streets
from trainables.mguit import MGUIT

DOMAINS = Domains(("sunny", "night"), ("background", "car"), (), ("sky", "road"))
SMALL = {
    "width": 4,
    "critic_width": 4,
    "content_blocks": 1,
    "generator_blocks": 1,
    "memory": {"value_dim": 4, "items_per_class": {"background": 2, "car": 2}},
}
HISTORY = [{"step": 1, "loss/kl": 0.5}, {"step": 2, "scene_error": 0.25}]


@pytest.fixture(scope="module")
def run() -> Run:
    changed = overlay(preset("mguit:tiny", name="first", data={"domains": DOMAINS.names}), {"engine.steps": 2})
    model = changed.model.suited_to(DOMAINS.classes).model_dump() | {k: v for k, v in SMALL.items() if k != "memory"}
    model["memory"] |= SMALL["memory"]
    return Run.model_validate({**changed.model_dump(), "model": model})


@pytest.fixture(scope="module")
def state(run: Run) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return MGUIT(run.model, DOMAINS).state_dict()


@pytest.fixture
def first(tmp_path: Path, run: Run, state: dict[str, torch.Tensor]) -> Bundle:
    return write(tmp_path / "first", run, DOMAINS, state, metrics=HISTORY, parents={"data": "abc"}, card="# A card\n")


def test_what_is_written_is_read(first: Bundle, run: Run, state: dict[str, torch.Tensor]) -> None:
    opened = open_bundle(first.path)
    assert (opened.run, opened.domains, opened.metrics(), opened.digest) == (run, DOMAINS, HISTORY, first.digest)
    assert opened.manifest["parents"] == {"data": "abc"} and opened.manifest["method"] == "mguit"
    assert (opened.path / "README.md").read_text() == "# A card\n"
    for which in ("model", "best"):
        loaded = opened.state(which)
        assert loaded.keys() == state.keys() and all(torch.equal(loaded[name], state[name]) for name in state)
    built = opened.build()
    assert isinstance(built, MGUIT) and not built.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in built.state_dict().items())


def test_averaged_weights_lie_beside_and_are_best(tmp_path: Path, run: Run, state: dict[str, torch.Tensor]) -> None:
    ema = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    opened = write(tmp_path / "b", run, DOMAINS, state, ema=ema)
    name = next(name for name in state if name.endswith("weight"))
    assert torch.equal(opened.state("best")[name], state[name] + 1) and torch.equal(opened.state("ema")[name], state[name] + 1)
    assert torch.equal(opened.state("model")[name], state[name])
    assert torch.equal(opened.build().state_dict()[name], state[name] + 1)
    assert torch.equal(opened.build("model").state_dict()[name], state[name])
    with pytest.raises(ValueError, match=r"no weights 'emma'; did you mean 'ema'\?; known: best, ema, model"):
        opened.state("emma")


def test_weights_that_were_not_kept_are_not_made_up(first: Bundle) -> None:
    (first.path / "ema.safetensors").write_bytes((first.path / "model.safetensors").read_bytes())  # not in the manifest
    opened = open_bundle(first.path)
    with pytest.raises(ValueError, match="no weights 'ema'"):
        opened.state("ema")


def test_the_same_content_has_the_same_digest(tmp_path: Path, run: Run, state: dict[str, torch.Tensor]) -> None:
    same = [write(tmp_path / name, run, DOMAINS, state).digest for name in "ab"]
    assert same[0] == same[1] != write(tmp_path / "c", overlay(run, ["seed=9"]), DOMAINS, state).digest


def test_views_and_shared_tensors_can_be_written(tmp_path: Path, run: Run) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    opened = write(tmp_path / "b", run, DOMAINS, {"turned": base.T, "base": base, "part": base[1:, ::2]})
    assert torch.equal(opened.state()["turned"], base.T) and torch.equal(opened.state()["part"], base[1:, ::2])


def test_only_text_and_safetensors_inside(first: Bundle) -> None:
    assert {path.name for path in first.path.iterdir()} == {
        *("config.json", "model.safetensors", "metrics.jsonl", "manifest.json", "README.md")
    }
    assert {path.suffix for path in first.path.iterdir()} <= {".json", ".jsonl", ".md", ".safetensors"}
    for name in ("config.json", "manifest.json"):
        json.loads((first.path / name).read_text())


def flip(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = bytearray((path / name).read_bytes())
        content[len(content) // 2] ^= 1
        (path / name).write_bytes(content)

    return change


def manifest(**changes: Any) -> Callable[[Path], None]:
    """Change the manifest; with `files`, forge its digest too, as somebody with bad intentions would."""

    def change(path: Path) -> None:
        content = json.loads((path / "manifest.json").read_text())
        content["files"] |= changes.pop("files", {})
        content |= changes
        content["digest"] = module._digest(content["files"])
        (path / "manifest.json").write_text(json.dumps(content))

    return change


def text(name: str, content: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        (path / name).write_text(content)

    return change


def drop_from_manifest(path: Path) -> None:
    content = json.loads((path / "manifest.json").read_text())
    del content["files"]["model.safetensors"]
    (path / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("breakage", "says"),
    [
        (flip("model.safetensors"), r"model\.safetensors is not the file that was written"),
        (flip("config.json"), r"config\.json is not the file that was written"),
        (flip("metrics.jsonl"), r"metrics\.jsonl is not the file that was written"),
        (lambda path: (path / "model.safetensors").unlink(), r"model\.safetensors is missing"),
        (lambda path: (path / "README.md").unlink(), r"README\.md is missing"),
        (lambda path: (path / "manifest.json").unlink(), r"is no bundle: it has no manifest\.json"),
        (manifest(files={"../evil": "0"}), r"names '\.\./evil', which is no plain file name"),
        (manifest(files={"/etc/passwd": "0"}), r"names '/etc/passwd', which is no plain file name"),
        (drop_from_manifest, r"manifest\.json is not the file that was written"),
        (manifest(format=2), r"has bundle format 2; this version of recollect reads 1"),
        (manifest(format=None), r"has bundle format None"),
        (text("manifest.json", "{"), r"is no bundle: its manifest\.json is not one of a bundle"),
        (text("manifest.json", "[1]"), r"is no bundle: its manifest\.json is not one of a bundle"),
        (text("manifest.json", "{}"), r"is no bundle: its manifest\.json is not one of a bundle"),
    ],
)
def test_what_is_broken_is_told(first: Bundle, breakage: Callable[[Path], None], says: str) -> None:
    breakage(first.path)
    with pytest.raises(ValueError, match=says) as caught:
        open_bundle(first.path)
    assert str(first.path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["os:system", "trainables.mguit:MGUIT", "no-such-method", ""])
def test_a_method_outside_the_catalogue_is_never_imported(first: Bundle, name: str) -> None:
    config = json.loads((first.path / "config.json").read_text())
    config["model"] = {"name": name, "command": "touch /tmp/x"}
    (first.path / "config.json").write_text(json.dumps(config))
    manifest(files={"config.json": module._sha256(first.path / "config.json")})(first.path)
    before = set(sys.modules)
    with pytest.raises(ValueError, match=rf"config\.json is not valid: model: there is no method '{name}'") as caught:
        open_bundle(first.path)
    assert "\n" not in str(caught.value) and set(sys.modules) == before


def test_what_is_no_bundle_is_told_with_what_is_inside(tmp_path: Path, first: Bundle) -> None:
    with pytest.raises(ValueError, match=r"is no bundle: it has no manifest\.json; bundles inside it: first$"):
        open_bundle(tmp_path)
    with pytest.raises(ValueError, match=r"is no bundle: it has no manifest\.json$"):
        open_bundle(tmp_path / "nothing")
    build_streets(tmp_path / "store", size=16, train=1, val=0, test=0)
    with pytest.raises(ValueError, match=r"store is no bundle: its manifest\.json is not one of a bundle"):
        open_bundle(tmp_path / "store")


def test_a_folder_of_bundles_is_listed(tmp_path: Path, first: Bundle, run: Run, state: dict[str, torch.Tensor]) -> None:
    write(tmp_path / "another", run, DOMAINS, state)
    os.rename(write(tmp_path / "x", run, DOMAINS, state).path, tmp_path / ".x-killed")
    (tmp_path / "empty").mkdir()
    assert [path.name for path in list_bundles(tmp_path)] == ["another", "first"]


def test_only_a_bundle_gives_way_to_a_bundle(tmp_path: Path, first: Bundle, run: Run, state: dict[str, torch.Tensor]) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear").write_text("keep me")
    (tmp_path / "file").write_text("keep me too")
    for place in ("letters", "file", "letters/dear"):
        with pytest.raises((ValueError, NotADirectoryError), match="is no bundle; choose another place"):
            write(tmp_path / place, run, DOMAINS, state)
        with pytest.raises(ValueError, match="is no bundle; choose another place"):
            copy(first.path, str(tmp_path / place))
    assert (tmp_path / "letters" / "dear").read_text() == "keep me" and (tmp_path / "file").read_text() == "keep me too"
    (tmp_path / "empty").mkdir()
    assert write(tmp_path / "empty", run, DOMAINS, state).digest == open_bundle(tmp_path / "empty").digest


def test_a_write_that_fails_leaves_the_old_one_and_no_rubbish(first: Bundle, run: Run) -> None:
    def rows() -> Any:
        yield {"step": 1}
        raise OSError("the disk is full")

    before = sorted(path.name for path in first.path.parent.iterdir())
    with pytest.raises(OSError, match="the disk is full"):
        write(first.path, run, DOMAINS, {}, metrics=rows())
    assert open_bundle(first.path).digest == first.digest
    assert sorted(path.name for path in first.path.parent.iterdir()) == before


def test_replacing_leaves_only_the_new_one(first: Bundle, run: Run, state: dict[str, torch.Tensor]) -> None:
    extra = {"training.json": b"{}"}
    write(first.path, run, DOMAINS, state, extra=extra)
    second = write(first.path, overlay(run, ["seed=1"]), DOMAINS, state)
    assert open_bundle(first.path).digest == second.digest != first.digest
    assert not (first.path / "training.json").exists()
    assert [path.name for path in first.path.parent.iterdir()] == ["first"]


@pytest.mark.parametrize("place", ["plain/copy", "file://{}/by/uri"])
def test_a_copy_is_equal(tmp_path: Path, first: Bundle, place: str) -> None:
    target = place.format(tmp_path) if "{}" in place else str(tmp_path / place)
    for _ in range(2):  # the second time over the first
        copy(first.path, target)
        assert open_bundle(target).digest == first.digest
        assert open_bundle(target).metrics() == HISTORY
    copy(target, target)
    assert open_bundle(target).digest == first.digest  # onto itself: nothing happens
    assert first.path.joinpath("config.json").exists()


def test_a_copy_through_a_filesystem_that_is_not_a_disk(
    tmp_path: Path, first: Bundle, run: Run, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    mock, _ = fs.FileSystem.from_uri("mock:///")  # Arrow's own, in memory; each such URI is a new one, so this one is shared
    real = module.filesystem_of
    monkeypatch.setattr(
        module, "filesystem_of", lambda uri: (mock, str(uri)[8:]) if str(uri).startswith("mock:///") else real(uri)
    )
    copy(first.path, "mock:///runs/one")
    opened = open_bundle("mock:///runs/one")
    assert opened.digest == first.digest and opened.path != first.path and opened.build() is not None
    second = write(tmp_path / "second", overlay(run, ["seed=4"]), DOMAINS, state, extra={"training.json": b"{}"})
    copy(second.path, "mock:///runs/one")
    copy("mock:///runs/one", str(tmp_path / "home"))
    assert open_bundle(tmp_path / "home").digest == second.digest
    assert localise("mock:///runs/one") != localise("mock:///runs/one")
    mock.create_dir("letters")
    with mock.open_output_stream("letters/dear") as stream:
        stream.write(b"keep me")
    with pytest.raises(ValueError, match="is no bundle; choose another place"):
        copy(first.path, "mock:///letters")


def test_half_a_copy_is_no_bundle_and_can_be_done_again(tmp_path: Path, first: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(fs.LocalFileSystem):  # type: ignore[misc]
        def open_output_stream(self, path: str, **options: Any) -> Any:
            if path.endswith("model.safetensors"):
                raise OSError("the wire was cut")
            return super().open_output_stream(path, **options)

    target = str(tmp_path / "copy")
    with monkeypatch.context() as patch:
        patch.setattr(module, "filesystem_of", lambda uri: (Broken() if str(uri) == target else fs.LocalFileSystem(), str(uri)))
        with pytest.raises(OSError, match="the wire was cut"):
            copy(first.path, target)
    assert (tmp_path / "copy" / "config.json").exists()
    with pytest.raises(ValueError, match="is no bundle"):
        open_bundle(target)
    copy(first.path, target)
    assert open_bundle(target).digest == first.digest


KILLS = """
import ctypes, json, os, random, signal, sys, time
from pathlib import Path
import torch
from recollect import bundle

opened = bundle.open_bundle(sys.argv[1])
exchange, digest = bundle._exchange, bundle._sha256

def write(number):
    state = {name: torch.full((300, 100), float(number)) for name in "abc"}
    bundle.write(opened.path, opened.run.model_copy(update={"seed": number}), opened.domains, state)

def rewrite_for_ever():
    number = 0
    while True:
        write(number := number + 1)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def killed_while_writing():
    bundle._sha256 = lambda path: die() if path.name == "model.safetensors" else digest(path)
    write(1001)

def killed_before_the_exchange():
    bundle._exchange = lambda one, other: die()
    write(1002)

def killed_after_the_exchange():
    bundle._exchange = lambda one, other: die() if exchange(one, other) else None
    write(1003)

def life(body, seconds):
    pid = os.fork()
    if not pid:
        body()
        os._exit(3)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    now = bundle.open_bundle(opened.path, verify=True)
    values = sorted({float(value) for value in now.state()["a"].unique()})
    left = sum(path.name.startswith(".") for path in opened.path.parent.iterdir())
    print(json.dumps({"body": body.__name__, "status": status, "seed": now.run.seed, "values": values, "left": left}), flush=True)

generator = random.Random(0)
for _ in range(12):
    life(rewrite_for_ever, generator.uniform(0.005, 0.08))
for body in (killed_while_writing, killed_before_the_exchange, killed_after_the_exchange):
    life(body, None)
"""


@pytest.fixture(scope="module")
def kills(tmp_path_factory: pytest.TempPathFactory, run: Run) -> tuple[Path, list[dict[str, Any]]]:
    """Processes that rewrite one bundle, killed; what the next reader found after each. One interpreter is parent to them all."""
    path = write(tmp_path_factory.mktemp("kills") / "last", run, DOMAINS, {"a": torch.zeros(3)}).path
    if not exchanges(path.parent):
        pytest.skip("this filesystem cannot exchange directories")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(["platform", "."]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLS, str(path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return path, [json.loads(line) for line in done.stdout.splitlines()]


def test_a_writer_killed_at_any_moment_leaves_the_old_or_the_new(kills: tuple[Path, list[dict[str, Any]]]) -> None:
    path, found = kills
    anywhere = [row for row in found if row["body"] == "rewrite_for_ever"]
    assert len(anywhere) == 12
    for row in found:
        assert row["status"] == -signal.SIGKILL
        assert row["values"] == [row["seed"]]  # weights and configuration are of the same writing
    assert len({row["seed"] for row in anywhere}) > 3 and anywhere[-1]["left"] > 1  # they did write, and did die in the middle
    assert list_bundles(path.parent) == [path]  # what they left half-done is not taken for bundles


def test_killed_at_the_worst_moments(kills: tuple[Path, list[dict[str, Any]]]) -> None:
    last, *worst = kills[1][-4:]
    seeds = {row["body"]: row["seed"] for row in worst}
    assert seeds == {
        "killed_while_writing": last["seed"],
        "killed_before_the_exchange": last["seed"],
        "killed_after_the_exchange": 1003,
    }


def exchanges(folder: Path) -> bool:
    """Whether the kernel can exchange two directories here; asked without the code under test."""
    for name in ("x", "y"):
        (folder / name).mkdir()
    ask = getattr(ctypes.CDLL(None), "renameat2", None)
    done = ask is not None and ask(-100, bytes(folder / "x"), -100, bytes(folder / "y"), 2) == 0
    for name in ("x", "y"):
        (folder / name).rmdir()
    return done


def test_without_the_exchange_the_error_says_where_the_old_one_is(
    first: Bundle, run: Run, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_exchange", lambda one, other: False)
    assert open_bundle(write(first.path, overlay(run, ["seed=1"]), DOMAINS, state).path).run.seed == 1
    assert [path.name for path in first.path.parent.iterdir()] == ["first"]
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if target == first.path:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        write(first.path, overlay(run, ["seed=2"]), DOMAINS, state)
    with pytest.raises(ValueError, match="its writer was killed while replacing it, the one before is") as caught:
        open_bundle(first.path)
    assert open_bundle(str(caught.value).rpartition(" ")[2]).run.seed == 1


def test_a_reader_beside_a_writer_sees_whole_bundles(first: Bundle, run: Run, state: dict[str, torch.Tensor]) -> None:
    stop, seeds, names = threading.Event(), list[int](), list[float]()

    def rewrite() -> None:
        while not stop.is_set():
            number = len(names) + 1
            write(first.path, overlay(run, {"seed": number}), DOMAINS, {"a": torch.full((50,), float(number))})
            names.append(number)

    thread = threading.Thread(target=rewrite)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while len(set(seeds)) < 10 and time.monotonic() < deadline:
            seeds.append(open_bundle(first.path, verify=True).run.seed)
    finally:
        stop.set()
        thread.join()
    assert seeds == sorted(seeds) and len(set(seeds)) == 10
