"""An index that is split into shards, opened as one sequence of documents.

Its rows count through the shards in order, and through the segments of each; so whatever reads a
generation reads this one. A search goes through the phases of the shards instead (scatter.py).
Opening compares every shard with the set's manifest. Middle floor.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.index.cascade import Request
from rematch_ray.index.certified import keeps_originals
from rematch_ray.index.generation import (
    Generation,
    check_filter,
    generation_file,
    read_current,
)
from rematch_ray.index.sharding.hashing import route
from rematch_ray.index.sharding.phases import LocalShard
from rematch_ray.index.sharding.scatter import ShardedRequest, ShardGroup
from rematch_ray.index.sharding.sets import SET_FILE, ShardSet, is_sharded


def open_generation(path: Path, *, device: str | None = None, hold: bool = False) -> Generation:
    """Opens what an index directory publishes, be it split into shards or not.

    Args:
        path: index directory.
        device: see `Generation`.
        hold: open every file now: see `Generation.hold`.

    Raises:
        UserError: not an index, another format version, or a damaged one.
    """
    while True:
        found = ShardSet.read(path) if is_sharded(path) else None
        name = found.name if found else read_current(path)
        try:
            if found:
                opened: Generation = ShardedGeneration(path, found, device=device)
            else:
                opened = Generation(path, name, device=device)
            if hold:
                opened.hold()
        except (UserError, OSError, sqlite3.OperationalError):
            # two changes since the name was read: its files are gone, and it is another one
            if current_name(path) == name:
                raise
        else:
            return opened


def current_name(path: Path) -> str:
    """Name of what an index directory publishes, be it split into shards or not.

    Raises:
        UserError: not an index.
    """
    return ShardSet.read(path).name if is_sharded(path) else read_current(path)


def current_file(path: Path) -> Path:
    """The file whose bytes tell what an index directory publishes, be it split into shards or not.

    Raises:
        UserError: not an index.
    """
    return path / SET_FILE if is_sharded(path) else generation_file(path, read_current(path))


class ShardedGeneration(Generation):
    """All shards of an index at the generations that its set names.

    Args:
        path: directory of the set.
        found: the set.
        device: see `Generation`.

    Raises:
        UserError: a shard is missing, damaged, of another model, or holds other documents than
            those that belong to it.
    """

    def __init__(self, path: Path, found: ShardSet, *, device: str | None = None) -> None:
        self.path = path
        self.device = device
        self.name = found.name
        manifests = [found.open_manifest(path, entry) for entry in found.shards]
        self.parts = [
            Generation(path / entry.name, entry.generation, device=device) for entry in found.shards
        ]
        for number, part in enumerate(self.parts):
            _refuse_stray(part.path, number, found.num_shards, [s.keys[:1] for s in part.segments])
        self.manifest = dataclasses.replace(
            manifests[0],
            generation=found.generation,
            created=found.created,
            segments=tuple(segment for manifest in manifests for segment in manifest.segments),
            calibration=found.calibration,
            # any shard that is built anew or changed makes another sum
            built=sum(manifest.built for manifest in manifests),
            changes=sum(manifest.changes for manifest in manifests),
            source=None,
        )
        self.segments = [segment for part in self.parts for segment in part.segments]
        self._line_up()
        self._starts = np.cumsum([0, *(part.rows for part in self.parts)])
        self._shards = [LocalShard(part) for part in self.parts]
        self.group = ShardGroup(self._shards)

    @property
    def num_shards(self) -> int:
        """Shards that the index is split into."""
        return len(self.parts)

    def rows_of(self, ids: Sequence[str]) -> dict[str, int]:
        """Rows of those ids that are here and live; each is looked for in its own shard."""
        found = {}
        for number, some in route(ids, len(self.parts)).items():
            for name, row in self.parts[number].rows_of(some).items():
                found[name] = int(self._starts[number]) + row
        return found

    def select(self, filter: Mapping[str, Any] | None) -> NDArray[np.bool_]:
        """See `Generation.select`; a field that some shard has is known."""
        if not filter:
            return self.live
        check_filter(filter, self.fields())
        return np.concatenate(self.group.each(lambda n, _: self._shards[n].allowed(filter)))

    def verify(self) -> int:
        """See `Generation.verify`; every document must also be in the shard that it belongs to."""
        for number, part in enumerate(self.parts):
            _refuse_stray(part.path, number, len(self.parts), [part.keys])
        return sum(part.verify() for part in self.parts)

    def ask(self, request: Request) -> ShardedRequest:
        """A checked request, as the shards take it."""
        return ShardedRequest(
            plan=request.plan,
            coarse=request.coarse,
            filter=request.filter,
            nprobe=request.nprobe,
            top_k=request.top_k,
            group_by=request.group_by,
            filter_stage=request.filter_stage,
            live=self.manifest.live,
            is_float=keeps_originals(self, request.plan.budget),
            generation=self.name,
        )


def _refuse_stray(
    shard: Path, number: int, num_shards: int, keys: Sequence[NDArray[np.uint64]]
) -> None:
    for some in keys:
        if (some % np.uint64(num_shards) != number).any():
            raise UserError(
                f"{shard} holds documents that belong to another shard: it is damaged, or a shard "
                "of another index; put the right one back or build the index again"
            )
