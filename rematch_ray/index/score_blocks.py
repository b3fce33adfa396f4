"""Scores of every document for many queries, some queries at a time, so that memory is bounded.

Knows nothing of what is made of the scores. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rematch_ray.index.exact import Float32
from rematch_ray.index.queries import QueryVectors
from rematch_ray.index.search import SearchIndex

# scores of one block of queries held at once, all rungs together: 2**25 float32 are 128 MiB
HELD_SCORES = 1 << 25


@dataclass(frozen=True)
class SomeQueries:
    """Some of the queries: (b, R, D) and (b, F) or None."""

    vectors: NDArray[np.floating]
    fused: NDArray[np.floating] | None


def rows_of(query: QueryVectors, rows: slice) -> SomeQueries:
    """Some rows of queries, tensors or arrays."""
    return SomeQueries(query.vectors[rows], None if query.fused is None else query.fused[rows])


def query_blocks(num_queries: int, per_query: int, held_scores: int) -> Iterator[slice]:
    """Queries, in order, in blocks of at most so many scores; at least one query is a block.

    Args:
        num_queries: B.
        per_query: scores of a query.
        held_scores: of a block at most.

    >>> [(block.start, block.stop) for block in query_blocks(5, 100, 250)]
    [(0, 2), (2, 4), (4, 5)]
    """
    step = max(1, held_scores // max(1, per_query))
    for start in range(0, num_queries, step):
        yield slice(start, min(start + step, num_queries))


def score_blocks(
    index: SearchIndex,
    query: QueryVectors,
    num_documents: int,
    *,
    filter: Mapping[str, Any] | None = None,
    held_scores: int = HELD_SCORES,
) -> Iterator[tuple[slice, dict[str, Float32]]]:
    """Scores every document for every query at every rung.

    Args:
        index: the documents.
        query: B queries.
        num_documents: how many pass the filter, C.
        filter: as in `SearchIndex.search`.
        held_scores: scores of a block at most.

    Yields:
        A block of queries, and rung -> (b, C) scores; b does not change their bits.
    """
    per_query = len(index.budgets) * num_documents
    for block in query_blocks(len(query.vectors), per_query, held_scores):
        yield block, index.score_all(rows_of(query, block), filter=filter)
