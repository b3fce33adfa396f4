"""CSV and TSV files with a column mapping: format `csv`.

A quoted field may hold line ends, so that a file can be cut only where it was read from the start:
listing parses it once, which also counts its rows. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from rematch_ray.data.item import SchemaError
from rematch_ray.data.readers.batches import error_row, is_text, to_batches
from rematch_ray.data.readers.csv_records import Record, records
from rematch_ray.data.readers.file_list import FileEntry, FileList
from rematch_ray.data.readers.files import Place, parent
from rematch_ray.data.readers.formats import Format
from rematch_ray.data.readers.inferred import inferred_schema
from rematch_ray.data.readers.json_lines import MAPPED_USES
from rematch_ray.data.readers.lines import COMPRESSED, lines_between
from rematch_ray.data.readers.mapping import Mapped, item_row, map_columns
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.units import Rows, Unit
from rematch_ray.data.readers.unread import images
from rematch_ray.data.schema import item_schema
from rematch_ray.errors import UserError

NAME = "csv"
SUFFIXES = tuple(f"{name}{end}" for name in (".csv", ".tsv") for end in ("", *COMPRESSED))
DELIMITERS = ",\t;|"
TYPE_ROWS = 1000


def _list(place: Place, settings: ReaderSettings, rows: Rows) -> Iterator[Unit]:
    entries = _files(place) or (() if place.is_folder else place.files)
    if not entries:
        raise UserError(f"{place.path}: no {', '.join(SUFFIXES[:2])} file")
    for entry in entries:
        yield from _file_units(entry, settings, rows)


def _file_units(entry: FileEntry, settings: ReaderSettings, rows: Rows) -> Iterator[Unit]:
    delimiter = _delimiter(entry)
    begin, names = next(_records(entry.path, delimiter), (0, []))
    if not names:
        return
    if isinstance(names, str):
        raise SchemaError(f"{entry.path}: its first row, the names of the columns, has {names}")
    for name in names:
        if not is_text(name):
            shown = name.encode(errors="surrogateescape")
            raise SchemaError(
                f"{entry.path}: the column name {shown!r} is not UTF-8; save the file as UTF-8 "
                "(iconv -f LATIN1 -t UTF-8)"
            )
    if len(set(names)) < len(names):
        raise SchemaError(f"{entry.path}: column names repeat: {', '.join(names)}")
    sample = islice(_records(entry.path, delimiter, len(names)), 1, 1 + TYPE_ROWS)
    schema = _schema(names, (record for _, record in sample if not isinstance(record, str)))
    mapped = map_columns(schema, settings, entry.path, is_open=True)
    first_row = 0
    found = islice(_records(entry.path, delimiter, len(names)), 1, None)
    unit_rows = settings.unit_files if mapped.has_images else None
    for begin, end, num_rows in _cuts(entry, found, settings.unit_bytes, unit_rows):
        yield Unit(
            format=NAME,
            path=entry.path,
            rows=rows,
            num_rows=num_rows,
            num_bytes=end - begin,
            first_row=first_row,
            begin=begin,
            end=end,
            stamp=entry.stamp,
            payload=mapped.payload,
            settings=settings,
            options={"schema": schema, "delimiter": delimiter},
        )
        first_row += num_rows


def _cuts(
    entry: FileEntry, found: Iterator[Record], unit_bytes: int, unit_rows: int | None
) -> Iterator[tuple[int, int, int]]:
    """(begin, end, rows) of the pieces, each from the begin of a record; the header is in none."""
    whole = entry.suffix in COMPRESSED
    start = num_rows = 0
    for begin, _ in found:
        if not num_rows:
            start = begin
        elif not whole and (begin - start >= unit_bytes or num_rows == unit_rows):
            yield start, begin, num_rows
            start, num_rows = begin, 0
        num_rows += 1
    if num_rows:
        yield start, max(entry.size, start + 1), num_rows


def _read(unit: Unit) -> Iterator[pa.RecordBatch]:
    yield from to_batches(_rows(unit), item_schema(unit.payload))


def _rows(unit: Unit) -> Iterator[dict[str, Any]]:
    schema, delimiter = unit.options["schema"], unit.options["delimiter"]
    mapped = map_columns(schema, unit.settings, unit.path, is_open=True)
    folder = parent(unit.path)
    lines = lines_between(unit.path, unit.begin, unit.end)
    for begin, record in records(lines, delimiter, len(schema)):
        where = f"{unit.path}, byte {begin}"
        if isinstance(record, str):
            yield error_row(f"{where}: {record}", source=unit.settings.source)
        elif len(record) != len(schema):
            reason = f"{where}: {len(record)} fields, the header has {len(schema)}"
            yield error_row(reason, source=unit.settings.source)
        else:
            told = dict(zip(schema.names, record, strict=True))
            values = _values(told, schema, mapped)
            told = {name: told[name] for name in values}
            yield item_row(values, mapped, unit.settings, folder=folder, where=where, told=told)


def _values(row: dict[str, str], schema: pa.Schema, mapped: Mapped) -> dict[str, Any]:
    """Cells as values: empty is none; numbers only where the whole column looked like numbers."""
    return {
        name: cell if name in mapped.used or pa.types.is_string(kind) else _number(cell)
        for (name, cell), kind in zip(row.items(), schema.types, strict=True)
        if cell != ""
    }


def _schema(names: Sequence[str], sample: Iterator[list[str]]) -> pa.Schema:
    rows = [
        {name: _number(cell) for name, cell in zip(names, record) if cell != ""}
        for record in sample
    ]
    # every column is there, seen filled or not
    return inferred_schema([dict.fromkeys(names), *rows])


def _number(cell: str) -> int | float | str:
    """A number that is written as Python would write it; 007 and +1 are names."""
    for kind in (int, float):
        try:
            number = kind(cell)
        except ValueError:
            continue
        if str(number) == cell:
            return number
    return cell


def _records(path: str, delimiter: str, num_fields: int | None = None) -> Iterator[Record]:
    return records(lines_between(path, 0, 2**62), delimiter, num_fields)


def _delimiter(entry: FileEntry) -> str:
    """A tab in .tsv files, else what the first line has most of."""
    if ".tsv" in entry.name.lower():
        return "\t"
    first = next(lines_between(entry.path, 0, 1), (0, b""))[1].decode(errors="replace")
    return max(DELIMITERS, key=first.count)


def _files(place: Place) -> FileList:
    return place.ending(*SUFFIXES)


def _detect(place: Place) -> str | None:
    found = _files(place)
    return f"{len(found)} CSV files" if found else None


FORMATS = (
    Format(
        name=NAME,
        claim="CSV or TSV with a header (--columns text=caption,image=img,id=key)",
        rows=("items",),
        detect=_detect,
        list_units=_list,
        read_unit=_read,
        reads=lambda place, settings: _files(place),
        beside=images,
        uses=MAPPED_USES | {"unit_bytes", "unit_files"},
    ),
)
