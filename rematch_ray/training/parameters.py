"""Which weights are trained at which rate, with which decay, and within which bounds.

Middle floor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from rematch_ray.training.settings import TEMPERATURE_RANGE, OptimisationSettings

_BOUNDED = {"log_temperatures": tuple(math.log(value) for value in TEMPERATURE_RANGE)}


def parameter_groups(model: nn.Module, settings: OptimisationSettings) -> list[dict[str, Any]]:
    """Backbone matrices with decay, its vectors without, and everything new at its own rate.

    Args:
        model: a joint model; what requires no gradient is left out.
        settings: rates and decay.

    Returns:
        Groups for AdamW; `peak` is the rate that the schedule scales, `bounds` where
        `kept_in_bounds` puts the weights back.
    """
    new_rate = settings.new_learning_rate or 10 * settings.learning_rate
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    old = [(name, p) for name, p in named if name.startswith("embedder.backbone.")]
    fresh = [
        p for name, p in named if not name.startswith("embedder.backbone.") and name not in _BOUNDED
    ]

    def group(parameters: Iterable[nn.Parameter], peak: float, decay: float) -> dict[str, Any]:
        return {"params": list(parameters), "lr": peak, "peak": peak, "weight_decay": decay}

    groups = [
        group((p for _, p in old if p.ndim > 1), settings.learning_rate, settings.weight_decay),
        group((p for _, p in old if p.ndim <= 1), settings.learning_rate, 0.0),
        group(fresh, new_rate, 0.0),
        *({**group([p], new_rate, 0.0), "bounds": _BOUNDED[n]} for n, p in named if n in _BOUNDED),
    ]
    return [entry for entry in groups if entry["params"]]


@contextmanager
def own_settings(optimizer: Optimizer) -> Iterator[None]:
    """Whatever is loaded inside, the groups keep their rates, decay, averages' shares and bounds.

    A state holds those that it was written under, and a run may go on under others.
    """
    own = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    yield
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update(settings)


def kept_in_bounds(optimizer: Optimizer) -> Optimizer:
    """After every update, weights of groups with `bounds` are put back between them.

    A group of its own is all that this needs to find them: whatever a strategy made of the group's
    weights, shares of them or one flat copy with padding, every number in it has the same bounds.
    """

    def put_back(updated: Optimizer, *_: Any) -> None:
        with torch.no_grad():
            for group in updated.param_groups:
                if "bounds" in group:
                    for weight in group["params"]:
                        weight.clamp_(*group["bounds"])

    optimizer.register_step_post_hook(put_back)
    return optimizer
