"""One forward over everything a rank reads in a step: encode, gather, match, joint loss.

Kept in a single module so that DDP and sharding see one forward. Composes the embedder, the
collectives and the losses; holds no optimiser and knows no files. Middle floor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rematch_ray.collectives import (
    gather,
    gather_with_gradient,
    largest_over_ranks,
    mean_over_ranks,
    rank,
)
from rematch_ray.data.samples import TrainBatch
from rematch_ray.losses.contrastive import Candidates, candidate_mask, margin_mask, occurs_in
from rematch_ray.losses.joint import (
    Answers,
    Contrast,
    Counts,
    JointLoss,
    fused_candidate_scores,
    joint_loss,
    with_vector_gradients,
)
from rematch_ray.losses.matching import view_labels
from rematch_ray.model.embedder import Embedder, Encoded
from rematch_ray.model.matcher import packed_answers
from rematch_ray.training.pairs import Pairs, document_uses, draw_pairs
from rematch_ray.training.settings import ObjectiveSettings

TEMPERATURE_RANGE = (0.01, 0.2)


@dataclass(frozen=True)
class Shared:
    """Candidates of all ranks: (C, R, D) vectors, (C, F) fused or None, (C,) document ids."""

    vectors: Tensor
    fused: Tensor | None
    ids: Tensor

    @classmethod
    def gathered(cls, documents: Encoded, rows: Tensor, ids: Tensor) -> Shared:
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


class JointModel(nn.Module):
    """Embedder plus objective; `forward` maps a rank's batch to its share of the joint loss.

    Args:
        embedder: the model; built with a fused vector exactly when `w_fused` is above 0.
        settings: weights, temperatures, masks.
    """

    def __init__(self, embedder: Embedder, settings: ObjectiveSettings) -> None:
        super().__init__()
        self.embedder = embedder
        self.settings = settings
        logs = [math.log(settings.temperature_fused), math.log(settings.temperature_maxsim)]
        self.log_temperatures = nn.Parameter(
            torch.tensor(logs), requires_grad=settings.learn_temperatures
        )
        self.probe_vectors = False
        """Whether the next forward also measures each budget's gradient at the vectors."""
        self._freeze_unused()

    def _freeze_unused(self) -> None:
        """What no term reads is not trained: DDP and sharding wait for every trained weight."""
        embedder, settings = self.embedder, self.settings
        if not settings.w_match:
            if embedder.matcher is not None:
                embedder.matcher.requires_grad_(False)
            embedder.backbone.freeze_untied_head()
        reads_vectors = settings.w_groups or (settings.w_orth and settings.orth_space == "vector")
        if not reads_vectors:
            embedder.vector_projection.requires_grad_(False)

    def temperatures(self) -> tuple[Tensor, Tensor]:
        """Fused and MaxSim temperature, clamped when they are learned."""
        values = self.log_temperatures.exp()
        if self.settings.learn_temperatures:
            values = values.clamp(*TEMPERATURE_RANGE)
        return values[0], values[1]

    def forward(self, batch: TrainBatch) -> JointLoss:
        """The rank's loss; averaging its gradients over ranks gives the global mean's gradient."""
        queries = self.embedder.encode_rows(batch.queries, "query")
        documents = self.embedder.encode_rows(batch.documents, "document")
        contrast = self._contrast(batch, queries, documents)
        answers, num_matched = None, 0
        if self.settings.w_match:
            assert queries.fused is not None and documents.fused is not None
            cosine = queries.fused.detach().float() @ documents.fused.detach().float().T
            pairs = draw_pairs(batch, cosine, self.settings)
            num_matched = len(pairs)
            answers = self._answers(pairs, queries, documents)
        uses = [batch.valid.float(), document_uses(batch).sum(dim=0)]
        matched = uses[0].new_tensor(num_matched)
        local = torch.stack([uses[0].sum(), torch.cat(uses).sum(), matched])
        counts = Counts(*(max(value, 1e-9) for value in mean_over_ranks(local).tolist()))
        fused_temperature, maxsim_temperature = self.temperatures()
        groups = self.embedder.ladder.rungs
        loss = joint_loss(
            contrast,
            [
                (self._orthogonal_states(encoded), of_side)
                for encoded, of_side in zip((queries, documents), uses, strict=True)
            ],
            answers,
            counts,
            weights=self.settings.weights,
            groups=groups,
            temperature_fused=fused_temperature,
            temperature_maxsim=maxsim_temperature,
            reduce=self.settings.maxsim_reduce,
        )
        if self.probe_vectors and self.settings.w_groups and torch.is_grad_enabled():
            loss = with_vector_gradients(loss, contrast, groups)
        return loss

    def _contrast(self, batch: TrainBatch, queries: Encoded, documents: Encoded) -> Contrast:
        """Gathers candidates over ranks and builds the one mask of every term."""
        positive, hard = batch.positive_slot, self._hard_slots(batch)
        pooled = self.settings.hard_negatives == "pooled"
        num_rows, num_hard = hard.shape
        slots = hard.clamp(min=0)
        hard_ids = torch.where(hard >= 0, batch.document_ids[slots], -1)
        shared = Shared.gathered(
            documents, positive, torch.where(batch.valid, batch.document_ids[positive], -1)
        )
        shared_query_ids = gather(batch.query_ids)
        if pooled and num_hard:
            shared = shared.followed_by(
                Shared.gathered(documents, slots.flatten(), hard_ids.flatten())
            )
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
        labelled = occurs_in(shared.ids[None, :], hard_ids)
        return self._with_margin(contrast, torch.cat([labelled, private_ids >= 0], dim=1))

    def _hard_slots(self, batch: TrainBatch) -> Tensor:
        """(b, N) rows of the hard negatives; when pooled, N is the widest of all ranks."""
        hard = batch.negative_slot
        if self.settings.hard_negatives == "private":
            return hard
        missing = largest_over_ranks(hard.shape[1], device=hard.device) - hard.shape[1]
        return torch.cat([hard, hard.new_full((len(hard), missing), -1)], dim=1)

    def _with_margin(self, contrast: Contrast, labelled: Tensor) -> Contrast:
        """Applies the optional margin, judged once on the detached fused cosine."""
        if self.settings.margin is None:
            return contrast
        assert contrast.query_fused is not None and contrast.shared_fused is not None
        own = contrast.private_fused
        score = fused_candidate_scores(
            contrast.query_fused.detach(),
            contrast.shared_fused.detach(),
            None if own is None else own.detach(),
        )
        keep = margin_mask(
            score, contrast.target, margin=self.settings.margin, labelled_bC=labelled
        )
        return Contrast(**{**contrast.__dict__, "mask": contrast.mask & keep})

    def _answers(self, pairs: Pairs, queries: Encoded, documents: Encoded) -> Answers:
        """Runs the matching stage; with no triplet at all, a dummy that counts nothing."""
        matcher, prompt = self.embedder.matcher, self.embedder.row_encoder.prompt
        assert matcher is not None
        empty = len(pairs.query_rows) == 0
        rows = pairs
        if empty:
            zero = pairs.query_rows.new_zeros(1)
            rows = Pairs(zero, zero, zero, zero)
        raw_queries, raw_documents = queries.raw_rows(), documents.raw_rows()
        logits = packed_answers(
            self.embedder.backbone,
            matcher,
            prompt,
            raw_queries.take(rows.query_rows),
            raw_documents.take(rows.first_rows),
            raw_documents.take(rows.second_rows),
        )
        if empty:
            logits = logits * 0.0
        labels = view_labels(rows.positive_slot)
        if empty:
            return Answers(logits[:0] + logits.sum(), labels[:0], prompt.yes, prompt.no)
        return Answers(logits, labels, prompt.yes, prompt.no)

    def _orthogonal_states(self, encoded: Encoded) -> Tensor:
        states = encoded.states if self.settings.orth_space == "state" else encoded.vectors
        if self.settings.orth_tokens == "fused":
            return states[:, : self.embedder.settings.fuse_k]
        return states
