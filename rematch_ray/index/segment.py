"""A segment: documents written once and never changed, one directory of plain files.

    codes_0_1.npy ...   vectors by token range (planes.py)    keys.npy         tie-breakers
    codes_fused.npy ... fused vectors                         payload.sqlite   ids and payloads
    coarse_*.faiss      coarse lists                          segment.json     checksums
    lexical*            postings of the texts (postings.py)

Knows nothing of other segments, deletions or searches. Middle floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.index.coarse.bits import BitsList
from rematch_ray.index.coarse.keys import prefix_planes
from rematch_ray.index.coarse.lists import CoarseList
from rematch_ray.index.coarse.packed import PackedList
from rematch_ray.index.coarse.scan import Coarse, ScanList
from rematch_ray.index.coarse.sizes import BITS, PACKED, SCANS
from rematch_ray.index.lexical.postings import Postings, count_texts
from rematch_ray.index.manifest import SegmentEntry, SegmentManifest, hash_file
from rematch_ray.index.payload import PAYLOAD_FILE, PayloadStore
from rematch_ray.index.planes import FUSED, Listed, Plane, open_array, range_name

FUSED_POSITION = -1
SEGMENT_FILE = "segment.json"
KEYS_FILE = "keys.npy"


@dataclass(frozen=True)
class SegmentVectors:
    """What the plane files of a segment hold.

    Args:
        rows: N documents.
        dim: D.
        fused_dim: F, or None.
        planes: document token ranges [start, stop).
        originals: whether float16 vectors are kept beside the 8-bit ones.
        device: of torch, where codes are scored; None: the CPU.
    """

    rows: int
    dim: int
    fused_dim: int | None
    planes: tuple[tuple[int, int], ...]
    originals: bool
    device: str | None = None

    def keeps(self, name: str) -> bool:
        """Whether the originals of a plane are kept; fused ones always, the matching head reads
        them.
        """
        return self.originals or name == FUSED

    def plane(self, directory: Path, position: int) -> Plane:
        """The k-th token range."""
        start, stop = self.planes[position]
        name = range_name(start, stop)
        shape = (self.rows, stop - start, self.dim)
        return Plane(directory, name, shape, self.keeps(name), self.device)

    def fused(self, directory: Path) -> Plane:
        """The fused vectors, as a plane of one vector."""
        assert self.fused_dim is not None
        shape = (self.rows, 1, self.fused_dim)
        return Plane(directory, FUSED, shape, self.keeps(FUSED), self.device)

    def listed(self, directory: Path, key: str) -> list[Listed]:
        """The vectors of a coarse key."""
        if key == FUSED:
            return [Listed(self.fused(directory), 1)]
        return listed_of(
            key, [self.plane(directory, k) for k in range(len(self.planes))], self.planes
        )


def listed_of(
    key: str, planes: Sequence[Plane], ranges: tuple[tuple[int, int], ...]
) -> list[Listed]:
    """The vectors of a coarse key other than `fused`, in open planes.

    Args:
        key: `first` or `prefix`.
        planes: all planes of a segment.
        ranges: their token ranges.
    """
    if key == "first":
        return [Listed(planes[0], 1)]
    return [Listed(plane, plane.shape[1]) for plane in planes[: prefix_planes(ranges)]]


class Segment:
    """An open segment. Opening checks names and sizes; vectors are mapped when first read.

    Args:
        directory: the segment's directory.
        entry: how the generation names it.
        tombstones: the bitmap file, or None.
        device: see `Generation`.

    Raises:
        UserError: a file is missing or of another size than its manifest says.
    """

    def __init__(
        self,
        directory: Path,
        entry: SegmentEntry,
        tombstones: Path | None = None,
        *,
        device: str | None = None,
    ) -> None:
        self.directory = directory
        self.manifest = SegmentManifest.read(directory / SEGMENT_FILE)
        self._entry = entry
        self._tombstones = tombstones
        self.device = device
        for name, file in self.manifest.files.items():
            path = directory / name
            size = path.stat().st_size if path.is_file() else None
            if size != file.bytes:
                held = "is missing" if size is None else f"has {size} bytes"
                raise UserError(
                    f"{path} {held}, its manifest says {file.bytes} bytes: "
                    "the index is damaged, build it again"
                )
        if self.manifest.rows != entry.rows:
            raise UserError(
                f"{directory} holds {self.manifest.rows} documents, its generation says "
                f"{entry.rows}: the index is damaged, build it again"
            )
        self.payload = PayloadStore(directory / PAYLOAD_FILE)
        self._deleted: NDArray[np.uint8] | None = None
        if tombstones is not None:
            if not tombstones.is_file():
                raise UserError(f"{tombstones} is missing: the index is damaged, build it again")
            self._deleted = open_array(tombstones, (-(-self.rows // 8),), np.dtype(np.uint8))
        shape = SegmentVectors(
            rows=self.manifest.rows,
            dim=self.manifest.dim,
            fused_dim=self.manifest.fused_dim,
            planes=self.manifest.planes,
            originals=self.manifest.originals,
            device=device,
        )
        self.planes = [shape.plane(directory, k) for k in range(len(shape.planes))]
        self.fused = None if shape.fused_dim is None else shape.fused(directory)
        self._coarse: dict[str, Coarse] = {}

    @property
    def rows(self) -> int:
        """Documents, deleted ones included."""
        return self.manifest.rows

    @cached_property
    def live(self) -> NDArray[np.bool_]:
        """(N,) True where a document is not deleted; read on first use."""
        if self._deleted is None:
            return np.ones(self.rows, dtype=bool)
        return ~np.unpackbits(self._deleted, count=self.rows, bitorder="little").astype(bool)

    @cached_property
    def keys(self) -> NDArray[np.uint64]:
        """(N,) tie-breaker of every document."""
        return open_array(self.directory / KEYS_FILE, (self.rows,), np.dtype(np.uint64))

    def vectors_at(self, position: int) -> Plane:
        """The plane at a position, or the fused vectors at `FUSED_POSITION`."""
        if position != FUSED_POSITION:
            return self.planes[position]
        assert self.fused is not None
        return self.fused

    def hold(self) -> None:
        """Opens every file now: it stays readable when a later generation's writer deletes it.

        Raises:
            UserError: a file is gone or damaged.
        """
        _ = self.keys, self.live
        for plane in (*self.planes, *([] if self.fused is None else [self.fused])):
            plane.hold()
        for key in self.coarse_keys:
            # the codes of the others are those of the planes, or in an open file
            if isinstance(coarse := self.coarse(key), PackedList):
                coarse.hold()
        if self.manifest.lexical is not None:
            self.postings.hold()

    def coarse(self, key: str) -> Coarse:
        """The coarse list of a key, mapped on first use."""
        if key not in self._coarse:
            self._coarse[key] = self._open_coarse(key)
        return self._coarse[key]

    def _open_coarse(self, key: str) -> Coarse:
        description = dict(self.manifest.coarse.get(key, {}))
        if description.get("kind") in (PACKED, BITS):
            [listed] = self._listed(key)
            kind = PackedList if description["kind"] == PACKED else BitsList
            return kind(self.directory, description, listed)
        if self.is_scanned:
            return ScanList(self._listed(key))
        return CoarseList(self.directory, description, gpu=(self.device or "").startswith("cuda"))

    @cached_property
    def is_scanned(self) -> bool:
        """Whether the coarse stage scans all documents, so that every key is there."""
        return all(entry["kind"] in SCANS for entry in self.manifest.coarse.values())

    def listed_vectors(self, key: str) -> int:
        """Vectors of each document that a coarse key compares."""
        return sum(part.num_vectors for part in self._listed(key))

    def _listed(self, key: str) -> list[Listed]:
        if key == FUSED:
            return [Listed(self.vectors_at(FUSED_POSITION), 1)]
        return listed_of(key, self.planes, self.manifest.planes)

    @cached_property
    def coarse_keys(self) -> set[str]:
        """The coarse keys that can be searched here."""
        keys = {"first", "prefix"} if self.is_scanned else set(self.manifest.coarse)
        return keys | {FUSED} if self.is_scanned and self.fused is not None else keys

    @cached_property
    def postings(self) -> Postings:
        """The postings of its texts, opened on first use."""
        return Postings(self.directory)

    def count_texts(
        self, entry: SegmentEntry, live: NDArray[np.bool_] | None = None
    ) -> SegmentEntry:
        """The entry with what a generation stores of the texts of its live rows.

        Args:
            entry: how the generation names this segment.
            live: (N,) True where a row is not deleted; None counts all rows.
        """
        if self.manifest.lexical is None:
            return entry
        lengths = self.postings.lengths
        counts = count_texts(lengths if live is None else lengths[live])
        return replace(entry, text_documents=counts["documents"], text_tokens=counts["tokens"])

    def verify(self) -> int:
        """Reads every file and checks it against its checksum; returns the bytes read.

        Raises:
            UserError: names the first file that differs.
        """
        if hash_file(self.directory / SEGMENT_FILE) != self._entry.manifest_sha256:
            raise UserError(f"{self.directory / SEGMENT_FILE} differs from its generation's record")
        expected = {
            self.directory / name: file.sha256 for name, file in self.manifest.files.items()
        }
        if self._tombstones is not None and self._entry.tombstones_sha256 is not None:
            expected[self._tombstones] = self._entry.tombstones_sha256
        for path, checksum in expected.items():
            if hash_file(path) != checksum:
                raise UserError(
                    f"{path} does not match its checksum: the index is damaged, build it again"
                )
        return sum(file.bytes for file in self.manifest.files.values())
