"""`recollect deploy winner`: which bundle, which index, and what is written for `serve deploy`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import yaml
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve.schema import ServeDeploySchema

from recollect import cli
from serve import run, winner
from serve.app import build
from serve.guard import digest_of
from tests.serve.guided import write_guided
from tests.serve.translators import write_bundle

TOKEN = "a-token-of-many-letters"


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """What a search leaves."""
    storage = tmp_path / "search"
    storage.mkdir()
    (storage / "search.json").write_text("{}")
    shutil.copytree(write_bundle(tmp_path), storage / "winner")
    return storage


def test_the_winner_of_a_search(storage: Path, tmp_path: Path) -> None:
    assert winner.find("winner", str(storage)) == str(storage / "winner")
    assert winner.find(str(storage / "winner"), "") == str(storage / "winner")
    with pytest.raises(ValueError, match="--from STORAGE"):
        winner.find("winner", "")
    with pytest.raises(ValueError, match="no search was stored there"):
        winner.find("winner", str(tmp_path / "nothing"))
    (storage / "winner").rename(storage / "third")
    with pytest.raises(ValueError, match=r"the search has not ended; bundles inside it: .*third"):
        winner.find("winner", str(storage))
    with pytest.raises(ValueError, match="goes with `winner`"):
        winner.find("x", str(storage))


def test_its_index_is_the_one_that_it_was_trained_with(storage: Path, tmp_path: Path) -> None:
    guided = write_guided(tmp_path / "guided")
    assert winner.index_of(str(guided.bundle), "") == str(guided.index)
    assert winner.index_of(str(guided.bundle), "s3://bucket/index") == "s3://bucket/index"
    assert winner.index_of(str(storage / "winner"), "") == ""


def test_what_a_server_is_given_is_checked_before_it_starts(storage: Path, tmp_path: Path) -> None:
    guided, other = write_guided(tmp_path / "guided"), write_guided(tmp_path / "other", name="other")
    plain = str(storage / "winner")
    assert run._index([str(guided.bundle)], "") == str(guided.index)
    assert run._index([plain, str(guided.bundle)], "") == str(guided.index)
    assert run._index([str(guided.bundle), plain, str(other.bundle)], "") == str(guided.index)  # of the same weights
    assert run._index([plain], "") == ""
    with pytest.raises(ValueError, match="no neighbours guide"):
        run._index([plain], str(guided.index))
    with pytest.raises(ValueError, match="there is no index"):
        run._index([str(guided.bundle)], str(tmp_path / "nothing"))


def test_what_is_written_is_what_serve_deploy_takes(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "winner.yaml"
    words = [
        "recollect",
        "deploy",
        "winner",
        "--from",
        str(storage),
        "--write",
        str(out),
        "--set",
        "replicas=3",
        "--port",
        "9000",
    ]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2 and "RECOLLECT_TOKEN" in capsys.readouterr().err and not out.exists()
    monkeypatch.setenv("RECOLLECT_TOKEN", TOKEN)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    written = yaml.safe_load(out.read_text())
    application = ServeDeploySchema.model_validate(written).applications[0]
    assert TOKEN not in out.read_text() and application.args["token_sha256"] == digest_of(TOKEN)
    assert application.args["bundle"] == str(storage / "winner") and application.args["replicas"] == 3
    assert written["http_options"]["port"] == 9000
    call_user_app_builder_with_args_if_necessary(build, application.args)
