"""Writing a segment: planes, ids, payloads and coarse lists from a stream of batches.

Holds no more than one batch. Knows nothing of generations or deletions. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from rematch_ray.index.coarse import build_coarse, coarse_file
from rematch_ray.index.manifest import (
    FileEntry,
    SegmentManifest,
    describe_file,
    sync_directory,
    sync_file,
    write_manifest,
)
from rematch_ray.index.payload import PAYLOAD_FILE, PayloadWriter, document_key
from rematch_ray.index.planes import FUSED, PlaneWriter, range_name
from rematch_ray.index.scan import SCAN, is_scanned
from rematch_ray.index.segment import KEYS_FILE, SEGMENT_FILE, SegmentVectors
from rematch_ray.index.shards import EmbeddingBatch


def write_segment(
    directory: Path,
    batches: Iterable[EmbeddingBatch],
    *,
    rows: int,
    dim: int,
    fused_dim: int | None,
    planes: Sequence[tuple[int, int]],
    fields: dict[str, str],
    originals: bool = True,
    coarse_kind: str = "auto",
) -> str:
    """Writes a whole segment from a stream of batches; its manifest comes last.

    Args:
        directory: an empty directory.
        batches: the documents; no more than one batch is held at a time.
        rows: documents that the batches will give.
        dim: D.
        fused_dim: F, or None.
        planes: document token ranges.
        fields: payload fields and their types, as a filter may name them.
        originals: whether to keep float16 vectors beside the 8-bit ones, for exact scores.
        coarse_kind: `scan`, a kind of `build_coarse`, or `auto`: by size.

    Returns:
        SHA-256 of the segment's manifest.

    Raises:
        UserError: an id occurs twice, or a payload cannot be stored.
    """
    shape = SegmentVectors(rows, dim, fused_dim, tuple(planes), originals)
    files = _write_documents(directory, batches, shape)
    coarse: dict[str, dict[str, Any]] = {}
    for key in ("first", FUSED) if fused_dim is not None else ("first",):
        plane = shape.fused(directory) if key == FUSED else shape.plane(directory, 0)
        if is_scanned(coarse_kind, rows):
            coarse[key] = {"kind": SCAN}
        else:
            vectors = plane.read(slice(None))[:, 0]
            coarse[key] = build_coarse(directory / coarse_file(key), vectors, kind=coarse_kind)
    made = [entry["file"] for entry in coarse.values() if "file" in entry]
    for name in [KEYS_FILE, PAYLOAD_FILE, *made]:
        sync_file(directory / name)
        files[name] = describe_file(directory / name)
    manifest = SegmentManifest(
        rows=rows,
        dim=dim,
        fused_dim=fused_dim,
        originals=originals,
        planes=tuple(planes),
        files=files,
        coarse=coarse,
        fields={"source": "string", **fields},
    )
    digest = write_manifest(directory / SEGMENT_FILE, manifest.to_json())
    sync_directory(directory)
    return digest


def _write_documents(
    directory: Path, batches: Iterable[EmbeddingBatch], shape: SegmentVectors
) -> dict[str, FileEntry]:
    keys = np.empty(shape.rows, dtype=np.uint64)
    done = 0
    with ExitStack() as closing:
        writers = _open_writers(directory, shape, closing)
        payload = PayloadWriter(directory / PAYLOAD_FILE)
        closing.callback(payload.close)
        for batch in batches:
            for start, stop in shape.planes:
                writers[range_name(start, stop)].append(batch.vectors[:, start:stop])
            if FUSED in writers and batch.fused is not None:
                writers[FUSED].append(batch.fused[:, None])
            payload.append(batch.ids, batch.sources, batch.payloads)
            keys[done : done + len(batch.ids)] = [document_key(name) for name in batch.ids]
            done += len(batch.ids)
        payload.finish()
        files: dict[str, FileEntry] = {}
        for writer in writers.values():
            files |= writer.finish()
    np.save(directory / KEYS_FILE, keys)
    return files


def _open_writers(
    directory: Path, shape: SegmentVectors, closing: ExitStack
) -> dict[str, PlaneWriter]:
    sizes = {range_name(start, stop): (stop - start, shape.dim) for start, stop in shape.planes}
    if shape.fused_dim is not None:
        sizes[FUSED] = (1, shape.fused_dim)
    return {
        name: PlaneWriter(
            directory,
            name,
            (shape.rows, *size),
            originals=shape.keeps(name),
            closing=closing,
        )
        for name, size in sizes.items()
    }
