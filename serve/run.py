"""Start a server for a bundle on this machine or on a Ray cluster, and stop it without a trace."""

from __future__ import annotations

import contextlib
import importlib
import ipaddress
import json
import math
import os
import select
import shutil
import signal
import socket
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import ray
import ray.serve
import torch
from ray.serve.context import _get_global_client

from recollect.bundle import absolute, open_bundle
from recollect.config import find_method
from recollect.retrieval.guided import open_pipeline
from recollect.retrieval.library import Library
from recollect.trainable import Guided
from serve import haproxy
from serve.app import INGRESS_CPUS, build
from serve.args import Args, checked_args
from serve.guard import checked

APPLICATION = "recollect"
OBJECT_STORE_BYTES = 512 * 2**20  # pictures under way; Ray would take a third of the machine's memory
ENVIRONMENT = {  # of Ray's processes
    "AUTOSCALER_METRIC_PORT": "-1",  # Ray's own pages would be on all addresses, whatever the server listens on; ours is /metrics
    "DASHBOARD_METRIC_PORT": "-1",
    "RAY_enable_metrics_collection": "0",  # the same of each machine, and the time that every process spends on them
    "RAY_worker_niceness": "0",  # Ray's 15 would leave replicas a thirtieth of a core beside whoever asks them
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # on a busy machine a proxy that starts is killed at 5 s, again and again
}
CODE = ("recollect", "trainables", "serve")  # what workers on other machines need of ours


@dataclass
class Running:
    """A server that answers at `url` until `stop()`. Also a context manager."""

    url: str
    card: dict[str, Any]  # what GET /v1/model said
    undo: contextlib.ExitStack = field(repr=False)
    args: Args
    local: bool
    token: str = field(repr=False)
    logging: dict[str, Any] = field(repr=False)

    def update(self, bundle: str | os.PathLike[str], within_s: float = 180.0, **options: Any) -> None:
        """Serve another bundle, or the same with other arguments: replicas are replaced while requests are answered.

        Args:
            bundle: a path or URI.
            within_s: how long it may take.
            options: further fields of `serve.args.Args`; what is not given is as it was.

        Raises ValueError for a bundle or index that does not open, before anything is changed; RuntimeError when the new replicas
        do not come up: the old ones go on then.
        """
        kept = {name: value for name, value in self.args.model_dump().items() if name not in ("bundle", "device")}
        args = _args(bundle, self.args.device, self.local, {**kept, **options})
        target = ray.serve.RunTarget(build(args), name=APPLICATION, route_prefix="/", logging_config=self.logging)
        ray.serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
        deadline, wanted = time.monotonic() + within_s, open_bundle(args.bundle, verify=False).digest
        _wait_running(deadline, lambda: None)
        self.args, self.card = args, _get(f"{self.url}/v1/model", self.token)
        while self.card["digest"] != wanted and time.monotonic() < deadline:  # from a replica that was about to stop
            time.sleep(0.2)
            self.card = _get(f"{self.url}/v1/model", self.token)

    def stop(self) -> None:
        """Finish the requests under way, and end every process that `start` started. May be called twice."""
        self.undo.close()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start(
    bundle: str | os.PathLike[str],
    host: str | None = None,
    port: int = 8000,
    *,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    address: str = "local",
    dashboard: bool = False,
    request_timeout_s: float = 60.0,
    ready_within_s: float = 120.0,
    log_level: str = "WARNING",
    proxy: Literal["haproxy", "ray"] = "haproxy",
    token: str = "",
    admin_token: str = "",
    insecure: bool = False,
    check: Callable[[], None] = lambda: None,
    **options: Any,
) -> Running:
    """Serve a bundle over HTTP; returns once it answers.

    Args:
        bundle: a path or URI.
        host: the address to listen on: 127.0.0.1 when not given, 0.0.0.0 on a cluster, where every node with a replica listens.
        address: `local` starts a Ray of its own (its own ports and folder; other Rays on the machine are not touched); anything
            else is the address of a cluster, which gets this code and must reach the bundle under the same path or URI.
        dashboard: with Ray's dashboard, on a free port (local only).
        request_timeout_s: an answer that takes longer becomes a 408.
        proxy: what listens (local only): HAProxy, where there is one, or Ray Serve's own proxy, which answers fewer requests.
        token: who sends it (`Authorization: Bearer ...`) may ask; empty: everybody who gets here.
        admin_token: who sends this one may also change the index; empty: nobody.
        insecure: listen beyond this machine without a token.
        check: called between the steps of starting; whatever it raises ends the start, cleans up, and comes out here.
        options: further fields of `serve.args.Args` (replicas, max_batch_size, limits, ...).

    Raises:
        ValueError: no such bundle, an unknown option, a port in use, or a host beyond this machine without a token; before
            anything is started.
        RuntimeError: the server did not come up.
    """
    local = address == "local"
    host = host or ("127.0.0.1" if local else "0.0.0.0")
    options = {**options, **_guarded(host, local, token, admin_token, insecure)}
    args = _args(bundle, device, local, options)
    if local:
        require_free(host, port)
    undo = contextlib.ExitStack()
    try:
        check()
        _connect(undo, address, dashboard, args, haproxy.binary() if proxy == "haproxy" and ":" not in host else None)
        check()
        logging = {"log_level": log_level, "enable_access_log": False}
        http = {"host": host, "port": port, "request_timeout_s": request_timeout_s}
        ray.serve.start(proxy_location="HeadOnly" if local else "EveryNode", http_options=http, logging_config=logging)
        if local:
            undo.callback(ray.serve.shutdown)
        check()
        _require_listening(host, port)
        if not local:
            undo.callback(ray.serve.delete, APPLICATION)
        target = ray.serve.RunTarget(build(args), name=APPLICATION, route_prefix="/", logging_config=logging)
        ray.serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
        url = f"http://{_visible(host if local or is_loopback(host) else _head())}:{port}"
        _wait_ready(url, ready_within_s, check, token)
        return Running(url, _get(f"{url}/v1/model", token), undo, args, local, token, logging)
    except BaseException:
        undo.close()
        raise


def _args(bundle: str | os.PathLike[str], device: str, local: bool, options: dict[str, Any]) -> Args:
    if device == "auto":
        device = "cuda" if local and torch.cuda.is_available() else "cpu"
    uri = os.fspath(bundle)
    if local:
        uri = uri if "://" in uri else os.path.abspath(uri)  # replicas work in another folder
        further = {name: absolute(str(path)) for name, path in options.get("bundles", {}).items()}
        options = {**options, "bundles": further, "index": _index([uri, *further.values()], options.get("index", ""))}
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        replicas = checked_args(bundle=uri, **options).replicas
        options = {"cpus_per_replica": max(1, cores // replicas), **options}
    return checked_args(bundle=uri, device=device, **options)


def _index(bundles: Sequence[str], given: str) -> str:
    """The index that bundles are served with: the one given, or the one that the first guided one was trained with.

    A bundle that does not open, or an index that is not that of all that are guided, says so here, in one line, and not from a
    replica's log.
    """
    index = absolute(given)
    for uri in bundles:
        opened = open_bundle(uri)
        guided = issubclass(find_method(opened.run.model.name), Guided)
        pipeline = open_pipeline(opened, index=index if guided or len(bundles) == 1 else "")
        if isinstance(pipeline.search, Library):
            index = index or absolute(opened.run.data.index)
    return index


def require_free(host: str, port: int) -> None:
    """Raise ValueError when something listens on the port already, with a port that is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port left in TIME_WAIT is free
        try:
            probe.bind((host, port))
        except OSError as error:
            with socket.socket(family) as other:
                other.bind((host if error.errno == 98 else "", 0))
                free = other.getsockname()[1]
            raise ValueError(f"cannot listen on {host} port {port}: {error.strerror}; port {free} is free") from None


def _guarded(host: str, local: bool, token: str, admin_token: str, insecure: bool) -> dict[str, Any]:
    """The arguments that say who may ask. Raises ValueError where a stranger could."""
    near = local and is_loopback(host)
    if not (token or near or insecure):
        where = f"on {host}, which others can reach" if local else "on every node of the cluster"
        raise ValueError(f"the server would listen {where}, and there is no token; give a token, or say insecure")
    digests = {"token_sha256": checked(token, "the token"), "admin_token_sha256": checked(admin_token, "the admin token")}
    return {**{name: digest for name, digest in digests.items() if digest}, "near_only": near and not token}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _connect(undo: contextlib.ExitStack, address: str, dashboard: bool, args: Args, proxy: str | None) -> None:
    """Use the Ray that this process is connected to, or else start (or join) one; a local one with the HAProxy at `proxy`."""
    if ray.is_initialized():
        return
    modules = [Path(str(importlib.import_module(name).__file__)).parent for name in CODE]
    passed = {name: os.environ[name] for name in ("RECOLLECT_CATALOGUE",) if name in os.environ}
    if address != "local":
        undo.callback(ray.shutdown)
        ray.init(address=address, runtime_env={"env_vars": passed, "py_modules": [str(module) for module in modules]})
        return
    roots = [str(module.parent) for module in modules] + os.environ.get("PYTHONPATH", "").split(os.pathsep)
    passed["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, roots)))  # the code of this process, wherever that is
    folder = tempfile.mkdtemp(
        prefix="rcl-", dir="/tmp" if os.path.isdir("/tmp") else None
    )  # short: it holds Unix sockets (107 bytes)
    undo.callback(shutil.rmtree, folder, ignore_errors=True)
    undo.callback(haproxy.sweep, Path(folder))
    undo.callback(ray.shutdown, wait_for_processes=True)
    environment = haproxy.environment(Path(folder), proxy) if proxy else {}
    with _handlers_kept(), haproxy.environ({**environment, **ENVIRONMENT}):
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, 2 * math.ceil(_cpus(args))),  # with too few, Ray would wait for more in silence
            include_dashboard=dashboard,
            dashboard_port=_free_port() if dashboard else None,
            object_store_memory=OBJECT_STORE_BYTES,
            runtime_env={"env_vars": passed},
            _temp_dir=folder,
        )


def _cpus(args: Args) -> float:
    """What Ray sets aside for all replicas; twice as much while they are being replaced."""
    retrievers = args.shards * args.retriever_replicas * args.retriever_cpus if args.index else 0
    translators = max(args.replicas, args.max_replicas) * args.cpus_per_replica
    return translators + retrievers + args.ingress_replicas * INGRESS_CPUS


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """A SIGTERM handler that somebody chose stays in place while Ray starts.

    Ray puts two of its own there. One, in Python, raises out of the middle of its start, and processes that it has started
    but does not know of yet outlive us: it is not let in. One, in C++, aborts this process: it is replaced as soon as
    `ray.init` returns (in the fraction of a second before that it still aborts; nothing stays behind then either).
    """
    own, install = signal.getsignal(signal.SIGTERM), signal.signal

    def refuse(number: int, handler: Any) -> Any:
        return own if number == signal.SIGTERM else install(number, handler)

    if not callable(own) or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal = refuse  # type: ignore[assignment]
    try:
        yield
    finally:
        signal.signal = install
        signal.signal(signal.SIGTERM, own)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _require_listening(host: str, port: int) -> None:
    """Raise ValueError when the cluster's Ray Serve, which was there before us, listens elsewhere: it does not move."""
    there = _get_global_client().http_config
    if (there.host, there.port) != (host, port):
        raise ValueError(
            f"Ray Serve runs on this cluster already and listens on {there.host} port {there.port}; give --host {there.host} "
            f"--port {there.port}, or end it with `serve shutdown`, which ends all that it serves"
        )


def _head() -> str:
    return next(str(node["NodeManagerAddress"]) for node in ray.nodes() if "node:__internal_head__" in node["Resources"])


def _visible(host: str) -> str:
    """An address under which a server that listens on `host` is reached from here."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def _get(url: str, token: str = "") -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
        result: dict[str, Any] = json.load(answer)
        return result


def _wait_ready(url: str, seconds: float, check: Callable[[], None], token: str) -> None:
    deadline, reason = time.monotonic() + seconds, ""
    _wait_running(deadline, check)
    while time.monotonic() < deadline:
        check()
        try:
            _get(f"{url}/readyz", token)
            return
        except OSError as error:  # also the HTTP errors of urllib
            reason = str(error)
        time.sleep(0.2)
    raise RuntimeError(f"{url}/readyz did not answer 200 within {seconds:g} s: {reason}")


def _wait_running(deadline: float, check: Callable[[], None]) -> None:
    """Until the application runs as it was deployed last. Raises RuntimeError when it cannot, or takes too long."""
    while time.monotonic() < deadline:
        check()
        application = ray.serve.status().applications[APPLICATION]
        if application.status == "DEPLOY_FAILED":
            raise RuntimeError(f"the server did not come up: {application.message}")
        if application.status == "RUNNING":
            return
        time.sleep(0.2)
    raise RuntimeError(f"the server did not come up in time; the application is {application.status} {application.message}")


def main(bundle: str | os.PathLike[str], host: str | None = None, port: int = 8000, **options: Any) -> None:
    """Serve a bundle until Ctrl-C, SIGTERM, or the end of its terminal: what `recollect serve` does.

    Arguments and errors are those of `start`.
    """
    with _Signals() as signals:
        print(f"starting {bundle} ...", flush=True)
        with start(bundle, host, port, check=signals.check, **options) as running:
            print(_welcome(running), flush=True)
            signals.wait()
            with contextlib.suppress(OSError):  # the terminal is gone
                print("stopping ...", flush=True)


def _welcome(running: Running) -> str:
    card = running.card
    target = card["domains"][-1]
    sent = ' -H "Authorization: Bearer $RECOLLECT_TOKEN"' if running.token else ""
    return "\n".join(
        [
            f"{card['name']} ({card['method']}: {', '.join(card['domains'])}) is served at {running.url}",
            f"the page: {running.url}/ (documentation: {running.url}/docs)",
            f"try: curl -f{sent} -F image=@picture.png -F 'target={target}' -o translated.png {running.url}/v1/translate",
            "Ctrl-C stops it",
        ]
    )


class _Signals:
    """SIGINT, SIGTERM and SIGHUP stop the server in good order; further ones, while it is stopping, change nothing.

    A SIGHUP that is ignored (`nohup`) stays ignored.

    The handler raises nothing: an exception from a handler that happens to run inside a fork hook or a destructor is lost.
    Signals are read from a wake-up pipe instead, which tells as well which of them it was.
    """

    def __init__(self) -> None:
        self.inbox, self.outbox = socket.socketpair()
        self.inbox.setblocking(False)
        self.outbox.setblocking(False)
        self.old: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        self.old = {number: signal.signal(number, lambda *_: None) for number in numbers}
        self.before = signal.set_wakeup_fd(self.outbox.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self.before)
        for number, handler in self.old.items():
            signal.signal(number, handler)
        self.inbox.close()
        self.outbox.close()

    def check(self) -> None:
        """Raise SystemExit if one of them has arrived."""
        with contextlib.suppress(BlockingIOError):
            arrived = [number for number in self.inbox.recv(4096) if number in self.old]
            if arrived:
                raise SystemExit(128 + arrived[0])

    def wait(self) -> None:
        """Until one of them arrives, or has arrived since the last check."""
        while True:
            select.select([self.inbox], [], [])
            try:
                self.check()
            except SystemExit:  # being stopped is how a server that is up ends well
                return
