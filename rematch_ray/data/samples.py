"""Training samples -> what one rank reads in one step.

`SampleEncoder` runs in CPU tasks: it draws a positive and hard negatives, decodes and tokenises,
and encodes every distinct document once. `collate_train` runs in the training process. A sample
that cannot be encoded keeps its place, counts nothing and says why; a masked row counts nothing
either and stands for no sample. Middle floor.
"""

from __future__ import annotations

import hashlib
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
class Layout:
    """What rows are padded with: meta tokens per side, and the padding token's id."""

    num_query_meta: int
    num_document_meta: int
    pad_id: int


@dataclass(frozen=True)
class TrainBatch:
    """What one rank reads in one step: b queries, their distinct documents, and who goes with whom.

    Images stay packed: `batch` and the properties `queries` and `documents` pad rows and unpack
    their pixels when they are asked, on the device of the other tensors.

    Attributes:
        query_rows: b encoded rows.
        document_rows: n distinct documents (positives and hard negatives).
        layout: how rows are padded.
        positive_slot: (b,) int64 row of each query's positive in `documents`.
        negative_slot: (b, N) int64 rows of the hard negatives, -1 where there is none.
        negative_mined: (b, N) bool, True = found by a miner, not labelled by the data.
        query_ids: (b,) int64 stable ids, `MASKED_ID` for a row that stands for no sample.
        document_ids: (n,) int64 stable ids.
        document_content: (n,) int64, the same for documents of the same texts and pixels.
        listed_ids: (b, P) int64 ids of every document listed as right, padded with -1.
        sub_batch: (b,) int64 number of the sub-batch that each query belongs to.
        valid: (b,) bool, False = a row that only keeps the shape.
        step: global optimisation step, seeds the draws together with `query_ids`.
        errors: why rows are not valid.
    """

    query_rows: Sequence[EncodedRow]
    document_rows: Sequence[EncodedRow]
    layout: Layout
    positive_slot: Tensor
    negative_slot: Tensor
    negative_mined: Tensor
    query_ids: Tensor
    document_ids: Tensor
    document_content: Tensor
    listed_ids: Tensor
    sub_batch: Tensor
    valid: Tensor
    step: int
    errors: tuple[str, ...] = ()

    @property
    def num_queries(self) -> int:
        """b."""
        return len(self.query_rows)

    @property
    def num_documents(self) -> int:
        """n."""
        return len(self.document_rows)

    @property
    def queries(self) -> Batch:
        """All query rows, padded, pixels unpacked; made anew at every call."""
        return self.batch("query")

    @property
    def documents(self) -> Batch:
        """All document rows, padded, pixels unpacked; made anew at every call."""
        return self.batch("document")

    def batch(self, side: Side, rows: Sequence[int] | None = None) -> Batch:
        """Pads rows of one side.

        Args:
            side: queries or documents.
            rows: which of them, in this order; None = all.
        """
        of_side = self.query_rows if side == "query" else self.document_rows
        chosen = of_side if rows is None else [of_side[row] for row in rows]
        layout = self.layout
        num_meta = layout.num_query_meta if side == "query" else layout.num_document_meta
        return collate(chosen, num_meta=num_meta, pad_id=layout.pad_id).to(self.valid.device)

    def part(self, chosen: Tensor) -> TrainBatch:
        """The rows of some queries, (b,) bool, with the documents that they read."""
        slots = torch.cat([self.positive_slot[chosen, None], self.negative_slot[chosen]], dim=1)
        kept = slots[slots >= 0].unique()
        place = kept.new_full((self.num_documents,), -1)
        place[kept] = torch.arange(len(kept), device=kept.device)
        negative = self.negative_slot[chosen]
        return replace(
            self,
            query_rows=[self.query_rows[row] for row in chosen.nonzero()[:, 0].tolist()],
            document_rows=[self.document_rows[row] for row in kept.tolist()],
            positive_slot=place[self.positive_slot[chosen]],
            negative_slot=torch.where(negative >= 0, place[negative.clamp(min=0)], -1),
            negative_mined=self.negative_mined[chosen],
            query_ids=self.query_ids[chosen],
            document_ids=self.document_ids[kept],
            document_content=self.document_content[kept],
            listed_ids=self.listed_ids[chosen],
            sub_batch=self.sub_batch[chosen],
            valid=self.valid[chosen],
        )

    def to(self, device: torch.device | str) -> TrainBatch:
        """The same batch on another device."""
        return moved(self, device)


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


def collate_train(
    table: pa.Table, *, step: int, num_query_meta: int, num_document_meta: int, pad_id: int
) -> TrainBatch:
    """Links a rank-step's rows; they are padded when they are asked for.

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
        query_rows=rows[:num_queries],
        document_rows=rows[num_queries:],
        layout=Layout(num_query_meta, num_document_meta, pad_id),
        positive_slot=torch.tensor(head["positive"].to_pylist()),
        negative_slot=_padded(head["negatives"].to_pylist()),
        negative_mined=_padded(head["mined"].to_pylist(), fill=0).bool(),
        query_ids=ids[:num_queries],
        document_ids=ids[num_queries:],
        document_content=torch.tensor(table["content_id"].to_pylist())[num_queries:],
        listed_ids=_padded(head["listed"].to_pylist()),
        sub_batch=torch.tensor(head["sub_batch"].to_pylist()),
        valid=torch.tensor([error == "" for error in head["error"].to_pylist()]),
        step=step,
        errors=tuple(error for error in head["error"].to_pylist() if error),
    )


def _padded(lists: Sequence[Sequence[int]], *, fill: int = -1) -> Tensor:
    """(b, longest) int64, padded with `fill`."""
    width = max((len(entry) for entry in lists), default=0)
    return torch.tensor(
        [[*entry, *[fill] * (width - len(entry))] for entry in lists], dtype=torch.int64
    ).reshape(len(lists), width)
