"""8-bit MaxSim by matrix products: what `maxsim_int8` falls back to where nothing is compiled.

Two libraries, the same bits: torch multiplies 8-bit integers, where the processor has instructions
for it (without them its sums may saturate); numpy multiplies small integers in float32, in strips
of dimensions too short for a sum to be rounded. How many threads work is the library's own setting.
Takes arrays that `maxsim_int8` has checked. Middle floor.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from rematch_ray.index.quantisation import OFFSET, from_offset

Float32 = NDArray[np.float32]
Codes = NDArray[np.uint8]
# dot products of (V, D) stored codes with a query, (V, R) float32
Multiply = Callable[[Codes], Float32]

# similarities and codes that one block holds: 2**20 float32 are 4 MiB
_BLOCK_CELLS = 1 << 20
# as many products of codes as float32 adds without rounding: 255 * 127 * 512 < 2**24
_EXACT_DIMS = 512


@functools.cache
def matrix_paths() -> tuple[str, ...]:
    """Names of the libraries that can serve here, fastest first; numpy always can."""
    # seconds to import, and nobody's business while a compiled path serves
    import torch

    # a private name; where torch does not know it, numpy serves
    knows = getattr(torch.cpu, "_is_vnni_supported", None)
    return ("torch", "numpy") if knows is not None and knows() else ("numpy",)


def carry_by_matrices(
    path: str,
    best_CR: Float32,
    query_RD: NDArray[np.int8],
    codes_NnD: Codes,
    scales_Nn: Float32,
    rows: NDArray[np.int64] | None,
) -> None:
    """Does what `maxsim_int8.carry_maxima` says, by blocks of documents."""
    multiply = _torch_multiply(query_RD) if path == "torch" else _numpy_multiply(query_RD)
    _, num_vectors, dim = codes_NnD.shape
    step = max(1, _BLOCK_CELLS // (num_vectors * max(dim, len(query_RD))))
    for first in range(0, len(best_CR), step):
        block = slice(first, min(first + step, len(best_CR)))
        chosen = block if rows is None else rows[block]
        dots = multiply(codes_NnD[chosen].reshape(-1, dim))
        dots *= scales_Nn[chosen].reshape(-1, 1)
        found = dots.reshape(-1, num_vectors, len(query_RD)).max(axis=1)
        np.maximum(best_CR[block], found, out=best_CR[block])


def _torch_multiply(query_RD: NDArray[np.int8]) -> Multiply:
    import torch

    query_DR = torch.from_numpy(query_RD.T.copy())

    def multiply(codes_VD: Codes) -> Float32:
        dots = torch._int_mm(torch.from_numpy(from_offset(codes_VD)), query_DR)
        found: Float32 = dots.float().numpy()
        return found

    return multiply


def _numpy_multiply(query_RD: NDArray[np.int8]) -> Multiply:
    query_DR = query_RD.T.astype(np.float32)
    start_R = -OFFSET * query_RD.sum(axis=1, dtype=np.float64)
    dims = range(0, len(query_DR), _EXACT_DIMS)
    strips = [slice(first, first + _EXACT_DIMS) for first in dims]

    def multiply(codes_VD: Codes) -> Float32:
        parts = [codes_VD[:, s].astype(np.float32) @ query_DR[s] for s in strips]
        # below 2**24 in one strip: the sum is exact in float32; of several, in float64
        if len(parts) == 1:
            return parts[0] + start_R.astype(np.float32)
        return (start_R + sum(part.astype(np.float64) for part in parts)).astype(np.float32)

    return multiply
