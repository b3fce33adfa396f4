"""Query vectors read from embedding shards by a range of ids, without the rest.

Knows nothing of what the ids mean. Middle floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


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
    metadata = pq.read_schema(shards[0]).metadata
    shape = (len(ids), int(metadata[b"R"]), int(metadata[b"D"]))
    vectors = np.concatenate([_matrix(table, "vectors") for table in tables]).reshape(shape)
    if "fused" not in tables[0].column_names:
        return ids, QueryRows(vectors, None)
    return ids, QueryRows(vectors, np.concatenate([_matrix(table, "fused") for table in tables]))


def id_ranges(folder: Path) -> list[tuple[Path, str, str]]:
    """Each shard of an embedding directory with its least and greatest id."""
    ranges = []
    for path in sorted(folder.glob("part-*.parquet")):
        ids = pq.read_table(path, columns=["id"])["id"].to_pylist()
        ranges.append((path, min(ids), max(ids)))
    return ranges


def _matrix(table: pa.Table, column: str) -> np.ndarray:
    width = table.schema.field(column).type.list_size
    flat = table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(table.num_rows, width)
