"""The Yes/No cross-entropy of the matching stage, the eight views, and the draw of its negative.

Takes logits, scores and ids; does not know how the answers were computed. Ground floor.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

# (query view, document view): 0 = raw, 1 = embedding; documents 0 and 1 are the two slots.
VIEWS: Final = tuple(
    (query_view, slot, document_view)
    for query_view in (0, 1)
    for slot in (0, 1)
    for document_view in (0, 1)
)
VIEW_NAMES: Final = ("raw/raw", "raw/emb", "emb/raw", "emb/emb")


def view_labels(positive_slot: Tensor) -> Tensor:
    """Which of the eight views show the positive.

    Args:
        positive_slot: (m,) 0 or 1, the slot that holds the positive document.

    Returns:
        (m, 8) bool, True = the answer is Yes; four of the eight.

    >>> view_labels(torch.tensor([1]))[0].int().tolist()
    [0, 0, 1, 1, 0, 0, 1, 1]
    """
    slots = torch.tensor([slot for _, slot, _ in VIEWS], device=positive_slot.device)
    return slots[None, :] == positive_slot[:, None]


def view_kind(view: int) -> int:
    """Index into `VIEW_NAMES` of one of the eight views (the slot does not matter)."""
    query_view, _, document_view = VIEWS[view]
    return 2 * query_view + document_view


def matching_loss(logits_m8V: Tensor, is_yes_m8: Tensor, *, yes_id: int, no_id: int) -> Tensor:
    """Full-vocabulary cross-entropy of the answer token, one value per view.

    Args:
        logits_m8V: (m, 8, V) logits at the position that predicts the answer.
        is_yes_m8: (m, 8) bool labels.
        yes_id: token id of Yes.
        no_id: token id of No.

    Returns:
        (m, 8) float32.

    Source: ReMatch (arXiv 2511.19278), L_qdm; the full vocabulary is inferred, the paper says only
    that the model generates the answer.
    """
    labels = torch.where(is_yes_m8, yes_id, no_id)
    flat = F.cross_entropy(logits_m8V.flatten(0, 1).float(), labels.flatten(), reduction="none")
    return flat.view(labels.shape)


def yes_log_odds(logits_V: Tensor, *, yes_id: int, no_id: int) -> Tensor:
    """log p(Yes) - log p(No) of (..., V) logits, (...) float32."""
    return (logits_V[..., yes_id] - logits_V[..., no_id]).float()


def draw_negatives(
    cosine_bC: Tensor,
    admissible_bC: Tensor,
    hard_bN: Tensor,
    *,
    mined: float,
    temperature: float,
    uniforms_b2: Tensor,
) -> Tensor:
    """Chooses the matching stage's negative document for each row.

    With probability `mined` (1 for a row without hard negatives) a document of the same sub-batch,
    drawn in proportion to exp(cosine / temperature); otherwise one of the row's own hard negatives,
    uniformly.

    Args:
        cosine_bC: (b, C) detached fused cosines of the row's query with the sub-batch's documents.
        admissible_bC: (b, C) bool, True = may serve as a negative (outside the positive mask).
        hard_bN: (b, N) bool, True = the row has this hard negative and it is admissible.
        mined: probability of a mined negative, 0..1.
        temperature: of the draw, 0.05 by default in the objective.
        uniforms_b2: (b, 2) numbers in [0, 1), seeded by step and row: which source, which document.

    Returns:
        (b,) int64: column in [0, C) for a mined document, C + n for hard negative n, -1 for a row
        without any admissible negative.
    """
    num_shared = cosine_bC.shape[1]
    has_mined, has_hard = admissible_bC.any(dim=1), hard_bN.any(dim=1)
    take_mined = has_mined & ((uniforms_b2[:, 0] < mined) | ~has_hard)
    logits = (cosine_bC.float() / temperature).masked_fill(~admissible_bC, -torch.inf)
    mined_column = _inverse_cdf(torch.softmax(logits, dim=1).nan_to_num(0.0), uniforms_b2[:, 1])
    hard_column = _inverse_cdf(hard_bN.float(), uniforms_b2[:, 1]) + num_shared
    column = torch.where(take_mined, mined_column, hard_column)
    return torch.where(has_mined | has_hard, column, torch.full_like(column, -1))


def _inverse_cdf(weight_bC: Tensor, uniform_b: Tensor) -> Tensor:
    """Column whose share of the row's weight holds the uniform number; never a zero-weight one."""
    if weight_bC.shape[1] == 0:
        return torch.zeros_like(uniform_b, dtype=torch.int64)
    cumulative = weight_bC.double().cumsum(dim=1)
    point = uniform_b.double()[:, None] * cumulative[:, -1:]
    column = torch.searchsorted(cumulative, point, right=True)[:, 0]
    return column.clamp(max=weight_bC.shape[1] - 1)
