"""Building an index that is split into shards: a plan, a task for each shard, then the set.

A shard of exactly these embeddings and settings is not built again; one of the same vectors and
settings, but fewer files, gets the new files as a segment. Knows nothing of who runs the tasks.
Middle floor.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.index.build import IndexForm, choose_form
from rematch_ray.index.generation import CURRENT_FILE, Generation, read_current
from rematch_ray.index.sharding.hashing import shard_name
from rematch_ray.index.sharding.routing import count_rows
from rematch_ray.index.sharding.sets import (
    ROUTED,
    TRAINED,
    ShardSet,
    is_sharded,
    publish_set,
    refuse_foreign,
)
from rematch_ray.index.sharding.source import digest_of, new_files, source_in, source_of
from rematch_ray.index.sharding.task import ShardTask, build_shard
from rematch_ray.index.sharding.training import SharedTraining, set_kind
from rematch_ray.index.shards import EmbeddingShards
from rematch_ray.index.store import LOCK_FILE, IndexInfo, hold_lock, roll_back

# up to so many shards read embedding files themselves: a second reading costs more than the copies
DIRECT_SHARDS = 1


@dataclass(frozen=True)
class SetBuild:
    """A build under way, its lock held.

    Args:
        out: directory of the set.
        num_shards: N.
        embeddings: what it is built from.
        training: the coarse lists that all shards share.
        planned: tasks, their rows not counted yet; shards that are done have none.
    """

    out: Path
    num_shards: int
    embeddings: EmbeddingShards
    training: SharedTraining
    planned: tuple[ShardTask, ...]

    @property
    def trains(self) -> bool:
        """Whether `training` must run before the tasks do: a top-up takes what its shard has."""
        return self.training.is_needed and any(task.files is None for task in self.planned)

    @property
    def routed(self) -> Path | None:
        """Where embedding files are copied in the order of shards; None where one shard reads them
        as they are.
        """
        return self.out / ROUTED if len(self.planned) > DIRECT_SHARDS else None

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
            made.append(dataclasses.replace(task, rows=rows, routed=self.routed))
        return made

    def publish(self) -> IndexInfo:
        """Makes the shards as they are now the index that readers find."""
        info = publish_set(self.out, self.num_shards)
        _remove_workspace(self.out)
        return info


@contextmanager
def building(
    embeddings: str | Path,
    out: str | Path,
    num_shards: int,
    *,
    batch_rows: int = 1024,
    **options: Any,
) -> Iterator[SetBuild]:
    """Plans a build and holds the directory until it is published or given up.

    An index that is there keeps answering. Shards that an earlier build finished are kept.

    Args:
        embeddings: embedding directory of the document side.
        out: directory of the set, made when absent.
        num_shards: N, the same as that of a set that is there.
        batch_rows: rows read at once.
        options: what else `choose_form` takes.

    Raises:
        UserError: see `build_index`; also fewer than one shard, or a set of another number.
    """
    if num_shards < 1:
        raise UserError(f"--shards {num_shards} is not possible: give a whole number of at least 1")
    out, known = Path(out).absolute(), EmbeddingShards.open(embeddings)
    form = choose_form(known, **options)
    refuse_foreign(out, num_shards)
    existed = out.exists()
    out.mkdir(parents=True, exist_ok=True)
    with hold_lock(out):
        try:
            yield _plan(out, num_shards, known, form, batch_rows)
        finally:
            if {file.name for file in out.iterdir()} <= {LOCK_FILE, ROUTED, TRAINED}:
                # no shard was begun
                _remove_workspace(out)
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
        counts = [
            count_rows(build.embeddings, entry, num_shards, build.routed) for entry in build.entries
        ]
        tasks = build.tasks(counts)
        if build.trains:
            build.training.run(build.embeddings)
        for task in tasks:
            build_shard(task)
        return build.publish()


def _plan(
    out: Path, num_shards: int, embeddings: EmbeddingShards, form: IndexForm, batch_rows: int
) -> SetBuild:
    source = source_of(embeddings, form)
    named = {}
    if is_sharded(out):
        named = {entry.name: entry.generation for entry in ShardSet.read(out).shards}
    held: dict[int, Mapping[str, Any] | None] = {}
    kinds = []
    for number in range(num_shards):
        path = out / shard_name(number, num_shards)
        if source_in(path) != source and _is_ahead(path, named.get(path.name)):
            roll_back(path, named[path.name])
        held[number] = source_in(path)
        if new_files(embeddings, source, held[number])[0] is not None:
            kinds.append(Generation(path).manifest.coarse_kind)
    # shards that stay keep their kind, though the set may have outgrown it: the others join them
    asked = next((kind for kind in kinds if kind != "auto"), form.coarse_kind)
    training = SharedTraining(
        folder=out / TRAINED / digest_of(source),
        form=form,
        kind=set_kind(asked, embeddings.num_rows),
        documents=-(-embeddings.num_rows // num_shards),
    )
    planned = []
    for number in range(num_shards):
        if held[number] == source:
            continue
        files, drops = new_files(embeddings, source, held[number])
        task = ShardTask(
            out=out,
            number=number,
            num_shards=num_shards,
            embeddings=embeddings,
            form=form,
            source=source,
            files=files,
            drops=drops,
            rows=0,
            routed=None,
            training=training,
            batch_rows=batch_rows,
        )
        planned.append(task)
    build = SetBuild(out, num_shards, embeddings, training, tuple(planned))
    if build.routed is not None:
        build.routed.mkdir(exist_ok=True)
    return build


def _remove_workspace(out: Path) -> None:
    for name in (ROUTED, TRAINED):
        shutil.rmtree(out / name, ignore_errors=True)


def _is_ahead(path: Path, named: str | None) -> bool:
    """Whether a shard has published a generation that the set, if it names one, does not name."""
    return named is not None and (path / CURRENT_FILE).is_file() and read_current(path) != named
