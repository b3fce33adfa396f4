"""What every arm of the search benchmark does, how one is timed, and our own arms.

An arm is built from embedding shards in a folder of its own and answers one query at a time with
document ids, at a width: the knob that trades time for recall (candidates, probes). Arms of other
systems stand in `peers/`.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import faiss
import numpy as np
from meters.resident import own_memory
from shapes.search_task import Exact, Query

from rematch_ray.index.build import build_index
from rematch_ray.index.plan import Plan
from rematch_ray.index.planner import narrow
from rematch_ray.index.search import SearchIndex
from rematch_ray.index.shards import EmbeddingShards

TOP_K = 10
ROUNDS = 15
WIDTHS = (50, 100, 200, 500, 1000, 2000, 4000, 8000)


@dataclass(frozen=True)
class Making:
    """What building an index took: seconds, and the most memory of the process's own."""

    seconds: float
    peak_bytes: int


class SearchArm(ABC):
    """One way to search.

    Attributes:
        name: for tables.
        widths: from the narrowest.
        held_bytes: of documents in memory, beside what lies in the arm's folder.
        making: what building our index took, in this run or an earlier one.
    """

    name: str
    widths: Sequence[int] = WIDTHS
    held_bytes: int = 0
    making: Making | None = None

    @abstractmethod
    def build(self, documents: EmbeddingShards, folder: Path) -> None:
        """Builds in an empty folder and is ready to search."""

    @abstractmethod
    def search(self, query: Query, width: int) -> list[str]:
        """Ids of the best `TOP_K` documents of one query, best first."""


class OwnIndex:
    """One index on disk for all of our arms, built once; what that took is kept beside it."""

    def __init__(self, documents: EmbeddingShards, folder: Path) -> None:
        kept = folder.with_name(f"{folder.name}-making.json")
        if not (folder / "CURRENT").exists():
            started = time.perf_counter()
            with own_memory() as memory:
                build_index(documents, folder)
            making = Making(time.perf_counter() - started, memory.peak_bytes)
            kept.write_text(json.dumps(asdict(making)))
        # as a replica opens it; the other systems hold their documents in memory too
        self.index = SearchIndex.open(folder, preload=True)
        self.making = Making(**json.loads(kept.read_text())) if kept.exists() else None


class OwnExact(SearchArm):
    """All documents at one budget."""

    widths = (0,)

    def __init__(self, budget: str = "full") -> None:
        self.name = f"ours, all documents at {budget}"
        self._budget = budget

    def build(self, documents: EmbeddingShards, folder: Path) -> None:
        """Opens our index, or builds it first."""
        own = OwnIndex(documents, folder)
        self._index, self.making = own.index, own.making

    def search(self, query: Query, width: int) -> list[str]:
        """All candidates, whatever the width."""
        [found] = self._index.search(query, budget=self._budget, candidates="all", top_k=TOP_K)
        return [hit.id for hit in found.hits]


class OwnCascade(SearchArm):
    """A coarse choice, then the final budget; width 0 is the planner's own choice."""

    widths = (0, *WIDTHS)

    def __init__(self, coarse: str | None = None, budget: str = "full") -> None:
        self.name = f"ours, {coarse or 'default'} then {budget}"
        self._coarse, self._budget = coarse, budget

    def build(self, documents: EmbeddingShards, folder: Path) -> None:
        """Opens our index, or builds it first."""
        own = OwnIndex(documents, folder)
        self._index, self.making = own.index, own.making

    def search(self, query: Query, width: int) -> list[str]:
        """Candidates by width."""
        [found] = self._index.search(
            query,
            budget=self._budget,
            candidates=width or "auto",
            top_k=TOP_K,
            coarse=self._coarse,
        )
        return [hit.id for hit in found.hits]


class OwnNarrowed(OwnCascade):
    """Candidates of the default coarse choice, of which a small rung lets one in so many through.

    The factors are those that the doctor tries.
    """

    widths = WIDTHS

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.name = f"ours, default narrowed to 1/{factor}, then full"
        self._factor = factor

    def search(self, query: Query, width: int) -> list[str]:
        """Candidates by width."""
        ladder = self._index.ladder
        narrowing = narrow(ladder.top, ladder, width, TOP_K, factor=self._factor)
        plan = Plan(ladder.top, width, narrowing)
        [found] = self._index.search(query, plan=plan, top_k=TOP_K)
        return [hit.id for hit in found.hits]


class PlainFaiss(SearchArm):
    """FAISS alone on one vector per document: exact inner products in float32."""

    widths = (0,)

    def __init__(self, key: str) -> None:
        self.name = f"FAISS flat on the {key} vector"
        self._key = key

    def build(self, documents: EmbeddingShards, folder: Path) -> None:
        """Fills an index in memory."""
        dim = documents.dim if self._key == "first" else documents.fused_dim
        self._index = faiss.IndexFlatIP(dim)
        self._ids: list[str] = []
        for batch in documents.batches():
            vectors = batch.vectors[:, 0] if self._key == "first" else batch.fused
            assert vectors is not None
            self._index.add(np.ascontiguousarray(vectors, np.float32))
            self._ids += batch.ids
        self.held_bytes = 4 * (dim or 0) * len(self._ids)

    def search(self, query: Query, width: int) -> list[str]:
        """The best by inner product."""
        vectors = query.vectors[:, 0] if self._key == "first" else query.fused
        _, rows = self._index.search(np.ascontiguousarray(vectors, np.float32), TOP_K)
        return [self._ids[row] for row in rows[0]]


@dataclass(frozen=True)
class Point:
    """One arm at one width.

    Attributes:
        arm: its name.
        width: of the search.
        ms: milliseconds per query, median.
        recall: recall@10.
        peak_bytes: the most memory of the process's own while it searched, all arms' included.
        found: ids of each query.
    """

    arm: str
    width: int
    ms: float
    recall: float
    peak_bytes: int
    found: list[list[str]]


def measure(
    arms: Sequence[SearchArm],
    queries: Query,
    exact: Exact,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Point]:
    """Times every arm at every width; the first three queries are asked twice, counted once.

    Args:
        arms: built.
        queries: B queries, one at a time.
        exact: answers that recall is counted against.
        clock: `time.process_time` on a machine that other work shares.

    Returns:
        A point for each arm and width, up to the width whose recall is 0.999.
    """
    steps = [(arm, width) for arm in arms for width in arm.widths]
    points: list[Point] = []
    enough: dict[str, bool] = {}
    for arm, width in steps:
        if enough.get(arm.name):
            continue
        for number in range(min(3, len(queries))):
            arm.search(queries[number : number + 1], width)
        times, found = [], []
        with own_memory() as memory:
            for number in range(len(queries)):
                query = queries[number : number + 1]
                started = clock()
                found.append(arm.search(query, width))
                times.append((clock() - started) * 1000)
        recall = exact.recall(found)
        enough[arm.name] = recall >= 0.999 and width > 0
        ms = statistics.median(times)
        points.append(Point(arm.name, width, ms, recall, memory.peak_bytes, found))
    return points


@dataclass(frozen=True)
class Timed:
    """An arm that is built, its width, and B queries for it, one at a time."""

    arm: SearchArm
    width: int
    queries: Query


def in_turns(
    steps: Mapping[str, Timed],
    clock: Callable[[], float] = time.perf_counter,
    rounds: int = ROUNDS,
) -> dict[str, list[float]]:
    """Times some arms one after the other, again and again: what ratios are made of.

    A machine's speed may change by half within a minute, and a whole table takes several.

    Args:
        steps: what is timed, by name.
        clock: as of `measure`.
        rounds: of every arm.

    Returns:
        Name -> median milliseconds of each round.
    """
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, timed in steps.items():
            times = []
            for number in range(len(timed.queries)):
                query = timed.queries[number : number + 1]
                started = clock()
                timed.arm.search(query, timed.width)
                times.append((clock() - started) * 1000)
            found[name].append(statistics.median(times))
    return found


def fresh(folder: Path) -> Path:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
