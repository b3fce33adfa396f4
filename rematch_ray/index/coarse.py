"""Coarse lists in FAISS: which documents of a segment deserve a closer look.

One list per key (`fused`, `first`), over the same float16 values that the planes hold. Small
segments get an exact scan, large ones inverted lists. FAISS scores each document on its own, so a
document's coarse score depends neither on the batch of queries nor on its neighbours; its cut is
widened while equal scores straddle it, so that the caller can break ties. Middle floor.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, get_args

import faiss
import numpy as np
from numpy.typing import NDArray

from rematch_ray.errors import UserError

CoarseChoice = Literal["fused", "first", "both"]
COARSE_CHOICES: tuple[str, ...] = get_args(CoarseChoice)
CoarseKind = Literal["auto", "flat", "ivf"]

# FAISS's own stubs describe its C++ constructors, not the Python ones
_FAISS: Any = faiss
# above this an exact scan takes longer than scoring the candidates
IVF_FROM_DOCUMENTS = 200_000
DEFAULT_NPROBE = 64
_TRAINING_ROWS_PER_LIST = 64
_ADD_ROWS = 16_384
_SEED = 1234


def coarse_file(key: str) -> str:
    """File name of the coarse list of a key."""
    return f"coarse_{key}.faiss"


def build_coarse(path: Path, vectors: NDArray[np.float16], *, kind: str = "auto") -> dict[str, Any]:
    """Writes the coarse list of one segment.

    Args:
        path: file to write.
        vectors: (N, dim) float16, may be a memory map; read in blocks.
        kind: `flat` (exact), `ivf`, or `auto`: by size.

    Returns:
        What the segment's manifest says of it: file, kind, and `nlist`, `nprobe` for `ivf`.

    Raises:
        UserError: an unknown kind, or too few documents for inverted lists.
    """
    num_documents, dim = vectors.shape
    if kind not in get_args(CoarseKind):
        raise UserError(f"coarse kind '{kind}' does not exist; allowed: auto, flat, ivf")
    if kind == "auto":
        kind = "ivf" if num_documents >= IVF_FROM_DOCUMENTS else "flat"
    description: dict[str, Any] = {"file": path.name, "kind": kind}
    if kind == "ivf":
        index, num_lists = _train_ivf(vectors)
        description |= {"nlist": num_lists, "nprobe": min(DEFAULT_NPROBE, num_lists)}
    else:
        half = faiss.ScalarQuantizer.QT_fp16
        index = faiss.IndexScalarQuantizer(dim, half, faiss.METRIC_INNER_PRODUCT)
        index.train(np.zeros((1, dim), np.float32))
    for start in range(0, num_documents, _ADD_ROWS):
        index.add(np.asarray(vectors[start : start + _ADD_ROWS], dtype=np.float32))
    faiss.write_index(index, str(path))
    return description


def _train_ivf(vectors: NDArray[np.float16]) -> tuple[Any, int]:
    num_documents, dim = vectors.shape
    num_lists = int(4 * math.sqrt(num_documents))
    if num_documents < 4 * num_lists:
        raise UserError(
            f"{num_documents} documents are too few for inverted lists: use coarse kind 'flat'"
        )
    half = faiss.ScalarQuantizer.QT_fp16
    quantiser = faiss.IndexFlatIP(dim)
    index = faiss.IndexIVFScalarQuantizer(
        quantiser, dim, num_lists, half, faiss.METRIC_INNER_PRODUCT, False
    )
    index.cp.seed = _SEED
    step = max(1, num_documents // (_TRAINING_ROWS_PER_LIST * num_lists))
    index.train(np.asarray(vectors[::step], dtype=np.float32))
    return index, num_lists


class CoarseList:
    """One coarse list, mapped from disk.

    Args:
        directory: the segment's directory.
        description: what `build_coarse` returned.
    """

    def __init__(self, directory: Path, description: dict[str, Any]) -> None:
        path = directory / description["file"]
        self.kind: str = description["kind"]
        self._nprobe: int = description.get("nprobe", 0)
        try:
            self._index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as broken:
            reason = str(broken).strip().splitlines()[-1]
            raise UserError(f"{path} cannot be read ({reason}): the index is damaged") from broken

    @property
    def is_exact(self) -> bool:
        """Whether every document is scored."""
        return self.kind == "flat"

    def search(
        self, query: NDArray[np.float32], limit: int, *, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Finds the documents of largest inner product with one query.

        Args:
            query: (dim,) float32.
            limit: how many are wanted, at least 1.
            allowed: (N,) True where a document may be returned; None allows all.

        Returns:
            Rows and scores, best first: `limit` of them, and all that equal the last.
        """
        selector = None if allowed is None else _selector(allowed)
        most = self._index.ntotal if allowed is None else int(allowed.sum())
        asked = min(limit + 1, most)
        while asked:
            scores, rows = self._index.search(
                query[None].astype(np.float32), asked, params=self._parameters(selector)
            )
            found = rows[0] >= 0
            scores, rows = scores[0][found], rows[0][found]
            # fewer than asked: inverted lists ran out; a strict step at the cut: no tie to break
            if asked == most or len(rows) < asked or scores[-1] < scores[limit - 1]:
                return rows, scores
            asked = min(2 * asked, most)
        return np.empty(0, np.int64), np.empty(0, np.float32)

    def _parameters(self, selector: Any) -> Any:
        # per call, never as state of the index: searches may run side by side
        if self.kind == "ivf":
            return _FAISS.SearchParametersIVF(nprobe=self._nprobe, sel=selector)
        return _FAISS.SearchParameters(sel=selector)


def _selector(allowed: NDArray[np.bool_]) -> Any:
    return _FAISS.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
