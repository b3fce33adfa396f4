"""What every change of an index is made of: new rows, bitmaps of deleted ones, a new generation.

Segments never change: a change writes a new one, or a new bitmap for an old one, and the caller
holds the lock. Middle floor.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.index.coarse.sizes import PACKED_FROM_DOCUMENTS
from rematch_ray.index.coarse.training import CoarseWriter
from rematch_ray.index.generation import SEGMENTS, TOMBSTONES, Generation
from rematch_ray.index.identity import check_identity
from rematch_ray.index.lexical.settings import read_lexical
from rematch_ray.index.manifest import SegmentEntry, hash_file, sync_directory
from rematch_ray.index.payload_types import check_types
from rematch_ray.index.segment import Segment
from rematch_ray.index.sources import RowSource
from rematch_ray.index.store import (
    IndexInfo,
    add_segment,
    describe_index,
    now,
    publish,
    segment_name,
    software,
)
from rematch_ray.scoring.budget import Ladder

IDS_AT_ONCE = 8192


@dataclass(frozen=True)
class Change:
    """What a change did.

    Args:
        info: the index after it.
        added: documents whose ids were new.
        replaced: documents whose ids were there before.
        deleted: documents that are gone.
        unknown: ids to delete that were not there.
        merged: segments that became one.
    """

    info: IndexInfo
    added: int = 0
    replaced: int = 0
    deleted: int = 0
    unknown: int = 0
    merged: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        counts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**self.info.to_json(), **{k: v for k, v in counts.items() if k != "info"}}


def append_rows(
    path: Path,
    number: int,
    rows: RowSource,
    *,
    delete: Sequence[str] = (),
    present: NDArray[np.uint64] | None = None,
    source: Mapping[str, Any] | None = None,
    batch_rows: int = 1024,
) -> Change:
    """Adds rows as a segment and publishes the generation.

    Args:
        path: index directory, its lock held.
        number: of the generation.
        rows: the new ones; documents whose ids are there are replaced.
        delete: ids of documents that are to go; none of the new rows is among them.
        present: keys of documents; those that are not among them are deleted. None deletes none.
        source: what the manifest is to record of where all documents come from.
        batch_rows: rows read at once.

    Returns:
        How many were added, replaced and deleted.

    Raises:
        UserError: see `add_documents`.
    """
    generation = Generation(path)
    _refuse_other_vectors(rows, generation)
    manifest = generation.manifest
    lists = CoarseWriter(
        path,
        keys=generation.coarse_keys,
        kind=manifest.coarse_kind,
        trained=manifest.coarse_trained,
        scan_below=PACKED_FROM_DOCUMENTS,
    )
    entries, ids = [], []
    if rows.num_rows:
        entries = [_segment_of(generation, number, rows, lists, batch_rows)]
        ids = Segment(path / SEGMENTS / entries[0].name, entries[0]).payload.ids()
    old = mark_deleted(generation, number, [*ids, *delete], present=present)
    known = len(known_ids(generation, ids))
    left = sum(entry.rows - entry.deleted for entry in old)
    kept = [*with_documents(old), *entries] or old[:1]
    deleted = manifest.live - known - left
    changed = rows.num_rows + deleted
    return Change(
        publish_change(generation, number, kept, changed=changed, lists=lists, source=source),
        added=rows.num_rows - known,
        replaced=known,
        deleted=deleted,
    )


def refuse_other_fields(rows: RowSource, generation: Generation) -> None:
    """Refuses rows whose payload fields are of other kinds than an index holds.

    Raises:
        UserError: names the first such field.
    """
    check_types(rows.payload_fields(), generation.fields(), rows.where)


def _refuse_other_vectors(rows: RowSource, generation: Generation) -> None:
    manifest = generation.manifest
    check_identity(rows.identity, manifest.identity)
    needed = Ladder.parse(manifest.ladder).num_document_vectors
    pairs: Mapping[str, tuple[Any, Any]] = {
        "side": (rows.side, manifest.side),
        "instruction": (rows.instruction, manifest.instruction),
        "embedding_dim": (rows.dim, manifest.dim),
        "fused_dim": (rows.fused_dim, manifest.fused_dim),
        "vectors per document": (min(rows.num_vectors, needed), needed),
    }
    for what, (given, held) in pairs.items():
        if given != held:
            raise UserError(
                f"{rows.where} has {what} {given!r}, the index {generation.path} {held!r}: "
                "embed the documents as those of the index were"
            )


def _segment_of(
    generation: Generation,
    number: int,
    rows: RowSource,
    lists: CoarseWriter,
    batch_rows: int,
) -> SegmentEntry:
    return add_segment(
        generation.path,
        segment_name(number),
        rows.batches(batch_rows),
        rows=rows.num_rows,
        dim=generation.manifest.dim,
        fused_dim=generation.manifest.fused_dim,
        planes=generation.planes,
        fields=rows.payload_fields(),
        coarse=lists,
        originals=generation.has_originals,
        lexical=read_lexical(generation.manifest.lexical, generation.path),
    )


def mark_deleted(
    generation: Generation,
    number: int,
    ids: Sequence[str],
    *,
    present: NDArray[np.uint64] | None = None,
) -> list[SegmentEntry]:
    """The generation's segments, each with a new bitmap where it holds some of the ids, or keys
    that are not present.
    """
    entries = []
    folder = generation.path / TOMBSTONES
    for entry, segment in zip(generation.manifest.segments, generation.segments, strict=True):
        gone = [
            row
            for some in chunks(ids, IDS_AT_ONCE)
            for row in segment.payload.rows_of(some).values()
        ]
        if present is None and not gone:
            entries.append(entry)  # and its bitmap is not even read
            continue
        live = segment.live.copy()
        if present is not None:
            live &= np.isin(segment.keys, present)
        live[gone] = False
        deleted = int((~live).sum())
        if deleted == entry.deleted:
            entries.append(entry)
            continue
        name = f"{number:06d}-{entry.name}.npy"
        _write_bitmap(folder / name, ~live)
        changed = dataclasses.replace(
            entry,
            tombstones=f"{TOMBSTONES}/{name}",
            tombstones_sha256=hash_file(folder / name),
            deleted=deleted,
        )
        entries.append(segment.count_texts(changed, live))
    sync_directory(folder)
    return entries


def delete_known(generation: Generation, number: int, ids: Sequence[str]) -> Change:
    """Deletes documents by their ids and publishes; nothing where none of them is there.

    Args:
        generation: the one before.
        number: of the new one.
        ids: each once.
    """
    known = len(known_ids(generation, ids))
    if not known:
        return Change(describe_index(generation.path), unknown=len(ids))
    entries = mark_deleted(generation, number, ids)
    # an index without a document keeps a segment: its shape, its planes
    left = with_documents(entries) or entries[:1]
    info = publish_change(generation, number, left, changed=known)
    return Change(info, deleted=known, unknown=len(ids) - known)


def known_ids(generation: Generation, ids: Sequence[str]) -> frozenset[str]:
    """Those of the ids that are here and live."""
    found = (generation.rows_of(some) for some in chunks(ids, IDS_AT_ONCE))
    return frozenset(name for rows in found for name in rows)


def with_documents(entries: Sequence[SegmentEntry]) -> list[SegmentEntry]:
    """Those segments that hold a document that is not deleted."""
    return [entry for entry in entries if entry.deleted < entry.rows]


def _write_bitmap(path: Path, deleted: NDArray[np.bool_]) -> None:
    with open(path, "wb") as file:
        np.save(file, np.packbits(deleted, bitorder="little"))
        file.flush()
        os.fsync(file.fileno())


def publish_change(
    generation: Generation,
    number: int,
    segments: Sequence[SegmentEntry],
    *,
    changed: int,
    lists: CoarseWriter | None = None,
    source: Mapping[str, Any] | None = None,
) -> IndexInfo:
    """Publishes a generation of these segments, otherwise as the one before.

    Args:
        generation: the one before.
        number: of the new one.
        segments: its segments.
        changed: documents added, replaced or deleted.
        lists: what wrote their coarse lists, and may have trained some; None where nothing did.
        source: what the manifest is to record of where all documents come from.
    """
    trained = generation.manifest.coarse_trained if lists is None else lists.trained
    manifest = dataclasses.replace(
        generation.manifest,
        generation=number,
        created=now(),
        segments=tuple(segments),
        software=software(),
        coarse_trained=trained,
        changes=generation.manifest.changes + changed,
        source=source,
    )
    return publish(generation.path, manifest)


def chunks(ids: Sequence[str], size: int) -> Iterator[list[str]]:
    """The ids, so many at a time."""
    left = iter(ids)
    while some := list(islice(left, size)):
        yield some
