"""Query vectors read from embedding shards by a range of ids, without the rest.

Knows nothing of what the ids mean. Middle floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from rematch_ray.index.shard_columns import DTYPES, read_fused, read_vectors
from rematch_ray.index.shards import EmbeddingShards


@dataclass(frozen=True)
class QueryRows:
    """Vectors of n queries: (n, R, D) and (n, F) or None."""

    vectors: np.ndarray
    fused: np.ndarray | None

    def __getitem__(self, rows: slice) -> QueryRows:
        return QueryRows(self.vectors[rows], None if self.fused is None else self.fused[rows])


def read_queries(shards: Sequence[Path], low: str, high: str) -> tuple[list[str], QueryRows]:
    """Reads the query vectors of a range of ids.

    Args:
        shards: files of one embedding directory that may hold them; at least one.
        low: least id.
        high: id that all of the range are below.

    Returns:
        n ids in the order of the shards, and their vectors.
    """
    own = [("id", ">=", low), ("id", "<", high)]
    tables = [pq.read_table(shard, filters=own) for shard in shards]
    ids = [name for table in tables for name in table["id"].to_pylist()]
    known = pq.read_schema(shards[0]).metadata
    shape = (int(known[b"R"]), int(known[b"D"]))
    dtype = known.get(b"dtype", DTYPES[0].encode()).decode()
    pairs = list(zip(tables, shards, strict=True))
    vectors = np.concatenate([read_vectors(table, shape, dtype, file) for table, file in pairs])
    if b"F" not in known:
        return ids, QueryRows(vectors, None)
    fused_dim = int(known[b"F"])
    fused = np.concatenate([read_fused(table, fused_dim, file) for table, file in pairs])
    return ids, QueryRows(vectors, fused)


def id_ranges(folder: Path) -> list[tuple[Path, str, str]]:
    """Each shard of an embedding directory with its least and greatest id."""
    ranges = []
    for path in EmbeddingShards.open(folder).files:
        ids = pq.read_table(path, columns=["id"])["id"].to_pylist()
        ranges.append((path, min(ids), max(ids)))
    return ranges
