"""The stages that a search is made of: candidates from the coarse lists, scores at any rung.

Each takes an open generation and checked queries, and knows nothing of plans, hits or requests.
Middle floor.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.index.coarse.keys import CHOICE_KEYS, QUERY_VECTORS
from rematch_ray.index.exact import Float32, Rows, order_best, score_fused, score_rows
from rematch_ray.index.generation import Generation
from rematch_ray.index.maxsim_best import cut_at
from rematch_ray.index.maxsim_int8 import path_in_use
from rematch_ray.index.maxsim_library import EXACT_PATHS
from rematch_ray.index.maxsim_native import exact
from rematch_ray.index.queries import Queries
from rematch_ray.scoring.budget import Budget


def score_documents(
    generation: Generation, queries: Queries, rows: Rows, rungs: Sequence[Budget]
) -> dict[str, Float32]:
    """Scores every query against some documents at several rungs in one pass.

    Args:
        generation: where the documents lie.
        queries: B queries.
        rows: (C,) documents.
        rungs: rungs of the index's ladder or the fused one, in any order.

    Returns:
        Rung as text -> (B, C) float32.

    Raises:
        UserError: the fused rung is asked for and the queries have no fused vectors.
    """
    scores: dict[str, Float32] = {}
    if any(rung.is_fused for rung in rungs):
        fused = require_fused(queries, "budget 'fused'")
        scores["fused"] = score_fused(fused, rows, generation.read_fused)
    pairs = sorted(
        {rung for rung in rungs if not rung.is_fused}, key=lambda rung: (rung.r_d, rung.r_q)
    )
    if pairs:
        layers = score_rows(queries.vectors, rows, generation.read_plane, generation.planes, pairs)
        scores.update({str(rung): layer for rung, layer in zip(pairs, layers)})
    return scores


def exact_scores(generation: Generation, query: Queries, rows: Rows, rung: Budget) -> Float32:
    """Exact scores of one query for a few documents at one rung, (C,) float32.

    The compiled kernel reads originals where they lie; the bits are those of `score_documents`.
    """
    path = path_in_use()
    if path not in EXACT_PATHS or not (rung.is_fused or generation.has_originals):
        return score_documents(generation, query, rows, [rung])[str(rung)][0]
    if rung.is_fused:
        vectors = require_fused(query, "budget 'fused'")
    else:
        vectors = query.vectors[0, : rung.r_q]
    scores = np.empty(len(rows), np.float32)
    for segment, mine, local in generation.split(rows):
        originals = [segment.vectors_at(k).originals for k in generation.positions(rung)]
        found = exact(path, np.ascontiguousarray(vectors), originals, np.ascontiguousarray(local))
        if mine is None:
            return found
        scores[mine] = found
    return scores


def similarity_matrix(generation: Generation, query: Queries, row: int, rung: Budget) -> Float32:
    """Every query vector of a rung against every document vector of it.

    Args:
        generation: where the document lies.
        query: one query.
        row: the document.
        rung: a rung of the index's ladder or the fused one.

    Returns:
        (r_q, r_d) float32, (1, 1) at the fused rung.

    Raises:
        UserError: the fused rung is asked for and the query has no fused vector.
    """
    rows = np.array([row])
    if rung.is_fused:
        fused = require_fused(query, "budget 'fused'")
        return score_fused(fused, rows, generation.read_fused)
    needed = [k for k, (start, _) in enumerate(generation.planes) if start < rung.r_d]
    document = np.concatenate([generation.read_plane(k, rows)[0] for k in needed])
    return (query.vectors[0, : rung.r_q] @ document.astype(np.float64).T).astype(np.float32)


def find_candidates(
    generation: Generation,
    query: Queries,
    choice: str,
    limit: int,
    allowed: NDArray[np.bool_],
    *,
    nprobe: int | None = None,
) -> Rows:
    """The `limit` best documents of the coarse stage, in no order where there is one list.

    Args:
        generation: where the documents lie.
        query: one query.
        choice: one of `COARSE_CHOICES`; several lists are merged by rank.
        limit: how many.
        allowed: (rows,) True where a document may be returned.
        nprobe: inverted lists to look through; None the stored number.

    Raises:
        UserError: the choice needs fused query vectors and the query has none.
    """
    lists = coarse_lists(generation, query, choice, limit, allowed, nprobe=nprobe)
    if len(lists) == 1:
        [(rows, scores)] = lists
        # nothing to sort: what follows scores them anew, and reads those in file order faster
        return rows[keep_best(scores, rows, generation.keys, limit)]
    ranked = [rows[order_best(scores, generation.keys[rows], limit)] for rows, scores in lists]
    return interleave(ranked, limit)


def keep_best(
    scores: Float32, rows: Rows, keys: NDArray[np.uint64], limit: int
) -> NDArray[np.intp] | slice:
    """Positions of the best, as `order_best` chooses them, in the order in which they stand.

    Args:
        scores: (C,) float32.
        rows: (C,) documents.
        keys: tie-breaker of every row.
        limit: how many.

    >>> rows, keys = np.array([0, 1, 2]), np.uint64([7, 3, 8])
    >>> keep_best(np.float32([0.5, 0.5, 0.9]), rows, keys, 2).tolist()
    [1, 2]
    """
    if limit >= len(scores):
        return slice(None)
    kept = cut_at(scores, limit)
    if len(kept) > limit:
        kept = np.sort(kept[order_best(scores[kept], keys[rows[kept]], limit)])
    return kept


def coarse_lists(
    generation: Generation,
    query: Queries,
    choice: str,
    limit: int,
    allowed: NDArray[np.bool_],
    *,
    nprobe: int | None = None,
) -> list[tuple[Rows, Float32]]:
    """Rows and scores of each list of a coarse choice, the `limit` best of each among them.

    Arguments and errors as of `find_candidates`, which cuts and merges them.
    """
    found = []
    for key in CHOICE_KEYS[choice]:
        if key == "fused":
            require_fused(query, f"coarse '{choice}'")
            assert query.fused_codes is not None
            codes = query.fused_codes
        else:
            codes = query.codes.part(slice(None), slice(QUERY_VECTORS[key]))
        found.append(generation.find_coarse(key, codes, limit, allowed, nprobe=nprobe))
    return found


def require_fused(queries: Queries, what: str) -> NDArray[np.float64]:
    """The queries' fused vectors.

    Raises:
        UserError: they have none.
    """
    if queries.fused is None:
        raise UserError(
            f"{what} needs fused query vectors, and there are none: name a rung such as 1x1, "
            "and coarse 'first'"
        )
    return queries.fused


def interleave(ranked: Sequence[Rows], limit: int) -> Rows:
    """Merges ranked lists by rank, each row once, up to a limit.

    >>> interleave([np.array([4, 2, 9]), np.array([2, 7, 4])], 4).tolist()
    [4, 2, 7, 9]
    """
    length = min(len(rows) for rows in ranked)
    mixed = np.stack([rows[:length] for rows in ranked], axis=1).ravel()
    mixed = np.concatenate([mixed, *(rows[length:] for rows in ranked)])
    _, first_seen = np.unique(mixed, return_index=True)
    return mixed[np.sort(first_seen)][:limit]
