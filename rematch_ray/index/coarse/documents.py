"""From found entries to documents: what several query vectors found of documents with several.

A document's coarse score is the mean over the query vectors of its best entry; here it is the sum.
Where a query vector did not find a document, the worst score that it found stands in (as in XTR,
arXiv 2304.01982, and WARP): no entry that it did not find can be better on a list that scores all
of them, so there the sum is an upper bound. Pure functions of arrays. Middle floor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Rows = NDArray[np.int64]

# above what single precision loses on unit vectors
_SLACK = 1e-4


@dataclass(frozen=True)
class Found:
    """What K query vectors found.

    Args:
        rows: (C,) documents, each once.
        best_KC: (K, C) the best score of each query vector's entries, -inf where it found none.
        worst_K: (K,) the worst score that each found.
    """

    rows: Rows
    best_KC: Float32
    worst_K: Float32

    @property
    def sums(self) -> Float32:
        """(C,) sums, the worst found standing in for what was not found."""
        filled = np.where(np.isneginf(self.best_KC), self.worst_K[:, None], self.best_KC)
        return np.asarray(filled.sum(axis=0), dtype=np.float32)

    def certain(self, limit: int) -> Float32 | None:
        """The `limit`-th best sum among documents that every query vector found, or None."""
        complete = self.best_KC.sum(axis=0)[~np.isneginf(self.best_KC).any(axis=0)]
        if len(complete) < limit:
            return None
        return np.partition(complete, len(complete) - limit)[len(complete) - limit]

    def holds_best(self, limit: int) -> bool:
        """Whether the `limit` best documents are among these, given that all entries were scored.

        What no query vector found has a sum below that of the worst found (Fagin's threshold).
        """
        certain = self.certain(limit)
        return certain is not None and bool(certain > self.worst_K.sum() + _SLACK)

    def may_be_best(self, limit: int) -> Rows:
        """The documents that may be among the `limit` best, ties included."""
        certain = self.certain(limit)
        return self.rows if certain is None else self.rows[self.sums >= certain - _SLACK]


def gather_documents(scores_KE: Float32, entries_KE: Rows, width: int) -> Found:
    """Joins the entries that several query vectors found into documents.

    Args:
        scores_KE: (K, E), best first.
        entries_KE: (K, E), -1 where nothing was found.
        width: entries per document.

    >>> found = gather_documents(
    ...     np.float32([[0.9, 0.8, 0.5], [0.7, 0.4, 0.1]]), np.array([[0, 1, 6], [5, 2, 7]]), 4
    ... )
    >>> found.rows.tolist(), [round(float(score), 1) for score in found.sums]
    ([0, 1], [1.3, 1.2])
    """
    documents_KE = np.where(entries_KE < 0, -1, entries_KE // width)
    rows = np.unique(documents_KE)
    rows = rows[rows >= 0]
    best_KC = np.full((len(scores_KE), len(rows)), -np.inf, np.float32)
    # nothing found at all: the lowest cosine there is
    worst_K = np.full(len(scores_KE), -1.0, np.float32)
    for k, (documents, scores) in enumerate(zip(documents_KE, scores_KE)):
        found = documents >= 0
        if found.any():
            # scores fall, so the first entry of a document is its best
            own, first = np.unique(documents[found], return_index=True)
            best_KC[k, np.searchsorted(rows, own)] = scores[found][first]
            worst_K[k] = scores[found].min()
    return Found(rows, best_KC, worst_K)
