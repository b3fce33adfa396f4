"""MaxSim of one block at nested budgets, with a gradient that visits only the maxima.

Of a block's similarities the forward pass keeps where each maximum was, one byte for a query vector
and a document, and the backward pass adds up the vectors found there. Left to autograd, a block
would be kept or computed again, and its gradient, nearly all zeros, multiplied with both sides.
Knows tensors and budgets, not blocks' sizes. Ground floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from rematch_ray.scoring.budget import Budget

Reduce = Literal["mean", "sum"]


def similarities(query_bRD: Tensor, document_CRD: Tensor) -> Tensor:
    """Inner products of all vectors with all vectors, (b, R_q, C, R_d)."""
    b, r_q, dim = query_bRD.shape
    num_documents, r_d, _ = document_CRD.shape
    flat = query_bRD.reshape(b * r_q, dim) @ document_CRD.reshape(num_documents * r_d, dim).T
    return flat.view(b, r_q, num_documents, r_d)


def nested_maxima(
    query_bRD: Tensor, document_CRD: Tensor, groups: Sequence[Budget], reduce: Reduce
) -> Tensor:
    """Scores of one block at several budgets; of equal maxima one takes the gradient.

    Args:
        query_bRD: (b, R_q, D).
        document_CRD: (C, R_d, D), of the same float dtype.
        groups: budgets within R_q and R_d.
        reduce: over the r_q query vectors.

    Returns:
        (G, b, C).
    """
    if torch.is_grad_enabled() and (query_bRD.requires_grad or document_CRD.requires_grad):
        scores = _NestedMaxima.apply(query_bRD, document_CRD, tuple(groups), reduce)
        assert isinstance(scores, Tensor)
        return scores
    similarity_bRCR = similarities(query_bRD, document_CRD)
    return torch.stack(
        [
            _reduced(similarity_bRCR[:, : group.r_q, :, : group.r_d].amax(dim=-1), reduce)
            for group in groups
        ]
    )


def _reduced(best_bRC: Tensor, reduce: Reduce) -> Tensor:
    return best_bRC.mean(dim=1) if reduce == "mean" else best_bRC.sum(dim=1)


class _NestedMaxima(torch.autograd.Function):
    """All groups' query vectors one after another make S rows of a query: S = sum of r_q."""

    @staticmethod
    def forward(
        ctx: Any,
        query_bRD: Tensor,
        document_CRD: Tensor,
        groups: tuple[Budget, ...],
        reduce: Reduce,
    ) -> Tensor:
        similarity_bRCR = similarities(query_bRD, document_CRD)
        small = torch.uint8 if document_CRD.shape[1] <= 256 else torch.int32
        scores, places = [], []
        for group in groups:
            best = similarity_bRCR[:, : group.r_q, :, : group.r_d].max(dim=-1)
            scores.append(_reduced(best.values, reduce))
            places.append(best.indices.to(small))
        ctx.save_for_backward(query_bRD, document_CRD, torch.cat(places, dim=1))
        ctx.groups, ctx.reduce = groups, reduce
        return torch.stack(scores)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_GbC: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        query_bRD, document_CRD, place_bSC = ctx.saved_tensors
        counts = [group.r_q for group in ctx.groups]
        vector_S = torch.cat([torch.arange(r_q, device=grad_GbC.device) for r_q in counts])
        shares = [1 / r_q if ctx.reduce == "mean" else 1.0 for r_q in counts]
        wanted = [
            (grad_bC * share)[:, None].expand(-1, r_q, -1)
            for grad_bC, share, r_q in zip(grad_GbC, shares, counts, strict=True)
        ]
        wanted_bSC = torch.cat(wanted, dim=1).to(query_bRD.dtype)
        for_query, for_document = ctx.needs_input_grad[:2]
        return (
            _query_gradient(query_bRD, document_CRD, place_bSC, wanted_bSC, vector_S)
            if for_query
            else None,
            _document_gradient(query_bRD, document_CRD, place_bSC, wanted_bSC, vector_S)
            if for_document
            else None,
            None,
            None,
        )


def _query_gradient(
    query_bRD: Tensor, document_CRD: Tensor, place_bSC: Tensor, wanted_bSC: Tensor, vector_S: Tensor
) -> Tensor:
    """For every query vector the document vectors it met, as often as each is wanted."""
    num_documents, r_d, dim = document_CRD.shape
    first_C = torch.arange(num_documents, device=place_bSC.device) * r_d
    met = (place_bSC + first_C).flatten(0, 1)
    summed = embedding_bag(
        met,
        document_CRD.reshape(-1, dim),
        mode="sum",
        per_sample_weights=wanted_bSC.flatten(0, 1),
    )
    b, num_rows, _ = place_bSC.shape
    return torch.zeros_like(query_bRD).index_add_(1, vector_S, summed.view(b, num_rows, dim))


def _document_gradient(
    query_bRD: Tensor, document_CRD: Tensor, place_bSC: Tensor, wanted_bSC: Tensor, vector_S: Tensor
) -> Tensor:
    """For every document vector the query vectors that met it: sorted, they stand together."""
    b, r_q, dim = query_bRD.shape
    num_documents, r_d, _ = document_CRD.shape
    place_CN = place_bSC.permute(2, 0, 1).reshape(num_documents, -1)
    sorted_CN, order_CN = (made.contiguous() for made in place_CN.sort(dim=1))
    first_b = torch.arange(b, device=vector_S.device) * r_q
    row_N = (first_b[:, None] + vector_S).flatten()
    wanted_CN = wanted_bSC.permute(2, 0, 1).reshape(num_documents, -1)
    bounds = torch.arange(r_d, device=place_CN.device).to(sorted_CN.dtype)
    start_CR = torch.searchsorted(sorted_CN, bounds.expand(num_documents, -1).contiguous())
    first_C = torch.arange(num_documents, device=place_CN.device) * place_CN.shape[1]
    summed = embedding_bag(
        row_N[order_CN].flatten(),
        query_bRD.reshape(-1, dim),
        offsets=(start_CR + first_C[:, None]).flatten(),
        mode="sum",
        per_sample_weights=wanted_CN.gather(1, order_CN).flatten(),
    )
    return summed.view_as(document_CRD)
