"""Coarse lists in FAISS: which documents of a segment deserve a closer look.

FAISS scores each entry on its own, so that on an exact list a document's coarse score depends
neither on the batch of queries nor on its neighbours; the cut of an exact list is widened while
equal scores straddle it, so that the caller can break ties. Knows nothing of keys, plans or
deletions. Middle floor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.index.coarse.documents import gather_documents
from rematch_ray.index.coarse.gpu import MOST_FOUND, GpuList, has_gpu
from rematch_ray.index.coarse.kinds import has_lists, read_list
from rematch_ray.index.planner import few_survive

# FAISS's own stubs describe its C++ constructors, not the Python ones
_FAISS: Any = faiss
_LEAST_EF_SEARCH = 128
# entries that each query vector finds at first, per document wanted, and documents scored at once
_ENTRIES_PER_DOCUMENT = {True: 4, False: 2}
_EXACT_DOCUMENTS = 8192
Rows = NDArray[np.int64]
Float32 = NDArray[np.float32]


class CoarseList:
    """One coarse list, mapped from disk.

    Args:
        directory: the segment's directory.
        description: what `build_coarse` returned.
        gpu: search on a GPU what FAISS can search there; nothing changes where there is none.

    Raises:
        UserError: the file cannot be read.
    """

    def __init__(self, directory: Path, description: dict[str, Any], *, gpu: bool = False) -> None:
        self.kind: str = description["kind"]
        self.width: int = description.get("width", 1)
        self._num_lists: int = description.get("nlist", 0)
        self._nprobe: int = description.get("nprobe", 0)
        self._index = read_list(directory / description["file"], mapped=True)
        self._gpu = GpuList(self._index) if gpu and self.kind != "hnsw" and has_gpu() else None

    @property
    def is_exact(self) -> bool:
        """Whether every document is scored, by the values that the planes hold."""
        return self.kind == "flat"

    def search(
        self,
        query: Float32,
        limit: int,
        *,
        allowed: NDArray[np.bool_] | None = None,
        nprobe: int | None = None,
    ) -> tuple[Rows, Float32]:
        """Finds the documents whose entries have the largest inner products with a query.

        With several query vectors, or several entries a document, a document's score is the mean
        over the query vectors of its best entry; on an exact list that is MaxSim over them.

        Args:
            query: (K, dim) or (dim,) float32.
            limit: how many are wanted, at least 1.
            allowed: (N,) True where a document may be returned; None allows all. Where few are
                allowed every one of them is looked at, whatever the kind.
            nprobe: inverted lists to look through, None the stored number; without effect on kinds
                that have none.

        Returns:
            Rows and scores: `limit` of them, and on an exact list all that equal the last; fewer
            where fewer are allowed or found. Best first.

        Raises:
            UserError: a query of another dim, or a limit or nprobe below 1.
        """
        query_KD = np.ascontiguousarray(np.atleast_2d(query), dtype=np.float32)
        self._check(query_KD, limit, nprobe)
        most = self._index.ntotal if allowed is None else int(allowed.sum()) * self.width
        if not most:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        view = _View(self, allowed, nprobe)
        if self.width == 1 and len(query_KD) == 1:
            return self._search_entries(view, query_KD, limit, most)
        return self._search_documents(view, query_KD, limit, most)

    def _search_entries(
        self, view: _View, query_KD: Float32, limit: int, most: int
    ) -> tuple[Rows, Float32]:
        asked = min(limit + 1 if self.is_exact else limit, most)
        while True:
            scores, rows = view.find(query_KD, asked)
            found = rows[0] >= 0
            scores, rows = scores[0][found], rows[0][found]
            # a strict step at the cut: no tie for the caller to break
            if not self.is_exact or asked == most or scores[-1] < scores[limit - 1]:
                return rows, scores
            asked = min(2 * asked, most)

    def _search_documents(
        self, view: _View, query_KD: Float32, limit: int, most: int
    ) -> tuple[Rows, Float32]:
        asked = min(_ENTRIES_PER_DOCUMENT[self.is_exact] * limit, most)
        while True:
            scores_KE, entries_KE = view.find(query_KD, asked)
            found = gather_documents(scores_KE, entries_KE, self.width)
            spent = asked == most or bool((entries_KE < 0).any(axis=1).all())
            if self.is_exact and (spent or found.holds_best(limit)):
                rows = found.may_be_best(limit)
                return _cut(rows, self._score_exactly(query_KD, rows), limit)
            if not self.is_exact and (spent or len(found.rows) >= limit):
                return _cut(found.rows, found.sums / np.float32(len(query_KD)), limit)
            asked = min(2 * asked, most)

    def _score_exactly(self, query_KD: Float32, rows: Rows) -> Float32:
        """MaxSim of the query vectors and the entries of some documents.

        In double precision, where products of float16 values and rounded queries are exact (see
        `exact`): the same whoever stands beside a document.
        """
        query = query_KD.astype(np.float64).T
        scores = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), _EXACT_DOCUMENTS):
            some = slice(start, start + _EXACT_DOCUMENTS)
            entries = rows[some, None] * self.width + np.arange(self.width)
            vectors = self._index.reconstruct_batch(entries.ravel()).astype(np.float64)
            cells = (vectors @ query).reshape(-1, self.width, len(query_KD))
            scores[some] = cells.max(axis=1).sum(axis=1) / len(query_KD)
        return scores

    def _check(self, query_KD: Float32, limit: int, nprobe: int | None) -> None:
        if query_KD.shape[1] != self._index.d:
            raise UserError(
                f"a query of dim {query_KD.shape[1]} does not fit a coarse list of dim "
                f"{self._index.d}: use the model that embedded the documents"
            )
        for name, value in (("limit", limit), ("nprobe", nprobe)):
            if value is not None and value < 1:
                raise UserError(f"{name} {value} is not possible: give a whole number from 1")


class _View:
    """One search's way into a list: what it may return and how far it looks.

    All of it is passed to each call and none is state of the index: searches run side by side.
    """

    def __init__(
        self, coarse: CoarseList, allowed: NDArray[np.bool_] | None, nprobe: int | None
    ) -> None:
        self._kind, self._index, self._gpu = coarse.kind, coarse._index, coarse._gpu
        self._selector = None
        num_documents = self._index.ntotal // coarse.width
        self._is_scan = False
        if allowed is not None:
            self._is_scan = few_survive(int(allowed.sum()), num_documents)
            bits = np.packbits(np.repeat(allowed, coarse.width), bitorder="little")
            # keeps a reference to the bits, and search parameters one to it
            self._selector = _FAISS.IDSelectorBitmap(bits)
        wanted = nprobe or coarse._nprobe
        self._nprobe = coarse._num_lists if self._is_scan else min(wanted, coarse._num_lists)

    def find(self, query_KD: Float32, asked: int) -> tuple[Float32, Rows]:
        """Scores and entries (K, asked), best first; entry -1 where nothing more was found."""
        if self._gpu is not None and self._selector is None and asked <= MOST_FOUND:
            return self._gpu.search(query_KD, asked, params=self._parameters(asked))
        if self._kind == "hnsw" and self._is_scan:
            # a walk over the graph meets few of those that may be returned
            storage = _FAISS.downcast_index(self._index.storage)
            return storage.search(
                query_KD, asked, params=_FAISS.SearchParameters(sel=self._selector)
            )
        return self._index.search(query_KD, asked, params=self._parameters(asked))

    def _parameters(self, asked: int) -> Any:
        if has_lists(self._kind):
            return _FAISS.SearchParametersIVF(nprobe=self._nprobe, sel=self._selector)
        if self._kind == "hnsw":
            width = max(asked, _LEAST_EF_SEARCH)
            return _FAISS.SearchParametersHNSW(efSearch=width, sel=self._selector)
        return _FAISS.SearchParameters(sel=self._selector)


def _cut(rows: Rows, scores: Float32, limit: int) -> tuple[Rows, Float32]:
    """The best `limit`, and what equals the last of them."""
    if not len(rows):
        return rows, scores
    limit = min(limit, len(rows))
    threshold = np.partition(scores, len(scores) - limit)[len(scores) - limit]
    kept = np.flatnonzero(scores >= threshold)
    order = kept[np.argsort(-scores[kept], kind="stable")]
    return rows[order], scores[order]
