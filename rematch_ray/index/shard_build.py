"""Building an index that is split into shards: a plan, a task for each shard, then the set.

A task may run anywhere that sees the two directories, and twice: a shard is published when it is
whole, and its manifest says of which embedding files and settings it is made. Such a shard is not
built again; one of the same vectors and settings, but fewer files, gets the new files as a segment.
Knows nothing of who runs the tasks. Middle floor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.index.build import IndexForm, choose_form, write_generation
from rematch_ray.index.coarse import CoarseKind
from rematch_ray.index.generation import Generation, read_current
from rematch_ray.index.revision import append_rows
from rematch_ray.index.shard_set import (
    ShardSet,
    is_sharded,
    publish_set,
    refuse_foreign,
)
from rematch_ray.index.sharding import ShardRows, count_rows, shard_name
from rematch_ray.index.shards import EmbeddingShards
from rematch_ray.index.store import (
    CURRENT_FILE,
    LOCK_FILE,
    IndexInfo,
    hold_lock,
    publish,
    roll_back,
    writing,
)
from rematch_ray.scoring.budget import Ladder

# with more rows in new files than this share of all, one new segment is the better index
TOP_UP_SHARE = 0.5
# a killed task's process may hold the lock of its shard for a moment longer
_PATIENCE_S = 60.0
_DIGEST_CHARACTERS = 16


@dataclass(frozen=True)
class ShardTask:
    """One shard to be built or topped up: all that whoever does it must know.

    Args:
        out: directory of the set.
        number: of the shard.
        num_shards: N.
        embeddings: the embedding directory, as it was when the build began.
        form: how the index is to be built.
        source: what the shard's manifest will record.
        files: embedding files to read; None reads all.
        drops: whether documents that the embeddings no longer hold are to be deleted.
        rows: rows of those files that belong to the shard.
        batch_rows: rows read at once.
    """

    out: Path
    number: int
    num_shards: int
    embeddings: EmbeddingShards
    form: IndexForm
    source: Mapping[str, Any]
    files: frozenset[str] | None
    drops: bool
    rows: int
    batch_rows: int

    @property
    def path(self) -> Path:
        """The shard's directory."""
        return self.out / shard_name(self.number, self.num_shards)

    @cached_property
    def entries(self) -> list[Mapping[str, Any]]:
        """Embedding files to read, as their manifest names them."""
        entries = self.embeddings.manifest["shards"]
        return [entry for entry in entries if self.files is None or entry["file"] in self.files]

    def shard_rows(self) -> ShardRows:
        """The rows to read."""
        known = self.embeddings
        return ShardRows(
            known.path, known.manifest, self.number, self.num_shards, self.entries, self.rows
        )


def build_shard(task: ShardTask) -> int:
    """Builds or tops up one shard and publishes it, unless that is done.

    Returns:
        Rows written.

    Raises:
        UserError: the embeddings are damaged or hold an id twice, or another process writes.
    """
    with writing(task.path, patience_s=_PATIENCE_S) as number:
        if _source_in(task.path) == task.source:
            return 0  # an attempt that was killed after it had published
        rows = task.shard_rows()
        if task.files is None:
            manifest = write_generation(
                task.path, number, rows, task.form, batch_rows=task.batch_rows, source=task.source
            )
            publish(task.path, manifest)
        else:
            append_rows(
                task.path,
                number,
                rows,
                present=rows.present_keys() if task.drops else None,
                source=task.source,
                batch_rows=task.batch_rows,
            )
    return task.rows


@dataclass(frozen=True)
class SetBuild:
    """A build under way, its lock held.

    Args:
        out: directory of the set.
        num_shards: N.
        embeddings: what it is built from.
        planned: tasks, their rows not counted yet; shards that are done have none.
    """

    out: Path
    num_shards: int
    embeddings: EmbeddingShards
    planned: tuple[ShardTask, ...]

    @cached_property
    def entries(self) -> list[Mapping[str, Any]]:
        """Embedding files that some task reads, as their manifest names them."""
        read = {entry["file"] for task in self.planned for entry in task.entries}
        return [entry for entry in self.embeddings.manifest["shards"] if entry["file"] in read]

    def tasks(self, counts: Sequence[NDArray[np.int64]]) -> list[ShardTask]:
        """What is to be done.

        Args:
            counts: `count_rows` of each of `entries`.

        Raises:
            UserError: a file holds another number of rows than the manifest says.
        """
        by_file = {}
        for entry, count in zip(self.entries, counts, strict=True):
            if count.sum() != entry["rows"]:
                raise UserError(
                    f"embedding shard {self.embeddings.path / entry['file']} holds {count.sum()} "
                    f"rows, its manifest says {entry['rows']}: run 'rematch-ray embed' again"
                )
            by_file[entry["file"]] = count
        made = []
        for task in self.planned:
            rows = sum(int(by_file[entry["file"]][task.number]) for entry in task.entries)
            made.append(dataclasses.replace(task, rows=rows))
        return made

    def publish(self) -> IndexInfo:
        """Makes the shards as they are now the index that readers find."""
        return publish_set(self.out, self.num_shards)


@contextmanager
def building(
    embeddings: str | Path,
    out: str | Path,
    num_shards: int,
    *,
    ladder: Ladder | Sequence[str] | None = None,
    coarse: str | None = None,
    coarse_kind: CoarseKind = "auto",
    batch_rows: int = 1024,
) -> Iterator[SetBuild]:
    """Plans a build and holds the directory until it is published or given up.

    An index that is there keeps answering. Shards that an earlier build finished are kept.

    Args:
        embeddings: embedding directory of the document side.
        out: directory of the set, made when absent.
        num_shards: N, the same as that of a set that is there.
        ladder: see `build_index`.
        coarse: see `build_index`.
        coarse_kind: see `build_index`.
        batch_rows: rows read at once.

    Raises:
        UserError: see `build_index`; also fewer than one shard, or a set of another number.
    """
    if num_shards < 1:
        raise UserError(f"--shards {num_shards} is not possible: give a whole number of at least 1")
    out, known = Path(out).absolute(), EmbeddingShards.open(embeddings)
    form = choose_form(known, ladder=ladder, coarse=coarse, coarse_kind=coarse_kind)
    refuse_foreign(out, num_shards)
    existed = out.exists()
    out.mkdir(parents=True, exist_ok=True)
    with hold_lock(out):
        try:
            yield _plan(out, num_shards, known, form, batch_rows)
        finally:
            if {file.name for file in out.iterdir()} == {LOCK_FILE}:
                # nothing was begun
                (out / LOCK_FILE).unlink()
                if not existed:
                    out.rmdir()


def build_sharded(
    embeddings: str | Path, out: str | Path, num_shards: int, **options: Any
) -> IndexInfo:
    """Builds an index of several shards in this process, one after another.

    Args:
        embeddings: embedding directory of the document side.
        out: directory of the set.
        num_shards: N.
        options: what else `building` takes.

    Returns:
        What was published.

    Raises:
        UserError: see `building` and `build_shard`; finished shards are kept for the next run.
    """
    with building(embeddings, out, num_shards, **options) as build:
        counts = [count_rows(build.embeddings, entry, num_shards) for entry in build.entries]
        for task in build.tasks(counts):
            build_shard(task)
        return build.publish()


def _plan(
    out: Path, num_shards: int, embeddings: EmbeddingShards, form: IndexForm, batch_rows: int
) -> SetBuild:
    source = _source_of(embeddings, form)
    named = {}
    if is_sharded(out):
        named = {entry.name: entry.generation for entry in ShardSet.read(out).shards}
    planned = []
    for number in range(num_shards):
        path = out / shard_name(number, num_shards)
        if _source_in(path) != source and _is_ahead(path, named.get(path.name)):
            roll_back(path, named[path.name])
        held = _source_in(path)
        if held == source:
            continue
        files, drops = _new_files(embeddings, source, held)
        task = ShardTask(
            out, number, num_shards, embeddings, form, source, files, drops, 0, batch_rows
        )
        planned.append(task)
    return SetBuild(out, num_shards, embeddings, tuple(planned))


def _is_ahead(path: Path, named: str | None) -> bool:
    """Whether a shard has published a generation that the set, if it names one, does not name."""
    return named is not None and (path / CURRENT_FILE).is_file() and read_current(path) != named


def _new_files(
    embeddings: EmbeddingShards, source: Mapping[str, Any], held: Mapping[str, Any] | None
) -> tuple[frozenset[str] | None, bool]:
    """Files that a shard lacks, and whether it holds rows of files that are gone; or (None, False)
    where it is to be built anew.
    """
    if held is None or any(held[key] != source[key] for key in ("vectors", "settings")):
        return None, False
    known = set(held["files"])
    new = [
        entry
        for entry, digest in zip(embeddings.manifest["shards"], source["files"], strict=True)
        if digest not in known
    ]
    if sum(entry["rows"] for entry in new) > TOP_UP_SHARE * embeddings.num_rows:
        return None, False
    return frozenset(entry["file"] for entry in new), bool(known - set(source["files"]))


def _source_of(embeddings: EmbeddingShards, form: IndexForm) -> dict[str, Any]:
    """What a manifest records of the embeddings and settings, in plain JSON types."""
    return {
        "vectors": {
            "model": embeddings.identity.get("digest"),
            "side": embeddings.side,
            "instruction": embeddings.manifest.get("instruction"),
            "shape": [embeddings.num_vectors, embeddings.dim, embeddings.fused_dim],
        },
        "settings": {**asdict(form), "ladder": list(form.ladder)},
        "files": [entry["sha256"][:_DIGEST_CHARACTERS] for entry in embeddings.manifest["shards"]],
    }


def _source_in(path: Path) -> Mapping[str, Any] | None:
    """What a shard's manifest records of its embeddings; None where there is no whole shard."""
    if not (path / CURRENT_FILE).is_file():
        return None
    try:
        return Generation(path).manifest.source
    except UserError:
        # files missing or cut short: built anew, which is what the message would ask for
        return None
