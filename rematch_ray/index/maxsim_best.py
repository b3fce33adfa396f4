"""The best documents by 8-bit MaxSim, found in one pass that scores and selects.

The compiled kernel compares scores as they come, so that those of most documents are never written;
without it they are computed by blocks and cut at the end. Both keep the same set. Takes arrays;
knows nothing of files, segments or budgets. Middle floor.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rematch_ray.index import maxsim_library, maxsim_native
from rematch_ray.index.maxsim_int8 import (
    MAX_DIM,
    Float32,
    carry_maxima,
    mean_of_maxima,
    new_maxima,
    path_in_use,
)
from rematch_ray.index.maxsim_library import Vectors
from rematch_ray.index.quantisation import unpack

Rows = NDArray[np.int64]
Kept = tuple[Rows, Float32]

# documents of one block without the compiled kernel: long enough that calls cost little
_BLOCK_MAXIMA, _LEAST_DOCUMENTS = 1 << 18, 4096
# where fewer than this share of the documents may be found, they alone are read
_SPARSE = 0.5


def best_of_planes(
    query_codes_BRD: NDArray[np.int8],
    query_scales_BR: Float32,
    planes: Sequence[Vectors],
    limit: int,
    *,
    rows: Rows | None = None,
    allowed: NDArray[np.bool_] | None = None,
    slack: NDArray[np.float64] | None = None,
    path: str | None = None,
) -> list[Kept]:
    """Scores documents by some planes and keeps the best of each query.

    Args:
        query_codes_BRD: (B, R, D) int8 from `quantise`.
        query_scales_BR: (B, R) float32 likewise.
        planes: codes + 128 (N, n_k, D) uint8 and scales (N, n_k) float32 of each; a packed one
            stands alone.
        limit: how many are wanted, at least 1.
        rows: (C,) documents to score; None takes all N in order.
        allowed: (C,) True where a document may be kept; None allows all.
        slack: (B,) float64, not negative: how far below the `limit`-th best score a document is
            still kept; None is 0.
        path: one of `maxsim_int8.available_paths`; None takes the fastest. Planes that name a
            device are scored there.

    Returns:
        For each query, of the documents that are allowed: positions in `rows` (documents, where
        that is None), ascending, and scores, of all within `slack` of the `limit`-th best.
    """
    _check(query_codes_BRD, query_scales_BR, planes, rows, allowed)
    if slack is None:
        slack = np.zeros(len(query_codes_BRD))
    if planes[0].device is not None:
        from rematch_ray.index.maxsim_device import best_on_device

        held = [plane.held for plane in planes]
        return best_on_device(
            query_codes_BRD,
            query_scales_BR,
            held,
            limit,
            rows=rows,
            allowed=allowed,
            slack=slack,
        )
    path = path or path_in_use()
    if path in maxsim_library.compiled_paths():
        return maxsim_native.best(
            path, query_codes_BRD, query_scales_BR, planes, rows, allowed, limit, slack
        )
    scores = _scores(query_codes_BRD, query_scales_BR, planes, rows, path)
    return [_cut(own, allowed, limit, float(width)) for own, width in zip(scores, slack)]


def choose_rows(allowed: NDArray[np.bool_]) -> tuple[Rows | None, NDArray[np.bool_] | None]:
    """`rows` and `allowed` of `best_of_planes` for a mask: few are listed, many are picked out.

    >>> choose_rows(np.array([True, True])), choose_rows(np.array([False, True, False]))[0].tolist()
    ((None, None), [1])
    """
    count = np.count_nonzero(allowed)
    if count == len(allowed):
        return None, None
    if count < _SPARSE * len(allowed):
        return np.flatnonzero(allowed), None
    return None, allowed


def cut_at(scores: Float32, limit: int, slack: float = 0.0) -> NDArray[np.intp]:
    """Positions of the scores within `slack` of the `limit`-th best, ascending.

    >>> cut_at(np.float32([0.5, 0.9, 0.1, 0.5]), 2).tolist()
    [0, 1, 3]
    """
    if limit >= len(scores):
        return np.arange(len(scores))
    threshold = np.partition(scores, len(scores) - limit)[len(scores) - limit]
    return np.flatnonzero(scores >= np.float64(threshold) - slack)


def _cut(scores: Float32, allowed: NDArray[np.bool_] | None, limit: int, slack: float) -> Kept:
    if allowed is None:
        kept = cut_at(scores, limit, slack)
    else:
        may = np.flatnonzero(allowed)
        kept = may[cut_at(scores[may], limit, slack)]
    return kept.astype(np.int64), scores[kept]


def _scores(
    codes_BRD: NDArray[np.int8],
    scales_BR: Float32,
    planes: Sequence[Vectors],
    rows: Rows | None,
    path: str,
) -> Float32:
    """(B, C) scores, without the compiled kernel's selection."""
    num_queries, r_q, dim = codes_BRD.shape
    flat = codes_BRD.reshape(num_queries * r_q, dim)
    count = len(planes[0].values) if rows is None else len(rows)
    scores = np.empty((num_queries, count), np.float32)
    step = max(_LEAST_DOCUMENTS, _BLOCK_MAXIMA // len(flat))
    for start in range(0, count, step):
        block = slice(start, min(start + step, count))
        best = new_maxima(block.stop - start, len(flat))
        for plane in planes:
            codes, scales = plane.values, plane.scales
            assert scales is not None
            if plane.is_packed:
                some = block if rows is None else rows[block]
                carry_maxima(best, flat, unpack(codes[some], dim), scales[some], path=path)
            elif rows is None:
                carry_maxima(best, flat, codes[block], scales[block], path=path)
            else:
                carry_maxima(best, flat, codes, scales, rows[block], path=path)
        for query in range(num_queries):
            mine = best[:, query * r_q : (query + 1) * r_q]
            scores[query, block] = mean_of_maxima(mine, scales_BR[query], r_q)
    return scores


def _check(
    codes_BRD: NDArray[np.int8],
    scales_BR: Float32,
    planes: Sequence[Vectors],
    rows: Rows | None,
    allowed: NDArray[np.bool_] | None,
) -> None:
    assert codes_BRD.dtype == np.int8 and codes_BRD.flags.c_contiguous
    assert scales_BR.dtype == np.float32 and scales_BR.flags.c_contiguous
    assert scales_BR.shape == codes_BRD.shape[:2] and 1 <= codes_BRD.shape[2] <= MAX_DIM
    num_documents, dim = len(planes[0].values), codes_BRD.shape[2]
    assert len(planes) == 1 or not any(plane.is_packed for plane in planes)
    for plane in planes:
        codes, scales = plane.values, plane.scales
        assert scales is not None and codes.dtype == np.uint8 and scales.dtype == np.float32
        width = -(-dim // 2) if plane.is_packed else dim
        assert codes.shape == (*scales.shape, width), (codes.shape, codes_BRD.shape)
        assert not plane.is_packed or codes.shape[1] == 1, codes.shape
        assert len(codes) == num_documents
        assert codes.flags.c_contiguous and scales.flags.c_contiguous
    if rows is not None and len(rows):
        assert rows.dtype == np.int64 and rows.ndim == 1 and rows.flags.c_contiguous
        # seen as unsigned, a negative row is a huge one: one pass instead of two
        assert rows.view(np.uint64).max() < num_documents, (rows.min(), rows.max())
    if allowed is not None:
        assert allowed.dtype == np.bool_ and allowed.flags.c_contiguous
        assert allowed.shape == ((num_documents if rows is None else len(rows)),)
