"""MaxSim between nested multi-vectors: all pairs in blocks, several budgets at once, candidates.

Takes tensors and budgets; knows nothing of models, losses, masks of candidates or indexes. The full
(B, C, R_q, R_d) similarity is never held: query rows are taken in blocks (and documents too, where
those of one row are too many), and each block is reduced at once to scores and the places of their
maxima. Ground floor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rematch_ray.scoring.budget import Budget
from rematch_ray.scoring.nested_maxima import Reduce, nested_maxima

# Cells of one block's similarity (b * C * R_q * R_d): 2**24 float32 cells are 64 MiB.
BLOCK_CELLS = 1 << 24


def maxsim(
    query_BRD: Tensor,
    document_CRD: Tensor,
    budget: Budget,
    *,
    reduce: Reduce = "mean",
    block_rows: int | None = None,
) -> Tensor:
    """Scores every query against every document at one budget.

    score(q, d) = reduce over i <= r_q of max over j <= r_d of <q_i, d_j>.

    Args:
        query_BRD: (B, R_q, D), any float dtype; scored in float32.
        document_CRD: (C, R_d, D).
        budget: a pair with r_q <= R_q and r_d <= R_d.
        reduce: `mean` over the r_q query vectors (-1..1 for unit vectors) or their `sum`.
        block_rows: query rows per block; None fits `BLOCK_CELLS`.

    Returns:
        (B, C) float32.

    Raises:
        ValueError: the budget asks for more vectors than the inputs hold.

    Source: MetaEmbed (arXiv 2509.18095), late interaction over prefixes; the mean is our deviation
    (the raw sum makes temperatures depend on r_q).

    >>> q = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    >>> d = torch.tensor([[[1.0, 0.0], [0.0, -1.0]], [[0.0, 1.0], [1.0, 0.0]]])
    >>> maxsim(q, d, Budget(2, 2)).tolist()
    [[0.5, 1.0]]
    """
    return maxsim_groups(query_BRD, document_CRD, [budget], reduce=reduce, block_rows=block_rows)[0]


def maxsim_groups(
    query_BRD: Tensor,
    document_CRD: Tensor,
    groups: Sequence[Budget],
    *,
    reduce: Reduce = "mean",
    block_rows: int | None = None,
) -> Tensor:
    """Scores every query against every document at several nested budgets.

    Each block of similarities is computed once, at the largest budget, and every group is a slice
    of it; gradients go to the vectors of the maxima alone.

    Args:
        query_BRD: (B, R_q, D).
        document_CRD: (C, R_d, D).
        groups: budgets, in any order.
        reduce: `mean` or `sum` over the r_q query vectors.
        block_rows: query rows per block; None fits `BLOCK_CELLS`.

    Returns:
        (G, B, C) float32, one layer per group.
    """
    r_q, r_d = _extent(groups, query_BRD.shape[-2], document_CRD.shape[-2])
    query = query_BRD[:, :r_q].float()
    document = document_CRD[:, :r_d].float()
    block_documents = max(1, BLOCK_CELLS // (r_q * r_d))
    if block_rows is None:
        block_rows = max(1, block_documents // max(1, document.shape[0]))
    blocks = [
        torch.cat(
            [nested_maxima(rows, some, groups, reduce) for some in document.split(block_documents)],
            dim=2,
        )
        for rows in query.split(block_rows)
    ]
    if not blocks:
        return query.new_zeros((len(groups), 0, document.shape[0]))
    return torch.cat(blocks, dim=1)


def maxsim_candidates(
    query_BRD: Tensor,
    document_BNRD: Tensor,
    groups: Sequence[Budget] | Budget,
    *,
    reduce: Reduce = "mean",
) -> Tensor:
    """Scores each query against its own documents only.

    Args:
        query_BRD: (B, R_q, D).
        document_BNRD: (B, N, R_d, D), N documents of each query.
        groups: one budget, or several.
        reduce: `mean` or `sum` over the r_q query vectors.

    Returns:
        (B, N) float32 for one budget, (G, B, N) for several.
    """
    budgets = [groups] if isinstance(groups, Budget) else list(groups)
    r_q, r_d = _extent(budgets, query_BRD.shape[-2], document_BNRD.shape[-2])
    query, document = query_BRD[:, :r_q], document_BNRD[:, :, :r_d]
    rows = max(1, BLOCK_CELLS // max(1, document.shape[1] * r_q * r_d))
    recompute = torch.is_grad_enabled() and (query.requires_grad or document.requires_grad)
    recompute = recompute and len(query) > rows
    blocks = []
    for some in zip(query.split(rows), document.split(rows), strict=True):
        if recompute:
            blocks.append(checkpoint(_candidate_block, *some, budgets, reduce, use_reentrant=False))
        else:
            blocks.append(_candidate_block(*some, budgets, reduce))
    scores = torch.cat(blocks, dim=1)
    return scores[0] if isinstance(groups, Budget) else scores


def fused_scores(query_BF: Tensor, document_CF: Tensor) -> Tensor:
    """Cosine of unit fused vectors, (B, F) x (C, F) -> (B, C) float32."""
    return query_BF.float() @ document_CF.float().T


def _candidate_block(
    query_bRD: Tensor, document_bNRD: Tensor, groups: Sequence[Budget], reduce: Reduce
) -> Tensor:
    similarity = torch.einsum("bqd,bnkd->bnqk", query_bRD.float(), document_bNRD.float())
    return _reduce_groups(similarity, groups, reduce)


def _reduce_groups(similarity_bCRR: Tensor, groups: Sequence[Budget], reduce: Reduce) -> Tensor:
    """Slices one block (b, C, R_q, R_d) into every group's scores, (G, b, C)."""
    scores = []
    for group in groups:
        best = similarity_bCRR[..., : group.r_q, : group.r_d].amax(dim=-1)
        scores.append(best.mean(dim=-1) if reduce == "mean" else best.sum(dim=-1))
    return torch.stack(scores)


def _extent(groups: Sequence[Budget], num_query: int, num_document: int) -> tuple[int, int]:
    """The largest counts that the groups read, checked against what is there."""
    if not groups:
        raise ValueError("no budgets were given: pass at least one, for example Budget(1, 1)")
    r_q = max(group.r_q for group in groups)
    r_d = max(group.r_d for group in groups)
    if any(group.is_fused for group in groups):
        raise ValueError("the fused rung has no multi-vectors: score it with fused_scores")
    if r_q > num_query or r_d > num_document:
        raise ValueError(
            f"budget {r_q}x{r_d} asks for more vectors than there are: "
            f"{num_query} per query, {num_document} per document"
        )
    return r_q, r_d
