"""Our service as a process of its own, and the program that runs in it.

The service runs as `rematch-ray serve` runs it: one Ray cluster, Serve, the application. It ends
when its input does. Variants of Serve (proxies, flags) are variables of its environment.

    python benchmarks/arms/service.py PORT ARGS_AS_JSON
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).resolve()
ROOT = PROGRAM.parents[2]
READY_S = 240.0
STOP_S = 60.0


class NotReadyError(RuntimeError):
    """A service that did not come to answer."""


class Service:
    """A service while its block lasts.

    Args:
        command: program and arguments; it listens on `port` and ends when its input does.
        port: where it answers.
        ready: path that answers 200 once it is ready.
        environment: variables beside those of this process.
        patience_s: how long it may take to get ready.
    """

    def __init__(
        self,
        command: list[str],
        port: int,
        *,
        ready: str = "/readyz",
        environment: Mapping[str, str] = {},
        patience_s: float = READY_S,
    ) -> None:
        self.port, self._patience_s = port, patience_s
        path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
        self._process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, **environment},
        )
        self._url = f"http://127.0.0.1:{port}{ready}"

    @classmethod
    def ours(
        cls, args: Mapping[str, Any], port: int, *, environment: Mapping[str, str] = {}
    ) -> Service:
        """Our application with these `ServeArgs`."""
        told = json.dumps({"allow_anonymous": True, **args})
        return cls([str(PROGRAM), str(port), told], port, environment=environment)

    def __enter__(self) -> Service:
        until = time.monotonic() + self._patience_s
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > until:
                self.__exit__()
                waited = f"after {self._patience_s:.0f} s, or it ended"
                raise NotReadyError(f"not ready {waited}; its messages stand above")
            time.sleep(0.25)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        """Of the process; all else that serves is below it."""
        return self._process.pid

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(self._url, timeout=10):
                return True
        except (urllib.error.URLError, OSError):
            return False


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    """Serves until its input ends."""
    os.environ.pop("RAY_ADDRESS", None)
    port, args = int(sys.argv[1]), json.loads(sys.argv[2])
    # where the ingress replica listens at that port itself, Serve's proxy goes elsewhere
    is_direct = os.environ.get("RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT") == str(port)
    from ray import serve
    from ray.serve.config import HTTPOptions
    from ray.serve.schema import LoggingConfig

    from rematch_ray.serve.app import build
    from rematch_ray.serve.settings import ServeArgs
    from rematch_ray.workloads.runtime import connect

    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    with connect([]):
        http = HTTPOptions(host="127.0.0.1", port=free_port() if is_direct else port)
        serve.start(http_options=http, logging_config=quiet)
        application = build(ServeArgs.model_validate(args))
        serve.run(application, name="rematch-ray", route_prefix="/", logging_config=quiet)
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
