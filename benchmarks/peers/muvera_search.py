"""MUVERA (arXiv 2405.19504): fixed dimensional encodings in FAISS, then MaxSim over candidates.

Encodings by `muvera-python`, projected to `FINAL_DIM` numbers and kept as 8-bit codes; candidates
are scored from float16 vectors in memory with torch. Width = candidates.
"""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import torch
from arms.searching import TOP_K, SearchArm
from muvera import Muvera
from shapes.search_task import Query

from rematch_ray.index.shards import EmbeddingShards

REPETITIONS, PROJECTIONS, FINAL_DIM = 20, 5, 2560


class MuveraArm(SearchArm):
    """A flat scan of encodings, exact MaxSim behind it."""

    name = "MUVERA then all vectors"

    def build(self, documents: EmbeddingShards, folder: Path) -> None:
        """Encodes every document; vectors stay in memory as they come."""
        self._encoder = Muvera(
            num_repetitions=REPETITIONS,
            num_simhash_projections=PROJECTIONS,
            dimension=documents.dim,
            final_projection_dimension=FINAL_DIM,
            seed=0,
        )
        codes = faiss.ScalarQuantizer.QT_8bit
        self._index = faiss.IndexScalarQuantizer(FINAL_DIM, codes, faiss.METRIC_INNER_PRODUCT)
        shape = (documents.num_rows, documents.num_vectors, documents.dim)
        self._vectors = np.empty(shape, np.float16)
        self._ids: list[str] = []
        for batch in documents.batches():
            encoded = self._encoder.encode_documents(list(batch.vectors.astype(np.float32)))
            encoded = np.ascontiguousarray(encoded, np.float32)
            if not self._index.is_trained:
                self._index.train(encoded)
            self._index.add(encoded)
            self._vectors[len(self._ids) : len(self._ids) + len(batch.ids)] = batch.vectors
            self._ids += batch.ids
        self.held_bytes = self._vectors.nbytes + FINAL_DIM * len(self._ids)

    def search(self, query: Query, width: int) -> list[str]:
        """Scan, gather, score."""
        encoded = self._encoder.encode_queries(list(query.vectors.astype(np.float32)))
        encoded = np.ascontiguousarray(encoded, np.float32).reshape(1, -1)
        rows = self._index.search(encoded, min(width, len(self._ids)))[1][0]
        documents = torch.from_numpy(self._vectors[rows]).float()
        cells = documents @ torch.from_numpy(query.vectors[0]).float().T
        best = cells.amax(dim=1).sum(dim=1).topk(min(TOP_K, len(rows))).indices
        return [self._ids[row] for row in rows[best.numpy()]]
