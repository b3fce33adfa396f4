"""Our own Parquet files of Items or Samples, unit by unit.

A unit is one row group of one file: the smallest piece that is read on its own, retried, and
shuffled. Reading needs no Ray; `workloads/stages.py` runs it as Ray tasks. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from rematch_ray.data.columns import check_schema
from rematch_ray.data.item import SchemaError
from rematch_ray.data.schema import item_schema, sample_schema
from rematch_ray.errors import UserError

Rows = Literal["items", "samples"]
_REQUIRED: dict[Rows, tuple[str, ...]] = {"items": ("parts",), "samples": ("query", "positives")}


@dataclass(frozen=True)
class Unit:
    """One row group.

    Attributes:
        path: the file.
        row_group: its number in the file.
        num_rows: rows in it.
        num_bytes: bytes on disk.
        first_row: number of its first row in the file.
        rows: what the rows are.
    """

    path: str
    row_group: int
    num_rows: int
    num_bytes: int
    first_row: int
    rows: Rows


def list_units(paths: str | Path | Sequence[str | Path], *, rows: Rows | None = None) -> list[Unit]:
    """The row groups of files and folders, in reading order; every file's columns are checked.

    Args:
        paths: Parquet files, or folders whose `*.parquet` files are read in order of their names.
        rows: what the files must hold; None accepts either, but the same in all.

    Returns:
        The units; empty row groups are left out.

    Raises:
        UserError: a path is not there, is not Parquet, or holds no row.
        SchemaError: a column is missing or has the wrong type; names the file and the column.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    units: list[Unit] = []
    for file in (file for path in given for file in _files(Path(path))):
        found = _file_units(file, rows)
        if found and rows is None:
            rows = found[0].rows
        units.extend(found)
    if not units:
        raise UserError(f"no rows in {', '.join(map(str, given)) or 'an empty list of paths'}")
    return units


def read_unit(
    unit: Unit, *, columns: Sequence[str] | None = None, batch_rows: int | None = None
) -> Iterator[pa.RecordBatch]:
    """Read one row group.

    Args:
        unit: from `list_units`.
        columns: columns to read; None reads all.
        batch_rows: largest batch; None gives the whole row group in as few batches as it has.

    Yields:
        Record batches, rows in file order, with the file's schema.

    Raises:
        UserError: the file went away or changed since it was listed, or its data is damaged.
    """
    try:
        with pq.ParquetFile(unit.path) as file:
            if unit.row_group >= file.metadata.num_row_groups or (
                file.metadata.row_group(unit.row_group).num_rows != unit.num_rows
            ):
                raise UserError(
                    f"{unit.path}: row group {unit.row_group} is no longer what it was when the "
                    "data was listed; do not write to a data set while it is being read"
                )
            table = file.read_row_group(unit.row_group, columns=columns, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{unit.path}: row group {unit.row_group} cannot be read: {error}"
        ) from error
    yield from table.to_batches(max_chunksize=batch_rows)


def read_table(paths: str | Path | Sequence[str | Path], *, rows: Rows | None = None) -> pa.Table:
    """All rows of files and folders as one table; for data that fits in memory."""
    tables = [pa.Table.from_batches(read_unit(unit)) for unit in list_units(paths, rows=rows)]
    return pa.concat_tables(tables, promote_options="permissive")


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
        if not files:
            raise UserError(f"{path}: the folder holds no *.parquet file")
        return files
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    return [path]


def _file_units(path: Path, rows: Rows | None) -> list[Unit]:
    try:
        metadata = pq.read_metadata(path)
        schema = metadata.schema.to_arrow_schema()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a readable Parquet file: {error}") from error
    kind = rows or _kind_of(schema, path)
    expected = item_schema() if kind == "items" else sample_schema()
    check_schema(schema, expected, required=_REQUIRED[kind], where=str(path))
    units = []
    first_row = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if group.num_rows:
            size = sum(group.column(i).total_compressed_size for i in range(group.num_columns))
            units.append(Unit(str(path), number, group.num_rows, size, first_row, kind))
        first_row += group.num_rows
    return units


def _kind_of(schema: pa.Schema, path: Path) -> Rows:
    for kind, required in _REQUIRED.items():
        if required[0] in schema.names:
            return kind
    raise SchemaError(
        f"{path}: neither Items (column 'parts') nor Samples (columns 'query', 'positives'); "
        f"columns: {', '.join(schema.names) or 'none'}"
    )
