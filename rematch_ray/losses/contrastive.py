"""InfoNCE over masked candidates, and the one mask that every contrastive term shares.

Takes score matrices and integer ids; does not know how scores were made, nor of ranks: whoever
calls has gathered the candidates already. Ground floor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Candidates:
    """Which documents each local query is compared with, as integer ids (63-bit hashes).

    Args:
        query_ids: (b,) ids of the local queries.
        target: (b,) column of each query's own positive among the shared candidates.
        listed_ids: (b, P) ids of every document that the row lists as right, padded with -1.
        shared_ids: (C,) document ids of the candidates that all queries see, positives first;
            -1 for a candidate that only keeps the shape.
        shared_query_ids: (C,) the query whose positive the candidate is; -1 for a hard negative.
        private_ids: (b, N) ids of each query's own hard negatives, padded with -1.
    """

    query_ids: Tensor
    target: Tensor
    listed_ids: Tensor
    shared_ids: Tensor
    shared_query_ids: Tensor
    private_ids: Tensor


def candidate_mask(candidates: Candidates) -> Tensor:
    """Which (query, candidate) cells take part in InfoNCE: True = valid.

    Masked are: another candidate with the positive's document id, any copy of a document that is
    the positive of a row with the same query id, any document that the row lists as right, padding,
    and the second occurrence of a document (a private hard negative wins over its copy among the
    shared candidates).

    Returns:
        (b, C + N) bool, shared candidates first; the target cell is always True.

    >>> c = Candidates(
    ...     query_ids=torch.tensor([7, 8]),
    ...     target=torch.tensor([0, 1]),
    ...     listed_ids=torch.tensor([[10, -1], [11, 12]]),
    ...     shared_ids=torch.tensor([10, 11, 12]),
    ...     shared_query_ids=torch.tensor([7, 8, 9]),
    ...     private_ids=torch.tensor([[11], [-1]]),
    ... )
    >>> candidate_mask(c).int().tolist()
    [[1, 0, 1, 1], [1, 1, 0, 0]]
    """
    target_ids = candidates.shared_ids[candidates.target][:, None]
    shared_right, private_right = _right_for_same_query(candidates)
    shared_ids = candidates.shared_ids[None, :]
    shared = ~_repeats(shared_ids) & (shared_ids >= 0) & (shared_ids != target_ids)
    shared = shared & ~shared_right & ~occurs_in(shared_ids, candidates.listed_ids)
    shared = shared & ~occurs_in(shared_ids, candidates.private_ids)
    shared = shared.scatter(1, candidates.target[:, None], True)

    private = (candidates.private_ids >= 0) & (candidates.private_ids != target_ids)
    private = private & ~private_right & ~occurs_in(candidates.private_ids, candidates.listed_ids)
    private = private & ~_repeats(candidates.private_ids)
    return torch.cat([shared, private], dim=1)


def margin_mask(
    score_bC: Tensor, target: Tensor, *, margin: float, labelled_bC: Tensor | None = None
) -> Tensor:
    """Drops candidates that score too close to the positive to be trusted as negatives.

    A candidate is kept when its score is below the positive's score minus `margin`. Negatives that
    the data labels are never dropped.

    Args:
        score_bC: (b, C) detached fused cosines.
        target: (b,) column of the positive.
        margin: in cosine, may be negative to tolerate candidates above the positive.
        labelled_bC: (b, C) bool, True = labelled negative.

    Returns:
        (b, C) bool, True = kept; the target is always kept.
    """
    limit = score_bC.gather(1, target[:, None]) - margin
    keep = score_bC < limit
    if labelled_bC is not None:
        keep = keep | labelled_bC
    return keep.scatter(1, target[:, None], True)


def info_nce(
    score_bC: Tensor, target: Tensor, mask_bC: Tensor, temperature: Tensor | float
) -> Tensor:
    """Cross-entropy of the positive among the valid candidates, one value per query.

    Args:
        score_bC: (b, C) scores, cosine or MaxSim; used in float32.
        target: (b,) column of the positive.
        mask_bC: (b, C) bool, True = the candidate takes part.
        temperature: positive scalar that divides the scores.

    Returns:
        (b,) float32.

    Source: ReMatch (arXiv 2511.19278), L_cl; MetaEmbed (arXiv 2509.18095), L^(g).

    >>> round(
    ...     float(
    ...         info_nce(
    ...             torch.tensor([[0.0, 0.0]]), torch.tensor([0]), torch.tensor([[True, True]]), 1.0
    ...         )
    ...     ),
    ...     4,
    ... )
    0.6931
    """
    logits = masked_logits(score_bC, mask_bC, temperature)
    return F.cross_entropy(logits, target, reduction="none")


def masked_logits(score_bC: Tensor, mask_bC: Tensor, temperature: Tensor | float) -> Tensor:
    """Scores over temperature with the invalid cells at the float32 minimum, (b, C)."""
    logits = score_bC.float() / temperature
    return logits.masked_fill(~mask_bC, torch.finfo(torch.float32).min)


def retrieval_accuracy(score_bC: Tensor, target: Tensor, mask_bC: Tensor) -> Tensor:
    """1 where the positive beats every valid candidate, else 0; a tie is no win. (b,) float."""
    others = mask_bC.scatter(1, target[:, None], False)
    best = score_bC.float().masked_fill(~others, -torch.inf).amax(dim=1)
    return (score_bC.float().gather(1, target[:, None])[:, 0] > best).float()


def similarity_statistics(
    score_bC: Tensor, target: Tensor, mask_bC: Tensor, valid_b: Tensor
) -> dict[str, Tensor]:
    """How far positives stand from negatives, as sums over the valid queries.

    Args:
        score_bC: (b, C) detached scores.
        target: (b,) column of the positive.
        mask_bC: (b, C) bool, True = the candidate takes part.
        valid_b: (b,) bool, False = the row counts nothing.

    Returns:
        Scalars, to be divided by the number of queries: `similarity/positive`,
        `similarity/negative` (mean over a query's negatives), `similarity/hardest_negative`,
        `similarity/margin` (positive less hardest negative) and `negatives`, how many a query has.
        A query without negatives adds 0 to what is said of negatives and to the margin.

    >>> found = similarity_statistics(
    ...     torch.tensor([[0.75, 0.5, 0.25]]),
    ...     torch.tensor([0]),
    ...     torch.tensor([[True, True, True]]),
    ...     torch.tensor([True]),
    ... )
    >>> [round(float(value), 3) for value in found.values()]
    [0.75, 0.375, 0.5, 0.25, 2.0]
    """
    score = score_bC.float()
    others = mask_bC.scatter(1, target[:, None], False)
    count = others.sum(dim=1)
    positive = score.gather(1, target[:, None])[:, 0]
    mean = score.masked_fill(~others, 0.0).sum(dim=1) / count.clamp(min=1)
    hardest = score.masked_fill(~others, -torch.inf).amax(dim=1)
    hardest = torch.where(count > 0, hardest, 0.0)
    margin = torch.where(count > 0, positive - hardest, 0.0)
    per_query = {
        "similarity/positive": positive,
        "similarity/negative": mean,
        "similarity/hardest_negative": hardest,
        "similarity/margin": margin,
        "negatives": count.float(),
    }
    return {name: torch.where(valid_b, value, 0.0).sum() for name, value in per_query.items()}


def occurs_in(ids: Tensor, of_row: Tensor) -> Tensor:
    """Whether ids (1 or b, C) occur in their row of (b, P); padding -1 matches nothing. (b, C)."""
    found = torch.zeros((len(of_row), ids.shape[1]), dtype=torch.bool, device=ids.device)
    for column in of_row.T:  # few; all of them at once would hold (b, C, P) cells
        found |= (ids == column[:, None]) & (column >= 0)[:, None]
    return found


def _right_for_same_query(candidates: Candidates) -> tuple[Tensor, Tensor]:
    """Which shared (b, C) and private (b, N) documents are the positive of a row with this query.

    Judged by document id, so that every copy is found, in whichever column it stands.
    """
    unique, place = torch.unique(candidates.shared_ids, return_inverse=True)
    same_query = candidates.shared_query_ids[None, :] == candidates.query_ids[:, None]
    count = same_query.new_zeros((len(same_query), len(unique)), dtype=torch.int64)
    right = count.index_add(1, place, same_query.long()) > 0
    nearest = torch.searchsorted(unique, candidates.private_ids).clamp(max=len(unique) - 1)
    found = unique[nearest] == candidates.private_ids
    return right[:, place], right.gather(1, nearest) & found


def _repeats(ids: Tensor) -> Tensor:
    """True where an id already stood in an earlier column of its own row, (b, C)."""
    order = torch.argsort(ids, dim=1, stable=True)
    ordered = ids.gather(1, order)
    repeated = torch.zeros_like(ids, dtype=torch.bool)
    return repeated.scatter(1, order[:, 1:], ordered[:, 1:] == ordered[:, :-1])
