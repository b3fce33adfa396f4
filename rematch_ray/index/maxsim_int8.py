"""MaxSim over stored 8-bit vectors, carried from plane to plane.

The state is one float32 maximum per document and query vector; a plane raises it, so that a larger
budget costs only the vectors that are new. Every path gives the same bits: a dot product of codes
is an exact integer, its scale is applied in one float32 operation, and a maximum has no order. The
query's own scales are applied last, by `mean_of_maxima`. Knows nothing of files, segments or
candidates. Middle floor.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from rematch_ray.index import maxsim_library, maxsim_native
from rematch_ray.index.maxsim_matrices import carry_by_matrices, matrix_paths

Float32 = NDArray[np.float32]

MAX_DIM = 4096
# below this a thread costs more than it saves: bytes of codes that one slice reads
_SLICE_BYTES = 1 << 20


def available_paths() -> tuple[str, ...]:
    """Ways to compute that this machine has, fastest first; all give the same bits.

    Returns:
        Some of `avx512vnni`, `avx2`, `c` (compiled) and `torch`, and always `numpy`.
    """
    return (*maxsim_library.compiled_paths(), *matrix_paths())


def path_in_use() -> str:
    """The path that `carry_maxima` takes when none is named."""
    compiled = maxsim_library.compiled_paths()
    return compiled[0] if compiled else matrix_paths()[0]


def new_maxima(num_documents: int, num_query_vectors: int) -> Float32:
    """Maxima before any plane was read, (C, R) float32: minus infinity."""
    return np.full((num_documents, num_query_vectors), -np.inf, np.float32)


def carry_maxima(
    best_CR: Float32,
    query_codes_RD: NDArray[np.int8],
    plane_codes_NnD: NDArray[np.uint8],
    plane_scales_Nn: Float32,
    rows: NDArray[np.int64] | None = None,
    *,
    threads: int = 1,
    path: str | None = None,
) -> None:
    """Raises maxima by the vectors of one plane, in place.

    best[c, i] = max(best[c, i], max over j of float32(scale[row, j] * dot(query i, code[row, j])))
    with row = rows[c]. Queries of a batch are stacked along R and share the pass.

    Args:
        best_CR: (C, R) float32, from `new_maxima` or carried; rows may be strided (a slice of
            columns), elements of a row lie side by side.
        query_codes_RD: (R, D) int8 from `quantise`, D at most 4,096.
        plane_codes_NnD: (N, n, D) uint8 from `quantisation.to_offset`: code + 128.
        plane_scales_Nn: (N, n) float32, finite; 0 only for a vector of zeros.
        rows: (C,) int64 documents of the plane, repeats allowed; None takes all N in order.
        threads: slices of documents that run side by side; changes no bit. `torch` and `numpy`
            have threads of their own.
        path: one of `available_paths`; None takes the fastest.
    """
    path = path or path_in_use()
    _check(best_CR, query_codes_RD, plane_codes_NnD, plane_scales_Nn, rows)
    count, num_rows = best_CR.shape
    if not count or not num_rows or not plane_codes_NnD.shape[1]:
        return
    if path not in maxsim_library.compiled_paths():
        assert path in matrix_paths(), (path, available_paths())
        carry_by_matrices(path, best_CR, query_codes_RD, plane_codes_NnD, plane_scales_Nn, rows)
        return

    def carry_slice(first: int, stop: int) -> None:
        maxsim_native.carry(
            path, best_CR, query_codes_RD, plane_codes_NnD, plane_scales_Nn, rows, first, stop
        )

    per_document = plane_codes_NnD.shape[1] * plane_codes_NnD.shape[2]
    slices = min(threads, -(-count * per_document // _SLICE_BYTES))
    if slices == 1:
        carry_slice(0, count)
        return
    bounds = [count * position // slices for position in range(slices + 1)]
    with ThreadPoolExecutor(slices) as pool:
        list(pool.map(carry_slice, bounds[:-1], bounds[1:]))


def mean_of_maxima(best_CR: Float32, query_scales_R: Float32, r_q: int) -> Float32:
    """Scores from maxima: the mean over the first query vectors, with their scales.

    Args:
        best_CR: (C, R) float32, finite; rows may be strided.
        query_scales_R: (R,) float32 from `quantise`.
        r_q: how many query vectors take part, 1..R.

    Returns:
        (C,) float32: the products best * scale, each rounded to float32, are added in their order
        in float64, and the mean is rounded once.

    >>> best = np.float32([[2, -4, 9], [1, 1, 9]])
    >>> mean_of_maxima(best, np.float32([0.5, 0.25, 1]), 2).tolist()
    [0.0, 0.375]
    """
    assert best_CR.dtype == query_scales_R.dtype == np.float32
    assert best_CR.ndim == 2 and query_scales_R.shape == best_CR.shape[1:]
    assert 1 <= r_q <= best_CR.shape[1], (r_q, best_CR.shape)
    _check_rows_dense(best_CR)
    if maxsim_library.is_built():
        means = np.empty(len(best_CR), np.float32)
        maxsim_native.mean(best_CR, np.ascontiguousarray(query_scales_R), r_q, means)
        return means
    total = np.zeros(len(best_CR))
    for position in range(r_q):
        total += best_CR[:, position] * query_scales_R[position]
    return (total / r_q).astype(np.float32)


def _check(
    best_CR: Float32,
    query_codes_RD: NDArray[np.int8],
    plane_codes_NnD: NDArray[np.uint8],
    plane_scales_Nn: Float32,
    rows: NDArray[np.int64] | None,
) -> None:
    assert best_CR.dtype == plane_scales_Nn.dtype == np.float32
    assert query_codes_RD.dtype == np.int8 and plane_codes_NnD.dtype == np.uint8
    num_documents, num_vectors, dim = plane_codes_NnD.shape
    num_rows, query_dim = query_codes_RD.shape
    assert query_dim == dim and 1 <= dim <= MAX_DIM, (query_codes_RD.shape, plane_codes_NnD.shape)
    assert plane_scales_Nn.shape == (num_documents, num_vectors), plane_scales_Nn.shape
    count = num_documents if rows is None else len(rows)
    assert best_CR.shape == (count, num_rows), (best_CR.shape, count, num_rows)
    for array in (query_codes_RD, plane_codes_NnD, plane_scales_Nn):
        assert array.flags.c_contiguous
    _check_rows_dense(best_CR)
    assert best_CR.flags.writeable
    if rows is not None and count:
        assert rows.dtype == np.int64 and rows.ndim == 1 and rows.flags.c_contiguous
        # seen as unsigned, a negative row is a huge one: one pass instead of two
        assert rows.view(np.uint64).max() < num_documents, (rows.min(), rows.max())


def _check_rows_dense(best_CR: Float32) -> None:
    if best_CR.size:
        assert best_CR.strides[1] == 4 or best_CR.shape[1] == 1, best_CR.strides
        assert best_CR.strides[0] % 4 == 0 and best_CR.strides[0] >= 0, best_CR.strides
