"""A joint model, a rank's rows and the gradients of a step, at once or chunk by chunk."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rematch_ray.data.schema import Positive
from rematch_ray.data.train_batch import TrainBatch
from rematch_ray.losses.joint import JointLoss
from rematch_ray.model.embedder import Embedder
from rematch_ray.training.gradient_cache import accumulate
from rematch_ray.training.objective import JointModel
from tests.tiny import new_embedder, objective, text_sample, train_batch

CHUNK = 150
"""Tokens of a chunk, several of which the rows below fill."""


def build(
    base: Path,
    objective_changes: dict[str, Any],
    model: dict[str, Any],
    *,
    device: str = "cpu",
) -> JointModel:
    settings = objective(**objective_changes)
    embedder = new_embedder(base, has_fused=settings.w_fused > 0, **model)
    if (lora := model.get("lora")) is not None:
        embedder.backbone.add_lora(lora)
        for name, parameter in embedder.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    if model.get("gradient_checkpointing"):
        embedder.backbone.checkpoint_layers()
    return JointModel(embedder, settings).to(device).train()


def rows(embedder: Embedder) -> TrainBatch:
    """Two sub-batches: pictures, hard negatives, a document that two queries share."""
    shared = replace(text_sample(3), positives=(Positive(text_sample(0).positives[0].item),))
    groups = [
        [text_sample(n, negatives=n % 3, image=n == 1) for n in range(3)] + [shared],
        [text_sample(n, negatives=(n + 1) % 2, image=n == 5) for n in range(4, 8)],
    ]
    return train_batch(embedder, groups, step=3).to(embedder.device)


def gradients(
    model: JointModel, batch: TrainBatch, **options: Any
) -> tuple[JointLoss, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    calls: list[bool] = []

    def backward(loss: Tensor, last: bool) -> None:
        calls.append(last)
        loss.backward()

    loss = accumulate(model, model, batch, backward=backward, **options)
    assert calls == [False] * (len(calls) - 1) + [True]
    return loss, of_weights(model)


def of_weights(model: JointModel) -> dict[str, Tensor]:
    """The gradients that the weights hold."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float = 3e-4) -> None:
    assert got.keys() == want.keys()
    largest = max(float(gradient.norm()) for gradient in want.values())
    for name, gradient in want.items():
        error = (got[name] - gradient).norm() / max(float(gradient.norm()), 1e-3 * largest)
        assert error < tolerance, name
