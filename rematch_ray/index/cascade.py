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

from rematch_ray.index.certified import best_documents, keeps_originals
from rematch_ray.index.exact import order_best
from rematch_ray.index.generation import Generation
from rematch_ray.index.hits import Hit, SearchResult
from rematch_ray.index.maxima import CarriedMaxima, coded_scores
from rematch_ray.index.planner import Plan
from rematch_ray.index.queries import Queries
from rematch_ray.index.stages import find_candidates

# scores of one exhaustive pass held at once: 2**25 float32 are 128 MiB
_HELD_SCORES = 1 << 25


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
    group_by: str | None
    filter_stage: dict[str, Any]
    nprobe: int | None = None
    filter: Mapping[str, Any] | None = None


def search_exhaustively(
    generation: Generation, queries: Queries, request: Request
) -> list[SearchResult]:
    """Scores every allowed document at the final budget, many queries in one pass."""
    rung = request.plan.budget
    rows = np.flatnonzero(request.allowed)
    if len(rows) == 0:
        return [_result(generation, request, [], 0, 0, []) for _ in range(len(queries))]
    results = []
    step = max(1, _HELD_SCORES // len(rows))
    for start in range(0, len(queries), step):
        part = queries[start : start + step]
        started = time.perf_counter()
        coded = coded_scores(generation, part, rows, rung)
        pass_ms = ms_since(started) / len(part)
        for query in range(len(part)):
            started = time.perf_counter()
            hits, read = best_documents(
                generation,
                part[query : query + 1],
                rows,
                coded[query],
                rung,
                request.top_k,
                request.group_by,
            )
            stages = [
                stage(str(rung), len(rows), read, pass_ms),
                stage("exact", read, len(hits), ms_since(started)),
            ]
            results.append(_result(generation, request, hits, len(rows), len(rows), stages))
    return results


def search_cascade(generation: Generation, query: Queries, request: Request) -> SearchResult:
    """Takes one query's candidates, or all allowed documents, through the plan's budgets."""
    plan = request.plan
    stages = []
    if plan.coarse_candidates is None:
        rows = np.flatnonzero(request.allowed)
    else:
        started = time.perf_counter()
        rows = find_candidates(
            generation,
            query,
            request.coarse,
            plan.coarse_candidates,
            request.allowed,
            nprobe=request.nprobe,
        )
        name, entered = f"coarse:{request.coarse}", request.filter_stage["out"]
        stages.append(stage(name, entered, len(rows), ms_since(started)))
    num_candidates = len(rows)
    carried = CarriedMaxima(generation, query, rows, max(1, plan.budget.r_q))
    for rung, keep in plan.narrowing:
        started = time.perf_counter()
        kept = order_best(carried.advance(rung), generation.keys[carried.rows], keep)
        stages.append(stage(str(rung), len(carried.rows), len(kept), ms_since(started)))
        carried.keep(kept)
    started = time.perf_counter()
    rows = carried.rows
    if plan.budget.is_fused:
        coded = coded_scores(generation, query, rows, plan.budget)[0]
    else:
        coded = carried.advance(plan.budget)
    scored_ms = ms_since(started)
    started = time.perf_counter()
    hits, read = best_documents(
        generation, query, rows, coded, plan.budget, request.top_k, request.group_by
    )
    stages += [
        stage(str(plan.budget), len(rows), read, scored_ms),
        stage("exact", read, len(hits), ms_since(started)),
    ]
    return _result(generation, request, hits, num_candidates, len(rows), stages)


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
