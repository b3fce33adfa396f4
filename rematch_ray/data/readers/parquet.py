"""Our own Parquet files of Items or Samples, unit by unit: format `rematch`.

A unit is one row group of one file: the smallest piece that is read on its own, retried, and
shuffled. Reading needs no Ray; `workloads/stages.py` runs it as Ray tasks. Middle floor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rematch_ray.data.columns import check_schema
from rematch_ray.data.item import SchemaError
from rematch_ray.data.readers.batches import conform, error_row, readable, to_batches
from rematch_ray.data.readers.file_list import FileEntry, FileList
from rematch_ray.data.readers.files import (
    FAILURES,
    Damaged,
    Place,
    look,
    open_file,
    parent,
)
from rematch_ray.data.readers.formats import Format
from rematch_ray.data.readers.linked_images import load_images
from rematch_ray.data.readers.one_payload import with_payload
from rematch_ray.data.readers.row_group import (
    check_group,
    group_batches,
    parquet_file,
)
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.units import Rows, Unit
from rematch_ray.data.readers.unread import media
from rematch_ray.data.schema import item_schema, sample_schema
from rematch_ray.errors import UserError

NAME = "rematch"
SUFFIX = ".parquet"
_REQUIRED: dict[Rows, tuple[str, ...]] = {"items": ("parts",), "samples": ("query", "positives")}


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
    for entry in (entry for path in given for entry in _files(look(path))):
        found = _file_units(entry, ReaderSettings(), rows)
        if found and rows is None:
            rows = found[0].rows
        units.extend(found)
    if not units:
        raise UserError(f"no rows in {', '.join(map(str, given)) or 'an empty list of paths'}")
    return units


def read_unit(
    unit: Unit, *, columns: Sequence[str] | None = None, batch_rows: int | None = None
) -> Iterator[pa.RecordBatch]:
    """Read one row group as it stands in the file.

    Args:
        unit: a row group of any Parquet file.
        columns: columns to read; None reads all.
        batch_rows: largest batch; None gives the whole row group in as few batches as it has.

    Yields:
        Record batches, rows in file order, with the file's schema.

    Raises:
        UserError: the file went away or changed since it was listed, or its data is damaged.
    """
    try:
        with parquet_file(unit.path) as file:
            check_group(file, unit.path, unit.begin, num_rows=unit.num_rows)
            table = file.read_row_group(unit.begin, columns=columns, use_threads=False)
    except FAILURES as error:
        raise UserError(f"{unit.path}: row group {unit.begin} cannot be read: {error}") from error
    yield from table.to_batches(max_chunksize=batch_rows)


def read_table(paths: str | Path | Sequence[str | Path], *, rows: Rows | None = None) -> pa.Table:
    """All rows of files and folders as one table; for data that fits in memory."""
    tables = [pa.Table.from_batches(read_unit(unit)) for unit in list_units(paths, rows=rows)]
    return pa.concat_tables(tables, promote_options="permissive")


def row_groups(path: str) -> tuple[pa.Schema, list[tuple[int, int, int]], str]:
    """What a Parquet file's footer says.

    Returns:
        The schema; (number, rows, bytes) of every row group that has rows; a stamp of the footer,
        which holds the sizes and value ranges of every column, so that most changes show.

    Raises:
        UserError: not Parquet, or its footer is damaged.
    """
    try:
        with open_file(path) as source:
            with pq.ParquetFile(source) as file:
                metadata = file.metadata
                schema = file.schema_arrow
            size = source.size()
            source.seek(size - 8)
            length = int.from_bytes(source.read(4), "little")
            source.seek(size - 8 - length)
            stamp = hashlib.sha256(source.read(length)).hexdigest()
    except FAILURES as error:
        raise UserError(f"{path}: not a readable Parquet file: {error}") from error
    found = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        size = sum(group.column(i).total_compressed_size for i in range(group.num_columns))
        found.append((number, group.num_rows, size))
    return schema, found, stamp


def _files(place: Place) -> Sequence[FileEntry]:
    if not place.is_folder:
        return place.files
    files = _reads(place)
    if not files:
        raise UserError(f"{place.path}: the folder holds no *.parquet file")
    return files


def _reads(place: Place) -> FileList:
    """Those of the folder itself: below it lie other tables (`corpus/` beside training rows)."""
    return place.top.ending(SUFFIX)


def _file_units(entry: FileEntry, settings: ReaderSettings, rows: Rows | None) -> list[Unit]:
    schema, groups, stamp = row_groups(entry.path)
    kind = rows or _kind_of(schema, entry.path)
    if kind == "items":
        # a footer does not tell every change (a letter in the middle of a long text), and a corpus
        # is not read anew where none is told. Training rows are known by content alone: a run goes
        # on with a copy of them
        stamp = f"{stamp}:{entry.stamp}"
    expected = item_schema() if kind == "items" else sample_schema()
    check_schema(schema, expected, required=_REQUIRED[kind], where=entry.path)
    payload = None
    if kind == "items" and "payload" in schema.names:
        payload = schema.field("payload").type
    first_rows = accumulate((num_rows for _, num_rows, _ in groups), initial=0)
    return [
        Unit(
            format=NAME,
            path=entry.path,
            rows=kind,
            num_rows=num_rows,
            num_bytes=size,
            first_row=first_row,
            begin=number,
            end=number + 1,
            stamp=stamp,
            payload=payload,
            settings=settings,
        )
        for (number, num_rows, size), first_row in zip(groups, first_rows)
        if num_rows
    ]


def _kind_of(schema: pa.Schema, path: str) -> Rows:
    for kind, required in _REQUIRED.items():
        if required[0] in schema.names:
            return kind
    raise SchemaError(
        f"{path}: neither Items (column 'parts') nor Samples (columns 'query', 'positives'); "
        f"columns: {', '.join(schema.names) or 'none'}"
    )


def _kind(place: Place) -> Rows:
    first = _files(place)[0].path
    return _kind_of(row_groups(first)[0], first)


def _detect(place: Place) -> str | None:
    for entry in _reads(place)[:1]:
        schema, _, _ = row_groups(entry.path)
        kinds = [f"columns {', '.join(n)}" for n in _REQUIRED.values() if _has(schema, n)]
        return kinds[0] if kinds else None
    return None


def _has(schema: pa.Schema, names: Sequence[str]) -> bool:
    """Whether the columns are there as structs or lists: `query` of other formats is a text."""
    return all(n in schema.names and pa.types.is_nested(schema.field(n).type) for n in names)


def _list(place: Place, settings: ReaderSettings, rows: Rows) -> Iterator[Unit]:
    for entry in _files(place):
        root = settings.image_root or parent(entry.path)
        yield from _file_units(entry, settings.model_copy(update={"image_root": root}), rows)


def _read(unit: Unit) -> Iterator[pa.RecordBatch]:
    schema = item_schema(unit.payload) if unit.rows == "items" else None
    done = 0
    try:
        for batch in group_batches(unit.path, unit.begin, num_rows=unit.counted_rows):
            own = batch if schema is None else _as_items(batch)
            found = readable(_with_source(own, unit.settings.source))
            for whole in found if schema is None else with_payload(found, unit.payload):
                yield whole
                done += len(whole)
    except Damaged as error:
        rows = range(unit.first_row + done, unit.first_row + unit.counted_rows)
        source = unit.settings.source
        told = (error_row(f"{unit.path}, row {n}: {error}", source=source) for n in rows)
        if schema is None:
            nothing = pa.RecordBatch.from_pylist([], schema=row_groups(unit.path)[0])
            schema = _with_source(nothing, source).schema
        yield from to_batches(told, schema)


def _as_items(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The columns of an Item, the payload as the file has it."""
    place = batch.schema.get_field_index("payload")
    return conform(batch, item_schema(batch.schema.field(place).type if place >= 0 else None))


def _with_source(batch: pa.RecordBatch, source: str | None) -> pa.RecordBatch:
    """Rows that carry no source have this one."""
    if source is None:
        return batch
    field = pa.field("source", pa.string())
    if "source" not in batch.schema.names:
        return batch.append_column(field, pa.array([source] * batch.num_rows, pa.string()))
    own = batch.column("source").cast(pa.string())
    filled = pc.if_else(pc.equal(pc.fill_null(own, ""), ""), source, own)
    return batch.set_column(batch.schema.get_field_index("source"), field, filled)


FORMATS = (
    Format(
        name=NAME,
        claim="our own Parquet files (columns parts, or query and positives)",
        rows=("items", "samples"),
        detect=_detect,
        list_units=_list,
        read_unit=_read,
        reads=lambda place, settings: _reads(place),
        beside=media,
        open_rows=load_images,
        kind=_kind,
        uses=frozenset({"image_root", "url_hosts", "url_bytes", "url_seconds"}),
    ),
)
