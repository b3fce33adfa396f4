"""What an index writes about itself: the manifests of segments and generations, and how they reach
the disk.

Knows the names, sizes and checksums of files, nothing of what is inside them. Every manifest is
plain JSON, written beside its final name and renamed, so that a reader sees the old or the new one.
Middle floor.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rematch_ray.errors import UserError
from rematch_ray.index.records import read_record, reading

FORMAT_VERSION = 2
_HASH_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class FileEntry:
    """Size and SHA-256 of one file of a segment."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class SegmentManifest:
    """One immutable segment: what its files hold and how to check them.

    Args:
        rows: documents.
        dim: D of the multi-vectors.
        fused_dim: F of the fused vector; None when the model has none.
        originals: whether float16 vectors are kept beside the 8-bit ones.
        planes: document token ranges [start, stop), one plane file each.
        files: every file of the segment but this manifest, by name.
        coarse: coarse lists by key (`fused`, `first`, `prefix`): kind, its file where it has one,
            and its parameters.
        fields: payload fields that a filter may name, with their Arrow types.
        lexical: what `write_postings` counted; None where texts are not indexed.
    """

    rows: int
    dim: int
    fused_dim: int | None
    originals: bool
    planes: tuple[tuple[int, int], ...]
    files: Mapping[str, FileEntry]
    coarse: Mapping[str, Mapping[str, Any]]
    fields: Mapping[str, str]
    lexical: Mapping[str, int] | None = None

    def to_json(self) -> dict[str, Any]:
        """This manifest as plain JSON types, the format version first."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def read(cls, path: Path) -> SegmentManifest:
        """Reads a segment manifest.

        Raises:
            UserError: missing, unreadable, of another format version, or without something that
                belongs to it.
        """
        fields = read_manifest(path)
        with reading(path):
            fields["planes"] = tuple((int(start), int(stop)) for start, stop in fields["planes"])
            files = fields["files"].items()
            fields["files"] = {name: read_record(FileEntry, entry) for name, entry in files}
            return read_record(cls, fields)


@dataclass(frozen=True)
class SegmentEntry:
    """A segment as a generation names it.

    Args:
        name: directory below `segments/`.
        rows: documents, deleted ones included.
        manifest_sha256: of the segment's manifest file.
        tombstones: file below the index (`.npy`, packed bits, one per row, 1 = deleted), or None
            while nothing of the segment is deleted. A new bitmap is a new file.
        deleted: rows that the bitmap marks.
        tombstones_sha256: of the bitmap file, or None.
        text_documents: rows that are not marked and have a text, where texts are indexed.
        text_tokens: terms of their texts.
    """

    name: str
    rows: int
    manifest_sha256: str
    tombstones: str | None = None
    deleted: int = 0
    tombstones_sha256: str | None = None
    text_documents: int = 0
    text_tokens: int = 0


@dataclass(frozen=True)
class TrainedEntry:
    """A trained coarse list without entries, of which segments hold filled copies.

    Args:
        file: below the index.
        bytes: its size.
        sha256: its checksum.
        kind: of list.
        documents: that it was trained for.
    """

    file: str
    bytes: int
    sha256: str
    kind: str
    documents: int

    def check(self, index: Path) -> Path:
        """The file's path below an index, once it agrees with its checksum.

        Raises:
            UserError: it is missing, or differs.
        """
        path = index / self.file
        if not path.is_file() or hash_file(path) != self.sha256:
            raise UserError(
                f"{path} is missing or does not match its checksum: the index is damaged, build "
                "it again"
            )
        return path


@dataclass(frozen=True)
class GenerationManifest:
    """One generation: the segments that make the index, and what the vectors in them are.

    Args:
        generation: number, from 1.
        created: time of the build, ISO 8601.
        identity: the model's identity, as its embedding manifest gives it.
        model_path: where the model lay when the corpus was embedded, or None.
        ladder: rungs as text.
        side: side of the model that made the vectors: `document`.
        instruction: instruction the documents were embedded with.
        dim: D of the multi-vectors.
        fused_dim: F of the fused vector, or None.
        default_coarse: coarse choice when a search names none.
        segments: in row order.
        calibration: what the doctor measured; None until it has.
        software: versions that wrote the index.
        coarse_kind: kind of coarse list that segments get, as it was asked for; of a shard, what
            was chosen for its set.
        coarse_trained: by key, what was trained for those lists; empty while all are scanned.
        lexical: which texts are indexed and how, as `LexicalSettings.stored` gives it, or None.
        source: the embeddings that this is exactly the index of, and the settings it was made with;
            None once documents have been added or deleted.
        built: number of the generation that a build published; later ones change its documents.
        changes: documents added, replaced or deleted since that build.
    """

    generation: int
    created: str
    identity: Mapping[str, Any]
    model_path: str | None
    ladder: tuple[str, ...]
    side: str
    instruction: str | None
    dim: int
    fused_dim: int | None
    default_coarse: str
    segments: tuple[SegmentEntry, ...]
    calibration: Mapping[str, Any] | None
    software: Mapping[str, str]
    coarse_kind: str = "auto"
    coarse_trained: Mapping[str, TrainedEntry] = field(default_factory=dict)
    lexical: Mapping[str, Any] | None = None
    source: Mapping[str, Any] | None = None
    built: int = 0
    changes: int = 0

    @property
    def documents(self) -> int:
        """Rows of all segments, deleted ones included."""
        return sum(segment.rows for segment in self.segments)

    @property
    def live(self) -> int:
        """Rows that no tombstone marks."""
        return self.documents - sum(segment.deleted for segment in self.segments)

    def to_json(self) -> dict[str, Any]:
        """This manifest as plain JSON types, the format version first."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def read(cls, path: Path) -> GenerationManifest:
        """Reads a generation manifest.

        Raises:
            UserError: missing, unreadable, of another format version, or without something that
                belongs to it.
        """
        fields = read_manifest(path)
        with reading(path):
            fields["ladder"] = tuple(fields["ladder"])
            fields["segments"] = tuple(
                read_record(SegmentEntry, each) for each in fields["segments"]
            )
            trained = fields.get("coarse_trained", {}).items()
            fields["coarse_trained"] = {
                key: read_record(TrainedEntry, each) for key, each in trained
            }
            return read_record(cls, fields)


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads a manifest's JSON object, without its format version once that is checked.

    Raises:
        UserError: missing, not JSON, or of a format version that this software does not read.
    """
    try:
        fields = json.loads(path.read_text())
    except OSError as missing:
        raise UserError(
            f"{path} cannot be read ({missing.strerror}): the index is damaged, build it again"
        ) from missing
    except ValueError as broken:
        raise UserError(f"{path} is not JSON ({broken}): the index is damaged") from broken
    version = fields.pop("format_version", None) if isinstance(fields, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version}, this software reads {FORMAT_VERSION}: "
            "build the index again from its embedding shards"
        )
    return fields


def unfinished_name(name: str) -> str:
    """Name of a small file before its rename; a crash may leave it behind.

    >>> unfinished_name("CURRENT")
    '.CURRENT.new'
    """
    return f".{name}.new"


def write_durably(path: Path, text: str) -> None:
    """Writes a small file so that it is whole or absent, and on disk when this returns."""
    temporary = path.with_name(unfinished_name(path.name))
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)


def write_manifest(path: Path, fields: Mapping[str, Any]) -> str:
    """Writes a manifest durably; returns the SHA-256 of its bytes."""
    text = json.dumps(fields, indent=1) + "\n"
    write_durably(path, text)
    return hashlib.sha256(text.encode()).hexdigest()


def sync_directory(path: Path) -> None:
    """Makes the names inside a directory durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Makes a file that another library wrote durable."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def hash_file(path: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def describe_file(path: Path) -> FileEntry:
    """Size and checksum of a finished file."""
    return FileEntry(bytes=path.stat().st_size, sha256=hash_file(path))
