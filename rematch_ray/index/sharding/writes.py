"""Writes to an index that may be split into shards: each document goes to the shard it belongs to.

As changes.py: each shard publishes at most one generation, the set comes last, so that readers find
all of a write or nothing of it. Middle floor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rematch_ray.index import writes
from rematch_ray.index.filters import check_filter
from rematch_ray.index.sharding.hashing import keys_of, owners, route, shard_name
from rematch_ray.index.sharding.opened import open_generation
from rematch_ray.index.sharding.sets import (
    changing,
    is_sharded,
    publish_set,
    refuse_shard_of_set,
)
from rematch_ray.index.sources import GivenRows
from rematch_ray.index.writes import Written

__all__ = ["Written", "delete_matching", "write_documents"]


def write_documents(
    path: str | Path,
    rows: GivenRows | None,
    *,
    delete: Sequence[str] = (),
    patience_s: float = 0.0,
) -> Written:
    """Adds or replaces documents and deletes others, all of it or nothing.

    Arguments and errors as of `writes.write_documents`.
    """
    path = Path(path)
    if not is_sharded(path):
        refuse_shard_of_set(path)
        return writes.write_documents(path, rows, delete=delete, patience_s=patience_s)

    def write(number: int, shard: Path, num_shards: int) -> Written | None:
        mine = _rows_of(rows, number, num_shards)
        gone = route(delete, num_shards).get(number, [])
        if mine is None and not gone:
            return None
        return writes.write_documents(shard, mine, delete=gone)

    return _write_shards(path, write, patience_s)


def delete_matching(
    path: str | Path, filter: Mapping[str, Any], *, patience_s: float = 0.0
) -> Written:
    """Deletes all documents that pass a filter; `known` are their ids.

    Args:
        path: index directory.
        filter: as a search takes it.
        patience_s: how long to wait for another writer to end.

    Raises:
        UserError: not an index, or a field that no document has.
        IndexBusyError: another writer is at work.
    """
    path = Path(path)
    conditions = check_filter(filter, open_generation(path).fields())
    if not is_sharded(path):
        refuse_shard_of_set(path)
        return writes.delete_matching(path, conditions, patience_s=patience_s)
    return _write_shards(
        path, lambda _, shard, __: writes.delete_matching(shard, conditions), patience_s
    )


def _rows_of(rows: GivenRows | None, number: int, num_shards: int) -> GivenRows | None:
    if rows is None:
        return None
    places = np.flatnonzero(owners(keys_of(rows.ids), num_shards) == number)
    return rows.select(places) if len(places) else None


def _write_shards(
    path: Path, write: Callable[[int, Path, int], Written | None], patience_s: float
) -> Written:
    with changing(path, patience_s=patience_s) as found:
        known: frozenset[str] = frozenset()
        for number in range(found.num_shards):
            shard = path / shard_name(number, found.num_shards)
            if (done := write(number, shard, found.num_shards)) is not None:
                known |= done.known
        return Written(publish_set(path, found.num_shards), known)
