"""A service at half to three times what it can bear, with its load controller and without.

Capacity is the highest rate of Poisson arrivals at the full budget whose 99th percentile stays
within twice that of one request at a time. Quality is counted on what was answered.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from load.bodies import text_bodies, vector_bodies
from load.driver import Load, LoadGenerator
from shapes.served_corpus import Served

from arms.overhead import service_args
from arms.service import Service

FLOOR = "1x1"
BEARABLE = 2.0  # times the unloaded 99th percentile
FACTORS = (0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0)
# of what the floor bears, with the controller alone: without it nothing is answered there
FLOOR_FACTORS = (0.8, 1.2, 2.0)
STEP = 1.15  # between rates that are tried for a capacity
MOST_STEPS = 12
SETTLE_S = 4.0  # at the begin of a run: the controller finds its level
REST_S = 2.0
# the first searches of a service that had not read its index ahead waited for the disk: counted,
# they made the unloaded 99th percentile three times what it is
WARM_S = 8.0
FAILED_SHARE = 0.001


@dataclass(frozen=True)
class Point:
    """One run.

    Attributes:
        rate: arrivals a second.
        p50: ms of the results.
        p99: likewise.
        good_per_s: results a second within the bearable time.
        refused: share of requests turned away.
        failed: share without an answer, or with an error.
        budgets: budget -> share of the results.
        recall: recall@10 against exact search at the full budget.
        ndcg: nDCG@10 of the right answers.
    """

    rate: float
    p50: float
    p99: float
    good_per_s: float
    refused: float
    failed: float
    budgets: Mapping[str, float]
    recall: float
    ndcg: float


@dataclass(frozen=True)
class Overload:
    """The whole measurement.

    Attributes:
        unloaded_ms: median of one request at a time at the full budget.
        unloaded_p99: its 99th percentile.
        capacity: requests a second, see the module's text.
        floor_capacity: the same of requests at the floor, against the same bearable time.
        on: runs with the controller.
        off: runs without.
    """

    unloaded_ms: float
    unloaded_p99: float
    capacity: float
    floor_capacity: float
    on: Sequence[Point]
    off: Sequence[Point]


@dataclass(frozen=True)
class Setting:
    """What is loaded, and how long; `as_text`: queries are text, to be encoded."""

    served: Served
    folder: Path
    port: int
    threads: int
    seconds: float
    environment: Mapping[str, str]
    factors: Sequence[float] = FACTORS
    as_text: bool = False
    in_ingress: bool = False

    def bodies(self, budget: str) -> Path:
        """Requests at one budget."""
        file = self.folder / f"overload-{budget}.jsonl"
        if self.as_text:
            return text_bodies(file, self.served.texts, budget=budget)
        return vector_bodies(file, self.served.queries, budget=budget)


def measure_overload(setting: Setting) -> Overload:
    """Runs the service twice: without the controller, then with it."""
    auto, least = setting.bodies("auto"), setting.bodies(FLOOR)
    with _service(setting, enabled=False) as service, LoadGenerator(service.port) as generator:
        unloaded = _unloaded(generator, auto, setting.seconds)
        bearable = BEARABLE * unloaded.ms(99)
        capacity = find_capacity(_runs(generator, auto, setting), bearable, unloaded.ms())
        floor = _unloaded(generator, least, min(3.0, setting.seconds))
        floors = find_capacity(_runs(generator, least, setting), bearable, floor.ms())
        rates = [factor * capacity for factor in setting.factors]
        off = _sweep(generator, auto, setting, rates, bearable)
    with _service(setting, enabled=True) as service, LoadGenerator(service.port) as generator:
        _unloaded(generator, auto, min(3.0, setting.seconds))
        rates += [share * floors for share in FLOOR_FACTORS if share * floors > rates[-1]]
        on = _sweep(generator, auto, setting, rates, bearable)
    return Overload(unloaded.ms(), unloaded.ms(99), capacity, floors, on, off)


def find_capacity(run: Callable[[float], Load], bearable_ms: float, unloaded_ms: float) -> float:
    """The highest rate that is borne: up, or down, in steps from what one server would do.

    Args:
        run: an open-loop run at a rate.
        bearable_ms: most that the 99th percentile may be.
        unloaded_ms: of one request at a time.

    >>> from types import SimpleNamespace
    >>> def run(rate):
    ...     return SimpleNamespace(ms=lambda p: rate, failed=0, refused=0, replies=[1])
    >>> round(find_capacity(run, bearable_ms=150.0, unloaded_ms=10.0))
    148
    """
    rate = 0.85 * 1000 / unloaded_ms
    borne = _is_borne(run(rate), bearable_ms)
    up = borne
    for _ in range(MOST_STEPS):
        further = rate * STEP if up else rate / STEP
        borne = _is_borne(run(further), bearable_ms)
        if up and not borne:
            return rate
        rate = further
        if not up and borne:
            return rate
    return rate


def _is_borne(load: Load, bearable_ms: float) -> bool:
    lost = load.failed + load.refused
    return load.ms(99) <= bearable_ms and lost <= FAILED_SHARE * len(load.replies)


def _service(setting: Setting, *, enabled: bool) -> Service:

    args = service_args(
        setting.served, setting.threads, in_ingress=setting.in_ingress, load={"enabled": enabled}
    )
    return Service.ours(args, setting.port, environment=setting.environment)


def _unloaded(generator: LoadGenerator, bodies: Path, seconds: float) -> Load:
    # one at a time: two would be load already, of which the controller would remember much
    generator.closed(bodies, concurrency=1, seconds=WARM_S)
    return generator.closed(bodies, concurrency=1, seconds=seconds)


def _runs(generator: LoadGenerator, bodies: Path, setting: Setting) -> Callable[[float], Load]:
    def run(rate: float) -> Load:
        time.sleep(REST_S)
        return generator.open(bodies, rate=rate, seconds=setting.seconds)

    return run


def _sweep(
    generator: LoadGenerator,
    bodies: Path,
    setting: Setting,
    rates: Sequence[float],
    bearable: float,
) -> list[Point]:
    """Rising rates: the controller follows from one to the next."""
    points = []
    for number, rate in enumerate(rates):
        seconds = SETTLE_S + setting.seconds
        whole = generator.open(bodies, rate=rate, seconds=seconds, seed=number, drain_s=20.0)
        points.append(summarise(whole.after(SETTLE_S), rate, bearable, setting))
        time.sleep(REST_S)
    return points


def summarise(load: Load, rate: float, bearable_ms: float, setting: Setting) -> Point:
    """One run in numbers; requests without an answer count as failed, not as slow."""
    count = max(1, len(load.replies))
    in_time = [reply for reply in load.good if reply.ms is not None and reply.ms <= bearable_ms]
    used = Counter(reply.budget or "?" for reply in load.good)
    return Point(
        rate=rate,
        p50=load.ms(50),
        p99=load.ms(99),
        good_per_s=len(in_time) / setting.seconds,
        refused=load.refused / count,
        failed=load.failed / count,
        budgets={name: times / max(1, len(load.good)) for name, times in used.most_common()},
        recall=_recall(load, setting.served),
        ndcg=_ndcg(load, setting.served),
    )


def _recall(load: Load, served: Served) -> float:
    exact = served.task.exact()
    best = [set(ids[:10].tolist()) for ids in exact.ids]
    shares = [len(best[reply.row] & set(reply.ids[:10])) / 10 for reply in load.good]
    return statistics.fmean(shares) if shares else math.nan


def _ndcg(load: Load, served: Served) -> float:
    gains = []
    for reply in load.good:
        right = served.task.relevant[reply.row]
        found = [right.get(name, 0.0) for name in reply.ids[:10]]
        ideal = sorted(right.values(), reverse=True)[:10]
        gains.append(_discounted(found) / _discounted(ideal))
    return statistics.fmean(gains) if gains else math.nan


def _discounted(grades: Sequence[float]) -> float:
    return float(np.sum(np.asarray(grades) / np.log2(2 + np.arange(len(grades)))))


def overload_table(found: Overload) -> list[list[str]]:
    """Rows for people."""
    rows = [["arm", "x capacity", "rate", "p50 ms", "p99 ms", "p99/unloaded", "in time/s"]]
    rows[0] += ["refused", "failed", "budgets", "recall@10", "nDCG@10"]
    for name, points in (("on", found.on), ("off", found.off)):
        for point in points:
            budgets = " ".join(f"{b} {share:.0%}" for b, share in point.budgets.items())
            rows.append(
                [
                    name,
                    f"{point.rate / found.capacity:.2f}",
                    f"{point.rate:.1f}",
                    f"{point.p50:.1f}",
                    f"{point.p99:.1f}",
                    f"{point.p99 / found.unloaded_p99:.2f}",
                    f"{point.good_per_s:.1f}",
                    f"{point.refused:.1%}",
                    f"{point.failed:.1%}",
                    budgets,
                    f"{point.recall:.3f}",
                    f"{point.ndcg:.3f}",
                ]
            )
    return rows
