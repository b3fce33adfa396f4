"""Parquet files of any columns with a column mapping: format `parquet`.

Pieces are row groups, large ones in parts; all are counted. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa

from rematch_ray.data.readers.batches import to_batches
from rematch_ray.data.readers.file_list import FileList
from rematch_ray.data.readers.files import Place, parent
from rematch_ray.data.readers.formats import Format
from rematch_ray.data.readers.json_lines import MAPPED_USES
from rematch_ray.data.readers.mapping import Mapped, bad_row, item_row, map_columns
from rematch_ray.data.readers.one_payload import with_payload
from rematch_ray.data.readers.parquet import row_groups
from rematch_ray.data.readers.parquet_rows import list_groups, read_cells
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.units import Rows, Unit
from rematch_ray.data.readers.unread import images
from rematch_ray.data.schema import item_schema
from rematch_ray.errors import UserError

NAME = "parquet"
SUFFIX = ".parquet"
UNIT_ROWS = 10_000


def _list(place: Place, settings: ReaderSettings, rows: Rows) -> Iterator[Unit]:
    entries = _files(place) or (() if place.is_folder else place.files)
    if not entries:
        raise UserError(f"{place.path}: no *{SUFFIX} file")
    for entry in entries:
        # what pandas and others note beside the columns would travel with every piece
        schema = row_groups(entry.path)[0].remove_metadata()
        mapped = map_columns(schema, settings, entry.path)
        unit_rows = settings.unit_files if mapped.has_images else UNIT_ROWS
        for unit in list_groups(entry, NAME, rows, settings, unit_rows=unit_rows):
            options = {**unit.options, "schema": schema}
            yield replace(unit, payload=mapped.payload, options=options)


def _read(unit: Unit) -> Iterator[pa.RecordBatch]:
    mapped = map_columns(unit.options["schema"], unit.settings, unit.path)
    batches = to_batches(_rows(unit, mapped), item_schema(mapped.payload))
    yield from with_payload(batches, unit.payload)


def _rows(unit: Unit, mapped: Mapped) -> Iterator[dict[str, Any]]:
    folder = parent(unit.path)
    for number, (values, reason) in enumerate(read_cells(unit, mapped.columns), unit.first_row):
        where = f"{unit.path}, row {number}"
        if reason:
            yield bad_row(reason, values, mapped, unit.settings, where=where)
        else:
            yield item_row(values, mapped, unit.settings, folder=folder, where=where)


def _files(place: Place) -> FileList:
    return place.ending(SUFFIX)


def _detect(place: Place) -> str | None:
    found = _files(place)
    return f"{len(found)} Parquet files" if found else None


FORMATS = (
    Format(
        name=NAME,
        claim="Parquet with any columns (--columns text=caption,image=img,id=key)",
        rows=("items",),
        detect=_detect,
        list_units=_list,
        read_unit=_read,
        reads=lambda place, settings: _files(place),
        beside=images,
        uses=MAPPED_USES | {"unit_files"},
    ),
)
