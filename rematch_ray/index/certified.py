"""The best of some documents in the order of exact scores, from 8-bit scores and few originals.

An 8-bit score is off by no more than a bound that is known for each document (quantisation.py), so
only documents within the bounds of the k-th best can be among the k best. These alone are scored
from their float16 originals, the most promising first, until none that is left can be better; the
answer is that of scoring all of them so, to the last bit. Middle floor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rematch_ray.index import maxsim_native
from rematch_ray.index.exact import Float32, Float64, Rows, order_best
from rematch_ray.index.generation import Generation
from rematch_ray.index.grouping import GroupBy
from rematch_ray.index.hits import best_positions
from rematch_ray.index.maxima import best_coded, coded_scores
from rematch_ray.index.maxsim_best import cut_at
from rematch_ray.index.maxsim_int8 import path_in_use
from rematch_ray.index.maxsim_library import EXACT_PATHS
from rematch_ray.index.quantisation import bound_terms
from rematch_ray.index.queries import Queries
from rematch_ray.index.stages import exact_scores
from rematch_ray.scoring.budget import Budget

_DOCUMENTS_PER_GROUP = 4
# scores of one pass held at once, where all are: 2**25 float32 are 128 MiB
_HELD_SCORES = 1 << 25
# of the promising documents so many are read at first, per one that is wanted, and at the least
_READ_PER_DOCUMENT, _LEAST_READ = 2, 16


@dataclass(frozen=True)
class Best:
    """The best documents of one query.

    Args:
        rows: (k,) best first.
        scores: (k,) float32.
        read: documents whose originals were read to find these.
    """

    rows: Rows
    scores: Float32
    read: int


@dataclass(frozen=True)
class Coded:
    """Documents of one query that may be among its best.

    Args:
        rows: (C,) documents.
        scores: (C,) their 8-bit scores.
        is_whole: whether no document was left out.
    """

    rows: Rows
    scores: Float32
    is_whole: bool


def keeps_originals(generation: Generation, rung: Budget) -> bool:
    """Whether documents can be scored exactly at a rung; fused vectors always can."""
    return rung.is_fused or generation.has_originals


def score_coded(
    generation: Generation,
    queries: Queries,
    rung: Budget,
    top_k: int,
    *,
    rows: Rows | None = None,
    allowed: NDArray[np.bool_] | None = None,
    group_by: GroupBy | None = None,
) -> Iterator[list[Coded]]:
    """The documents of each query that `best_documents` needs, by 8-bit scores, pass by pass.

    Args:
        generation: where the documents lie.
        queries: B queries.
        rung: a rung of the ladder or the fused one.
        top_k: documents that are wanted.
        rows: documents to score; None takes those that are allowed.
        allowed: (all rows,) True where a document may be found; None where `rows` is given.
        group_by: as in `best_documents`; how far down the groups lie is not known, so all are kept.
    """
    if rows is None and group_by is not None:
        assert allowed is not None
        rows = np.flatnonzero(allowed)
    count = generation.rows if rows is None else len(rows)
    step = max(1, _HELD_SCORES // max(1, count))
    for start in range(0, len(queries), step):
        part = queries[start : start + step]
        if group_by is not None:
            assert rows is not None
            scores = coded_scores(generation, part, rows, rung)
            yield [Coded(rows, own, is_whole=True) for own in scores]
            continue
        slack = _slack(generation, part, rung) if keeps_originals(generation, rung) else None
        found = best_coded(generation, part, rung, top_k, rows=rows, allowed=allowed, slack=slack)
        yield [Coded(kept, scores, is_whole=False) for kept, scores in found]


def best_documents(
    generation: Generation,
    query: Queries,
    coded: Coded,
    rung: Budget,
    top_k: int,
    group_by: GroupBy | None = None,
) -> Best:
    """The best documents by exact scores, or by 8-bit ones where the index keeps no originals.

    Args:
        generation: where the documents lie.
        query: one query.
        coded: documents with their 8-bit scores at the rung; where some were left out, all within
            twice the bound of the `top_k`-th best are there.
        rung: a rung of the ladder or the fused one.
        top_k: most documents.
        group_by: payload field of which each value gives one document, or None.
    """
    rows, scores = coded.rows, coded.scores
    if not keeps_originals(generation, rung):
        places = best_positions(generation, rows, scores, top_k, group_by)
        return Best(rows[places], scores[places], 0)
    if group_by is None:
        return certify(generation, query, coded, rung, top_k)
    assert coded.is_whole
    limit = _DOCUMENTS_PER_GROUP * top_k
    while True:
        best = certify(generation, query, coded, rung, limit)
        places = best_positions(generation, best.rows, best.scores, top_k, group_by)
        # too few groups among these: look further down
        if len(places) == top_k or limit >= len(rows):
            return Best(best.rows[places], best.scores[places], best.read)
        limit *= _DOCUMENTS_PER_GROUP


def certify(generation: Generation, query: Queries, coded: Coded, rung: Budget, limit: int) -> Best:
    """The `limit` best documents by exact scores, equal ones by the documents' keys.

    Args:
        generation: where the documents lie, with originals.
        query: one query.
        coded: as of `best_documents`.
        rung: a rung of the ladder or the fused one.
        limit: how many.
    """
    path = path_in_use()
    if len(generation.segments) == 1 and path in EXACT_PATHS:
        return _certify_in_one_call(path, generation, query, coded, rung, limit)
    rows, upper = coded.rows, coded.scores.astype(np.float64)
    if limit < len(rows):
        rows, upper = _most_promising(generation, query, coded, rung, limit)
    first = _read_at_first(limit)
    scores = exact_scores(generation, query, rows[:first], rung)
    if first < len(rows):
        # a score that was rounded to float32 stays within what its bound covers
        surely = np.partition(scores, first - limit)[first - limit]
        left = rows[first:][upper[first:] >= surely]
        rows = rows[:first]
        if len(left):
            scores = np.concatenate([scores, exact_scores(generation, query, left, rung)])
            rows = np.concatenate([rows, left])
    order = order_best(scores, generation.keys[rows], limit)
    return Best(rows[order], scores[order], len(rows))


def _certify_in_one_call(
    path: str, generation: Generation, query: Queries, coded: Coded, rung: Budget, limit: int
) -> Best:
    [segment] = generation.segments
    codes = query.codes_at(rung)
    slope, fixed = bound_terms(codes.norms[0], codes.errors[0])
    bound = float(slope * generation.largest_error(rung) + fixed) if coded.is_whole else math.inf
    limit = min(limit, len(coded.rows))
    planes = [segment.vectors_at(k) for k in generation.positions(rung)]
    return Best(
        *maxsim_native.certify(
            path,
            np.ascontiguousarray(codes.vectors[0]),
            [plane.originals for plane in planes],
            [plane.errors_address for plane in planes],
            generation.keys,
            coded.rows,
            coded.scores,
            limit=limit,
            first=_read_at_first(limit),
            slope=float(slope),
            fixed=float(fixed),
            slack=2 * bound,
        )
    )


def _read_at_first(limit: int) -> int:
    return max(_READ_PER_DOCUMENT * limit, _LEAST_READ)


def _most_promising(
    generation: Generation, query: Queries, coded: Coded, rung: Budget, limit: int
) -> tuple[Rows, Float64]:
    """The documents that can be among the `limit` best, by the most that each can score."""
    rows, scores = coded.rows, coded.scores
    if coded.is_whole:
        # first by the bound of the worst document, which reads nothing per document
        near = cut_at(scores, limit, float(_slack(generation, query, rung)[0]))
        rows, scores = rows[near], scores[near]
    codes = query.codes_at(rung)
    slope, fixed = bound_terms(codes.norms[0], codes.errors[0])
    upper = generation.errors(rows, rung) * slope + (scores + fixed)
    order = np.argsort(-upper)
    return rows[order], upper[order]


def _slack(generation: Generation, queries: Queries, rung: Budget) -> Float64:
    """(B,) how far below another's the 8-bit score of a document can be that is no worse."""
    codes = queries.codes_at(rung)
    slope, fixed = bound_terms(codes.norms, codes.errors)
    return 2 * (slope * generation.largest_error(rung) + fixed)
