"""Pieces of Parquet files in foreign layouts: row groups, and parts of large ones.

Unlike in our own Parquet (parquet.py) row groups may hold any number of rows. Middle floor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from typing import Any

import pyarrow as pa

from rematch_ray.data.readers.batches import plain_rows
from rematch_ray.data.readers.files import Damaged, FileEntry
from rematch_ray.data.readers.parquet import row_groups
from rematch_ray.data.readers.row_group import group_batches
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.units import Rows, Unit

# a row group that training asks for in parts, in any order, is kept decoded up to this size
KEPT_BYTES = 64 * 2**20


def parquet_columns(path: str) -> tuple[str, ...]:
    """Names of a file's columns."""
    schema, _, _ = row_groups(path)
    return tuple(schema.names)


def list_groups(
    entry: FileEntry, name: str, rows: Rows, settings: ReaderSettings, *, unit_rows: int
) -> Iterator[Unit]:
    """The row groups of a file, larger ones in parts; `begin` and `end` are rows of the group."""
    _, groups, stamp = row_groups(entry.path)
    first_row = 0
    for number, num_rows, num_bytes in groups:
        for begin in range(0, num_rows, unit_rows):
            end = min(begin + unit_rows, num_rows)
            yield Unit(
                format=name,
                path=entry.path,
                rows=rows,
                num_rows=end - begin,
                num_bytes=num_bytes * (end - begin) // num_rows,
                first_row=first_row + begin,
                begin=begin,
                end=end,
                stamp=f"{stamp}:{number}",
                settings=settings,
                options={"row_group": number, "row_group_rows": num_rows},
            )
        first_row += num_rows


def read_group(unit: Unit, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a piece, a few at a time.

    Args:
        unit: a row group or a part of one.
        columns: those that are decoded; None = all.

    Raises:
        UserError: the file is gone, or not what it was when it was listed.
        Damaged: its bytes cannot be decoded; comes behind the rows before them.
    """
    group = _Group(
        unit.path,
        unit.stamp,
        unit.options["row_group"],
        unit.options["row_group_rows"],
        None if columns is None else tuple(columns),
    )
    if unit.rows == "samples" and unit.end - unit.begin < group.num_rows:
        table = _kept(group)
        if table is not None:
            return iter(table.slice(unit.begin, unit.end - unit.begin).to_batches())
    return _part(group, unit.begin, unit.end)


def read_cells(
    unit: Unit, columns: Sequence[str] | None = None
) -> Iterator[tuple[dict[str, Any], str]]:
    """Every row of a piece as a dict, with the reason why it cannot be read, "" = it can.

    Args:
        unit: a row group or a part of one.
        columns: those that are read; None = all.

    Raises:
        UserError: the file is gone, or not what it was when it was listed.
    """
    done = 0
    try:
        for batch in read_group(unit, columns):
            for found in plain_rows(batch):
                yield found
                done += 1
    except Damaged as error:
        yield from repeat(({}, str(error)), unit.counted_rows - done)


@dataclass(frozen=True)
class _Group:
    """A row group as it was listed, and the columns that are needed of it."""

    path: str
    stamp: str
    number: int
    num_rows: int
    columns: tuple[str, ...] | None

    def batches(self) -> Iterator[pa.RecordBatch]:
        return group_batches(self.path, self.number, num_rows=self.num_rows, columns=self.columns)


@lru_cache(maxsize=2)
def _kept(group: _Group) -> pa.Table | None:
    """A whole row group, or None where it is too large to be kept."""
    held, size = [], 0
    try:
        for batch in group.batches():
            held.append(batch)
            size += batch.nbytes
            if size > KEPT_BYTES:
                return None
    # its rows are asked for one by one: those before the damage can be read
    except Damaged:
        return None
    return pa.Table.from_batches(held)


@dataclass
class _Cursor:
    """How far a row group was decoded; Parquet can be entered at its beginning only.

    Attributes:
        group: which one.
        batches: what is still to come.
        place: rows before `rest`.
        rest: rows that were decoded with others and not asked for yet.
    """

    group: _Group
    batches: Iterator[pa.RecordBatch]
    place: int = 0
    rest: pa.RecordBatch | None = None

    def until(self, end: int) -> Iterator[pa.RecordBatch]:
        """The rows from here up to `end`."""
        while self.place < end:
            batch = next(self.batches) if self.rest is None else self.rest
            taken = batch.slice(0, end - self.place)
            self.rest = batch.slice(len(taken)) if len(taken) < len(batch) else None
            self.place += len(taken)
            yield taken


# of the group that this process read last: its parts are asked for one after another, and each
# would otherwise be decoded from the group's beginning
_last: deque[_Cursor] = deque(maxlen=1)


def _part(group: _Group, begin: int, end: int) -> Iterator[pa.RecordBatch]:
    try:
        cursor = _last.pop()
    except IndexError:
        cursor = None
    if cursor is None or cursor.group != group or cursor.place > begin:
        cursor = _Cursor(group, group.batches())
    for _ in cursor.until(begin):
        pass
    yield from cursor.until(end)
    if end < group.num_rows:
        _last.append(cursor)
