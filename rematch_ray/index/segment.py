"""A segment: documents written once and never changed, one directory of plain files.

    plane_0_1.npy ...   vectors by token range      keys.npy         tie-breakers
    fused.npy           fused vectors               payload.sqlite   ids and payloads
    coarse_*.faiss      coarse lists                lexical*         postings of its texts
    segment.json        what is here, with checksums

Knows nothing of other segments, deletions or searches. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.index.coarse import CoarseKind, CoarseList, build_coarse, coarse_file
from rematch_ray.index.lexical_settings import LexicalSettings
from rematch_ray.index.manifest import (
    FileEntry,
    SegmentEntry,
    SegmentManifest,
    describe_file,
    hash_file,
    sync_directory,
    sync_file,
    write_manifest,
)
from rematch_ray.index.payload import PAYLOAD_FILE, PayloadStore, PayloadWriter, document_key
from rematch_ray.index.planes import DTYPE, PlaneWriter, open_plane, plane_file
from rematch_ray.index.postings import POSTINGS_FILES, Postings, count_texts, write_postings
from rematch_ray.index.shards import EmbeddingBatch

SEGMENT_FILE = "segment.json"
FUSED_FILE = "fused.npy"
KEYS_FILE = "keys.npy"


def write_segment(
    directory: Path,
    batches: Iterable[EmbeddingBatch],
    *,
    rows: int,
    dim: int,
    fused_dim: int | None,
    planes: Sequence[tuple[int, int]],
    fields: dict[str, str],
    coarse_kind: CoarseKind = "auto",
    lexical: LexicalSettings | None = None,
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
        coarse_kind: see `build_coarse`.
        lexical: which texts to index, or None.

    Returns:
        SHA-256 of the segment's manifest.

    Raises:
        UserError: an id occurs twice, or a payload cannot be stored.
    """
    files = _write_vectors(directory, batches, rows, dim, fused_dim, planes)
    coarse = {}
    for key, vectors in _coarse_vectors(directory, rows, dim, fused_dim, planes[0]).items():
        coarse[key] = build_coarse(directory / coarse_file(key), vectors, kind=coarse_kind)
    postings = None if lexical is None else _index_texts(directory, lexical)
    written = [KEYS_FILE, PAYLOAD_FILE, *(entry["file"] for entry in coarse.values())]
    for name in [*written, *(POSTINGS_FILES if lexical else ())]:
        sync_file(directory / name)
        files[name] = describe_file(directory / name)
    manifest = SegmentManifest(
        rows=rows,
        dim=dim,
        fused_dim=fused_dim,
        dtype=DTYPE.name,
        planes=tuple(planes),
        files=files,
        coarse=coarse,
        fields={"source": "string", **fields},
        lexical=postings,
    )
    digest = write_manifest(directory / SEGMENT_FILE, manifest.to_json())
    sync_directory(directory)
    return digest


def _write_vectors(
    directory: Path,
    batches: Iterable[EmbeddingBatch],
    rows: int,
    dim: int,
    fused_dim: int | None,
    planes: Sequence[tuple[int, int]],
) -> dict[str, FileEntry]:
    keys = np.empty(rows, dtype=np.uint64)
    done = 0
    with ExitStack() as open_files:
        writers = {
            (start, stop): open_files.enter_context(
                PlaneWriter(directory / plane_file(start, stop), (rows, stop - start, dim))
            )
            for start, stop in planes
        }
        fused = None
        if fused_dim is not None:
            fused = open_files.enter_context(PlaneWriter(directory / FUSED_FILE, (rows, fused_dim)))
        payload = PayloadWriter(directory / PAYLOAD_FILE)
        open_files.callback(payload.close)
        for batch in batches:
            for (start, stop), writer in writers.items():
                writer.append(batch.vectors[:, start:stop])
            if fused is not None and batch.fused is not None:
                fused.append(batch.fused)
            payload.append(batch.ids, batch.sources, batch.payloads)
            keys[done : done + len(batch.ids)] = [document_key(name) for name in batch.ids]
            done += len(batch.ids)
        payload.finish()
        files = {writer.path.name: writer.finish() for writer in writers.values()}
        if fused is not None:
            files[FUSED_FILE] = fused.finish()
    np.save(directory / KEYS_FILE, keys)
    return files


def _index_texts(directory: Path, lexical: LexicalSettings) -> dict[str, int]:
    payload = PayloadStore(directory / PAYLOAD_FILE)
    texts = map(lexical.text_of, payload.payloads())
    return write_postings(directory, texts, lexical.tokeniser())


def _coarse_vectors(
    directory: Path, rows: int, dim: int, fused_dim: int | None, first_plane: tuple[int, int]
) -> dict[str, NDArray[np.float16]]:
    start, stop = first_plane
    first = open_plane(directory / plane_file(start, stop), (rows, stop - start, dim))
    vectors = {"first": first[:, 0]}
    if fused_dim is not None:
        vectors["fused"] = open_plane(directory / FUSED_FILE, (rows, fused_dim))
    return vectors


class Segment:
    """An open segment. Opening checks names and sizes; vectors are mapped when first read.

    Args:
        directory: the segment's directory.
        entry: how the generation names it.
        tombstones: the bitmap file, or None.

    Raises:
        UserError: a file is missing or of another size than its manifest says.
    """

    def __init__(
        self, directory: Path, entry: SegmentEntry, tombstones: Path | None = None
    ) -> None:
        self.directory = directory
        self.manifest = SegmentManifest.read(directory / SEGMENT_FILE)
        self._entry = entry
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
        self.live = _read_live(tombstones, entry.rows)
        self._planes: dict[int, NDArray[np.float16]] = {}
        self._coarse: dict[str, CoarseList] = {}

    @property
    def rows(self) -> int:
        """Documents, deleted ones included."""
        return self.manifest.rows

    @cached_property
    def keys(self) -> NDArray[np.uint64]:
        """(N,) tie-breaker of every document."""
        return np.load(self.directory / KEYS_FILE, mmap_mode="r")

    @cached_property
    def fused(self) -> NDArray[np.float16]:
        """(N, F) fused vectors, mapped."""
        assert self.manifest.fused_dim is not None
        return open_plane(self.directory / FUSED_FILE, (self.rows, self.manifest.fused_dim))

    def plane(self, position: int) -> NDArray[np.float16]:
        """(N, n_k, D) vectors of the k-th token range, mapped on first use."""
        if position not in self._planes:
            start, stop = self.manifest.planes[position]
            shape = (self.rows, stop - start, self.manifest.dim)
            path = self.directory / plane_file(start, stop)
            self._planes[position] = open_plane(path, shape)
        return self._planes[position]

    def coarse(self, key: str) -> CoarseList:
        """The coarse list of a key, mapped on first use."""
        if key not in self._coarse:
            self._coarse[key] = CoarseList(self.directory, dict(self.manifest.coarse[key]))
        return self._coarse[key]

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
        for name, file in self.manifest.files.items():
            if hash_file(self.directory / name) != file.sha256:
                raise UserError(
                    f"{self.directory / name} does not match its checksum: "
                    "the index is damaged, build it again"
                )
        return sum(file.bytes for file in self.manifest.files.values())


def _read_live(tombstones: Path | None, rows: int) -> NDArray[np.bool_]:
    if tombstones is None:
        return np.ones(rows, dtype=bool)
    try:
        bits = np.load(tombstones, allow_pickle=False)
    except (OSError, EOFError, ValueError) as broken:
        raise UserError(f"{tombstones} cannot be read ({broken}): the index is damaged") from broken
    return ~np.unpackbits(bits, count=rows, bitorder="little").astype(bool)
