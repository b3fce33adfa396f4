"""The files of an embedding directory: rows scanned without their vectors, shards written whole.

A source is a file that may hold rows of the corpus: a shard or the quarantine of an earlier run, or
a file of staged rows. Files are streamed, so memory is that of a few hundred rows. Knows nothing of
manifests or of Ray. Top floor.
"""

import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rematch_ray.data.rows import stable_id
from rematch_ray.errors import UserError
from rematch_ray.index.manifest import sync_directory, sync_file
from rematch_ray.index.quantisation import quantise
from rematch_ray.workloads.staging import OK, ROW_KEY

Dtype = Literal["float16", "int8"]
QUARANTINE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("reason", pa.string()),
        ("path", pa.string()),
        ("row", pa.int64()),
        (ROW_KEY, pa.int64()),
    ]
)
BATCH_ROWS = 512
GROUP_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Source:
    """A file that may hold rows of the corpus.

    Attributes:
        path: a Parquet file.
        kind: what wrote it.
        entry: what the manifest says of a shard; None for another kind.
    """

    path: Path
    kind: Literal["shard", "quarantine", "staged"]
    entry: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Scan:
    """What a source holds, row by row, without vectors.

    Attributes:
        keys: (n,) row keys.
        good: (n,) whether the row was embedded.
        id_keys: (n,) hashes of the ids.
        schema: of the file.
    """

    keys: NDArray[np.int64]
    good: NDArray[np.bool_]
    id_keys: NDArray[np.int64]
    schema: pa.Schema


@dataclass(frozen=True)
class Piece:
    """Embedded rows of one source that go into a shard.

    Attributes:
        source: where they are.
        rows: their numbers in the source, ascending, at least one.
        schema: of the source's file.
        whole: whether they are all that the source holds.
    """

    source: Source
    rows: NDArray[np.int64]
    schema: pa.Schema
    whole: bool


@dataclass(frozen=True)
class ShardForm:
    """How vectors are stored.

    Attributes:
        num_vectors: R, the first so many of each row's vectors.
        dim: D.
        dtype: of the stored entries; int8 comes with a column `scales`.
        metadata: of the schema of each shard.
    """

    num_vectors: int
    dim: int
    dtype: Dtype
    metadata: Mapping[str, str]

    def schema_of(self, piece: Piece) -> pa.Schema:
        """The columns of a shard made from a piece."""
        empty = pa.RecordBatch.from_pylist([], piece.schema.remove_metadata())
        return self.store(empty).schema

    def store(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Staged rows as they are stored; those of an earlier shard are so already."""
        if "status" in batch.schema.names:
            batch = batch.drop_columns(["status"])
        width = self.num_vectors * self.dim
        column = batch.column("vectors")
        if column.type == pa.list_(getattr(pa, self.dtype)(), width):
            return batch
        flat = column.flatten().to_numpy(zero_copy_only=False)
        vectors = flat.reshape(len(column), column.type.list_size // self.dim, self.dim)
        vectors = vectors[:, : self.num_vectors]
        place = batch.schema.get_field_index("vectors")
        if self.dtype == "float16":
            return batch.set_column(place, "vectors", _lists(vectors.reshape(-1), width))
        codes, scales = quantise(vectors)
        batch = batch.set_column(place, "vectors", _lists(codes.reshape(-1), width))
        return batch.add_column(place + 1, "scales", _lists(scales.reshape(-1), self.num_vectors))


def _lists(flat: NDArray[Any], width: int) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(flat)), width)


def scan(source: Source) -> Scan:
    """Read which rows a source holds."""
    keys, good, id_keys = [], [], []
    columns = [ROW_KEY, "id", *(["status"] if source.kind == "staged" else [])]
    with pq.ParquetFile(source.path) as file:
        schema = file.schema_arrow
        if ROW_KEY not in schema.names:
            raise UserError(
                f"{source.path} has no column {ROW_KEY!r}: an earlier version wrote it, which "
                "could not be added to; choose another --out"
            )
        for batch in file.iter_batches(batch_size=8 * BATCH_ROWS, columns=columns):
            keys.append(batch.column(ROW_KEY).to_numpy())
            if source.kind == "staged":
                good.append(np.array(batch.column("status").to_pylist(), dtype=object) == OK)
            else:
                good.append(np.full(len(batch), source.kind == "shard"))
            ids = [stable_id(name or "") for name in batch.column("id").to_pylist()]
            id_keys.append(np.array(ids, dtype=np.int64))
    empty = np.empty(0, np.int64)
    return Scan(
        np.concatenate([empty, *keys]),
        np.concatenate([empty.astype(bool), *good]),
        np.concatenate([empty, *id_keys]),
        schema,
    )


def read_rows(
    source: Source, rows: NDArray[np.int64], columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Stream some rows of a source.

    Args:
        source: the file.
        rows: numbers of the rows, ascending.
        columns: what to read; None = all.
    """
    start = 0
    with pq.ParquetFile(source.path) as file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
            low, high = np.searchsorted(rows, [start, start + len(batch)])
            if high - low == len(batch):
                yield batch
            elif high > low:
                yield batch.take(pa.array(rows[low:high] - start))
            start += len(batch)


def pack(
    pieces: Iterable[Piece], form: ShardForm, rows_per_shard: int
) -> Iterator[tuple[Piece, ...]]:
    """Put pieces together that go into one shard: of the same columns, and until it is full.

    Small shards of earlier runs are pieces like any other, so that many top-ups leave few shards.

    Args:
        pieces: in the order in which rows are wanted.
        form: how vectors are stored.
        rows_per_shard: rows that a shard holds at least, but for the last of its columns.
    """
    held: dict[pa.Schema, list[Piece]] = {}
    for piece in pieces:
        schema = form.schema_of(piece)
        own = held.setdefault(schema, [])
        own.append(piece)
        if sum(len(each.rows) for each in own) >= rows_per_shard:
            yield tuple(held.pop(schema))
    yield from map(tuple, held.values())


def write_shard(pieces: Sequence[Piece], path: Path, form: ShardForm) -> dict[str, Any]:
    """Write pieces as one shard, whole or not at all.

    Args:
        pieces: of the same columns, one after another.
        path: the file to write.
        form: how vectors are stored.

    Returns:
        The shard's entry in the manifest.
    """
    schema = form.schema_of(pieces[0]).with_metadata(dict(form.metadata))
    stored = (form.store(b) for piece in pieces for b in read_rows(piece.source, piece.rows))
    options = {"compression": "zstd", "use_dictionary": dictionary_columns(schema)}
    with whole_file(path) as new, pq.ParquetWriter(new, schema, **options) as writer:
        for group in _groups(stored):
            table = group.replace_schema_metadata(schema.metadata)
            writer.write_table(table, row_group_size=table.num_rows)
    return describe(path, sum(len(piece.rows) for piece in pieces))


def dictionary_columns(schema: pa.Schema) -> list[str]:
    """Columns that are stored as numbers of a dictionary: all but those of 16 and 32 bit floats.

    Hardly two entries of a vector are equal, and a dictionary makes them six times slower to read.
    """
    empty = pa.BufferOutputStream()
    pq.ParquetWriter(empty, schema).close()
    columns = pq.ParquetFile(pa.BufferReader(empty.getvalue())).schema
    return [
        column.path
        for column in (columns.column(place) for place in range(len(columns)))
        if column.physical_type not in ("FIXED_LEN_BYTE_ARRAY", "FLOAT")
    ]


def describe(path: Path, rows: int) -> dict[str, Any]:
    """Return the entry of a finished file in the manifest."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "rows": rows, "sha256": digest, "bytes": path.stat().st_size}


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a name to write under; the file gets its own name when the block ends well.

    It is on disk then, its name too: the manifest will say so, and what it was made from goes.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.unfinished")
    try:
        yield partial
        sync_file(partial)
        os.replace(partial, path)
        sync_directory(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Join batches to tables of about `GROUP_BYTES`."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(each.nbytes for each in held) >= GROUP_BYTES:
            yield _plain(held)
            held = []
    if held:
        yield _plain(held)


def _plain(batches: Sequence[pa.RecordBatch]) -> pa.Table:
    return pa.Table.from_batches([batch.replace_schema_metadata() for batch in batches])
