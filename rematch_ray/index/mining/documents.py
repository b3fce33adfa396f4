"""The documents that negatives are mined from: their references by row of the index, their items.

Items lie in Arrow files that are mapped, so that a few of many are read without the rest;
`DOCUMENTS` holds one line per row of the index. Knows nothing of training rows or scores. Middle
floor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rematch_ray.data.item import Item
from rematch_ray.data.rows import stable_id
from rematch_ray.data.schema import item_schema, items_to_table
from rematch_ray.errors import UserError
from rematch_ray.index.manifest import unfinished_name
from rematch_ray.index.mining.references import (
    NO_SOURCE,
    REFERENCE_FIELDS,
    Int64,
    Reference,
    References,
)

ITEM_COLUMNS = item_schema().names
DOCUMENTS = np.dtype(
    [
        ("id_key", np.int64),
        ("source_key", np.int64),
        ("content", np.int64),
        ("modality", np.int8),
        ("part", np.int32),
        ("row", np.int32),
    ]
)


def write_items(path: Path, documents: Sequence[tuple[str, Item, Reference]]) -> None:
    """Writes one part of the item store, whole or not at all.

    Args:
        path: `<store>/<part>.arrow`.
        documents: id in the index, item with its source, reference.
    """
    table = items_to_table([item for _, item, _ in documents]).select(ITEM_COLUMNS)
    table = table.append_column(
        "index_id", pa.array([name for name, _, _ in documents], pa.string())
    )
    for field in REFERENCE_FIELDS:
        values = [getattr(reference, field.name) for _, _, reference in documents]
        table = table.append_column(field, pa.array(values, field.type))
    partial = path.with_name(unfinished_name(path.name))
    with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        # one batch: rows are then taken from it without joining chunks
        writer.write_table(table.combine_chunks(), max_chunksize=max(1, table.num_rows))
    partial.replace(path)


class ItemStore:
    """Reads items by part and row.

    Args:
        folder: where `write_items` wrote the parts.
    """

    def __init__(self, folder: Path) -> None:
        self._paths = sorted(folder.glob("*.arrow"))
        self._parts: dict[int, pa.RecordBatch | None] = {}

    def part(self, number: int) -> pa.RecordBatch | None:
        """One part, mapped; None when it holds nothing."""
        if number not in self._parts:
            reader = pa.ipc.open_file(pa.memory_map(str(self._paths[number])))
            self._parts[number] = reader.get_batch(0) if reader.num_record_batches else None
        return self._parts[number]

    def items(self, places: NDArray[Any]) -> list[dict[str, Any]]:
        """Items as rows of their Arrow type.

        Args:
            places: (n,) with the fields `part` and `row`.
        """
        wanted: dict[int, list[int]] = defaultdict(list)
        for position, part in enumerate(places["part"].tolist()):
            wanted[part].append(position)
        found: dict[int, dict[str, Any]] = {}
        for part, positions in wanted.items():
            batch = self.part(part)
            assert batch is not None, f"part {part} is empty"
            rows = batch.select(ITEM_COLUMNS).take(pa.array(places["row"][positions]))
            found.update(zip(positions, rows.to_pylist(), strict=True))
        return [found[position] for position in range(len(places))]

    def lines(self) -> NDArray[Any]:
        """(n,) of `DOCUMENTS`: all items, part after part."""
        batches = [self.part(number) for number in range(len(self._paths))]
        found = [_lines(batch, part) for part, batch in enumerate(batches) if batch is not None]
        return np.concatenate([np.empty(0, DOCUMENTS), *found])

    def documents(
        self, index_ids: Iterable[str], live: NDArray[np.bool_] | None = None
    ) -> NDArray[Any]:
        """The lines of `DOCUMENTS` of an index's rows.

        Args:
            index_ids: ids of the index, in the order of its rows.
            live: (rows,) False where a row is deleted: its line is empty, and nobody need know its
                id; None: none is.

        Raises:
            UserError: an id of a live row that no part holds.
        """
        ids = list(index_ids)
        rows = np.arange(len(ids)) if live is None else np.flatnonzero(live)
        found = np.zeros(len(ids), DOCUMENTS)
        found[rows] = self._lines_of([ids[row] for row in rows.tolist()])
        return found

    def _lines_of(self, ids: Sequence[str]) -> NDArray[Any]:
        batches = [self.part(number) for number in range(len(self._paths))]
        lines = self.lines()
        names = [name for batch in batches if batch is not None for name in batch["index_id"]]
        keys = np.array([stable_id(name.as_py()) for name in names], np.int64)
        order = np.argsort(keys, kind="stable")
        wanted = np.array([stable_id(name) for name in ids], np.int64)
        place = np.minimum(np.searchsorted(keys[order], wanted), max(0, len(keys) - 1))
        known = keys[order][place] == wanted if len(keys) else np.zeros(len(ids), bool)
        if not known.all():
            first = ids[int(np.argmin(known))]
            raise UserError(
                f"{(~known).sum()} of {len(ids)} documents of the index are not in the corpus, the "
                f"first is {first!r}: give the corpus that the index was made from"
            )
        return lines[order][place]


def _lines(batch: pa.RecordBatch, part: int) -> NDArray[Any]:
    lines = np.empty(batch.num_rows, DOCUMENTS)
    for field in REFERENCE_FIELDS:
        lines[field.name] = batch[field.name].to_numpy(zero_copy_only=False)
    lines["part"] = part
    lines["row"] = np.arange(batch.num_rows)
    return lines


class Documents:
    """What is known of every row of an index.

    Args:
        lines: (rows,) of `DOCUMENTS`.
        live: (rows,) False where a row is deleted: it is not found; None: none is.
    """

    def __init__(self, lines: NDArray[Any], live: NDArray[np.bool_] | None = None) -> None:
        self.lines = lines
        rows = np.arange(len(lines)) if live is None else np.flatnonzero(live)
        self._by_id = rows[np.argsort(lines["id_key"][rows], kind="stable")]
        self._by_content = rows[np.argsort(lines["content"][rows], kind="stable")]

    def __len__(self) -> int:
        return len(self.lines)

    def references(self, rows: Int64) -> References:
        """References of some rows."""
        lines = self.lines[rows]
        return References(lines["id_key"], lines["source_key"], lines["content"])

    def modality(self, rows: Int64) -> NDArray[np.int8]:
        """(n,) modalities of some rows."""
        modality: NDArray[np.int8] = self.lines["modality"][rows]
        return modality

    def find(self, references: References) -> list[Int64]:
        """Live rows that are each document: by id and source where that is here, and by content."""
        ids, contents = self._spans("id_key", references), self._spans("content", references)
        found = []
        for one, by_id, by_content in zip(range(len(references)), ids, contents, strict=True):
            own, source = self.lines["source_key"][by_id], references.source_key[one]
            named = by_id[(own == source) | (own == NO_SOURCE) | (source == NO_SOURCE)]
            # those of the same id first: the document itself, then its copies
            found.append(np.concatenate([named, by_content[~np.isin(by_content, named)]]))
        return found

    def _spans(self, field: str, references: References) -> list[Int64]:
        order = self._by_id if field == "id_key" else self._by_content
        values = self.lines[field][order]
        wanted = getattr(references, field)
        starts = np.searchsorted(values, wanted, side="left")
        stops = np.searchsorted(values, wanted, side="right")
        return [order[start:stop] for start, stop in zip(starts, stops, strict=True)]
