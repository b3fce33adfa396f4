"""Which weights are trained at which rate, and with which decay. Middle floor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from rematch_ray.training.settings import OptimisationSettings


def parameter_groups(model: nn.Module, settings: OptimisationSettings) -> list[dict[str, Any]]:
    """Backbone matrices with decay, its vectors without, and everything new at its own rate.

    Args:
        model: a joint model; what requires no gradient is left out.
        settings: rates and decay.

    Returns:
        Groups for AdamW; `peak` is the rate that the schedule scales.
    """
    new_rate = settings.new_learning_rate or 10 * settings.learning_rate
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    old = [(name, p) for name, p in named if name.startswith("embedder.backbone.")]
    fresh = [p for name, p in named if not name.startswith("embedder.backbone.")]

    def group(parameters: Iterable[nn.Parameter], peak: float, decay: float) -> dict[str, Any]:
        return {"params": list(parameters), "lr": peak, "peak": peak, "weight_decay": decay}

    groups = [
        group((p for _, p in old if p.ndim > 1), settings.learning_rate, settings.weight_decay),
        group((p for _, p in old if p.ndim <= 1), settings.learning_rate, 0.0),
        group(fresh, new_rate, 0.0),
    ]
    return [entry for entry in groups if entry["params"]]
