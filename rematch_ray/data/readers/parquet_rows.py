"""Pieces of Parquet files in foreign layouts: row groups, and parts of large ones.

Unlike in our own Parquet (parquet.py) row groups may hold any number of rows. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import pyarrow as pa

from rematch_ray.data.readers.files import FAILURES, FileEntry
from rematch_ray.data.readers.parquet import parquet_file, row_groups
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.units import Rows, Unit
from rematch_ray.errors import UserError


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


def read_group(unit: Unit) -> pa.Table:
    """The rows of a piece.

    Raises:
        UserError: the file is gone, damaged, or not what it was when it was listed.
    """
    number, num_rows = unit.options["row_group"], unit.options["row_group_rows"]
    # the parts of a large row group are asked for one after another: it is decoded once for them
    read = _kept_row_group if unit.end - unit.begin < num_rows else _row_group
    return read(unit.path, number, num_rows).slice(unit.begin, unit.end - unit.begin)


def _row_group(path: str, number: int, num_rows: int) -> pa.Table:
    try:
        with parquet_file(path) as file:
            groups = file.metadata.num_row_groups
            if number >= groups or file.metadata.row_group(number).num_rows != num_rows:
                raise UserError(
                    f"{path}: row group {number} is no longer what it was when the data was "
                    "listed; do not write to a data set while it is being read"
                )
            return file.read_row_group(number, use_threads=False)
    except FAILURES as error:
        raise UserError(f"{path}: row group {number} cannot be read: {error}") from error


_kept_row_group = lru_cache(maxsize=2)(_row_group)
