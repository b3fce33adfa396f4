"""Differentiable gathering across ranks, and the world it runs in. Ground floor.

Works without a process group: one process is a world of one. Knows nothing of losses or models.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Tensor


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather_with_gradient(local: Tensor) -> Tensor:
    """Concatenates a tensor of every rank along the first axis, in rank order.

    The backward pass sums the gradients that all ranks hold for this rank's rows. Together with
    averaging parameter gradients over ranks this is the gradient of the mean of the ranks' losses.

    Args:
        local: (b, ...) of the same shape on every rank.

    Returns:
        (world * b, ...).
    """
    if world_size() == 1:
        return local
    return torch.cat(dist_nn.all_gather(local.contiguous()), dim=0)


def gather(local: Tensor) -> Tensor:
    """As `gather_with_gradient`, without gradients, for ids and counts."""
    if world_size() == 1:
        return local
    parts = [torch.empty_like(local) for _ in range(world_size())]
    dist.all_gather(parts, local.contiguous())
    return torch.cat(parts, dim=0)


def mean_over_ranks(local: Tensor) -> Tensor:
    """Mean of a tensor over ranks, without gradients."""
    if world_size() == 1:
        return local
    total = local.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def largest_over_ranks(local: int, *, device: torch.device | str = "cpu") -> int:
    """Largest of a whole number over ranks."""
    if world_size() == 1:
        return local
    value = torch.tensor(local, device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return int(value)


def largest_over_ranks_each(local: Tensor) -> Tensor:
    """The largest of every element over ranks, without gradients."""
    if world_size() == 1:
        return local
    value = local.detach().clone()
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value
