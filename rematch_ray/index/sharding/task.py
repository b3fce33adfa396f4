"""One shard to be built or topped up: a task that may run anywhere, and twice.

Whoever runs it must see the two directories. A shard is published when it is whole, and its
manifest says what it was made of, so a task whose work is done does nothing. Middle floor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rematch_ray.index.build import IndexForm, write_generation
from rematch_ray.index.revision import append_rows
from rematch_ray.index.sharding.hashing import shard_name
from rematch_ray.index.sharding.rows import ShardRows
from rematch_ray.index.sharding.source import source_in
from rematch_ray.index.sharding.training import SharedTraining
from rematch_ray.index.shards import EmbeddingShards
from rematch_ray.index.store import publish, writing

# a killed task's process may hold the lock of its shard for a moment longer
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class ShardTask:
    """One shard to be built or topped up: all that whoever does it must know.

    Args:
        out: directory of the set.
        number: of the shard.
        num_shards: N.
        embeddings: the embedding directory, as it was when the build began.
        form: how the index is to be built.
        source: what the shard's manifest will record.
        files: embedding files to read; None reads all.
        drops: whether documents that the embeddings no longer hold are to be deleted.
        rows: rows of those files that belong to the shard.
        routed: directory of copies of the files in the order of shards, or None.
        training: the coarse lists that all shards share.
        batch_rows: rows read at once.
    """

    out: Path
    number: int
    num_shards: int
    embeddings: EmbeddingShards
    form: IndexForm
    source: Mapping[str, Any]
    files: frozenset[str] | None
    drops: bool
    rows: int
    routed: Path | None
    training: SharedTraining
    batch_rows: int

    @property
    def path(self) -> Path:
        """The shard's directory."""
        return self.out / shard_name(self.number, self.num_shards)

    @cached_property
    def entries(self) -> list[Mapping[str, Any]]:
        """Embedding files to read, as their manifest names them."""
        entries = self.embeddings.manifest["shards"]
        return [entry for entry in entries if self.files is None or entry["file"] in self.files]

    def shard_rows(self) -> ShardRows:
        """The rows to read."""
        return ShardRows(
            path=self.embeddings.path,
            manifest=self.embeddings.manifest,
            number=self.number,
            num_shards=self.num_shards,
            entries=self.entries,
            rows=self.rows,
            routed=self.routed,
        )


def build_shard(task: ShardTask) -> int:
    """Builds or tops up one shard and publishes it, unless that is done.

    Returns:
        Rows written.

    Raises:
        UserError: the embeddings are damaged or hold an id twice, or another process writes.
    """
    with writing(task.path, patience_s=_PATIENCE_S) as number:
        if source_in(task.path) == task.source:
            return 0  # an attempt that was killed after it had published
        rows = task.shard_rows()
        if task.files is None:
            manifest = write_generation(
                task.path,
                number,
                rows,
                task.form,
                batch_rows=task.batch_rows,
                source=task.source,
                lists=task.training.writer(task.path),
            )
            publish(task.path, manifest)
        else:
            append_rows(
                task.path,
                number,
                rows,
                present=rows.present_keys() if task.drops else None,
                source=task.source,
                batch_rows=task.batch_rows,
            )
    return task.rows
