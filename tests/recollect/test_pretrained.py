"""Published weights are read by path and SHA-256; everything that can be wrong is said with what to do about it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from recollect.pretrained import WeightsFile, read_weights

TENSORS = {"features.0.weight": torch.arange(6.0).reshape(2, 3), "features.0.bias": torch.ones(2), "head.weight": torch.ones(1)}


@pytest.fixture
def file(tmp_path: Path) -> WeightsFile:
    path = tmp_path / "net.safetensors"
    save_file(TENSORS, path)
    return WeightsFile(path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def read(file: WeightsFile, prefix: str = "") -> dict[str, torch.Tensor]:
    return read_weights(file, "model.net", "of a net from its makers", prefix)


@pytest.mark.parametrize("prefix", ["", "features.", "head."])
def test_tensors_come_back_without_their_prefix(file: WeightsFile, prefix: str) -> None:
    found = read(file, prefix)
    expected = {name.removeprefix(prefix): tensor for name, tensor in TENSORS.items() if name.startswith(prefix)}
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_a_digest_may_be_written_in_capitals(file: WeightsFile) -> None:
    assert read(WeightsFile(path=file.path, sha256=file.sha256.upper()))


def test_what_is_missing_is_named(file: WeightsFile) -> None:
    with pytest.raises(ValueError, match=r"model\.net\.path is empty.*of a net from its makers.*model\.net\.sha256="):
        read(WeightsFile())
    with pytest.raises(ValueError, match=r"no file '/nowhere/net'.*of a net from its makers"):
        read(WeightsFile(path="/nowhere/net", sha256="0" * 64))
    with pytest.raises(ValueError, match=r"no tensors named body\.\.\."):
        read(file, "body.")


def test_another_file_than_the_run_says_is_refused(file: WeightsFile) -> None:
    with pytest.raises(ValueError, match=f"must name: model.net.sha256={file.sha256}"):
        read(WeightsFile(path=file.path))
    content = bytearray(Path(file.path).read_bytes())
    content[-1] ^= 1
    Path(file.path).write_bytes(content)
    with pytest.raises(ValueError, match=f"SHA-256 of {file.path} is .*, not {file.sha256}"):
        read(file)


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save(TENSORS, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=r"net\.pth is no safetensors file .*of a net from its makers"):
        read(WeightsFile(path=str(path), sha256=digest))
