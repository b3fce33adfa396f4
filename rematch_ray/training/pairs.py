"""Which rows meet in the matching stage: the negative, the slot and the share of rows.

A row's draw depends on its sub-batch, its id and the step, never on which rank holds the sub-batch
or in which order documents stand, so any number of processes draws the same. Takes a batch and
cosines; runs no model. Middle floor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rematch_ray.collectives import gather
from rematch_ray.data.train_batch import TrainBatch
from rematch_ray.losses.contrastive import margin_mask, occurs_in
from rematch_ray.losses.matching import draw_negatives
from rematch_ray.training.chunks import Chunk
from rematch_ray.training.draws import row_uniforms
from rematch_ray.training.settings import ObjectiveSettings


@dataclass(frozen=True)
class Pairs:
    """The m triplets that matching reads.

    Attributes:
        query_rows: (m,) rows of the queries.
        first_rows: (m,) rows of the documents in slot 1.
        second_rows: (m,) rows of the documents in slot 2.
        positive_slot: (m,) 0 or 1, the slot of the positive.
    """

    query_rows: Tensor
    first_rows: Tensor
    second_rows: Tensor
    positive_slot: Tensor

    def __len__(self) -> int:
        return len(self.query_rows)


@dataclass(frozen=True)
class ChunkPairs:
    """The triplets of a chunk's queries.

    Attributes:
        pairs: rows count inside the chunk: its documents, then the extra ones.
        extra: rows of further documents that only these triplets read.
    """

    pairs: Pairs
    extra: tuple[int, ...]

    @classmethod
    def of(cls, pairs: Pairs, chunk: Chunk) -> ChunkPairs:
        """Those of a rank's triplets whose query is in the chunk."""
        place = {row: number for number, row in enumerate(chunk.queries)}
        home = {row: number for number, row in enumerate(chunk.documents)}
        device = pairs.query_rows.device
        columns = (pairs.query_rows, pairs.first_rows, pairs.second_rows, pairs.positive_slot)
        triplets = zip(*(column.tolist() for column in columns), strict=True)
        mine = [t for t in triplets if chunk.counts_queries and t[0] in place]
        extra: dict[int, int] = {}
        for _, first, second, _ in mine:
            for document in (first, second):
                if document not in home:
                    extra.setdefault(document, len(home) + len(extra))
        where = home | extra
        rows = [(place[q], where[a], where[b], slot) for q, a, b, slot in mine]
        found = torch.tensor(rows, dtype=torch.int64, device=device).reshape(-1, 4)
        return cls(Pairs(*found.unbind(dim=1)), tuple(extra))


def draw_pairs(batch: TrainBatch, cosine_bn: Tensor, settings: ObjectiveSettings) -> Pairs:
    """Draws the triplets of a rank's rows; collective.

    Args:
        batch: the rank's rows.
        cosine_bn: (b, n) detached fused cosines of queries and documents.
        settings: share of rows, mined share, sharpness of the draw, margin.

    Returns:
        Pairs; rows without any admissible negative are left out.
    """
    hard = batch.negative_slot
    num_documents = cosine_bn.shape[1]
    numbers = row_uniforms(batch.query_ids, batch.step, 4)
    admissible = ~_right_documents(batch)
    if settings.margin is not None:
        admissible = admissible & margin_mask(
            cosine_bn, batch.positive_slot, margin=settings.margin, labelled_bC=_labelled(batch)
        )
    mined = _uses_in_sub_batch(batch) & admissible
    # columns in the order of ids, so that the draw does not depend on who stands beside whom
    order = batch.document_ids.argsort()
    column = draw_negatives(
        cosine_bn[:, order],
        mined[:, order],
        (hard >= 0) & admissible.gather(1, hard.clamp(min=0)),
        mined=settings.match_mined,
        temperature=settings.match_temperature,
        uniforms_b2=numbers[:, :2],
    )
    chosen = _share_of_sub_batch(numbers[:, 2], batch.sub_batch, settings.match_share)
    rows = (chosen & batch.valid & (column >= 0)).nonzero()[:, 0]
    column = column[rows]
    negative = order[column.clamp(max=num_documents - 1)]
    if hard.shape[1]:
        own = hard[rows].gather(1, (column - num_documents).clamp(min=0)[:, None])[:, 0]
        negative = torch.where(column < num_documents, negative, own)
    positive = batch.positive_slot[rows]
    slot = (numbers[rows, 3] >= 0.5).long()
    return Pairs(
        rows,
        torch.where(slot == 0, positive, negative),
        torch.where(slot == 0, negative, positive),
        slot,
    )


def document_uses(batch: TrainBatch) -> Tensor:
    """(b, n) float: how often each row reads each document, as positive or hard negative."""
    num_rows, num_documents = batch.num_queries, batch.num_documents
    slots = torch.cat([batch.positive_slot[:, None], batch.negative_slot], dim=1)
    counts = ((slots >= 0) & batch.valid[:, None]).float()
    uses = counts.new_zeros(num_rows, num_documents)
    return uses.scatter_add(1, slots.clamp(min=0), counts)


def _uses_in_sub_batch(batch: TrainBatch) -> Tensor:
    """(b, n) bool: documents that some valid row of the same sub-batch reads."""
    same = (batch.sub_batch[:, None] == batch.sub_batch[None, :]).float()
    return same @ document_uses(batch) > 0


def _labelled(batch: TrainBatch) -> Tensor:
    """(b, n) bool: the row's own labelled hard negatives, which the margin never drops."""
    hard = batch.negative_slot
    is_labelled = (hard >= 0) & ~batch.negative_mined
    ids = torch.where(is_labelled, batch.document_ids[hard.clamp(min=0)], -1)
    return occurs_in(batch.document_ids[None, :], ids)


def _right_documents(batch: TrainBatch) -> Tensor:
    """(b, n) bool: listed as right, or the positive of a row of any rank with the same query id."""
    listed = occurs_in(batch.document_ids[None, :], batch.listed_ids)
    positives = torch.where(batch.valid, batch.document_ids[batch.positive_slot], -1)
    same_query = batch.query_ids[:, None] == gather(batch.query_ids)[None, :]
    same_document = gather(positives)[:, None] == batch.document_ids[None, :]
    return listed | (same_query.float() @ same_document.float() > 0)


def _share_of_sub_batch(uniform_b: Tensor, sub_batch: Tensor, share: float) -> Tensor:
    """(b,) bool: the same share of every sub-batch, the rows with the smallest numbers."""
    same = sub_batch[:, None] == sub_batch[None, :]
    before = (uniform_b[None, :] < uniform_b[:, None]) & same
    wanted = (share * same.sum(dim=1)).round().clamp(min=1)
    return before.sum(dim=1) < wanted
