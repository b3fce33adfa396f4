"""One state of an index, as every task of a job opens it, whatever is published meanwhile.

What a job knows of an index it knows by row, and a change makes other rows. Knows nothing of what
is mined. Middle floor.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

from rematch_ray.errors import UserError
from rematch_ray.index.generation import Generation, generation_file, read_current
from rematch_ray.index.manifest import hash_file
from rematch_ray.index.sharding.opened import ShardedGeneration, current_file, current_name
from rematch_ray.index.sharding.sets import ShardSet, is_sharded


class IndexChangedError(UserError):
    """The state that was asked for is not on disk any more: a writer keeps the last two."""


@dataclass(frozen=True)
class PinnedIndex:
    """One published state of an index directory; a plain value that may be pickled.

    Args:
        path: index directory.
        name: of the generation, or of the set of one that is split.
        digest: SHA-256 of its manifest: a name comes again when an index is built anew.
        shards: the generations that make the set, or None.
    """

    path: Path
    name: str
    digest: str
    shards: ShardSet | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, path: Path) -> PinnedIndex:
        """What an index directory publishes now.

        Raises:
            UserError: not an index, or a damaged one.
        """
        while True:
            shards = ShardSet.read(path) if is_sharded(path) else None
            name = shards.name if shards else read_current(path)
            file = current_file(path)
            try:
                digest = hash_file(file)
            except OSError as gone:
                if current_name(path) == name:
                    raise UserError(
                        f"{file} cannot be read ({gone.strerror}): the index is damaged, build it "
                        "again"
                    ) from gone
                continue
            # else something was published while we read
            if current_name(path) == name:
                return cls(path, name, digest, shards)

    def open(self) -> Generation:
        """This state, every file of it held open: see `Generation.hold`.

        Raises:
            IndexChangedError: it is gone.
            UserError: the index is damaged.
        """
        try:
            if self.shards is not None:
                opened: Generation = ShardedGeneration(self.path, self.shards)
            elif hash_file(generation_file(self.path, self.name)) == self.digest:
                opened = Generation(self.path, self.name)
            else:
                raise self._changed()
            opened.hold()
        except (UserError, OSError, sqlite3.OperationalError) as gone:
            if isinstance(gone, IndexChangedError) or PinnedIndex.of(self.path) == self:
                raise
            raise self._changed() from gone
        return opened

    def _changed(self) -> IndexChangedError:
        return IndexChangedError(
            f"{self.path} has changed while it was read: {self.name} is gone, only the last two "
            "states are kept; run the same command again, and let nothing write to the index "
            "meanwhile, or give a copy of it"
        )
