"""A cluster that asks for Ray's token: who joins it without one is told what is missing."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

RAY = str(Path(sys.executable).with_name("ray"))
READY_S = 90.0
PROGRAM = """
from rematch_ray.errors import UserError
from rematch_ray.workloads.runtime import connect, node_resources
try:
    with connect([]) as is_own:
        print("joined", len(node_resources()), is_own)
except UserError as mistake:
    print("refused:", mistake)
"""


def environment(home: Path, mode: str | None) -> dict[str, str]:
    """As a shell has it, but with a home of its own."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**mine, "HOME": str(home), **({"RAY_AUTH_MODE": mode} if mode else {})}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def join(address: str, home: Path, mode: str | None) -> str:
    """What a program says that is given the address of a cluster."""
    given = {**environment(home, mode), "RAY_ADDRESS": address}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=given, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Address and home of a cluster that `ray start` makes where a local run has been."""
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("0123456789abcdef" * 4)
    port = free_port()
    # short: sockets lie in it
    folder = tempfile.mkdtemp(prefix="rr-")
    command = [RAY, "start", "--head", "--block", "--node-ip-address", "127.0.0.1"]
    command += ["--port", str(port), "--num-cpus", "1", "--include-dashboard", "false"]
    command += ["--ray-client-server-port", str(free_port()), "--temp-dir", folder]
    head = subprocess.Popen(
        command, env=environment(home, None), stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        ends = time.monotonic() + READY_S
        while join(f"127.0.0.1:{port}", home, "token").startswith("refused"):
            assert head.poll() is None
            assert time.monotonic() < ends
        yield f"127.0.0.1:{port}", home
    finally:
        head.terminate()
        try:
            head.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_who_joins_without_the_mode_is_told_and_with_it_joins(
    guarded: tuple[str, Path], tmp_path: Path
) -> None:
    address, home = guarded
    said = join(address, home, None)
    assert said.startswith(f"refused: RAY_ADDRESS={address}: no Ray cluster answers there")
    assert "RAY_AUTH_MODE=token" in said
    assert join(address, home, "token") == "joined 1 False\n"
    # the mode alone, on a machine that has no token
    other = tmp_path / "other"
    other.mkdir()
    said = join(address, other, "token")
    assert said.startswith("refused:")
    assert "no authentication token was found" in said
