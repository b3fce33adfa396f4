"""The key of a row: what Ray's checkpoint filter remembers rows by.

A row has the same key in every process, on every machine and wherever it lies in its file; a row
whose content changed has another one. It knows item batches only. Middle floor.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

_MASK = np.uint64(2**63 - 1)


def row_keys(batch: pa.RecordBatch | pa.Table) -> pa.Int64Array:
    """63-bit hash of (source, id, content) of every row, never negative.

    Content is the parts, the parent, the payload (null fields left out, so that a field more in
    other rows changes nothing) and, of a row that could not be read, the reason.

    Args:
        batch: Items as `read_data` gives them.

    Returns:
        One key per row.
    """
    columns = [_texts(batch, name) for name in ("source", "id", "parent_id", "error")]
    columns.append(_payloads(batch))
    digests = bytearray()
    for fields, parts in zip(zip(*columns, strict=True), _parts(batch), strict=True):
        digest = hashlib.blake2b(digest_size=8)
        for value in fields:
            _update(digest, value)
        for value in parts:
            _update(digest, value)
        digests += digest.digest()
    return pa.array((np.frombuffer(digests, "<u8") & _MASK).astype(np.int64))


def _update(digest: Any, value: pa.Buffer | bytes | None) -> None:
    """Add one value with its length in front; no value differs from an empty one."""
    if value is None:
        digest.update(b"-")
        return
    size = value.size if isinstance(value, pa.Buffer) else len(value)
    digest.update(b"%d:" % size)
    digest.update(value)


def _texts(batch: pa.RecordBatch | pa.Table, name: str) -> list[bytes | None]:
    if name not in batch.schema.names:
        return [None] * batch.num_rows
    # of a null column too; "" and null mean the same in an item
    return [value.encode() if value else None for value in batch.column(name).to_pylist()]


def _payloads(batch: pa.RecordBatch | pa.Table) -> list[bytes | None]:
    if "payload" not in batch.schema.names:
        return [None] * batch.num_rows
    rows = (_without_nulls(value) for value in batch.column("payload").to_pylist())
    return [
        json.dumps(row, sort_keys=True, default=str).encode(errors="backslashreplace")
        if row
        else None
        for row in rows
    ]


def _without_nulls(value: Any) -> Any:
    """The value as other files of the corpus leave it: no nulls, whole floats as integers."""
    if isinstance(value, dict):
        kept = {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
        return {key: inner for key, inner in kept.items() if inner is not None} or None
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _parts(batch: pa.RecordBatch | pa.Table) -> Iterator[list[bytes | pa.Buffer | None]]:
    """Of every row: kind, text and image (its uri where there are no bytes) of every part."""
    column = batch.column("parts")
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    for row in column:
        values: list[bytes | pa.Buffer | None] = []
        for part in row.values if row.is_valid and row.values is not None else ():
            fields = {name: part.get(name) for name in part} if part.is_valid else {}
            image = fields.get("image")
            bytes_of = image.as_buffer() if image is not None and image.is_valid else None
            values += [_encoded(fields.get("kind")), _encoded(fields.get("text")), bytes_of]
            if bytes_of is None:
                values.append(_encoded(fields.get("uri")))
        yield values


def _encoded(value: pa.Scalar | None) -> bytes | None:
    return value.as_py().encode() if value is not None and value.is_valid else None
