"""FAISS's exhaustive scans of one vector per document, as float32 and in 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

_FAISS: Any = faiss  # its stubs describe the C++ constructors

Search = Callable[[], NDArray[np.int64]]


def faiss_scans(
    query: NDArray[np.float32], vectors: NDArray[np.float32], limit: int, threads: int
) -> dict[str, Search]:
    """Functions that find the rows of largest inner product, best first."""
    _FAISS.omp_set_num_threads(threads)
    dim = vectors.shape[1]
    flat = _FAISS.IndexFlatIP(dim)
    quantised = _FAISS.IndexScalarQuantizer(
        dim, _FAISS.ScalarQuantizer.QT_8bit, _FAISS.METRIC_INNER_PRODUCT
    )
    quantised.train(vectors[:10_000])
    searches: dict[str, Search] = {}
    for name, index in (("FAISS Flat", flat), ("FAISS SQ8", quantised)):
        index.add(vectors)
        searches[name] = lambda index=index: index.search(query[None], limit)[1][0]
    return searches
