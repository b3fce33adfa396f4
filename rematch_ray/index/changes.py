"""Changes of an index: add or replace documents, delete them, make one segment of many.

Segments never change. A change writes a new segment, or a new bitmap of deleted rows for an old
one, and publishes a generation that names them; it is on disk before it is said to be done, and
readers find the generation before it or the one after. Ids are the user's and keep their meaning;
rows are nobody's business. Middle floor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from rematch_ray.errors import UserError
from rematch_ray.index.coarse.sizes import PACKED_FROM_DOCUMENTS, SCANS
from rematch_ray.index.coarse.training import CoarseWriter
from rematch_ray.index.generation import Generation, read_current
from rematch_ray.index.lexical.settings import read_lexical
from rematch_ray.index.payload_types import join_types
from rematch_ray.index.revision import (
    Change,
    append_rows,
    delete_known,
    publish_change,
    refuse_other_fields,
)
from rematch_ray.index.segment import Segment
from rematch_ray.index.shards import EmbeddingBatch, EmbeddingShards
from rematch_ray.index.store import add_segment, describe_index, segment_name, writing

__all__ = ["Change", "add_documents", "delete_documents", "merge_segments"]


def add_documents(path: str | Path, embeddings: str | Path, *, batch_rows: int = 1024) -> Change:
    """Adds the documents of an embedding directory; those whose ids are there are replaced.

    Args:
        path: index directory.
        embeddings: embedding directory of the document side, made by the index's model.
        batch_rows: rows read at once.

    Returns:
        How many were added and replaced.

    Raises:
        UserError: not an index, embeddings of another model, side, instruction or shape, a payload
            field of another kind, repeated ids, or another writer at work; the index stays as it
            was.
    """
    path, shards = Path(path), EmbeddingShards.open(embeddings)
    read_current(path)
    if shards.num_rows == 0:
        raise UserError(f"{shards.path} holds no rows: embed at least one document")
    with writing(path) as number:
        refuse_other_fields(shards, Generation(path))
        return append_rows(path, number, shards, batch_rows=batch_rows)


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
        return delete_known(Generation(path), number, wanted)


def merge_segments(
    path: str | Path,
    *,
    choose: Callable[[Sequence[int]], Sequence[int]] | None = None,
    batch_rows: int = 1024,
) -> Change:
    """Makes one segment of all or of some, without the deleted documents.

    Hits stay the same with all candidates, and with those of a coarse kind that scores every
    document and stays what it was; a merge may make another (docs/index.md).

    Args:
        path: index directory.
        choose: positions of the segments to merge, given the live documents of each; None merges
            all.
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
        manifest = generation.manifest
        chosen = _worth_merging(generation, choose)
        if not chosen:
            return Change(describe_index(path))
        segments = [generation.segments[place] for place in chosen]
        # a few small ones are no reason to train, but a scan's own kind is passed on: of a shard,
        # the others have it
        keeps_kind = manifest.coarse_kind in SCANS and any(
            entry["kind"] == manifest.coarse_kind
            for segment in segments
            for entry in segment.manifest.coarse.values()
        )
        lists = CoarseWriter(
            path,
            keys=generation.coarse_keys,
            kind=manifest.coarse_kind,
            trained=manifest.coarse_trained,
            scan_below=0 if choose is None or keeps_kind else PACKED_FROM_DOCUMENTS,
        )
        entry = add_segment(
            path,
            segment_name(number),
            _live_batches(segments, batch_rows),
            rows=sum(int(segment.live.sum()) for segment in segments),
            dim=manifest.dim,
            fused_dim=manifest.fused_dim,
            planes=generation.planes,
            lexical=read_lexical(manifest.lexical, path),
            fields=join_types(segment.manifest.fields for segment in segments),
            coarse=lists,
            originals=generation.has_originals,
        )
        others = [e for place, e in enumerate(manifest.segments) if place not in set(chosen)]
        info = publish_change(
            generation, number, [*others, entry], changed=0, lists=lists, source=manifest.source
        )
        return Change(info, merged=len(segments))


def _worth_merging(
    generation: Generation, choose: Callable[[Sequence[int]], Sequence[int]] | None
) -> list[int]:
    manifest = generation.manifest
    if choose is None:
        is_one = len(manifest.segments) == 1 and manifest.live == manifest.documents
        return [] if is_one or not manifest.live else list(range(len(manifest.segments)))
    chosen = list(choose([entry.rows - entry.deleted for entry in manifest.segments]))
    return chosen if len(chosen) > 1 else []


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
