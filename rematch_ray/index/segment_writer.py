"""Writing a segment: planes, ids, payloads, coarse lists and postings from a stream of batches.

Holds no more than one window of them (likeness.py). Knows nothing of generations or deletions.
Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from rematch_ray.index.coarse.entries import Entries
from rematch_ray.index.coarse.training import CoarseWriter
from rematch_ray.index.lexical.postings import POSTINGS_FILES, write_postings
from rematch_ray.index.lexical.settings import LexicalSettings
from rematch_ray.index.likeness import by_likeness
from rematch_ray.index.manifest import (
    FileEntry,
    SegmentManifest,
    describe_file,
    sync_directory,
    sync_file,
    write_manifest,
)
from rematch_ray.index.payload import PAYLOAD_FILE, PayloadStore, PayloadWriter, document_key
from rematch_ray.index.planes import FUSED, PlaneWriter, range_name
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
    coarse: CoarseWriter,
    originals: bool = True,
    lexical: LexicalSettings | None = None,
) -> str:
    """Writes a whole segment from a stream of batches; its manifest comes last.

    Args:
        directory: an empty directory.
        batches: the documents, of arrays that stay as they are: some are held at a time, and
            written in another order.
        rows: documents that the batches will give.
        dim: D.
        fused_dim: F, or None.
        planes: document token ranges.
        fields: payload fields and their types, as a filter may name them.
        coarse: makes the coarse lists, and knows of which keys and kind.
        originals: whether to keep float16 vectors beside the 8-bit ones, for exact scores.
        lexical: which texts to index, or None.

    Returns:
        SHA-256 of the segment's manifest.

    Raises:
        UserError: an id occurs twice, or a payload cannot be stored.
    """
    shape = SegmentVectors(rows, dim, fused_dim, tuple(planes), originals)
    files = _write_documents(directory, by_likeness(batches), shape)
    lists = {
        key: coarse.write(directory, key, Entries(shape.listed(directory, key)))
        for key in coarse.keys
    }
    made = [entry["file"] for entry in lists.values() if "file" in entry]
    postings = None if lexical is None else _index_texts(directory, lexical)
    for name in [KEYS_FILE, PAYLOAD_FILE, *made, *(POSTINGS_FILES if lexical else ())]:
        sync_file(directory / name)
        files[name] = describe_file(directory / name)
    manifest = SegmentManifest(
        rows=rows,
        dim=dim,
        fused_dim=fused_dim,
        originals=originals,
        planes=tuple(planes),
        files=files,
        coarse=lists,
        fields={"source": "string", **fields},
        lexical=postings,
    )
    digest = write_manifest(directory / SEGMENT_FILE, manifest.to_json())
    sync_directory(directory)
    return digest


def _index_texts(directory: Path, lexical: LexicalSettings) -> dict[str, int]:
    payload = PayloadStore(directory / PAYLOAD_FILE)
    texts = map(lexical.text_of, payload.payloads())
    return write_postings(directory, texts, lexical.tokeniser())


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
