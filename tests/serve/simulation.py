"""A simulated search service: Poisson arrivals, k servers with one queue, a service time per level.

Time is a number: minutes of service take a second to simulate, and the same seed gives the same
run.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from rematch_ray.serve.load import LoadController
from rematch_ray.serve.settings import LoadSettings
from rematch_ray.serve.waits import Waits

EXCHANGE_S = 0.2


class Clock:
    """Seconds that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Run:
    """What happened: one entry per request, and the level at every exchange."""

    arrived: list[float] = field(default_factory=list)
    latency: list[float] = field(default_factory=list)
    explicit: list[bool] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    refused_explicit: list[float] = field(default_factory=list)
    levels: list[tuple[float, int]] = field(default_factory=list)

    def p99(self, start: float = 0.0, end: float = np.inf) -> float:
        """99th percentile of the latency of what arrived between."""
        arrived = np.array(self.arrived)
        return float(
            np.quantile(np.array(self.latency)[(arrived >= start) & (arrived < end)], 0.99)
        )

    def level_changes(self, start: float = 0.0) -> int:
        levels = [level for at, level in self.levels if at >= start]
        return sum(a != b for a, b in itertools.pairwise(levels))

    def levels_between(self, start: float, end: float) -> list[int]:
        return [level for at, level in self.levels if start <= at < end]


@dataclass
class Service:
    """k servers and one queue, reported to a controller as routers do.

    Attributes:
        seconds: service time of each level.
        servers: searches at a time.
        routers: how many report, in turn.
        explicit_share: of the requests that name the top rung.
        jitter: service times vary by this share, uniformly.
        elsewhere_s: mean of what each request waits beside, whatever the level.
        slowdown: times that a search takes longer at a time, for something else that runs.
    """

    seconds: Sequence[float]
    servers: int = 1
    settings: LoadSettings = field(default_factory=LoadSettings)
    routers: int = 2
    explicit_share: float = 0.0
    jitter: float = 0.1
    elsewhere_s: float = 0.0
    slowdown: Callable[[float], float] = lambda t: 1.0

    def run(self, rate: Callable[[float], float], until: float, seed: int = 0) -> Run:
        """Simulate; `rate` gives requests per second at a time."""
        rng = np.random.default_rng(seed)
        clock, run = Clock(), Run()
        load = LoadController(len(self.seconds), self.settings, clock, unloaded_s=self.seconds[0])
        self.load = load
        free_at = [0.0] * self.servers
        heapq.heapify(free_at)
        gate, running, ends = Waits(clock), deque[int](), list[tuple[float, int]]()
        queue: deque[tuple[float, bool]] = deque()
        waits: list[float] = []
        refused, next_exchange, now = 0, EXCHANGE_S, 0.0
        arrival = self._after(0.0, rate, rng)
        while now < until or queue:
            begin = max(free_at[0], queue[0][0]) if queue else np.inf
            now = min(arrival, begin, next_exchange)
            clock.now = now
            while ends and ends[0][0] <= now:
                gate.end(heapq.heappop(ends)[1], 0.0)
            if now == next_exchange:
                gate.take()
                self._report(load, waits, [now - at for at, _ in queue], refused)
                waits, refused = [], 0
                load.tick()
                run.levels.append((now, load.level))
                next_exchange += EXCHANGE_S
            elif now == begin:
                arrived, explicit = queue.popleft()
                elsewhere = rng.exponential(self.elsewhere_s) if self.elsewhere_s else 0.0
                waits.append(now - arrived + elsewhere)
                level = 0 if explicit else load.level
                took = self.seconds[level] * rng.uniform(1 - self.jitter, 1 + self.jitter)
                took *= self.slowdown(now)
                heapq.heapreplace(free_at, now + took)
                heapq.heappush(ends, (now + took, running.popleft()))
                run.arrived.append(arrived)
                run.latency.append(now + took - arrived + elsewhere)
                run.explicit.append(explicit)
            else:
                explicit = bool(rng.random() < self.explicit_share)
                arrival = self._after(now, rate, rng) if now < until else np.inf
                if load.bearable_s is not None and not gate.has_room(load.bearable_s):
                    run.refused.append(now)
                    refused += 1
                elif explicit and load.refuses_explicit:
                    run.refused_explicit.append(now)
                    refused += 1
                else:
                    queue.append((now, explicit))
                    running.append(gate.begin(0.0))
        return run

    def _after(self, now: float, rate: Callable[[float], float], rng: np.random.Generator) -> float:
        return now + rng.exponential(1 / rate(now))

    def _report(
        self, load: LoadController, began: list[float], waiting: list[float], refused: int
    ) -> None:
        for router in range(self.routers):
            mine = began[router :: self.routers]
            longest = max(waiting[router :: self.routers], default=0.0)
            delay = float(np.mean(mine)) if mine else longest
            share = refused // self.routers + (router < refused % self.routers)
            load.observe(delay, len(mine), f"router-{router}", refused=share)
