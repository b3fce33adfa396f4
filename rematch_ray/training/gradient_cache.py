"""Forward and backward over what a rank reads in a step. Middle floor."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from rematch_ray.data.samples import TrainBatch
from rematch_ray.losses.joint import JointLoss


def accumulate(
    wrapped: nn.Module, batch: TrainBatch, *, backward: Callable[[Tensor, bool], None]
) -> JointLoss:
    """Adds a step's gradients to the weights; collective.

    Args:
        wrapped: the joint model, or what a strategy made of it; it is only called.
        batch: this rank's rows, on the model's device.
        backward: given a loss and whether it is the last one of the step: adds its gradients, and
            averages them over ranks with the last.

    Returns:
        JointLoss.
    """
    loss: JointLoss = wrapped(batch)
    backward(loss.total, True)
    return loss
