"""Strategies of torch itself: whole weights on every rank (ddp), or a share of each (fsdp2).

Gradients are added up locally and reduced over ranks in the last backward pass of a step. Middle
floor.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from rematch_ray.collectives import world_size
from rematch_ray.errors import UserError
from rematch_ray.training.background import BackgroundWriter
from rematch_ray.training.objective import JointModel
from rematch_ray.training.parameters import kept_in_bounds, own_settings
from rematch_ray.training.settings import OptimisationSettings
from rematch_ray.training.state import full_weights, load_state, save_state, training_state
from rematch_ray.training.strategies import StrategySettings


class TorchStrategy:
    """ddp and fsdp2: torch's optimiser, torch's distributed checkpoint.

    Args:
        settings: which of the two, and how.
        model: moved in place; fsdp2 shards it on the way, layer by layer.
        groups: the optimiser's parameter groups.
        optimisation: averages and clipping.
        device: where the weights, or this rank's share of them, go.

    Raises:
        UserError: fsdp2 without a process group, or no compiler where one is needed.
    """

    def __init__(
        self,
        settings: StrategySettings,
        model: JointModel,
        groups: Callable[[JointModel], list[dict[str, Any]]],
        optimisation: OptimisationSettings,
        *,
        device: torch.device,
    ) -> None:
        self._model = model
        self._clip = optimisation.clip
        if settings.compile:
            compile_layers(model, device)
        self.wrapped: nn.Module = model
        if settings.name == "fsdp2":
            shard(model, settings, device)
        else:
            model.to(device)
        if settings.name == "ddp" and world_size() > 1:
            # buffers are constants, the same everywhere: nothing to send before each forward
            self.wrapped = DistributedDataParallel(
                model, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        # one pass over memory, also on CPU: a seventh of the time of the default there
        self.optimizer: torch.optim.Optimizer = kept_in_bounds(
            torch.optim.AdamW(groups(model), betas=optimisation.betas, fused=True)
        )
        self._writer = BackgroundWriter()

    def zero_grad(self) -> None:
        """Forgets gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def announce(self, last: bool) -> None:
        """Says before a forward pass whether its backward pass is the step's last one."""
        if isinstance(self.wrapped, DistributedDataParallel):
            # read in the forward pass: without it the hooks of the backward pass stay silent
            self.wrapped.require_backward_grad_sync = last
        elif isinstance(self.wrapped, FSDPModule):
            self.wrapped.set_requires_gradient_sync(last)
            self.wrapped.set_is_last_backward(last)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds a loss's gradients; after the last one they are averaged over ranks."""
        loss.backward()

    def clip_and_step(self, rate_share: float) -> float:
        """Clips and updates; returns the norm before clipping, not finite = nothing updated."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate_share
        trained = [p for p in self._model.parameters() if p.requires_grad]
        found = nn.utils.clip_grad_norm_(trained, self._clip)
        norm = float(found.full_tensor() if isinstance(found, DTensor) else found)
        if math.isfinite(norm):
            self.optimizer.step()
        return norm

    def save(self, directory: Path, steps_done: int) -> None:
        """Writes weights, optimiser and steps done."""
        save_state(training_state(self._model, self.optimizer, steps_done), directory)

    def save_async(self, directory: Path, steps_done: int) -> Future[Any]:
        """As `save`; host memory holds the state once more until it is written."""
        state = training_state(self._model, self.optimizer, steps_done)
        return self._writer.start(state, directory)

    def load(self, directory: Path) -> int:
        """Restores what ddp or fsdp2 wrote on any number of ranks; returns steps done."""
        with own_settings(self.optimizer):
            return load_state(self._model, self.optimizer, directory)

    def full_state(self) -> dict[str, Tensor]:
        """All weights in main memory on rank 0 under the model's own names; {} elsewhere."""
        return full_weights(self._model)


def layers(model: JointModel) -> Iterator[nn.Module]:
    """Decoder layers and vision blocks, what is compiled and sharded one by one."""
    inner = model.embedder.backbone.model.model
    yield from inner.visual.blocks
    yield from inner.language_model.layers


def compile_layers(model: JointModel, device: torch.device) -> None:
    """Compiles every layer in place, for a device; names of weights stay.

    Raises:
        UserError: on CPU without a C++ compiler.
    """
    if device.type == "cpu" and not any(shutil.which(name) for name in ("g++", "c++", "clang++")):
        raise UserError(
            "strategy.compile needs a C++ compiler on CPU and there is none (g++, clang++): "
            "install one, or set strategy.compile to false"
        )
    for layer in layers(model):
        layer.compile(dynamic=True)


def shard(model: JointModel, settings: StrategySettings, device: torch.device) -> None:
    """Shards layers, then all other weights, over the ranks, in place.

    The model comes in main memory: each layer is moved and cut before the next one is, so that a
    device never holds more than its shares and one layer, or the root's weights, whole.

    Under bfloat16 layers are gathered in it, and their gradients reduced in float32. The root's
    weights (embeddings, norms, banks, heads) stay float32 and gathered through a step.

    Raises:
        UserError: there is no process group.
    """
    if not dist.is_initialized():
        raise UserError(
            "strategy fsdp2 shards over a process group, and there is none: start it through "
            "`rematch-ray train` or torchrun, or set strategy.name to ddp"
        )
    mesh = init_device_mesh(device.type, (world_size(),))
    gathered = model.embedder.backbone.autocast_dtype
    policy = MixedPrecisionPolicy(
        param_dtype=gathered, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for layer in layers(model):
        fully_shard(
            layer,
            mesh=mesh,
            mp_policy=policy if gathered else MixedPrecisionPolicy(),
            reshard_after_forward=settings.reshard_after_forward is not False,
        )
    fully_shard(model, mesh=mesh)
    model.embedder.backbone.sharded = True
