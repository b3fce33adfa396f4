"""Seeded random vectors, and embedding directories written as the embedding job writes them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rematch_ray.index import planner
from rematch_ray.index.quantisation import quantise
from rematch_ray.index.search import SearchIndex

LADDER = ["1x1", "2x4", "4x8"]
GROUPS = ["animals", "food", "travel"]


def narrow_small_indexes(
    monkeypatch: pytest.MonkeyPatch, candidates: int, *, floor: int = 10, few: int = 0
) -> None:
    """Plans of an index of hundreds of documents narrow on the way, as those of large ones do."""
    monkeypatch.setattr(planner, "EXHAUSTIVE_COST", 1)
    monkeypatch.setattr(planner, "AUTO_CANDIDATES", candidates)
    monkeypatch.setattr(planner, "_NARROW_FLOOR", floor)
    monkeypatch.setattr(planner, "_FEW_DOCUMENTS", few)


@dataclass(frozen=True)
class Vectors:
    """What a search reads of its queries."""

    vectors: np.ndarray
    fused: np.ndarray | None

    def __getitem__(self, rows: slice) -> "Vectors":
        return Vectors(self.vectors[rows], None if self.fused is None else self.fused[rows])


def unit(shape: Sequence[int], seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def queries(count: int, *, num_vectors: int = 4, dim: int = 16, fused_dim: int = 24) -> Vectors:
    return Vectors(unit((count, num_vectors, dim), 101), unit((count, fused_dim), 102))


def write_embeddings(
    path: Path,
    vectors: np.ndarray,
    fused: np.ndarray | None,
    *,
    ids: Sequence[str] | None = None,
    payloads: Sequence[Mapping[str, Any]] | None = None,
    side: str = "document",
    ladder: Sequence[str] = LADDER,
    num_shards: int = 2,
    dtype: str = "float16",
) -> Path:
    """Writes an embedding directory as the embedding job does; metadata names R, D, F and dtype."""
    path.mkdir(parents=True)
    rows, num_vectors, dim = vectors.shape
    ids = ids or [f"doc-{row:04d}" for row in range(rows)]
    payloads = payloads or [
        {
            "name": f"name {row}",
            "group": GROUPS[row % 3],
            "number": row % 5,
            "tags": [f"t{row % 2}", "all"],
            "inner": {"half": row % 2 == 0},
        }
        for row in range(rows)
    ]
    shards = []
    for number, part in enumerate(np.array_split(np.arange(rows), num_shards)):
        columns = {
            "id": pa.array([ids[row] for row in part], pa.string()),
            "vectors": halves(vectors[part].reshape(len(part), num_vectors * dim)),
            "source": pa.array([f"source-{row % 2}" for row in part], pa.string()),
            "payload": pa.array([payloads[row] for row in part]),
        }
        if dtype == "int8":
            codes, scales = quantise(vectors[part])
            columns["vectors"] = lists(codes.reshape(len(part), num_vectors * dim))
            columns["scales"] = lists(scales)
        if fused is not None:
            columns["fused"] = halves(fused[part])
        file = path / f"part-{number:05d}.parquet"
        known = {"R": num_vectors, "D": dim, "F": fused.shape[1] if fused is not None else None}
        metadata = {key: str(value) for key, value in known.items() if value is not None}
        table = pa.table(columns).replace_schema_metadata({**metadata, "dtype": dtype})
        pq.write_table(table, file)
        data = file.read_bytes()
        shards.append(
            {
                "file": file.name,
                "rows": len(part),
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        )
    fused_dim = None if fused is None else fused.shape[1]
    identity = {"digest": "d1" * 32, "name": "stub", "ladder": list(ladder)}
    manifest = {
        "format_version": 1,
        "identity": identity,
        "side": side,
        "instruction": "find it",
        "R": num_vectors,
        "D": dim,
        "F": fused_dim,
        "dtype": dtype,
        "rows_in": rows,
        "embedded": rows,
        "quarantined": 0,
        "shards": shards,
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def halves(rows: np.ndarray) -> pa.Array:
    return lists(rows.astype(np.float16))


def lists(rows: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])


def kinds(index: SearchIndex) -> list[dict[str, str]]:
    """Kind of each coarse list, segment by segment."""
    segments = index._generation.segments
    return [{key: entry["kind"] for key, entry in s.manifest.coarse.items()} for s in segments]


def crowded(path: Path, *, files: int = 15, pages: int = 20, **options: Any) -> Path:
    """Embeddings of files whose pages lie together: few files fill the best of any query."""
    of = np.repeat(np.arange(files), pages)

    def near(shape: Sequence[int], seed: int) -> np.ndarray:
        found = unit((files, *shape), seed)[of] + 0.05 * unit((len(of), *shape), seed + 1)
        return found / np.linalg.norm(found, axis=-1, keepdims=True)

    payloads = [{"file": f"file-{n}", "text": f"page of file-{n}"} for n in of]
    return write_embeddings(path, near((8, 16), 11), near((24,), 13), payloads=payloads, **options)
