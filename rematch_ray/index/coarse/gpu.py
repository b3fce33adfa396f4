"""A coarse list on a GPU, for the searches that FAISS does there.

Filters, deletions and long candidate lists stay on the CPU's copy: FAISS has no selectors on a GPU
and returns at most 2,048 entries. FAISS allows no two searches of one GPU index at a time, so they
take turns. Not part of any test: it needs faiss-gpu and a device. Middle floor.
"""

from __future__ import annotations

from threading import Lock
from typing import Any

import faiss

# FAISS's own stubs describe its C++ constructors, not the Python ones
_FAISS: Any = faiss
MOST_FOUND = 2048


def has_gpu() -> bool:
    """Whether this FAISS was built for GPUs and sees one."""
    return hasattr(_FAISS, "get_num_gpus") and _FAISS.get_num_gpus() > 0


class GpuList:
    """A copy of a list on the first GPU.

    Args:
        index: a FAISS index of kind `flat`, or of one with inverted lists.
    """

    def __init__(self, index: Any) -> None:
        self._resources = _FAISS.StandardGpuResources()
        self._index = _FAISS.index_cpu_to_gpu(self._resources, 0, index)
        self._turn = Lock()

    def search(self, query_KD: Any, asked: int, *, params: Any) -> tuple[Any, Any]:
        """As FAISS's own `search`, one caller at a time."""
        with self._turn:
            return self._index.search(query_KD, asked, params=params)
