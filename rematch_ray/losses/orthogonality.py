"""Keeps the learnable tokens' outputs of one item apart. Takes states only. Ground floor."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def orthogonality(state_BKH: Tensor) -> Tensor:
    """Mean squared cosine between different states of the same item.

    L = 2 / (K (K - 1)) * sum over i < j of cos(e_i, e_j)^2, in [0, 1]; 0 for K = 1.

    Args:
        state_BKH: (B, K, H) un-normalised last hidden states at the first K meta tokens.

    Returns:
        (B,) float32, one value per item.

    Source: ReMatch (arXiv 2511.19278), L_orth. The paper does not give the average over items; the
    caller takes the mean over queries, positives and hard negatives.

    >>> import torch
    >>> [round(float(orthogonality(x[None])), 4) for x in (torch.eye(3), torch.ones(3, 2))]
    [0.0, 1.0]
    """
    num_states = state_BKH.shape[1]
    if num_states < 2:
        return state_BKH.new_zeros(state_BKH.shape[0]).float()
    unit = F.normalize(state_BKH.float(), dim=-1)
    gram = unit @ unit.transpose(1, 2)
    squares = gram.square().sum(dim=(1, 2)) - gram.diagonal(dim1=1, dim2=2).square().sum(dim=1)
    return squares / (num_states * (num_states - 1))
