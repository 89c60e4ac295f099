"""Finding and starting Ray: a private cluster ends with its driver, and a joined one runs this driver's code, not its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

OWNER = """
import sys
from recollect.cluster import connect
print("address", connect("local", cpus=1, dashboard=False).address, flush=True)
sys.stdin.read()
"""

GUEST = """
import sys
from recollect.cluster import connect, require
import ray
found = connect(sys.argv[1])

@ray.remote
def where():
    import recollect, trainables, serve, experiments, recollect.config
    return recollect.__file__, recollect.config.find_method("mguit").__name__, serve.__file__

print("local", found.local, "cpus", found.cpus)
for path in ray.get(where.remote()):
    print("worker", path)
try:
    require(5, 0, "this")
except ValueError as error:
    print("refused", error)
"""


def run(code: str, folder: Path, *arguments: str, **environment: str) -> str:
    known = {**os.environ, "PYTHONPATH": f"{ROOT}/platform:{ROOT}", **environment}
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=known, timeout=120, cwd=folder
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("by, tokens", [("argument", {}), ("RAY_ADDRESS", {"RAY_AUTH_MODE": "disabled"})])
def test_a_joined_cluster_runs_the_code_of_the_driver(by: str, tokens: dict[str, str], tmp_path: Path) -> None:
    known = {**os.environ, "PYTHONPATH": f"{ROOT}/platform:{ROOT}", **tokens}
    pipe = subprocess.PIPE
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdin=pipe, stdout=pipe, text=True, env=known)
    try:
        assert owner.stdout is not None
        address = next(line.split()[1] for line in owner.stdout if line.startswith("address"))
        if by == "argument":
            output = run(GUEST, tmp_path, address)
        else:
            output = run(GUEST.replace("connect(sys.argv[1])", "connect()"), tmp_path, RAY_ADDRESS=address)
    finally:
        assert owner.stdin is not None
        owner.stdin.close()
        owner.wait(60)
    assert "local False cpus 1.0" in output and "worker MGUIT" in output
    shipped = [line.split()[1] for line in output.splitlines() if line.startswith("worker /")]
    assert len(shipped) == 2 and all("runtime_resources/py_modules_files" in path for path in shipped)
    assert "refused this needs 5 CPUs and 0 GPUs; the cluster has 1" in output
