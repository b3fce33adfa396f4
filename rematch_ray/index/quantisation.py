"""Vectors as 8-bit integers with one scale each, and back; how far off scores of them can be.

A unit vector x becomes codes q = round(127 x / max|x|) and the scale 1 / |q|, so that what is read
back has unit norm again whatever was rounded away. No stored entry is further off than half a step
before that, hence |x - scale * q| <= sqrt(D) max|x| / 127 (`error_bound`), and a MaxSim score, a
mean over query vectors of unit norm, moves by no more than the largest of these. `residual_norms`
measures instead of bounding, and `score_bound` holds for any query. Middle floor.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LEVELS = 127
OFFSET = 128
# a scale is 1 / |codes| in float32: what is read back can be longer than 1 by its rounding
_LONGEST_READ = 1 + 2.0**-21
# float32 roundings of a score: dot product, scale, query scale, mean; each 2**-24 of at most 1
_SCORE_ROUNDING = 2.0**-21


def quantise(vectors_NRD: NDArray[np.floating]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes and scales of unit vectors.

    Args:
        vectors_NRD: (N, R, D), finite; a vector of zeros stays one.

    Returns:
        (N, R, D) int8 in -127..127 and (N, R) float32: vector = scale * codes.

    >>> codes, scales = quantise(np.array([[[0.6, -0.8]]]))
    >>> codes.tolist(), round(float(scales[0, 0]) * 127, 3)
    ([[[95, -127]]], 0.801)
    """
    wide = vectors_NRD.astype(np.float32)
    largest = np.abs(wide).max(axis=-1, keepdims=True)
    steps = np.divide(LEVELS, largest, out=np.zeros_like(largest), where=largest > 0)
    codes = np.rint(wide * steps)
    norms = np.sqrt(np.einsum("nrd,nrd->nr", codes, codes))
    scales = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    return codes.astype(np.int8), scales


def dequantise(codes_NRD: NDArray[np.int8], scales_NR: NDArray[np.float32]) -> NDArray[np.float16]:
    """Unit vectors (N, R, D) from `quantise`'s codes and scales, in float16."""
    return (codes_NRD * scales_NR[..., None]).astype(np.float16)


def error_bound(vectors_NRD: NDArray[np.floating]) -> NDArray[np.float32]:
    """How far each vector can be from what is read back, (N, R): sqrt(D) max|x| / 127.

    Half a step in every entry is at most half of that; giving the result unit norm again moves it
    no further than it was off already.
    """
    largest = np.abs(vectors_NRD).max(axis=-1).astype(np.float32)
    return np.float32(np.sqrt(vectors_NRD.shape[-1]) / LEVELS) * largest


def to_offset(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Codes as documents are stored: plus 128, what 8-bit multiply-add takes beside signed queries.

    >>> to_offset(np.int8([-127, 0, 127])).tolist()
    [1, 128, 255]
    """
    return codes.view(np.uint8) ^ np.uint8(OFFSET)


def from_offset(stored: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Codes from their stored form, the reverse of `to_offset`."""
    return (stored ^ np.uint8(OFFSET)).view(np.int8)


def pack(stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The high four bits of stored codes, two entries to a byte.

    Args:
        stored: (..., D) from `to_offset`.

    Returns:
        (..., ceil(D / 2)): the first half of the entries in the low bits, the rest in the high.

    >>> pack(np.uint8([0x12, 0x34, 0x56])).tolist() == [0x51, 0x83]
    True
    """
    half = -(-stored.shape[-1] // 2)
    low, high = stored[..., :half] >> 4, stored[..., half:] & 0xF0
    if high.shape[-1] < half:  # an odd entry stands beside the middle of the codes
        high = np.concatenate([high, np.full((*high.shape[:-1], 1), OFFSET, np.uint8)], axis=-1)
    both: NDArray[np.uint8] = np.bitwise_or(low, high)
    return both


def unpack(packed: NDArray[np.uint8], dim: int) -> NDArray[np.uint8]:
    """Stored codes (..., dim) in the middle of the 16 that four bits stand for.

    >>> unpack(pack(np.uint8([0x12, 0x34, 0x56])), 3).tolist() == [0x18, 0x38, 0x58]
    True
    """
    both = np.concatenate([packed << 4, packed & 0xF0], axis=-1)
    middles: NDArray[np.uint8] = np.bitwise_or(both[..., :dim], 8)
    return middles


def residual_norms(
    vectors_NRD: NDArray[np.floating], codes_NRD: NDArray[np.int8], scales_NR: NDArray[np.float32]
) -> NDArray[np.float32]:
    """How far each vector is from what is read back, |x - scale * codes|, rounded up.

    Args:
        vectors_NRD: (..., D) originals, as exact scores read them.
        codes_NRD: (..., D) from `quantise`.
        scales_NR: (...) float32.

    Returns:
        (...) float32, never below the true norm.
    """
    read = codes_NRD * scales_NR[..., None].astype(np.float64)
    return _rounded_up(np.linalg.norm(vectors_NRD.astype(np.float64) - read, axis=-1))


def norms(vectors_NRD: NDArray[np.floating]) -> NDArray[np.float32]:
    """Lengths of vectors, (...) float32, never below the true ones."""
    return _rounded_up(np.linalg.norm(vectors_NRD.astype(np.float64), axis=-1))


def score_bound(
    query_norms_R: NDArray[np.float32],
    query_residuals_R: NDArray[np.float32],
    document_residuals_C: NDArray[np.float32],
) -> NDArray[np.float32]:
    """How far an 8-bit MaxSim score can be from that of the originals.

    With q', x' as read back, q.x - q'.x' = q.(x - x') + (q - q').x', which is at most
    |q| |x - x'| + |q - q'| |x'|. A maximum over document vectors moves by no more than its largest
    entry, and a mean by no more than the mean of its entries; |x'| is 1 up to rounding. The last
    term is that of computing the 8-bit score in float32.

    Args:
        query_norms_R: (r_q,) lengths of the original query vectors, from `norms`.
        query_residuals_R: (r_q,) from `residual_norms`.
        document_residuals_C: (C,) largest of a document's first r_d `residual_norms`.

    Returns:
        (C,) float32: |score of the originals - 8-bit score| is at most this.
    """
    slope, fixed = bound_terms(query_norms_R, query_residuals_R)
    return _rounded_up(slope * document_residuals_C.astype(np.float64) + fixed)


def bound_terms(
    query_norms_BR: NDArray[np.float32], query_residuals_BR: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The two numbers of a query in `score_bound`: bound = slope * residual + fixed.

    Args:
        query_norms_BR: (..., r_q) as of `score_bound`.
        query_residuals_BR: (..., r_q) likewise.

    Returns:
        (...) float64 each.
    """
    count = query_norms_BR.shape[-1]
    slope = np.add.reduce(query_norms_BR, axis=-1, dtype=np.float64) / count
    residual = np.add.reduce(query_residuals_BR, axis=-1, dtype=np.float64) / count
    return slope, residual * _LONGEST_READ + _SCORE_ROUNDING


def _rounded_up(values: NDArray[np.float64]) -> NDArray[np.float32]:
    # 2**-40 covers the float64 sums before, nextafter the rounding to float32 here
    rounded = (values * (1 + 2.0**-40)).astype(np.float32)
    return np.nextafter(rounded, np.float32(np.inf))
