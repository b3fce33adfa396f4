"""Training samples -> the encoded rows and links of one rank-step, as one Arrow table.

`SampleEncoder` runs in CPU tasks: it draws a positive and hard negatives, decodes and tokenises,
and encodes every distinct document once. A sample that cannot be encoded keeps its place, counts
nothing and says why; a masked row counts nothing either and stands for no sample. Middle floor.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
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
from rematch_ray.data.schema import Item, Positive, Sample, samples_from_table
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
        samples = [
            (place, sample)
            for place, table in enumerate(tables)
            for sample in samples_from_table(table)
        ]
        queries: list[EncodedRow] = []
        documents: dict[str, _Document] = {}
        links: list[dict[str, Any]] = []
        for _, sample in samples:
            query, link = self._encode(sample, step, documents)
            queries.append(query)
            links.append(link)
        samples += [(len(tables), _NO_SAMPLE)] * masked_rows
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
        columns["sub_batch"] = [place for place, _ in samples] + [None] * count
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
            error = ""
        except UserError as refused:
            error, positive, negatives, drawn = str(refused), _PLACEHOLDER, [], []
            query = replace(self._encoder.encode(_PLACEHOLDER, "query"), id=sample.query.id)
            new = {_key(sample, positive): self._document(positive, "")}
        for key, entry in new.items():
            documents.setdefault(key, entry)
        listed = sorted({stable_id(_key(sample, entry.item)) for entry in sample.positives})
        return query, {
            "id": stable_id(_key(sample, sample.query)),
            "positive": _key(sample, positive),
            "negatives": [_key(sample, item) for item in negatives],
            "mined": [negative.kind.startswith("mined") for negative in drawn],
            "listed": listed,
            "error": error,
        }

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
        texts = [part.text or "" for part in item.parts if part.kind == "text"]
        digest = hashlib.blake2b("\0".join(texts).encode(), digest_size=8)
        digest.update(row.pixels.data)
        digest.update(row.grid.tobytes())
        return _Document(row, int.from_bytes(digest.digest(), "little") >> 1)

    def _instruction(self, sample: Sample, side: Side) -> str:
        if side == "query" and sample.instruction is not None:
            return sample.instruction
        return self._instructions.get(sample.source, {}).get(side, "")


def _key(sample: Sample, item: Item) -> str:
    """What tells one document (or query) from another: its source and its id."""
    return f"{item.source or sample.source}\0{item.id}"
