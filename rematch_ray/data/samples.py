"""Training samples -> the encoded rows and links of one rank-step, as one Arrow table.

`SampleEncoder` runs in CPU tasks: it draws a positive and hard negatives, decodes and tokenises,
and encodes every distinct document once. A sample that cannot be encoded keeps its place, counts
nothing and says why; a masked row counts nothing either and stands for no sample. Middle floor.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from rematch_ray.data.prompts import Side
from rematch_ray.data.rows import (
    ROW_SCHEMA,
    EncodedRow,
    RowEncoder,
    rows_to_columns,
    stable_id,
)
from rematch_ray.data.schema import (
    Item,
    Positive,
    Sample,
    SchemaError,
    check_schema,
    sample_from_row,
    sample_schema,
)
from rematch_ray.errors import UserError

STEP_SCHEMA = pa.schema(
    [
        *ROW_SCHEMA,
        ("is_query", pa.bool_()),
        ("stable_id", pa.int64()),
        ("content_id", pa.int64()),
        ("positive", pa.int32()),
        ("negatives", pa.list_(pa.int32())),
        ("mined", pa.list_(pa.bool_())),
        ("listed", pa.list_(pa.int64())),
        ("sub_batch", pa.int32()),
        ("error", pa.string()),
    ]
)
# what stands in the place of a sample that cannot be encoded; no source is called this
_PLACEHOLDER = Item.of("-", id="-", source="\0")
_NO_SAMPLE = Sample(_PLACEHOLDER, (Positive(_PLACEHOLDER),), source="\0")
MASKED_ID = 0
"""Query id of rows that stand for no sample."""


@dataclass(frozen=True)
class _Document:
    row: EncodedRow
    content: int


class SampleEncoder:
    """Encodes the samples of one rank-step. Picklable.

    Documents and queries are told apart by (source, id), so two sources may number theirs alike. An
    item without a source of its own belongs to its sample's.

    Args:
        encoder: the model's row encoder.
        max_negatives: hard negatives drawn per row.
        seed: of the draws of positives and negatives; a draw depends on (seed, step, query id).
        instructions: default instruction per source and side, for samples without their own.
    """

    def __init__(
        self,
        encoder: RowEncoder,
        *,
        max_negatives: int,
        seed: int,
        instructions: Mapping[str, Mapping[Side, str]] | None = None,
    ) -> None:
        self._encoder = encoder
        self._max_negatives = max_negatives
        self._seed = seed
        self._instructions = instructions or {}

    def __call__(self, tables: Sequence[pa.Table], step: int, *, masked_rows: int = 0) -> pa.Table:
        """Encodes the sub-batches of a rank-step.

        Args:
            tables: Samples, one table per sub-batch.
            step: global step, seeds the draws.
            masked_rows: rows to add as one more sub-batch that only keeps the shape.

        Returns:
            A table of `STEP_SCHEMA`: the queries, then the distinct documents.

        Raises:
            UserError: a table does not hold Samples.
        """
        queries: list[EncodedRow] = []
        documents: dict[str, _Document] = {}
        links: list[dict[str, Any]] = []
        sub_batches: list[int] = []
        for place, table in enumerate(tables):
            for sample, error in _read(table):
                if error:
                    query, link = self._refused(sample, error, documents)
                else:
                    query, link = self._encode(sample, step, documents)
                queries.append(query)
                links.append(link)
                sub_batches.append(place)
        sub_batches += [len(tables)] * masked_rows
        for _ in range(masked_rows):
            queries.append(self._encoder.encode(_PLACEHOLDER, "query"))
            links.append(self._masked(documents))
        places = {key: place for place, key in enumerate(documents)}
        columns: dict[str, list[Any]] = rows_to_columns(
            [*queries, *(entry.row for entry in documents.values())]
        )
        count = len(documents)
        columns["is_query"] = [True] * len(queries) + [False] * count
        columns["stable_id"] = [link["id"] for link in links] + [
            stable_id(key) for key in documents
        ]
        columns["content_id"] = [-1] * len(links) + [entry.content for entry in documents.values()]
        columns["positive"] = [places[link["positive"]] for link in links] + [None] * count
        columns["negatives"] = [[places[key] for key in link["negatives"]] for link in links] + [
            None
        ] * count
        columns["mined"] = [link["mined"] for link in links] + [None] * count
        columns["listed"] = [link["listed"] for link in links] + [None] * count
        columns["sub_batch"] = sub_batches + [None] * count
        columns["error"] = [link["error"] for link in links] + [None] * count
        return pa.Table.from_pydict(columns, schema=STEP_SCHEMA)

    def _encode(
        self, sample: Sample, step: int, documents: dict[str, _Document]
    ) -> tuple[EncodedRow, dict[str, Any]]:
        """One sample's query row and links; its documents are added where they are new."""
        draw = random.Random(f"{self._seed}:{step}:{sample.query.id}")
        positive = draw.choice(sample.positives).item
        count = min(self._max_negatives, len(sample.negatives))
        drawn = draw.sample(sample.negatives, count)
        negatives = [negative.item for negative in drawn]
        try:
            query = self._encoder.encode(sample.query, "query", self._instruction(sample, "query"))
            new = {
                _key(sample, item): self._document(item, self._instruction(sample, "document"))
                for item in (positive, *negatives)
                if _key(sample, item) not in documents
            }
        except UserError as refused:
            return self._refused(sample, str(refused), documents)
        for key, entry in new.items():
            documents.setdefault(key, entry)
        negative_keys = [_key(sample, item) for item in negatives]
        mined = [negative.kind.startswith("mined") for negative in drawn]
        return query, _link(sample, _key(sample, positive), negative_keys, mined)

    def _refused(
        self, sample: Sample, error: str, documents: dict[str, _Document]
    ) -> tuple[EncodedRow, dict[str, Any]]:
        """A placeholder in the place of a sample that cannot be used, and why it cannot."""
        query = replace(self._encoder.encode(_PLACEHOLDER, "query"), id=sample.query.id)
        key = _key(sample, _PLACEHOLDER)
        if key not in documents:
            documents[key] = self._document(_PLACEHOLDER, "")
        return query, _link(sample, key, [], [], error)

    def _masked(self, documents: dict[str, _Document]) -> dict[str, Any]:
        """Links of a row that stands for no sample; its document is added where it is new."""
        key = _key(_NO_SAMPLE, _PLACEHOLDER)
        if key not in documents:
            documents[key] = self._document(_PLACEHOLDER, "")
        return {
            "id": MASKED_ID,
            "positive": key,
            "negatives": [],
            "mined": [],
            "listed": [],
            "error": None,
        }

    def _document(self, item: Item, instruction: str) -> _Document:
        row = self._encoder.encode(item, "document", instruction)
        digest = hashlib.blake2b(digest_size=8)
        for part in item.parts:  # in their order: a text before a picture is not one behind it
            text = (part.text or "").encode()
            digest.update(f"{part.kind} {len(text)}\0".encode() + text)
        digest.update(row.pixels.data)
        digest.update(row.grid.tobytes())
        return _Document(row, int.from_bytes(digest.digest(), "little") >> 1)

    def _instruction(self, sample: Sample, side: Side) -> str:
        if side == "query" and sample.instruction is not None:
            return sample.instruction
        return self._instructions.get(sample.source, {}).get(side, "")


def _link(
    sample: Sample,
    positive: str,
    negatives: Sequence[str],
    mined: Sequence[bool],
    error: str = "",
) -> dict[str, Any]:
    """Who goes with whom, by key, for one query."""
    return {
        "id": stable_id(_key(sample, sample.query)),
        "positive": positive,
        "negatives": negatives,
        "mined": mined,
        "listed": sorted({stable_id(_key(sample, entry.item)) for entry in sample.positives}),
        "error": error,
    }


def _read(table: pa.Table) -> Iterator[tuple[Sample, str]]:
    """The samples of a table, each with why it cannot be used, or "".

    Raises:
        SchemaError: a column is missing or has the wrong type.
    """
    check_schema(table.schema, sample_schema(), required=("query", "positives"), where="samples")
    for row in table.to_pylist():
        error = row.get("error") or ""
        try:
            yield (_unreadable(row, error) if error else sample_from_row(row)), error
        except SchemaError as refused:
            yield _unreadable(row, str(refused)), str(refused)


def _unreadable(row: Mapping[str, Any], error: str) -> Sample:
    """What stands for a row that a reader could not read; known by its id, else by its error."""
    known = (row.get("query") or {}).get("id") or error
    return replace(
        _NO_SAMPLE, query=replace(_PLACEHOLDER, id=known, source=row.get("source") or "")
    )


def _key(sample: Sample, item: Item) -> str:
    """What tells one document (or query) from another: its source and its id."""
    return f"{item.source or sample.source}\0{item.id}"
