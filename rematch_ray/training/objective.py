"""One forward over everything a rank reads in a step: encode, gather, match, joint loss.

Kept in a single module so that DDP and sharding see one forward. Composes the embedder, the
collectives and the losses; holds no optimiser and knows no files. Middle floor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rematch_ray.collectives import gather, gather_with_gradient, mean_over_ranks, rank
from rematch_ray.data.samples import TrainBatch
from rematch_ray.losses.contrastive import Candidates, candidate_mask, margin_mask
from rematch_ray.losses.joint import (
    Answers,
    Contrast,
    Counts,
    JointLoss,
    fused_candidate_scores,
    joint_loss,
)
from rematch_ray.losses.matching import draw_negatives, view_labels
from rematch_ray.model.embedder import Embedder, Encoded
from rematch_ray.model.matcher import packed_answers
from rematch_ray.training.draws import row_uniforms
from rematch_ray.training.settings import ObjectiveSettings

TEMPERATURE_RANGE = (0.01, 0.2)


@dataclass(frozen=True)
class Pairs:
    """The triplets that matching reads: rows of queries and of documents, and the labels."""

    query_rows: Tensor
    first_rows: Tensor
    second_rows: Tensor
    positive_slot: Tensor


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
        self._freeze_unused()

    def _freeze_unused(self) -> None:
        """Weights that no term reads are not trained: DDP and sharding wait for every trained one."""
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
            pairs = self._draw_pairs(batch, queries, documents)
            num_matched = len(pairs.query_rows)
            answers = self._answers(pairs, queries, documents)
        fused_temperature, maxsim_temperature = self.temperatures()
        local = [float(batch.valid.sum()), float(len(batch.queries) + len(batch.documents))]
        means = mean_over_ranks(
            torch.tensor([*local, float(num_matched)], device=contrast.mask.device)
        )
        counts = Counts(*(max(value, 1e-9) for value in means.tolist()))
        return joint_loss(
            contrast,
            [self._orthogonal_states(encoded) for encoded in (queries, documents)],
            answers,
            counts,
            weights=self.settings.weights,
            groups=self.embedder.ladder.rungs,
            temperature_fused=fused_temperature,
            temperature_maxsim=maxsim_temperature,
            reduce=self.settings.maxsim_reduce,
        )

    def _contrast(self, batch: TrainBatch, queries: Encoded, documents: Encoded) -> Contrast:
        """Gathers candidates over ranks and builds the one mask of every contrastive term."""
        positive = batch.positive_slot
        pooled = self.settings.hard_negatives == "pooled"
        hard = batch.negative_slot
        shared_vectors = [gather_with_gradient(documents.vectors[positive])]
        fused = documents.fused
        shared_fused = [] if fused is None else [gather_with_gradient(fused[positive])]
        shared_ids = [gather(batch.document_ids[positive])]
        shared_query_ids = [gather(batch.query_ids)]
        private_vectors = private_fused = None
        private_ids = batch.query_ids.new_full((len(batch.queries), 0), -1)
        if hard.shape[1] and pooled:
            slots = hard.clamp(min=0).flatten()
            shared_vectors.append(gather_with_gradient(documents.vectors[slots]))
            if fused is not None:
                shared_fused.append(gather_with_gradient(fused[slots]))
            ids = torch.where(hard >= 0, batch.document_ids[hard.clamp(min=0)], -1).flatten()
            shared_ids.append(gather(ids))
            shared_query_ids.append(torch.full_like(shared_ids[-1], -1))
        elif hard.shape[1]:
            slots = hard.clamp(min=0)
            private_vectors = documents.vectors[slots]
            private_fused = None if fused is None else fused[slots]
            private_ids = torch.where(hard >= 0, batch.document_ids[slots], -1)
        num_rows = len(batch.queries)
        target = torch.arange(num_rows, device=positive.device) + rank() * num_rows
        ids = torch.cat(shared_ids)
        mask = candidate_mask(
            Candidates(
                batch.query_ids,
                target,
                batch.listed_ids,
                ids,
                torch.cat(shared_query_ids),
                private_ids,
            )
        )
        padding = torch.cat([ids < 0, ids.new_zeros(private_ids.shape[1], dtype=torch.bool)])
        mask = (mask & ~padding).scatter(1, target[:, None], True)
        labelled = torch.zeros_like(mask)
        labelled[:, shared_ids[0].shape[0] :] = True
        contrast = Contrast(
            queries.vectors,
            torch.cat(shared_vectors),
            private_vectors,
            queries.fused,
            torch.cat(shared_fused) if shared_fused else None,
            private_fused,
            target,
            mask,
            batch.valid,
        )
        return self._with_margin(contrast, labelled)

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

    def _draw_pairs(self, batch: TrainBatch, queries: Encoded, documents: Encoded) -> Pairs:
        """Which rows take part in matching, with which negative, in which slot."""
        assert queries.fused is not None and documents.fused is not None
        num_rows, num_documents = len(batch.queries), len(batch.documents)
        numbers = row_uniforms(batch.query_ids, batch.step, 4)
        cosine = queries.fused.detach().float() @ documents.fused.detach().float().T
        admissible = self._admissible(batch)
        hard = batch.negative_slot
        if self.settings.margin is not None:
            limit = cosine.gather(1, batch.positive_slot[:, None]) - self.settings.margin
            admissible = admissible & (cosine < limit)
        listed = batch.listed_ids[:, None, :] == batch.document_ids[hard.clamp(min=0)][:, :, None]
        column = draw_negatives(
            cosine,
            admissible,
            (hard >= 0) & ~listed.any(dim=-1),
            mined=self.settings.match_mined,
            temperature=self.settings.match_temperature,
            uniforms_b2=numbers[:, :2],
        )
        share = max(1, round(self.settings.match_share * num_rows))
        chosen = torch.zeros_like(batch.valid)
        chosen[numbers[:, 2].topk(share).indices] = True
        rows = (chosen & batch.valid & (column >= 0)).nonzero()[:, 0]
        column = column[rows]
        own = (column - num_documents).clamp(min=0)
        from_hard = hard[rows].gather(1, own[:, None])[:, 0] if hard.shape[1] else own
        negative = torch.where(column < num_documents, column, from_hard)
        positive = batch.positive_slot[rows]
        slot = (numbers[rows, 3] >= 0.5).long()
        return Pairs(
            rows,
            torch.where(slot == 0, positive, negative),
            torch.where(slot == 0, negative, positive),
            slot,
        )

    def _admissible(self, batch: TrainBatch) -> Tensor:
        """(b, n) bool: this rank's documents that may serve as a row's mined negative."""
        ids = batch.document_ids
        listed = (ids[None, :, None] == batch.listed_ids[:, None, :]).any(dim=-1)
        same_query = batch.query_ids[:, None] == batch.query_ids[None, :]
        of_query = torch.zeros_like(listed).float()
        of_query.scatter_add_(1, batch.positive_slot.expand_as(same_query), same_query.float())
        usable = torch.zeros_like(ids, dtype=torch.bool)
        usable[batch.positive_slot[batch.valid]] = True
        hard = batch.negative_slot[batch.negative_slot >= 0]
        usable[hard] = True
        return ~listed & (of_query == 0) & usable

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
