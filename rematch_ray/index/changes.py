"""Changes of an index: add or replace documents, delete them, make one segment of many.

Segments never change. A change writes a new segment, or a new bitmap of deleted rows for an old
one, and publishes a generation that names them; it is on disk before it is said to be done, and
readers find the generation before it or the one after. Ids are the user's and keep their meaning;
rows are nobody's business. Middle floor.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.index.coarse_kinds import IVF_FROM_DOCUMENTS
from rematch_ray.index.coarse_training import CoarseWriter
from rematch_ray.index.generation import SEGMENTS, TOMBSTONES, Generation, read_current
from rematch_ray.index.identity import check_identity
from rematch_ray.index.lexical_settings import read_lexical
from rematch_ray.index.manifest import SegmentEntry, sync_directory
from rematch_ray.index.segment import Segment
from rematch_ray.index.shards import EmbeddingBatch, EmbeddingShards
from rematch_ray.index.store import (
    IndexInfo,
    add_segment,
    describe_index,
    now,
    publish,
    segment_name,
    software,
    writing,
)
from rematch_ray.scoring.budget import Ladder

_IDS_AT_ONCE = 8192


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


def add_documents(path: str | Path, embeddings: str | Path, *, batch_rows: int = 1024) -> Change:
    """Adds the documents of an embedding directory; those whose ids are there are replaced.

    Args:
        path: index directory.
        embeddings: embedding directory of the document side, made by the index's model.
        batch_rows: rows read at once.

    Returns:
        How many were added and replaced.

    Raises:
        UserError: not an index, embeddings of another model, side, instruction or shape, repeated
            ids, or another writer at work; the index stays as it was.
    """
    path, shards = Path(path), EmbeddingShards.open(embeddings)
    read_current(path)
    with writing(path) as number:
        generation = Generation(path)
        manifest = generation.manifest
        _refuse_other_vectors(shards, generation)
        lists = CoarseWriter(
            path,
            keys=generation.coarse_keys,
            kind=manifest.coarse_kind,
            trained=manifest.coarse_trained,
            scan_below=IVF_FROM_DOCUMENTS,
        )
        entry = add_segment(
            path,
            segment_name(number),
            shards.batches(batch_rows),
            rows=shards.num_rows,
            dim=manifest.dim,
            fused_dim=manifest.fused_dim,
            planes=generation.planes,
            lexical=read_lexical(manifest.lexical, path),
            fields=shards.payload_fields(),
            coarse=lists,
            originals=generation.has_originals,
        )
        new = Segment(path / SEGMENTS / entry.name, entry)
        before = manifest.live
        entries = _mark_deleted(generation, number, new.payload.ids())
        replaced = before - sum(e.rows - e.deleted for e in entries)
        info = _publish(generation, number, [*_with_documents(entries), entry], lists)
        return Change(info, added=entry.rows - replaced, replaced=replaced)


def delete_documents(path: str | Path, ids: Iterable[str]) -> Change:
    """Deletes documents by their ids; ids that are not there are counted, not refused.

    Args:
        path: index directory.
        ids: of the documents.

    Returns:
        How many were deleted, and how many ids were unknown.

    Raises:
        UserError: not an index, or another writer at work.
    """
    path = Path(path)
    read_current(path)
    wanted = list(dict.fromkeys(ids))
    with writing(path) as number:
        generation = Generation(path)
        known = sum(len(generation.rows_of(some)) for some in _chunks(wanted, _IDS_AT_ONCE))
        if not known:
            return Change(describe_index(path), unknown=len(wanted))
        entries = _mark_deleted(generation, number, wanted)
        # an index without a document keeps a segment: its shape, its planes
        info = _publish(generation, number, _with_documents(entries) or entries[:1])
        return Change(info, deleted=known, unknown=len(wanted) - known)


def merge_segments(path: str | Path, *, batch_rows: int = 1024) -> Change:
    """Makes one segment of all, without the deleted documents; hits stay the same.

    Args:
        path: index directory.
        batch_rows: rows copied at once.

    Returns:
        How many segments became one: 0 where nothing was to be gained.

    Raises:
        UserError: not an index, or another writer at work.
    """
    path = Path(path)
    read_current(path)
    with writing(path) as number:
        generation = Generation(path)
        manifest, segments = generation.manifest, generation.segments
        if not manifest.live or (len(segments) == 1 and manifest.live == manifest.documents):
            return Change(describe_index(path))
        fields: dict[str, str] = {}
        for segment in segments:
            fields.update(segment.manifest.fields)
        lists = CoarseWriter(
            path,
            keys=generation.coarse_keys,
            kind=manifest.coarse_kind,
            trained=manifest.coarse_trained,
            scan_below=0,
        )
        entry = add_segment(
            path,
            segment_name(number),
            _live_batches(segments, batch_rows),
            rows=manifest.live,
            dim=manifest.dim,
            fused_dim=manifest.fused_dim,
            planes=generation.planes,
            lexical=read_lexical(manifest.lexical, path),
            fields=fields,
            coarse=lists,
            originals=generation.has_originals,
        )
        return Change(_publish(generation, number, [entry], lists), merged=len(segments))


def _refuse_other_vectors(shards: EmbeddingShards, generation: Generation) -> None:
    manifest = generation.manifest
    if shards.num_rows == 0:
        raise UserError(f"{shards.path} holds no rows: embed at least one document")
    check_identity(shards.identity, manifest.identity)
    needed = Ladder.parse(manifest.ladder).num_document_vectors
    pairs: Mapping[str, tuple[Any, Any]] = {
        "side": (shards.side, manifest.side),
        "instruction": (shards.manifest.get("instruction"), manifest.instruction),
        "embedding_dim": (shards.dim, manifest.dim),
        "fused_dim": (shards.fused_dim, manifest.fused_dim),
        "vectors per document": (min(shards.num_vectors, needed), needed),
    }
    for what, (given, held) in pairs.items():
        if given != held:
            raise UserError(
                f"{shards.path} has {what} {given!r}, the index {generation.path} {held!r}: "
                "embed the documents as those of the index were"
            )


def _mark_deleted(generation: Generation, number: int, ids: Sequence[str]) -> list[SegmentEntry]:
    """The generation's segments, each with a new bitmap where it holds some of the ids."""
    entries = []
    folder = generation.path / TOMBSTONES
    for entry, segment in zip(generation.manifest.segments, generation.segments, strict=True):
        live = segment.live.copy()
        for some in _chunks(ids, _IDS_AT_ONCE):
            live[list(segment.payload.rows_of(some).values())] = False
        deleted = int((~live).sum())
        if deleted == entry.deleted:
            entries.append(entry)
            continue
        name = f"{number:06d}-{entry.name}.npy"
        _write_bitmap(folder / name, ~live)
        changed = dataclasses.replace(entry, tombstones=f"{TOMBSTONES}/{name}", deleted=deleted)
        entries.append(segment.count_texts(changed, live))
    sync_directory(folder)
    return entries


def _with_documents(entries: Sequence[SegmentEntry]) -> list[SegmentEntry]:
    return [entry for entry in entries if entry.deleted < entry.rows]


def _write_bitmap(path: Path, deleted: NDArray[np.bool_]) -> None:
    with open(path, "wb") as file:
        np.save(file, np.packbits(deleted, bitorder="little"))
        file.flush()
        os.fsync(file.fileno())


def _publish(
    generation: Generation,
    number: int,
    segments: Sequence[SegmentEntry],
    lists: CoarseWriter | None = None,
) -> IndexInfo:
    trained = generation.manifest.coarse_trained if lists is None else lists.trained
    manifest = dataclasses.replace(
        generation.manifest,
        generation=number,
        created=now(),
        segments=tuple(segments),
        software=software(),
        coarse_trained=trained,
    )
    return publish(generation.path, manifest)


def _live_batches(segments: Sequence[Segment], batch_rows: int) -> Iterator[EmbeddingBatch]:
    for segment in segments:
        live = np.flatnonzero(segment.live)
        for start in range(0, len(live), batch_rows):
            rows = live[start : start + batch_rows]
            documents = segment.payload.documents(rows.tolist())
            sources = segment.payload.sources(rows.tolist())
            yield EmbeddingBatch(
                ids=[documents[row][0] for row in rows.tolist()],
                vectors=np.concatenate([plane.read(rows) for plane in segment.planes], axis=1),
                fused=None if segment.fused is None else segment.fused.read(rows)[:, 0],
                sources=[sources[row] for row in rows.tolist()],
                payloads=[documents[row][1] for row in rows.tolist()],
            )


def _chunks(ids: Sequence[str], size: int) -> Iterator[list[str]]:
    left = iter(ids)
    while some := list(islice(left, size)):
        yield some
