"""Training rows as mining reads and writes them: what each names, its query, its new negatives.

A row that cannot be read whole keeps its place and says why; nothing but the column `negatives` is
ever changed. Knows nothing of indexes, scores or clusters. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rematch_ray.data.columns import SCHEMA_VERSION, VERSION_KEY
from rematch_ray.data.item import Item, Part
from rematch_ray.data.prompts import Side
from rematch_ray.data.rows import stable_id
from rematch_ray.data.schema import item_from_row, sample_schema
from rematch_ray.errors import UserError
from rematch_ray.index.mining.references import (
    REFERENCE_FIELDS,
    Reference,
    ReferenceMaker,
    References,
    parse_modality,
)

_NAMED = pa.struct(
    [
        *REFERENCE_FIELDS,
        ("is_positive", pa.bool_()),
        ("place", pa.int32()),
        ("readable", pa.bool_()),
    ]
)
SCAN_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("target_modality", pa.int8()),
        # two ways to ask the same: the query's source and id, or its content and instruction
        ("asked_id", pa.int64()),
        ("asked_content", pa.int64()),
        ("query_content", pa.int64()),
        ("has_query", pa.bool_()),
        ("documents", pa.list_(_NAMED)),
    ]
)
PROBLEM_SCHEMA = pa.schema([(name, pa.string()) for name in ("where", "id", "source", "reason")])
_KEYS = ("id_key", "source_key", "content")
LINKS = np.dtype([(name, np.int64) for name in ("asked", *_KEYS)])


@dataclass(frozen=True)
class Scan:
    """What a table of training rows holds.

    Args:
        rows: of `SCAN_SCHEMA`, one per training row.
        queries: row -> its query, the instruction before its parts; without those unreadable.
        problems: of `PROBLEM_SCHEMA`, one per item that cannot be read.
        items: items looked at.
    """

    rows: pa.Table
    queries: Mapping[int, Item]
    problems: pa.Table
    items: int


class RowScanner:
    """Reads what training rows name.

    Args:
        max_pixels: larger images are not decoded.
        instructions: default instruction per source and side, for rows without their own.
    """

    def __init__(
        self, max_pixels: int, instructions: Mapping[str, Mapping[Side, str]] | None = None
    ) -> None:
        self._make = ReferenceMaker(max_pixels)
        self._instructions = instructions or {}

    def __call__(self, table: pa.Table, *, where: str = "rows", first_row: int = 0) -> Scan:
        """Scans a table of Samples.

        Args:
            table: the rows.
            where: their file, for messages.
            first_row: number of the first of them in the file.

        Raises:
            UserError: a row names a target modality that does not exist.
        """
        lines, queries, problems = [], {}, []
        items = 0
        for number, row in enumerate(table.to_pylist()):
            source = row.get("source") or ""
            label = f"{where} row {first_row + number}"
            query = _Found(row.get("query"), f"{label}, query", source, self._make)
            if row.get("error") and query.problem:
                query.problem["reason"] = row["error"]
            found = [
                (side, place, _Found(raw, f"{label}, {side} {place}", source, self._make))
                for side, place, raw in named_items(row)
            ]
            items += 1 + len(found)
            problems += [one.problem for one in (query, *(f for *_, f in found)) if one.problem]
            if query.is_readable:
                queries[number] = self._with_instruction(row, query.item)
            lines.append(self._line(row, label, query, found))
        return Scan(
            pa.Table.from_pylist(lines, SCAN_SCHEMA),
            queries,
            pa.Table.from_pylist(problems, PROBLEM_SCHEMA),
            items,
        )

    def _line(
        self,
        row: Mapping[str, Any],
        label: str,
        query: _Found,
        found: Sequence[tuple[str, int, _Found]],
    ) -> dict[str, Any]:
        try:
            modality = parse_modality(row.get("target_modality"))
        except UserError as unknown:
            raise UserError(f"{label}: {unknown}") from unknown
        source, asked = row.get("source") or "", query.reference
        return {
            "source": source,
            "target_modality": modality,
            "asked_id": asked and stable_id(f"{asked.source_key}:{asked.id_key}"),
            "asked_content": asked and stable_id(f"{asked.content}:{self._instruction(row)}"),
            "query_content": asked and asked.content,
            "has_query": query.is_readable,
            "documents": [
                {
                    **_fields(one.reference),
                    "is_positive": side == "positive",
                    "place": place,
                    "readable": one.is_readable,
                }
                for side, place, one in found
                if one.reference is not None
            ],
        }

    def _instruction(self, row: Mapping[str, Any]) -> str:
        """What training puts before the query."""
        if row.get("instruction") is not None:
            return str(row["instruction"])
        return self._instructions.get(row.get("source") or "", {}).get("query", "")

    def _with_instruction(self, row: Mapping[str, Any], query: Item | None) -> Item:
        assert query is not None
        instruction = self._instruction(row)
        before = (Part.of_text(instruction + "\n"),) if instruction else ()
        return Item(
            query.id, (*before, *query.parts), source=query.source or row.get("source") or ""
        )


class _Found:
    """One item of a row, as far as it can be read."""

    def __init__(self, raw: Any, where: str, source: str, make: ReferenceMaker) -> None:
        self.item: Item | None = None
        self.reference: Reference | None = None
        self.problem: dict[str, str] | None = None
        name, reason = str((raw or {}).get("id") or ""), ""
        try:
            self.item = item_from_row(raw or {}, where=where)
            self.reference = make.of(self.item, source)
            name, reason = self.item.id, self.reference.problem
        except UserError as refused:
            reason = str(refused)
        if reason:
            self.problem = {"where": where, "id": name, "source": source, "reason": reason}

    @property
    def is_readable(self) -> bool:
        return self.problem is None


def _fields(reference: Reference) -> dict[str, int]:
    return {field.name: getattr(reference, field.name) for field in REFERENCE_FIELDS}


def named_items(row: Mapping[str, Any]) -> Iterator[tuple[str, int, Any]]:
    """Yields (`positive` or `negative`, place, item as a dict) of a row."""
    for side in ("positive", "negative"):
        for place, entry in enumerate(row.get(f"{side}s") or ()):
            yield side, place, (entry or {}).get("item")


def document_of(row: Mapping[str, Any], *, is_positive: bool, place: int) -> Item:
    """One document of a row, with the source it belongs to."""
    entry = row["positives" if is_positive else "negatives"][place]
    item = item_from_row(entry["item"])
    return Item(item.id, item.parts, item.parent_id, item.source or row.get("source") or "")


def references_of(named: Iterable[Mapping[str, Any]]) -> References:
    """References of some entries of the column `documents`."""
    entries = list(named)
    return References(*(np.array([entry[name] for entry in entries], np.int64) for name in _KEYS))


def links_of(scans: Iterable[pa.Table]) -> NDArray[Any]:
    """Which documents are right for what is asked: every positive of every row that asks the same.

    Args:
        scans: tables of `SCAN_SCHEMA`.

    Returns:
        (n,) of `LINKS`, sorted, each line once.
    """
    pieces = [np.empty(0, LINKS)]
    for scan in scans:
        counts = scan["documents"].combine_chunks().value_lengths().fill_null(0).to_numpy()
        entries = scan["documents"].combine_chunks().flatten()
        is_positive = entries.field("is_positive").to_numpy(zero_copy_only=False).astype(bool)
        for asked in ("asked_id", "asked_content"):
            keys = np.repeat(scan[asked].fill_null(-1).to_numpy(), counts)
            lines = np.empty(len(keys), LINKS)
            lines["asked"] = keys
            for name in _KEYS:
                lines[name] = entries.field(name).to_numpy()
            pieces.append(lines[is_positive & (keys >= 0)])
    return np.unique(np.concatenate(pieces))


def linked(links: NDArray[Any], asked: Sequence[int]) -> References:
    """The documents that are right for any of some keys."""
    spans = []
    for key in asked:
        start, stop = np.searchsorted(links["asked"], [key, key + 1])
        spans.append(links[start:stop])
    lines = np.unique(np.concatenate(spans))
    return References(lines["id_key"], lines["source_key"], lines["content"])


def add_negatives(
    table: pa.Table, added: Sequence[Sequence[tuple[Mapping[str, Any], str, float]]]
) -> pa.Table:
    """The same rows with more negatives; every other column is left as it is.

    Args:
        table: Samples.
        added: per row: item as a dict, kind, score.

    Returns:
        The table; `negatives` holds the row's own first.
    """
    schema = table.schema
    has_negatives = "negatives" in schema.names
    payload = _payload_type(schema.field("negatives").type) if has_negatives else None
    column = sample_schema(payload).field("negatives")
    own = table["negatives"].to_pylist() if has_negatives else [None] * table.num_rows
    merged = [
        [
            *(before or ()),
            *({"item": item, "kind": kind, "teacher_score": score} for item, kind, score in more),
        ]
        for before, more in zip(own, added, strict=True)
    ]
    values = pa.array(merged, column.type)
    if has_negatives:
        made = table.set_column(schema.get_field_index("negatives"), column, values)
    else:
        made = table.append_column(column, values)
    version = {VERSION_KEY: str(SCHEMA_VERSION).encode()}
    return made.replace_schema_metadata({**(schema.metadata or {}), **version})


def _payload_type(negatives: pa.DataType) -> pa.StructType | None:
    """The payload that the negatives of a file have, if any."""
    entry = negatives.value_type
    if entry.get_field_index("item") < 0:
        return None
    item = entry.field("item").type
    place = item.get_field_index("payload")
    return item.field(place).type if place >= 0 else None
