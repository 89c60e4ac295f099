"""A trial goes on although the checkpoint that Tune remembers is gone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow import fs
from ray import tune
from ray.tune.trainable.function_trainable import FunctionTrainable

from recollect.search.trials import _restoring


@pytest.mark.parametrize(
    ("whole", "half", "expected"),
    [
        ((0, 1), (), 0),  # as Tune says, though there is a newer one: what was reported in between is reported again
        ((1, 2), (3,), 2),
        ((), (1,), None),
        ((), (), None),
    ],
)
def test_the_newest_whole_checkpoint_takes_the_place_of_one_that_is_gone(
    whole: tuple[int, ...], half: tuple[int, ...], expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (*whole, *half):
        last = tmp_path / "trial" / f"checkpoint_{number:06d}" / "last"
        last.mkdir(parents=True)
        (last / "manifest.json").write_text('{"files": {"model.safetensors": "a digest"}}')
        if number in whole:
            (last / "model.safetensors").touch()
    restored: list[str] = []
    monkeypatch.setattr(FunctionTrainable, "restore", lambda self, result: restored.append(result.checkpoint.path))
    named = str(tmp_path / "trial" / "checkpoint_000000")
    result: Any = SimpleNamespace(checkpoint=tune.Checkpoint(named, fs.LocalFileSystem()), metrics={"training_iteration": 1})
    kind = _restoring(lambda config: None)
    kind.restore(kind.__new__(kind), result)
    assert restored == ([] if expected is None else [str(tmp_path / "trial" / f"checkpoint_{expected:06d}")])
