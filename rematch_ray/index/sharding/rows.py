"""The rows of an embedding directory that belong to one shard of an index, in bounded memory.

Knows nothing of what is built of them. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rematch_ray.errors import UserError
from rematch_ray.index.sharding.hashing import Keys, owners, read_keys
from rematch_ray.index.sharding.routing import routed_batches
from rematch_ray.index.shards import EmbeddingBatch, EmbeddingShards, open_parquet


@dataclass(frozen=True)
class ShardRows(EmbeddingShards):
    """The rows of an embedding directory that belong to one shard of an index.

    Files are read from the start to the end, a row group at a time, but for row groups that hold
    none of the rows: of these only the ids are read. Where there are copies in the order of shards
    (routing.py), no more than the rows is read. Checksums are not compared again.

    Args:
        number: of the shard.
        num_shards: shards of the index.
        entries: files to read, as the manifest names them.
        rows: how many of their rows belong to the shard.
        routed: directory of the copies in the order of shards, or None.
    """

    number: int
    num_shards: int
    entries: Sequence[Mapping[str, Any]]
    rows: int
    routed: Path | None = None

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
        if self.routed is not None:
            copied = routed_batches(self.routed, entry, self.number, self.num_shards, rows)
            yield from (self.read_batch(batch, path) for batch in copied)
            return
        file = open_parquet(path)
        for group in range(file.num_row_groups):
            keys = read_keys(file.read_row_group(group, columns=["id"]), path)
            mine = owners(keys, self.num_shards) == self.number
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
                keys = read_keys(batch, path)
                found.append(keys[owners(keys, self.num_shards) == self.number])
        return np.concatenate(found)
