"""What one rank reads in one step: rows, who goes with whom, and the padding when it is asked for.

`collate_train` runs in the training process, over what `SampleEncoder` made in CPU tasks. Knows
neither decoding nor models. Middle floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import torch
from torch import Tensor

from rematch_ray.data.collate import Batch, collate, moved
from rematch_ray.data.prompts import Side
from rematch_ray.data.rows import EncodedRow, rows_from_table


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
