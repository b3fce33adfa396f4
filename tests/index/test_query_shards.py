"""Query vectors read by a range of ids, whatever their shards store."""

from pathlib import Path

import numpy as np
import pytest

from rematch_ray.index.query_shards import id_ranges, read_queries
from rematch_ray.index.shards import EmbeddingShards
from tests.index.made import unit, write_embeddings


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_range_of_ids_gives_its_rows_of_every_shard(tmp_path: Path, dtype: str) -> None:
    path = write_embeddings(
        tmp_path / "e", unit((30, 4, 16), 1), unit((30, 24), 2), side="query", dtype=dtype
    )
    # a leftover that the manifest does not name
    (path / "part-00007.parquet").write_bytes(b"cut off")
    ranges = id_ranges(path)
    assert [(file.name, low, high) for file, low, high in ranges] == [
        ("part-00000.parquet", "doc-0000", "doc-0014"),
        ("part-00001.parquet", "doc-0015", "doc-0029"),
    ]
    ids, rows = read_queries([file for file, _, _ in ranges], "doc-0010", "doc-0020")
    assert ids == [f"doc-{row:04d}" for row in range(10, 20)]
    whole = EmbeddingShards.open(path).read()
    np.testing.assert_array_equal(rows.vectors, whole.vectors[10:20])
    assert rows.fused is not None
    np.testing.assert_array_equal(rows.fused, whole.fused[10:20])
