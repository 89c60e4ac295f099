"""`ray up`, `ray submit` and `recollect serve` on three hosts, as a user types them: `make test-cluster`.

What is run is the repository's own `cluster.local.yaml`, with the lines changed that it marks. CLUSTER_PAGE names a file for a
page about what happened.
"""

from __future__ import annotations

import io
import json
import os
import platform
import pty
import re
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
import ray
from PIL import Image

from recollect.bundle import open_bundle
from recollect.data.store import Store
from tests.cluster.conftest import ADDRESSES, HOSTS_SH, NAMES, ROOT, Hosts

TOKEN = "a-token-of-this-test-alone"
SERVE = "recollect serve $RECOLLECT_STORAGE/winner --address auto"
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def submitted(hosts: Hosts) -> Iterator[str]:
    """The output of the search, from nothing: `ray up`, then at once `ray submit`. At the end a page about all tests."""
    hosts.ray("up", "-y", str(hosts.config))
    output = plain(hosts.ray("submit", str(hosts.config), "experiments/tune_memory.py", "--", "--small").stdout)
    print(output)
    yield output
    page = os.environ.get("CLUSTER_PAGE")
    if page and {"served", "died"} <= hosts.notes.keys():
        write_page(hosts, output, Path(page))


def plain(text: str) -> str:
    """Without colours and the launcher's own lines."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).replace("\r", "").splitlines()
    return "\n".join(line for line in lines if not re.match(r"\d{4}-\d\d-\d\d .*(WARN|INFO)", line))


def test_the_search_ran_on_several_hosts_and_left_its_results(hosts: Hosts, submitted: str) -> None:
    ended = r"[^\n]*Exception ignored in(?:.*\n)*?[^\n]*SystemExit: \d+"  # a trial that was stopped while it tidied up: no error
    assert "minimises scene_error" in submitted and "winner:" in submitted
    assert "Traceback" not in re.sub(ended, "", submitted)
    trials = pd.read_parquet(hosts.storage / "trials.parquet")
    assert len(trials) == 4 and trials["objective"].notna().all() and (trials["status"] == "finished").any()
    assert len(set(trials["host"])) >= 2 and set(trials["host"]) <= set(NAMES)
    winner = open_bundle(hosts.storage / "winner")
    assert winner.digest in set(pd.read_parquet(hosts.storage / "test.parquet")["bundle"])
    assert (hosts.storage / "study.journal").stat().st_size > 0


def test_strangers_are_kept_out(hosts: Hosts, submitted: str) -> None:
    script = "import ray; ray.init(address='auto'); print('in')"
    command = f'RAY_AUTH_MODE=disabled python -c "{script}"'
    assert "in\n" not in hosts.ray("exec", str(hosts.config), command, check=False, timeout=120).stdout.replace("\r", "")


def test_the_winner_is_served_from_the_cluster(hosts: Hosts, submitted: str) -> None:
    store = Store.open(hosts.storage / "streets-64")
    picture = store.record(store.ids("test", "sunny")[0]).image
    serving = Terminal(hosts, "ray", "exec", str(hosts.config), f"RECOLLECT_TOKEN={TOKEN} {SERVE}")
    try:
        said = serving.read(until="Ctrl-C stops it")
        url = f"http://{ADDRESSES[0]}:8000"
        assert f"is served at {url}" in said, said
        asked: dict[str, Any] = {"files": {"image": picture}, "data": {"target": "night"}, "timeout": 60, "trust_env": False}
        assert httpx.post(f"{url}/v1/translate", **asked).status_code == 401  # a stranger's
        known: dict[str, Any] = {"headers": {"Authorization": f"Bearer {TOKEN}"}}
        answer = httpx.post(f"{url}/v1/translate", **asked, **known)
        assert answer.status_code == 200, answer.text
        assert Image.open(io.BytesIO(answer.content)).size == (64, 64)
        card = httpx.get(f"{url}/v1/model", timeout=60, trust_env=False, **known).json()
        assert card["digest"] == open_bundle(hosts.storage / "winner").digest
        serving.type("\x03")  # Ctrl-C, which ssh carries to the terminal there
        assert "stopping ..." in serving.read() and serving.process.wait(60) == 0
        hosts.notes["served"] = (
            f"`POST {url}/v1/translate` answered 401 without the token and with it 200, a PNG of\n  {len(answer.content)} bytes; "
            "Ctrl-C ended it"
        )
    finally:
        serving.close()
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{url}/v1/model", timeout=10, trust_env=False).raise_for_status()


class Terminal:
    """A command at a terminal of its own. Where ssh has none, the one that it makes over there takes Ctrl-C for a character."""

    def __init__(self, hosts: Hosts, *words: str) -> None:
        self.ours, theirs = pty.openpty()
        how = {"cwd": ROOT, "env": hosts.environment, "stdin": theirs, "stdout": theirs, "stderr": theirs}
        self.process = subprocess.Popen(words, start_new_session=True, **how)
        os.close(theirs)

    def read(self, until: str = "", within_s: float = 120) -> str:
        """What it says until it says `until`, or until it ends."""
        said, deadline = "", time.monotonic() + within_s
        while not until or until not in said:
            assert select.select([self.ours], [], [], max(0, deadline - time.monotonic()))[0], f"in {within_s} s: {plain(said)}"
            try:
                said += os.read(self.ours, 65536).decode(errors="replace")
            except OSError:  # EIO: nobody has it open any more
                assert not until, f"it ended: {plain(said)}"
                break
        return plain(said)

    def type(self, keys: str) -> None:
        os.write(self.ours, keys.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)


def test_a_host_dies_and_the_search_ends_all_the_same(hosts: Hosts, submitted: str) -> None:
    storage, victim = hosts.storage / "second", NAMES[2]
    small = ["--trials", "4", "--steps", "40", "--set", "model.width=8", "--set", "model.critic_width=8"]
    small += ["--scheduler", "none", "--seeds", "0"]  # every trial runs to its end, that on the dead host as well
    words = ["ray", "submit", str(hosts.config), "experiments/tune_memory.py", "--", "--small", *small, "--storage", str(storage)]
    searching = subprocess.Popen(words, **hosts.terminal())
    try:
        deadline = time.monotonic() + 300
        while not (there := [name for name in started(storage) if name[1] == victim]):
            assert searching.poll() is None and time.monotonic() < deadline, f"no trial on {victim}"
            time.sleep(0.2)
        began = time.monotonic()
        subprocess.run([HOSTS_SH, "kill", "3"], check=True, env=hosts.own)
        output = plain(searching.communicate(timeout=600)[0])
    finally:
        searching.kill()
    assert searching.returncode == 0, output
    trials = pd.read_parquet(storage / "trials.parquet").set_index("trial")
    assert len(trials) == 4 and trials["objective"].notna().all() and set(trials["host"]) <= set(NAMES), output
    moved = [trial for trial, _ in there if trials.loc[trial, "host"] != victim]
    assert moved, "the trial of the dead host went on elsewhere"
    hosts.notes["died"] = (
        f"{victim} was killed while it ran trial {moved[0]}; the trial went on at {trials.loc[moved[0], 'host']} from its "
        f"checkpoint, and the search ended {time.monotonic() - began:.0f} s later with exit code 0 and all 4 trials"
    )


def started(storage: Path) -> list[tuple[str, str]]:
    """(trial, host) of every trial that has reported."""
    found = []
    for path in storage.glob("tune/*/result.json"):
        lines = path.read_text().splitlines()
        if lines:
            result = json.loads(lines[-1])
            found.append((str(result["trial_id"]), str(result["hostname"])))
    return found


def write_page(hosts: Hosts, submitted: str, page: Path) -> None:
    """What happened, as `docs/results/cluster.md`."""
    trials = pd.read_parquet(hosts.storage / "trials.parquet")
    rows = [f"| {row.trial} | {row.host} | {row.status} | {row.step} | {row.objective:.4f} |" for row in trials.itertuples()]
    said = [line for line in submitted.splitlines() if line.strip()]
    first, last = (
        next(i for i, line in enumerate(said) if "given" in line),
        next(i for i, line in enumerate(said) if "winner: " in line),
    )
    excerpt = [line[:150].replace(str(hosts.root), "/mnt") for line in said[first : last + 1]]
    page.write_text(
        f"""# A search on three hosts

Written by `make test-cluster CLUSTER_PAGE=docs/results/cluster.md` with Ray {ray.__version__} on {os.cpu_count()} cores
({platform.system()}), which all three hosts and whatever else ran there shared. Three hosts, {", ".join(NAMES)}, in
namespaces of one machine, each with an sshd, an address and files of its own, and one folder that they share. What is
launched is the repository's `cluster.local.yaml` with the lines changed that it marks.

| command | seconds |
|---|---|
| `ray up -y cluster.local.yaml` | {hosts.seconds["ray up"]:.0f} |
| `ray submit cluster.local.yaml experiments/tune_memory.py -- --small` | {hosts.seconds["ray submit"]:.0f} |

Typed one after the other; both ended with exit code 0. The script waited for the workers that `ray up` had promised.

| trial | host | status | step | scene_error |
|---|---|---|---|---|
{chr(10).join(rows)}

- `{SERVE}` on the head: {hosts.notes["served"]}.
- A second search, without ASHA: {hosts.notes["died"]}.
- A driver without the cluster's token did not get in.

The script's output, lines cut at 150 characters:

```text
{chr(10).join(excerpt)}
```
"""
    )
