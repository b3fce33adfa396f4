"""A request that the cluster cannot hold is refused by name before anything starts."""

import json
import os
import signal
import socket
import threading
from typing import Any

import pytest
from ray.exceptions import AuthenticationError

from rematch_ray.errors import UserError
from rematch_ray.workloads import autoscaling, runtime
from rematch_ray.workloads.runtime import Bundle, refuse_what_does_not_fit

TRAIN = [
    Bundle("training process", 0.5, 0, 2, "train.num_workers"),
    Bundle("data task", 1.0, key="train.cpus_per_encoder"),
]


def test_what_fits_is_accepted() -> None:
    refuse_what_does_not_fit(TRAIN, [{"CPU": 2.0}])


@pytest.mark.parametrize(
    ("bundles", "nodes", "message"),
    [
        (TRAIN, [{"CPU": 1.0}], r"2 x training process \(0.5 CPU\).*has 1 CPU, 0 GPU on 1 node"),
        (
            [Bundle("training process", 1, 1, 3, "train.num_workers")],
            [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0}],
            r"3 x training process \(1 CPU, 1 GPU\).*16 CPU, 2 GPU on 2 nodes.*train.num_workers",
        ),
        # enough in sum, but on no single node
        ([Bundle("embedding process", 3)], [{"CPU": 2.0}, {"CPU": 2.0}], "no room for every"),
    ],
)
def test_what_does_not_fit_is_named_with_what_there_is_and_the_key_to_lower(
    bundles: list[Bundle], nodes: list[dict[str, float]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        refuse_what_does_not_fit(bundles, nodes)


def test_a_request_beyond_this_machine_is_refused_before_ray_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(runtime, "_start", lambda address: pytest.fail("Ray was started"))
    with (
        pytest.raises(UserError, match="99 x embedding process"),
        runtime.connect([Bundle("embedding process", 1, 0, 99)]),
    ):
        pytest.fail("connected")


class Autoscaled:
    """A cluster whose head has no CPU, and whose workers come when they are asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, cpus: float, group: str | None) -> None:
        self.asked: list[list[dict[str, float]]] = []
        self._cpus = cpus
        self._labels = {autoscaling.NODE_GROUP: group} if group else {}
        monkeypatch.setattr("ray.is_initialized", lambda: True)
        monkeypatch.setattr("ray.nodes", self.nodes)
        monkeypatch.setattr("ray.autoscaler.sdk.request_resources", self.request)
        monkeypatch.setattr(autoscaling, "POLL_S", 0.0)

    def request(self, bundles: list[dict[str, float]]) -> None:
        self.asked.append(bundles)

    def nodes(self) -> list[dict[str, Any]]:
        head = {"Alive": True, "Labels": self._labels, "Resources": {"memory": 1.0}}
        worker = {"Alive": True, "Labels": {}, "Resources": {"CPU": self._cpus}}
        return [head, worker] if self.asked else [head]


def test_a_cluster_that_has_its_head_alone_is_asked_for_nodes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Autoscaled(monkeypatch, cpus=2, group="headgroup")
    with runtime.connect(TRAIN):
        pass
    whole = {"CPU": 1.0, "GPU": 0.0}
    # and the request is taken back: what runs there asks for itself
    assert cluster.asked == [[{"CPU": 0.5, "GPU": 0}, {"CPU": 0.5, "GPU": 0}, whole], []]
    assert "has 0 CPU, 0 GPU on 1 node" in (told := capsys.readouterr().err)
    assert "waiting for nodes" in told


def test_nodes_that_do_not_come_and_clusters_that_get_none_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Autoscaled(monkeypatch, cpus=1, group=None)
    with pytest.raises(UserError, match="has 0 CPU, 0 GPU on 1 node"), runtime.connect(TRAIN):
        pytest.fail("connected")
    assert not cluster.asked
    cluster = Autoscaled(monkeypatch, cpus=1, group="headgroup")
    monkeypatch.setattr(autoscaling, "PATIENCE_S", 0.0)
    with pytest.raises(UserError, match="added no such room"), runtime.connect(TRAIN):
        pytest.fail("connected")
    assert cluster.asked[-1] == []


@pytest.mark.parametrize(
    ("mode", "failure", "says", "hints"),
    [
        ("disabled", ConnectionError("nobody home"), r"no Ray cluster.*\(nobody home\)", True),
        ("token", ConnectionError("nobody home"), r"no Ray cluster.*\(nobody home\)", False),
        (
            "token",
            AuthenticationError("no token\nwas found"),
            r"no Ray cluster.*\(no token was found.*\)",
            False,
        ),
    ],
)
def test_an_address_without_a_cluster_that_takes_us_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, mode: str, failure: Exception, says: str, hints: bool
) -> None:
    def no_cluster(**_: object) -> None:
        raise failure

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", no_cluster)
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with (
            pytest.raises(UserError, match=f"RAY_ADDRESS={address}: {says}") as refused,
            runtime.connect([]),
        ):
            pytest.fail("connected")
    # a cluster that asks for a token looks like none from outside
    assert ("RAY_AUTH_MODE=token" in str(refused.value)) == hints
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("address", ["127.0.0.1:99999", f"{'a' * 64}.b:1"])
def test_an_address_that_cannot_be_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray would try for twenty minutes"))
    monkeypatch.setattr(runtime, "LISTENER_PATIENCE_S", 0.2)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with (
        pytest.raises(UserError, match=f"RAY_ADDRESS={address}: no Ray cluster"),
        runtime.connect([]),
    ):
        pytest.fail("connected")


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_where_nobody_listens_is_refused_before_ray_is_asked(
    monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = form.format(listener.getsockname()[1])
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray would try for twenty minutes"))
    monkeypatch.setattr(runtime, "LISTENER_PATIENCE_S", 0.2)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with (
        pytest.raises(UserError, match=r"no Ray cluster answers there .*refused") as refused,
        runtime.connect([]),
    ):
        pytest.fail("connected")
    assert "RAY_AUTH_MODE" not in str(refused.value)


def test_an_address_that_ray_finds_itself_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def found(**options: object) -> None:
        asked.append(options["address"])
        raise ConnectionError("none here")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", found)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(UserError, match="none here"), runtime.connect([]):
        pytest.fail("connected")
    assert asked == ["auto"]


@pytest.mark.parametrize("given", [None, {}, {"runtime_env": {}}, {"runtime_env": None}])
def test_workers_get_our_environment(monkeypatch: pytest.MonkeyPatch, given: object) -> None:
    asked = _asked_of_ray(monkeypatch, given)
    assert asked.keys() == runtime.WORKER_ENVIRONMENT.keys()


def test_a_jobs_own_environment_is_not_set_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    env_vars = {"TOKENIZERS_PARALLELISM": "true", "MINE": "1"}
    asked = _asked_of_ray(monkeypatch, {"runtime_env": {"env_vars": env_vars}})
    assert asked.keys() == runtime.WORKER_ENVIRONMENT.keys() - {"TOKENIZERS_PARALLELISM"}


def _asked_of_ray(monkeypatch: pytest.MonkeyPatch, job: object) -> dict[str, str]:
    """What environment the driver asks for when Ray told it so of its job."""
    asked: dict[str, Any] = {}
    for name, value in runtime.WORKER_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(runtime.JOB_CONFIG, json.dumps(job))
    monkeypatch.setattr("ray.init", lambda **options: asked.update(options))
    runtime._start("auto")
    return asked["runtime_env"]["env_vars"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("variables", "is_own"),
    [({}, True), ({"RAY_ADDRESS": "auto"}, False), ({"REMATCH_RAY_DEBUG": "1"}, False)],
)
def test_only_a_cluster_of_this_program_goes_without_what_others_need(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], is_own: bool
) -> None:
    kept = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
    seen: list[dict[str, str | None]] = []

    def start(**_: object) -> None:
        seen.append({name: os.environ.get(name) for name in runtime.OWN_CLUSTER_ENVIRONMENT})

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", start)
    monkeypatch.setattr("ray.nodes", list)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("LOG_NAME_UPDATE_INTERVAL_S", "3")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with runtime.connect([]) as owned:
        assert (kept in os.environ) == is_own
        assert owned == ("RAY_ADDRESS" not in variables)
        monkeypatch.setattr("ray.is_initialized", lambda: True)
        with runtime.connect([]) as inner:
            assert inner == owned
    with runtime.connect([]) as someone_elses:
        assert not someone_elses
    assert (seen[0][kept] == "0") == is_own
    # what the user has set stays, and nothing of ours is left behind
    assert seen[0]["LOG_NAME_UPDATE_INTERVAL_S"] == "3"
    assert kept not in os.environ
    assert os.environ["LOG_NAME_UPDATE_INTERVAL_S"] == "3"


def test_a_background_call_is_waited_for_although_ctrl_c_came() -> None:
    go = threading.Event()
    call = runtime.Background(lambda: go.wait(30) and "made", "call")
    main = threading.main_thread().ident
    # whoever runs the tests in the background may have made them ignore SIGINT
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.2, signal.pthread_kill, [main, signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            call.wait(30)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not call.wait(0)
    go.set()
    assert call.wait(30)
    assert call.result() == "made"


def test_a_background_call_raises_its_error_where_the_result_is_asked_for() -> None:
    def fail() -> None:
        raise UserError("no")

    call = runtime.Background(fail, "call")
    assert call.wait(30)
    with pytest.raises(UserError, match="no"):
        call.result()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_running_cluster_is_used_checked_and_left_running() -> None:
    import ray

    with runtime.connect([Bundle("embedding process", 4)]):
        pass
    assert ray.is_initialized()
    with pytest.raises(UserError, match="has 4 CPU"), runtime.connect([Bundle("data task", 5)]):
        pytest.fail("connected")
