"""Runs a function in two processes that share a gloo group, without a port."""

import faulthandler
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(
    function: Callable[..., None], folder: Path, *arguments: Any, world_size: int = 2
) -> None:
    """Calls `function(folder, *arguments)` on every rank; an error of one is raised here."""
    mp.spawn(_one, (world_size, function, folder, arguments), nprocs=world_size)


def _one(
    rank: int,
    world_size: int,
    function: Callable[..., None],
    folder: Path,
    arguments: tuple[Any, ...],
) -> None:
    faulthandler.enable()  # a rank that a native library aborts says where it was
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    try:
        function(folder, *arguments)
        dist.barrier()  # a rank that leaves first would close connections still in use
    finally:
        dist.destroy_process_group()
