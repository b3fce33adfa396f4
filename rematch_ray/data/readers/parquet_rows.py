"""Pieces of Parquet files in foreign layouts: row groups, and parts of large ones.

Unlike our own Parquet (parquet.py) nothing is known of the columns, and row groups may hold any
number of rows. Middle floor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache

import pyarrow as pa
import pyarrow.parquet as pq

from rematch_ray.data.readers.files import FAILURES, FileEntry, open_file
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.units import Rows, Unit
from rematch_ray.errors import UserError


def parquet_columns(path: str) -> tuple[str, ...]:
    """Names of a file's columns."""
    return tuple(_metadata(path).schema.to_arrow_schema().names)


def list_groups(
    entry: FileEntry, name: str, rows: Rows, settings: ReaderSettings, *, unit_rows: int
) -> Iterator[Unit]:
    """The row groups of a file, larger ones in parts; `begin` and `end` are rows of the group."""
    metadata = _metadata(entry.path)
    stamp = _stamp(metadata)
    first_row = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        size = sum(group.column(i).total_compressed_size for i in range(group.num_columns))
        for begin in range(0, group.num_rows, unit_rows):
            end = min(begin + unit_rows, group.num_rows)
            yield Unit(
                format=name,
                path=entry.path,
                rows=rows,
                num_rows=end - begin,
                num_bytes=size * (end - begin) // group.num_rows,
                first_row=first_row + begin,
                begin=begin,
                end=end,
                stamp=stamp,
                settings=settings,
                options={"row_group": number, "row_group_rows": group.num_rows},
            )
        first_row += group.num_rows


def read_group(unit: Unit) -> pa.Table:
    """The rows of a piece.

    Raises:
        UserError: the file is gone, damaged, or not what it was when it was listed.
    """
    number, count = unit.options["row_group"], unit.options["row_group_rows"]
    # the parts of a large row group are asked for one after another: it is decoded once for them
    read = _kept_row_group if unit.end - unit.begin < count else _row_group
    return read(unit.path, number, count).slice(unit.begin, unit.end - unit.begin)


def _row_group(path: str, number: int, num_rows: int) -> pa.Table:
    try:
        with open_file(path) as source, pq.ParquetFile(source) as file:
            if (
                number >= file.num_row_groups
                or file.metadata.row_group(number).num_rows != num_rows
            ):
                raise UserError(
                    f"{path}: row group {number} is no longer what it was when the data was "
                    "listed; do not write to a data set while it is being read"
                )
            return file.read_row_group(number, use_threads=False)
    except FAILURES as error:
        raise UserError(f"{path}: row group {number} cannot be read: {error}") from error


_kept_row_group = lru_cache(maxsize=2)(_row_group)


def _metadata(path: str) -> pq.FileMetaData:
    try:
        with open_file(path) as source:
            return pq.read_metadata(source)
    except FAILURES as error:
        raise UserError(f"{path}: not a readable Parquet file: {error}") from error


def _stamp(metadata: pq.FileMetaData) -> str:
    """Sizes and value ranges of every column of every row group: other content shows."""
    return hashlib.sha256(repr(metadata.to_dict()).encode()).hexdigest()
