"""A bundle that embeds pictures, and a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from recollect.data.store import Store
from tests.recollect.retrieval.embedders import CATALOGUE, write_colours, write_records


@pytest.fixture(scope="module", autouse=True)
def _catalogue() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECOLLECT_CATALOGUE", CATALOGUE)
        yield


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory, _catalogue: None) -> Path:
    return write_colours(tmp_path_factory.mktemp("bundles") / "colours")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_records(tmp_path_factory.mktemp("stores") / "pictures")
