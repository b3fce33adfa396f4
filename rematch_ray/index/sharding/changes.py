"""Changes of an index that may be split into shards: each document goes to the shard it belongs to.

An index that is not split is changed as changes.py does. Of a split one each shard publishes at
most one generation, and the set is published last, so that readers find all of a change or nothing
of it. Middle floor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from rematch_ray.errors import UserError
from rematch_ray.index import changes
from rematch_ray.index.changes import Change
from rematch_ray.index.revision import append_rows, refuse_other_fields
from rematch_ray.index.sharding.hashing import route, shard_name
from rematch_ray.index.sharding.opened import ShardedGeneration
from rematch_ray.index.sharding.routing import count_rows
from rematch_ray.index.sharding.rows import ShardRows
from rematch_ray.index.sharding.sets import (
    ShardSet,
    changing,
    is_sharded,
    publish_set,
    refuse_shard_of_set,
)
from rematch_ray.index.shards import EmbeddingShards
from rematch_ray.index.store import writing

__all__ = ["Change", "add_documents", "delete_documents", "merge_segments"]


def add_documents(path: str | Path, embeddings: str | Path, *, batch_rows: int = 1024) -> Change:
    """Adds the documents of an embedding directory; those whose ids are there are replaced.

    Arguments and errors as of `changes.add_documents`.
    """
    path = Path(path)
    if not is_sharded(path):
        refuse_shard_of_set(path)
        return changes.add_documents(path, embeddings, batch_rows=batch_rows)
    shards = EmbeddingShards.open(embeddings)
    if shards.num_rows == 0:
        raise UserError(f"{shards.path} holds no rows: embed at least one document")
    with changing(path) as found:
        refuse_other_fields(shards, ShardedGeneration(path, found))
        entries = shards.manifest["shards"]
        counts = np.sum([count_rows(shards, e, found.num_shards) for e in entries], axis=0)

        def add(number: int, shard: Path) -> Change | None:
            rows = int(counts[number])
            if not rows:
                return None
            mine = ShardRows(shards.path, shards.manifest, number, found.num_shards, entries, rows)
            with writing(shard) as generation:
                return append_rows(shard, generation, mine, batch_rows=batch_rows)

        return _change_shards(path, found, add)


def delete_documents(path: str | Path, ids: Iterable[str]) -> Change:
    """Deletes documents by their ids; ids that are not there are counted, not refused.

    Arguments and errors as of `changes.delete_documents`.
    """
    path = Path(path)
    if not is_sharded(path):
        refuse_shard_of_set(path)
        return changes.delete_documents(path, ids)
    with changing(path) as found:
        routed = route(list(dict.fromkeys(ids)), found.num_shards)

        def delete(number: int, shard: Path) -> Change | None:
            return changes.delete_documents(shard, routed[number]) if number in routed else None

        return _change_shards(path, found, delete)


def merge_segments(
    path: str | Path,
    *,
    choose: Callable[[Sequence[int]], Sequence[int]] | None = None,
    batch_rows: int = 1024,
) -> Change:
    """Makes one segment of all (or of those chosen) in each shard, without deleted documents.

    Arguments, errors and what becomes of hits as of `changes.merge_segments`.
    """
    path = Path(path)
    if not is_sharded(path):
        refuse_shard_of_set(path)
        return changes.merge_segments(path, choose=choose, batch_rows=batch_rows)
    with changing(path) as found:

        def merge(_: int, shard: Path) -> Change:
            return changes.merge_segments(shard, choose=choose, batch_rows=batch_rows)

        return _change_shards(path, found, merge)


def _change_shards(
    path: Path, found: ShardSet, change: Callable[[int, Path], Change | None]
) -> Change:
    """Changes one shard after another, publishes the set, and adds up what was done."""
    done = []
    for number in range(found.num_shards):
        made = change(number, path / shard_name(number, found.num_shards))
        if made is not None:
            done.append(made)
    return Change(
        publish_set(path, found.num_shards),
        added=sum(each.added for each in done),
        replaced=sum(each.replaced for each in done),
        deleted=sum(each.deleted for each in done),
        unknown=sum(each.unknown for each in done),
        merged=sum(each.merged for each in done),
    )
