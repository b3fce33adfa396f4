"""LanceDB's embedded engine on multi-vectors: IVF-PQ over all vectors, candidates re-ranked.

Width = documents scored from the stored vectors; more than `LISTS` lists found nothing more. Needs
the cosine metric for multi-vectors, which on unit vectors is MaxSim.
"""

from __future__ import annotations

from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
from arms.searching import TOP_K, SearchArm
from shapes.search_task import Query

from rematch_ray.index.shards import EmbeddingShards

LISTS = 32


class LanceArm(SearchArm):
    """A table of ids and lists of vectors."""

    name = "LanceDB, IVF-PQ on all vectors"
    widths = (100, 300, 1000, 4000)

    def build(self, documents: EmbeddingShards, folder: Path) -> None:
        """Streams the documents in, then trains and builds the index."""
        element = pa.list_(pa.float16(), documents.dim)
        schema = pa.schema([("id", pa.string()), ("vectors", pa.list_(element))])

        def batches() -> pa.RecordBatchReader:
            for batch in documents.batches():
                count, num_vectors, dim = batch.vectors.shape
                inner = pa.FixedSizeListArray.from_arrays(pa.array(batch.vectors.reshape(-1)), dim)
                starts = np.arange(0, count * num_vectors + 1, num_vectors, dtype=np.int32)
                column = pa.ListArray.from_arrays(pa.array(starts), inner)
                yield pa.record_batch([pa.array(batch.ids), column], schema=schema)

        reader = pa.RecordBatchReader.from_batches(schema, batches())
        self._table = lancedb.connect(str(folder)).create_table("documents", reader)
        vectors = documents.num_rows * documents.num_vectors
        self._table.create_index(
            metric="cosine",
            vector_column_name="vectors",
            index_type="IVF_PQ",
            num_partitions=max(1, int(np.sqrt(vectors))),
            num_sub_vectors=max(1, documents.dim // 4),
        )

    def search(self, query: Query, width: int) -> list[str]:
        """One query of several vectors."""
        asked = self._table.search(query.vectors[0], vector_column_name="vectors")
        asked = asked.nprobes(LISTS).refine_factor(width // TOP_K).limit(TOP_K)
        found = asked.select(["id", "_distance"]).to_arrow()
        return list(found["id"].to_pylist())
