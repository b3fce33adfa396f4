"""Builds an index and publishes it: a new segment, a new generation, and CURRENT by rename.

    CURRENT                        name of the published generation
    generations/<name>.json        what a generation is made of
    segments/<name>/               immutable files
    LOCK                           held by the one writer

Whatever fails or is killed on the way, readers find the generation that CURRENT named before. Knows
nothing of searching. Middle floor.
"""

from __future__ import annotations

import fcntl
import platform
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from rematch_ray.errors import UserError
from rematch_ray.index.coarse import COARSE_CHOICES, CoarseKind
from rematch_ray.index.generation import (
    CURRENT_FILE,
    GENERATIONS,
    SEGMENTS,
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
from rematch_ray.index.segment import write_segment
from rematch_ray.index.shards import EmbeddingShards
from rematch_ray.scoring.budget import Ladder

LOCK_FILE = "LOCK"
KEPT_GENERATIONS = 2
_BUILDING = ".building"
_OWN_NAMES = {CURRENT_FILE, unfinished_name(CURRENT_FILE), LOCK_FILE, GENERATIONS, SEGMENTS}


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


def build_index(
    embeddings: str | Path,
    out: str | Path,
    *,
    ladder: Ladder | Sequence[str] | None = None,
    coarse: str | None = None,
    coarse_kind: CoarseKind = "auto",
    batch_rows: int = 1024,
) -> IndexInfo:
    """Builds an index from embedding shards, or replaces the documents of one, in bounded memory.

    Args:
        embeddings: embedding directory of the document side.
        out: index directory, made when absent; an index there keeps answering until the end.
        ladder: rungs to store planes for; None takes the model's.
        coarse: default coarse choice (`fused`, `first`, `both`); None takes `fused` where there is
            a fused vector.
        coarse_kind: `flat`, `ivf` or `auto`: by size.
        batch_rows: rows read at once.

    Returns:
        What was published.

    Raises:
        UserError: not an embedding directory, query-side embeddings, too few vectors for the
            ladder, repeated ids, `out` holding something else, or another writer at work. Nothing
            half-written is left.
    """
    out = Path(out)
    shards = EmbeddingShards.open(embeddings)
    rungs = _choose_ladder(shards, ladder)
    default_coarse = _choose_coarse(shards, coarse)
    if shards.num_rows == 0:
        raise UserError(f"{embeddings} holds no rows: embed at least one document")
    with _writer(out):
        number = _next_generation(out)
        sweep(out)
        entry = _add_segment(out, shards, rungs, f"segment-{number:06d}-0", coarse_kind, batch_rows)
        manifest = GenerationManifest(
            generation=number,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            identity=shards.identity,
            model_path=shards.manifest.get("model_path"),
            ladder=tuple(rungs.texts()),
            side=shards.side,
            instruction=shards.manifest.get("instruction"),
            dim=shards.dim,
            fused_dim=shards.fused_dim,
            default_coarse=default_coarse,
            segments=(entry,),
            calibration=None,
            software=_software(),
        )
        publish(out, manifest)
        sweep(out)
        return _describe(out)


def publish(path: Path, manifest: GenerationManifest) -> None:
    """Makes a generation the one that readers find; its segments must be on disk.

    Args:
        path: index directory.
        manifest: the generation.
    """
    name = f"generation-{manifest.generation:06d}"
    write_manifest(generation_file(path, name), manifest.to_json())
    write_durably(path / CURRENT_FILE, name + "\n")


def sweep(path: Path) -> None:
    """Removes what no kept generation names: leftovers of crashes and all but the last two.

    Args:
        path: index directory, its lock held.
    """
    current = _current_or_none(path)
    names = sorted(file.stem for file in (path / GENERATIONS).glob("generation-*.json"))
    kept = [name for name in names if current is not None and name <= current][-KEPT_GENERATIONS:]
    used = {
        segment.name
        for name in kept
        for segment in GenerationManifest.read(generation_file(path, name)).segments
    }
    for file in (path / GENERATIONS).iterdir():
        if file.stem not in kept:
            file.unlink()
    for segment in (path / SEGMENTS).iterdir():
        if segment.name not in used:
            shutil.rmtree(segment)


def _add_segment(
    out: Path,
    shards: EmbeddingShards,
    ladder: Ladder,
    name: str,
    coarse_kind: CoarseKind,
    batch_rows: int,
) -> SegmentEntry:
    building = out / SEGMENTS / f"{_BUILDING}-{name}"
    building.mkdir()
    try:
        digest = write_segment(
            building,
            shards.batches(batch_rows),
            rows=shards.num_rows,
            dim=shards.dim,
            fused_dim=shards.fused_dim,
            planes=ladder.planes(),
            fields=shards.payload_fields(),
            coarse_kind=coarse_kind,
        )
        building.rename(out / SEGMENTS / name)
    finally:
        # a kill leaves it behind; the next writer's sweep removes it
        shutil.rmtree(building, ignore_errors=True)
    sync_directory(out / SEGMENTS)
    return SegmentEntry(name=name, rows=shards.num_rows, manifest_sha256=digest)


@contextmanager
def _writer(out: Path) -> Iterator[None]:
    """Holds the directory's lock; a directory that is no index after all is left as it was."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give a directory for the index")
    existed = out.exists()
    foreign = {file.name for file in out.iterdir()} - _OWN_NAMES if existed else set()
    if foreign:
        raise UserError(
            f"{out} holds {sorted(foreign)[0]!r}, which is not part of an index: "
            "give an empty directory, a new one, or an index"
        )
    for directory in (out / GENERATIONS, out / SEGMENTS):
        directory.mkdir(parents=True, exist_ok=True)
    with open(out / LOCK_FILE, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as taken:
            raise UserError(f"{out} is being written by another process: wait for it") from taken
        try:
            yield
        finally:
            if _current_or_none(out) is None:
                for name in (GENERATIONS, SEGMENTS):
                    shutil.rmtree(out / name)
                (out / LOCK_FILE).unlink()
                if not existed:
                    out.rmdir()


def _choose_ladder(shards: EmbeddingShards, ladder: Ladder | Sequence[str] | None) -> Ladder:
    if shards.side != "document":
        raise UserError(
            f"{shards.path} holds embeddings of the {shards.side} side: an index needs the "
            "document side, run 'rematch-ray embed --side document'"
        )
    if ladder is None:
        ladder = _rungs_within(shards)
    rungs = ladder if isinstance(ladder, Ladder) else Ladder.parse(ladder)
    if rungs.num_document_vectors > shards.num_vectors:
        raise UserError(
            f"the ladder ends at {rungs.top}, but {shards.path} holds {shards.num_vectors} vectors "
            "per document: give a shorter ladder or embed with a model that makes more"
        )
    return rungs


def _rungs_within(shards: EmbeddingShards) -> Ladder:
    """The model's ladder as far as the stored prefix of its vectors reaches."""
    texts = shards.identity.get("ladder")
    if texts is None:
        raise UserError(f"{shards.path} names no ladder in its identity: give one")
    rungs = Ladder.parse(texts).rungs
    within = tuple(rung for rung in rungs if rung.r_d <= shards.num_vectors)
    if not within:
        raise UserError(
            f"{shards.path} holds {shards.num_vectors} vectors per document, fewer than any rung "
            f"of the model's ladder ({', '.join(map(str, rungs))}): embed again with num_vectors "
            "one of them"
        )
    return Ladder(within)


def _choose_coarse(shards: EmbeddingShards, coarse: str | None) -> str:
    allowed = COARSE_CHOICES if shards.fused_dim else ("first",)
    choice = coarse or allowed[0]
    if choice not in allowed:
        raise UserError(f"coarse '{choice}' does not exist here; allowed: {', '.join(allowed)}")
    return choice


def _next_generation(out: Path) -> int:
    current = _current_or_none(out)
    if current is None:
        return 1
    return GenerationManifest.read(generation_file(out, current)).generation + 1


def _current_or_none(path: Path) -> str | None:
    return read_current(path) if (path / CURRENT_FILE).is_file() else None


def _describe(out: Path) -> IndexInfo:
    generation = Generation(out)
    files = [file for part in generation.segments for file in part.manifest.files.values()]
    size = sum(file.bytes for file in files)
    return IndexInfo(
        path=str(out),
        generation=generation.name,
        documents=generation.manifest.live,
        ladder=generation.manifest.ladder,
        bytes=size,
        bytes_per_document=round(size / generation.manifest.live, 1),
    )


def _software() -> dict[str, str]:
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    return {**versions, "faiss": faiss.__version__}
