"""What every writer of an index does: lock, new segments, new generation, CURRENT by rename.

    CURRENT                        name of the published generation
    generations/<name>.json        what a generation is made of
    segments/<name>/               immutable files
    coarse/<key>-<kind>-...        trained coarse lists without entries, for the next writers
    tombstones/<generation>-...    which rows of a segment are deleted, a new file for each change
    LOCK                           held by the one writer

Whatever fails or is killed on the way, readers find the generation that CURRENT named before. Knows
nothing of searching; what is written is decided in build.py and changes.py. Middle floor.
"""

from __future__ import annotations

import fcntl
import logging
import platform
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import faiss
import numpy as np

from rematch_ray.errors import UserError
from rematch_ray.index.coarse.training import TRAINED
from rematch_ray.index.generation import (
    CURRENT_FILE,
    GENERATIONS,
    SEGMENTS,
    TOMBSTONES,
    Generation,
    generation_file,
    read_current,
)
from rematch_ray.index.manifest import (
    GenerationManifest,
    SegmentEntry,
    sync_directory,
    unfinished_name,
    write_durably,
    write_manifest,
)
from rematch_ray.index.segment import Segment
from rematch_ray.index.segment_writer import write_segment
from rematch_ray.index.shards import EmbeddingBatch

LOCK_FILE = "LOCK"
KEPT_GENERATIONS = 2
_BUILDING = ".building"
_LOOK_S = 0.1
_DIRECTORIES = (GENERATIONS, SEGMENTS, TOMBSTONES, TRAINED)
_OWN_NAMES = {CURRENT_FILE, unfinished_name(CURRENT_FILE), LOCK_FILE, *_DIRECTORIES}

logger = logging.getLogger(__name__)


class IndexBusyError(UserError):
    """Another process writes to the index, and the patience to wait for it has ended."""


@dataclass(frozen=True)
class IndexInfo:
    """What a build made.

    Args:
        path: index directory.
        generation: name of the published generation.
        documents: live documents.
        ladder: rungs as text.
        bytes: of all its segments.
        bytes_per_document: `bytes` over `documents`, payload and coarse lists included.
    """

    path: str
    generation: str
    documents: int
    ladder: tuple[str, ...]
    bytes: int
    bytes_per_document: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "ladder": list(self.ladder)}


def publish(path: Path, manifest: GenerationManifest) -> IndexInfo:
    """Makes a generation the one that readers find, and removes what none names any more.

    Args:
        path: index directory, its lock held.
        manifest: the generation; its segments and bitmaps must be on disk.

    Returns:
        What the index is now.
    """
    name = f"generation-{manifest.generation:06d}"
    write_manifest(generation_file(path, name), manifest.to_json())
    write_durably(path / CURRENT_FILE, name + "\n")
    sweep(path)
    return describe_index(path)


def sweep(path: Path) -> None:
    """Removes what no kept generation names: leftovers of crashes and all but the last two.

    What cannot be removed is logged and left to the next sweep.

    Args:
        path: index directory, its lock held.
    """
    current = _current_or_none(path)
    names = sorted(file.stem for file in (path / GENERATIONS).glob("generation-*.json"))
    kept = [name for name in names if current is not None and name <= current][-KEPT_GENERATIONS:]
    try:
        manifests = [GenerationManifest.read(generation_file(path, name)) for name in kept]
    except UserError as damaged:
        logger.warning(
            "nothing is removed from %s, since what it needs is not known: %s", path, damaged
        )
        return
    entries = [segment for manifest in manifests for segment in manifest.segments]
    trained = {entry.file for manifest in manifests for entry in manifest.coarse_trained.values()}
    used = {segment.name for segment in entries}
    bitmaps = {segment.tombstones for segment in entries}
    for file in (path / GENERATIONS).iterdir():
        if file.stem not in kept:
            _remove(file)
    for segment in (path / SEGMENTS).iterdir():
        if segment.name not in used:
            _remove(segment)
    for file in (path / TOMBSTONES).iterdir():
        if f"{TOMBSTONES}/{file.name}" not in bitmaps:
            _remove(file)
    for file in (path / TRAINED).iterdir():
        if f"{TRAINED}/{file.name}" not in trained:
            _remove(file)


def _remove(left: Path) -> None:
    """Removes a file or folder, or says why not.

    What was published stays published: on a network file system, for one, a file that a reader
    still has open leaves another in its place, so that its folder cannot go yet.
    """
    try:
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()
    except OSError as refused:
        logger.warning(
            "%s is not needed any more and could not be removed (%s); the next change of the index "
            "tries again",
            left,
            refused,
        )


def add_segment(
    out: Path, name: str, batches: Iterable[EmbeddingBatch], **content: Any
) -> SegmentEntry:
    """Writes a segment beside the others and makes it durable; no generation names it yet.

    Args:
        out: index directory, its lock held.
        name: of the segment.
        batches: its documents.
        content: what else `write_segment` takes.

    Returns:
        How a generation names it.
    """
    building = out / SEGMENTS / f"{_BUILDING}-{name}"
    building.mkdir()
    try:
        digest = write_segment(building, batches, **content)
        building.rename(out / SEGMENTS / name)
    finally:
        # a kill leaves it behind; the next writer's sweep removes it
        shutil.rmtree(building, ignore_errors=True)
    sync_directory(out / SEGMENTS)
    entry = SegmentEntry(name=name, rows=content["rows"], manifest_sha256=digest)
    return Segment(out / SEGMENTS / name, entry).count_texts(entry)


def segment_name(generation: int) -> str:
    """Name of the segment that a generation adds.

    >>> segment_name(3)
    'segment-000003-0'
    """
    return f"segment-{generation:06d}-0"


@contextmanager
def writing(out: Path, *, patience_s: float = 0.0) -> Iterator[int]:
    """Holds the directory's lock; a directory that is no index after all is left as it was.

    What an earlier writer left behind is removed. Gives the number of the generation to come.

    Args:
        out: index directory, or where one is to be.
        patience_s: how long to wait for another writer to end.

    Raises:
        UserError: the directory is something else, or another process writes to it.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give a directory for the index")
    existed = out.exists()
    foreign = {file.name for file in out.iterdir()} - _OWN_NAMES if existed else set()
    if foreign:
        raise UserError(
            f"{out} holds {sorted(foreign)[0]!r}, which is not part of an index: "
            "give an empty directory, a new one, or an index"
        )
    for name in _DIRECTORIES:
        (out / name).mkdir(parents=True, exist_ok=True)
    with hold_lock(out, patience_s=patience_s):
        try:
            sweep(out)
            yield _next_generation(out)
        finally:
            if _current_or_none(out) is None:
                for name in _DIRECTORIES:
                    shutil.rmtree(out / name)
                (out / LOCK_FILE).unlink()
                if not existed:
                    out.rmdir()


@contextmanager
def hold_lock(out: Path, *, patience_s: float = 0.0) -> Iterator[None]:
    """Holds a directory for this process alone; the hold ends with the process.

    Raises:
        IndexBusyError: another process holds it, and still does when patience ends.
    """
    deadline = time.monotonic() + patience_s
    with open(out / LOCK_FILE, "w") as lock:
        while not _try_lock(lock):
            if time.monotonic() >= deadline:
                raise IndexBusyError(f"{out} is being written by another process: wait for it")
            time.sleep(_LOOK_S)
        yield


def _try_lock(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def roll_back(path: Path, name: str) -> None:
    """Makes a kept generation the published one again; later ones are removed.

    Args:
        path: index directory.
        name: of one of its last two generations.

    Raises:
        UserError: another process writes to the directory, or the generation is gone.
    """
    with writing(path):
        GenerationManifest.read(generation_file(path, name))
        write_durably(path / CURRENT_FILE, name + "\n")
        sweep(path)


def _next_generation(out: Path) -> int:
    current = _current_or_none(out)
    if current is None:
        return 1
    return GenerationManifest.read(generation_file(out, current)).generation + 1


def _current_or_none(path: Path) -> str | None:
    return read_current(path) if (path / CURRENT_FILE).is_file() else None


def describe_index(out: Path) -> IndexInfo:
    """What the published generation is."""
    generation = Generation(out)
    files = [file for part in generation.segments for file in part.manifest.files.values()]
    size = sum(file.bytes for file in files)
    return IndexInfo(
        path=str(out),
        generation=generation.name,
        documents=generation.manifest.live,
        ladder=generation.manifest.ladder,
        bytes=size,
        bytes_per_document=round(size / max(1, generation.manifest.live), 1),
    )


def now() -> str:
    """The time of a manifest, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def software() -> dict[str, str]:
    """Versions that a manifest records."""
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    return {**versions, "faiss": faiss.__version__}
