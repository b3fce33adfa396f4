"""Connecting to Ray: a cluster in this process, or the one this program was submitted to.

Refuses a request that the cluster cannot hold before anything starts. Knows resources and
environment, nothing of models or data. Top floor.
"""

import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rematch_ray.errors import UserError
from rematch_ray.workloads.autoscaling import PATIENCE_S, is_autoscaled, wait_for_nodes

# A training run needs CPUs for reading data beside its workers, or it waits without a word: on
# small machines the CPUs that Ray counts are therefore more than there are.
MIN_LOCAL_CPUS = 4
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # where Ray tells a submitted job its own settings
# Ray sends its token to an address that is named only where this says so
AUTH_MODE = "RAY_AUTH_MODE"
# a head that is just being started, or started anew, may take so long until it listens
LISTENER_PATIENCE_S = 10.0
MAX_LOCAL_OBJECT_STORE_BYTES = 2 * 2**30
WORKER_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
DRIVER_ENVIRONMENT = {
    **WORKER_ENVIRONMENT,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # how long a dead training worker goes unnoticed, and a finished one too
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "180",
}
# What a cluster of this one machine, which lives as long as this program, has no use for: looking
# ten times a second for new log files that nobody is shown, and a process that asks whether the
# node is about to be taken away. Together 0.7 % of what a small training run costs. Not the
# reporter's interval (0.3 %): its loop also clears the metrics of replicas that are gone.
OWN_CLUSTER_ENVIRONMENT = {
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
    "LOG_NAME_UPDATE_INTERVAL_S": "10",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}

_own_cluster = threading.Event()

Made = TypeVar("Made")


@dataclass(frozen=True)
class Bundle:
    """Resources that must be free on one node at the same time.

    Args:
        what: who needs them, in words a user knows.
        cpus: logical CPUs.
        gpus: GPUs.
        count: how many such bundles run at the same time.
        key: the setting to lower when they do not fit.
    """

    what: str
    cpus: float
    gpus: float = 0.0
    count: int = 1
    key: str = ""


class Background(Generic[Made]):
    """A call in a thread of its own, so that Ctrl-C stays with the main thread.

    Waits on an event: in Python 3.11 a `Thread.join` that Ctrl-C interrupts marks the thread as
    ended although it runs on.

    Args:
        call: what to do.
        name: of the thread.
    """

    def __init__(self, call: Callable[[], Made], name: str) -> None:
        self._call = call
        self._done = threading.Event()
        self._made: list[Made] = []
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def wait(self, seconds: float | None) -> bool:
        """Wait at most so long (None = to the end); return whether the call has ended."""
        return self._done.wait(seconds)

    def result(self) -> Made:
        """Return what the ended call returned, or raise what it raised.

        Raises:
            UserError: a task or actor of the call raised one: its message alone, without the
                stack of the worker that Ray puts around it.
        """
        if self._error is None:
            return self._made[0]
        if (mistake := user_error_in(self._error)) is not None:
            raise UserError(str(mistake)) from self._error
        raise self._error

    def _run(self) -> None:
        try:
            self._made.append(self._call())
        # whatever it is, it belongs to whoever asks for the result
        except BaseException as error:  # noqa: BLE001
            self._error = error
        finally:
            self._done.set()


def user_error_in(error: BaseException | None) -> UserError | None:
    """Return the user's mistake that an error of Ray's wraps, if there is one."""
    while error is not None:
        inner = getattr(error, "cause", None)
        if inner is None and isinstance(error, UserError):
            return error
        error = inner if isinstance(inner, BaseException) else error.__cause__
    return None


@contextmanager
def connect(bundles: Sequence[Bundle]) -> Iterator[bool]:
    """Hold a connection to Ray that has room for the bundles.

    An initialised Ray is used as it is. With RAY_ADDRESS set (a submitted job has it) the program
    attaches to that cluster; otherwise it starts one in this process and ends it on the way out.
    Where an autoscaler adds nodes, it is asked for the room that is missing.

    Yields:
        Whether the cluster is one that this program started, and that ends with it.

    Raises:
        UserError: the cluster cannot be reached, or cannot hold the bundles.
    """
    import ray

    if ray.is_initialized():
        _find_room(bundles)
        yield _own_cluster.is_set()
        return
    for name, value in DRIVER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        refuse_what_does_not_fit(bundles, [_this_machine()])
    # ray.init takes SIGTERM for itself and answers it with a native stack trace
    handler = signal.getsignal(signal.SIGTERM)
    with _environment({} if address or _is_debugging() else OWN_CLUSTER_ENVIRONMENT):
        _start(address)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
        try:
            _find_room(bundles)
            if not address:
                _own_cluster.set()
            yield _own_cluster.is_set()
        except KeyboardInterrupt:
            # torn down, stages log stack traces on their way out, and this program is ending
            logging.disable()
            raise
        finally:
            _own_cluster.clear()
            ray.shutdown()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Variables that are set meanwhile, but those that are set already."""
    added = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _is_debugging() -> bool:
    """Whether the user wants to see what Ray's workers print."""
    return os.environ.get("REMATCH_RAY_DEBUG") == "1"


def node_resources() -> list[dict[str, float]]:
    """Return the resources of every living node of the connected cluster."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _find_room(bundles: Sequence[Bundle]) -> None:
    """Refuse what the connected cluster cannot hold, nodes that its autoscaler adds included.

    Raises:
        UserError: names what does not fit.
    """
    try:
        refuse_what_does_not_fit(bundles, node_resources())
    except UserError as error:
        if not is_autoscaled():
            raise
        minutes = f"{PATIENCE_S / 60:g} minutes"
        print(f"{error}: waiting for nodes, at most {minutes}", file=sys.stderr, flush=True)
        asked = [{"CPU": b.cpus, "GPU": b.gpus} for b in bundles for _ in range(b.count)]
        if not wait_for_nodes(asked, lambda: _first_misfit(bundles, node_resources()) is None):
            raise UserError(f"{error}; its autoscaler added no such room in {minutes}") from error


def refuse_what_does_not_fit(
    bundles: Sequence[Bundle], nodes: Iterable[Mapping[str, float]]
) -> None:
    """Refuse bundles that the nodes cannot hold at the same time, each on one node.

    Args:
        bundles: what will run together.
        nodes: resources of each node, `{"CPU": 4.0, "GPU": 1.0}`.

    Raises:
        UserError: names what does not fit, what the cluster has and the setting to lower.
    """
    nodes = list(nodes)
    misfit = _first_misfit(bundles, nodes)
    if misfit is not None:
        raise UserError(_refusal(bundles, misfit, nodes))


def _first_misfit(bundles: Sequence[Bundle], nodes: Iterable[Mapping[str, float]]) -> Bundle | None:
    """The first bundle for which no node has room beside the others, if there is one."""
    free = [{kind: node.get(kind, 0.0) for kind in ("CPU", "GPU")} for node in nodes]
    wanted = [bundle for bundle in bundles for _ in range(bundle.count)]
    for bundle in sorted(wanted, key=lambda b: (b.gpus, b.cpus), reverse=True):
        node = next((n for n in free if _holds(n, bundle)), None)
        if node is None:
            return bundle
        node["CPU"] -= bundle.cpus
        node["GPU"] -= bundle.gpus
    return None


def _holds(node: Mapping[str, float], bundle: Bundle) -> bool:
    tolerance = 1e-6
    return node["CPU"] + tolerance >= bundle.cpus and node["GPU"] + tolerance >= bundle.gpus


def _refusal(
    bundles: Sequence[Bundle], misfit: Bundle, nodes: Sequence[Mapping[str, float]]
) -> str:
    wanted = " + ".join(f"{b.count} x {b.what} ({_amount(b.cpus, b.gpus)})" for b in bundles)
    cpus, gpus = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    advice = f"; lower {misfit.key} or use a larger cluster" if misfit.key else ""
    return (
        f"asks for {wanted}, but the cluster has {_amount(cpus, gpus, always_gpus=True)} on "
        f"{len(nodes)} node{'s' if len(nodes) != 1 else ''} "
        f"(no room for every {misfit.what}){advice}"
    )


def _amount(cpus: float, gpus: float, *, always_gpus: bool = False) -> str:
    return f"{cpus:g} CPU" + (f", {gpus:g} GPU" if gpus or always_gpus else "")


def _this_machine() -> dict[str, float]:
    import torch

    return {"CPU": float(local_cpus()), "GPU": float(torch.cuda.device_count())}


def local_cpus() -> int:
    """Logical CPUs of a cluster that is started in this process."""
    return max(os.cpu_count() or 1, MIN_LOCAL_CPUS)


def _worker_environment() -> dict[str, str]:
    """Variables for Ray's workers, but those that the submitted job sets itself.

    Ray refuses a variable that a job and its driver both set, be the values equal or not.
    """
    job = json.loads(os.environ.get(JOB_CONFIG, "null")) or {}
    given = (job.get("runtime_env") or {}).get("env_vars") or {}
    return {name: os.environ[name] for name in WORKER_ENVIRONMENT if name not in given}


def _await_listener(address: str) -> None:
    """Wait a little for somebody to listen at an address that has a port.

    Raises:
        OSError: nobody does, or there is no such port.
        UnicodeError: there can be no such host.
    """
    # Ray tries twenty times, up to a minute each, without a word, and Ctrl-C waits for a try's end
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():  # "auto" and the like are Ray's to find
        return
    ends = time.monotonic() + LISTENER_PATIENCE_S
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), LISTENER_PATIENCE_S):
                return
        except OSError:
            if time.monotonic() >= ends:
                raise
        time.sleep(0.5)


def _unreachable(address: str, error: Exception) -> str:
    """What a user can do about a cluster that does not take this program in."""
    reason = " ".join(str(error).split())
    return (
        f"RAY_ADDRESS={address}: no Ray cluster answers there ({reason}); start one, or unset "
        "RAY_ADDRESS to run on this machine alone"
    )


def _token_hint() -> str:
    """What may be missing where somebody listens: Ray says in its log alone that it was refused."""
    if os.environ.get(AUTH_MODE) == "token":
        return ""
    return (
        "; one that asks for a token, as `ray start` makes it where ~/.ray/auth_token exists, "
        f"needs {AUTH_MODE}=token here too"
    )


def _start(address: str | None) -> None:
    import ray

    options: dict[str, Any] = {
        "log_to_driver": _is_debugging(),
        # below that Ray announces at every start that it made an authentication token
        "logging_level": "ERROR",
        "runtime_env": {"env_vars": _worker_environment()},
    }
    if address:
        try:
            _await_listener(address)
        except (OSError, UnicodeError) as silent:
            raise UserError(_unreachable(address, silent)) from silent
        try:
            ray.init(address=address, **options)
        except (ray.exceptions.AuthenticationError, ConnectionError, ValueError) as error:
            raise UserError(_unreachable(address, error) + _token_hint()) from error
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    ray.init(
        address="local",
        num_cpus=local_cpus(),
        object_store_memory=min(int(memory * 0.3), MAX_LOCAL_OBJECT_STORE_BYTES),
        **options,
    )
