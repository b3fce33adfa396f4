"""The coarse stage of small segments: the first 8-bit vectors of every document.

Needs no file beside the planes. Answers as a FAISS list does (lists.py), and leaves no document
out. Middle floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rematch_ray.index.maxsim_best import best_of_planes, choose_rows
from rematch_ray.index.maxsim_library import Vectors
from rematch_ray.index.planes import Listed, Plane
from rematch_ray.index.queries import Codes


class Coarse(Protocol):
    """What the coarse stage asks of a list."""

    @property
    def is_exact(self) -> bool:
        """Whether every document is scored."""

    def search(
        self,
        query: NDArray[np.float32],
        limit: int,
        *,
        allowed: NDArray[np.bool_] | None = None,
        nprobe: int | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Finds the `limit` best documents, and on an exact list all that equal the last."""


class ScanList:
    """An exact scan of the first vectors of every document.

    Args:
        listed: the vectors of a coarse key.
    """

    is_exact = True

    def __init__(self, listed: Sequence[Listed]) -> None:
        self._listed = listed

    @cached_property
    def _planes(self) -> list[Vectors]:
        """Codes and scales; copied where more vectors lie beside those that are listed."""
        return [_first_vectors(part.plane, part.num_vectors) for part in self._listed]

    def search(
        self,
        query: NDArray[np.float32],
        limit: int,
        *,
        allowed: NDArray[np.bool_] | None = None,
        nprobe: int | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Finds the documents of largest MaxSim over the listed vectors.

        Args:
            query: (K, dim) or (dim,) float32.
            limit: how many are wanted, at least 1.
            allowed: (N,) True where a document may be returned; None allows all.
            nprobe: without effect: nothing is left out.

        Returns:
            Rows, ascending, and scores: the `limit` best, and all that equal the last of them. A
            score is the mean over the query vectors.
        """
        return self.search_coded(Codes.of(np.atleast_2d(query)[None]), limit, allowed=allowed)

    def search_coded(
        self, query: Codes, limit: int, *, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Finds what `search` finds, of one query that is coded already."""
        rows, mask = (None, None) if allowed is None else choose_rows(allowed)
        return self._best_of(query, limit, rows, mask)

    def _best_of(
        self,
        query: Codes,
        limit: int,
        rows: NDArray[np.int64] | None,
        allowed: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Finds the best of some rows, or of all, as `best_of_planes` takes them."""
        codes, scales = np.ascontiguousarray(query.codes), np.ascontiguousarray(query.scales)
        [found] = best_of_planes(codes, scales, self._planes, limit, rows=rows, allowed=allowed)
        places, scores = found
        return places if rows is None else rows[places], scores


def _first_vectors(plane: Plane, count: int) -> Vectors:
    if count == plane.shape[1]:
        return plane.coded
    codes, scales = plane.codes[:, :count], plane.scales[:, :count]
    return Vectors(np.ascontiguousarray(codes), np.ascontiguousarray(scales), device=plane.device)
