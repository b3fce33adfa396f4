"""Reads an embedding directory: Parquet shards of ids, vectors and payloads, and their manifest.

Streams record batches, so a corpus never has to fit in memory. Knows nothing of indexes or models:
identity and instruction are passed on as the manifest gives them. Middle floor.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.index.manifest import hash_file

MANIFEST_FILE = "manifest.json"
EMBEDDING_FORMAT_VERSION = 1
_REQUIRED = ("identity", "side", "R", "D", "embedded", "shards")
# float16 rounding of a unit vector moves its norm by less than 1e-3
_NORM_TOLERANCE = 1e-2


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
                missing from it, another format version, a shard missing or cut short.
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
    def fused_dim(self) -> int | None:
        """F, size of the fused vector; None when there is none."""
        fused_dim = self.manifest.get("F")
        return int(fused_dim) if fused_dim else None

    @property
    def side(self) -> str:
        """`query` or `document`."""
        return str(self.manifest["side"])

    @property
    def identity(self) -> dict[str, Any]:
        """Identity of the model that made the vectors."""
        return dict(self.manifest["identity"])

    def payload_fields(self) -> dict[str, str]:
        """Arrow type of every payload field, nested ones by dotted name."""
        fields: dict[str, str] = {}
        for shard in self.manifest["shards"]:
            schema = _open_parquet(self.path / shard["file"]).schema_arrow
            if "payload" in schema.names:
                fields.update(_flatten_struct(schema.field("payload").type))
        return fields

    def batches(self, rows: int = 1024) -> Iterator[EmbeddingBatch]:
        """Streams the shards in manifest order, each checked against its checksum first.

        Args:
            rows: most rows per batch.

        Raises:
            UserError: a checksum, column, count or vector is wrong; names the shard or the id.
        """
        seen = 0
        for shard in self.manifest["shards"]:
            file = self.path / shard["file"]
            if hash_file(file) != shard["sha256"]:
                raise UserError(
                    f"embedding shard {file} does not match its checksum: "
                    "it is damaged, run 'rematch-ray embed' again"
                )
            for record_batch in _open_parquet(file).iter_batches(batch_size=rows):
                batch = self._read_batch(record_batch, file)
                seen += len(batch.ids)
                if batch.ids:
                    yield batch
        if seen != self.num_rows:
            raise UserError(
                f"{self.path} holds {seen} rows, its manifest says {self.num_rows}: "
                "run 'rematch-ray embed' again"
            )

    def read(self) -> EmbeddingBatch:
        """All rows at once: for query embeddings and small corpora."""
        batches = list(self.batches())
        if not batches:
            raise UserError(f"{self.path} holds no rows: embed at least one")
        fused = [batch.fused for batch in batches if batch.fused is not None]
        return EmbeddingBatch(
            ids=[name for batch in batches for name in batch.ids],
            vectors=np.concatenate([batch.vectors for batch in batches]),
            fused=np.concatenate(fused) if fused else None,
            sources=[source for batch in batches for source in batch.sources],
            payloads=[payload for batch in batches for payload in batch.payloads],
        )

    def _read_batch(self, batch: pa.RecordBatch, file: Path) -> EmbeddingBatch:
        ids = _column(batch, "id", file).to_pylist()
        vectors = _read_vectors(batch, "vectors", self.num_vectors * self.dim, file)
        vectors = vectors.reshape(len(ids), self.num_vectors, self.dim)
        check_unit_vectors(vectors, ids, file)
        fused = None
        if self.fused_dim is not None:
            fused = _read_vectors(batch, "fused", self.fused_dim, file)
            check_unit_vectors(fused[:, None], ids, file)
        names = batch.schema.names
        sources = batch.column("source").to_pylist() if "source" in names else [""] * len(ids)
        payloads = batch.column("payload").to_pylist() if "payload" in names else [{}] * len(ids)
        return EmbeddingBatch(
            ids=ids,
            vectors=vectors,
            fused=fused,
            sources=[source or "" for source in sources],
            payloads=[payload or {} for payload in payloads],
        )


def check_unit_vectors(vectors_NRD: NDArray[np.floating], ids: list[str], where: object) -> None:
    """Refuses vectors that are not finite or not of unit norm.

    Raises:
        UserError: names the first such row.
    """
    wide = vectors_NRD.astype(np.float32)
    norms = np.sqrt(np.einsum("nrd,nrd->nr", wide, wide))
    wrong = ~(np.abs(norms - 1.0) <= _NORM_TOLERANCE)
    if wrong.any():
        row, vector = np.argwhere(wrong)[0]
        raise UserError(
            f"vector {vector} of '{ids[row]}' in {where} has norm {norms[row, vector]:.4g}: stored "
            "vectors must be finite and of unit norm; embed the row again"
        )


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
    return manifest


def _open_parquet(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, memory_map=True)
    except (OSError, pa.ArrowInvalid) as broken:
        raise UserError(f"embedding shard {file} is not Parquet ({broken})") from broken


def _column(batch: pa.RecordBatch, name: str, file: Path) -> pa.Array:
    if name not in batch.schema.names:
        raise UserError(
            f"embedding shard {file} has no column '{name}'; it has {', '.join(batch.schema.names)}"
        )
    column = batch.column(name)
    if column.null_count:
        raise UserError(f"embedding shard {file} has {column.null_count} nulls in '{name}'")
    return column


def _read_vectors(batch: pa.RecordBatch, name: str, size: int, file: Path) -> NDArray[np.float16]:
    column = _column(batch, name, file)
    wanted = pa.list_(pa.float16(), size)
    if column.type != wanted:
        raise UserError(
            f"column '{name}' of embedding shard {file} is {column.type}, "
            f"the manifest asks for {wanted}"
        )
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), size)


def _flatten_struct(kind: pa.DataType, prefix: str = "") -> dict[str, str]:
    fields: dict[str, str] = {}
    for position in range(kind.num_fields):
        field = kind.field(position)
        if pa.types.is_struct(field.type):
            fields.update(_flatten_struct(field.type, f"{prefix}{field.name}."))
        else:
            fields[prefix + field.name] = str(field.type)
    return fields
