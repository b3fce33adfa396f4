"""Fusion: one ranking of the vector search's list and the lexical list.

Pure functions of document numbers and scores, in float64. Knows nothing of what the scores mean,
nor where the documents lie. Middle floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rematch_ray.index.exact import Float32, Float64, Rows, order_best

Fusion = Literal["rrf", "weighted"]
FUSIONS: tuple[Fusion, ...] = ("rrf", "weighted")
Ranked = tuple[Rows, NDArray[np.floating]]
RANK_OFFSET = 60
_LEAST_DEPTH = 100
_DEPTH_PER_HIT = 2


def list_depth(top_k: int) -> int:
    """Length of each of the two lists that are fused.

    >>> list_depth(10), list_depth(200)
    (100, 400)
    """
    return max(_LEAST_DEPTH, _DEPTH_PER_HIT * top_k)


def reciprocal_rank_fusion(
    lists: Sequence[Ranked], weights: Sequence[float], *, k: int = RANK_OFFSET
) -> tuple[Rows, Float64]:
    """Sum over the lists of weight / (k + rank); scores are used for their order only.

    Documents of equal score in a list share the rank of the first of them. A list in which a
    document is not adds nothing to it.

    Args:
        lists: (documents, scores) each, documents distinct within a list, in any order.
        weights: one per list.
        k: how little the first ranks stand out.

    Returns:
        Every document of any list, ascending, and its fused score.

    Source:
        Cormack, Clarke, Büttcher 2009, with weights. Deviation: ties share a rank, so that the
        order of equal documents in a list does not matter.

    >>> vector = np.array([7, 3, 5]), np.array([0.9, 0.8, 0.1])
    >>> lexical = np.array([3, 9]), np.array([4.0, 4.0])
    >>> documents, scores = reciprocal_rank_fusion([vector, lexical], [0.5, 0.5], k=1)
    >>> documents.tolist(), scores.round(3).tolist()
    ([3, 5, 7, 9], [0.417, 0.125, 0.25, 0.25])
    """
    return _add_up(
        [
            (documents, weight / (k + _ranks(scores)))
            for (documents, scores), weight in zip(lists, weights, strict=True)
        ]
    )


def weighted_fusion(lists: Sequence[Ranked], weights: Sequence[float]) -> tuple[Rows, Float64]:
    """Sum over the lists of weight x score, scores stretched to 0..1 within each list.

    A list in which all are equal gives 1 to each. A list in which a document is not adds nothing to
    it: it counts as the worst that the list could hold.

    Args:
        lists: (documents, scores) each, documents distinct within a list, in any order.
        weights: one per list.

    Returns:
        Every document of any list, ascending, and its fused score.

    >>> vector = np.array([7, 3, 5]), np.array([0.9, 0.8, 0.4])
    >>> lexical = np.array([3, 9]), np.array([4.0, 2.0])
    >>> documents, scores = weighted_fusion([vector, lexical], [0.5, 0.5])
    >>> documents.tolist(), scores.round(3).tolist()
    ([3, 5, 7, 9], [0.9, 0.0, 0.5, 0.0])
    """
    return _add_up(
        [
            (documents, weight * _stretch(scores))
            for (documents, scores), weight in zip(lists, weights, strict=True)
        ]
    )


def fuse_candidates(
    vector: Float32,
    lexical: Float32,
    keys: NDArray[np.uint64],
    *,
    depth: int,
    fusion: Fusion,
    lexical_weight: float,
) -> tuple[NDArray[np.intp], Float64]:
    """Fuses candidates that have both scores; once, after all segments and shards are merged.

    The two lists are the `depth` best by vector score and the `depth` best by lexical score of
    those that match at all (above 0). By rank, each list gives its share. Weighted, every document
    of either list takes part with both its scores. What stands in neither list changes nothing, so
    any superset of the two gives the same.

    Args:
        vector: (C,) scores at the final budget.
        lexical: (C,) BM25 scores, 0 for no common term.
        keys: (C,) tie-breakers at the ends of the lists.
        depth: length of each list.
        fusion: `rrf` or `weighted`.
        lexical_weight: of the lexical list, 0..1; the vector list has the rest.

    Returns:
        Positions of the candidates that stand in a list, ascending, and their fused scores.

    >>> vector, lexical = np.float32([0.9, 0.5, 0.1]), np.float32([0.0, 3.0, 0.0])
    >>> positions, scores = fuse_candidates(
    ...     vector, lexical, np.uint64([1, 2, 3]), depth=2, fusion="weighted", lexical_weight=0.5
    ... )
    >>> positions.tolist(), scores.tolist()
    ([0, 1], [0.5, 0.5])
    """
    by_vector = order_best(vector, keys, depth)
    matching = np.flatnonzero(lexical > 0)
    by_lexical = matching[order_best(lexical[matching], keys[matching], depth)]
    weights = [1.0 - lexical_weight, lexical_weight]
    if fusion == "rrf":
        lists = [(by_vector, vector[by_vector]), (by_lexical, lexical[by_lexical])]
        return reciprocal_rank_fusion(lists, weights)
    kept = np.union1d(by_vector, by_lexical)
    # of lexical scores that are all 0 nothing could be stretched: nobody matches, the list is empty
    texts = kept if len(by_lexical) else kept[:0]
    return weighted_fusion([(kept, vector[kept]), (texts, lexical[texts])], weights)


def _ranks(scores: NDArray[np.floating]) -> Float64:
    """Ranks from 1 by falling score; equal ones share the first of theirs."""
    ascending = np.sort(scores)
    better = len(scores) - np.searchsorted(ascending, scores, side="right")
    return np.asarray(better + 1, dtype=np.float64)


def _stretch(scores: NDArray[np.floating]) -> Float64:
    wide = np.asarray(scores, dtype=np.float64)
    if not len(wide):
        return wide
    low, high = wide.min(), wide.max()
    if low == high:
        return np.ones_like(wide)
    stretched: Float64 = (wide - low) / (high - low)
    return stretched


def _add_up(lists: Sequence[tuple[Rows, Float64]]) -> tuple[Rows, Float64]:
    documents = np.unique(np.concatenate([found for found, _ in lists]))
    total = np.zeros(len(documents))
    for found, shares in lists:
        total[np.searchsorted(documents, found)] += shares
    return documents, total
