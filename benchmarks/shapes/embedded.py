"""Writes embedding directories shard by shard in a plain process; finished shards are kept.

Knows arrays and the form of the files, not where vectors come from.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Rows:
    """n rows of one side: ids, vectors (n, R, D), fused (n, F) or None, sources, payloads."""

    ids: Sequence[str]
    vectors: np.ndarray
    fused: np.ndarray | None
    sources: Sequence[str]
    payloads: Sequence[Mapping[str, Any]]


def write_directory(
    out: Path,
    num_rows: int,
    make: Callable[[int, int], Rows],
    *,
    identity: Mapping[str, Any],
    side: str,
    rows_per_shard: int = 2000,
    model_path: str | None = None,
) -> Path:
    """Writes an embedding directory, or what is missing of it.

    Args:
        out: the directory; one that is finished is left as it is.
        num_rows: rows of all shards.
        make: gives rows [start, stop); called for one shard at a time, in order.
        identity: of the model that makes the vectors.
        side: `document` or `query`.
        rows_per_shard: rows made and held at once.
        model_path: where the model lies.

    Returns:
        `out`.
    """
    if (out / MANIFEST).exists():
        return out
    out.mkdir(parents=True, exist_ok=True)
    started, made = time.monotonic(), 0
    files = []
    for number, start in enumerate(range(0, num_rows, rows_per_shard)):
        stop = min(start + rows_per_shard, num_rows)
        file = out / f"part-{number:05d}.parquet"
        if not file.exists():
            _write_shard(file, make(start, stop))
            made += stop - start
            rate = made / (time.monotonic() - started)
            print(f"{out.name}: {stop} of {num_rows}, {rate:.0f} rows/s", file=sys.stderr)
        files.append(file)
    shards = [_describe(file) for file in files]
    known = {
        key.decode(): value.decode() for key, value in pq.read_schema(files[0]).metadata.items()
    }
    manifest = {
        "format_version": 1,
        "identity": dict(identity),
        "model_path": model_path,
        "side": side,
        "instruction": "",
        **{key: int(known[key]) if key in known else None for key in "RDF"},
        "dtype": known["dtype"],
        "rows_in": num_rows,
        "embedded": sum(shard["rows"] for shard in shards),
        "quarantined": 0,
        "shards": shards,
    }
    _publish(out / MANIFEST, lambda path: path.write_text(json.dumps(manifest, indent=1)))
    return out


def _write_shard(file: Path, rows: Rows) -> None:
    num_rows, num_vectors, dim = rows.vectors.shape
    columns = {
        "id": pa.array(rows.ids, pa.string()),
        "vectors": _halves(rows.vectors.reshape(num_rows, num_vectors * dim)),
        "source": pa.array(rows.sources, pa.string()),
        "payload": pa.array(list(rows.payloads)),
    }
    known = {"R": str(num_vectors), "D": str(dim), "dtype": "float16"}
    if rows.fused is not None:
        columns["fused"] = _halves(rows.fused)
        known["F"] = str(rows.fused.shape[1])
    table = pa.table(columns).replace_schema_metadata(known)
    _publish(file, lambda path: pq.write_table(table, path, compression="zstd"))


def _halves(rows: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(rows, dtype=np.float16).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])


def _describe(file: Path) -> dict[str, Any]:
    data = file.read_bytes()
    return {
        "file": file.name,
        "rows": pq.read_metadata(file).num_rows,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _publish(path: Path, write: Callable[[Path], Any]) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    write(unfinished)
    os.replace(unfinished, path)
