"""The coarse stage of small segments: every document's 8-bit vector against the query's.

Needs no file beside the planes. Answers like a FAISS list (coarse.py), exactly as to 8-bit scores.
Middle floor.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rematch_ray.index.coarse import IVF_FROM_DOCUMENTS, CoarseList
from rematch_ray.index.maxsim_int8 import carry_maxima, mean_of_maxima, new_maxima
from rematch_ray.index.planes import Plane
from rematch_ray.index.quantisation import quantise

SCAN = "scan"
# where fewer than this share of the documents may be returned, they alone are read
_SPARSE = 0.5


def is_scanned(kind: str, num_documents: int) -> bool:
    """Whether a segment needs no coarse list: asked for, or small enough.

    >>> is_scanned("auto", 1000), is_scanned("ivf", 1000), is_scanned("auto", 10**6)
    (True, False, False)
    """
    return kind == SCAN or (kind == "auto" and num_documents < IVF_FROM_DOCUMENTS)


class Coarse(Protocol):
    """What the coarse stage asks of a list."""

    @property
    def is_exact(self) -> bool:
        """Whether every document is scored."""

    def search(
        self, query: NDArray[np.float32], limit: int, *, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Finds the `limit` best documents, and all that equal the last."""


class ScanList:
    """An exact scan of one vector per document.

    Args:
        plane: of which the first vector is scanned.
    """

    is_exact = True

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    @cached_property
    def _first(self) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Codes and scales of every document's first vector; copied where more lie beside it."""
        codes, scales = self._plane.codes[:, :1], self._plane.scales[:, :1]
        return np.ascontiguousarray(codes), np.ascontiguousarray(scales)

    def search(
        self, query: NDArray[np.float32], limit: int, *, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Finds the documents of largest inner product with one query.

        Args:
            query: (dim,) float32.
            limit: how many are wanted, at least 1.
            allowed: (N,) True where a document may be returned; None allows all.

        Returns:
            Rows and scores, in no order: the `limit` best, and all that equal the last of them.
        """
        codes, scales = quantise(query[None, None])
        num_documents = self._plane.shape[0]
        rows = None if allowed is None else np.flatnonzero(allowed)
        chosen = rows if rows is not None and len(rows) < _SPARSE * num_documents else None
        best = new_maxima(num_documents if chosen is None else len(chosen), 1)
        carry_maxima(best, codes[0], *self._first, chosen)
        scores = mean_of_maxima(best, scales[0], 1)
        if rows is None:
            rows = np.arange(num_documents)
        elif chosen is None:
            scores = scores[rows]
        if limit < len(rows):
            cut = np.partition(scores, len(rows) - limit)[len(rows) - limit]
            kept = np.flatnonzero(scores >= cut)
            rows, scores = rows[kept], scores[kept]
        return rows, scores


def open_coarse(directory: Path, description: Mapping[str, Any], plane: Plane) -> Coarse:
    """Opens what `build_coarse` described.

    Args:
        directory: the segment's directory.
        description: from its manifest.
        plane: the vectors that the list was made of.

    Raises:
        UserError: its file cannot be read.
    """
    if description["kind"] == SCAN:
        return ScanList(plane)
    return CoarseList(directory, dict(description))
