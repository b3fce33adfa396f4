"""The vectors that a coarse list is made of: one or more per document, read in blocks.

Knows nothing of FAISS or of keys. Middle floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


class Entries:
    """Vectors of N documents, W each, in document order: entry e belongs to document e // W.

    Args:
        parts: arrays or memory maps of shape (N, n_k, dim) that lie side by side; W = sum of n_k.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        self._parts = list(parts)
        self.rows: int = self._parts[0].shape[0]
        self.dim: int = self._parts[0].shape[2]
        self.width = sum(int(part.shape[1]) for part in self._parts)

    @classmethod
    def of(cls, vectors: Entries | NDArray[Any]) -> Entries:
        """Entries of an array (N, dim) or (N, W, dim); entries stay what they are."""
        if isinstance(vectors, Entries):
            return vectors
        return cls([vectors[:, None] if vectors.ndim == 2 else vectors])

    def __len__(self) -> int:
        return self.rows * self.width

    def of_documents(self, rows: slice | NDArray[np.int64]) -> Float32:
        """The entries of some documents, (documents * W, dim) float32."""
        block = np.concatenate([part[rows] for part in self._parts], axis=1)
        return np.ascontiguousarray(block.reshape(-1, self.dim), dtype=np.float32)

    def sample(self, count: int, seed: int) -> Float32:
        """About `count` entries of documents drawn without replacement; all where there are fewer.

        A document gives all its entries, so that each of its vectors weighs the same.
        """
        wanted = -(-count // self.width)
        if wanted >= self.rows:
            return self.of_documents(slice(None))
        drawn = np.random.default_rng(seed).choice(self.rows, wanted, replace=False)
        # in file order: the planes are memory maps
        return self.of_documents(np.sort(drawn))
