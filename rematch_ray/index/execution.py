"""Running a request's plan over an index, split into shards or not. Middle floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rematch_ray.index.cascade import Request, search_cascade, search_exhaustively
from rematch_ray.index.choice import Choice
from rematch_ray.index.generation import Generation
from rematch_ray.index.grouping import needs_source
from rematch_ray.index.hits import SearchResult
from rematch_ray.index.queries import Queries
from rematch_ray.index.sharding.opened import ShardedGeneration
from rematch_ray.index.sharding.scatter import search_shards
from rematch_ray.index.widening import GroupPasses


def search_vectors(
    generation: Generation, queries: Queries, request: Request
) -> list[SearchResult]:
    """Runs a request's plan for every query.

    Args:
        generation: what to search.
        queries: B queries.
        request: checked.
    """
    if isinstance(generation, ShardedGeneration):
        return search_shards(generation.group, queries, generation.ask(request))
    if request.plan.is_exhaustive:
        return search_exhaustively(generation, queries, request)
    if len(queries) == 1:
        return [search_cascade(generation, queries, request)]
    return [
        search_cascade(generation, queries[row : row + 1], request) for row in range(len(queries))
    ]


def find_groups(
    generation: Generation,
    queries: Queries,
    request: Request,
    choice: Choice,
    results: Sequence[SearchResult],
    *,
    until: float | None,
    most: int | None,
) -> list[GroupPasses]:
    """Runs the passes that groups are missing for.

    Args:
        generation: what is searched.
        queries: B queries.
        request: of the first pass.
        choice: its plan.
        results: what it found, per query.
        until: reading of `time.perf_counter` by which all must end; None for no limit.
        most: documents that a further pass may score at the final budget; None for no limit.

    Returns:
        The passes of each query, run.
    """
    assert request.group_by is not None
    found = []
    for row, result in enumerate(results):
        passes = GroupPasses(
            choice,
            result,
            _seconds(result),
            top_k=request.top_k,
            num_allowed=int(request.filter_stage["out"]),
            group_by=request.group_by,
            until=until,
            most=most,
        )
        while passes.next_plan() is not None:
            _look_at_rest(generation, request, passes)
            if (plan := passes.next_plan()) is not None:
                wide = replace(request, plan=plan)
                [more] = search_vectors(generation, queries[row : row + 1], wide)
                passes.take(plan, more, _seconds(more))
        found.append(passes)
    return found


def _look_at_rest(generation: Generation, request: Request, passes: GroupPasses) -> None:
    """Tells whether any document is left that belongs to another group."""
    sources: list[str] = []
    if needs_source(request.group_by):
        sources = generation.sources_of(passes.hits)
    conditions = passes.conditions(request.filter, sources)
    if conditions is not None:
        passes.saw(int(np.count_nonzero(generation.select(conditions))), sources)


def _seconds(result: SearchResult) -> float:
    """What the stages of one query took."""
    return float(sum(stage["ms"] for stage in result.stages)) / 1e3
