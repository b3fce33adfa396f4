"""What a rank's queries are compared with: candidates of all ranks, hard negatives, one mask.

Takes vectors that were encoded and gathers them with gradient; runs no model. Middle floor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from rematch_ray.collectives import gather, gather_with_gradient, largest_over_ranks, rank
from rematch_ray.data.train_batch import TrainBatch
from rematch_ray.losses.contrastive import Candidates, candidate_mask, margin_mask, occurs_in
from rematch_ray.losses.joint import Contrast, fused_candidate_scores
from rematch_ray.model.embeddings import Embeddings
from rematch_ray.training.settings import ObjectiveSettings


@dataclass(frozen=True)
class Shared:
    """Candidates of all ranks: (C, R, D) vectors, (C, F) fused or None, (C,) document ids."""

    vectors: Tensor
    fused: Tensor | None
    ids: Tensor

    @classmethod
    def gathered(cls, documents: Embeddings, rows: Tensor, ids: Tensor) -> Shared:
        """The named rows of every rank, with gradient."""
        fused = documents.fused
        return cls(
            gather_with_gradient(documents.vectors[rows]),
            None if fused is None else gather_with_gradient(fused[rows]),
            gather(ids),
        )

    def followed_by(self, other: Shared) -> Shared:
        """These candidates, then the other ones."""
        both = (self.fused, other.fused)
        fused = [part for part in both if part is not None]
        return Shared(
            torch.cat([self.vectors, other.vectors]),
            torch.cat(fused) if fused else None,
            torch.cat([self.ids, other.ids]),
        )


def build_contrast(
    batch: TrainBatch, queries: Embeddings, documents: Embeddings, settings: ObjectiveSettings
) -> Contrast:
    """Gathers candidates over ranks and builds the one mask of every term; collective.

    Args:
        batch: the rank's rows.
        queries: b encoded queries.
        documents: n encoded documents.
        settings: hard negatives private or pooled, margin.
    """
    positive, hard = batch.positive_slot, _hard_slots(batch, settings)
    pooled = settings.hard_negatives == "pooled"
    num_rows, num_hard = hard.shape
    slots = hard.clamp(min=0)
    hard_ids = torch.where(hard >= 0, batch.document_ids[slots], -1)
    shared = Shared.gathered(
        documents, positive, torch.where(batch.valid, batch.document_ids[positive], -1)
    )
    shared_query_ids = gather(batch.query_ids)
    if pooled and num_hard:
        shared = shared.followed_by(Shared.gathered(documents, slots.flatten(), hard_ids.flatten()))
        padding = shared_query_ids.new_full((len(shared.ids) - len(shared_query_ids),), -1)
        shared_query_ids = torch.cat([shared_query_ids, padding])
    is_private = bool(num_hard) and not pooled
    target = torch.arange(num_rows, device=positive.device) + rank() * num_rows
    private_ids = hard_ids if is_private else hard_ids[:, :0]
    mask = candidate_mask(
        Candidates(
            batch.query_ids, target, batch.listed_ids, shared.ids, shared_query_ids, private_ids
        )
    )
    fused = documents.fused
    contrast = Contrast(
        queries.vectors,
        shared.vectors,
        documents.vectors[slots] if is_private else None,
        queries.fused,
        shared.fused,
        fused[slots] if is_private and fused is not None else None,
        target,
        mask,
        batch.valid,
    )
    if settings.margin is None:
        return contrast
    # what a miner found is no label: the margin may drop it like any candidate of the batch
    mined = F.pad(batch.negative_mined, (0, num_hard - batch.negative_mined.shape[1]))
    labelled_ids = torch.where(mined, -1, hard_ids)
    labelled = occurs_in(shared.ids[None, :], labelled_ids)
    own = labelled_ids[:, : num_hard if is_private else 0] >= 0
    return _with_margin(contrast, torch.cat([labelled, own], dim=1), settings.margin)


def equal_documents(batch: TrainBatch) -> TrainBatch:
    """Gives documents of equal texts and pixels one id on all ranks; collective.

    Two files of the same picture are then one document to every mask and draw. The id is the
    smallest of those that share the content, so it does not depend on who holds what.
    """
    ids, contents = batch.document_ids, batch.document_content
    missing = largest_over_ranks(len(ids), device=ids.device) - len(ids)
    padded = torch.stack([ids, contents])
    padded = F.pad(padded, (0, missing), value=-1)
    all_ids, all_contents = gather(padded.T.contiguous()).T
    unique, place = torch.unique(all_contents, return_inverse=True)
    smallest = torch.full_like(unique, torch.iinfo(torch.int64).max)
    smallest = smallest.scatter_reduce(0, place, all_ids, "amin")
    known, order = all_ids.sort()
    canonical = smallest[place][order]

    def renamed(given: Tensor) -> Tensor:
        nearest = torch.searchsorted(known, given).clamp(max=len(known) - 1)
        return torch.where(known[nearest] == given, canonical[nearest], given)

    listed = batch.listed_ids
    return replace(
        batch,
        document_ids=renamed(ids),
        listed_ids=torch.where(listed >= 0, renamed(listed.contiguous()), -1),
    )


def _hard_slots(batch: TrainBatch, settings: ObjectiveSettings) -> Tensor:
    """(b, N) rows of the hard negatives; when pooled, N is the widest of all ranks."""
    hard = batch.negative_slot
    if settings.hard_negatives == "private":
        return hard
    missing = largest_over_ranks(hard.shape[1], device=hard.device) - hard.shape[1]
    return torch.cat([hard, hard.new_full((len(hard), missing), -1)], dim=1)


def _with_margin(contrast: Contrast, labelled: Tensor, margin: float) -> Contrast:
    """Applies the optional margin, judged once on the detached fused cosine."""
    assert contrast.query_fused is not None and contrast.shared_fused is not None
    own = contrast.private_fused
    score = fused_candidate_scores(
        contrast.query_fused.detach(),
        contrast.shared_fused.detach(),
        None if own is None else own.detach(),
    )
    keep = margin_mask(score, contrast.target, margin=margin, labelled_bC=labelled)
    return replace(contrast, mask=contrast.mask & keep)
