"""An embedding directory of seeded random vectors, stored as the embedding job stores them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rematch_ray.workloads.shard_files import GROUP_BYTES, describe, dictionary_columns

LADDER = ["1x1", "2x4", "4x8", "8x16", "16x64"]
NUM_VECTORS, DIM, FUSED_DIM = 64, 128, 512
FILE_ROWS = 4096


def write_stored_vectors(folder: Path, rows: int, *, seed: int = 0) -> Path:
    """Writes so many documents of 64 vectors of 128 entries and a fused one of 512.

    Args:
        folder: to make.
        rows: documents.
        seed: of the vectors.
    """
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    shards = []
    for start in range(0, rows, FILE_ROWS):
        count = min(FILE_ROWS, rows - start)
        file = folder / f"part-{start // FILE_ROWS:05d}.parquet"
        _write_file(file, start, count, draw)
        shards.append(describe(file, count))
    manifest = {
        "format_version": 1,
        "identity": {"digest": "random", "name": "random", "ladder": LADDER},
        "side": "document",
        "instruction": None,
        "R": NUM_VECTORS,
        "D": DIM,
        "F": FUSED_DIM,
        "dtype": "float16",
        "rows_in": rows,
        "embedded": rows,
        "quarantined": 0,
        "shards": shards,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _write_file(file: Path, start: int, count: int, draw: np.random.Generator) -> None:
    names = range(start, start + count)
    table = pa.table(
        {
            "id": [f"document-{name}" for name in names],
            "vectors": _lists(draw, (count, NUM_VECTORS, DIM)),
            "fused": _lists(draw, (count, 1, FUSED_DIM)),
            "source": ["random"] * count,
            "payload": [{"name": f"name {name}", "group": name % 10} for name in names],
        }
    )
    options = {"compression": "zstd", "use_dictionary": dictionary_columns(table.schema)}
    with pq.ParquetWriter(file, table.schema, **options) as writer:
        writer.write_table(table, row_group_size=max(1, GROUP_BYTES * count // table.nbytes))


def _lists(draw: np.random.Generator, shape: tuple[int, int, int]) -> pa.Array:
    vectors = draw.standard_normal(shape, dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    flat = pa.array(vectors.astype(np.float16).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, shape[1] * shape[2])
