"""Searching several shards as one: each phase goes to all of them, every cut is made over all.

Candidates are ordered by score and key, as those of one index are, and scored by the shard that
holds them; payloads are read of hits alone. So the hits are those of one index, bit for bit, where
the coarse stage is exact or every document is scored. Knows shards by their phases only. Middle
floor.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rematch_ray.index.cascade import ms_since, stage
from rematch_ray.index.exact import Float32, Rows, order_best
from rematch_ray.index.grouping import GroupBy
from rematch_ray.index.hits import Hit, SearchResult, best_hits
from rematch_ray.index.planner import Plan
from rematch_ray.index.queries import Queries
from rematch_ray.index.sharding.phases import Filter, Found, Shard
from rematch_ray.index.stages import interleave
from rematch_ray.scoring.budget import Budget

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class ShardedRequest:
    """One search call over shards, checked: what every query of its batch shares.

    Args:
        plan: the stages.
        coarse: coarse choice.
        filter: as given; its fields exist in some shard.
        nprobe: inverted lists that the coarse stage looks through; None the stored number.
        top_k: most hits per query.
        group_by: payload field of which each value gives one hit, or None.
        filter_stage: what the filter kept, as a stage of the result.
        live: live documents of all shards.
        is_float: whether hits are in the order of exact scores.
        generation: name of the set of generations that is searched.
    """

    plan: Plan
    coarse: str
    filter: Filter
    nprobe: int | None
    top_k: int
    group_by: GroupBy | None
    filter_stage: dict[str, Any]
    live: int
    is_float: bool
    generation: str

    def result(
        self, hits: list[Hit], candidates: int, scored: int, stages: list[dict[str, Any]]
    ) -> SearchResult:
        """What one query found."""
        return SearchResult(
            hits=hits,
            budget=str(self.plan.budget),
            candidates=candidates,
            stages=[self.filter_stage, *stages],
            scored=scored,
            live=self.live,
            scores="float" if self.is_float else "int8",
            exact=self.is_float and scored == self.filter_stage["out"],
            generation=self.generation,
        )


class ShardGroup:
    """Shards that are asked at the same time, in threads.

    Args:
        shards: all shards of an index, in order.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = list(shards)

    def __len__(self) -> int:
        return len(self.shards)

    def each(self, ask: Callable[[int, Shard], Answer]) -> list[Answer]:
        """Asks every shard; answers in the order of the shards."""
        if len(self.shards) == 1:
            return [ask(0, self.shards[0])]
        return list(self._threads.map(ask, range(len(self.shards)), self.shards))

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        most = max(1, min(len(self.shards), os.cpu_count() or 1))
        return ThreadPoolExecutor(most, thread_name_prefix="shard")


@dataclass(frozen=True)
class Candidates:
    """Documents of several shards.

    Args:
        group: the shards.
        codes: (C,) row in the shard * number of shards + number of the shard.
        keys: (C,) tie-breakers.
    """

    group: ShardGroup
    codes: Rows
    keys: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, places: NDArray[np.intp]) -> Candidates:
        """Some of them, in the order asked."""
        return Candidates(self.group, self.codes[places], self.keys[places])

    def score(self, query: Queries, budget: Budget) -> Float32:
        """8-bit scores of one query at a rung, (C,) float32."""
        scores = np.empty(len(self), np.float32)
        rows, owners = np.divmod(self.codes, len(self.group))

        def ask(number: int, shard: Shard) -> None:
            mine = owners == number
            if mine.any():
                scores[mine] = shard.score(query, rows[mine], budget)

        self.group.each(ask)
        return scores

    def best(self, query: Queries, request: ShardedRequest) -> list[Found]:
        """The best of each shard for one query at the plan's last rung."""
        rows, owners = np.divmod(self.codes, len(self.group))

        def ask(number: int, shard: Shard) -> Found:
            [found] = shard.best(
                query,
                request.plan.budget,
                request.top_k,
                rows=rows[owners == number],
                filter=None,
                group_by=request.group_by,
            )
            return found

        return self.group.each(ask)

    def documents(self, rows: Rows) -> list[tuple[str, dict[str, Any]]]:
        """Id and payload of the candidates at some places, in the order asked."""
        return self._each_of(rows, lambda shard, mine: shard.documents(mine))

    def sources(self, rows: Rows) -> list[str]:
        """Source of the candidates at some places, in the order asked."""
        return self._each_of(rows, lambda shard, mine: shard.sources(mine))

    def _each_of(self, rows: Rows, read: Callable[[Shard, Rows], list[Answer]]) -> list[Answer]:
        """What the shards that hold the candidates at some places say of each."""
        local, owners = np.divmod(self.codes[rows], len(self.group))

        def ask(number: int, shard: Shard) -> list[Answer]:
            mine = local[owners == number]
            return read(shard, mine) if len(mine) else []

        answers = [iter(answer) for answer in self.group.each(ask)]
        return [next(answers[owner]) for owner in owners]


def search_shards(
    group: ShardGroup, queries: Queries, request: ShardedRequest
) -> list[SearchResult]:
    """Runs a plan over all shards, as the cascade does over one index."""
    if request.plan.is_exhaustive:
        return _search_exhaustively(group, queries, request)
    return [_search_cascade(group, queries[row : row + 1], request) for row in range(len(queries))]


def _search_exhaustively(
    group: ShardGroup, queries: Queries, request: ShardedRequest
) -> list[SearchResult]:
    started = time.perf_counter()
    budget, num_allowed = request.plan.budget, request.filter_stage["out"]
    if num_allowed == 0:
        return [request.result([], 0, 0, []) for _ in range(len(queries))]
    answers = group.each(
        lambda _, shard: shard.best(
            queries,
            budget,
            request.top_k,
            rows=None,
            filter=request.filter,
            group_by=request.group_by,
        )
    )
    ms = ms_since(started) / max(1, len(queries))
    results = []
    for found in zip(*answers):
        started = time.perf_counter()
        hits, read = _merge(group, found, request)
        stages = [
            stage(str(budget), num_allowed, read, ms),
            stage("exact", read, len(hits), ms_since(started)),
        ]
        results.append(request.result(hits, num_allowed, num_allowed, stages))
    return results


def _search_cascade(group: ShardGroup, query: Queries, request: ShardedRequest) -> SearchResult:
    plan = request.plan
    stages = []
    if plan.coarse_candidates is None:
        pool, _ = _pool(group, group.each(lambda _, shard: shard.passing(request.filter)))
    else:
        started = time.perf_counter()
        pool = _find_candidates(group, query, request, plan.coarse_candidates)
        name, entered = f"coarse:{request.coarse}", request.filter_stage["out"]
        stages.append(stage(name, entered, len(pool), ms_since(started)))
    num_candidates = len(pool)
    for rung, keep in plan.narrowing:
        started = time.perf_counter()
        kept = pool.take(order_best(pool.score(query, rung), pool.keys, keep))
        stages.append(stage(str(rung), len(pool), len(kept), ms_since(started)))
        pool = kept
    started = time.perf_counter()
    best = pool.best(query, request)
    ms = ms_since(started)
    started = time.perf_counter()
    hits, read = _merge(group, best, request)
    stages += [
        stage(str(plan.budget), len(pool), read, ms),
        stage("exact", read, len(hits), ms_since(started)),
    ]
    return request.result(hits, num_candidates, len(pool), stages)


def _find_candidates(
    group: ShardGroup, query: Queries, request: ShardedRequest, limit: int
) -> Candidates:
    answers = group.each(
        lambda _, shard: shard.coarse(
            query, request.coarse, limit, request.filter, nprobe=request.nprobe
        )
    )
    lists = []
    for found in zip(*answers):  # one coarse list of every shard
        pool, scores = _pool(group, found)
        lists.append(pool.take(order_best(scores, pool.keys, limit)))
    codes = np.concatenate([each.codes for each in lists])
    keys = np.concatenate([each.keys for each in lists])
    merged = interleave([each.codes for each in lists], limit)
    known, first = np.unique(codes, return_index=True)
    return Candidates(group, merged, keys[first[np.searchsorted(known, merged)]])


def _merge(
    group: ShardGroup, found: Sequence[Found], request: ShardedRequest
) -> tuple[list[Hit], int]:
    """The best of what every shard found best, and how many originals that took."""
    pool, scores = _pool(group, found)
    hits = best_hits(pool, np.arange(len(pool)), scores, request.top_k, request.group_by)
    return hits, sum(each.read for each in found)


def _pool(group: ShardGroup, found: Sequence[Found]) -> tuple[Candidates, Float32]:
    codes = [each.rows * len(group) + number for number, each in enumerate(found)]
    keys = np.concatenate([each.keys for each in found])
    scores = np.concatenate([each.scores for each in found])
    return Candidates(group, np.concatenate(codes), keys), scores
