"""The demo's whole line, shrunk: on folders of pictures without boxes or truth, through to the served picture."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from recollect.bundle import open_bundle
from recollect.data.worlds import streets

ROOT = Path(__file__).parents[2]


def write_folders(folder: Path, count: int = 14) -> None:
    """Pictures of two domains of the streets world as plain JPEG files: nothing says what is on them. One is broken."""
    for index, domain in enumerate(("sunny", "night")):
        for name, offset in (("train", 0), ("test", 500)):
            place = folder / name / domain
            place.mkdir(parents=True)
            for number in range(count if name == "train" else 4):
                seed = 1000 * index + offset + number
                style = streets.draw_style(domain, np.random.default_rng(seed))
                picture = streets.render(streets.draw_scene(seed, 80), style)
                Image.fromarray(picture).save(place / f"{number}.jpg", quality=92)
    (folder / "train" / "sunny" / "broken.jpg").write_bytes(b"\xff\xd8 no picture")


@pytest.mark.slow  # a minute; CI runs it by name
def test_the_line_runs_on_folders_through_to_the_served_picture(tmp_path: Path) -> None:
    write_folders(tmp_path / "photos")
    out = tmp_path / "demo"  # the demo gets it as a relative path, as users do
    arguments = ["--data", "photos", "--out", "demo", "--trials", "2", "--trial-steps", "3", "--steps", "6"]
    result = subprocess.run(
        [sys.executable, "-m", "experiments.demo", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=290,
        env={**os.environ, "PYTHONPATH": f"{ROOT}/platform:{ROOT}"},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "background class alone" in result.stdout and "feature_distance@pyramid" in result.stdout
    assert "broken.jpg" in result.stdout
    winner = open_bundle(out / "winner")
    assert winner.domains.classes == ("background",) and winner.run.engine.steps == 6
    frame = pd.read_parquet(out / "results.parquet")
    assert {"content_kept", "feature_distance@pyramid"} <= set(frame["metric"]) and "scene_error" not in set(frame["metric"])
    with Image.open(out / "served.png") as served, Image.open(out / "served-input.png") as posted:
        assert served.size == posted.size
    page = (out / "report.html").read_text()
    assert "http://" not in page and "https://" not in page
    assert len(pd.read_parquet(out / "search" / "trials.parquet")) == 2


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.demo", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "demo")]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": f"{ROOT}/platform:{ROOT}"}
    )
    assert result.returncode == 2 and "trainA" in result.stderr and "Traceback" not in result.stderr
