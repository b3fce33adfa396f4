"""Qdrant's engine inside this process (`qdrant-edge-py`): fused vectors by HNSW, then MaxSim.

All vectors of a document are one multi-vector in float16 without a graph of its own, which Qdrant
advises for rescoring; candidates come from the fused vector. Width = candidates.
"""

from __future__ import annotations

from pathlib import Path

import qdrant_edge as qdrant
from arms.searching import TOP_K, SearchArm
from shapes.search_task import Query

from rematch_ray.index.shards import EmbeddingShards

BATCH = 500


class QdrantArm(SearchArm):
    """Prefetch on the fused vector, MaxSim over what it brings."""

    name = "Qdrant, fused then all vectors"

    def build(self, documents: EmbeddingShards, folder: Path) -> None:
        """Loads all points, then lets the optimiser build its graph."""
        no_graph = qdrant.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000)
        maxsim = qdrant.MultiVectorConfig(qdrant.MultiVectorComparator.MaxSim)
        vectors = {
            "all": qdrant.EdgeVectorParams(
                documents.dim,
                qdrant.Distance.Dot,
                multivector_config=maxsim,
                hnsw_config=no_graph,
                datatype=qdrant.VectorStorageDatatype.Float16,
            ),
            "fused": qdrant.EdgeVectorParams(documents.fused_dim or 1, qdrant.Distance.Dot),
        }
        # one segment, as our index is one
        optimizers = qdrant.EdgeOptimizersConfig(default_segment_number=1, indexing_threshold=1000)
        config = qdrant.EdgeConfig(
            vectors=vectors, optimizers=optimizers, max_search_threads=1, wal_enabled=False
        )
        self._shard = qdrant.EdgeShard.create(str(folder), config)
        self._ids: list[str] = []
        for batch in documents.batches(BATCH):
            assert batch.fused is not None
            points = [
                qdrant.Point(
                    len(self._ids) + row,
                    {"all": batch.vectors[row].tolist(), "fused": batch.fused[row].tolist()},
                )
                for row in range(len(batch.ids))
            ]
            self._shard.update(qdrant.UpdateOperation.upsert_points(points))
            self._ids += batch.ids
        self._shard.optimize()

    def search(self, query: Query, width: int) -> list[str]:
        """One request with a prefetch."""
        fused = qdrant.Query.Nearest(query.fused[0].tolist(), "fused")
        every = qdrant.Query.Nearest(query.vectors[0].tolist(), "all")
        prefetch = qdrant.Prefetch(width, query=fused)
        found = self._shard.query(qdrant.QueryRequest(TOP_K, query=every, prefetches=[prefetch]))
        return [self._ids[point.id] for point in found]
