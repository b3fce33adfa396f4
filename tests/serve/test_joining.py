"""`rematch-ray serve` on a cluster whose Serve runs already: at the address that was asked for, or
not at all."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ray import serve

from rematch_ray.cli import main
from rematch_ray.commands import interruption, joining
from rematch_ray.commands import serve as command
from rematch_ray.commands.joining import Address
from rematch_ray.workloads import runtime
from tests.serve.test_serving import free_port, search, serving, wait_for


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of Serve, on a cluster where it runs on 0.0.0.0:8000."""
    calls: list[str] = []

    @contextmanager
    def connect(bundles: Any) -> Iterator[bool]:
        yield False

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(runtime, "connect", connect)
    monkeypatch.setattr(interruption, "install", lambda: None)
    monkeypatch.setattr(command, "READY_TIMEOUT_S", 0.5)
    monkeypatch.setattr(joining, "running_at", lambda: Address("0.0.0.0", 8000))
    monkeypatch.setattr(serve, "start", lambda **options: calls.append("start"))
    monkeypatch.setattr(serve, "run", lambda application, **options: calls.append("run"))
    monkeypatch.setattr(serve, "delete", lambda name: calls.append(f"delete {name}"))
    return calls


def asked(pair: Any, *extra: str) -> list[str]:
    return ["serve", "--index", str(pair.index), "--model", str(pair.export), *extra]


@pytest.mark.parametrize(
    "address",
    [
        ("--port", "8123"),
        ("--port", "8000"),
        ("--host", "0.0.0.0", "--port", "8001", "--api-keys-file", "{keys}"),
    ],
)
def test_serve_that_listens_elsewhere_is_left_as_it_is(
    pair: Any, calls: list[str], capsys: pytest.CaptureFixture[str], address: Sequence[str]
) -> None:
    extra = [word.format(keys=pair.keys) for word in address]
    assert main(asked(pair, *extra)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "on 0.0.0.0:8000" in error
    assert all(way in error for way in ("--api-keys-file", "serve deploy", "RAY_ADDRESS"))
    assert calls == []


def test_one_who_was_quicker_to_start_serve_is_noticed(
    pair: Any, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([None, Address("0.0.0.0", 8000)])
    monkeypatch.setattr(joining, "running_at", lambda: next(found))
    assert main(asked(pair, "--port", str(free_port()))) == 2
    assert calls == ["start"]


@pytest.mark.parametrize("failing", ["run", "wait"])
def test_what_does_not_come_up_is_taken_away_again(
    pair: Any, calls: list[str], monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*values: Any, **options: Any) -> None:
        calls.append("failed")
        raise RuntimeError("not ready")

    if failing == "run":
        monkeypatch.setattr(serve, "run", fail)
    monkeypatch.setattr(command, "_wait_until_ready", fail)
    monkeypatch.setattr(joining, "running_at", lambda: Address("127.0.0.1", 8000))
    assert main(asked(pair)) == 1
    assert calls[-2:] == ["failed", f"delete {command.APPLICATION}"]


def test_an_application_that_is_not_ours_is_not_taken_away(
    pair: Any, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(args: Any) -> None:
        raise RuntimeError("a model of another index by now")

    monkeypatch.setattr("rematch_ray.serve.app.build", refused)
    monkeypatch.setattr(joining, "running_at", lambda: Address("127.0.0.1", 8000))
    assert main(asked(pair)) == 1
    assert calls == []


@pytest.mark.slow
def test_a_cluster_whose_serve_is_open_to_all_serves_with_keys_only(
    ray_cluster: None, pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.serve.config import HTTPOptions

    port = free_port()
    serve.start(http_options=HTTPOptions(host="0.0.0.0", port=port))
    try:
        monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
        log = tmp_path / "refused"
        with serving(pair, log, "--port", str(free_port())) as process:
            process.communicate(timeout=120)
        assert process.returncode == 2, log.read_text()
        assert f"on 0.0.0.0:{port}" in log.read_text().splitlines()[-1]
        assert not serve.status().applications

        log = tmp_path / "served"
        address = ("--host", "0.0.0.0", "--port", str(port), "--api-keys-file", str(pair.keys))
        with serving(pair, log, *address) as process:
            wait_for("ready after", log, process)
            with pytest.raises(Exception, match="401"):
                search(port)
            os.killpg(process.pid, signal.SIGINT)
            process.communicate(timeout=120)
        assert process.returncode == 0, log.read_text()
        started = time.monotonic()
        while serve.status().applications:
            assert time.monotonic() - started < 60
            time.sleep(0.5)
    finally:
        serve.shutdown()
