"""Where an embedding job keeps its unfinished rows, and what they look like.

The seam between the stream (workloads/embed.py), which fills the directory, and the finishing step
(workloads/shards.py), which reads it. `OUT/.progress` outlives a finished run, so that a later one
embeds only what is new:

    job.json         what is embedded here: another model, side or setting is refused
    run-*/rows/      every embedded or refused row of the runs since the last that was finished
    run-*/done/      Ray's checkpoint: the row keys of what lies in rows/, shards or quarantine
    run-*/input/     the row keys that this run's data holds, and whence each came; a file per unit
    run-*/actors/    how far each model process of this run is
    run-*/shards/    shards on their way to OUT
    run-*/MARK       by which nodes know the run

There is one such folder, named by the run. The next run begins with renaming it to its own name:
Ray does not wait for the tasks of a stream that has failed, nor a cluster for those of a driver
that has died, and what they still try to write then has no place any more.

A row counts when its key is in input/. Two runs never stage the same key. Within a run rows that
are copies of each other (same source, id and content) share a key and may be staged once or twice:
a run that was killed between them finds the second one done. So rows/ is read as a set of keys, and
copies are told from input/, which has every row of the data once. Top floor.
"""

import json
import os
import platform
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rematch_ray.errors import UserError
from rematch_ray.index.manifest import sync_directory

ROW_KEY = "row_key"
QUARANTINE = "quarantine.parquet"
FINISHED = "finished.parquet"
RUN = "run-"
OK = "ok"
STATUS_FIELD = pa.field("status", pa.string())
# staged rows: these, then payload (where the data has one), vectors and fused (where the model has)
STAGED_FIELDS = (
    pa.field(ROW_KEY, pa.int64()),
    pa.field("id", pa.string()),
    pa.field("source", pa.string()),
    pa.field("parent_id", pa.string()),
    STATUS_FIELD,
)
INPUT_SCHEMA = pa.schema(
    [
        (ROW_KEY, pa.int64()),
        ("path", pa.dictionary(pa.int32(), pa.string())),
        ("row", pa.int64()),
    ]
)


def whole_shards(
    target: Path, manifest: Mapping[str, Any]
) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield the shards of a manifest that are there in their full size, each with its entry."""
    for entry in manifest["shards"]:
        path = target / entry["file"]
        if path.is_file() and path.stat().st_size == entry["bytes"]:
            yield path, entry


@dataclass(frozen=True)
class Staging:
    """The directory of unfinished rows below an output directory.

    Attributes:
        root: `OUT/.progress`.
        run: name of this run.
    """

    root: Path
    run: str = ""

    @classmethod
    def of(cls, target: Path) -> "Staging":
        """The staging directory of an output directory, for a new run; nothing is made."""
        return cls(target / ".progress", uuid.uuid4().hex)

    @classmethod
    def latest(cls, target: Path) -> "Staging":
        """That of the run which was last in an output directory; a new one where none was."""
        staging = cls.of(target)
        last = staging._last()
        return staging if last is None else cls(staging.root, last.name.removeprefix(RUN))

    @property
    def folder(self) -> Path:
        """What this run writes; there from its beginning to the beginning of the next."""
        return self.root / f"{RUN}{self.run}"

    @property
    def job(self) -> Path:
        """What is embedded here, as JSON."""
        return self.root / "job.json"

    @property
    def rows(self) -> Path:
        """Parquet files of staged rows."""
        return self.folder / "rows"

    @property
    def done(self) -> Path:
        """Ray's checkpoint files."""
        return self.folder / "done"

    @property
    def input(self) -> Path:
        """Parquet files of `INPUT_SCHEMA`, one for each unit that this run read to its end."""
        return self.folder / "input"

    @property
    def actors(self) -> Path:
        """Counters of this run's model processes."""
        return self.folder / "actors"

    @property
    def shards(self) -> Path:
        """Where shards are written before they lie in the output directory."""
        return self.folder / "shards"

    @property
    def mark(self) -> Path:
        """A file that says to every node which sees it that the directory is the driver's."""
        return self.folder / "MARK"

    def begin_run(self) -> None:
        """Take over what the last run staged, without what it said of itself.

        Its folder gets this run's name, by one rename: from then on no task that it left behind,
        on whatever node, can add to what lies here, finish what it had begun or commit it.
        """
        last = self._last()
        if last is not None:
            last.rename(self.folder)
        for folder in (self.input, self.actors, self.shards):
            shutil.rmtree(folder, ignore_errors=True)
        for folder in (self.rows, self.done, self.input, self.actors, self.shards):
            folder.mkdir(parents=True, exist_ok=True)
        self.mark.touch()

    def _last(self) -> Path | None:
        """The folder of the last run: a rename leaves but one."""
        return next(self.root.glob(f"{RUN}*"), None)

    def refuse_unshared(self) -> None:
        """Refuse a node on which the output directory is not the driver's: its rows would be lost.

        Raises:
            UserError: names the node.
        """
        if not self.mark.is_file():
            raise UserError(
                f"{self.root.parent} is not the same directory on every node: {platform.node()} "
                "does not see what the job has written there; give an --out on storage that all "
                "nodes share, under the same path"
            )

    def write_job(self, job: Mapping[str, Any]) -> None:
        """Write job.json, whole or not at all."""
        partial = self.root / ".job.json"
        partial.write_text(json.dumps(job, indent=1) + "\n")
        partial.replace(self.job)

    def note_finished(
        self,
        target: Path,
        manifest: Mapping[str, Any] | None,
        *,
        retry_quarantined: bool = False,
    ) -> None:
        """Let done/ name the rows of a finished directory, and none that have left its shards.

        Done before every run, not only after one: a row that was changed and is changed back lies
        in no shard, the rows of a shard that is gone or cut short neither, and a run may have been
        killed between its manifest and this note. What counts as done must have its row.

        Args:
            target: the output directory.
            manifest: of it; None = nothing is finished there.
            retry_quarantined: let bad rows not count as done, so that they are embedded again.
        """
        if retry_quarantined:
            self._forget_bad()
        if manifest is None:
            (self.done / FINISHED).unlink(missing_ok=True)
            return
        shards = (path for path, _ in whole_shards(target, manifest))
        files = [*shards, *([] if retry_quarantined else [target / QUARANTINE])]
        partial = self._unfinished(FINISHED)
        with pq.ParquetWriter(partial, pa.schema([(ROW_KEY, pa.int64())])) as writer:
            for file in filter(Path.is_file, files):
                writer.write_table(pq.read_table(file, columns=[ROW_KEY]).replace_schema_metadata())
        partial.replace(self.done / FINISHED)

    def _forget_bad(self) -> None:
        """Take the keys of staged bad rows out of done/; a good row of a key is preferred."""
        bad = pa.array([], pa.int64())
        for file in self.rows.glob("*.parquet"):
            staged = pq.read_table(file, columns=[ROW_KEY, STATUS_FIELD.name])
            keys = staged.filter(pc.not_equal(staged[STATUS_FIELD.name], OK))[ROW_KEY]
            bad = pa.concat_arrays([bad, *keys.chunks])
        for file in self._done_files() if len(bad) else ():
            done = pq.read_table(file)
            kept = done.filter(pc.invert(pc.is_in(done[ROW_KEY], value_set=bad)))
            if not kept.num_rows:
                file.unlink()
            elif kept.num_rows < done.num_rows:
                partial = self._unfinished(file.name)
                pq.write_table(kept, partial)
                partial.replace(file)

    def _unfinished(self, name: str) -> Path:
        """Where a file of done/ is written before it is whole: Ray reads all that lies there."""
        return self.root / f".{name}"

    def settle(self, target: Path, manifest: Mapping[str, Any]) -> None:
        """Empty rows/: the finished directory has all that counts.

        Args:
            target: the output directory.
            manifest: of it, written already.
        """
        old = [file for file in self.done.glob("*.parquet") if file.name != FINISHED]
        staged = list(self.rows.glob("*.parquet"))
        self.note_finished(target, manifest)
        # in this order, after a power loss too: whatever is left, every key of done/ has its row
        for file in old:
            file.unlink()
        sync_directory(self.done)
        for file in staged:
            file.unlink()

    def write_input(self, number: int, keys: pa.Array, path: str, first_row: int) -> None:
        """Note which rows a unit holds; done again by a read task that was retried.

        Args:
            number: of the unit in this run.
            keys: the row keys, in row order.
            path: the unit's file.
            first_row: number of the unit's first row in that file.
        """
        places = pa.array(range(first_row, first_row + len(keys)), pa.int64())
        paths = pa.DictionaryArray.from_arrays(
            pa.array([0] * len(keys), pa.int32()), pa.array([path], pa.string())
        )
        table = pa.Table.from_arrays([keys, paths, places], schema=INPUT_SCHEMA)
        file = self.input / f"unit-{number:07d}.parquet"
        partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
        pq.write_table(table, partial)
        os.replace(partial, file)

    def input_files(self) -> Iterator[Path]:
        """The files of input/, in the order of the units."""
        yield from sorted(self.input.glob("unit-*.parquet"))

    def inputs_by_number(self) -> dict[int, Path]:
        """The same files by the number of their unit."""
        return {int(file.stem.removeprefix("unit-")): file for file in self.input_files()}

    def count_input(self) -> int:
        """Rows of the units that were read to their end."""
        return sum(pq.read_metadata(file).num_rows for file in self.input_files())

    def count_done(self) -> int:
        """Rows that lie in rows/ for good; copies that were staged twice count twice."""
        return sum(pq.read_metadata(file).num_rows for file in self._done_files())

    def _done_files(self) -> list[Path]:
        """Ray's files of keys whose rows are written."""
        files = self.done.glob("*.parquet")
        return [file for file in files if not file.name.endswith(".pending.parquet")]
