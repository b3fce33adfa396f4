"""Vectors as 8-bit integers with one scale each, and back.

A unit vector x becomes codes q = round(127 x / max|x|) and the scale 1 / |q|, so that what is read
back has unit norm again whatever was rounded away. No stored entry is further off than half a step
before that, hence |x - scale * q| <= sqrt(D) max|x| / 127 (`error_bound`), and a MaxSim score, a
mean over query vectors of unit norm, moves by no more than the largest of these. Middle floor.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LEVELS = 127


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
