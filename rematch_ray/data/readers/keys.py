"""The key of a row: what Ray's checkpoint filter remembers rows by.

A row has the same key in every process, on every machine and wherever it lies in its file; a row
whose content changed has another one. It knows Arrow batches of Items only. Middle floor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from rematch_ray.data.readers.content import CONTENT, CONTENT_FIELD, Bytes, joined

_MASK = np.uint64(2**63 - 1)
_NAMES = ("source", "id", "parent_id", "error")
_PART = ("kind", "text", "image", "uri")

# of how rows are hashed: output of another number may have other keys for rows that stayed the same
VERSION = 2


def row_keys(batch: pa.RecordBatch | pa.Table) -> pa.Int64Array:
    """63-bit hash of (source, id, content) of every row, never negative.

    Content is the parts, the parent, the payload and, of a row that could not be read, the reason.
    Null and missing fields of the payload are the same, and so are 1 and 1.0. What other files of
    the corpus have changes no key: where the payload's column has a type that they had a part in,
    what it says comes in the column `payload_content`.

    Args:
        batch: Items as a reader gives them.

    Returns:
        One key per row.
    """
    names = [_without_empty(_column(batch, name)) for name in _NAMES]
    payload = CONTENT if CONTENT in batch.schema.names else "payload"
    columns = [*names, _column(batch, payload), _parts(batch)]
    digests = b"".join(
        hashlib.blake2b(joined(row), digest_size=8).digest() for row in zip(*columns, strict=True)
    )
    return pa.array((np.frombuffer(digests, "<u8") & _MASK).astype(np.int64))


def with_content(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Items with what their payloads say in a column of its own, before these change their type."""
    if CONTENT in batch.schema.names or "payload" not in batch.schema.names:
        return batch
    values = [None if v is None else bytes(v) for v in _column(batch, "payload")]
    return batch.append_column(CONTENT_FIELD, pa.array(values, CONTENT_FIELD.type))


def _column(batch: pa.RecordBatch | pa.Table, name: str) -> Sequence[Bytes | None]:
    if name not in batch.schema.names:
        return [None] * batch.num_rows
    return _values(_whole(batch.column(name)))


def _whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _without_empty(values: Iterable[Bytes | None]) -> list[Bytes | None]:
    """To an item, an empty name is none."""
    return [value or None for value in values]


def _values(array: pa.Array) -> Sequence[Bytes | None]:
    """Every value of an array as bytes that say all of it; of a struct, its non-null fields."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _values(array.dictionary_decode())
    if pa.types.is_null(kind):
        return [None] * len(array)
    if pa.types.is_struct(kind):
        return _structs(array)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _lists(array)
    try:
        return _slices(array)
    # a type that Arrow cannot spell: maps, fixed lists
    except pa.ArrowException:
        return [None if v is None else repr(v).encode() for v in array.to_pylist()]


def _structs(array: pa.StructArray) -> list[Bytes | None]:
    names = sorted(field.name for field in array.type)
    marks = [name.encode() for name in names]
    # flatten, unlike field, gives null where the whole struct is
    children = dict(zip((field.name for field in array.type), array.flatten(), strict=True))
    rows = zip(*(_values(children[name]) for name in names), strict=True)
    return [
        joined(piece for mark, v in zip(marks, row) if v is not None for piece in (mark, v)) or None
        for row in rows
    ]


def _lists(array: pa.ListArray | pa.LargeListArray) -> list[Bytes | None]:
    offsets = array.offsets.to_pylist()
    first = offsets[0] if offsets else 0
    inner = _values(array.values.slice(first, offsets[-1] - first if offsets else 0))
    return [
        joined(inner[begin - first : end - first]) if valid else None
        for begin, end, valid in zip(offsets, offsets[1:], array.is_valid().to_pylist())
    ]


def _slices(array: pa.Array) -> list[Bytes | None]:
    """Every value of a plain array, spelled as text unless it is bytes; views, no copies."""
    if not (pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type)):
        array = array.cast(pa.large_string())
    array = array.cast(pa.large_binary())
    _, offsets, data = array.buffers()
    view = memoryview(data) if data is not None else memoryview(b"")
    places = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1].tolist()
    return [
        view[begin:end] if valid else None
        for begin, end, valid in zip(places, places[1:], array.is_valid().to_pylist())
    ]


def _parts(batch: pa.RecordBatch | pa.Table) -> list[Bytes | None]:
    """Of every row: its parts; a uri counts only where there are no bytes."""
    column = _whole(batch.column("parts"))
    if pa.types.is_null(column.type):
        return [None] * len(column)
    offsets = column.offsets.to_pylist()
    first = offsets[0] if offsets else 0
    structs = column.values.slice(first, offsets[-1] - first if offsets else 0)
    fields = [
        _values(structs.field(name))
        if structs.type.get_field_index(name) >= 0
        else [None] * len(structs)
        for name in _PART
    ]
    inner = [
        joined((kind, text, image, uri if image is None else None))
        for kind, text, image, uri in zip(*fields, strict=True)
    ]
    return [
        joined(inner[begin - first : end - first]) if valid else None
        for begin, end, valid in zip(offsets, offsets[1:], column.is_valid().to_pylist())
    ]
