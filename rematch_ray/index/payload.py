"""Ids and payloads of one segment in SQLite, and filters over them.

Two tables: `documents(row, id, source, payload)` with the payload as JSON, and `fields(field,
value, row)`, one line per scalar that a filter may ask for. Values only ever reach SQL as bound
parameters. Opened immutable: a published segment never changes. Knows nothing of vectors.
Middle floor.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.index.payload_types import refuse_large

PAYLOAD_FILE = "payload.sqlite"
_SCHEMA = """
CREATE TABLE documents (
    row INTEGER PRIMARY KEY, id TEXT NOT NULL, source TEXT NOT NULL, payload TEXT NOT NULL
);
CREATE TABLE fields (
    field TEXT NOT NULL, value NOT NULL, row INTEGER NOT NULL, PRIMARY KEY (field, value, row)
) WITHOUT ROWID;
"""
_NAMED_DUPLICATES = 5
_MOST_MAPPED = 1 << 40
# rows that a statement names one by one
_BOUND_ROWS = 100


def document_key(document_id: str) -> int:
    """The 64-bit key of an id: it orders documents of equal score.

    It depends on the id alone, so the order is the same whatever the insertion order, segment or
    shard.

    >>> document_key("a") == document_key("a") != document_key("b")
    True
    """
    return int.from_bytes(hashlib.blake2b(document_id.encode(), digest_size=8).digest(), "big")


class PayloadWriter:
    """Writes a segment's ids and payloads in batches, in row order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows = 0
        self._database = sqlite3.connect(path, isolation_level=None)
        # the file is published by rename after an fsync: SQLite's own journal would buy nothing
        self._database.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;" + _SCHEMA)
        self._database.execute("BEGIN")

    def append(
        self, ids: Sequence[str], sources: Sequence[str], payloads: Sequence[Mapping[str, Any]]
    ) -> None:
        """Adds the next documents.

        Raises:
            UserError: as of `plain_payload`.
        """
        lines: list[tuple[str, Any, int]] = []
        documents: list[tuple[int, str, str, str]] = []
        for document_id, source, payload in zip(ids, sources, payloads, strict=True):
            plain = plain_payload(payload, document_id)
            text = json.dumps(plain, ensure_ascii=False, allow_nan=False)
            documents.append((self._rows, document_id, source, text))
            lines.append(("source", source, self._rows))
            lines.extend((field, value, self._rows) for field, value in _scalars(plain))
            self._rows += 1
        self._database.executemany("INSERT INTO documents VALUES (?, ?, ?, ?)", documents)
        self._database.executemany("INSERT OR IGNORE INTO fields VALUES (?, ?, ?)", lines)

    def finish(self) -> None:
        """Indexes the ids and closes the file.

        Raises:
            UserError: an id occurs twice; the first few are named.
        """
        twice = self._database.execute(
            "SELECT id, COUNT(*) FROM documents GROUP BY id HAVING COUNT(*) > 1 ORDER BY MIN(row)"
        ).fetchall()
        if twice:
            named = ", ".join(
                f"{name!r} ({count} times)" for name, count in twice[:_NAMED_DUPLICATES]
            )
            more = f" and {len(twice) - _NAMED_DUPLICATES} more" if len(twice) > 5 else ""
            raise UserError(
                f"ids must be unique, but these occur more than once: {named}{more}; "
                "give every document its own id"
            )
        self._database.execute("CREATE UNIQUE INDEX documents_by_id ON documents (id)")
        self._database.execute("COMMIT")
        self.close()

    def close(self) -> None:
        """Closes the file, finished or not."""
        self._database.close()


class PayloadStore:
    """Reads a finished payload file; safe to share between threads.

    Args:
        path: the segment's SQLite file.
    """

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(
            f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True, check_same_thread=False
        )
        # pages are read where they lie in memory, without a call to the system for each
        self._database.execute(f"PRAGMA mmap_size={_MOST_MAPPED}")

    def documents(self, rows: Sequence[int]) -> dict[int, tuple[str, dict[str, Any]]]:
        """Id and payload of each row."""
        if len(rows) <= _BOUND_ROWS:
            # a statement of its own for each count, kept prepared; a list in JSON takes longer
            marks = ",".join("?" * len(rows))
            found = self._database.execute(
                f"SELECT row, id, payload FROM documents WHERE row IN ({marks})", rows
            )
        else:
            found = self._database.execute(
                "SELECT row, id, payload FROM documents"
                " WHERE row IN (SELECT value FROM json_each(?))",
                (json.dumps(list(rows)),),
            )
        held = found.fetchall()
        # one text instead of many: reading each on its own takes five times as long
        payloads = json.loads(f"[{','.join([payload for _, _, payload in held])}]")
        return {row: (name, payload) for (row, name, _), payload in zip(held, payloads)}

    def sources(self, rows: Sequence[int]) -> dict[int, str]:
        """Source of each row."""
        found = self._database.execute(
            "SELECT row, source FROM documents WHERE row IN (SELECT value FROM json_each(?))",
            (json.dumps([int(row) for row in rows]),),
        )
        return dict(found)

    def payloads(self) -> Iterator[dict[str, Any]]:
        """All payloads in row order, one at a time."""
        for (payload,) in self._database.execute("SELECT payload FROM documents ORDER BY row"):
            yield json.loads(payload)

    def ids(self) -> list[str]:
        """All ids in row order."""
        return [name for (name,) in self._database.execute("SELECT id FROM documents ORDER BY row")]

    def rows_of(self, ids: Sequence[str]) -> dict[str, int]:
        """Rows of the ids that are here."""
        return dict(self._holding("SELECT id, row FROM documents WHERE id IN ({values})", ids))

    def rows_with(self, field: str, values: Sequence[Any]) -> NDArray[np.int64]:
        """Rows whose field equals one of the values (a list field: holds one of them)."""
        table = (
            "SELECT row FROM documents WHERE id IN ({values}) AND ?2 = 'id'"
            if field == "id"
            else "SELECT DISTINCT row FROM fields WHERE field = ?2 AND value IN ({values})"
        )
        found = self._holding(table, values, field)
        return np.fromiter((row for (row,) in found), dtype=np.int64)

    def _holding(self, statement: str, values: Sequence[Any], *more: Any) -> Iterator[Any]:
        """What a statement finds for `values`; some rows may come twice."""
        # SQLite ends a text in JSON where it holds NUL, another document's id perhaps: bound alone
        cut = [value for value in values if _holds_nul(value)]
        listed = [value for value in values if not _holds_nul(value)] if cut else list(values)
        many = statement.format(values="SELECT value FROM json_each(?1)")
        yield from self._database.execute(many, (json.dumps(listed), *more))
        for value in cut:
            yield from self._database.execute(statement.format(values="?1"), (value, *more))


def _holds_nul(value: Any) -> bool:
    return isinstance(value, str) and "\0" in value


def plain_payload(payload: Mapping[str, Any], document_id: str) -> dict[str, Any]:
    """A payload in JSON's types, as it is stored.

    Raises:
        UserError: it holds something that JSON cannot (bytes) or a whole number that SQLite cannot;
            names field and id.
    """
    return {name: _plain(value, name, document_id) for name, value in payload.items()}


def _plain(value: Any, field: str, document_id: str) -> Any:
    """A payload value in JSON's types: times as ISO 8601, a float that is not a number as null."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        refuse_large(value, field, document_id)
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (date, datetime, time)):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {
            name: _plain(inner, f"{field}.{name}", document_id) for name, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_plain(inner, field, document_id) for inner in value]
    raise UserError(
        f"payload field '{field}' of document '{document_id}' holds {type(value).__name__}; "
        "allowed: texts, numbers, booleans, times, lists, structs; keep a reference (uri) instead"
    )


def _scalars(payload: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every (dotted field, scalar) of a payload; a list gives one pair per member."""
    for name, value in payload.items():
        field = prefix + name
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{field}.")
            continue
        for member in value if isinstance(value, list) else [value]:
            if isinstance(member, (str, bool, int, float)):
                yield field, member
