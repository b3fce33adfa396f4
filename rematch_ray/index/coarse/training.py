"""The coarse quantiser, trained once and shared by the segments that come after.

    coarse/<key>-<kind>-<digest>.faiss    a trained list without entries

A list is a filled copy of such a file, so that segments agree on what a code means, and a merge or
a second build need not train again. The generation names the files; a segment does not need them
once it is written. Knows nothing of searches. Middle floor.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rematch_ray.index.coarse.bits import write_bits
from rematch_ray.index.coarse.building import SEED, build_coarse, coarse_file, train_coarse
from rematch_ray.index.coarse.entries import Entries
from rematch_ray.index.coarse.kinds import (
    check_kind,
    holds,
    kind_for,
    training_rows,
)
from rematch_ray.index.coarse.packed import write_packed
from rematch_ray.index.coarse.sizes import BITS, PACKED, SCAN
from rematch_ray.index.manifest import (
    TrainedEntry,
    describe_file,
    sync_directory,
    sync_file,
)

TRAINED = "coarse"
# a quantiser has about 4 sqrt(entries) lists: within this factor, half or twice as many as ideal
_FITS_WITHIN = 4


class CoarseWriter:
    """Writes the coarse lists of new segments, and trains what no trained file fits.

    Args:
        index: index directory, its lock held.
        keys: the keys that a segment gets lists of.
        kind: as asked for, `auto` included.
        trained: files that there are, by key.
        scan_below: with fewer documents than this, or too few for the kind, a segment for which
            no trained file fits is scanned; None refuses too few.
        seed: of training.

    Raises:
        UserError: the kind does not exist.
    """

    def __init__(
        self,
        index: Path,
        *,
        keys: tuple[str, ...],
        kind: str = "auto",
        trained: Mapping[str, TrainedEntry] | None = None,
        scan_below: int | None = None,
        seed: int = SEED,
    ) -> None:
        check_kind(kind)
        self.keys = keys
        self.trained = dict(trained or {})
        self._index = index
        self.kind = kind
        self._scan_below = scan_below
        self._seed = seed

    def write(self, directory: Path, key: str, entries: Entries) -> dict[str, Any]:
        """Writes the list of one key into a segment's directory; returns its description.

        Raises:
            UserError: too few documents for the kind, a dim that it cannot take, or a trained file
                that is missing or damaged.
        """
        kind = kind_for(self.kind, entries.rows)
        entry = self.trained.get(key)
        fits = entry is not None and _fits(entry, kind, entries)
        path = directory / coarse_file(key)
        if kind == SCAN or (not fits and self._is_small(kind, entries)):
            return {"kind": SCAN}
        if kind in (PACKED, BITS):
            # several vectors a document keep the kernel busy: there is no memory to wait for
            if entries.width > 1:
                return {"kind": SCAN}
            return (write_packed if kind == PACKED else write_bits)(directory, key, entries)
        if kind == "flat":
            return build_coarse(path, entries, kind=kind)
        if not fits:
            self.trained[key] = self._train(key, kind, entries)
        trained = self.trained[key].check(self._index)
        return build_coarse(path, entries, kind=kind, trained=trained)

    def adopt(self, key: str, path: Path, *, kind: str, documents: int) -> None:
        """Takes a trained file from elsewhere, for example one that several shards share.

        Args:
            key: of the lists.
            path: a file of `train_coarse`; it is copied.
            kind: it was trained for.
            documents: it was trained for.
        """
        folder = self._folder()
        copy = folder / f".training-{key}"
        copy.write_bytes(path.read_bytes())
        sync_file(copy)
        self.trained[key] = self._settle(copy, key, kind, documents)

    def _is_small(self, kind: str, entries: Entries) -> bool:
        if self._scan_below is None:
            return False
        return entries.rows < self._scan_below or not holds(kind, len(entries))

    def _train(self, key: str, kind: str, entries: Entries) -> TrainedEntry:
        unnamed = self._folder() / f".training-{key}"
        sample = entries.sample(training_rows(kind, len(entries)), self._seed)
        train_coarse(unnamed, sample, kind=kind, num_entries=len(entries), seed=self._seed)
        return self._settle(unnamed, key, kind, entries.rows)

    def _folder(self) -> Path:
        folder = self._index / TRAINED
        folder.mkdir(exist_ok=True)
        return folder

    def _settle(self, unnamed: Path, key: str, kind: str, documents: int) -> TrainedEntry:
        file = describe_file(unnamed)
        name = f"{key}-{kind}-{file.sha256[:12]}.faiss"
        os.replace(unnamed, unnamed.with_name(name))
        sync_directory(unnamed.parent)
        return TrainedEntry(
            file=f"{TRAINED}/{name}",
            bytes=file.bytes,
            sha256=file.sha256,
            kind=kind,
            documents=documents,
        )


def _fits(entry: TrainedEntry, kind: str, entries: Entries) -> bool:
    ratio = entries.rows / entry.documents
    return entry.kind == kind and 1 / _FITS_WITHIN <= ratio <= _FITS_WITHIN
