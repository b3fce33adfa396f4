"""Writes of documents that are in memory: some are added or replaced, some deleted, all at once.

Says which of the ids were there before, so that several writers' requests can share a generation
and each still learn its own counts. Middle floor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rematch_ray.index.generation import Generation, read_current
from rematch_ray.index.revision import append_rows, delete_known, known_ids
from rematch_ray.index.sources import GivenRows
from rematch_ray.index.store import IndexInfo, describe_index, writing


@dataclass(frozen=True)
class Written:
    """What a write found and made.

    Args:
        info: the index after it; it is on disk.
        known: of the ids that were written or deleted, those that were there before.
    """

    info: IndexInfo
    known: frozenset[str]


def write_documents(
    path: Path, rows: GivenRows | None, *, delete: Sequence[str] = (), patience_s: float = 0.0
) -> Written:
    """Adds or replaces documents and deletes others, all of it or nothing.

    Args:
        path: index directory.
        rows: to add or replace, or None.
        delete: ids to delete, each once and none of them in `rows`; unknown ones do nothing.
        patience_s: how long to wait for another writer to end.

    Raises:
        UserError: not an index, rows of another model, side, instruction or shape, or repeated ids.
        IndexBusyError: another writer is at work.
    """
    read_current(path)
    with writing(path, patience_s=patience_s) as number:
        generation = Generation(path)
        known = known_ids(generation, [*(rows.ids if rows else ()), *delete])
        if rows is not None and rows.num_rows:
            change = append_rows(path, number, rows, delete=delete)
        else:
            change = delete_known(generation, number, delete)
    return Written(change.info, known)


def delete_matching(
    path: Path, conditions: Mapping[str, Sequence[Any]], *, patience_s: float = 0.0
) -> Written:
    """Deletes the documents whose fields hold one of the values each.

    Args:
        path: index directory.
        conditions: what `check_filter` gives.
        patience_s: how long to wait for another writer to end.

    Returns:
        `known` are the deleted.

    Raises:
        UserError: not an index.
        IndexBusyError: another writer is at work.
    """
    read_current(path)
    with writing(path, patience_s=patience_s) as number:
        generation = Generation(path)
        rows = np.flatnonzero(generation.passing(conditions))
        if not len(rows):
            return Written(describe_index(path), frozenset())
        ids = [name for name, _ in generation.documents(rows)]
        return Written(delete_known(generation, number, ids).info, frozenset(ids))
