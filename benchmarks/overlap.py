"""What it gives that gradients travel during the backward pass: two ranks on two hosts with a line between them.

The hosts are network namespaces of this machine (root, iproute2), the line has the rate that is asked for. Steps with buckets
that go out during the backward pass and steps that send them after it are taken in turn.

    python -m benchmarks.overlap --rate 1gbit --presets mguit:paper gmm_unit:paper
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.steps import trainer
from benchmarks.timing import table
from recollect.training.sync import Gradients, Group

HOSTS = tuple(f"recollect-{os.getpid()}-{letter}" for letter in "ab")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", default="1gbit", help="of the line, as tc writes it")
    parser.add_argument("--presets", nargs="+", default=["mguit:paper", "gmm_unit:paper"])
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--steps", type=int, default=4, help="of each kind")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--meeting", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.rank is not None:
        return _rank(arguments)
    rows = []
    with _two_hosts(arguments.rate), tempfile.TemporaryDirectory() as folder:
        for name in arguments.presets:
            during, after = _measured(arguments, name, Path(folder, name.replace(":", "-")))
            rows.append([f"{name} {arguments.size} px", arguments.rate, f"{during:.2f}", f"{after:.2f}", f"{after / during:.2f}"])
    print(table(["a step of two ranks", "line", "during, s", "after, s", "ratio"], rows))
    return 0


@contextmanager
def _two_hosts(rate: str) -> Iterator[None]:
    one, other = HOSTS
    try:
        for host in HOSTS:
            _do("ip", "netns", "add", host)
        _do("ip", "link", "add", "eth0", "netns", one, "type", "veth", "peer", "name", "eth0", "netns", other)
        for number, host in enumerate(HOSTS, 1):
            _do("ip", "-n", host, "link", "set", "lo", "up")
            _do("ip", "-n", host, "addr", "add", f"10.78.0.{number}/24", "dev", "eth0")
            _do("ip", "-n", host, "link", "set", "eth0", "up")
            _do("tc", "-n", host, "qdisc", "add", "dev", "eth0", "root", *f"tbf rate {rate} burst 512k latency 50ms".split())
        yield
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "del", host], check=False, capture_output=True)


def _do(*command: str) -> None:
    subprocess.run(command, check=True)


def _measured(arguments: argparse.Namespace, name: str, meeting: Path) -> tuple[float, float]:
    """Median seconds of a step that sends during the backward pass, and of one that sends after it."""
    own = ["--presets", name, "--size", str(arguments.size), "--steps", str(arguments.steps), "--meeting", str(meeting)]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            ["ip", "netns", "exec", host, sys.executable, "-m", "benchmarks.overlap", *own, "--rank", str(rank)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank, host in enumerate(HOSTS)
    ]
    said = [rank.communicate()[0] for rank in ranks]
    assert not any(rank.returncode for rank in ranks), "a rank failed; what it said is above"
    during, after = map(float, said[0].split())
    return during, after


def _rank(arguments: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{arguments.meeting}", rank=arguments.rank, world_size=2)
    made, batches = trainer(arguments.presets[0], arguments.size, 1)
    made.ranks = Group()
    made.update(batches)
    seconds: list[list[float]] = [[], []]
    for turn in range(2 * arguments.steps):
        take = Gradients.take if turn % 2 else _take_and_send_after
        with mock.patch.object(Gradients, "take", take):
            dist.barrier()
            began = time.perf_counter()
            made.update(batches)
            dist.barrier()
        seconds[turn % 2].append(time.perf_counter() - began)
    after, during = map(statistics.median, seconds)
    if arguments.rank == 0:
        print(during, after)
    dist.destroy_process_group()
    return 0


def _take_and_send_after(gradients: Gradients, loss: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    gradients.give(torch.autograd.grad(loss, parameters, allow_unused=True), parameters)


if __name__ == "__main__":
    raise SystemExit(main())
