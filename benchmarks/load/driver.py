"""Drives the load generator's process and reads what came back."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PROGRAM = Path(__file__).parent / "generator.py"


@dataclass(frozen=True)
class Reply:
    """One request and its answer.

    Attributes:
        row: which body.
        due: seconds into the run.
        ms: latency; None when no answer came.
        status: HTTP status, 0 without one.
        budget: that the service says it used.
        degraded: why it used less than it would have, or None.
        ids: of the hits, best first.
    """

    row: int
    due: float
    ms: float | None
    status: int
    budget: str | None
    degraded: str | None
    ids: list[str]


@dataclass(frozen=True)
class Load:
    """What one job brought.

    Attributes:
        replies: in the order that they were due.
        seconds: to the last answer.
        cpu_s: of the generator's process while it ran.
    """

    replies: Sequence[Reply]
    seconds: float
    cpu_s: float

    @property
    def good(self) -> list[Reply]:
        """Those answered with 200."""
        return [reply for reply in self.replies if reply.status == 200]

    @property
    def refused(self) -> int:
        """How many the service turned away, with 429 or 503."""
        return sum(reply.status in (429, 503) for reply in self.replies)

    @property
    def failed(self) -> int:
        """How many had no answer, or one that is neither a result nor a refusal."""
        return len(self.replies) - len(self.good) - self.refused

    @property
    def per_s(self) -> float:
        """Results a second."""
        return len(self.good) / self.seconds if self.seconds else 0.0

    def ms(self, percentile: float = 50) -> float:
        """Latency of the results; infinite where there is none."""
        times = [reply.ms for reply in self.good if reply.ms is not None]
        return float(np.percentile(times, percentile)) if times else float("inf")

    def after(self, seconds: float) -> Load:
        """Without what was due before that moment."""
        kept = [reply for reply in self.replies if reply.due >= seconds]
        return Load(kept, self.seconds - seconds, self.cpu_s)


class LoadGenerator:
    """The process; ends with its block.

    Args:
        port: of the service.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._folder = tempfile.TemporaryDirectory(prefix="load-")
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> LoadGenerator:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._folder.cleanup()

    @property
    def pid(self) -> int:
        """Of the process, to tell its CPU from the service's."""
        return self._process.pid

    def closed(self, bodies: Path, *, concurrency: int, seconds: float, **more: Any) -> Load:
        """So many requests at a time for so long."""
        return self._do(bodies=bodies, concurrency=concurrency, seconds=seconds, **more)

    def open(self, bodies: Path, *, rate: float, seconds: float, **more: Any) -> Load:
        """Requests that arrive at a rate."""
        return self._do(bodies=bodies, rate=rate, seconds=seconds, **more)

    def _do(self, *, bodies: Path, path: str = "/v1/search", **job: Any) -> Load:
        assert self._process.stdin is not None and self._process.stdout is not None
        out = Path(self._folder.name) / "answers.json"
        told = {"port": self._port, "path": path, "bodies": str(bodies), "out": str(out), **job}
        print(json.dumps(told), file=self._process.stdin, flush=True)
        if not self._process.stdout.readline():
            raise RuntimeError("the load generator ended; its message stands above")
        said = json.loads(out.read_text())
        return Load([Reply(*one) for one in said["answers"]], said["seconds"], said["cpu_s"])
