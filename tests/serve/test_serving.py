"""`rematch-ray serve` as a user runs it: one process, a URL, Ctrl-C."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from rematch_ray.cli import main


@pytest.fixture(autouse=True)
def _leave_the_signals_as_they_were(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    numbers = (signal.SIGTERM, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(pair: Any, log: Path, *extra: str) -> Iterator[subprocess.Popen[bytes]]:
    """A running `rematch-ray serve`; stderr goes to the log."""
    command = [sys.executable, "-m", "rematch_ray", "serve", "--index", str(pair.index)]
    command += ["--model", str(pair.export), *extra]
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


def search(port: int, query: str = "a red square") -> int | None:
    """Hits of a search; None where the service is not ready."""
    request = urllib.request.Request(
        f"http://localhost:{port}/v1/search",
        json.dumps({"query": query}).encode(),
        {"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return len(json.load(answer)["results"])
    except urllib.error.HTTPError as refused:
        if refused.code == 503:
            return None
        raise


def title(pid: int) -> str:
    """What a process calls itself."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def listener(port: int) -> int | None:
    """The process that listens at a port of loopback, and at no other address."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    sockets = {}
    for fields in map(str.split, lines):
        address, _, number = fields[1].partition(":")
        if int(number, 16) == port and fields[3] == "0A":
            assert address == "0100007F", "it listens beyond loopback"
            sockets[f"socket:[{fields[9]}]"] = True
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if str(entry.readlink()) in sockets:
                return int(entry.parts[2])
    return None


def wait_for(text: str, log: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def is_gone(group: int) -> bool:
    """Whether a whole process group ends within a while; the last ones are dying already."""
    for _ in range(50):
        if not living(group):
            return True
        time.sleep(0.2)
    return False


def living(group: int) -> list[str]:
    """The processes of a group that still run; those that nobody has waited for do not."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            name, _, rest = (entry / "stat").read_text().rpartition(")")
        except OSError:
            continue
        state, _, of_group = rest.split()[:3]
        if int(of_group) == group and state not in "ZX":
            found.append(name)
    return found


@pytest.mark.ray
@pytest.mark.parametrize(
    "how",
    [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)],
    ids=lambda how: how.name,
)
def test_an_interrupt_while_ray_starts_is_one_line_and_leaves_no_process(
    pair: Any, tmp_path: Path, how: signal.Signals
) -> None:
    log = tmp_path / "log"
    with serving(pair, log, "--port", str(free_port())) as process:
        wait_for("starting", log, process)
        time.sleep(2.5)
        os.kill(process.pid, how)
        process.communicate(timeout=60)
    assert process.returncode == 130, log.read_text()
    assert log.read_text().splitlines()[-1].startswith("interrupted")
    assert "Traceback" not in log.read_text()
    assert is_gone(process.pid), f"they outlive it: {living(process.pid)}"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_prints_its_url_answers_and_ends_well_on_ctrl_c(pair: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"
    port = free_port()
    with serving(pair, log, "--port", str(port), "--json") as process:
        wait_for("ready after", log, process)
        assert f"http://localhost:{port}/" in log.read_text()
        assert search(port) == 6
        # nothing stands between a caller and the ingress: another one takes its port over
        ingress = listener(port)
        assert ingress is not None and "rematch-ray:ingress" in title(ingress)
        os.kill(ingress, signal.SIGKILL)
        # a minute until the port is free again, and a start
        deadline = time.monotonic() + 240
        while listener(port) in (None, ingress):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        while (hits := search(port)) is None:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        assert hits == 6
        os.killpg(process.pid, signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, log.read_text()
    assert json.loads(out.splitlines()[-1])["url"] == f"http://localhost:{port}/"


def test_what_was_asked_is_logged_for_the_doctor_until_the_end(pair: Any, tmp_path: Path) -> None:
    log, queries, port = tmp_path / "log", tmp_path / "queries", free_port()
    with serving(pair, log, "--port", str(port), "--query-log", str(queries)) as process:
        wait_for("ready after", log, process)
        assert [search(port, f"a red square {number}") for number in range(30)] == [6] * 30
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 0, log.read_text()
    doctor = [sys.executable, "-m", "rematch_ray", "doctor", "--index", str(pair.index)]
    doctor += ["--queries", str(queries), "--dry-run", "--json"]
    found = subprocess.run(doctor, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr
    report = json.loads(found.stdout.splitlines()[-1])
    assert report["calibration"]["queries"]["count"] == 30
    # the model is the index's: nothing had to be taken on trust
    assert "taken to be" not in " ".join(report["notes"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host", "0.0.0.0"], "API keys"),
        (["--api-keys-file", "/no/keys"], "/no/keys"),
        (["--host", "no.such.host.invalid"], "no.such.host.invalid"),
        (["--model", "/no/model"], "/no/model"),
    ],
)
def test_what_cannot_be_served_is_refused_before_ray_starts(
    pair: Any, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    model = [] if "--model" in arguments else ["--model", str(pair.export)]
    keys = ["--api-keys-file", str(pair.keys)] if says.endswith("invalid") else []
    capsys.readouterr()
    assert main(["serve", "--index", str(pair.index), *model, *arguments, *keys]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_model_of_another_index_is_refused_before_ray_starts(
    pair: Any, other_export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["serve", "--index", str(pair.index), "--model", str(other_export)]) == 2
    assert "does not fit this index" in capsys.readouterr().err


def test_an_index_that_names_no_model_asks_for_one(
    pair: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("serve", "search"):
        query = ["red"] if verb == "search" else []
        assert main([verb, "--index", str(pair.index), *query]) == 2
        assert "--model" in capsys.readouterr().err


def test_searching_without_a_server_gives_a_table_and_json(
    pair: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "red.png"
    image.write_bytes((pair.media / "red.png").read_bytes())
    base = ["search", "--index", str(pair.index), "--model", str(pair.export)]
    for query in (["a red square"], ["--image", str(image)], ["red", "--image", str(image)]):
        capsys.readouterr()
        assert main([*base, *query, "--budget", "1x1", "--top-k", "2", "--json"]) == 0
        captured = capsys.readouterr()
        found = json.loads(captured.out.splitlines()[-1])
        assert len(found["results"]) == 2
        assert (found["budget"], found["reduce"], found["exact"]) == ("1x1", "mean", True)
        assert found["results"][0]["payload"]["name"] in captured.err
        assert "budget 1x1" in captured.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["red", "--budget", "3x3"], "1x1"),
        (["red", "--budget", "huge"], "huge"),
        (["red", "--filter", '{"nmae": "a"}'], "name"),
        (["red", "--group-by", "nmae"], "name"),
        (["red", "--top-k", "5", "--candidates", "3"], "3"),
        (["--image", "{corrupt}"], "query"),
    ],
)
def test_a_search_that_cannot_be_is_one_line_that_says_what_can(
    pair: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    corrupt = tmp_path / "corrupt.png"
    corrupt.write_bytes((pair.media / "red.png").read_bytes()[:50])
    arguments = [argument.format(corrupt=corrupt) if "{c" in argument else argument
                 for argument in arguments]  # fmt: skip
    capsys.readouterr()
    base = ["search", "--index", str(pair.index), "--model", str(pair.export)]
    assert main([*base, *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
