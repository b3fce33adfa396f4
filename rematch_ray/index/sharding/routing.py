"""Copies of embedding files in the order of shards, so that many shards do not read all of each.

    <first 16 digits of the file's SHA-256>-of-<N>.arrow    of each row group one batch for each of
                                                            the N shards, in order

Arrow without compression: mapped, a shard reads its own rows and no others. As large as the rows in
memory, made once per file whatever the number of shards, and removed with the build that made them.
One that is there is whole: it is on disk before it has its name. Middle floor.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.index.manifest import sync_directory, sync_file
from rematch_ray.index.sharding.hashing import owners, read_keys
from rematch_ray.index.shards import EmbeddingShards, open_parquet


def count_rows(
    embeddings: EmbeddingShards,
    entry: Mapping[str, Any],
    num_shards: int,
    routed: Path | None = None,
) -> NDArray[np.int64]:
    """Compares one embedding file with its checksum and counts its rows by shard of the index.

    Args:
        embeddings: the directory.
        entry: the file, as its manifest names it.
        num_shards: shards of the index.
        routed: where to put a copy in the order of shards; None makes none.

    Returns:
        (num_shards,) rows.

    Raises:
        UserError: the file is damaged.
    """
    counts = np.zeros(num_shards, np.int64)
    if routed is not None:
        copy = _copy_of(routed, entry, num_shards)
        if not copy.exists():
            _write_copy(embeddings.verify_file(entry), copy, num_shards)
        with pa.memory_map(str(copy)) as source:
            file = pa.ipc.open_file(source)
            for place in range(file.num_record_batches):
                counts[place % num_shards] += file.get_batch(place).num_rows
        return counts
    path = embeddings.verify_file(entry)
    for batch in open_parquet(path).iter_batches(columns=["id"]):
        counts += np.bincount(owners(read_keys(batch, path), num_shards), minlength=num_shards)
    return counts


def routed_batches(
    routed: Path, entry: Mapping[str, Any], number: int, num_shards: int, rows: int
) -> Iterator[pa.RecordBatch]:
    """Streams the rows of one shard from the copy of an embedding file.

    Args:
        routed: where the copies are.
        entry: the file, as its manifest names it.
        number: of the shard.
        num_shards: shards of the index.
        rows: most rows of a batch.

    Raises:
        UserError: the copy holds rows of other shards there.
    """
    copy = _copy_of(routed, entry, num_shards)
    with pa.memory_map(str(copy)) as source:
        file = pa.ipc.open_file(source)
        for place in range(number, file.num_record_batches, num_shards):
            batch = file.get_batch(place)
            # a hash of each id is nothing beside what is written of its row
            if (owners(read_keys(batch, copy), num_shards) != number).any():
                raise UserError(
                    f"{copy} holds rows of other shards where those of shard {number} belong: it "
                    f"is damaged, remove {routed} and run the same command again"
                )
            for start in range(0, batch.num_rows, rows):
                yield batch.slice(start, rows)


def _copy_of(routed: Path, entry: Mapping[str, Any], num_shards: int) -> Path:
    return routed / f"{entry['sha256'][:16]}-of-{num_shards}.arrow"


def _write_copy(path: Path, copy: Path, num_shards: int) -> None:
    """Writes the copy of a file, whole or not at all; one row group is held at a time."""
    parquet = open_parquet(path)
    partial = copy.with_name(f".{copy.name}.{uuid.uuid4().hex[:8]}.unfinished")
    try:
        with (
            pa.OSFile(str(partial), "wb") as sink,
            pa.ipc.new_file(sink, parquet.schema_arrow) as writer,
        ):
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group)
                mine = owners(read_keys(table, path), num_shards)
                for number in range(num_shards):
                    rows = pc.take(table, np.flatnonzero(mine == number))
                    writer.write_batch(_one_batch(rows))
        sync_file(partial)
        os.replace(partial, copy)
        sync_directory(copy.parent)
    finally:
        partial.unlink(missing_ok=True)


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], table.schema)
