"""Rough scores of all documents from one bit a number: which of them deserve their 8-bit codes.

Vectors are turned by a rotation that spreads what stands out, and of the difference of each from
its group's centre only the signs u and one length are kept: with r = |x - c|**2 / sum|x - c|,

    q . x  is about  q . c + r (q . u)

(RaBitQ, arXiv 2405.12497; here with centres of 64 documents that follow each other, which a build
has put in the order of their likeness, and with codes that registers look up). An index holds an
array (G, `group_bytes`) of such groups, laid out as `_maxsim_bits.c` says. Takes arrays; knows
nothing of files or segments. Middle floor.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rematch_ray.index import maxsim_library, maxsim_native
from rematch_ray.index.maxsim_best import cut_at
from rematch_ray.index.maxsim_int8 import path_in_use
from rematch_ray.index.quantisation import LEVELS, from_offset, to_offset

GROUP = 64
# of a unit vector no difference from a centre reaches further than 2
REACH_STEP = np.float32(2 / 65535)
# four codes of a query, and four more, are looked up in one byte
QUERY_LEVELS = 15
_FALLBACK_GROUPS = 256
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


def code_dim(dim: int) -> int:
    """Numbers of a rotated vector: a power of two.

    >>> code_dim(128), code_dim(130)
    (128, 256)
    """
    return max(8, 1 << (dim - 1).bit_length())


def group_bytes(dim: int) -> int:
    """Bytes of a group of 64 documents.

    >>> group_bytes(128)
    1280
    """
    return GROUP * (code_dim(dim) // 8 + 2) + code_dim(dim)


def rotate(vectors_ND: NDArray[np.floating]) -> Float64:
    """Vectors (N, D) turned by a fixed rotation, (N, `code_dim`): lengths and angles are kept.

    Signs that look random, then Hadamard's matrix; the same numbers on every machine.
    """
    count, dim = vectors_ND.shape
    wide = code_dim(dim)
    turned, scratch = np.zeros((count, wide)), np.empty((count, wide))
    np.multiply(vectors_ND, _signs(dim), out=turned[:, :dim])
    half = 1
    while half < wide:
        shape = (count, wide // (2 * half), 2, half)
        pairs, sums = turned.reshape(shape), scratch.reshape(shape)
        np.add(pairs[:, :, 0], pairs[:, :, 1], out=sums[:, :, 0])
        np.subtract(pairs[:, :, 0], pairs[:, :, 1], out=sums[:, :, 1])
        turned, scratch = scratch, turned
        half *= 2
    return turned / np.sqrt(wide)


def centre_step(samples_GND: NDArray[np.floating]) -> float:
    """One step of the centres' 8-bit codes, for groups (G, 64, D) that stand for all."""
    centres = rotate(samples_GND.mean(axis=1))
    return float(np.float32(np.abs(centres).max(initial=0.0) / LEVELS)) or 1.0


def code_groups(vectors_ND: NDArray[np.floating], step: float) -> NDArray[np.uint8]:
    """Codes of documents in their order, (ceil(N / 64), `group_bytes`).

    Args:
        vectors_ND: float, unit norm; a last group with fewer than 64 is filled up with nothing.
        step: from `centre_step`; centres further out are cut off, and their documents' differences
            are longer.
    """
    count, wide = len(vectors_ND), code_dim(vectors_ND.shape[1])
    num_groups = -(-count // GROUP)
    rotated = np.zeros((num_groups * GROUP, wide))
    rotated[:count] = rotate(vectors_ND)
    there = np.zeros(num_groups * GROUP, dtype=bool)
    there[:count] = True
    grouped = rotated.reshape(num_groups, GROUP, wide)
    sizes = there.reshape(num_groups, GROUP).sum(axis=1)
    codes = np.rint(grouped.sum(axis=1) / sizes[:, None] / step)
    codes = np.clip(codes, -LEVELS, LEVELS).astype(np.int8)
    apart = (rotated - np.repeat(codes * np.float64(step), GROUP, axis=0)) * there[:, None]
    lengths = np.abs(apart).sum(axis=1)
    squares = np.square(apart).sum(axis=1)
    reach = np.divide(squares, lengths, out=np.zeros_like(squares), where=lengths > 0)
    reach = np.minimum(np.rint(reach / REACH_STEP), 65535).astype("<u2").reshape(num_groups, GROUP)
    signs = np.packbits(apart > 0, axis=1, bitorder="little").reshape(num_groups, GROUP, -1)
    parts = [
        signs.transpose(0, 2, 1).reshape(num_groups, -1),
        reach.view(np.uint8),
        to_offset(codes),
    ]
    return np.concatenate(parts, axis=1)


@dataclass(frozen=True)
class RoughQuery:
    """A query as rough scores take it.

    Args:
        signs: (`code_dim`,) int8 of few levels, beside the documents' signs.
        centre: (`code_dim`,) int8, beside the centres' codes.
        reach_scale: of a product with signs and reach.
        centre_scale: of one with a centre.
    """

    signs: NDArray[np.int8]
    centre: NDArray[np.int8]
    reach_scale: np.float32
    centre_scale: np.float32

    @classmethod
    def of(cls, vector_D: NDArray[np.floating], step: float) -> RoughQuery:
        """Codes a unit vector for documents whose centres have this step."""
        [turned] = rotate(vector_D[None])
        largest = float(np.abs(turned).max()) or 1.0
        return cls(
            np.rint(turned * (QUERY_LEVELS / largest)).astype(np.int8),
            np.rint(turned * (LEVELS / largest)).astype(np.int8),
            np.float32(largest / QUERY_LEVELS) * REACH_STEP,
            np.float32(largest / LEVELS) * np.float32(step),
        )


def roughly_best(
    query: RoughQuery,
    groups: NDArray[np.uint8],
    count: int,
    limit: int,
    *,
    allowed: NDArray[np.bool_] | None = None,
    path: str | None = None,
) -> tuple[NDArray[np.int64], Float32]:
    """The documents of the largest rough scores.

    Args:
        query: coded.
        groups: (G, `group_bytes`) from `code_groups`.
        count: N documents.
        limit: how many are wanted, at least 1.
        allowed: (N,) True where a document may be kept; None allows all.
        path: one of `maxsim_int8.available_paths`; None takes the fastest. The same on all.

    Returns:
        Documents, ascending, and rough scores: the `limit` best, and all that equal the last.
    """
    assert groups.flags.c_contiguous and groups.shape[0] == -(-count // GROUP), groups.shape
    assert np.abs(query.signs).max() <= QUERY_LEVELS
    path = path or path_in_use()
    if path in maxsim_library.compiled_paths():
        return maxsim_native.rough(path, query, groups, count, allowed, limit)
    scores = rough_scores(query, groups, count)
    may = np.arange(count) if allowed is None else np.flatnonzero(allowed)
    kept = may[cut_at(scores[may], limit)]
    return kept, scores[kept]


def rough_scores(query: RoughQuery, groups: NDArray[np.uint8], count: int) -> Float32:
    """Rough scores of all documents, (N,), without the compiled kernel."""
    wide = len(query.signs)
    codes, reaches = GROUP * wide // 8, GROUP * wide // 8 + 2 * GROUP
    scores = np.empty((len(groups), GROUP), np.float32)
    for start in range(0, len(groups), _FALLBACK_GROUPS):
        some = groups[start : start + _FALLBACK_GROUPS]
        stored = some[:, :codes].reshape(-1, wide // 8, GROUP).transpose(0, 2, 1)
        bits = np.unpackbits(stored, axis=2, bitorder="little").astype(np.float32)
        # sums of small integers: exact, in whatever order
        along = (2 * bits - 1) @ query.signs.astype(np.float32)
        reach = np.ascontiguousarray(some[:, codes:reaches]).view("<u2").astype(np.float32)
        centres = from_offset(some[:, reaches:]).astype(np.float64)
        start_G = (centres @ query.centre.astype(np.float64)).astype(np.float32)
        from_centre = (start_G * query.centre_scale)[:, None]
        scores[start : start + len(some)] = from_centre + along * reach * query.reach_scale
    return scores.reshape(-1)[:count]


@functools.cache
def _signs(dim: int) -> Float64:
    """(D,) of 1 and -1: bits of splitmix64, which no version of numpy draws otherwise."""
    state = np.arange(1, dim + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.where((state ^ (state >> np.uint64(31))) & np.uint64(1), 1.0, -1.0)
