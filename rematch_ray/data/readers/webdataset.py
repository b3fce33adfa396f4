"""WebDataset tars: format `webdataset`, a row per key (`key.jpg` with `key.txt`, `key.json`).

A plain local tar is cut between keys; others are read whole. How members become groups is in
tar_groups.py. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from rematch_ray.data.readers.batches import error_row, to_batches
from rematch_ray.data.readers.endings import TABLES, TARS
from rematch_ray.data.readers.file_list import FileEntry, FileList
from rematch_ray.data.readers.files import Damaged, Place, StorageError
from rematch_ray.data.readers.formats import Format
from rematch_ray.data.readers.mapping import Mapped
from rematch_ray.data.readers.sample_rows import Row
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.sidecars import (
    IMAGE,
    SAMPLE,
    item_of,
    mapped_values,
    values_of,
    values_schema,
)
from rematch_ray.data.readers.tar_groups import END, Group, groups, is_seekable
from rematch_ray.data.readers.units import Rows, Unit
from rematch_ray.data.schema import item_schema
from rematch_ray.errors import UserError

NAME = "webdataset"


def _list(place: Place, settings: ReaderSettings, rows: Rows) -> Iterator[Unit]:
    entries = _tars(place) or (() if place.is_folder else place.files)
    if not entries:
        raise UserError(f"{place.path}: no {', '.join(TARS)} file")
    schema = _schema(entries, settings)
    payload = mapped_values(schema, settings, entries[0].path).payload
    for entry in entries:
        first_row = 0
        for begin, end, num_rows in _cuts(entry, settings):
            yield Unit(
                format=NAME,
                path=entry.path,
                rows=rows,
                num_rows=num_rows,
                num_bytes=min(end, entry.size) - begin,
                first_row=first_row,
                begin=begin,
                end=end,
                stamp=entry.stamp,
                payload=payload,
                settings=settings,
                options={"schema": schema},
            )
            first_row += num_rows or 0


def _cuts(entry: FileEntry, settings: ReaderSettings) -> Iterator[tuple[int, int, int | None]]:
    """(begin, end, keys) of the pieces; only headers are read, too many to ask a store for."""
    if not is_seekable(entry.path):
        yield 0, END, None
        return
    start = num_rows = 0
    known = True
    try:
        for group in groups(entry.path, 0, END, with_contents=False):
            if num_rows and (
                group.begin - start >= settings.unit_bytes or num_rows == settings.unit_files
            ):
                yield start, group.begin, num_rows
                start, num_rows = group.begin, 0
            num_rows += 1
    except Damaged:
        # how many rows come before the damage shows when they are read, which says so in a row
        known = False
    if num_rows or not known:
        yield start, END, num_rows if known else None


def _read(unit: Unit) -> Iterator[pa.RecordBatch]:
    yield from to_batches(_rows(unit), item_schema(unit.payload))


def _rows(unit: Unit) -> Iterator[Row]:
    mapped = mapped_values(unit.options["schema"], unit.settings, unit.path)
    try:
        for group in groups(unit.path, unit.begin, unit.end, with_contents=True):
            yield _row(group, mapped, unit)
    except Damaged as error:
        yield error_row(str(error), source=unit.settings.source)


def _row(group: Group, mapped: Mapped, unit: Unit) -> Row:
    where = f"{unit.path}, key {group.key}"
    try:
        if group.fault:
            raise UserError(f"{where}: {group.fault}")
        return item_of(
            group.key, group.contents, mapped, unit.settings, folder=unit.path, where=where
        )
    except StorageError:
        raise
    except UserError as error:
        return error_row(str(error), id=group.key, source=unit.settings.source)


def _schema(entries: Sequence[FileEntry], settings: ReaderSettings) -> pa.Schema:
    """Columns and types of the first keys of the first archive."""
    rows: list[dict[str, Any]] = []
    path, is_partial = entries[0].path, len(entries) > 1
    try:
        found = groups(path, 0, END, with_contents=True)
        for group in islice(found, SAMPLE):
            try:
                values = values_of(group.key, group.contents)
                # of the contents of 64 keys only types count
                rows.append({k: b"" if isinstance(v, bytes) else v for k, v in values.items()})
                rows[-1].pop(IMAGE)
            # its row will say so
            except UserError:
                continue
        is_partial |= next(found, None) is not None
    except Damaged as error:
        if not rows:
            raise UserError(f"{error}; is it a tar at all?") from error
    return values_schema(rows, settings, path, is_partial=is_partial)


def _tars(place: Place) -> FileList:
    return place.ending(*TARS)


def _indexes(place: Place, settings: ReaderSettings) -> FileList:
    """The tables that tell of one archive, as img2dataset writes `00000.parquet` beside it."""
    tables = place.ending(*TABLES)
    stems = {_stem(entry.name, TARS) for entry in _tars(place)} if tables else set()
    rows = [row for row, entry in enumerate(tables) if _stem(entry.name, TABLES) in stems]
    return tables.take(np.array(rows, np.int64))


def _stem(name: str, endings: Sequence[str]) -> str:
    """A name without its ending.

    >>> _stem("a/b-0.tar.gz", TARS)
    'a/b-0'
    """
    return next(name[: -len(end)] for end in endings if name.lower().endswith(end))


def _detect(place: Place) -> str | None:
    found = _tars(place)
    return f"{len(found)} tar files" if found else None


FORMATS = (
    Format(
        name=NAME,
        claim="WebDataset tars (key.jpg with key.txt or key.json)",
        rows=("items",),
        detect=_detect,
        list_units=_list,
        read_unit=_read,
        reads=lambda place, settings: _tars(place),
        beside=_indexes,
        uses=frozenset({"columns", "unit_bytes", "unit_files"}),
    ),
)
