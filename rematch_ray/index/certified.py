"""The best of some documents in the order of exact scores, from 8-bit scores and few originals.

An 8-bit score is off by no more than a bound that is known for each document (quantisation.py), so
only documents within the bounds of the k-th best can be among the k best. These alone are scored
from their float16 originals; the answer is that of scoring all of them so, to the last bit.
Middle floor.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rematch_ray.index.exact import Float32, Rows, order_best
from rematch_ray.index.generation import Generation
from rematch_ray.index.hits import Hit, best_hits, best_positions
from rematch_ray.index.quantisation import score_bound
from rematch_ray.index.queries import Queries
from rematch_ray.index.stages import score_documents
from rematch_ray.scoring.budget import Budget

_DOCUMENTS_PER_GROUP = 4


def keeps_originals(generation: Generation, rung: Budget) -> bool:
    """Whether documents can be scored exactly at a rung; fused vectors always can."""
    return rung.is_fused or generation.has_originals


def best_documents(
    generation: Generation,
    query: Queries,
    rows: Rows,
    coded: Float32,
    rung: Budget,
    top_k: int,
    group_by: str | None = None,
) -> tuple[list[Hit], int]:
    """The best hits by exact scores, or by 8-bit ones where the index keeps no originals.

    Arguments as of `best_rows`.

    Returns:
        Hits, best first, and how many documents were scored exactly.
    """
    best, scores, read = best_rows(generation, query, rows, coded, rung, top_k, group_by)
    return best_hits(generation, best, scores, top_k), read


def best_rows(
    generation: Generation,
    query: Queries,
    rows: Rows,
    coded: Float32,
    rung: Budget,
    top_k: int,
    group_by: str | None = None,
) -> tuple[Rows, Float32, int]:
    """The best documents by exact scores, or by 8-bit ones where the index keeps no originals.

    Args:
        generation: where the documents lie.
        query: one query.
        rows: (C,) documents.
        coded: (C,) their 8-bit scores at the rung.
        rung: a rung of the ladder or the fused one.
        top_k: most documents.
        group_by: payload field of which each value gives one document, or None.

    Returns:
        Rows, best first; their scores; and how many documents were scored exactly.
    """
    if not keeps_originals(generation, rung):
        places = best_positions(generation, rows, coded, top_k, group_by)
        return rows[places], coded[places], 0
    limit = top_k if group_by is None else _DOCUMENTS_PER_GROUP * top_k
    while True:
        best, scores, read = certify(generation, query, rows, coded, rung, limit)
        places = best_positions(generation, best, scores, top_k, group_by)
        # too few groups among these: look further down
        if len(places) == top_k or limit >= len(rows):
            return best[places], scores[places], read
        limit *= _DOCUMENTS_PER_GROUP


def certify(
    generation: Generation, query: Queries, rows: Rows, coded: Float32, rung: Budget, limit: int
) -> tuple[Rows, Float32, int]:
    """The `limit` best documents by exact scores.

    Args:
        generation: where the documents lie, with originals.
        query: one query.
        rows: (C,) documents.
        coded: (C,) their 8-bit scores at the rung.
        rung: a rung of the ladder or the fused one.
        limit: how many.

    Returns:
        Rows, best first, equal scores by the documents' keys; their exact scores; and how many
        documents were read from originals.
    """
    chosen = _within_bounds(generation, query, rows, coded, rung, limit)
    scores = score_documents(generation, query, rows[chosen], [rung])[str(rung)][0]
    order = order_best(scores, generation.keys[rows[chosen]], limit)
    return rows[chosen[order]], scores[order], len(chosen)


def _within_bounds(
    generation: Generation, query: Queries, rows: Rows, coded: Float32, rung: Budget, limit: int
) -> NDArray[np.intp]:
    """Positions of the documents that can be among the `limit` best."""
    if limit >= len(rows):
        return np.arange(len(rows))
    # first by the bound of the worst document, which reads nothing per document
    codes = query.codes_at(rung)
    worst = np.array([generation.largest_error(rung)], np.float32)
    widest = score_bound(codes.norms[0], codes.errors[0], worst)[0]
    threshold = np.partition(coded, len(rows) - limit)[len(rows) - limit]
    near = np.flatnonzero(coded >= np.float64(threshold) - 2 * np.float64(widest))
    bounds = score_bound(codes.norms[0], codes.errors[0], generation.errors(rows[near], rung))
    lower = coded[near].astype(np.float64) - bounds
    upper = coded[near].astype(np.float64) + bounds
    surely = np.partition(lower, len(near) - limit)[len(near) - limit]
    return near[upper >= surely]
