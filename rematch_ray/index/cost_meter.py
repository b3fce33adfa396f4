"""Takes the constants of `costs.py` on this machine, through small indexes of random vectors.

What a stage took is what searches report, so whatever kernels the index uses are those that are
timed. Some seconds and at most a few hundred megabytes in a temporary folder. Middle floor.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from rematch_ray.index.build import build_index
from rematch_ray.index.coarse.sizes import default_nprobe, lists_for
from rematch_ray.index.costs import (
    EXPECTED,
    PROBED_LIST_EXCESS,
    Costs,
)
from rematch_ray.index.planner import Candidates
from rematch_ray.index.search import SearchIndex
from rematch_ray.index.shards import EmbeddingBatch, EmbeddingShards
from rematch_ray.scoring.budget import Budget, Ladder

NUM_DOCUMENTS, NUM_COARSE = 8000, 25_000
MOST_ENTRIES = 1 << 26
COUNTS = (200, 2000)
NUM_QUERIES = 12
# more than caches hold
MEMORY_BYTES = 1 << 28


class RandomShards(EmbeddingShards):
    """Random unit vectors in the place of embedding shards, made batch by batch from a seed."""

    @classmethod
    def of(cls, num_documents: int, ladder: Ladder, dim: int) -> RandomShards:
        """Documents with as many vectors as the ladder needs, without fused ones."""
        manifest = {
            "identity": {"digest": "random", "name": "random", "ladder": ladder.texts()},
            "side": "document",
            "R": ladder.num_document_vectors,
            "D": dim,
            "embedded": num_documents,
            "shards": [],
        }
        return cls(Path("random"), manifest)

    def batches(self, rows: int = 1024) -> Iterator[EmbeddingBatch]:
        """All documents, the same in every pass."""
        random = np.random.default_rng(0)
        for start in range(0, self.num_rows, rows):
            count = min(rows, self.num_rows - start)
            yield EmbeddingBatch(
                ids=[f"document-{row}" for row in range(start, start + count)],
                vectors=_unit(random, (count, self.num_vectors, self.dim)).astype(np.float16),
                fused=None,
                sources=[""] * count,
                payloads=[{}] * count,
            )


@dataclass(frozen=True)
class _Query:
    """One query as a search takes it."""

    vectors: NDArray[np.float32]
    fused: None = None


@dataclass(frozen=True)
class _Taken:
    """The least over queries, in milliseconds, since other work on the machine only adds to it.

    Args:
        stages: by name.
        beside: what the call took beside its stages.
        read: documents whose originals were read, a mean.
    """

    stages: dict[str, float]
    beside: float
    read: float


def measure_costs(*, dim: int, ladder: Ladder) -> Costs:
    """Times the constants here, FAISS on one thread.

    Args:
        dim: D of the vectors that are timed.
        ladder: rungs that are timed.

    Returns:
        The constants; those of SSDs and networks stay as expected.
    """
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            costs = _measure_rungs(Path(folder), dim, ladder)
            costs = _measure_coarse(Path(folder), dim, costs)
    finally:
        faiss.omp_set_num_threads(threads)
    machine = f"{os.cpu_count()} cores {platform.machine()}"
    return replace(
        costs,
        measured=f"{machine}, vectors of {dim}; SSD, network and short codes as expected",
    )


def _measure_rungs(folder: Path, dim: int, ladder: Ladder) -> Costs:
    entries = ladder.num_document_vectors * dim
    num_documents = max(2 * COUNTS[0], min(NUM_DOCUMENTS, MOST_ENTRIES // entries))
    index = _build(folder / "rungs", num_documents, ladder, dim, "scan")
    counts = [count for count in COUNTS if count < num_documents]
    taken = {
        (rung, count): _search(index, dim, ladder, rung, count)
        for rung in ladder.rungs
        for count in counts
    }
    lines = [
        [1.0, count, count * rung.r_d * dim, count * rung.dot_products * dim]
        for rung, count in taken
    ]
    times = [one.stages[str(rung)] for (rung, _), one in taken.items()]
    stage_ms, document, entry, product = _fit(np.array(lines), np.array(times))
    # of one vector's entries, where every document is read
    ordered = [
        (_search(index, dim, ladder, rung, "all").stages[str(rung)] - stage_ms)
        / (num_documents * rung.r_d * dim)
        - rung.r_q * product
        for rung in ladder.rungs
    ]
    low = taken[ladder.rungs[0], counts[0]]
    return replace(
        EXPECTED,
        call_ms=low.beside + low.stages["exact"],
        stage_ms=stage_ms,
        document_ns=document * 1e6,
        entry_ns=entry * 1e6,
        ordered_ns=max(_memory_ns(), statistics.median(ordered) * 1e6),
        product_ns=product * 1e6,
        exact_ns=_exact_ns(taken[ladder.top, counts[0]], low, ladder, dim),
    )


def _exact_ns(top: _Taken, low: _Taken, ladder: Ladder, dim: int) -> float:
    """Per entry of a dot product with originals: what the top rung's take beyond the lowest's."""
    entries = (top.read * ladder.top.dot_products - low.read) * dim
    return max(0.0, top.stages["exact"] - low.stages["exact"]) * 1e6 / max(1.0, entries)


def _measure_coarse(folder: Path, dim: int, costs: Costs) -> Costs:
    ladder = Ladder.parse(["1x1"])
    taken = {}
    for kind in ("scan", "ivf"):
        index = _build(folder / kind, NUM_COARSE, ladder, dim, kind)
        taken[kind] = _search(index, dim, ladder, ladder.top, COUNTS[0])
    scan, lists = (
        max(0.0, taken[kind].stages["coarse:first"] - costs.stage_ms) * 1e6 / dim
        for kind in ("scan", "ivf")
    )
    count = lists_for(NUM_COARSE)
    probed = min(1.0, PROBED_LIST_EXCESS * default_nprobe(count) / count) * NUM_COARSE
    return replace(
        costs,
        # so few vectors stay in a cache; those of a corpus that is worth planning do not
        scan_ns=max(_memory_ns(), scan / NUM_COARSE),
        list_ns=max(0.0, lists - count * costs.centroid_ns) / probed,
    )


def _memory_ns() -> float:
    """Nanoseconds per byte read from memory one after another; an entry of a code is a byte."""
    words = np.ones(MEMORY_BYTES // 8, np.int64)
    taken = []
    for _ in range(4):
        started = time.perf_counter()
        words.sum()
        taken.append(time.perf_counter() - started)
    return min(taken) * 1e9 / MEMORY_BYTES


def _build(folder: Path, num_documents: int, ladder: Ladder, dim: int, kind: str) -> SearchIndex:
    build_index(RandomShards.of(num_documents, ladder, dim), folder, coarse_kind=kind)
    return SearchIndex.open(folder)


def _search(
    index: SearchIndex, dim: int, ladder: Ladder, rung: Budget, count: Candidates
) -> _Taken:
    """Searches query by query; the first one, which maps files, is not counted."""
    random = np.random.default_rng(1)
    stages: dict[str, list[float]] = {}
    beside, read = [], []
    for number in range(NUM_QUERIES + 1):
        query = _Query(_unit(random, (1, ladder.num_query_vectors, dim)))
        started = time.perf_counter()
        [found] = index.search(query, budget=rung, candidates=count, top_k=10, coarse="first")
        whole = (time.perf_counter() - started) * 1000
        if number:
            for stage in found.stages:
                stages.setdefault(stage["name"], []).append(stage["ms"])
            beside.append(whole - sum(stage["ms"] for stage in found.stages))
            read.append(found.stages[-1]["in"])
    least = {name: min(times) for name, times in stages.items()}
    return _Taken(least, min(beside), sum(read) / len(read))


def _fit(lines: NDArray[np.float64], times: NDArray[np.float64]) -> list[float]:
    """Coefficients of the least relative error, none below zero.

    >>> lines = np.array([[1.0, 1], [1, 2], [1, 3]])
    >>> [round(value, 6) for value in _fit(lines, np.array([2.0, 4, 6]))]
    [0.0, 2.0]
    """
    weighted = lines / times[:, None]
    scale = np.linalg.norm(weighted, axis=0)
    result = np.zeros(len(scale))
    used = list(range(len(scale)))
    while used:
        found, *_ = np.linalg.lstsq(weighted[:, used] / scale[used], np.ones(len(times)))
        result[:] = 0
        result[used] = np.maximum(found, 0) / scale[used]
        if (found >= 0).all():
            break
        used.pop(int(found.argmin()))
    return [float(value) for value in result]


def _unit(random: np.random.Generator, shape: Sequence[int]) -> NDArray[np.float32]:
    vectors = random.standard_normal(tuple(shape), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
