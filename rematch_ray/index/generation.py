"""A generation: the segments that make an index at one moment, as one sequence of documents.

Rows count through the segments in order. Reads only; what is on disk below an open generation never
changes. Knows nothing of budgets, candidates or scores. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.index.coarse.keys import COARSE_KEYS
from rematch_ray.index.coarse.scan import ScanList
from rematch_ray.index.filters import check_filter
from rematch_ray.index.manifest import GenerationManifest
from rematch_ray.index.payload_types import join_types
from rematch_ray.index.queries import Codes
from rematch_ray.index.segment import FUSED_POSITION, Segment
from rematch_ray.scoring.budget import Budget

CURRENT_FILE = "CURRENT"
GENERATIONS = "generations"
SEGMENTS = "segments"
TOMBSTONES = "tombstones"
Rows = NDArray[np.int64]


def generation_file(path: Path, name: str) -> Path:
    """Manifest file of a generation."""
    return path / GENERATIONS / f"{name}.json"


def read_current(path: Path) -> str:
    """Name of the generation that an index directory publishes.

    Raises:
        UserError: not an index directory.
    """
    try:
        return (path / CURRENT_FILE).read_text().strip()
    except OSError as missing:
        raise UserError(
            f"{path} is not an index: it has no {CURRENT_FILE} file; "
            "make one with 'rematch-ray index build'"
        ) from missing


class Generation:
    """An open generation.

    Args:
        path: index directory.
        name: generation; None opens the published one.
        device: of torch, `cuda` for example, where 8-bit vectors are held and scored, and coarse
            lists searched where FAISS can; scores are the same, and hits but for the coarse kind
            `scan1`, of which a few more are found. None: the CPU's own kernel.

    Raises:
        UserError: not an index, another format version, or a file missing or of the wrong size.
    """

    is_held = False  # whether every file is open: see `hold`

    def __init__(self, path: Path, name: str | None = None, *, device: str | None = None) -> None:
        self.path = path
        self.device = device
        self.name = name or read_current(path)
        self.manifest = GenerationManifest.read(generation_file(path, self.name))
        self.segments = [
            Segment(
                path / SEGMENTS / entry.name,
                entry,
                None if entry.tombstones is None else path / entry.tombstones,
                device=device,
            )
            for entry in self.manifest.segments
        ]
        self._line_up()

    def hold(self) -> None:
        """Opens every file now; without it files are mapped when first read, and by then a writer
        may have deleted those of a generation that is not one of the last two.

        Raises:
            UserError: a file is gone or damaged.
        """
        for segment in self.segments:
            segment.hold()
        _ = self.keys, self.live  # the first search need not make them
        self.is_held = True

    def _line_up(self) -> None:
        self.offsets = np.cumsum([0, *(segment.rows for segment in self.segments)])
        self._all_live = self.manifest.live == self.manifest.documents
        # of every rung that was asked for: looked up by each search, more than once
        self._positions: dict[Budget, list[int]] = {}
        self._largest_errors: dict[Budget, float] = {}

    @cached_property
    def live(self) -> NDArray[np.bool_]:
        """(rows,) True where a document is not deleted; made by the first search, not by opening,
        whose time does not grow with the documents.
        """
        parts = [segment.live for segment in self.segments]
        live = parts[0] if len(parts) == 1 else np.concatenate(parts)
        live.flags.writeable = False  # searches without a filter share it
        return live

    @cached_property
    def keys(self) -> NDArray[np.uint64]:
        """(rows,) tie-breaker of every document: as mapped, or copied by the first search where
        there are several segments.
        """
        if len(self.segments) == 1:
            return np.asarray(self.segments[0].keys)
        return np.concatenate([segment.keys for segment in self.segments])

    @property
    def num_shards(self) -> int:
        """Shards that the index is split into."""
        return 1

    @property
    def rows(self) -> int:
        """Documents, deleted ones included."""
        return int(self.offsets[-1])

    @property
    def planes(self) -> tuple[tuple[int, int], ...]:
        """Document token ranges, the same in every segment."""
        return self.segments[0].manifest.planes

    @property
    def has_originals(self) -> bool:
        """Whether every segment keeps float16 vectors, so that scores can be exact."""
        return all(segment.manifest.originals for segment in self.segments)

    def positions(self, rung: Budget) -> list[int]:
        """Planes that a rung reads; -1 stands for the fused vectors."""
        if rung not in self._positions:
            read = [k for k, (start, _) in enumerate(self.planes) if start < rung.r_d]
            self._positions[rung] = [FUSED_POSITION] if rung.is_fused else read
        return self._positions[rung]

    def split(self, rows: Rows) -> Iterator[tuple[Segment, NDArray[np.intp] | None, Rows]]:
        """The segments that hold some rows: segment, which of the rows (None = all), its own rows.

        Args:
            rows: any rows, in any order.
        """
        if len(self.segments) == 1:
            yield self.segments[0], None, rows
            return
        owner = np.searchsorted(self.offsets, rows, side="right") - 1
        for position, segment in enumerate(self.segments):
            mine = np.flatnonzero(owner == position)
            if len(mine):
                yield segment, mine, rows[mine] - self.offsets[position]

    def read_plane(self, position: int, rows: Rows) -> NDArray[np.float16]:
        """Vectors of the k-th token range for some documents, (len(rows), n_k, D)."""
        start, stop = self.planes[position]
        vectors = np.empty((len(rows), stop - start, self.manifest.dim), np.float16)
        for segment, mine, local in self.split(rows):
            vectors[slice(None) if mine is None else mine] = segment.planes[position].read(local)
        return vectors

    def read_fused(self, rows: Rows) -> NDArray[np.float16]:
        """Fused vectors of some documents, (len(rows), F)."""
        assert self.manifest.fused_dim is not None
        vectors = np.empty((len(rows), self.manifest.fused_dim), np.float16)
        for segment, mine, local in self.split(rows):
            vectors[slice(None) if mine is None else mine] = segment.vectors_at(-1).read(local)[
                :, 0
            ]
        return vectors

    def errors(self, rows: Rows, rung: Budget) -> NDArray[np.float32]:
        """(len(rows),) largest distance between a vector of the rung and its 8-bit form."""
        positions, errors = self.positions(rung), np.zeros(len(rows), np.float32)
        for segment, mine, local in self.split(rows):
            found = segment.vectors_at(positions[0]).errors[local]
            for k in positions[1:]:
                np.maximum(found, segment.vectors_at(k).errors[local], out=found)
            if mine is None:
                return found
            errors[mine] = found
        return errors

    def largest_error(self, rung: Budget) -> float:
        """The largest of all `errors`."""
        if rung not in self._largest_errors:
            self._largest_errors[rung] = max(
                segment.vectors_at(k).largest_error
                for segment in self.segments
                for k in self.positions(rung)
            )
        return self._largest_errors[rung]

    @property
    def coarse_keys(self) -> tuple[str, ...]:
        """The coarse keys of which every segment has a list."""
        held = [segment.coarse_keys for segment in self.segments]
        return tuple(key for key in COARSE_KEYS if all(key in keys for keys in held))

    def find_coarse(
        self,
        key: str,
        query: Codes,
        limit: int,
        allowed: NDArray[np.bool_],
        *,
        nprobe: int | None = None,
    ) -> tuple[Rows, NDArray[np.float32]]:
        """Rows and scores of the best documents of every segment on one coarse list.

        At least the `limit` best of the whole generation are among them (with an exact list), and
        all that equal the last of their segment.

        Args:
            key: of the lists.
            query: one query's vectors that the key compares, (1, K, D).
            limit: how many are wanted.
            allowed: (rows,) True where a document may be found.
            nprobe: inverted lists to look through; None the stored number.
        """
        rows, scores = [], []
        everything = allowed is self.live and self._all_live
        for offset, segment in zip(self.offsets.tolist(), self.segments):
            mask = None if everything else allowed[offset : offset + segment.rows]
            if mask is not None and mask.all():
                mask = None
            coarse = segment.coarse(key)
            if isinstance(coarse, ScanList):
                found, score = coarse.search_coded(query, limit, allowed=mask)
            else:
                vectors = query.vectors[0].astype(np.float32)
                found, score = coarse.search(vectors, limit, allowed=mask, nprobe=nprobe)
            rows.append(found + offset if offset else found)
            scores.append(score)
        if len(rows) == 1:
            return rows[0], scores[0]
        return np.concatenate(rows), np.concatenate(scores)

    def verify(self) -> int:
        """Reads every file and checks it against its checksum; returns the bytes read.

        Raises:
            UserError: names the first file that differs.
        """
        trained = self.manifest.coarse_trained.values()
        for entry in trained:
            entry.check(self.path)
        segments = sum(segment.verify() for segment in self.segments)
        return segments + sum(entry.bytes for entry in trained)

    def documents(self, rows: Rows) -> list[tuple[str, dict[str, Any]]]:
        """Id and payload of each row, in the order asked."""
        found: dict[int, tuple[str, dict[str, Any]]] = {}
        asked = rows.tolist()
        for offset, segment in zip(self.offsets.tolist(), self.segments):
            mine = [row - offset for row in asked if 0 <= row - offset < segment.rows]
            if mine:
                local = segment.payload.documents(mine)
                found |= {row + offset: document for row, document in local.items()}
        return [found[row] for row in asked]

    def sources(self, rows: Rows) -> list[str]:
        """Source of each row, in the order asked; "" for none."""
        found = np.full(len(rows), "", dtype=object)
        for segment, mine, local in self.split(rows):
            known = segment.payload.sources(local.tolist())
            found[slice(None) if mine is None else mine] = [known[row] for row in local.tolist()]
        return found.tolist()

    def ids(self) -> list[str]:
        """Ids of all rows, deleted ones included."""
        return [name for segment in self.segments for name in segment.payload.ids()]

    def rows_of(self, ids: Sequence[str]) -> dict[str, int]:
        """Rows of those ids that are here and live."""
        found = {}
        for offset, segment in zip(self.offsets, self.segments):
            for name, row in segment.payload.rows_of(ids).items():
                if segment.live[row]:
                    found[name] = int(offset) + row
        return found

    def sources_of(self, ids: Sequence[str]) -> list[str]:
        """Sources by id; UserError for one that is not here."""
        return self.sources(self._known_rows(ids))

    def fused_of(self, ids: Sequence[str]) -> NDArray[np.float16]:
        """Fused vectors by id, (len(ids), F).

        Raises:
            UserError: an id is not here.
        """
        return self.read_fused(self._known_rows(ids))

    def _known_rows(self, ids: Sequence[str]) -> Rows:
        rows = self.rows_of(ids)
        missing = [name for name in ids if name not in rows]
        if missing:
            raise UserError(f"document '{missing[0]}' is not in the index")
        return np.array([rows[name] for name in ids], np.int64)

    def fields(self) -> dict[str, str]:
        """Payload fields that a filter may name, and their types."""
        return join_types([{"id": "string"}, *(s.manifest.fields for s in self.segments)])

    def select(self, filter: Mapping[str, Any] | None) -> NDArray[np.bool_]:
        """Live documents that pass a filter.

        Args:
            filter: field -> value it must equal, or list of values of which it must equal one; all
                fields must hold. A nested field is written `outer.inner`; a list field passes when
                one of its members does.

        Returns:
            (rows,) True where a document is live and passes.

        Raises:
            UserError: a field that no document has, or a value that is not a scalar.
        """
        return self.passing(check_filter(filter, self.fields())) if filter else self.live

    def passing(self, conditions: Mapping[str, Sequence[Any]]) -> NDArray[np.bool_]:
        """Live documents whose fields hold one of the values each, (rows,); none of a field that is
        not here.
        """
        allowed = self.live
        for field, values in conditions.items():
            passing = np.zeros(self.rows, dtype=bool)
            for offset, segment in zip(self.offsets, self.segments):
                passing[segment.payload.rows_with(field, values) + offset] = True
            allowed = allowed & passing
        return allowed
