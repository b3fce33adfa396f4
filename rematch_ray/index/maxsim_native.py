"""Calls of the compiled 8-bit MaxSim kernel.

ctypes releases the interpreter lock for the time of a call. Takes arrays that `maxsim_int8` has
checked; knows nothing of documents. Middle floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rematch_ray.index import maxsim_library
from rematch_ray.index.maxsim_library import Vectors, address, check

if TYPE_CHECKING:
    from rematch_ray.index.one_bit import RoughQuery


def carry(
    path: str,
    best_CR: NDArray[np.float32],
    query_RD: NDArray[np.int8],
    codes_NnD: NDArray[np.uint8],
    scales_Nn: NDArray[np.float32],
    rows: NDArray[np.int64] | None,
    first: int,
    stop: int,
) -> None:
    """Runs `maxsim_int8.carry_maxima` over the documents at positions first..stop of `rows`."""
    functions = maxsim_library.functions()
    assert functions is not None
    offset = first if rows is None else 0
    status = functions["carry"](
        path.encode(),
        address(query_RD),
        *query_RD.shape,
        address(codes_NnD) + offset * codes_NnD.strides[0],
        address(scales_Nn) + offset * scales_Nn.strides[0],
        codes_NnD.shape[1],
        None if rows is None else address(rows) + 8 * first,
        stop - first,
        address(best_CR) + first * best_CR.strides[0],
        best_CR.strides[0] // 4,
    )
    check(status, path, query_RD.shape)


def mean(
    best_CR: NDArray[np.float32],
    scales_R: NDArray[np.float32],
    r_q: int,
    means_C: NDArray[np.float32],
) -> None:
    """Runs `maxsim_int8.mean_of_maxima`, writing into `means_C`."""
    functions = maxsim_library.functions()
    assert functions is not None
    functions["mean"](
        address(best_CR),
        best_CR.strides[0] // 4,
        len(best_CR),
        address(scales_R),
        r_q,
        address(means_C),
    )


def best(
    path: str,
    query_BRD: NDArray[np.int8],
    query_scales_BR: NDArray[np.float32],
    planes: Sequence[Vectors],
    rows: NDArray[np.int64] | None,
    allowed: NDArray[np.bool_] | None,
    limit: int,
    slack_B: NDArray[np.float64],
) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Runs `maxsim_best.best_of_planes`."""
    functions = maxsim_library.functions()
    assert functions is not None
    num_queries, r_q, dim = query_BRD.shape
    count = len(planes[0].values) if rows is None else len(rows)
    limit = _whole(limit, count)
    # room for all: what is not written to takes no memory
    positions = np.empty((num_queries, count), np.int64)
    scores = np.empty((num_queries, count), np.float32)
    found = np.empty(num_queries, np.int64)
    described = np.array([plane.described for plane in planes], np.int64)
    status = functions["best"](
        path.encode(),
        address(query_BRD),
        *(num_queries, r_q, dim),
        address(described),
        len(planes),
        None if rows is None else address(rows),
        count,
        None if allowed is None else address(allowed),
        address(query_scales_BR),
        limit,
        *(address(slack_B), address(positions), address(scores), address(found)),
    )
    check(status, path, query_BRD.shape)
    counts = found.tolist()
    return [(positions[q, :n].copy(), scores[q, :n].copy()) for q, n in enumerate(counts)]


def rough(
    path: str,
    query: RoughQuery,
    groups: NDArray[np.uint8],
    count: int,
    allowed: NDArray[np.bool_] | None,
    limit: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Runs `one_bit.roughly_best`."""
    functions = maxsim_library.functions()
    assert functions is not None
    limit = _whole(limit, count)
    positions, scores = np.empty(count, np.int64), np.empty(count, np.float32)
    found = np.empty(1, np.int64)
    status = functions["rough"](
        path.encode(),
        address(groups),
        len(query.signs) // 8,
        count,
        address(query.signs),
        address(query.centre),
        query.reach_scale,
        query.centre_scale,
        None if allowed is None else address(allowed),
        limit,
        *(address(positions), address(scores), address(found)),
    )
    check(status, path, query.signs.shape)
    kept = int(found[0])
    return positions[:kept].copy(), scores[:kept].copy()


def climb(
    path: str,
    query_RD: NDArray[np.int8],
    scales_R: NDArray[np.float32],
    planes: Sequence[Vectors],
    rungs: Sequence[tuple[int, int, int]],
    keys_N: NDArray[np.uint64],
    rows: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.float32], list[int], list[float]]:
    """Takes documents through growing budgets in one call; see `climbing.climb`.

    Args:
        path: one of `compiled_paths`.
        query_RD: codes of the query vectors of the last rung.
        scales_R: their scales.
        planes: codes of all documents, those of the last rung.
        rungs: query vectors, planes and documents kept of each; the last keeps all.
        keys_N: of all documents, none like another.
        rows: (C,) documents.

    Returns:
        Rows and scores of what is left, and of each rung how many came and the milliseconds.
    """
    functions = maxsim_library.functions()
    assert functions is not None
    num_documents, dim = len(keys_N), query_RD.shape[1]
    assert query_RD.shape[0] == len(scales_R) == rungs[-1][0] and rungs[-1][1] == len(planes)
    assert all(
        plane.values.shape[::2] == (num_documents, dim) and not plane.is_packed for plane in planes
    )
    rows = np.array(rows, np.int64)
    # seen as unsigned, a negative row is a huge one: one pass instead of two
    assert not len(rows) or rows.view(np.uint64).max() < num_documents, (rows.min(), rows.max())
    scores = np.empty(len(rows), np.float32)
    described = np.array([plane.described for plane in planes], np.int64)
    *narrowing, last = rungs
    cuts = [(r_q, num_planes, _whole(keep, len(rows))) for r_q, num_planes, keep in narrowing]
    steps = np.array([*cuts, last], np.int64)
    entered, ms = np.zeros(len(rungs) + 1, np.int64), np.zeros(len(rungs))
    status = functions["climb"](
        path.encode(),
        *(address(query_RD), address(scales_R)),
        dim,
        *(address(described), address(steps)),
        len(rungs),
        *(address(keys_N), address(rows)),
        len(rows),
        *(address(scores), address(entered), address(ms)),
    )
    check(status, path, query_RD.shape)
    *came, left = entered.tolist()
    return rows[:left], scores[:left], came, ms.tolist()


def _whole(limit: int, count: int) -> int:
    """How many of some documents to keep, as the kernel may be given it.

    It cuts at a position among the scores without looking whether that is one, and in 64 bits.
    """
    assert limit >= 1, limit
    return min(limit, max(1, count))


def code(
    vectors_BRD: NDArray[np.float32],
) -> tuple[
    NDArray[np.float64],
    NDArray[np.int8],
    NDArray[np.float32],
    NDArray[np.float32],
    NDArray[np.float32],
]:
    """Runs `exact.to_grid`, `quantise`, `residual_norms` and `norms` of `quantisation` at once."""
    functions = maxsim_library.functions()
    assert functions is not None and vectors_BRD.dtype == np.float32
    vectors_BRD = np.ascontiguousarray(vectors_BRD)
    shape = vectors_BRD.shape
    count = shape[0] * shape[1]
    grid, codes = np.empty(shape, np.float64), np.zeros(shape, np.int8)
    numbers = np.zeros((3, *shape[:2]), np.float32)
    first = address(numbers)
    functions["code"](
        *(address(vectors_BRD), count, shape[2], address(grid), address(codes)),
        *(first, first + 4 * count, first + 8 * count),
    )
    scales, errors, norms = numbers
    return grid, codes, scales, errors, norms


def exact(
    path: str,
    query_RD: NDArray[np.float64],
    originals: Sequence[Vectors],
    rows: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Runs `exact.score_rows` for one query at one budget, on one of `EXACT_PATHS`."""
    functions = maxsim_library.functions()
    assert functions is not None
    scores = np.empty(len(rows), np.float32)
    described = np.array([plane.described for plane in originals], np.int64)
    status = functions["exact"](
        path.encode(),
        address(query_RD),
        *query_RD.shape,
        address(described),
        len(originals),
        address(rows),
        len(rows),
        address(scores),
    )
    check(status, path, query_RD.shape)
    return scores


def certify(
    path: str,
    query_RD: NDArray[np.float64],
    originals: Sequence[Vectors],
    errors: Sequence[int],
    keys_N: NDArray[np.uint64],
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    *,
    limit: int,
    first: int,
    slope: float,
    fixed: float,
    slack: float,
) -> tuple[NDArray[np.int64], NDArray[np.float32], int]:
    """Runs `certified.certify` on documents of one segment, on one of `EXACT_PATHS`.

    Args:
        path: one of `EXACT_PATHS`.
        query_RD: on the grid of `exact.to_grid`.
        originals: float16 of each plane that takes part.
        errors: addresses of (N,) float32 of each, distances of its vectors from what is read back.
        keys_N: of all documents.
        rows: (C,) documents.
        scores: (C,) their 8-bit scores, off by at most error * slope + fixed.
        limit: how many are wanted.
        first: of the promising documents so many are read at first, at least `limit`.
        slope: see above.
        fixed: see above.
        slack: documents further below the `limit`-th score are not looked at; may be infinite.

    Returns:
        Rows and exact scores of the best, best first, and how many documents were read.
    """
    functions = maxsim_library.functions()
    assert functions is not None and len(rows) == len(scores)
    assert min(1, len(rows)) <= limit <= first
    rows, scores = np.ascontiguousarray(rows, np.int64), np.ascontiguousarray(scores, np.float32)
    assert not len(rows) or rows.view(np.uint64).max() < len(keys_N), (rows.min(), rows.max())
    described = np.array([plane.described for plane in originals], np.int64)
    distances = np.array(errors, np.int64)
    best_rows, best_scores = np.empty(limit, np.int64), np.empty(limit, np.float32)
    found = np.zeros(2, np.int64)
    status = functions["certify"](
        path.encode(),
        address(query_RD),
        *query_RD.shape,
        address(described),
        len(originals),
        *(address(distances), address(keys_N), address(rows), address(scores)),
        *(len(rows), limit, first, slope, fixed, slack),
        *(address(best_rows), address(best_scores), address(found)),
    )
    check(status, path, query_RD.shape)
    kept, read = found.tolist()
    return best_rows[:kept], best_scores[:kept], read
