"""Query vectors for an examination: an embedding directory, or a log of vectors without a manifest.

A log is Parquet with the columns of a query shard (`vectors`; `id`, `fused` and `scales` where
there are any), R and D in its schema's metadata. Where that names no model (`model`: its digest,
`model_name`), only widths are checked. Middle floor.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.index.manifest import sync_file
from rematch_ray.index.shard_columns import DTYPES, read_column, read_fused, read_vectors
from rematch_ray.index.shards import MANIFEST_FILE, EmbeddingShards

if TYPE_CHECKING:
    from rematch_ray.index.search import SearchIndex

# ends the name of a file that is being written: no reader takes it
UNFINISHED = ".unfinished"


@dataclass(frozen=True)
class NamedQueries:
    """Queries with their ids.

    Args:
        ids: B ids.
        vectors: (B, R, D).
        fused: (B, F), or None.
        unchecked: why the model of some could not be compared with the index's, or which were
            left out for it; None where all were compared and are here.
    """

    ids: list[str]
    vectors: NDArray[np.floating]
    fused: NDArray[np.floating] | None
    unchecked: str | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def distinct(self, *, by_id: bool = False) -> NamedQueries:
        """The first of those whose vectors are equal: a repeated query says nothing new.

        Args:
            by_id: only where the ids are equal too, as each has judgements of its own.
        """
        seen: dict[str, int] = {}
        for row, (name, vectors) in enumerate(zip(self.ids, self.vectors, strict=True)):
            seen.setdefault(_digest(_bytes_of(vectors)) + (name if by_id else ""), row)
        return self if len(seen) == len(self) else self._rows(np.array([*seen.values()]))

    def sample(self, limit: int) -> NamedQueries:
        """At most so many, chosen by the hash of their ids, in their order."""
        if len(self) <= limit:
            return self
        return self._rows(np.array(sample_rows(self.ids, limit)))

    def _rows(self, rows: NDArray[np.int64]) -> NamedQueries:
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
    tables = _tables_with_vectors(path)
    return _read_log(tables, index) if tables else None


def write_query_vectors(
    path: Path,
    vectors_BRD: NDArray[np.floating],
    fused_BF: NDArray[np.floating] | None,
    model: Mapping[str, Any],
) -> None:
    """Writes a file of a log of vectors, whole or not at all; a query's id is what its vectors are.

    Args:
        path: file to write, `.parquet`.
        vectors_BRD: of the queries, unit norm.
        fused_BF: of the same queries, or None.
        model: identity of the model that made them.
    """
    columns = {
        "id": pa.array([_id_of(row) for row in vectors_BRD], pa.string()),
        "vectors": _lists(vectors_BRD.reshape(len(vectors_BRD), -1)),
    }
    known = {"R": vectors_BRD.shape[1], "D": vectors_BRD.shape[2], "dtype": DTYPES[0]}
    if fused_BF is not None:
        columns["fused"] = _lists(fused_BF)
        known["F"] = fused_BF.shape[1]
    known |= {"side": "query", "model": model.get("digest"), "model_name": model.get("name")}
    metadata = {key: str(value) for key, value in known.items() if value is not None}
    unfinished = path.with_name(f".{path.name}{UNFINISHED}")
    try:
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), unfinished)
        sync_file(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _read_shards(shards: EmbeddingShards, index: SearchIndex) -> NamedQueries:
    if shards.side != "query":
        raise UserError(
            f"{shards.path} holds embeddings of the {shards.side} side: the doctor asks queries; "
            "run 'rematch-ray embed --side query' on them"
        )
    index.check_model(shards.identity)
    batch = shards.read()
    return NamedQueries(batch.ids, batch.vectors, batch.fused)


def _tables_with_vectors(path: Path) -> list[tuple[Path, pa.Table]]:
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
    else:
        files = [path] if path.suffix == ".parquet" and path.is_file() else []
    tables = []
    for file in files:
        try:
            if "vectors" in pq.read_schema(file).names:
                tables.append((file, pq.read_table(file)))
        except FileNotFoundError:
            continue  # the oldest files of a log go while a server writes the next
        except (OSError, pa.ArrowException) as broken:
            raise UserError(f"{file} cannot be read as Parquet: {broken}") from broken
    return tables


def _read_log(tables: Sequence[tuple[Path, pa.Table]], index: SearchIndex) -> NamedQueries:
    fitting, notes = _of_model(tables, index)
    folder = tables[0][0].parent
    parts = [_read_table(file, table) for file, table in fitting]
    fused = [part.fused for part in parts if part.fused is not None]
    if fused and len(fused) < len(parts):
        raise UserError(f"some of the {len(parts)} files have a column 'fused', others have none")
    widths = {part.vectors.shape[1:] for part in parts} | {(0, 0)}
    if len(widths) > 2:
        raise UserError(f"the files hold vectors of several shapes: {sorted(widths)[1:]}")
    queries = NamedQueries(
        [name for part in parts for name in part.ids],
        np.concatenate([part.vectors for part in parts]),
        np.concatenate(fused) if fused else None,
        "; ".join(f"{folder}: {note}" for note in notes) or None,
    )
    if not len(queries):
        raise UserError(f"{folder} holds no query vectors: give at least some")
    return queries


def _of_model(
    tables: Sequence[tuple[Path, pa.Table]], index: SearchIndex
) -> tuple[list[tuple[Path, pa.Table]], list[str]]:
    """Files that the index's own model made, as far as they say so, and what to know of it.

    Raises:
        UserError: all are of other models.
    """
    own = str(index.identity.get("digest"))
    digests = [_told(table, "model") for _, table in tables]
    fitting = [pair for pair, digest in zip(tables, digests) if digest in (None, own)]
    if not fitting:
        index.check_model({"digest": digests[-1], "name": _told(tables[-1][1], "model_name")})
    notes = []
    if None in digests:
        notes.append(f"has no {MANIFEST_FILE} and names no model: taken to be of the index's model")
    if len(fitting) < len(tables):
        # a service that changed its model goes on with the same log
        others = len(tables) - len(fitting)
        notes.append(
            f"{others} of {len(tables)} files left out, whose queries are of another model"
        )
    return fitting, notes


def _told(table: pa.Table, key: str) -> str | None:
    value = (table.schema.metadata or {}).get(key.encode())
    return None if value is None else value.decode()


def _read_table(file: Path, table: pa.Table) -> NamedQueries:
    known = table.schema.metadata or {}
    if not {b"R", b"D"} <= set(known):
        raise UserError(
            f"{file} does not say how many vectors a query has: its schema metadata must name R "
            "and D, as that of an embedding shard does"
        )
    shape = (int(known[b"R"]), int(known[b"D"]))
    dtype = _told(table, "dtype") or DTYPES[0]
    if dtype not in DTYPES:
        raise UserError(f"{file} stores vectors as {dtype!r}; allowed: {', '.join(DTYPES)}")
    vectors = read_vectors(table, shape, dtype, file)
    fused = None
    if "fused" in table.column_names:
        fused = read_fused(table, int(known.get(b"F", table["fused"].type.list_size)), file)
    if "id" in table.column_names:
        ids = [str(name) for name in read_column(table, "id", file).to_pylist()]
    else:
        ids = [_id_of(row) for row in vectors]
    return NamedQueries(ids, vectors, fused)


def _id_of(vectors: NDArray[np.floating]) -> str:
    return _digest(_bytes_of(vectors))[:32]


def _lists(values: NDArray[np.floating]) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values, np.float16).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _bytes_of(vectors: NDArray[np.floating]) -> bytes:
    return np.ascontiguousarray(vectors, np.float32).tobytes()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
