"""Columns and types of rows that have none: of JSON objects, of the cells of CSV. Middle floor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from rematch_ray.data.readers.batches import is_text

_PLAIN: dict[type, pa.DataType] = {
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    bytes: pa.binary(),
}


def inferred_schema(rows: Iterable[Mapping[str, Any]]) -> pa.Schema:
    """Columns and types of JSON-like rows: bool, int64, float64, string; the rest is JSON text.

    A name that is no text (half a surrogate pair) is no column.

    >>> inferred_schema([{"a": 1, "b": "x"}, {"a": 2.5, "c": [1]}]).types
    [DataType(double), DataType(string), DataType(string)]
    """
    found: dict[str, set[type]] = {}
    for row in rows:
        for name, value in row.items():
            if not is_text(name):
                continue
            found.setdefault(name, set()).update([type(value)] if value is not None else [])
    fields = []
    for name, kinds in found.items():
        kind = float if kinds == {int, float} else next(iter(kinds)) if len(kinds) == 1 else str
        fields.append(pa.field(name, _PLAIN.get(kind, pa.string())))
    return pa.schema(fields)
