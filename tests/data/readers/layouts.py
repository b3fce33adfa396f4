"""Data sets of a few rows in the layouts of others, and what our readers make of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rematch_ray.data.readers.formats import list_data, read_data
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.schema import Item, Sample, item_from_row, sample_from_row

Row = dict[str, Any]


def write_rows(path: Path, rows: Sequence[Row], **options: Any) -> Path:
    """Rows as Parquet or JSONL, by the name of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path, **options)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_image(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def read(path: Path, **settings: Any) -> tuple[list[Item] | list[Sample], list[str]]:
    """What is read at a path: the good rows, and why the others are bad."""
    rows = read_plain(path, **settings)
    good = [row for row in rows if not row["error"]]
    convert = sample_from_row if good and "query" in good[0] else item_from_row
    return [convert(row) for row in good], [row["error"] for row in rows if row["error"]]


def read_plain(path: Path, **settings: Any) -> list[Row]:
    """Every row at a path, in order, its number agreed with what was listed."""
    rows: list[Row] = []
    for unit in list_data(path, ReaderSettings(**settings)):
        found = [row for batch in read_data(unit) for row in batch.to_pylist()]
        assert unit.num_rows in (None, len(found))
        rows += found
    return rows


def spelled(item: Item) -> list[str | bytes]:
    """The parts of an item: texts, and images as bytes."""
    return [part.text if part.kind == "text" else part.image for part in item.parts]
