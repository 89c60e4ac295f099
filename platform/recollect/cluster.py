"""The one door to Ray for everything that is not training, search or serving.

How a driver finds or starts a cluster, how it maps functions over shards, raw pictures and steps there, and how workers sum what
they did.
"""

from __future__ import annotations

import atexit
import importlib
import json
import logging
import math
import os
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if "ray" not in sys.modules and (Path.home() / ".ray" / "auth_token").exists():
    # A driver that joins a cluster does not look for its token unless it is told to. Ray reads this once, at its import; said
    # later, only the processes it starts would hear it, and they would not talk with it.
    os.environ.setdefault("RAY_AUTH_MODE", "token")

import ray

from recollect.ports import free_port

if TYPE_CHECKING:
    import pyarrow as pa

    from recollect.data.shards import Make, Progress, Share
    from recollect.data.store import Store

logger = logging.getLogger("recollect")

_folders: list[str] = []  # of the private clusters this process started
MEETING = timedelta(hours=1)  # how long a rank waits for the others: one may have much to read
PACKAGES = ("recollect", "trainables", "serve", "experiments")


@dataclass(frozen=True)
class Cluster:
    """A connection. `local` clusters were started by this driver and end with it."""

    address: str
    local: bool
    cpus: float
    gpus: float


def connect(
    address: str | None = None, *, cpus: int | None = None, dashboard: bool = True, env: dict[str, str] | None = None
) -> Cluster:
    """Connect to a Ray cluster, or start one on this machine.

    Args:
        address: `local` starts a private one; None joins what RAY_ADDRESS names or what runs on this machine, else starts a
            private one; anything else is a cluster's address.
        cpus: of a private cluster; None: as many as the machine has.
        dashboard: start the dashboard of a private cluster on a free port. Ray Train needs its state API to give back what a
            stopped run held.
        env: environment variables of all workers.

    A joined cluster gets this driver's own code by `py_modules`, so that nodes never run a stale copy; their dependencies are
    installed already. On the head of a cluster that `ray up` started, it waits for the workers that were promised
    (`RECOLLECT_NODES_WAIT_S` seconds at most, 900 by default): what is fitted to the cluster should not be fitted to its head.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # each report otherwise costs two seconds
    variables = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"], **(env or {})}
    for name in ("RECOLLECT_CATALOGUE", "PYTHONPATH"):
        if name in os.environ:
            variables.setdefault(name, os.environ[name])
    if address == "local" or (address is None and not _running()):
        return _start(cpus, dashboard, variables)
    variables.pop("PYTHONPATH", None)  # a path of this machine means nothing on another
    runtime_env = {"env_vars": variables, "py_modules": [importlib.import_module(name) for name in PACKAGES]}
    context = ray.init(address=address or "auto", runtime_env=runtime_env, log_to_driver=True, logging_level=logging.WARNING)
    found = str(context.address_info["gcs_address"])
    logger.info("joined the Ray cluster at %s (address 'local' would start a private one)", found)
    _await_nodes(promised_nodes(), float(os.environ.get("RECOLLECT_NODES_WAIT_S", 900)))
    return _described(found, local=False)


def promised_nodes(configuration: Path | None = None) -> int:
    """How many nodes `ray up` promised on the head that this process runs on: the head, and all `min_workers`; elsewhere 1.

    Args:
        configuration: what `ray up` leaves in the home directory of a head.
    """
    path = configuration or Path.home() / "ray_bootstrap_config.yaml"
    if not path.exists():
        return 1
    kinds = json.loads(path.read_text())["available_node_types"].values()  # YAML by name, JSON inside
    return 1 + sum(int(kind.get("min_workers", 0)) for kind in kinds)


def _await_nodes(promised: int, seconds: float) -> None:
    deadline, said = time.monotonic() + seconds, -1
    while (there := sum(node["Alive"] for node in ray.nodes())) < promised:
        if time.monotonic() > deadline:
            logger.warning("going on with %d of %d nodes; `ray status` says what became of the others", there, promised)
            return
        if there != said:
            logger.info("%d of %d nodes are here; waiting for the others (RECOLLECT_NODES_WAIT_S=0 would not)", there, promised)
        said = there
        time.sleep(1)


def _running() -> bool:
    if os.environ.get("RAY_ADDRESS"):
        return True
    try:
        from ray._private.services import canonicalize_bootstrap_address

        return bool(canonicalize_bootstrap_address("auto"))
    except Exception:
        return False


def _start(cpus: int | None, dashboard: bool, variables: dict[str, str]) -> Cluster:
    options: dict[str, Any] = {"include_dashboard": dashboard}
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this machine away; it saves a process
    variables.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"])
    if dashboard:
        port = free_port()
        options["dashboard_port"] = port
        variables["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"  # or a second Ray on this machine confuses the state API
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # says that tokens are on, as they should be
    # Ray's sockets live below this folder, and their paths may not pass 107 bytes.
    folder = tempfile.mkdtemp(prefix="recollect-ray-", dir="/tmp" if os.path.isdir("/tmp") else None)
    _folders.append(folder)
    atexit.register(disconnect)
    context = ray.init(
        address="local",
        num_cpus=cpus,
        _temp_dir=folder,
        object_store_memory=300_000_000,
        runtime_env={"env_vars": variables},
        logging_level=logging.WARNING,
        **options,
    )
    if dashboard:
        logger.info("Ray's dashboard: http://%s", context.address_info.get("webui_url"))
    return _described(str(context.address_info["gcs_address"]), local=True)


def _described(address: str, local: bool) -> Cluster:
    have = ray.cluster_resources()
    return Cluster(address, local, have.get("CPU", 0.0), have.get("GPU", 0.0))


def disconnect() -> None:
    """Leave the cluster; a private one ends, and its folder goes. May be called twice."""
    ray.shutdown()
    while _folders:
        shutil.rmtree(_folders.pop(), ignore_errors=True)


def require(cpus: float, gpus: float, what: str) -> None:
    """Raise ValueError where the cluster can never hold this; Ray itself would wait for ever."""
    have = ray.cluster_resources()
    if have.get("CPU", 0) < cpus or have.get("GPU", 0) < gpus:
        raise ValueError(
            f"{what} needs {cpus:g} CPUs and {gpus:g} GPUs; the cluster has {have.get('CPU', 0):g} and {have.get('GPU', 0):g}. "
            "Take fewer workers, fewer CPUs a worker, or a larger cluster"
        )


def dashboards() -> list[str]:
    """The URLs of the dashboards of all Rays that run on this machine; of those that answer."""
    from ray._private import ray_constants
    from ray._private.services import GcsClient, find_gcs_addresses

    found = []
    for address in sorted(find_gcs_addresses()):
        try:
            client = GcsClient(address=address)
            where = client.internal_kv_get(
                ray_constants.DASHBOARD_ADDRESS.encode(), namespace=ray_constants.KV_NAMESPACE_DASHBOARD, timeout=3
            )
        except Exception:  # it is ending, or it wants a token that this process does not have
            continue
        if where:
            found.append(f"http://{where.decode()}/")
    return found


@contextmanager
def connected(address: str | None = None, *, cpus: int | None = None) -> Iterator[Cluster]:
    """The cluster that this process is connected to; else `connect`, and `disconnect` afterwards."""
    if ray.is_initialized():
        yield _described(str(ray.get_runtime_context().gcs_address), local=False)
        return
    try:
        yield connect(address, cpus=cpus, dashboard=False)
    finally:
        disconnect()


def gpu_share(workers: int, gpus: float) -> float:
    """The part of a GPU that each worker asks for, so that all of them fit: a worker is on one GPU.

    >>> gpu_share(3, 2), gpu_share(7, 1), gpu_share(2, 8), gpu_share(4, 0)
    (0.5, 0.1428, 1.0, 0.0)
    """
    if gpus < 1:
        return 0.0
    return math.floor(1e4 / math.ceil(workers / gpus)) / 1e4  # Ray rounds to 1e-4, and seven times 0.1429 is more than one


class Crew:
    """Workers that hold one thing each and do every call together, as the ranks of a process group."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self._actors = list(actors)

    def call(self, method: str, *arguments: Any) -> Any:
        """`thing.method(*arguments, ranks)` of every worker at once; returns the answer of rank 0.

        What a worker raises is raised here as it was there; RuntimeError where one dies.
        """
        return _first([actor.call.remote(method, arguments) for actor in self._actors])


@contextmanager
def crew(make: Callable[[], Any], workers: int) -> Iterator[Crew]:
    """A crew of so many workers, each with one CPU and its part of a GPU, where there are any. Must be connected.

    Args:
        make: called once in every worker; returns the thing whose methods are called. Pickled by Ray, so of plain values.
    """
    gpus = gpu_share(workers, ray.cluster_resources().get("GPU", 0))
    require(workers, gpus * workers, f"{workers} workers together")
    kind = ray.remote(num_cpus=1, num_gpus=gpus)(_Member)
    actors = [kind.remote() for _ in range(workers)]
    try:
        address = ray.get(actors[0].meeting.remote())
        _first([actor.join.remote(make, rank, workers, address) for rank, actor in enumerate(actors)])
        yield Crew(actors)
    finally:
        for actor in actors:
            ray.kill(actor)


def _first(answers: Sequence[Any]) -> Any:
    """The first answer, once all are there; an error as soon as there is one: the others may wait for the one that failed."""
    waiting = list(answers)
    while waiting:
        (ready,), waiting = ray.wait(waiting, num_returns=1)
        try:
            ray.get(ready)
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from None
        except ray.exceptions.RayActorError as error:
            raise RuntimeError(f"a worker died: {error}".splitlines()[0]) from None
    return ray.get(answers[0])


class _Member:
    """One rank of a crew."""

    thing: Any

    def meeting(self) -> str:
        """Where the others find rank 0."""
        return f"tcp://{ray.util.get_node_ip_address()}:{free_port()}"

    def join(self, make: Callable[[], Any], rank: int, world: int, address: str) -> None:
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world, timeout=MEETING)
        self.thing = make()

    def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        from recollect.training.sync import local_ranks

        return getattr(self.thing, method)(*arguments, local_ranks())


class _Mapper:
    """What a worker holds: the store and the function, made once."""

    def __init__(self, make: Make, store_uri: str, work: str) -> None:
        from recollect.data.store import Store

        self.function, self.work = make(Store.open(store_uri)), work

    def ready(self) -> int:
        """Answered once this worker has found room and begun: it has done no picture yet."""
        return 0

    def map(self, share: Share) -> int:
        from recollect.data.shards import write_part

        write_part(self.function, share, self.work)
        return len(share.ids)


def map_shards(
    make: Make,
    store: Store,
    todo: Sequence[Share],
    work: str,
    *,
    workers: int,
    progress: Progress = lambda done, total: None,
) -> pa.Table:
    """`recollect.data.shards.map_here` on Ray workers: the rows of all shares in their order.

    Args:
        make: called once in every worker with the store; returns the function of ids. Pickled by Ray, so of plain values.
        store: its URI must mean the same to all workers, as must `work`.
        todo: what `recollect.data.shards.shares` found.
        work: where parts go, and where those of a run before are found.
        workers: at most so many at a time, each with one CPU and its part of a GPU, where there are any. They begin as the
            cluster has room for them.
        progress: called with (pictures that are done, all) after each shard.

    A worker that dies is started again, three times. An error of the function is raised here as it was there; parts that are
    done stay. Must be connected (`connect`, `connected`).
    """
    from recollect.data.shards import missing_parts, read_parts

    missing = missing_parts(todo, work)
    done = total = sum(len(share.ids) for share in todo)
    done -= sum(len(share.ids) for share in missing)
    progress(done, total)
    if missing:
        workers = min(workers, len(missing))
        gpus = gpu_share(workers, ray.cluster_resources().get("GPU", 0))
        require(workers, gpus * workers, f"mapping over shards with {workers} workers")
        kind = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=3, max_task_retries=3)(_Mapper)
        actors = [kind.remote(make, store.uri, work) for _ in range(workers)]
        try:
            for count in _spread(actors, missing):
                done += count
                progress(done, total)
        finally:
            for actor in actors:
                ray.kill(actor)
    return read_parts(todo, work)


def _spread(actors: Sequence[Any], missing: Sequence[Share]) -> Iterator[int]:
    """How many pictures each share has, as it is done; whoever has begun and is idle gets the next.

    A worker that finds no room has no share, so nobody waits for it.
    """
    waiting, left = iter(missing), len(missing)
    running = {actor.ready.remote(): actor for actor in actors}
    while left:
        (ready,), _ = ray.wait(list(running), num_returns=1)
        actor = running.pop(ready)
        try:
            count = int(ray.get(ready))
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from None
        for share in waiting:
            running[actor.map.remote(share)] = actor
            break
        if count:
            left -= 1
            yield count


def ahead_on_ray(
    function: Callable[[Any], Any], items: Iterable[Any], *, ahead: int, resource: str = ""
) -> Generator[Any, None, None]:
    """`map(function, items)` computed ahead by tasks of one CPU each, so many at a time, spread over the nodes.

    Args:
        function: pickled once; it should keep what it opens, as its process serves many items.
        ahead: how many items are in the making, or made and not asked for.
        resource: a custom resource of which each task takes one as well; empty: none.

    A task whose process or node dies is done again. An error of the function is raised here as it was there. Closing it early
    cancels what is under way. Raises ValueError where no node has the resource, and when nothing has found room for
    `RECOLLECT_NODES_WAIT_S` seconds. Must be connected (`connect`, `connected`).
    """
    require(1, 0, "decoding on Ray")
    if resource and ray.cluster_resources().get(resource, 0) < 1:
        raise ValueError(
            f"no node of the cluster has the resource {resource!r}; begin the nodes that decode with ray start "
            f"--resources='{{\"{resource}\": 8}}', or leave engine.feed_resource empty, and any node with a free CPU decodes"
        )
    # Not within the placement group of a trial or a training worker, which has no room for it.
    options = {"num_cpus": 1, "max_retries": -1, "scheduling_strategy": "SPREAD", "resources": {resource: 1} if resource else {}}
    task, kept, waiting = ray.remote(**options)(_applied), ray.put(function), iter(items)
    running = deque(task.remote(kept, item) for item in islice(waiting, ahead))
    try:
        while running:
            yield _awaited(running[0], resource)
            running.popleft()
            running.extend(task.remote(kept, item) for item in islice(waiting, 1))
    finally:
        for reference in running:
            ray.cancel(reference)


def _applied(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


def _awaited(reference: Any, resource: str) -> Any:
    """A task's answer; says after each minute that it waits, and what for."""
    began, patience = time.monotonic(), float(os.environ.get("RECOLLECT_NODES_WAIT_S", 900))
    while not ray.wait([reference], timeout=min(60.0, patience))[0]:
        waited = time.monotonic() - began
        what = "a free CPU" + (f" on a node with the resource {resource!r}" if resource else "")
        have, free = ray.cluster_resources().get("CPU", 0), ray.available_resources().get("CPU", 0)
        if waited >= patience:
            raise ValueError(
                f"no picture was decoded within {waited:.0f} s (RECOLLECT_NODES_WAIT_S): it needs {what}; of {have:g} CPUs "
                f"{free:g} are free. Give the cluster more, the run fewer workers, or take engine.feed=local"
            )
        logger.warning("waiting for pictures for %.0f s: decoding needs %s; of %g CPUs %g are free", waited, what, have, free)
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None


def map_on_data(function: Callable[[Any], Any], jobs: Sequence[Any], *, workers: int) -> Generator[Any, None, None]:
    """`map(function, jobs)` on Ray Data: the answers in the order of the jobs, each a task with one CPU, on any node.

    Args:
        function: pickled by Ray, as are its answers.
        jobs: each is pickled by itself and goes to one task.
        workers: at most so many tasks at a time.

    A task whose process or node dies is done again elsewhere. An error of the function is raised here as it was there, when its
    turn comes. Closing it early stops the tasks. Must be connected (`connect`, `connected`).
    """
    if not jobs:
        return
    require(1, 0, "reading on Ray")
    import ray.data
    from ray import cloudpickle

    def call(row: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = True, function(cloudpickle.loads(row["job"]))
        except Exception as error:  # raised in a task it would come back as a text
            answer = False, error
        return {"number": row["number"], "answer": cloudpickle.dumps(answer)}

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False  # callers have their own
    rows = [{"number": number, "job": cloudpickle.dumps(job)} for number, job in enumerate(jobs)]
    data = ray.data.from_items(rows, override_num_blocks=len(rows))
    done: dict[int, bytes] = {}
    following = 0
    for row in data.map(call, num_cpus=1, compute=ray.data.TaskPoolStrategy(min(workers, len(rows)))).iter_rows():
        done[row["number"]] = row["answer"]
        while following in done:
            well, answer = cloudpickle.loads(done.pop(following))
            if not well:
                raise answer
            yield answer
            following += 1
