"""Images that rows only refer to: made absolute when a row is read, opened when it is needed.

A training step takes a few rows of many pieces, so a stream reads pieces without their images and
opens those of the rows it takes. It does not know layouts. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from rematch_ray.data.readers.batches import error_row, to_batches
from rematch_ray.data.readers.files import absolute_path, is_uri, join, parent, read_bytes
from rematch_ray.data.readers.sample_rows import Row
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.units import Unit
from rematch_ray.errors import UserError


def make_absolute(row: Row, unit: Unit) -> Row:
    """A row whose image references start from the unit's `image_root`, or its file's folder."""
    root = unit.settings.image_root
    folder = parent(unit.path) if root is None else absolute_path(root)
    for part in _linked(row):
        uri = part["uri"]
        if not is_uri(uri) and not uri.startswith(("/", "data:")):
            part["uri"] = join(folder, uri)
    return row


def load_images(
    table: pa.Table | pa.RecordBatch, settings: ReaderSettings
) -> Iterator[pa.RecordBatch]:
    """Rows with the bytes of every image; a row whose image cannot be read says so in `error`.

    Args:
        table: Items or Samples with absolute references.
        settings: which hosts may be asked, and for how much.

    Yields:
        Batches of the table's columns and `error`.
    """
    schema = table.schema
    if "error" in schema.names:
        schema = schema.remove(schema.get_field_index("error"))
    yield from to_batches((_loaded(row, settings) for row in table.to_pylist()), schema)


def _loaded(row: Row, settings: ReaderSettings) -> Row:
    try:
        for part in _linked(row):
            part["image"] = read_bytes(part["uri"])
    except UserError as refused:
        item = row if "parts" in row else row["query"]
        return error_row(str(refused), id=item["id"], source=row.get("source"))
    return row


def _linked(row: Row) -> Iterator[Row]:
    """The image parts of a row that have a reference and no bytes."""
    items = [row, row.get("query")]
    for side in ("positives", "negatives"):
        items += [entry["item"] for entry in row.get(side) or ()]
    for item in items:
        for part in (item or {}).get("parts") or ():
            if part["kind"] == "image" and not part.get("image") and part.get("uri"):
                yield part
