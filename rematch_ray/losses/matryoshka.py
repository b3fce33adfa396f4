"""InfoNCE at every nested budget of a ladder (MetaEmbed's Matryoshka multi-vector retrieval).

Each block of similarities is computed once and sliced per group. Takes vectors and the shared
candidate mask; knows nothing of models or ranks. Ground floor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rematch_ray.losses.contrastive import info_nce
from rematch_ray.scoring.budget import Budget
from rematch_ray.scoring.maxsim import Reduce, maxsim_candidates, maxsim_groups


def group_scores(
    query_bRD: Tensor,
    shared_CRD: Tensor,
    private_bNRD: Tensor | None,
    groups: Sequence[Budget],
    *,
    reduce: Reduce,
) -> Tensor:
    """MaxSim of every query against shared and private candidates at every group.

    Args:
        query_bRD: (b, R_q, D) local queries.
        shared_CRD: (C, R_d, D) candidates that all queries see.
        private_bNRD: (b, N, R_d, D) each query's own hard negatives, or None.
        groups: the nested budgets.
        reduce: `mean` or `sum` over the r_q query vectors.

    Returns:
        (G, b, C + N) float32, shared candidates first.
    """
    scores = maxsim_groups(query_bRD, shared_CRD, groups, reduce=reduce)
    if private_bNRD is None or private_bNRD.shape[1] == 0:
        return scores
    own = maxsim_candidates(query_bRD, private_bNRD, list(groups), reduce=reduce)
    return torch.cat([scores, own], dim=2)


def matryoshka_info_nce(
    score_GbC: Tensor, target: Tensor, mask_bC: Tensor, temperature: Tensor | float
) -> Tensor:
    """InfoNCE of every group over the same candidates.

    Args:
        score_GbC: (G, b, C) scores per group.
        target: (b,) column of the positive.
        mask_bC: (b, C) bool, one mask for all groups.
        temperature: divides the scores.

    Returns:
        (G, b) float32; the objective takes the mean over groups.

    Source: MetaEmbed (arXiv 2509.18095), L_mmr with w_g = 1; the mean over G instead of the sum is
    what its released code does, and it fixes the balance in a joint objective.
    """
    return torch.stack([info_nce(score_bC, target, mask_bC, temperature) for score_bC in score_GbC])
