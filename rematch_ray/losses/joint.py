"""The joint objective: ReMatch's and MetaEmbed's terms as one weighted sum with its parts.

Takes tensors that were already encoded and gathered; knows nothing of models, ranks or data. Every
term has its own weight; a term of weight 0 is not computed. Ground floor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rematch_ray.losses.contrastive import info_nce, retrieval_accuracy, similarity_statistics
from rematch_ray.losses.matching import VIEW_NAMES, VIEWS, matching_loss, view_kind
from rematch_ray.losses.matryoshka import group_scores, matryoshka_info_nce
from rematch_ray.losses.orthogonality import orthogonality
from rematch_ray.scoring.budget import Budget
from rematch_ray.scoring.maxsim import Reduce, fused_scores

TERMS = ("fused", "groups", "orthogonality", "matching")


@dataclass(frozen=True)
class Contrast:
    """Everything the contrastive terms compare. b local queries, C shared and N private candidates.

    Args:
        query_vectors: (b, R_q, D) unit vectors, or None when no group takes part.
        shared_vectors: (C, R_d, D).
        private_vectors: (b, N, R_d, D) or None.
        query_fused: (b, F) unit vectors, or None when the model has no fused vector.
        shared_fused: (C, F).
        private_fused: (b, N, F) or None.
        target: (b,) column of the positive.
        mask: (b, C + N) bool, the one mask of every term.
        valid: (b,) bool, False = a padded row that counts nothing.
    """

    query_vectors: Tensor
    shared_vectors: Tensor
    private_vectors: Tensor | None
    query_fused: Tensor | None
    shared_fused: Tensor | None
    private_fused: Tensor | None
    target: Tensor
    mask: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Answers:
    """What the matching stage answered: (m, 8, V) logits, (m, 8) labels, and the answer tokens."""

    logits: Tensor
    is_yes: Tensor
    yes_id: int
    no_id: int


@dataclass(frozen=True)
class Counts:
    """How many rows each mean runs over, all ranks together, over the world size.

    Dividing local sums by these makes the mean of the ranks' losses (which is what averaging
    gradients computes) the mean over all rows of all ranks, however unevenly they are spread.
    """

    queries: float
    items: float
    matched: float


@dataclass(frozen=True)
class JointLoss:
    """The total and its unweighted parts; always this type, whichever terms are on.

    Attributes:
        total: scalar with gradient.
        parts: term name -> scalar; absent terms are exactly 0.
        groups: (G,) InfoNCE per budget.
        accuracy: name -> share of rows answered rightly (per budget, fused, per view), detached.
        vector_gradients: budget -> squared norm of its loss's gradient at this rank's query
            vectors; only when asked for.
        statistics: name -> mean over the queries, detached: cosines of positives and negatives (of
            the fused vectors, else MaxSim at the largest budget), number of negatives.
        broken: (b,) bool, True = a vector of the row's own items is not finite; None = not looked.
    """

    total: Tensor
    parts: Mapping[str, Tensor]
    groups: Tensor
    accuracy: Mapping[str, Tensor] = field(default_factory=dict)
    vector_gradients: Mapping[str, Tensor] = field(default_factory=dict)
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    broken: Tensor | None = None


def joint_loss(
    contrast: Contrast,
    states: Sequence[tuple[Tensor, Tensor]],
    answers: Answers | None,
    counts: Counts,
    *,
    weights: Mapping[str, float],
    groups: Sequence[Budget],
    temperature_fused: Tensor | float,
    temperature_maxsim: Tensor | float,
    reduce: Reduce,
) -> JointLoss:
    """w_fused InfoNCE(fused) + w_groups mean_g InfoNCE(MaxSim_g) + w_orth L_orth + w_match L_match.

    Args:
        contrast: encoded and gathered candidates.
        states: for orthogonality, (n, K, H) states and (n,) how many queries, positives and hard
            negatives each of them stands for (0 for padding).
        answers: the matching stage's logits, or None when it did not run.
        counts: rows per term over all ranks.
        weights: weight of each of `TERMS`; a missing term has weight 0.
        groups: nested budgets of the Matryoshka term.
        temperature_fused: divides fused cosines.
        temperature_maxsim: divides MaxSim scores.
        reduce: `mean` or `sum` of MaxSim over the query vectors.

    Returns:
        JointLoss.

    Raises:
        ValueError: an unknown term, or the fused term without fused vectors.
    """
    unknown = set(weights) - set(TERMS)
    if unknown:
        raise ValueError(f"unknown loss terms {sorted(unknown)}; allowed: {', '.join(TERMS)}")
    zero = contrast.query_vectors.new_zeros((), dtype=torch.float32)
    parts: dict[str, Tensor] = dict.fromkeys(TERMS, zero)
    accuracy: dict[str, Tensor] = {}
    scores: list[Tensor] = []
    group_losses = zero.new_zeros(len(groups))
    if weights.get("fused", 0.0):
        parts["fused"] = _fused_term(contrast, temperature_fused, counts, accuracy, scores)
    if weights.get("groups", 0.0):
        group_losses = _group_terms(
            contrast, groups, temperature_maxsim, reduce, counts, accuracy, scores
        )
        parts["groups"] = group_losses.mean()
    if weights.get("orthogonality", 0.0):
        parts["orthogonality"] = orthogonality_term(states, counts)
    if weights.get("matching", 0.0) and answers is not None:
        parts["matching"] = matching_term(answers, counts, accuracy)
    total = sum((weights.get(term, 0.0) * parts[term] for term in TERMS), start=zero)
    statistics = _statistics(contrast, scores[0], counts) if scores else {}
    return JointLoss(total, parts, group_losses, accuracy, statistics=statistics)


def _statistics(contrast: Contrast, score_bC: Tensor, counts: Counts) -> dict[str, Tensor]:
    sums = similarity_statistics(score_bC, contrast.target, contrast.mask, contrast.valid)
    return {name: value / counts.queries for name, value in sums.items()}


def _fused_term(
    contrast: Contrast,
    temperature: Tensor | float,
    counts: Counts,
    accuracy: dict[str, Tensor],
    scores: list[Tensor],
) -> Tensor:
    if contrast.query_fused is None or contrast.shared_fused is None:
        raise ValueError("the fused term needs fused vectors, but the model was built without them")
    score = fused_candidate_scores(
        contrast.query_fused, contrast.shared_fused, contrast.private_fused
    )
    per_query = info_nce(score, contrast.target, contrast.mask, temperature) * contrast.valid
    right = retrieval_accuracy(score.detach(), contrast.target, contrast.mask) * contrast.valid
    accuracy["fused"] = right.sum() / counts.queries
    scores.append(score.detach())
    return per_query.sum() / counts.queries


def fused_candidate_scores(
    query_bF: Tensor, shared_CF: Tensor, private_bNF: Tensor | None
) -> Tensor:
    """Fused cosines with shared and private candidates, (b, C + N) float32."""
    score = fused_scores(query_bF, shared_CF)
    if private_bNF is None or private_bNF.shape[1] == 0:
        return score
    own = torch.einsum("bf,bnf->bn", query_bF.float(), private_bNF.float())
    return torch.cat([score, own], dim=1)


def _group_terms(
    contrast: Contrast,
    groups: Sequence[Budget],
    temperature: Tensor | float,
    reduce: Reduce,
    counts: Counts,
    accuracy: dict[str, Tensor],
    scores: list[Tensor],
) -> Tensor:
    score_GbC = group_scores(
        contrast.query_vectors,
        contrast.shared_vectors,
        contrast.private_vectors,
        groups,
        reduce=reduce,
    )
    per_query = matryoshka_info_nce(score_GbC, contrast.target, contrast.mask, temperature)
    for group, score in zip(groups, score_GbC.detach(), strict=True):
        right = retrieval_accuracy(score, contrast.target, contrast.mask) * contrast.valid
        accuracy[str(group)] = right.sum() / counts.queries
    top = score_GbC[-1].detach()
    scores.append(top / groups[-1].r_q if reduce == "sum" else top)
    return (per_query * contrast.valid).sum(dim=1) / counts.queries


def orthogonality_term(states: Sequence[tuple[Tensor, Tensor]], counts: Counts) -> Tensor:
    """Mean orthogonality over items; arguments as in `joint_loss`."""
    sums = [(orthogonality(state_BKH) * uses).sum() for state_BKH, uses in states]
    return torch.stack(sums).sum() / counts.items


def matching_term(answers: Answers, counts: Counts, accuracy: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy over views and matched rows; adds the accuracy of each kind of view."""
    loss_m8 = matching_loss(
        answers.logits, answers.is_yes, yes_id=answers.yes_id, no_id=answers.no_id
    )
    logits = answers.logits.detach()
    said_yes = logits[..., answers.yes_id] > logits[..., answers.no_id]
    right_m8 = (said_yes == answers.is_yes).float()
    for kind, name in enumerate(VIEW_NAMES):
        columns = [view for view in range(len(VIEWS)) if view_kind(view) == kind]
        accuracy[f"match/{name}"] = right_m8[:, columns].mean(dim=1).sum() / max(
            counts.matched, 1e-9
        )
    return loss_m8.sum() / (len(VIEWS) * max(counts.matched, 1e-9))


def with_vector_gradients(
    loss: JointLoss, contrast: Contrast, groups: Sequence[Budget]
) -> JointLoss:
    """The same loss, with how hard each budget pulls at the query vectors.

    Args:
        loss: as `joint_loss` returned it, graph intact (it stays so).
        contrast: what it was computed from.
        groups: its budgets.

    Returns:
        JointLoss whose `vector_gradients` hold, per budget, the squared norm of the gradient of
        that budget's InfoNCE at this rank's query vectors. Squares of ranks add up; those at the
        shared documents would not.
    """
    squares = {}
    for group, value in zip(groups, loss.groups, strict=True):
        (gradient,) = torch.autograd.grad(value, contrast.query_vectors, retain_graph=True)
        squares[str(group)] = gradient.square().sum()
    return replace(loss, vector_gradients=squares)
