"""Where a run's numbers and pictures go: the history (JSON lines), TensorBoard, the console, and MLflow where it is asked for."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from recollect.evaluation.grids import save_png
from recollect.training.mlflow import Sink

logger = logging.getLogger("recollect")

SAMPLES = 48  # grids of a run: a hundred kilobytes each, and every checkpoint on Ray copies them


class Tracker:
    """Writes `metrics.jsonl`, `tensorboard/` and `samples/` into a run's directory. Only rank 0 has one.

    Args:
        directory: the run's directory.
        steps: the run's last step, for the time to go.
        start: the step training starts from; rows after it are dropped (they will be computed again).
        history: the rows up to `start`.
        devices: how many processes train together, each on a device of its own.
        sink: an MLflow run that gets the rows as well.
    """

    def __init__(
        self,
        directory: Path,
        steps: int,
        start: int = 0,
        history: list[dict[str, Any]] | None = None,
        devices: int = 1,
        sink: Sink | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory, self.steps, self.devices, self.history = directory, steps, devices, list(history or [])
        self._path = directory / "metrics.jsonl"
        self._path.write_text("".join(json.dumps(row) + "\n" for row in self.history))
        self._board = _tensorboard(directory / "tensorboard", start)
        self._begin, self._start, self._sink = time.monotonic(), start, sink
        self._hours = max((float(row.get("device_hours", 0.0)) for row in self.history), default=0.0)
        for step, file in self._samples().items():
            if step > start:  # it will be drawn again
                file.unlink()

    def losses(self, step: int, terms: Mapping[str, float], rate: float, pictures: float) -> None:
        """One interval's mean terms, learning rate and pictures per second; with them what the run has cost so far.

        `device_hours` are the hours of all devices since the run began, over all its resumptions, evaluation included.
        """
        hours = self._hours + (time.monotonic() - self._begin) * self.devices / 3600
        facts = {"rate": rate, "images_per_s": pictures, "device_hours": hours}
        self._row(step, {**{f"loss/{name}": value for name, value in terms.items()}, **facts})
        done = step - self._start
        left = (time.monotonic() - self._begin) / max(done, 1) * (self.steps - step)
        shown = "  ".join(f"{name} {value:.3f}" for name, value in terms.items())
        logger.info("step %d/%d  %.1f images/s  %s  %s left", step, self.steps, pictures, shown, duration(left))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """What validation found."""
        self._row(step, values)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items() if "/" not in name)
        logger.info("step %d/%d  validation: %s", step, self.steps, shown)

    def pictures(self, step: int, grid: Tensor) -> None:
        """A sample grid (3, H, W) uint8. At most SAMPLES are kept, spread over the run: the first, the last, and between them."""
        folder = self.directory / "samples"
        folder.mkdir(exist_ok=True)
        save_png(grid, folder / f"step-{step:06d}.png")
        kept = self._samples()
        if len(kept) > SAMPLES:
            steps = list(kept)
            densest = min(range(1, len(steps) - 1), key=lambda place: steps[place + 1] - steps[place - 1])
            kept[steps[densest]].unlink()
        if self._board is not None:
            self._board.add_image("samples", grid, step)

    def _samples(self) -> dict[int, Path]:
        """The sample grids that there are, by step."""
        return dict(sorted((int(file.stem[5:]), file) for file in (self.directory / "samples").glob("step-*.png")))

    def close(self, status: str = "FINISHED", card: str = "") -> None:
        """Flush TensorBoard; tell MLflow how the run ended (FINISHED or FAILED), with its card."""
        if self._board is not None:
            self._board.close()
        if self._sink is not None:
            self._sink.close(status, card)

    def _row(self, step: int, values: Mapping[str, float]) -> None:
        row = {"step": step, **values}
        self.history.append(row)
        with self._path.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        if self._sink is not None:
            self._sink.row(step, values)


def _tensorboard(folder: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # a machine with torch alone trains without it
        logger.info("tensorboard is not installed: curves are in metrics.jsonl only (pip install 'recollect[train]')")
        return None
    return SummaryWriter(str(folder), purge_step=start + 1 if start else None)


def duration(seconds: float) -> str:
    """A short duration for people.

    >>> duration(42), duration(605), duration(7300)
    ('42s', '10m05s', '2h01m')
    """
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    return f"{seconds // 60}m{seconds % 60:02d}s" if seconds < 3600 else f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
