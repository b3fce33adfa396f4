"""PyLate's HNSW index (`pylate.indexes.Voyager`) over all vectors, then its own re-ranking.

Each query vector finds so many vectors; the documents that hold them are scored from float16
vectors in memory by `pylate.rank`'s MaxSim. Width = vectors found by each query vector. PyLate's
PLAID index is fast-plaid: see there. Needs `pip install pylate voyager==2.1.0`: PyLate 1.6 passes
lists of vectors, which voyager 2.2 does not take.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from arms.searching import TOP_K, SearchArm
from pylate.indexes import Voyager
from pylate.rank import rerank
from shapes.search_task import Query

from rematch_ray.index.shards import EmbeddingShards


class PylateArm(SearchArm):
    """HNSW over vectors, MaxSim over documents."""

    name = "PyLate, HNSW then all vectors"
    widths = (10, 50, 200, 1000)

    def build(self, documents: EmbeddingShards, folder: Path) -> None:
        """Adds all vectors of all documents."""
        self._index = Voyager(
            index_folder=str(folder),
            index_name="pylate",
            override=True,
            embedding_size=documents.dim,
            ef_search=max(self.widths),
        )
        self._vectors: dict[str, np.ndarray] = {}
        ids: list[str] = []
        vectors: list[np.ndarray] = []
        for batch in documents.batches():
            ids += batch.ids
            vectors += list(batch.vectors)
        self._vectors = dict(zip(ids, vectors, strict=True))
        self.held_bytes = sum(one.nbytes for one in vectors)
        self._index.add_documents(ids, [one.astype(np.float32) for one in vectors])

    def search(self, query: Query, width: int) -> list[str]:
        """Finds vectors, gathers their documents, scores these."""
        found = self._index(query.vectors.astype(np.float32), k=width)["documents_ids"][0]
        ids = sorted({name for names in found for name in names})
        vectors = [torch.from_numpy(self._vectors[name]).float() for name in ids]
        asked = [torch.from_numpy(query.vectors[0]).float()]
        [ranked] = rerank(
            documents_ids=[ids], queries_embeddings=asked, documents_embeddings=[vectors]
        )
        return [each["id"] for each in ranked[:TOP_K]]
