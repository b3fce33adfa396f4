"""How requests reach the ingress of `rematch-ray serve`."""

import os
import socket

import pytest

from rematch_ray.commands.listening import tune_serve
from rematch_ray.errors import UserError
from tests.serve.test_serving import free_port

PORT = free_port()
FIRST, LAST = (f"RAY_SERVE_DIRECT_INGRESS_{end}_HTTP_PORT" for end in ("MIN", "MAX"))


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    monkeypatch.setattr(os, "environ", ours)
    return ours


def test_the_ingress_listens_at_the_port_and_the_proxy_elsewhere(
    environment: dict[str, str],
) -> None:
    assert tune_serve("127.0.0.1", PORT, with_haproxy=False) != PORT
    assert (environment[FIRST], environment[LAST]) == (str(PORT), str(PORT + 1))
    assert environment["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"


def test_haproxy_listens_at_the_port_and_its_status_is_named(
    environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune_serve("127.0.0.1", PORT, with_haproxy=True) == PORT
    assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert FIRST not in environment
    said = capsys.readouterr().err
    for name in ("METRICS", "STATS"):
        assert environment[f"RAY_SERVE_HAPROXY_{name}_PORT"] in said


def test_serve_as_it_comes_where_the_user_says_so(environment: dict[str, str]) -> None:
    environment["RAY_SERVE_THROUGHPUT_OPTIMIZED"] = "0"
    assert tune_serve("127.0.0.1", PORT, with_haproxy=False) == PORT
    assert FIRST not in environment


def test_a_cluster_that_runs_keeps_its_own_settings(environment: dict[str, str]) -> None:
    environment["RAY_ADDRESS"] = "10.0.0.1:6379"
    assert tune_serve("127.0.0.1", PORT, with_haproxy=False) == PORT
    assert not [name for name in environment if name.startswith("RAY_SERVE")]
    with pytest.raises(UserError, match="every node"):
        tune_serve("127.0.0.1", PORT, with_haproxy=True)


def test_the_proxy_listens_while_connections_wind_down(
    environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    with (
        socket.create_server(("127.0.0.1", port), reuse_port=False) as server,
        socket.create_connection(("127.0.0.1", port)) as caller,
    ):
        served, _ = server.accept()
        served.close()  # the server ends it first: its side has to wait
        assert caller.recv(1) == b""
    assert tune_serve("127.0.0.1", port, with_haproxy=False) == port
    assert "wind down" in capsys.readouterr().err
    assert FIRST not in environment
    assert environment["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
