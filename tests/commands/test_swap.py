"""`rematch-ray serve swap` against a service of a few lines."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from rematch_ray.cli import main

Answer = tuple[int, dict[str, Any]]


@pytest.fixture
def service() -> Iterator[Callable[..., tuple[str, list[Any]]]]:
    """Starts a service that gives these answers, one after the other; returns what it was asked."""
    servers: list[HTTPServer] = []

    def start(*answers: Answer) -> tuple[str, list[Any]]:
        left, asked = list(answers), []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                asked.append((self.path, self.headers["authorization"], json.loads(body)))
                self.do_GET()

            def do_GET(self) -> None:
                status, told = left.pop(0)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(told).encode())

            def log_message(self, *_: Any) -> None:
                """Says nothing."""

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}", asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def told(phase: str, **last: Any) -> Answer:
    return 200, {"phase": phase, "serving": {"index": "/b"}, "last": last or None}


def test_a_change_is_waited_for_and_told(
    service: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key").write_text("secret\n")
    url, asked = service(
        (202, told("warming")[1]), told("flipping"), told("draining"), told("serving", done=True)
    )
    arguments = ["--url", f"{url}/", "--index", "/there/b", "--model", "/there/model", "--json"]
    assert main(["serve", "swap", *arguments, "--api-key-file", str(tmp_path / "key")]) == 0
    body = {"index": "/there/b", "model": "/there/model"}
    assert asked == [("/v1/admin/swap", "Bearer secret", body)]
    captured = capsys.readouterr()
    phases = [line.split()[0] for line in captured.err.splitlines()]
    assert phases[-3:] == ["warming", "flipping", "draining"]
    assert json.loads(captured.out.splitlines()[-1])["serving"] == {"index": "/b"}


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ([(202, told("warming")[1]), told("serving", done=False, error="no GPU")], "no GPU"),
        ([(409, {"error": {"message": "a change is under way"}})], "under way"),
        ([(500, {})], "500"),
        ([], "does not answer"),
    ],
)
def test_a_change_that_is_not_done_is_one_line(
    service: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    answers: list[Answer],
    says: str,
) -> None:
    url, _ = service(*answers) if answers else ("http://127.0.0.1:9", [])
    assert main(["serve", "swap", "--url", url, "--index", "/b"]) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["swap", "--index", "/b"], "--url"),
        (["--url", "http://x", "--index", "/b"], "serve swap"),
        (["swap", "--url", "http://x", "--index", "/b", "--api-key-file", "/no"], "/no"),
    ],
)
def test_what_is_missing_is_named(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main(["serve", *arguments]) == 2
    assert says in capsys.readouterr().err
