"""The first searches of an index whose files are not in memory, read ahead and not.

Each arm in a process of its own, in turn: files are dropped from memory, the index is opened as a
shard opens it, and queries are searched one after another.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from shapes.served_corpus import Served

from rematch_ray.serve.backend import EncodedQuery
from rematch_ray.serve.held import HeldGenerations
from rematch_ray.serve.searching import warm_up

EARLY = slice(1, 10)
LATE = slice(40, None)


@dataclass(frozen=True)
class FirstSearches:
    """Milliseconds, and how often a search waited for the disk.

    Attributes:
        preload: whether the index was read ahead, and searched once.
        start_s: seconds until it was ready.
        first_ms: of the first search.
        early_ms: median of the nine after it.
        late_ms: median from the fortieth on.
        disk_waits: major page faults of all searches.
    """

    preload: bool
    start_s: float
    first_ms: float
    early_ms: float
    late_ms: float
    disk_waits: int


def measure_first_searches(served: Served, *, rounds: int) -> list[FirstSearches]:
    """Medians over the rounds, without and with reading ahead."""
    context = multiprocessing.get_context("spawn")
    arms: dict[bool, list[FirstSearches]] = {False: [], True: []}
    for _ in range(rounds):
        for preload, found in arms.items():
            with context.Pool(1) as pool:
                found.append(pool.apply(_search, (served, preload)))
    return [sorted(found, key=lambda one: one.first_ms)[rounds // 2] for found in arms.values()]


def first_searches_table(rows: list[FirstSearches]) -> list[list[str]]:
    """A head and a line each."""
    head = ["read ahead", "ready, s", "first, ms", "next nine", "later", "waits for the disk"]
    return [
        head,
        *(
            [
                "yes" if row.preload else "no",
                f"{row.start_s:.2f}",
                *(f"{ms:.1f}" for ms in (row.first_ms, row.early_ms, row.late_ms)),
                str(row.disk_waits),
            ]
            for row in rows
        ),
    ]


def _search(served: Served, preload: bool) -> FirstSearches:
    vectors, fused = served.queries.vectors, served.queries.fused
    drop(served.index)
    started = time.perf_counter()
    opened = HeldGenerations(served.index, preload=preload).newest
    if preload:
        warm_up(opened)
    start_s = time.perf_counter() - started
    waits = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    times = []
    for row in range(len(vectors)):
        query = EncodedQuery(
            vectors[row : row + 1], None if fused is None else fused[row : row + 1]
        )
        started = time.perf_counter()
        opened.index.search(query)
        times.append(1e3 * (time.perf_counter() - started))
    return FirstSearches(
        preload=preload,
        start_s=start_s,
        first_ms=times[0],
        early_ms=statistics.median(times[EARLY]),
        late_ms=statistics.median(times[LATE]),
        disk_waits=resource.getrusage(resource.RUSAGE_SELF).ru_majflt - waits,
    )


def drop(directory: Path) -> None:
    """Makes the system forget the files of a directory, as far as no process has them mapped."""
    for path in directory.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            try:
                os.fsync(file)
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(file)
