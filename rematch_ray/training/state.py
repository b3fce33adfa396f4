"""Weights and optimiser to disk and back with torch's distributed checkpoint. Middle floor.

What ddp wrote fsdp2 reads, and the other way round, at any number of processes: the names are the
model's own and every tensor is stored whole or in pieces that say where they belong.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.tensor import DTensor
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
    """All weights in main memory on rank 0, {} on the others; every rank calls it.

    What is whole and in main memory already is not copied: it is the tensor in use.
    """
    here = {
        name: _whole(cast(Tensor, value)) for name, value in get_model_state_dict(model).items()
    }
    return {name: value for name, value in here.items() if value is not None}


def _whole(value: Tensor) -> Tensor | None:
    """A weight in main memory on rank 0, None on the others.

    Not by `full_state_dict`: that gathers with functional collectives, whose long name
    (ALLGATHER_COALESCED) the two threads of a gloo group write down without a lock after each of
    them, and now and then free twice (ProcessGroupGloo::runLoop of torch 2.13: a segmentation fault
    after two thousand gatherings of a small model). A plain gather has a name that needs no memory,
    and the other ranks never hold a whole weight.
    """
    if not isinstance(value, DTensor):
        return value.detach().cpu() if rank() == 0 else None
    group = value.device_mesh.get_group()
    (placement,) = value.placements
    assert placement.is_shard(0), "strategies shard the first axis alone"
    share = value.to_local().detach()
    held, size = group.size(), value.size(0)
    rows = -(-size // held)
    padded = share.new_zeros(rows, *value.shape[1:])
    padded[: len(share)] = share
    if rank() > 0:
        dist.gather(padded, group=group, group_dst=0)
        return None
    whole = share.new_empty(held * rows, *value.shape[1:])
    dist.gather(padded, list(whole.chunk(held)), group=group, group_dst=0)
    return whole[:size].cpu()


def first_failure(error: BaseException) -> BaseException:
    """What went wrong on the first rank where something did, out of torch's report on all."""
    if isinstance(error, CheckpointException) and error.failures:
        return error.failures[min(error.failures)][0]
    return error
