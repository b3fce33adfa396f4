"""Running a plan: all documents at the final budget, or coarse candidates narrowed on the way.

Takes a checked request; chooses nothing. Middle floor.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rematch_ray.index.certified import Coded, best_documents, keeps_originals, score_coded
from rematch_ray.index.climbing import climb
from rematch_ray.index.generation import Generation, Rows
from rematch_ray.index.grouping import GroupBy
from rematch_ray.index.hits import Hit, SearchResult, hits_of
from rematch_ray.index.planner import Plan
from rematch_ray.index.queries import Queries
from rematch_ray.index.stages import find_candidates


@dataclass(frozen=True)
class Request:
    """One search call, checked: what every query of its batch shares.

    Args:
        plan: the stages.
        coarse: coarse choice.
        allowed: (rows,) True where a document is live and passes the filter.
        top_k: most hits per query.
        group_by: payload field of which each value gives one hit, or None.
        filter_stage: what the filter kept, as a stage of the result.
        filter: what `allowed` came from, for shards that look for themselves.
        nprobe: inverted lists that the coarse stage looks through; None the stored number.
    """

    plan: Plan
    coarse: str
    allowed: NDArray[np.bool_]
    top_k: int
    group_by: GroupBy | None
    filter_stage: dict[str, Any]
    nprobe: int | None = None
    filter: Mapping[str, Any] | None = None


def search_exhaustively(
    generation: Generation, queries: Queries, request: Request
) -> list[SearchResult]:
    """Scores every allowed document at the final budget, many queries in one pass."""
    rung, count = request.plan.budget, int(request.filter_stage["out"])
    if count == 0:
        return [_result(generation, request, [], 0, 0, []) for _ in range(len(queries))]
    results: list[SearchResult] = []
    started = time.perf_counter()
    for found in score_coded(
        generation,
        queries,
        rung,
        request.top_k,
        allowed=request.allowed,
        group_by=request.group_by,
    ):
        scored = stage(str(rung), count, 0, ms_since(started) / len(found))
        for coded in found:
            query = queries[len(results) : len(results) + 1]
            hits, stages = _certified_hits(generation, query, coded, request, scored)
            results.append(_result(generation, request, hits, count, count, stages))
        started = time.perf_counter()
    return results


def search_cascade(generation: Generation, query: Queries, request: Request) -> SearchResult:
    """Takes one query's candidates, or all allowed documents, through the plan's budgets."""
    plan = request.plan
    rows, stages = _candidates(generation, query, request)
    num_candidates = len(rows)
    if plan.narrowing:
        climbed = climb(generation, query, rows, plan.narrowing, plan.budget)
        coded = Coded(climbed.rows, climbed.scores, is_whole=True)
        rows, left = climbed.rows, [*climbed.entered[1:], 0]
        rungs = [*(rung for rung, _ in plan.narrowing), plan.budget]
        *narrowed, scored = map(stage, map(str, rungs), climbed.entered, left, climbed.ms)
        stages += narrowed
    else:
        started = time.perf_counter()
        [[coded]] = score_coded(
            generation, query, plan.budget, request.top_k, rows=rows, group_by=request.group_by
        )
        scored = stage(str(plan.budget), len(rows), 0, ms_since(started))
    hits, last = _certified_hits(generation, query, coded, request, scored)
    return _result(generation, request, hits, num_candidates, len(rows), [*stages, *last])


def _candidates(
    generation: Generation, query: Queries, request: Request
) -> tuple[Rows, list[dict[str, Any]]]:
    """What a plan starts from, and the stage that found it where there is one."""
    limit = request.plan.coarse_candidates
    if limit is None:
        return np.flatnonzero(request.allowed), []
    started = time.perf_counter()
    rows = find_candidates(
        generation, query, request.coarse, limit, request.allowed, nprobe=request.nprobe
    )
    entered = request.filter_stage["out"]
    return rows, [stage(f"coarse:{request.coarse}", entered, len(rows), ms_since(started))]


def _certified_hits(
    generation: Generation,
    query: Queries,
    coded: Coded,
    request: Request,
    scored: dict[str, Any],
) -> tuple[list[Hit], list[dict[str, Any]]]:
    """Hits of one query, and its last two stages; `scored` is the first of them so far."""
    started = time.perf_counter()
    best = best_documents(
        generation, query, coded, request.plan.budget, request.top_k, request.group_by
    )
    hits = hits_of(generation, best.rows, best.scores)
    read = stage("exact", best.read, len(hits), ms_since(started))
    return hits, [{**scored, "out": best.read}, read]


def stage(name: str, entered: int, left: int, ms: float) -> dict[str, Any]:
    """One stage of a result: documents that came in and went on, and the milliseconds it took."""
    return {"name": name, "in": entered, "out": left, "ms": round(ms, 3)}


def ms_since(started: float) -> float:
    """Milliseconds since a reading of `time.perf_counter`."""
    return (time.perf_counter() - started) * 1000


def _result(
    generation: Generation,
    request: Request,
    hits: list[Hit],
    candidates: int,
    scored: int,
    stages: list[dict[str, Any]],
) -> SearchResult:
    is_float = keeps_originals(generation, request.plan.budget)
    return SearchResult(
        hits=hits,
        budget=str(request.plan.budget),
        candidates=candidates,
        stages=[request.filter_stage, *stages],
        scored=scored,
        live=generation.manifest.live,
        scores="float" if is_float else "int8",
        exact=is_float and scored == request.filter_stage["out"],
        generation=generation.name,
    )
