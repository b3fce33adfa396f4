"""The plain Arrow tables that hold Items and Samples, and the conversions both ways.

What a bad row or column is called is decided here; it does not know models, prompts or how a folder
of files is read (`data/readers/`). Middle floor.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rematch_ray.data.columns import SCHEMA_VERSION, VERSION_KEY, check_schema
from rematch_ray.data.item import Item, Negative, Part, Positive, Sample, SchemaError, content_id

__all__ = [
    "QRELS_SCHEMA",
    "SCHEMA_VERSION",
    "Item",
    "Negative",
    "Part",
    "Positive",
    "Sample",
    "SchemaError",
    "check_schema",
    "content_id",
    "item_from_row",
    "item_schema",
    "items_from_table",
    "items_to_table",
    "sample_from_row",
    "sample_schema",
    "samples_from_table",
    "samples_to_table",
    "write_parquet",
]

ROW_GROUP_BYTES = 64 * 2**20

PART_TYPE = pa.struct(
    [
        ("kind", pa.string()),
        ("text", pa.string()),
        ("image", pa.large_binary()),
        ("uri", pa.string()),
    ]
)
QRELS_SCHEMA = pa.schema(
    [("query_id", pa.string()), ("document_id", pa.string()), ("score", pa.float32())]
)


def item_schema(payload: pa.StructType | None = None) -> pa.Schema:
    """Schema of a table of Items; `payload` is the dataset's own struct, None leaves it out."""
    return pa.schema(list(_item_type(payload)), metadata=_metadata())


def sample_schema(payload: pa.StructType | None = None) -> pa.Schema:
    """Arrow schema of a table of Samples; `payload` is shared by all items in it."""
    item = _item_type(payload)
    return pa.schema(
        [
            ("query", item),
            ("positives", pa.list_(pa.struct([("item", item), ("grade", pa.float32())]))),
            (
                "negatives",
                pa.list_(
                    pa.struct(
                        [("item", item), ("kind", pa.string()), ("teacher_score", pa.float32())]
                    )
                ),
            ),
            ("instruction", pa.string()),
            ("target_modality", pa.string()),
            ("source", pa.string()),
        ],
        metadata=_metadata(),
    )


def items_to_table(items: Iterable[Item], payload: pa.StructType | None = None) -> pa.Table:
    """Items as an Arrow table.

    Args:
        items: in row order.
        payload: type of the payload column; None infers the union of the fields found.

    Returns:
        A table of `item_schema(payload)`.
    """
    rows = [_item_row(item) for item in items]
    return _table(rows, item_schema(payload or _infer_payload(rows)))


def samples_to_table(samples: Iterable[Sample], payload: pa.StructType | None = None) -> pa.Table:
    """Samples as an Arrow table of `sample_schema(payload)`; None infers the payload's fields."""
    rows = [_sample_row(sample) for sample in samples]
    found = [
        row
        for r in rows
        for row in (r["query"], *(x["item"] for x in (*r["positives"], *r["negatives"])))
    ]
    return _table(rows, sample_schema(payload or _infer_payload(found)))


def items_from_table(table: pa.Table | pa.RecordBatch, *, where: str = "table") -> list[Item]:
    """Items of a table or record batch, in row order.

    Args:
        table: columns as in `item_schema`; only `parts` must be there.
        where: what the table is, for error messages (a file name).

    Raises:
        SchemaError: a column is missing or has the wrong type, or a row is not an Item.
    """
    check_schema(table.schema, item_schema(), required=("parts",), where=where)
    return [
        item_from_row(row, where=f"{where}, row {i}") for i, row in enumerate(table.to_pylist())
    ]


def samples_from_table(table: pa.Table | pa.RecordBatch, *, where: str = "table") -> list[Sample]:
    """Samples of a table or record batch, in row order; errors as in `items_from_table`."""
    check_schema(table.schema, sample_schema(), required=("query", "positives"), where=where)
    return [
        sample_from_row(row, where=f"{where}, row {i}") for i, row in enumerate(table.to_pylist())
    ]


def item_from_row(row: Mapping[str, Any], *, where: str = "row") -> Item:
    """One Item from a row as a dict (as `to_pylist` gives it); SchemaError names `where` and id."""
    label = f"{where} (id {row.get('id')!r})"
    if not row.get("parts"):
        raise SchemaError(
            f"{label}: 'parts' is empty; an item needs at least one text or image part"
        )
    try:
        parts = tuple(
            Part(part.get("kind"), part.get("text"), part.get("image"), part.get("uri"))
            for part in row["parts"]
        )
    except SchemaError as error:
        raise SchemaError(f"{label}: {error}") from error
    payload = {key: value for key, value in (row.get("payload") or {}).items() if value is not None}
    return Item(
        row.get("id") or content_id(parts),
        parts,
        row.get("parent_id"),
        row.get("source") or "",
        payload,
    )


def sample_from_row(row: Mapping[str, Any], *, where: str = "row") -> Sample:
    """One Sample from one row as a dict; SchemaError names `where` and the part of the row."""
    if row.get("query") is None or not row.get("positives"):
        raise SchemaError(f"{where}: a sample needs a query and at least one positive")
    positives = tuple(
        Positive(
            item_from_row(x["item"] or {}, where=f"{where}, positive {i}"),
            1.0 if x.get("grade") is None else x["grade"],
        )
        for i, x in enumerate(row["positives"])
    )
    negatives = tuple(
        Negative(
            item_from_row(x["item"] or {}, where=f"{where}, negative {i}"),
            x.get("kind") or "",
            x.get("teacher_score"),
        )
        for i, x in enumerate(row.get("negatives") or ())
    )
    query = item_from_row(row["query"], where=f"{where}, query")
    return Sample(
        query,
        positives,
        negatives,
        row.get("instruction"),
        row.get("target_modality"),
        row.get("source") or "",
    )


def write_parquet(
    table: pa.Table, path: str | Path, *, row_group_bytes: int = ROW_GROUP_BYTES
) -> Path:
    """Write a table so that the file is either whole or absent, in row groups of bounded size.

    Args:
        table: what to write; a single row larger than the bound is a row group of its own.
        path: the file; its folder is made.
        row_group_bytes: largest row group, in bytes of uncompressed Arrow data.

    Returns:
        The path written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.unfinished")
    try:
        with pq.ParquetWriter(unfinished, table.schema, compression="zstd") as writer:
            for group in _row_groups(table, row_group_bytes):
                writer.write_table(group, row_group_size=max(1, group.num_rows))
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _row_groups(table: pa.Table, limit_bytes: int) -> Iterator[pa.Table]:
    if table.num_rows <= 1 or table.nbytes <= limit_bytes:
        yield table
        return
    middle = table.num_rows // 2
    yield from _row_groups(table.slice(0, middle), limit_bytes)
    yield from _row_groups(table.slice(middle), limit_bytes)


def _item_type(payload: pa.StructType | None) -> pa.StructType:
    fields = [
        ("id", pa.string()),
        ("parent_id", pa.string()),
        ("parts", pa.list_(PART_TYPE)),
        ("source", pa.string()),
    ]
    return pa.struct(fields + ([("payload", payload)] if payload is not None else []))


def _metadata() -> dict[bytes, bytes]:
    return {VERSION_KEY: str(SCHEMA_VERSION).encode()}


def _item_row(item: Item) -> dict[str, Any]:
    parts = [{"kind": p.kind, "text": p.text, "image": p.image, "uri": p.uri} for p in item.parts]
    return {
        "id": item.id,
        "parent_id": item.parent_id,
        "parts": parts,
        "source": item.source,
        "payload": dict(item.payload),
    }


def _sample_row(sample: Sample) -> dict[str, Any]:
    return {
        "query": _item_row(sample.query),
        "positives": [{"item": _item_row(p.item), "grade": p.grade} for p in sample.positives],
        "negatives": [
            {"item": _item_row(n.item), "kind": n.kind, "teacher_score": n.teacher_score}
            for n in sample.negatives
        ],
        "instruction": sample.instruction,
        "target_modality": sample.target_modality,
        "source": sample.source,
    }


def _table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    try:
        return pa.Table.from_pylist(list(rows), schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise SchemaError(
            f"a value does not fit its column: {error}; a payload field has one type in all items"
        ) from error


def _infer_payload(rows: Sequence[Mapping[str, Any]]) -> pa.StructType | None:
    """The union of the payloads' fields; None when there is none (Parquet has no empty struct)."""
    try:
        found = pa.infer_type([row["payload"] for row in rows])
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise SchemaError(f"payload fields differ in type between items: {error}") from error
    return found if pa.types.is_struct(found) and found.num_fields else None
