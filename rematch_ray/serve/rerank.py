"""Scores of documents that are not in the index, from their vectors: MaxSim, or the matching head.

The same numbers a search gives: documents are rounded as the store keeps them and scored by the
same exact sums. Takes arrays; knows no HTTP, no encoder and no index files.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rematch_ray.index.exact import Float64, score_rows, to_grid
from rematch_ray.scoring.budget import Budget
from rematch_ray.serve.backend import EncodedQuery


def maxsim_scores(query: EncodedQuery, documents: Sequence[EncodedQuery]) -> Float64:
    """Mean over the query's vectors of their best cosine with each document, at full budget.

    Args:
        query: one query, vectors (1, R_q, D).
        documents: N documents, vectors (1, R_d, D) each.

    Returns:
        (N,) in -1..1.

    >>> east = EncodedQuery(np.array([[[1.0, 0.0]]], np.float32), None)
    >>> both = EncodedQuery(np.array([[[0.0, 1.0], [1.0, 0.0]]], np.float32), None)
    >>> west = EncodedQuery(np.array([[[-1.0, 0.0], [-1.0, 0.0]]], np.float32), None)
    >>> maxsim_scores(east, [both, west]).tolist()
    [1.0, -1.0]
    """
    if not documents:
        return np.zeros(0)
    stored = np.concatenate([document.vectors for document in documents]).astype(np.float16)
    r_q, r_d = query.vectors.shape[1], stored.shape[1]
    scores = score_rows(
        to_grid(query.vectors),
        np.arange(len(stored)),
        lambda plane, rows: stored[rows],
        [(0, r_d)],
        [Budget(r_q, r_d)],
    )
    return np.clip(scores[0, 0].astype(np.float64), -1.0, 1.0)


def relevance_of_cosines(cosines: Float64) -> Float64:
    """Mean cosines as 0..1, which callers of rerank interfaces expect.

    >>> relevance_of_cosines(np.array([-1.0, 0.0, 1.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    return (1.0 + cosines) / 2.0


def relevance_of_log_odds(log_odds: Sequence[float]) -> Float64:
    """p(Yes) of the matching head's log p(Yes) - log p(No).

    >>> relevance_of_log_odds([-1000.0, 0.0, 1000.0]).tolist()
    [0.0, 0.5, 1.0]
    """
    odds = np.asarray(log_odds, np.float64)
    # the exponent is never positive, so nothing overflows
    small = np.exp(-np.abs(odds))
    return np.where(odds >= 0, 1.0, small) / (1.0 + small)


def order_of(relevance: Float64) -> NDArray[np.intp]:
    """Places of documents, most relevant first; equal ones in the order given.

    >>> order_of(np.array([0.1, 0.9, 0.9])).tolist()
    [1, 2, 0]
    """
    return np.argsort(-relevance, kind="stable")
