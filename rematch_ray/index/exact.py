"""Exact scores of stored documents at any budget, the same to the last bit however they are asked.

Documents are float16 and queries are rounded to multiples of 2**-24, so every product is a multiple
of 2**-48; for unit vectors every partial sum stays below 2**5, which float64 holds without
rounding. A dot product is therefore exact: it depends neither on the BLAS, its threads, the block a
document fell in, nor the shard that holds it. A score is rounded once, to float32.

Takes arrays; knows nothing of files, candidates or ids. Middle floor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from rematch_ray.scoring.budget import Budget

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]
Rows = NDArray[np.int64]
ReadPlane = Callable[[int, Rows], NDArray[np.float16]]

GRID = float(1 << 24)
# Cells of one block's similarities (documents x vectors x query vectors): 2**20 float64 are 8 MiB.
BLOCK_CELLS = 1 << 20
# Numbers of one block's documents: 2**18 float64 are 2 MiB, what a core keeps close.
BLOCK_NUMBERS = 1 << 18
# Queries that share one pass over the documents: more would leave too few documents per block.
BLOCK_QUERIES = 64


def to_grid(vectors: NDArray[np.floating]) -> Float64:
    """Rounds query vectors to multiples of 2**-24, an error of at most 3e-8 per component.

    >>> to_grid(np.array([0.1])).item() == round(0.1 * 2**24) / 2**24
    True
    """
    return np.rint(np.asarray(vectors, dtype=np.float64) * GRID) / GRID


def score_rows(
    query_BRD: Float64,
    rows: Rows,
    read_plane: ReadPlane,
    planes: Sequence[tuple[int, int]],
    budgets: Sequence[Budget],
    *,
    block_cells: int = BLOCK_CELLS,
) -> Float32:
    """Scores every query against some documents at nested budgets.

    Maxima are carried from plane to plane, so all budgets together cost what the largest costs.

    Args:
        query_BRD: (B, R, D) from `to_grid`, R at least the largest r_q.
        rows: (C,) documents.
        read_plane: gives plane k of some documents, (len(rows), n_k, D) float16.
        planes: document token ranges of the planes, contiguous from 0.
        budgets: pairs, ordered, whose r_d are stops of planes.
        block_cells: similarities held at once; changes no score.

    Returns:
        (G, B, C) float32: the mean over the first r_q query vectors of their best similarity.
    """
    r_q = max(budget.r_q for budget in budgets)
    needed = [(start, stop) for start, stop in planes if start < budgets[-1].r_d]
    widest = max(stop - start for start, stop in needed)
    scores = np.empty((len(budgets), len(query_BRD), len(rows)), np.float32)
    for first in range(0, len(query_BRD), BLOCK_QUERIES):
        queries = slice(first, first + BLOCK_QUERIES)
        block_query = np.ascontiguousarray(query_BRD[queries, :r_q])
        cells = block_cells // (len(block_query) * r_q * widest)
        step = max(1, min(cells, BLOCK_NUMBERS // (widest * query_BRD.shape[2])))
        for start in range(0, len(rows), step):
            block = slice(start, start + step)
            scores[:, queries, block] = _score_block(
                block_query, rows[block], read_plane, needed, budgets
            )
    return scores


def _score_block(
    query_BRD: Float64,
    rows: Rows,
    read_plane: ReadPlane,
    planes: Sequence[tuple[int, int]],
    budgets: Sequence[Budget],
) -> Float32:
    num_queries, r_q, dim = query_BRD.shape
    flat_query = query_BRD.reshape(num_queries * r_q, dim).T
    waiting = list(budgets)
    scores: list[Float32] = []
    best: Float64 | None = None
    for position, (_, stop) in enumerate(planes):
        # one product per document: too small for a BLAS to wake its threads, which costs more than
        # the product where a search reads some dozens of documents
        found = (read_plane(position, rows).astype(np.float64) @ flat_query).max(axis=1)
        best = found if best is None else np.maximum(best, found)
        while waiting and waiting[0].r_d == stop:
            best_CBR = best.reshape(len(rows), num_queries, r_q)
            scores.append(_mean_of_first(best_CBR, waiting.pop(0).r_q))
    assert not waiting, f"budgets {waiting} do not end at a plane of {planes}"
    return np.stack(scores)


def score_fused(
    query_BF: Float64, rows: Rows, read_fused: Callable[[Rows], NDArray[np.float16]]
) -> Float32:
    """Scores every query against some documents on the fused vector, (B, C) float32."""
    scores = np.empty((len(query_BF), len(rows)), np.float32)
    step = max(1, BLOCK_CELLS // query_BF.shape[1])
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        scores[:, block] = query_BF @ read_fused(rows[block]).astype(np.float64).T
    return scores


def _mean_of_first(best_CBR: Float64, r_q: int) -> Float32:
    # one after another, never numpy's own sum: its order depends on the memory layout
    total = best_CBR[:, :, 0].copy()
    for position in range(1, r_q):
        total += best_CBR[:, :, position]
    return (total / r_q).T.astype(np.float32)


# so few are sorted sooner than they are cut first
_FEW = 128


def order_best(scores: Float32, keys: NDArray[np.uint64], limit: int) -> NDArray[np.intp]:
    """Positions of the best scores, best first; equal scores go by their documents' keys.

    Args:
        scores: (N,) float32, finite.
        keys: (N,) tie-breakers, one per document.
        limit: how many to return; all when it exceeds N.

    >>> order_best(np.float32([0.5, 0.9, 0.5]), np.uint64([7, 8, 3]), 2).tolist()
    [1, 2]
    """
    if limit < len(scores) and len(scores) > _FEW:
        threshold = np.partition(scores, len(scores) - limit)[len(scores) - limit]
        picked = np.flatnonzero(scores >= threshold)
    else:
        picked = np.arange(len(scores))
    order = np.lexsort((keys[picked], -scores[picked]))
    return picked[order[:limit]]
