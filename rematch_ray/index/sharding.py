"""Which shard of an index a document belongs to, and the rows of an embedding directory that do.

A document's shard is its 64-bit key (payload.py), which depends on its id alone, modulo the number
of shards. Knows nothing of what a shard is made of. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.index.payload import document_key
from rematch_ray.index.shard_columns import read_column
from rematch_ray.index.shards import EmbeddingBatch, EmbeddingShards, open_parquet

# what a manifest says of `document_key`: 8 bytes of BLAKE2b, big endian, modulo the shards
HASH_RULE = "blake2b-64"
Keys = NDArray[np.uint64]


def shard_of(document_id: str, num_shards: int) -> int:
    """Number of the shard that a document belongs to.

    >>> [shard_of(name, 4) for name in ("a", "b", "c")]
    [0, 2, 3]
    """
    return document_key(document_id) % num_shards


def shard_name(number: int, num_shards: int) -> str:
    """Directory of a shard.

    >>> shard_name(3, 4)
    'shard-00003-of-00004'
    """
    return f"shard-{number:05d}-of-{num_shards:05d}"


def keys_of(ids: Sequence[str]) -> Keys:
    """Key of each id, (n,)."""
    return np.fromiter(map(document_key, ids), np.uint64, len(ids))


def route(ids: Sequence[str], num_shards: int) -> dict[int, list[str]]:
    """Ids by the number of their shard, each in the order given."""
    routed: dict[int, list[str]] = {}
    for name in ids:
        routed.setdefault(shard_of(name, num_shards), []).append(name)
    return routed


def count_rows(
    embeddings: EmbeddingShards, entry: Mapping[str, Any], num_shards: int
) -> NDArray[np.int64]:
    """Compares one embedding file with its checksum and counts its rows by shard of the index.

    Args:
        embeddings: the directory.
        entry: the file, as its manifest names it.
        num_shards: shards of the index.

    Returns:
        (num_shards,) rows.

    Raises:
        UserError: the file is damaged.
    """
    file = embeddings.verify_file(entry)
    counts = np.zeros(num_shards, np.int64)
    for batch in open_parquet(file).iter_batches(columns=["id"]):
        keys = keys_of(read_column(batch, "id", file).to_pylist())
        counts += np.bincount((keys % num_shards).astype(np.int64), minlength=num_shards)
    return counts


@dataclass(frozen=True)
class ShardRows(EmbeddingShards):
    """The rows of an embedding directory that belong to one shard of an index.

    Their files are read from the start to the end, a row group at a time, but for row groups that
    hold none of the rows: of these only the ids are read. Checksums are not compared again.

    Args:
        number: of the shard.
        num_shards: shards of the index.
        entries: files to read, as the manifest names them.
        rows: how many of their rows belong to the shard.
    """

    number: int
    num_shards: int
    entries: Sequence[Mapping[str, Any]]
    rows: int

    @property
    def num_rows(self) -> int:
        """Rows of the shard."""
        return self.rows

    def batches(self, rows: int = 1024) -> Iterator[EmbeddingBatch]:
        """Streams the rows of the shard in manifest order.

        Args:
            rows: most rows read at once.

        Raises:
            UserError: a column, count or vector is wrong; names the file or the id.
        """
        seen = 0
        for entry in self.entries:
            for batch in self._file_batches(entry, rows):
                seen += len(batch.ids)
                yield batch
        if seen != self.rows:
            raise UserError(
                f"{self.path} holds {seen} rows of shard {self.number}, {self.rows} were counted: "
                "its files changed meanwhile, run the same command again"
            )

    def _file_batches(self, entry: Mapping[str, Any], rows: int) -> Iterator[EmbeddingBatch]:
        path = self.path / entry["file"]
        file = open_parquet(path)
        for group in range(file.num_row_groups):
            ids = read_column(file.read_row_group(group, columns=["id"]), "id", path)
            mine = self._is_mine(keys_of(ids.to_pylist()))
            if not mine.any():
                continue
            start = 0
            for batch in file.iter_batches(batch_size=rows, row_groups=[group]):
                places = np.flatnonzero(mine[start : start + len(batch)])
                start += len(batch)
                if len(places):
                    yield self.read_batch(batch.take(places), path)

    def present_keys(self) -> Keys:
        """Keys of all documents of the shard, whichever file they stand in, (n,)."""
        found = [np.empty(0, np.uint64)]
        for path in self.files:
            for batch in open_parquet(path).iter_batches(columns=["id"]):
                keys = keys_of(read_column(batch, "id", path).to_pylist())
                found.append(keys[self._is_mine(keys)])
        return np.concatenate(found)

    def _is_mine(self, keys: Keys) -> NDArray[np.bool_]:
        return keys % np.uint64(self.num_shards) == self.number
