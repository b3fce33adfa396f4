"""The table of an image folder: `metadata.csv` or `metadata.jsonl`, one row per `file_name`.

Names are relative to the table's own folder; the other columns are a caption (`text` or
`caption`) and payload. Read like any table of its kind. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from posixpath import basename

import pyarrow as pa
import pyarrow.compute as pc

from rematch_ray.data.readers import csv_files, json_lines
from rematch_ray.data.readers.files import FileEntry, Place
from rematch_ray.data.readers.mapping import map_columns
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.sidecars import caption_columns
from rematch_ray.data.readers.units import Rows, Unit

METADATA = {"metadata.csv": csv_files.FORMATS[0], "metadata.jsonl": json_lines.FORMATS[0]}
COLUMN = "file_name"
CAPTIONS = ("text", "caption")


def table_units(
    table: FileEntry, name: str, settings: ReaderSettings, rows: Rows
) -> Iterator[Unit]:
    """The pieces of a table, as units of the format `name`.

    Raises:
        SchemaError: the table has no `file_name`, or not a column that was named.
    """
    roles = {role for role, _ in settings.columns}
    needed = tuple((role, COLUMN) for role in ("image", "id") if role not in roles)
    told = settings.model_copy(update={"columns": needed + settings.columns})
    folder = table.name.removesuffix(basename(table.name))
    for unit in METADATA[basename(table.name)].list_units(Place(table.path, False), told, rows):
        schema = unit.options["schema"]
        is_open = table.suffix == ".jsonl"
        captions: tuple[str, ...] = ()
        if "text" not in roles:
            captions = caption_columns(schema, CAPTIONS, is_partial=is_open)
        columns = told.columns + tuple(("text", column) for column in captions[:1])
        full = told.model_copy(update={"columns": columns})
        yield replace(
            unit,
            format=name,
            settings=full,
            payload=map_columns(schema, full, table.path, is_open=True, is_partial=is_open).payload,
            options={
                **unit.options,
                "folder": folder if "id" not in roles else "",
                "captions": captions,
            },
        )


def read_table(unit: Unit) -> Iterator[pa.RecordBatch]:
    """The rows of a piece; their ids are paths below the image folder."""
    for batch in METADATA[basename(unit.path)].read_unit(unit):
        named = pc.binary_join_element_wise(unit.options["folder"], batch.column("id"), "")
        yield batch.set_column(batch.schema.get_field_index("id"), batch.schema.field("id"), named)
