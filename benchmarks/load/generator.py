"""A load generator as a program of its own: jobs in, a JSON line each, answers in a file.

Closed loop: so many connections, each sends its next request when it has its answer. Open loop:
Poisson arrivals at a rate, whatever the service does; a latency counts from the moment that the
request was due, so what waits for a free connection is not forgotten. Answers are read as JSON
only when the timed span is over.

    python benchmarks/load/generator.py < jobs
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from load.connection import LOST, Connection, http_request

MOST_CONNECTIONS = 256
OPENED_AHEAD = 16


@dataclass(frozen=True)
class Job:
    """What to send.

    Attributes:
        port: of the service, on this machine.
        path: of the route.
        bodies: a file with a JSON body on each line; sent in turn.
        seconds: how long requests are begun.
        concurrency: of a closed loop.
        rate: of an open loop, requests a second; None for a closed loop.
        seed: of the arrivals.
        drain_s: how long answers are waited for afterwards.
        skip: bodies passed over at first, so that one job goes on where another ended.
        out: file that the answers are written to.
    """

    port: int
    path: str
    bodies: str
    seconds: float
    out: str
    concurrency: int = 1
    rate: float | None = None
    seed: int = 0
    drain_s: float = 10.0
    skip: int = 0


@dataclass
class Sent:
    """One request: which body, when it was due (seconds into the run), and its answer."""

    row: int
    due: float
    ended: float = 0.0
    status: int = LOST
    body: bytes = b""


@dataclass
class Run:
    """A job that is being done."""

    job: Job
    requests: list[bytes]
    sent: list[Sent] = field(default_factory=list)
    idle: list[Connection] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    opened: int = 0
    unanswered: int = 0
    began: float = 0.0

    async def closed(self) -> None:
        """A closed loop."""
        for connection in [await self._open() for _ in range(self.job.concurrency)]:
            self._start(self._due(self._now()), connection)
        await asyncio.sleep(self.job.seconds)
        await self._drain()

    async def open(self) -> None:
        """An open loop."""
        assert self.job.rate is not None
        self.idle = [await self._open() for _ in range(OPENED_AHEAD)]
        draw, due = random.Random(self.job.seed), 0.0
        while due < self.job.seconds:
            due += draw.expovariate(self.job.rate)
            if (wait := due - self._now()) > 0:
                await asyncio.sleep(wait)
            token = self._due(due)
            if not self.idle and self.opened < MOST_CONNECTIONS:
                self.idle.append(await self._open())
            if self.idle:
                self._start(token, self.idle.pop())
            else:
                self.waiting.append(token)
        await self._drain()

    def _now(self) -> float:
        return time.perf_counter() - self.began

    def _due(self, when: float) -> int:
        self.sent.append(Sent((self.job.skip + len(self.sent)) % len(self.requests), when))
        self.unanswered += 1
        return len(self.sent) - 1

    async def _open(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Connection(self._answered), "127.0.0.1", self.job.port
        )
        self.opened += 1
        self.began = self.began or time.perf_counter()
        return connection

    def _start(self, token: int, connection: Connection) -> None:
        connection.send(self.requests[self.sent[token].row], token)

    def _answered(self, connection: Connection, status: int, body: bytes) -> None:
        one = self.sent[connection.token]
        one.ended, one.status, one.body = self._now(), status, body
        connection.token = -1
        self.unanswered -= 1
        if not connection.is_open:
            self.opened -= 1
        elif self.job.rate is not None:
            if self.waiting:
                self._start(self.waiting.pop(0), connection)
            else:
                self.idle.append(connection)
        elif one.ended < self.job.seconds:
            self._start(self._due(one.ended), connection)

    async def _drain(self) -> None:
        until = self._now() + self.job.drain_s
        while self.unanswered and self._now() < until:
            await asyncio.sleep(0.01)


def do(job: Job) -> None:
    """Does one job and writes what came back."""
    lines = Path(job.bodies).read_bytes().splitlines()
    run = Run(job, [http_request(job.path, line) for line in lines])
    used = time.process_time()
    uvloop.run(run.closed() if job.rate is None else run.open())
    used = time.process_time() - used
    last = max((one.ended for one in run.sent), default=0.0)
    answers = [_told(one) for one in run.sent]
    Path(job.out).write_text(json.dumps({"cpu_s": used, "seconds": last, "answers": answers}))


def _told(one: Sent) -> list[Any]:
    """Row, due, latency in ms (None: no answer), status, budget, degraded, ids."""
    late = None if one.status == LOST else 1000 * (one.ended - one.due)
    said: dict[str, Any] = json.loads(one.body) if one.status == 200 else {}
    ids = [hit["id"] for hit in said.get("results", ())]
    return [one.row, one.due, late, one.status, said.get("budget"), said.get("degraded"), ids]


def main() -> int:
    """Reads jobs until its input ends."""
    for line in sys.stdin:
        do(Job(**json.loads(line)))
        print("done", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
