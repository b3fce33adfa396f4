"""The joint model: whatever a rank computes in a step is one call of its `forward`.

DDP and sharding wrap a module and see its forward only, so everything that reads a weight stands
here: the whole step at once, or, for the gradient cache, the encoding of a chunk and its replay.
Composes the embedder, the collectives and the losses; holds no optimiser and knows no files.
Middle floor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from rematch_ray.collectives import mean_over_ranks
from rematch_ray.data.train_batch import TrainBatch
from rematch_ray.losses.joint import (
    Answers,
    Contrast,
    Counts,
    JointLoss,
    joint_loss,
    matching_term,
    orthogonality_term,
    with_vector_gradients,
)
from rematch_ray.losses.matching import view_labels
from rematch_ray.model.answers import packed_answers, shared_answers
from rematch_ray.model.embedder import Embedder, Encoded
from rematch_ray.model.embeddings import Embeddings
from rematch_ray.model.raw_rows import RawRows
from rematch_ray.training.candidates import build_contrast, equal_documents
from rematch_ray.training.measures import broken_rows
from rematch_ray.training.pairs import Pairs, document_uses, draw_pairs
from rematch_ray.training.settings import ObjectiveSettings


@dataclass(frozen=True)
class EncodeChunk:
    """Work: encode some rows of a batch, without anything else.

    Attributes:
        batch: the rank's rows.
        queries: which query rows; none = only documents.
        documents: which document rows; none = only queries.
    """

    batch: TrainBatch
    queries: Sequence[int]
    documents: Sequence[int]


@dataclass(frozen=True)
class EncodedChunk:
    """What `EncodeChunk` returns: vectors of each side it names, and (2,) temperatures."""

    queries: Embeddings | None
    documents: Embeddings | None
    temperatures: Tensor


@dataclass(frozen=True)
class ReplayChunk:
    """Work: encode the same rows again, push known gradients through, match and keep apart.

    Attributes:
        encode: the rows, as they were encoded.
        query_gradients: what the contrastive terms want of the chunk's query vectors.
        document_gradients: and of its document vectors.
        temperature_gradients: (2,) and of the temperatures, this chunk's share.
        query_uses: (b',) 1 for a row that counts, else 0.
        document_uses: (n',) how many positives and hard negatives each document stands for.
        pairs: triplets of the chunk; document rows count the chunk's documents, then `extra`.
        extra: further documents that only the matching stage of this chunk reads.
        counts: rows over all ranks.
    """

    encode: EncodeChunk
    query_gradients: Embeddings
    document_gradients: Embeddings
    temperature_gradients: Tensor
    query_uses: Tensor
    document_uses: Tensor
    pairs: Pairs | None
    extra: Sequence[int]
    counts: Counts


@dataclass(frozen=True)
class ReplayedChunk:
    """What `ReplayChunk` returns.

    Attributes:
        total: scalar whose gradient is the chunk's part of the joint loss's gradient.
        parts: orthogonality and matching of the chunk, already divided by the counts of the step.
        accuracy: of the matching stage, likewise.
    """

    total: Tensor
    parts: Mapping[str, Tensor]
    accuracy: Mapping[str, Tensor] = field(default_factory=dict)


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

    def temperatures(self) -> Tensor:
        """(2,) fused and MaxSim temperature.

        Learned ones are put back into their range after each update (`parameters.kept_in_bounds`):
        clamped here they would have no gradient past a bound, and never come back.
        """
        return self.log_temperatures.exp()

    def forward(
        self, work: TrainBatch | EncodeChunk | ReplayChunk
    ) -> JointLoss | EncodedChunk | ReplayedChunk:
        """The rank's loss, or a part of the work towards it.

        Args:
            work: a whole batch, or a chunk of one to encode or to replay.

        Returns:
            JointLoss of a whole batch: averaging its gradients over ranks gives the global mean's
            gradient. EncodedChunk or ReplayedChunk of a chunk.
        """
        if isinstance(work, EncodeChunk):
            return self._encode(work)
        return self._replay(work) if isinstance(work, ReplayChunk) else self._whole(work)

    @property
    def records(self) -> bool:
        """Whether the embedding pass keeps keys and values for the matching stage."""
        return self.settings.w_match > 0 and self.settings.match_form == "shared_kv"

    def counts(self, batch: TrainBatch, num_matched: int) -> Counts:
        """How many rows each term's mean runs over; collective."""
        uses = torch.cat([batch.valid.float(), document_uses(batch).sum(dim=0)])
        matched = uses.new_tensor(num_matched)
        local = torch.stack([batch.valid.float().sum(), uses.sum(), matched])
        return Counts(*(max(value, 1e-9) for value in mean_over_ranks(local).tolist()))

    def contrast_loss(
        self,
        contrast: Contrast,
        counts: Counts,
        temperatures: Tensor,
        states: Sequence[tuple[Tensor, Tensor]] = (),
        answers: Answers | None = None,
    ) -> JointLoss:
        """The joint loss of what is given: without states or answers, the contrastive terms."""
        weights = dict(self.settings.weights)
        if not states:
            weights["orthogonality"] = 0.0
        groups = self.embedder.ladder.rungs
        loss = joint_loss(
            contrast,
            states,
            answers,
            counts,
            weights=weights,
            groups=groups,
            temperature_fused=temperatures[0],
            temperature_maxsim=temperatures[1],
            reduce=self.settings.maxsim_reduce,
        )
        if self.probe_vectors and self.settings.w_groups and torch.is_grad_enabled():
            loss = with_vector_gradients(loss, contrast, groups)
        return loss

    def _whole(self, batch: TrainBatch) -> JointLoss:
        batch = equal_documents(batch)
        queries = self.embedder.encode_rows(batch.queries, "query", record=self.records)
        documents = self.embedder.encode_rows(batch.documents, "document", record=self.records)
        contrast = build_contrast(batch, queries.embeddings, documents.embeddings, self.settings)
        answers, num_matched = None, 0
        if self.settings.w_match:
            assert queries.fused is not None and documents.fused is not None
            cosine = queries.fused.detach().float() @ documents.fused.detach().float().T
            pairs = draw_pairs(batch, cosine, self.settings)
            num_matched = len(pairs)
            answers = self._answers(pairs, queries.raw_rows(), documents.raw_rows())
        states = [
            (self._orthogonal_states(queries), batch.valid.float()),
            (self._orthogonal_states(documents), document_uses(batch).sum(dim=0)),
        ]
        loss = self.contrast_loss(
            contrast, self.counts(batch, num_matched), self.temperatures(), states, answers
        )
        broken = broken_rows(batch, queries.embeddings, documents.embeddings)
        return replace(loss, broken=broken)

    def _encode(self, work: EncodeChunk) -> EncodedChunk:
        queries, documents = self._encoded(work, record=False)
        return EncodedChunk(
            None if queries is None else queries.embeddings,
            None if documents is None else documents.embeddings,
            self.temperatures(),
        )

    def _encoded(self, work: EncodeChunk, *, record: bool) -> tuple[Encoded | None, Encoded | None]:
        batch, encode = work.batch, self.embedder.encode_rows
        queries = documents = None
        if work.queries:
            queries = encode(batch.batch("query", work.queries), "query", record=record)
        if work.documents:
            documents = encode(batch.batch("document", work.documents), "document", record=record)
        return queries, documents

    def _replay(self, work: ReplayChunk) -> ReplayedChunk:
        """Encodes first and matches after, so that encoding draws the same random numbers."""
        queries, documents = self._encoded(work.encode, record=self.records)
        total = (self.temperatures() * work.temperature_gradients).sum()
        states: list[tuple[Tensor, Tensor]] = []
        for side, encoded, wanted, uses in (
            ("query", queries, work.query_gradients, work.query_uses),
            ("document", documents, work.document_gradients, work.document_uses),
        ):
            if encoded is None:  # every rank uses every weight in every pass
                total = total + 0.0 * self.embedder.banks[side].sum()
                continue
            total = total + (encoded.vectors * wanted.vectors).sum()
            if encoded.fused is not None and wanted.fused is not None:
                total = total + (encoded.fused * wanted.fused).sum()
            states.append((self._orthogonal_states(encoded), uses))
        parts: dict[str, Tensor] = {}
        accuracy: dict[str, Tensor] = {}
        weights = self.settings.weights
        if weights["orthogonality"]:
            parts["orthogonality"] = orthogonality_term(states, work.counts)
        if work.pairs is not None:
            assert queries is not None and documents is not None
            raw = documents.raw_rows()
            if work.extra:
                batch = work.encode.batch.batch("document", work.extra)
                extra = self.embedder.encode_rows(batch, "document", record=self.records)
                raw = RawRows.stacked(raw, extra.raw_rows())
            answers = self._answers(work.pairs, queries.raw_rows(), raw)
            parts["matching"] = matching_term(answers, work.counts, accuracy)
        for name, value in parts.items():
            total = total + weights[name] * value
        return ReplayedChunk(total, parts, accuracy)

    def _answers(self, pairs: Pairs, queries: RawRows, documents: RawRows) -> Answers:
        """Runs the matching stage; with no triplet at all, a dummy that counts nothing."""
        matcher, prompt = self.embedder.matcher, self.embedder.row_encoder.prompt
        assert matcher is not None
        empty = len(pairs.query_rows) == 0
        rows = pairs
        if empty:
            zero = pairs.query_rows.new_zeros(1)
            rows = Pairs(zero, zero, zero, zero)
        answer = shared_answers if self.records else packed_answers
        logits = answer(
            self.embedder.backbone,
            matcher,
            prompt,
            queries.take(rows.query_rows),
            documents.take(rows.first_rows),
            documents.take(rows.second_rows),
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
