"""Query vectors for an examination: an embedding directory, or a log of vectors without a manifest.

A log is Parquet with the columns of a query shard (`vectors`; `id`, `fused` and `scales` where
there are any): nothing says which model made it, so only its widths are checked. Middle floor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.index.search import SearchIndex
from rematch_ray.index.shard_columns import DTYPES, read_column, read_fused, read_vectors
from rematch_ray.index.shards import MANIFEST_FILE, EmbeddingShards


@dataclass(frozen=True)
class NamedQueries:
    """Queries with their ids.

    Args:
        ids: B ids.
        vectors: (B, R, D).
        fused: (B, F), or None.
        unchecked: why their model could not be compared with the index's; None where it was.
    """

    ids: list[str]
    vectors: NDArray[np.floating]
    fused: NDArray[np.floating] | None
    unchecked: str | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def sample(self, limit: int) -> NamedQueries:
        """At most so many, chosen by the hash of their ids, in their order."""
        if len(self) <= limit:
            return self
        rows = np.array(sample_rows(self.ids, limit))
        fused = None if self.fused is None else self.fused[rows]
        ids = [self.ids[row] for row in rows.tolist()]
        return NamedQueries(ids, self.vectors[rows], fused, self.unchecked)

    def digest(self) -> str:
        """SHA-256 of ids and vectors."""
        parts = ["\0".join(self.ids).encode(), _bytes_of(self.vectors)]
        parts += [] if self.fused is None else [_bytes_of(self.fused)]
        return _digest(b"\1".join(parts))


def sample_rows(ids: Sequence[str], limit: int) -> list[int]:
    """Places of at most so many ids, chosen by their hash, in their order.

    >>> names = ["a", "b", "c", "d"]
    >>> [names[row] for row in sample_rows(names, 2)] == ["c", "d"]
    True
    """
    order = sorted(range(len(ids)), key=lambda row: _digest(ids[row].encode()))
    return sorted(order[:limit])


def read_query_vectors(path: str | Path, index: SearchIndex) -> NamedQueries | None:
    """Reads query vectors.

    Args:
        path: an embedding directory of the query side, or Parquet of vectors: a file or a folder.
        index: that they are for.

    Returns:
        The queries; None where the path holds no vectors, hence rows that a model must embed.

    Raises:
        UserError: embeddings of documents or of another model, a damaged shard, or no rows.
    """
    path = Path(path)
    if (path / MANIFEST_FILE).is_file():
        return _read_shards(EmbeddingShards.open(path), index)
    files = _files_with_vectors(path)
    return _read_log(files) if files else None


def _read_shards(shards: EmbeddingShards, index: SearchIndex) -> NamedQueries:
    if shards.side != "query":
        raise UserError(
            f"{shards.path} holds embeddings of the {shards.side} side: the doctor asks queries; "
            "run 'rematch-ray embed --side query' on them"
        )
    index.check_model(shards.identity)
    batch = shards.read()
    return NamedQueries(batch.ids, batch.vectors, batch.fused)


def _files_with_vectors(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
    else:
        files = [path] if path.suffix == ".parquet" and path.is_file() else []
    return [file for file in files if "vectors" in _schema(file).names]


def _schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (OSError, pa.ArrowException) as broken:
        raise UserError(f"{file} cannot be read as Parquet: {broken}") from broken


def _read_log(files: Sequence[Path]) -> NamedQueries:
    parts = [_read_file(file) for file in files]
    fused = [part.fused for part in parts if part.fused is not None]
    if fused and len(fused) < len(parts):
        raise UserError(f"some of the {len(files)} files have a column 'fused', others have none")
    widths = {part.vectors.shape[1:] for part in parts} | {(0, 0)}
    if len(widths) > 2:
        raise UserError(f"the files hold vectors of several shapes: {sorted(widths)[1:]}")
    queries = NamedQueries(
        [name for part in parts for name in part.ids],
        np.concatenate([part.vectors for part in parts]),
        np.concatenate(fused) if fused else None,
        f"{files[0].parent} has no {MANIFEST_FILE}: taken to be of the index's model",
    )
    if not len(queries):
        raise UserError(f"{files[0].parent} holds no query vectors: give at least some")
    return queries


def _read_file(file: Path) -> NamedQueries:
    table = pq.read_table(file)
    known = table.schema.metadata or {}
    if not {b"R", b"D"} <= set(known):
        raise UserError(
            f"{file} does not say how many vectors a query has: its schema metadata must name R "
            "and D, as that of an embedding shard does"
        )
    shape = (int(known[b"R"]), int(known[b"D"]))
    dtype = known.get(b"dtype", DTYPES[0].encode()).decode()
    if dtype not in DTYPES:
        raise UserError(f"{file} stores vectors as {dtype!r}; allowed: {', '.join(DTYPES)}")
    vectors = read_vectors(table, shape, dtype, file)
    fused = None
    if "fused" in table.column_names:
        fused = read_fused(table, int(known.get(b"F", table["fused"].type.list_size)), file)
    if "id" in table.column_names:
        ids = [str(name) for name in read_column(table, "id", file).to_pylist()]
    else:
        ids = [_digest(_bytes_of(row))[:32] for row in vectors]
    return NamedQueries(ids, vectors, fused)


def _bytes_of(vectors: NDArray[np.floating]) -> bytes:
    return np.ascontiguousarray(vectors, np.float32).tobytes()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
