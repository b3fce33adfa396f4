"""Reads an embedding directory: Parquet shards of ids, vectors and payloads, and their manifest.

Streams record batches, so a corpus never has to fit in memory. Whatever the shards store, float16
or int8 with scales, vectors come as float16. Knows nothing of indexes or models: identity and
instruction are passed on as the manifest gives them. Middle floor.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.index.manifest import hash_file
from rematch_ray.index.payload_types import join_types
from rematch_ray.index.shard_columns import (
    DTYPES,
    check_unit_vectors,
    read_column,
    read_fused,
    read_vectors,
)

MANIFEST_FILE = "manifest.json"
EMBEDDING_FORMAT_VERSION = 1
# column of the item that a row was cut from, told as a field of the payload
PARENT = "parent_id"
_REQUIRED = ("identity", "side", "R", "D", "embedded", "shards")


@dataclass(frozen=True)
class EmbeddingBatch:
    """Some consecutive rows of an embedding directory.

    Args:
        ids: n ids.
        vectors: (n, R, D) float16, unit norm.
        fused: (n, F) float16, unit norm, or None.
        sources: n source names.
        payloads: n payloads.
    """

    ids: list[str]
    vectors: NDArray[np.float16]
    fused: NDArray[np.float16] | None
    sources: list[str]
    payloads: list[dict[str, Any]]

    @classmethod
    def joined(cls, batches: Sequence[EmbeddingBatch]) -> EmbeddingBatch:
        """The rows of one or more batches as one."""
        fused = [batch.fused for batch in batches if batch.fused is not None]
        return cls(
            ids=[name for batch in batches for name in batch.ids],
            vectors=np.concatenate([batch.vectors for batch in batches]),
            fused=np.concatenate(fused) if fused else None,
            sources=[source for batch in batches for source in batch.sources],
            payloads=[payload for batch in batches for payload in batch.payloads],
        )


@dataclass(frozen=True)
class EmbeddingShards:
    """An embedding directory whose manifest has been read and whose shards are there.

    Args:
        path: the directory.
        manifest: its manifest, as written.
    """

    path: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> EmbeddingShards:
        """Reads the manifest and checks that every shard it names is there in its full size.

        Raises:
            UserError: no manifest (the directory is not a finished embedding directory), a key
                missing from it, another format version or an unknown dtype, a shard missing or cut
                short.
        """
        path = Path(path)
        manifest = _read_manifest(path)
        for shard in manifest["shards"]:
            file = path / shard["file"]
            size = file.stat().st_size if file.is_file() else None
            if size != shard["bytes"]:
                held = "is missing" if size is None else f"has {size} bytes"
                raise UserError(
                    f"embedding shard {file} {held}, the manifest says {shard['bytes']} bytes: "
                    "run 'rematch-ray embed' again"
                )
        return cls(path, manifest)

    @property
    def files(self) -> list[Path]:
        """The shards, in the order of the manifest."""
        return [self.path / shard["file"] for shard in self.manifest["shards"]]

    @property
    def where(self) -> str:
        """The directory, for messages."""
        return str(self.path)

    @property
    def num_rows(self) -> int:
        """Embedded rows."""
        return int(self.manifest["embedded"])

    @property
    def num_vectors(self) -> int:
        """R, vectors per row."""
        return int(self.manifest["R"])

    @property
    def dim(self) -> int:
        """D, size of a vector."""
        return int(self.manifest["D"])

    @property
    def dtype(self) -> str:
        """What the shards store vectors as, one of `DTYPES`."""
        return str(self.manifest.get("dtype", DTYPES[0]))

    @property
    def fused_dim(self) -> int | None:
        """F, size of the fused vector; None when there is none."""
        fused_dim = self.manifest.get("F")
        return int(fused_dim) if fused_dim else None

    @property
    def side(self) -> str:
        """`query` or `document`."""
        return str(self.manifest["side"])

    @property
    def instruction(self) -> str | None:
        """Instruction that the rows were embedded with."""
        return self.manifest.get("instruction")

    @property
    def identity(self) -> dict[str, Any]:
        """Identity of the model that made the vectors."""
        return dict(self.manifest["identity"])

    def payload_fields(self) -> dict[str, str]:
        """Arrow type of every payload field, nested ones by dotted name."""
        return join_types(_fields_of(open_parquet(file)) for file in self.files)

    def batches(self, rows: int = 1024) -> Iterator[EmbeddingBatch]:
        """Streams the shards in manifest order, each checked against its checksum first.

        Args:
            rows: most rows per batch.

        Raises:
            UserError: a checksum, column, count or vector is wrong; names the shard or the id.
        """
        seen = 0
        for shard in self.manifest["shards"]:
            file = self.verify_file(shard)
            for record_batch in open_parquet(file).iter_batches(batch_size=rows):
                batch = self.read_batch(record_batch, file)
                seen += len(batch.ids)
                if batch.ids:
                    yield batch
        if seen != self.num_rows:
            raise UserError(
                f"{self.path} holds {seen} rows, its manifest says {self.num_rows}: "
                "run 'rematch-ray embed' again"
            )

    def verify_file(self, shard: Mapping[str, Any]) -> Path:
        """Path of a shard, by its entry in the manifest, once its checksum has been compared.

        Raises:
            UserError: the checksum differs.
        """
        file = self.path / shard["file"]
        if hash_file(file) != shard["sha256"]:
            raise UserError(
                f"embedding shard {file} does not match its checksum: it is damaged, delete it "
                "and run 'rematch-ray embed' again"
            )
        return file

    def read(self) -> EmbeddingBatch:
        """All rows at once: for query embeddings and small corpora."""
        batches = list(self.batches())
        if not batches:
            raise UserError(f"{self.path} holds no rows: embed at least one")
        return EmbeddingBatch.joined(batches)

    def read_batch(self, batch: pa.RecordBatch, file: Path) -> EmbeddingBatch:
        """Rows of a shard, checked.

        Raises:
            UserError: a column or vector is wrong; names the shard or the id.
        """
        ids = read_column(batch, "id", file).to_pylist()
        vectors = read_vectors(batch, (self.num_vectors, self.dim), self.dtype, file)
        check_unit_vectors(vectors, ids, file)
        fused = None
        if self.fused_dim is not None:
            fused = read_fused(batch, self.fused_dim, file)
            check_unit_vectors(fused[:, None], ids, file)
        names = batch.schema.names
        sources = batch.column("source").to_pylist() if "source" in names else [""] * len(ids)
        payloads = batch.column("payload").to_pylist() if "payload" in names else [{}] * len(ids)
        parents = batch.column(PARENT).to_pylist() if PARENT in names else [None] * len(ids)
        return EmbeddingBatch(
            ids=ids,
            vectors=vectors,
            fused=fused,
            sources=[source or "" for source in sources],
            payloads=[
                _with_parent(payload or {}, parent)
                for payload, parent in zip(payloads, parents, strict=True)
            ],
        )


def _with_parent(payload: dict[str, Any], parent: str | None) -> dict[str, Any]:
    """A payload that says which item its own was cut from; what it says itself stays."""
    return payload if parent is None else {PARENT: parent, **payload}


def _fields_of(file: pq.ParquetFile) -> dict[str, str]:
    """Payload fields of a shard and their types."""
    fields = {PARENT: "string"} if _holds_parents(file) else {}
    if "payload" in file.schema_arrow.names:
        fields |= _flatten_struct(file.schema_arrow.field("payload").type)
    return fields


def _holds_parents(file: pq.ParquetFile) -> bool:
    """Whether any row of a shard names a parent; shards of earlier versions have no such column."""
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        for column in map(group.column, range(group.num_columns)):
            if column.path_in_schema == PARENT:
                stated = column.statistics
                if stated is None or stated.null_count != column.num_values:
                    return True
    return False


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST_FILE
    if not file.is_file():
        raise UserError(
            f"{path} is not an embedding directory: it has no {MANIFEST_FILE}, which is written "
            "last; run 'rematch-ray embed' to the end"
        )
    try:
        manifest = json.loads(file.read_text())
    except ValueError as broken:
        raise UserError(f"{file} is not JSON ({broken}); run 'rematch-ray embed' again") from broken
    missing = [key for key in _REQUIRED if key not in manifest]
    if missing:
        raise UserError(f"{file} lacks {', '.join(missing)}: it is not an embedding manifest")
    version = manifest.get("format_version")
    if version != EMBEDDING_FORMAT_VERSION:
        raise UserError(
            f"{file} has format version {version}, this software reads "
            f"{EMBEDDING_FORMAT_VERSION}: run 'rematch-ray embed' again"
        )
    if (dtype := manifest.get("dtype", DTYPES[0])) not in DTYPES:
        raise UserError(
            f"{file} says that vectors are stored as {dtype!r}, this software reads "
            f"{' and '.join(DTYPES)}: embed again with store_dtype one of them"
        )
    return manifest


def open_parquet(file: Path) -> pq.ParquetFile:
    """Opens a shard.

    Raises:
        UserError: it is not Parquet.
    """
    try:
        return pq.ParquetFile(file, memory_map=True)
    except (OSError, pa.ArrowInvalid) as broken:
        reason = " ".join(str(broken).split())
        raise UserError(f"embedding shard {file} is not Parquet ({reason})") from broken


def _flatten_struct(kind: pa.DataType, prefix: str = "") -> dict[str, str]:
    fields: dict[str, str] = {}
    for position in range(kind.num_fields):
        field = kind.field(position)
        if pa.types.is_struct(field.type):
            fields.update(_flatten_struct(field.type, f"{prefix}{field.name}."))
        else:
            fields[prefix + field.name] = str(field.type)
    return fields
