"""Training samples -> what one rank reads in one step.

`SampleEncoder` runs in CPU tasks: it draws a positive and hard negatives, decodes and tokenises,
and encodes every distinct document once. `collate_train` runs in the training process. A sample
that cannot be encoded keeps its place, counts nothing and says why. Middle floor.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from rematch_ray.data.collate import Batch, collate, moved
from rematch_ray.data.prompts import Side
from rematch_ray.data.rows import (
    ROW_SCHEMA,
    EncodedRow,
    RowEncoder,
    rows_from_table,
    rows_to_columns,
    stable_id,
)
from rematch_ray.data.schema import Item, Sample, samples_from_table
from rematch_ray.errors import UserError

STEP_SCHEMA = pa.schema(
    [
        *ROW_SCHEMA,
        ("is_query", pa.bool_()),
        ("stable_id", pa.int64()),
        ("positive", pa.int32()),
        ("negatives", pa.list_(pa.int32())),
        ("listed", pa.list_(pa.int64())),
        ("sub_batch", pa.int32()),
        ("error", pa.string()),
    ]
)
# what stands in the place of a sample that cannot be encoded; no source is called this
_PLACEHOLDER = Item.of("-", id="-", source="\0")


@dataclass(frozen=True)
class TrainBatch:
    """What one rank reads in one step: b queries, their distinct documents, and who goes with whom.

    Attributes:
        queries: Batch of b rows.
        documents: Batch of n distinct documents (positives and hard negatives).
        positive_slot: (b,) int64 row of each query's positive in `documents`.
        negative_slot: (b, N) int64 rows of the hard negatives, -1 where there is none.
        query_ids: (b,) int64 stable ids.
        document_ids: (n,) int64 stable ids.
        listed_ids: (b, P) int64 ids of every document listed as right, padded with -1.
        sub_batch: (b,) int64 number of the sub-batch that each query belongs to.
        valid: (b,) bool, False = a row that only keeps the shape.
        step: global optimisation step, seeds the draws together with `query_ids`.
        errors: why rows are not valid.
    """

    queries: Batch
    documents: Batch
    positive_slot: Tensor
    negative_slot: Tensor
    query_ids: Tensor
    document_ids: Tensor
    listed_ids: Tensor
    sub_batch: Tensor
    valid: Tensor
    step: int
    errors: tuple[str, ...] = ()

    def to(self, device: torch.device | str) -> TrainBatch:
        """The same batch on another device."""
        return moved(self, device)


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

    def __call__(self, tables: Sequence[pa.Table], step: int) -> pa.Table:
        """Encodes the sub-batches of a rank-step.

        Args:
            tables: Samples, one table per sub-batch.
            step: global step, seeds the draws.

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
        documents: dict[str, EncodedRow] = {}
        links: list[dict[str, Any]] = []
        for _, sample in samples:
            query, link = self._encode(sample, step, documents)
            queries.append(query)
            links.append(link)
        places = {key: place for place, key in enumerate(documents)}
        columns: dict[str, list[Any]] = rows_to_columns([*queries, *documents.values()])
        count = len(documents)
        columns["is_query"] = [True] * len(queries) + [False] * count
        columns["stable_id"] = [link["id"] for link in links] + [
            stable_id(key) for key in documents
        ]
        columns["positive"] = [places[link["positive"]] for link in links] + [None] * count
        columns["negatives"] = [[places[key] for key in link["negatives"]] for link in links] + [
            None
        ] * count
        columns["listed"] = [link["listed"] for link in links] + [None] * count
        columns["sub_batch"] = [place for place, _ in samples] + [None] * count
        columns["error"] = [link["error"] for link in links] + [None] * count
        return pa.Table.from_pydict(columns, schema=STEP_SCHEMA)

    def _encode(
        self, sample: Sample, step: int, documents: dict[str, EncodedRow]
    ) -> tuple[EncodedRow, dict[str, Any]]:
        """One sample's query row and links; its documents are added where they are new."""
        draw = random.Random(f"{self._seed}:{step}:{sample.query.id}")
        positive = draw.choice(sample.positives).item
        count = min(self._max_negatives, len(sample.negatives))
        negatives = [negative.item for negative in draw.sample(sample.negatives, count)]
        try:
            query = self._encoder.encode(sample.query, "query", self._instruction(sample, "query"))
            new = {
                _key(sample, item): self._encoder.encode(
                    item, "document", self._instruction(sample, "document")
                )
                for item in (positive, *negatives)
                if _key(sample, item) not in documents
            }
            error = ""
        except UserError as refused:
            error, positive, negatives = str(refused), _PLACEHOLDER, []
            query = replace(self._encoder.encode(_PLACEHOLDER, "query"), id=sample.query.id)
            new = {_key(sample, positive): self._encoder.encode(positive, "document")}
        for key, row in new.items():
            documents.setdefault(key, row)
        listed = sorted({stable_id(_key(sample, entry.item)) for entry in sample.positives})
        return query, {
            "id": stable_id(_key(sample, sample.query)),
            "positive": _key(sample, positive),
            "negatives": [_key(sample, item) for item in negatives],
            "listed": listed,
            "error": error,
        }

    def _instruction(self, sample: Sample, side: Side) -> str:
        if side == "query" and sample.instruction is not None:
            return sample.instruction
        return self._instructions.get(sample.source, {}).get(side, "")


def _key(sample: Sample, item: Item) -> str:
    """What tells one document (or query) from another: its source and its id."""
    return f"{item.source or sample.source}\0{item.id}"


def collate_train(
    table: pa.Table, *, step: int, num_query_meta: int, num_document_meta: int, pad_id: int
) -> TrainBatch:
    """Pads a rank-step's rows and links them.

    Args:
        table: as `SampleEncoder` made it.
        step: global step.
        num_query_meta: R of queries.
        num_document_meta: R of documents.
        pad_id: token id under meta tokens and padding.
    """
    rows = rows_from_table(table)
    is_query = table["is_query"].to_pylist()
    num_queries = sum(is_query)
    ids = torch.tensor(table["stable_id"].to_pylist())
    head = table.slice(0, num_queries)
    return TrainBatch(
        queries=collate(rows[:num_queries], num_meta=num_query_meta, pad_id=pad_id),
        documents=collate(rows[num_queries:], num_meta=num_document_meta, pad_id=pad_id),
        positive_slot=torch.tensor(head["positive"].to_pylist()),
        negative_slot=_padded(head["negatives"].to_pylist()),
        query_ids=ids[:num_queries],
        document_ids=ids[num_queries:],
        listed_ids=_padded(head["listed"].to_pylist()),
        sub_batch=torch.tensor(head["sub_batch"].to_pylist()),
        valid=torch.tensor([not error for error in head["error"].to_pylist()]),
        step=step,
        errors=tuple(error for error in head["error"].to_pylist() if error),
    )


def _padded(lists: Sequence[Sequence[int]]) -> Tensor:
    """(b, longest) int64, padded with -1."""
    width = max((len(entry) for entry in lists), default=0)
    return torch.tensor(
        [[*entry, *[-1] * (width - len(entry))] for entry in lists], dtype=torch.int64
    ).reshape(len(lists), width)
