"""What the service adds to a search: time at one request at a time, CPU, and throughput lost.

In-process loop and service in turn, in one run, on the same index with the same threads; the load
generator shares the cores with the service.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from load.bodies import vector_bodies
from load.driver import Load, LoadGenerator
from meters.cpu import CpuMeter
from shapes.served_corpus import Served

from arms.in_process import Loop, searches
from arms.service import Service

LONG_MS = 20.0
LONG_COUNTS = (5_000, 10_000, 20_000, 40_000, 80_000)
WARM_S = 0.5
PER_THREAD = 4  # requests under way for each thread that searches


@dataclass(frozen=True)
class Case:
    """A kind of request: its name, and the fields that the API and `SearchIndex.search` share."""

    name: str
    asked: Mapping[str, Any]


@dataclass(frozen=True)
class Overhead:
    """One kind of request, medians over the rounds.

    Attributes:
        name: of the case.
        own_ms: median of an in-process call, alone.
        ms: median of a request, alone.
        own_cpu_ms: CPU of an in-process search.
        cpu_ms: CPU of all processes of the service for each request, one at a time.
        busy_cpu_ms: the same under full load.
        client_cpu_ms: CPU of the load generator for each request.
        own_per_s: queries a second of the in-process loop with all threads.
        per_s: requests a second of the service under full load.
        processes: CPU-ms for each request under full load, by process.
    """

    name: str
    own_ms: float
    ms: float
    own_cpu_ms: float
    cpu_ms: float
    busy_cpu_ms: float
    client_cpu_ms: float
    own_per_s: float
    per_s: float
    processes: Mapping[str, float]

    @property
    def added_ms(self) -> float:
        """Median milliseconds that the service adds."""
        return self.ms - self.own_ms

    @property
    def share(self) -> float:
        """Throughput over that of the in-process loop."""
        return self.per_s / self.own_per_s


def usual_cases() -> list[Case]:
    """The three budgets, with the planner's own candidates."""
    return [Case(rung, {"budget": rung}) for rung in ("1x1", "8x16", "16x64")]


def long_cases(served: Served) -> list[Case]:
    """Searches that take `LONG_MS` or more: as many candidates as that needs, and all."""
    index, cases = served.open(), []
    for count in (count for count in LONG_COUNTS if count < len(index)):
        asked = {"budget": "16x64", "candidates": count}
        if searches(index, served.queries, threads=1, seconds=1.0, **asked).median >= LONG_MS:
            cases.append(Case(f"16x64, {count} candidates", asked))
            break
    return [*cases, Case("16x64, all documents", {"budget": "16x64", "candidates": "all"})]


def service_args(
    served: Served, threads: int, *, in_ingress: bool = False, **more: Any
) -> dict[str, Any]:
    """`ServeArgs` of a laptop's form: everything once, so many threads that search."""
    return {
        "index": str(served.index),
        "model": str(served.model),
        "shard": {"num_threads": threads, "in_ingress": in_ingress},
        "limits": {"max_candidates": 1_000_000},
        # full throughput at explicit budgets is what the controller refuses, by design
        "load": {"enabled": False},
        "access_log": {"enabled": False},
        **more,
    }


def measure_overhead(
    service: Service,
    generator: LoadGenerator,
    served: Served,
    cases: Sequence[Case],
    folder: Path,
    *,
    threads: int,
    rounds: int,
    seconds: float,
) -> list[Overhead]:
    """Measures every case; the service is up."""
    index, meter = served.open(), CpuMeter(service.pid)
    results = []
    for number, case in enumerate(cases):
        bodies = vector_bodies(folder / f"case-{number}.jsonl", served.queries, **case.asked)
        generator.closed(bodies, concurrency=PER_THREAD * threads, seconds=WARM_S)
        searches(index, served.queries, threads=1, seconds=WARM_S, **case.asked)
        turns = []
        for _ in range(rounds):
            own = searches(index, served.queries, threads=1, seconds=seconds, **case.asked)
            one = _metered(generator, meter, bodies, 1, seconds)
            owns = searches(index, served.queries, threads=threads, seconds=seconds, **case.asked)
            full = _metered(generator, meter, bodies, PER_THREAD * threads, seconds)
            turns.append(_Turn(own, one, owns, full))
        results.append(_summed(case.name, turns))
    return results


@dataclass(frozen=True)
class _Metered:
    """A load, and the CPU-ms of the service for each of its requests, by process."""

    load: Load
    cpu_ms: Mapping[str, float]


@dataclass(frozen=True)
class _Turn:
    own: Loop
    one: _Metered
    owns: Loop
    full: _Metered


def _metered(
    generator: LoadGenerator, meter: CpuMeter, bodies: Path, concurrency: int, seconds: float
) -> _Metered:
    before = meter.by_process()
    load = generator.closed(bodies, concurrency=concurrency, seconds=seconds)
    if load.failed or load.refused or not load.good:
        raise RuntimeError(f"{load.failed} requests failed and {load.refused} were refused")
    spent = {p: s - before.get(p, 0.0) for p, s in meter.by_process().items()}
    used = meter.by_title(spent)
    return _Metered(load, {name: 1000 * s / len(load.good) for name, s in used.items()})


def _summed(name: str, turns: Sequence[_Turn]) -> Overhead:
    def middle(values: Sequence[float]) -> float:
        return statistics.median(values)

    names = {name for turn in turns for name in turn.full.cpu_ms}
    processes = {
        name: middle([turn.full.cpu_ms.get(name, 0.0) for turn in turns]) for name in names
    }
    return Overhead(
        name=name,
        own_ms=middle([turn.own.median for turn in turns]),
        ms=middle([turn.one.load.ms() for turn in turns]),
        own_cpu_ms=middle([turn.own.cpu_ms for turn in turns]),
        cpu_ms=middle([sum(turn.one.cpu_ms.values()) for turn in turns]),
        busy_cpu_ms=middle([sum(turn.full.cpu_ms.values()) for turn in turns]),
        client_cpu_ms=middle(
            [1000 * turn.full.load.cpu_s / len(turn.full.load.good) for turn in turns]
        ),
        own_per_s=middle([turn.owns.per_s for turn in turns]),
        per_s=middle([turn.full.load.per_s for turn in turns]),
        processes=dict(sorted(processes.items(), key=lambda entry: -entry[1])),
    )


def overhead_table(results: Sequence[Overhead]) -> list[list[str]]:
    """Rows for people."""
    head = ["request", "in-process ms", "service ms", "added ms", "CPU-ms in-process"]
    head += ["CPU-ms service", "under load", "client", "in-process/s", "service/s", "share"]
    rows = [head]
    for one in results:
        times = [one.own_ms, one.ms, one.added_ms, one.own_cpu_ms, one.cpu_ms, one.busy_cpu_ms]
        cells = [f"{value:.2f}" for value in times]
        rates = [f"{one.own_per_s:.1f}", f"{one.per_s:.1f}", f"{one.share:.2f}"]
        rows.append([one.name, *cells, f"{one.client_cpu_ms:.2f}", *rates])
    return rows
