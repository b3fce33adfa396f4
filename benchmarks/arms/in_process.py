"""The same work without a service: searches, and encoding, called in loops of so many threads."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shapes.search_task import Query

from rematch_ray.data.item import Item
from rematch_ray.index.search import SearchIndex
from rematch_ray.model.embedder import Embedder


@dataclass(frozen=True)
class Loop:
    """What a loop did.

    Attributes:
        ms: of single calls.
        per_s: queries a second.
        cpu_ms: CPU of this process for each query.
    """

    ms: Sequence[float]
    per_s: float
    cpu_ms: float

    @property
    def median(self) -> float:
        """Milliseconds of a call."""
        return statistics.median(self.ms)


def searches(
    index: SearchIndex, queries: Query, *, threads: int, seconds: float, **asked: Any
) -> Loop:
    """Single queries, one after another in each thread."""

    def one(turn: int) -> None:
        row = turn % len(queries)
        index.search(queries[row : row + 1], **asked)

    return run_loop(one, threads=threads, seconds=seconds, per_call=1)


def encoded_searches(
    model: Embedder,
    index: SearchIndex,
    texts: Sequence[str],
    *,
    batch: int,
    seconds: float,
    **asked: Any,
) -> Loop:
    """Batches of texts, encoded together and then searched together, in this one thread."""

    def one(turn: int) -> None:
        items = [Item.of(texts[(turn * batch + n) % len(texts)], id="query") for n in range(batch)]
        index.search(model.encode(items, "query"), **asked)

    return run_loop(one, threads=1, seconds=seconds, per_call=batch)


def run_loop(call: Callable[[int], None], *, threads: int, seconds: float, per_call: int) -> Loop:
    """Calls with 0, 1, 2, ... until the time is over.

    Args:
        call: does `per_call` queries.
        threads: that call.
        seconds: how long calls are begun.
        per_call: queries of one call.
    """
    turns, spent = itertools.count(), []
    until = time.perf_counter() + seconds

    def work() -> None:
        while (began := time.perf_counter()) < until:
            call(next(turns))
            spent.append(1000 * (time.perf_counter() - began))

    used, began = time.process_time(), time.perf_counter()
    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds, used = time.perf_counter() - began, time.process_time() - used
    count = len(spent) * per_call
    return Loop(spent, count / seconds, 1000 * used / count)
