"""What several tests of the platform train on."""

from __future__ import annotations

import pytest

from recollect.data.store import Store
from recollect.data.worlds import build_streets


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A streets world that trains in moments; modules that need another one define their own `store`."""
    uri = tmp_path_factory.mktemp("streets") / "store"
    build_streets(uri, size=32, train=12, val=4, test=4, references=3)
    return Store.open(uri)
