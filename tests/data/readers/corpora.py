"""What tests of corpus readers share: writing a few rows, and reading them as plain dicts."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from rematch_ray.data.readers.formats import list_data, read_data
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.schema import item_schema

Row = dict[str, Any]


def read_items(path: str | Path, **settings: Any) -> list[Row]:
    """Every row of a corpus as a dict; batches are checked against the schema of Items."""
    rows: list[Row] = []
    for unit in list_data(path, ReaderSettings(**settings), rows="items"):
        found = 0
        for batch in read_data(unit):
            plain = pa.schema([f for f in batch.schema if f.name != "error"])
            assert plain.equals(item_schema(unit.payload))
            rows += [{"error": None, **row} for row in batch.to_pylist()]
            found += batch.num_rows
        assert unit.num_rows in (None, found)
    return rows


def errors(rows: Iterable[Row]) -> list[str]:
    """The reasons of rows that could not be read, which have no parts."""
    bad = [row for row in rows if row["error"] is not None]
    assert all(row["parts"] is None for row in bad)
    return [row["error"] for row in bad]


def good(rows: Iterable[Row]) -> list[Row]:
    """The rows that were read."""
    return [row for row in rows if row["error"] is None]


def texts(row: Row) -> list[str | bytes]:
    """The parts of an item: texts, and the bytes of images."""
    return [part["text"] if part["kind"] == "text" else part["image"] for part in row["parts"]]


def write_lines(path: Path, rows: Iterable[Mapping[str, Any] | str]) -> Path:
    """A JSONL file; texts are written as they stand."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path
