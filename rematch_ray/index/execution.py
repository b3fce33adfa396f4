"""Running a request's plan over an index, split into shards or not. Middle floor."""

from __future__ import annotations

from rematch_ray.index.cascade import Request, search_cascade, search_exhaustively
from rematch_ray.index.generation import Generation
from rematch_ray.index.hits import SearchResult
from rematch_ray.index.queries import Queries
from rematch_ray.index.sharding.opened import ShardedGeneration
from rematch_ray.index.sharding.scatter import search_shards


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
