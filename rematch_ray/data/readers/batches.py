"""Rows as dicts -> Arrow batches of bounded size, whatever the rows hold.

A value that Arrow cannot hold (half a surrogate pair, a number beyond 64 bits), or Python cannot
(text that is not UTF-8, the year 60000), makes its row an error row; it never fails the batch. It
does not know where rows come from. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from rematch_ray.data.readers.content import CONTENT, CONTENT_FIELD

ERROR_FIELD = pa.field("error", pa.string())
BATCH_ROWS = 256
BATCH_BYTES = 16 * 2**20

# what pyarrow raises for a value that does not fit its column
MISFITS = (pa.ArrowException, UnicodeError, OverflowError, TypeError, ValueError)
# and for one that Python cannot hold
UNREADABLE = (pa.ArrowException, UnicodeError, OverflowError, ValueError)


def error_row(reason: str, *, id: str | None = None, source: str | None = None) -> dict[str, Any]:
    """A row that could not be read: what is known of it, and why."""
    return {"id": id, "source": source, "error": " ".join(reason.split())}


def is_text(value: str) -> bool:
    r"""Whether a text can be stored and shown: it holds no half of a surrogate pair.

    >>> is_text("é"), is_text("\ud800")
    (True, False)
    """
    return value == value.encode(errors="ignore").decode()


def to_batches(
    rows: Iterable[Mapping[str, Any]], schema: pa.Schema, *, max_rows: int = BATCH_ROWS
) -> Iterator[pa.RecordBatch]:
    """Rows as record batches, in order.

    Args:
        rows: one dict each, keys as in the schema; what is missing becomes null. A key `error`
            says why the row could not be read, `payload_content` what its payload says.
        schema: of the batches; a column `error` is added at its end, and `payload_content` where
            a row has it.
        max_rows: rows of a batch; a batch also ends after about 16 MiB.

    Yields:
        Batches of `schema` and `error: string`.
    """
    whole = schema.append(ERROR_FIELD)
    held: list[Mapping[str, Any]] = []
    size = 0
    for row in rows:
        held.append(row)
        size += _size(row)
        if len(held) >= max_rows or size >= BATCH_BYTES:
            yield _batch(held, whole)
            held, size = [], 0
    if held:
        yield _batch(held, whole)


def plain_rows(batch: pa.RecordBatch) -> Iterator[tuple[dict[str, Any], str]]:
    """Rows as dicts, each with the reason why it is not whole.

    Args:
        batch: of any columns.

    Yields:
        (values by column, ""), or what can be read of a row and which column cannot.
    """
    try:
        rows = batch.to_pylist()
    except UNREADABLE:
        rows = None
    if rows is not None:
        yield from ((row, "") for row in rows)
    else:
        yield from (_plain_row(batch, number) for number in range(len(batch)))


def readable(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """A batch whose every value Python can hold; rows that have others say so in `error`.

    Args:
        batch: of rows whose names are in the columns `id` and `source`, where they have any.

    Yields:
        Batches of its schema and `error: string`.
    """
    if _is_readable(batch):
        nothing = pa.nulls(len(batch), ERROR_FIELD.type)
        yield batch if "error" in batch.schema.names else batch.append_column(ERROR_FIELD, nothing)
        return
    rows = (
        error_row(reason, id=row.get("id"), source=row.get("source")) if reason else row
        for row, reason in plain_rows(batch)
    )
    yield from to_batches(rows, batch.schema)


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """A batch with exactly the columns of a schema: cast, in its order, null where missing.

    Raises:
        pa.ArrowInvalid: a value does not fit.
    """
    if batch.schema.equals(schema, check_metadata=True):
        return batch
    columns = [
        batch.column(field.name).cast(field.type)
        if field.name in batch.schema.names
        else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _plain_row(batch: pa.RecordBatch, number: int) -> tuple[dict[str, Any], str]:
    row: dict[str, Any] = {}
    reasons = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[number].as_py()
        except UNREADABLE as error:
            reasons.append(f"column {name!r} cannot be read: {error}")
    return row, "; ".join(reasons)


def _is_readable(batch: pa.RecordBatch) -> bool:
    try:
        # texts, at any depth, without a copy of anything
        batch.validate(full=True)
        for field, column in zip(batch.schema, batch.columns, strict=True):
            if _has_times(field.type):
                column.to_pylist()
    except UNREADABLE:
        return False
    return True


def _has_times(kind: pa.DataType) -> bool:
    """Whether values hold dates or times somewhere: Arrow knows years that Python does not."""
    if pa.types.is_nested(kind):
        return any(_has_times(kind.field(i).type) for i in range(kind.num_fields))
    return bool(pa.types.is_temporal(kind))


def _batch(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    if CONTENT not in schema.names and any(CONTENT in row for row in rows):
        schema = schema.append(CONTENT_FIELD)
    try:
        return pa.RecordBatch.from_pylist(list(rows), schema=schema)
    except MISFITS:
        return pa.RecordBatch.from_pylist([_fitting(row, schema) for row in rows], schema=schema)


def _fitting(row: Mapping[str, Any], schema: pa.Schema) -> Mapping[str, Any]:
    try:
        pa.RecordBatch.from_pylist([row], schema=schema)
    except MISFITS as error:
        known = {key: _plain(row.get(key)) for key in ("id", "source")}
        where = row.get("error") or f"a value does not fit its column: {error}"
        return error_row(str(_plain(where)), **known)
    return row


def _plain(value: Any) -> str | None:
    return None if value is None else str(value).encode(errors="backslashreplace").decode()


def _size(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_size, value))
    return 8
