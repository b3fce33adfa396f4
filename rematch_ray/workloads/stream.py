"""The training stream: executes the plan of an epoch with Ray Data, exactly and in order.

Read tasks are stretches of the steps still to come; they hand on encoded image bytes. CPU tasks
decode and run the processor. Every block is one row per rank-step that says which step and rank it
is for and of which rows it was made, and `batches` refuses any but the next. What a row means is
decided on the middle floor.

One dataset is split over the ranks (`streaming_split`) instead of one dataset per rank, because
the rows of a step lie scattered over the row groups of a shuffle window: ranks that read for
themselves would read every row group once each. Ray deals blocks to the rank with the fewest rows
so far; with blocks of equal height in a kept order that is in turn, the same in every run.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import ray.data

from rematch_ray.data.order import Plan, Step, SubBatch
from rematch_ray.data.readers.formats import open_links, read_links
from rematch_ray.data.readers.units import Unit
from rematch_ray.data.sources import list_source
from rematch_ray.errors import UserError
from rematch_ray.workloads.ahead import stay_within
from rematch_ray.workloads.pauses import LongPauseBetweenSteps
from rematch_ray.workloads.stages import ReadCall, plain_context, read_calls, reason_of

if TYPE_CHECKING:
    from rematch_ray.config import DataSettings

# one row: what one rank-step reads, first as a table of samples per sub-batch, then encoded; each
# table an Arrow stream, so that Ray never merges, cuts or converts it
BLOCK_SCHEMA = pa.schema(
    [
        ("epoch", pa.int64()),
        ("step", pa.int64()),
        ("index", pa.int64()),
        ("rank", pa.int64()),
        ("masked", pa.int64()),
        ("rows", pa.list_(pa.int64())),  # `SubBatch.mark` of what was read, per sub-batch
        ("error", pa.string()),
        ("tables", pa.list_(pa.large_binary())),
    ]
)
READ_CPUS = 0.25
# where a row was read, while it is on its way from its row group into a sub-batch
_GROUP, _ROW = "\0group", "\0row"

# Samples of one rank-step, a table per sub-batch; the step's index in the run; rows of a masked
# sub-batch that follows, 0 for none -> the table that the training step reads
EncodeStep = Callable[[list[pa.Table], int, int], pa.Table]


class StreamError(RuntimeError):
    """The stream handed out another batch than the next one of the plan."""


@dataclass(frozen=True)
class TrainingData:
    """The pieces of every source (row groups, or lines of a file), and the plan over them."""

    units: tuple[tuple[Unit, ...], ...]
    plan: Plan


def open_data(settings: "DataSettings", seed: int) -> TrainingData:
    """List the sources' pieces and lay the plan.

    Raises:
        UserError: a source that is missing, unreadable, of another schema or too small.
    """
    listed = [list_source(source) for source in settings.all_sources()]
    units = tuple(tuple(found) for found, _ in listed)
    return TrainingData(units, Plan(tuple(rows for _, rows in listed), seed, settings.order))


def rank_steps(
    data: TrainingData,
    encode: EncodeStep,
    *,
    start: int,
    stop: int,
    world_size: int,
    encoder_cpus: float = 1.0,
    readers: int = 1,
    ahead: int = 16,
) -> ray.data.Dataset:
    """Return the dataset of the rank-steps from `start` to `stop` (excluded), encoded, in order.

    Args:
        data: units and plan.
        encode: runs in CPU tasks; a UserError it raises travels in the block's `error`.
        start: first step, counted over the whole run.
        stop: step to end before.
        world_size: ranks that share each step.
        encoder_cpus: logical CPUs of an encode task.
        readers: read tasks that run at the same time.
        ahead: steps that are encoded before somebody takes them, at least 2.
    """
    plain_context(LongPauseBetweenSteps)
    stay_within(ahead * world_size)
    # smaller than any block: Ray then hands on each one-row table as it comes, merging none
    ray.data.DataContext.get_current().target_max_block_size = 1
    calls = read_tasks(data, start, stop, world_size)
    return read_calls(calls, num_cpus=READ_CPUS, at_once=readers).map_batches(
        _EncodeBlock(encode), batch_size=None, batch_format="pyarrow", num_cpus=encoder_cpus
    )


def read_tasks(data: TrainingData, start: int, stop: int, world_size: int) -> list[ReadCall]:
    """Cut the steps from `start` to `stop` (excluded) into read tasks, in order.

    Each spans a whole shuffle window, so that no row group is read more than about twice.
    """
    length = data.plan.window_steps
    stretches = [(begin, min(begin + length, stop)) for begin in range(start, stop, length)]
    return [
        ReadCall(ReadStretch(data, begin, end, world_size), (end - begin) * world_size)
        for begin, end in stretches
    ]


def split(dataset: ray.data.Dataset, world_size: int) -> list[ray.data.DataIterator]:
    """Return one iterator per rank; every rank must read its own at the same time as the others."""
    return dataset.streaming_split(world_size, equal=True)


@dataclass(frozen=True)
class RankStep:
    """What one rank gets for one step.

    Args:
        epoch: epoch of the step.
        step: step within the epoch.
        index: step within the run.
        table: what `encode` returned; None when a row was refused.
        error: why a row was refused, or "".
        waited_s: seconds the loop waited for this batch.
    """

    epoch: int
    step: int
    index: int
    table: pa.Table | None
    error: str
    waited_s: float


def batches(
    iterator: ray.data.DataIterator,
    plan: Plan,
    *,
    start: int,
    stop: int,
    rank: int,
    world_size: int,
    prefetch: int,
) -> Iterator[RankStep]:
    """Yield a rank's batches from step `start` to `stop`, each exactly the next one of the plan.

    Args:
        iterator: the rank's part of the dataset.
        plan: says which rows come next.
        start: first step.
        stop: step to end before.
        rank: whose batches.
        world_size: ranks that share each step.
        prefetch: batches that are fetched ahead.

    Raises:
        StreamError: another batch arrived, or the stream ended early.
    """
    expected = start
    asked = time.perf_counter()
    for block in iterator.iter_batches(
        batch_size=None, batch_format="pyarrow", prefetch_batches=prefetch
    ):
        for row in range(block.num_rows):
            epoch, step, index, error, tables = _unpack(block, row)
            waited = time.perf_counter() - asked
            got = RankStep(epoch, step, index, tables[0] if tables else None, error, waited)
            _refuse_another(got, block["rank"][row].as_py(), plan, expected, rank)
            if not error:
                dealt = plan.step(expected).for_rank(rank, world_size)
                _refuse_other_rows(block["rows"][row].as_py(), dealt, got, plan)
            yield got
            expected += 1
            asked = time.perf_counter()
    if expected != stop:
        raise StreamError(f"rank {rank}: the stream ended before step {expected} of {stop}")


def _refuse_another(got: RankStep, for_rank: int, plan: Plan, expected: int, rank: int) -> None:
    epoch, step = divmod(expected, plan.steps_per_epoch)
    if (got.epoch, got.step, got.index, for_rank) != (epoch, step, expected, rank):
        raise StreamError(
            f"rank {rank} expected epoch {epoch}, step {step} (step {expected} of the run) and was "
            f"handed epoch {got.epoch}, step {got.step} (step {got.index}) for rank {for_rank}"
        )


def _refuse_other_rows(
    marks: Sequence[int], dealt: Sequence[SubBatch], got: RankStep, plan: Plan
) -> None:
    where = (
        f"step {got.index} (epoch {got.epoch}, step {got.step}) came with other rows than planned"
    )
    if len(marks) != len(dealt):
        raise StreamError(f"{where}: {len(marks)} sub-batches instead of {len(dealt)}")
    for place, (mark, batch) in enumerate(zip(marks, dealt, strict=True)):
        if mark != batch.mark:
            name = plan.sources[batch.source].name
            raise StreamError(f"{where}, in its sub-batch {place}, which is of source {name}")


class ReadStretch:
    """Read task: the samples of consecutive steps, one block per rank and step."""

    def __init__(self, data: TrainingData, start: int, stop: int, world_size: int) -> None:
        self._data = data
        self._steps = (start, stop)
        self._world_size = world_size

    def __call__(self) -> Iterator[pa.Table]:
        """Yield the blocks in the plan's order, each step's ranks one after another."""
        row_groups = RowGroups(self._data)
        for step in self._data.plan.steps(*self._steps):
            for rank in range(self._world_size):
                masked = self._data.plan.masked_rows(rank, self._world_size)
                try:
                    dealt = step.for_rank(rank, self._world_size)
                    taken = [row_groups.rows(batch) for batch in dealt]
                    tables, marks = [table for table, _ in taken], [mark for _, mark in taken]
                    yield _pack(step, rank, tables, masked=masked, marks=marks)
                except UserError as error:
                    yield _pack(step, rank, [], error=reason_of(error))


class _EncodeBlock:
    """Map stage: decodes and processes the samples of one block."""

    def __init__(self, encode: EncodeStep) -> None:
        self._encode = encode

    def __call__(self, block: pa.Table) -> pa.Table:
        epoch, number, index, error, tables = _unpack(block, 0)
        step, rank = Step(index, epoch, number, ()), block["rank"][0].as_py()
        if error:
            return block
        try:
            encoded = self._encode(tables, index, block["masked"][0].as_py())
            return _pack(step, rank, [encoded], marks=block["rows"][0].as_py())
        except UserError as refused:
            return _pack(step, rank, [], error=reason_of(refused))


class RowGroups:
    """Row groups of every source, the last few kept: as many as two shuffle windows.

    Images that rows only refer to are opened for the rows that are taken, never for a whole group.
    """

    def __init__(self, data: TrainingData) -> None:
        self._units = data.units
        self._keep = 2 * data.plan.settings.window
        self._held: list[OrderedDict[int, pa.Table]] = [OrderedDict() for _ in data.units]

    def rows(self, batch: SubBatch) -> tuple[pa.Table, int]:
        """Return the rows of a sub-batch in its order, and the mark of what was taken."""
        order = np.argsort(batch.row_groups, kind="stable")
        groups, starts = np.unique(batch.row_groups[order], return_index=True)
        pieces = [
            self._row_group(batch.source, int(group)).take(pa.array(rows))
            for group, rows in zip(groups, np.split(batch.rows[order], starts[1:]), strict=True)
        ]
        together = pa.concat_tables(pieces, promote_options="permissive")
        taken = together.take(pa.array(np.argsort(order, kind="stable")))
        found = SubBatch(batch.source, taken[_GROUP].to_numpy(), taken[_ROW].to_numpy())
        taken = taken.drop_columns([_GROUP, _ROW])
        # of a source all units have the same format and settings
        return open_links(taken, self._units[batch.source][0]), found.mark

    def _row_group(self, source: int, group: int) -> pa.Table:
        held = self._held[source]
        if group not in held:
            read = pa.Table.from_batches(read_links(self._units[source][group]))
            read = read.append_column(_GROUP, pa.array(np.full(len(read), group)))
            held[group] = read.append_column(_ROW, pa.array(np.arange(len(read))))
            while len(held) > self._keep:
                held.popitem(last=False)
        held.move_to_end(group)
        return held[group]


def _pack(
    step: Step,
    rank: int,
    tables: Sequence[pa.Table],
    *,
    masked: int = 0,
    marks: Sequence[int] = (),
    error: str = "",
) -> pa.Table:
    streams = [_to_stream(table) for table in tables]
    # made over the buffer itself: Python bytes would be copied once more
    content = pa.py_buffer(b"".join(streams)) if len(streams) != 1 else streams[0]
    ends = np.cumsum([0, *(len(stream) for stream in streams)], dtype=np.int64)
    binaries = pa.Array.from_buffers(
        pa.large_binary(), len(streams), [None, pa.py_buffer(ends), content]
    )
    numbers = [pa.array([n], pa.int64()) for n in (step.epoch, step.step, step.index, rank, masked)]
    packed = pa.ListArray.from_arrays(pa.array([0, len(streams)], pa.int32()), binaries)
    rows = pa.array([list(marks)], pa.list_(pa.int64()))
    return pa.Table.from_arrays(
        [*numbers, rows, pa.array([error], pa.string()), packed], schema=BLOCK_SCHEMA
    )


def _to_stream(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _unpack(block: pa.Table, row: int) -> tuple[int, int, int, str, list[pa.Table]]:
    epoch, step, index, error = (
        block[name][row].as_py() for name in ("epoch", "step", "index", "error")
    )
    tables = []
    for stream in block["tables"][row].values:
        with pa.ipc.open_stream(stream.as_buffer()) as reader:
            tables.append(reader.read_all())
    return epoch, step, index, error, tables
