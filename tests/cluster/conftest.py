"""Three hosts for the tests of this folder: namespaces of this machine with an sshd each, made and ended by hosts.sh."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
HOSTS_SH = Path(__file__).with_name("hosts.sh")
NETWORK, NAME = "10.88.0", "rclhost"
ADDRESSES = [f"{NETWORK}.{11 + number}" for number in range(3)]
NAMES = [f"{NAME}{number}" for number in (1, 2, 3)]


def lacking() -> str:
    """What this machine lacks for hosts of its own; empty: nothing."""
    tools = [
        name
        for name in ("ip", "unshare", "sshd", "ssh", "rsync")
        if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    ]
    if tools:
        return f"{', '.join(tools)} missing (Debian: iproute2, util-linux, openssh-server, rsync)"
    if os.getuid() != 0:
        return "namespaces need root"
    probe = f"unshare -mnpu --fork true && ip netns add probe{os.getpid()} && ip netns del probe{os.getpid()}"
    return (
        "" if subprocess.run(["sh", "-c", probe], capture_output=True).returncode == 0 else "this kernel or container allows none"
    )


@dataclass
class Hosts:
    """Three hosts, and the machine in front of which the user sits."""

    root: Path  # theirs, with `storage` as what they share
    config: Path
    environment: dict[str, str]  # the user's
    own: dict[str, str]  # of the script that made them
    seconds: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def storage(self) -> Path:
        return self.root / "storage"

    def terminal(self) -> dict[str, Any]:
        """How a command of the user's is started: in the repository, with nothing of the test's."""
        return {"cwd": ROOT, "env": self.environment, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}

    def ray(self, *words: str, timeout: float = 600, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command on the user's machine: `ray up -y cluster.local.yaml` and its like, in the repository."""
        began = time.monotonic()
        done = subprocess.run(["ray", *words], timeout=timeout, **self.terminal())
        self.seconds.setdefault(" ".join(["ray", words[0]]), time.monotonic() - began)
        assert done.returncode == 0 or not check, done.stdout[-8000:]
        return done


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    reason = lacking()
    if reason:
        pytest.skip("no hosts: " + reason)
    root = Path(f"/var/lib/{NAME}-{os.getpid()}")
    home = Path(tempfile.mkdtemp(prefix="recollect-user-"))
    wheels = home / "wheels"  # what builds the package: hosts have no internet
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(wheels), "hatchling", "editables"]
    subprocess.run(pip, check=True)
    environment = {
        **os.environ,
        "HOSTS_ROOT": str(root),
        "HOSTS_NAME": NAME,
        "HOSTS_NET": NETWORK,
        "HOSTS_SEES": " ".join({sys.base_prefix, str(wheels)}),
        "HOSTS_COPY": sys.prefix,
        "HOSTS_SETUP": f"ln -s {sys.prefix} ~/recollect-env",
        # Two cores a host: they say what they have, which is this machine's. Everything else is as on any host.
        "HOSTS_BASHRC": f"export PIP_NO_INDEX=1 PIP_FIND_LINKS={wheels} RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0\n"
        "export RAY_OPTIONS='--num-cpus=2 --object-store-memory=200000000'",
    }
    state = [Path(f"/tmp/ray/cluster-recollect-local.{kind}") for kind in ("state", "lock")]
    found = Hosts(root, home / "cluster.local.yaml", user(home), environment)
    try:
        subprocess.run([HOSTS_SH, "up", "3"], check=True, env=environment)
        found.storage.mkdir()
        found.config.write_text(changed((ROOT / "cluster.local.yaml").read_text(), root))
        token = found.ray("get-auth-token", "--generate").stdout
        assert (home / ".ray" / "auth_token").exists(), token
        yield found
    finally:
        subprocess.run([HOSTS_SH, "down"], check=True, env=environment)
        shutil.rmtree(home, ignore_errors=True)
        for path in state:
            path.unlink(missing_ok=True)


def user(home: Path) -> dict[str, str]:
    """The environment of somebody at a terminal: no setting of ours, and nothing of the test's."""
    kept = {name: os.environ[name] for name in ("LANG", "LC_ALL", "TERM") if name in os.environ}
    (home / "tmp").mkdir()  # the launcher caches the configuration there
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    return {**kept, "HOME": str(home), "TMPDIR": str(home / "tmp"), "PATH": path, "RAY_USAGE_STATS_ENABLED": "0"}


def changed(text: str, root: Path) -> str:
    """`cluster.local.yaml` with the lines changed that it marks, and no other."""
    for old, new in {
        "head_ip: 192.168.1.10 ": f"head_ip: {ADDRESSES[0]} ",
        "worker_ips: [192.168.1.11, 192.168.1.12]": f"worker_ips: [{', '.join(ADDRESSES[1:])}]",
        "ssh_user: ubuntu ": "ssh_user: root ",
        "ssh_private_key: ~/.ssh/id_ed25519": f"ssh_private_key: {root / 'id_ed25519'}",
        "RECOLLECT_STORAGE=/mnt/recollect": f"RECOLLECT_STORAGE={root / 'storage'}",
    }.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text
