"""Images of rows that only refer to them, opened when the row is needed.

A training step takes a few rows of many pieces: a stream reads pieces without their images and
opens those of the rows that it takes. What may be opened is said in references.py. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rematch_ray.data.readers.batches import error_row, to_batches
from rematch_ray.data.readers.files import StorageError, is_uri
from rematch_ray.data.readers.references import with_images
from rematch_ray.data.readers.sample_rows import Row
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.errors import UserError


def in_folder(row: Row, folder: str) -> Row:
    """A row whose relative references start from a folder below the root, "" for the root."""
    for item in items_of(row) if folder else ():
        for part in item.get("parts") or ():
            uri = part.get("uri")
            if uri and not is_uri(uri) and not uri.startswith(("/", "data:")):
                part["uri"] = f"{folder}/{uri}"
    return row


def load_images(
    table: pa.Table | pa.RecordBatch, settings: ReaderSettings
) -> Iterator[pa.RecordBatch]:
    """Rows with the bytes of every image; a row whose image cannot be read says so in `error`.

    Args:
        table: Items or Samples; references start from `image_root`.
        settings: that root, and which hosts may be asked.

    Yields:
        Batches of the table's columns and, where images were opened, `error`.

    Raises:
        StorageError: storage fails at an image.
    """
    if not _has_links(table):
        yield from [table] if isinstance(table, pa.RecordBatch) else table.to_batches()
        return
    schema = table.schema
    if "error" in schema.names:
        schema = schema.remove(schema.get_field_index("error"))
    yield from to_batches((_loaded(row, settings) for row in table.to_pylist()), schema)


def _loaded(row: Row, settings: ReaderSettings) -> Row:
    try:
        for item in items_of(row):
            if item.get("parts"):
                item["parts"] = with_images(item["parts"], settings, settings.image_root or "")
    except StorageError:
        raise
    except UserError as refused:
        return error_row(str(refused), id=row.get("id"), source=row.get("source"))
    return row


def items_of(row: Row) -> list[Row]:
    """The items of a row: itself, or those of a Sample."""
    if "query" not in row:
        return [row]
    entries = [*(row.get("positives") or ()), *(row.get("negatives") or ())]
    return [item for item in (row["query"], *(entry["item"] for entry in entries)) if item]


def _has_links(table: pa.Table | pa.RecordBatch) -> bool:
    """Whether a part somewhere has a reference and no bytes; looks at validity alone."""
    names = [n for n in ("parts", "query", "positives", "negatives") if n in table.schema.names]
    return any(_links_in(table.column(name)) for name in names)


def _links_in(column: Any) -> bool:
    if isinstance(column, pa.ChunkedArray):
        return any(_links_in(chunk) for chunk in column.chunks)
    if not pa.types.is_struct(column.type):
        return _links_in(column.flatten())
    for name in ("item", "parts"):
        if column.type.get_field_index(name) >= 0:
            return _links_in(column.field(name))
    unopened = pc.and_(pc.is_valid(column.field("uri")), pc.is_null(column.field("image")))
    return bool(pc.any(unopened).as_py())
