"""JSONL files with a column mapping: format `jsonl`, a row per line, cut by bytes.

Listing reads only the beginning of files, which shows columns and types. Middle floor.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import pyarrow as pa

from rematch_ray.data.readers.batches import error_row, to_batches
from rematch_ray.data.readers.file_list import FileEntry, FileList
from rematch_ray.data.readers.files import Damaged, Place, parent
from rematch_ray.data.readers.formats import Format
from rematch_ray.data.readers.inferred import inferred_schema
from rematch_ray.data.readers.lines import COMPRESSED, lines_between, ranges
from rematch_ray.data.readers.mapping import (
    Mapped,
    item_row,
    map_columns,
    tell_unseen,
)
from rematch_ray.data.readers.sample_rows import Row
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.units import Rows, Unit
from rematch_ray.data.readers.unread import images
from rematch_ray.data.schema import item_schema
from rematch_ray.errors import UserError

NAME = "jsonl"
SUFFIXES = tuple(f"{name}{end}" for name in (".jsonl", ".ndjson") for end in ("", *COMPRESSED))
# columns and types are told by this much of the first file, and a little of some others
FIRST_BYTES, OTHER_BYTES, OTHER_FILES = 2**20, 2**15, 32
PACKED_LINES = 1000
MAPPED_USES = frozenset({"columns", "image_root", "url_hosts", "url_bytes", "url_seconds"})


def parsed(line: bytes, where: str) -> dict[str, Any]:
    """The object on a line.

    Raises:
        UserError: no JSON, or not an object; says where.
    """
    try:
        row = json.loads(line)
    # RecursionError: thousands of brackets
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: a {type(row).__name__}, not an object with fields")
    return row


def _list(place: Place, settings: ReaderSettings, rows: Rows) -> Iterator[Unit]:
    entries = _files(place) or (() if place.is_folder else place.files)
    if not entries:
        raise UserError(f"{place.path}: no {', '.join(SUFFIXES[:2])} file")
    found, row_bytes, is_partial = _sample(entries)
    schema = inferred_schema(found)
    if not schema.names:
        return
    where = entries[0].path
    mapped = map_columns(schema, settings, where, is_open=True, is_partial=is_partial)
    tell_unseen(schema, settings, where)
    size = settings.unit_bytes
    if mapped.has_images:
        size = min(size, settings.unit_files * row_bytes)
    for entry in entries:
        for begin, end in ranges(entry, size):
            yield Unit(
                format=NAME,
                path=entry.path,
                rows=rows,
                num_rows=None,
                num_bytes=end - begin,
                begin=begin,
                end=end,
                stamp=entry.stamp,
                payload=mapped.payload,
                settings=settings,
                options={"schema": schema},
            )


def _read(unit: Unit) -> Iterator[pa.RecordBatch]:
    yield from to_batches(_rows(unit), item_schema(unit.payload))


def _rows(unit: Unit) -> Iterator[Row]:
    schema = unit.options["schema"]
    mapped = map_columns(schema, unit.settings, unit.path, is_open=True, is_partial=True)
    mapped = replace(mapped, captions=unit.options.get("captions", ()))
    try:
        for begin, line in lines_between(unit.path, unit.begin, unit.end):
            if line.strip():
                yield _row(line, mapped, unit, where=f"{unit.path}, byte {begin}")
    # a file that ends early: what came before that was read
    except Damaged as error:
        yield error_row(str(error), source=unit.settings.source)


def _row(line: bytes, mapped: Mapped, unit: Unit, *, where: str) -> Row:
    try:
        values = parsed(line, where)
    except UserError as error:
        return error_row(str(error), source=unit.settings.source)
    return item_row(values, mapped, unit.settings, folder=parent(unit.path), where=where)


def _sample(entries: Sequence[FileEntry]) -> tuple[list[Row], int, bool]:
    """Rows from the beginnings of files, a row's bytes, and whether there are more rows.

    Lines that are not JSON say nothing here: they will be error rows.
    """
    found: list[Row] = []
    size = 0
    is_partial = len(entries) > 1 + OTHER_FILES
    for number, entry in enumerate(entries[: 1 + OTHER_FILES]):
        end = OTHER_BYTES if number else FIRST_BYTES
        lines = lines_between(entry.path, 0, end)
        is_packed = entry.suffix in COMPRESSED
        for row, num_bytes in _objects(islice(lines, PACKED_LINES if is_packed else None)):
            found.append(row)
            size += num_bytes
        is_partial |= _has_more(lines) if is_packed else entry.size > end
        if number == 0 and entry.size and not found:
            _refuse(entry)
    return found, max(1, size // max(1, len(found))), is_partial


def _objects(lines: Iterator[tuple[int, bytes]]) -> Iterator[tuple[Row, int]]:
    """The objects in lines, each with the bytes of its line."""
    try:
        for begin, line in lines:
            if line.strip():
                try:
                    row = parsed(line, f"byte {begin}")
                except UserError:
                    continue
                yield row, len(line)
    # one row will say so
    except Damaged:
        return


def _has_more(lines: Iterator[tuple[int, bytes]]) -> bool:
    try:
        return next(lines, None) is not None
    except Damaged:
        return False


def _refuse(entry: FileEntry) -> None:
    """Say what is wrong with a file of which no line is an object."""
    for begin, line in lines_between(entry.path, 0, 1):
        if line.strip():
            parsed(line, f"{entry.path}, byte {begin} (and no other line at its beginning is)")


def _files(place: Place) -> FileList:
    return place.ending(*SUFFIXES)


def _detect(place: Place) -> str | None:
    found = _files(place)
    return f"{len(found)} JSONL files" if found else None


FORMATS = (
    Format(
        name=NAME,
        claim="JSONL with any fields (--columns text=caption,image=img,id=key)",
        rows=("items",),
        detect=_detect,
        list_units=_list,
        read_unit=_read,
        reads=lambda place, settings: _files(place),
        beside=images,
        uses=MAPPED_USES | {"unit_bytes", "unit_files"},
    ),
)
