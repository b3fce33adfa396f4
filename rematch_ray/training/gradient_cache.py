"""A step's gradients, whole or chunk by chunk: large contrastive batches in the memory of a chunk.

The contrastive terms need the vectors of all rows at once, but not their activations. So every
chunk is encoded twice: first without gradients, for the vectors alone, from which the loss gives
the gradient that each vector wants; then with gradients, to push it through. Orthogonality and
matching belong to single rows and are computed in the second pass. Every rank makes the same calls
in the same order, as under sharding each of them is a collective. Knows neither optimisers nor
strategies. Middle floor.

Source: gradient caching after Gao et al. (arXiv 2101.06983); token budgets, the matching stage and
one process or many are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from rematch_ray.collectives import largest_over_ranks, largest_over_ranks_each, mean_over_ranks
from rematch_ray.data.train_batch import TrainBatch
from rematch_ray.losses.joint import Counts, JointLoss
from rematch_ray.model.embeddings import Embeddings
from rematch_ray.training.candidates import build_contrast, equal_documents
from rematch_ray.training.chunks import MASKED, MASKED_SIDE, Chunk, plan_chunks, plan_sides
from rematch_ray.training.measures import broken_rows
from rematch_ray.training.objective import (
    EncodeChunk,
    EncodedChunk,
    JointModel,
    ReplayChunk,
    ReplayedChunk,
)
from rematch_ray.training.pairs import ChunkPairs, Pairs, document_uses, draw_pairs
from rematch_ray.training.random_state import RandomState

Backward = Callable[[Tensor, bool], None]
Announce = Callable[[bool], None]


def accumulate(
    wrapped: nn.Module,
    model: JointModel,
    batch: TrainBatch,
    *,
    backward: Backward,
    announce: Announce = lambda last: None,
    chunk_tokens: int | None = None,
    parts: int = 1,
) -> JointLoss:
    """Adds a step's gradients to the weights; collective.

    Args:
        wrapped: the joint model, or what a strategy made of it; it is only called.
        model: the joint model itself; none of its weights is read but through `wrapped`.
        batch: this rank's rows, on the model's device.
        backward: given a loss and whether it is the last one of the step: adds its gradients, and
            averages them over ranks with the last.
        announce: told before each forward pass that has a backward pass whether it is the last.
        chunk_tokens: tokens per chunk; None = the batch at once, without a second pass.
        parts: parts of the batch that are trained one after another against their own negatives.

    Returns:
        JointLoss of the step; its gradients are in the weights already.

    Raises:
        ValueError: more parts than sub-batches.
    """
    pieces = _split(batch, parts)
    valid = mean_over_ranks(torch.stack([piece.valid.float().sum() for piece in pieces]))
    shares = (valid / valid.sum().clamp(min=1e-9)).tolist()
    losses = []
    for number, (piece, share) in enumerate(zip(pieces, shares, strict=True)):
        is_last = number == len(pieces) - 1

        def add(loss: Tensor, last: bool, share: float = share, is_last: bool = is_last) -> None:
            backward(loss * share, last and is_last)

        def begin(last: bool, is_last: bool = is_last) -> None:
            announce(last and is_last)

        if chunk_tokens is None:
            begin(True)
            loss = cast(JointLoss, wrapped(piece))
            add(loss.total, True)
        else:
            loss = _cached(wrapped, model, piece, chunk_tokens, add, begin)
        losses.append(loss)
    return losses[0] if len(losses) == 1 else _mean(losses, shares)


def _split(batch: TrainBatch, parts: int) -> list[TrainBatch]:
    """Neighbouring sub-batches together, the same number of parts on every rank."""
    if parts == 1:
        return [batch]
    numbers = batch.sub_batch.unique()
    if parts > len(numbers):
        raise ValueError(
            f"a rank's step holds {len(numbers)} sub-batches, which cannot be trained in {parts} "
            "parts: lower optimisation.accumulation or data.order.sub_batch"
        )
    return [batch.part(torch.isin(batch.sub_batch, some)) for some in numbers.tensor_split(parts)]


def _mean(losses: Sequence[JointLoss], shares: Sequence[float]) -> JointLoss:
    def weighted(values: Sequence[Tensor]) -> Tensor:
        return torch.stack(
            [value.detach() * share for value, share in zip(values, shares, strict=True)]
        ).sum(dim=0)

    def merged(maps: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        names = list(dict.fromkeys(name for values in maps for name in values))
        zero = losses[0].total.detach().new_zeros(())
        return {name: weighted([values.get(name, zero) for values in maps]) for name in names}

    # a part's loss is weighted by its share, so the square of its gradient by the share's square
    squares = [
        {name: share * value for name, value in loss.vector_gradients.items()}
        for loss, share in zip(losses, shares, strict=True)
    ]
    broken = [loss.broken for loss in losses if loss.broken is not None]
    return JointLoss(
        weighted([loss.total for loss in losses]),
        merged([loss.parts for loss in losses]),
        weighted([loss.groups for loss in losses]),
        merged([loss.accuracy for loss in losses]),
        merged(squares),
        merged([loss.statistics for loss in losses]),
        torch.cat(broken) if broken else None,
    )


def _cached(
    wrapped: nn.Module,
    model: JointModel,
    batch: TrainBatch,
    chunk_tokens: int,
    backward: Backward,
    announce: Announce,
) -> JointLoss:
    batch = equal_documents(batch)
    # the matching stage reads queries beside documents; nothing else needs both sides in a chunk
    matches = model.settings.w_match > 0
    chunks = (plan_chunks if matches else plan_sides)(batch, chunk_tokens)
    missing = largest_over_ranks(len(chunks), device=batch.valid.device) - len(chunks)
    chunks += [MASKED if matches else MASKED_SIDE] * missing
    first = _first_pass(wrapped, batch, chunks)
    pairs = None
    if matches:
        assert first.queries.fused is not None and first.documents.fused is not None
        cosine = first.queries.fused.detach() @ first.documents.fused.detach().T
        pairs = draw_pairs(batch, cosine, model.settings)
    counts = model.counts(batch, 0 if pairs is None else len(pairs))
    loss, wanted = _contrastive(model, batch, first, counts)
    replayed = _second_pass(
        wrapped, batch, chunks, first, wanted, pairs, counts, backward, announce
    )
    weights = model.settings.weights
    return replace(
        loss,
        total=loss.total + sum(weights[name] * value for name, value in replayed.parts.items()),
        parts=dict(loss.parts) | dict(replayed.parts),
        accuracy=dict(loss.accuracy) | dict(replayed.accuracy),
        broken=broken_rows(batch, first.queries, first.documents),
    )


def _contrastive(
    model: JointModel, batch: TrainBatch, first: _FirstPass, counts: Counts
) -> tuple[JointLoss, _Wanted]:
    """The contrastive terms, detached, and what they want; gathered copies end with this call."""
    contrast = build_contrast(batch, first.queries, first.documents, model.settings)
    loss = model.contrast_loss(contrast, counts, first.temperatures)
    wanted = first.gradients_of(loss.total)
    parts = {name: value.detach() for name, value in loss.parts.items()}
    detached = replace(loss, total=loss.total.detach(), parts=parts, groups=loss.groups.detach())
    return detached, wanted


@dataclass(frozen=True)
class _FirstPass:
    """Vectors of all rows as leaves, temperatures, and the random state before each chunk."""

    queries: Embeddings
    documents: Embeddings
    temperatures: Tensor
    random: Sequence[RandomState]

    def gradients_of(self, loss: Tensor) -> _Wanted:
        """What the loss wants of every vector and of the temperatures."""
        sides = (self.queries, self.documents)
        leaves = [side.vectors for side in sides]
        leaves += [side.fused for side in sides if side.fused is not None]
        leaves.append(self.temperatures)
        found = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        fused = found[2:4] if self.queries.fused is not None else (None, None)
        return _Wanted(Embeddings(found[0], fused[0]), Embeddings(found[1], fused[1]), found[-1])


@dataclass(frozen=True)
class _Wanted:
    queries: Embeddings
    documents: Embeddings
    temperatures: Tensor


def _first_pass(wrapped: nn.Module, batch: TrainBatch, chunks: Sequence[Chunk]) -> _FirstPass:
    encoded, random = [], []
    with torch.no_grad():
        for chunk in chunks:
            random.append(RandomState.now(batch.valid.device))
            work = EncodeChunk(batch, chunk.queries, chunk.documents)
            encoded.append(cast(EncodedChunk, wrapped(work)))
    queries = _in_place(
        [(e.queries, c.queries) for e, c in zip(encoded, chunks, strict=True) if c.counts_queries],
        batch.num_queries,
    )
    documents = _in_place(
        [
            (e.documents, c.documents)
            for e, c in zip(encoded, chunks, strict=True)
            if c.counts_documents
        ],
        batch.num_documents,
    )
    temperatures = encoded[0].temperatures.detach().clone().requires_grad_()
    return _FirstPass(queries, documents, temperatures, random)


def _in_place(parts: Sequence[tuple[Embeddings | None, Sequence[int]]], count: int) -> Embeddings:
    """The chunks' vectors at the places of their rows, as leaves that take a gradient."""
    given = [(part, list(rows)) for part, rows in parts if part is not None]

    def placed(tensors: Sequence[Tensor]) -> Tensor:
        whole = tensors[0].new_zeros((count, *tensors[0].shape[1:]))
        for tensor, (_, rows) in zip(tensors, given, strict=True):
            whole[rows] = tensor
        return whole.requires_grad_()

    fused = [part.fused for part, _ in given if part.fused is not None]
    vectors = placed([part.vectors for part, _ in given])
    return Embeddings(vectors, placed(fused) if fused else None)


def _second_pass(
    wrapped: nn.Module,
    batch: TrainBatch,
    chunks: Sequence[Chunk],
    first: _FirstPass,
    wanted: _Wanted,
    pairs: Pairs | None,
    counts: Counts,
    backward: Backward,
    announce: Announce,
) -> ReplayedChunk:
    """Replays every chunk; returns the sum of what they count, detached."""
    uses = document_uses(batch).sum(dim=0)
    matches = [ChunkPairs.of(pairs, chunk) for chunk in chunks] if pairs is not None else []
    has_extra = torch.tensor([bool(m.extra) for m in matches], device=batch.valid.device)
    somewhere = largest_over_ranks_each(has_extra.long()).tolist() if matches else []
    parts: dict[str, Tensor] = {}
    accuracy: dict[str, Tensor] = {}
    for number, (chunk, random) in enumerate(zip(chunks, first.random, strict=True)):
        queries, documents = list(chunk.queries), list(chunk.documents)
        match = matches[number] if matches else None
        extra: Sequence[int] = ()
        if match is not None and somewhere[number]:
            extra = match.extra or (0,)
        work = ReplayChunk(
            EncodeChunk(batch, chunk.queries, chunk.documents),
            _rows(wanted.queries, queries, chunk.counts_queries),
            _rows(wanted.documents, documents, chunk.counts_documents),
            wanted.temperatures / len(chunks),
            batch.valid[queries].float() * chunk.counts_queries,
            uses[documents] * chunk.counts_documents,
            None if match is None else match.pairs,
            extra,
            counts,
        )
        announce(number == len(chunks) - 1)
        with random.restored():
            replayed = cast(ReplayedChunk, wrapped(work))
        backward(replayed.total, number == len(chunks) - 1)
        _add(parts, replayed.parts)
        _add(accuracy, replayed.accuracy)
    return ReplayedChunk(wanted.temperatures.new_zeros(()), parts, accuracy)


def _rows(wanted: Embeddings, rows: Sequence[int], counts: bool) -> Embeddings:
    vectors = wanted.vectors[rows] * counts
    return Embeddings(vectors, None if wanted.fused is None else wanted.fused[rows] * counts)


def _add(sums: dict[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        sums[name] = sums[name] + value.detach() if name in sums else value.detach()
