"""Weights and optimiser to disk and back with torch's distributed checkpoint. Middle floor.

What ddp wrote fsdp2 reads, and the other way round, at any number of processes: the names are the
model's own and every tensor is stored whole or in pieces that say where they belong.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.optim import Optimizer

from rematch_ray.collectives import rank, world_size
from rematch_ray.errors import UserError

DEEPSPEED = "deepspeed"
"""Folder inside a state that holds DeepSpeed's own files."""


def training_state(model: nn.Module, optimizer: Optimizer, steps_done: int) -> dict[str, Any]:
    """What a checkpoint holds; the tensors are the ones in use."""
    weights, averages = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": averages, "steps_done": steps_done}


def save_state(state: dict[str, Any], directory: Path) -> None:
    """Writes a state; every rank calls it."""
    dcp.save(state, checkpoint_id=str(directory), no_dist=world_size() == 1)


def load_state(model: nn.Module, optimizer: Optimizer, directory: Path) -> int:
    """Restores a state; every rank calls it.

    Returns:
        Steps done.

    Raises:
        UserError: DeepSpeed wrote it.
    """
    if (directory / DEEPSPEED).is_dir():
        raise UserError(
            f"'{directory}' was written under strategy deepspeed, whose optimiser states only it "
            "reads: set strategy.name back to deepspeed, or train on under another name with "
            "model.base set to an export"
        )
    state = training_state(model, optimizer, 0)
    dcp.load(state, checkpoint_id=str(directory), no_dist=world_size() == 1)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=StateDictOptions(strict=True),
    )
    return int(state["steps_done"])


def full_weights(model: nn.Module) -> dict[str, Tensor]:
    """All weights, gathered, in main memory on rank 0; {} on the others. Every rank calls it."""
    options = StateDictOptions(full_state_dict=world_size() > 1, cpu_offload=True)
    weights = cast(dict[str, Tensor], get_model_state_dict(model, options=options))
    return weights if rank() == 0 else {}


def first_failure(error: BaseException) -> BaseException:
    """What went wrong on the first rank where something did, out of torch's report on all."""
    if isinstance(error, CheckpointException) and error.failures:
        return error.failures[min(error.failures)][0]
    return error
