"""Whole weights out of shares: complete, on one rank, and by a safe way."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from rematch_ray.collectives import rank, world_size
from rematch_ray.training.state import full_weights
from rematch_ray.training.strategies import StrategySettings
from tests.ranks import run_ranks
from tests.training.test_strategies import CELLS, build, mine


class Collectives(TorchDispatchMode):
    """Notes the functional collectives that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "_c10d_functional":
            self.names.add(func.__name__)
        return func(*args, **(kwargs or {}))


class Uneven(nn.Module):
    """Weights whose rows no two ranks share evenly, one row alone among them."""

    def __init__(self) -> None:
        super().__init__()
        for rows in (1, 2, 3, 4, 7):
            self.register_parameter(
                f"rows{rows}", nn.Parameter(torch.arange(rows * 2.0).view(rows, 2) + rows)
            )
        self.register_buffer("kept", torch.arange(3))


def _uneven(folder: Path) -> None:
    model = Uneven()
    want = {name: value.clone() for name, value in model.state_dict().items()}
    fully_shard(model, mesh=init_device_mesh("cpu", (world_size(),)))
    got = full_weights(model)
    assert list(got) == (list(want) if rank() == 0 else [])
    for name, value in got.items():
        assert torch.equal(value, want[name]), name


def test_uneven_shares_come_together_on_the_first_rank(tmp_path: Path) -> None:
    run_ranks(_uneven, tmp_path, world_size=3)


def test_weights_of_one_process_are_those_in_use() -> None:
    model = Uneven()
    got = full_weights(model)
    assert got.keys() == model.state_dict().keys()
    assert got["rows7"].data_ptr() == model.rows7.data_ptr()  # type: ignore[operator]


def _life(folder: Path, base: Path) -> None:
    strategy = StrategySettings(name="fsdp2")
    training = build(base, CELLS["shared_kv"], strategy)
    with Collectives() as seen:
        training.step(mine(training, 0))
        training.save(folder / "state")
        training.save_async(folder / "async").result()
        training.load(folder / "state")
        training.export(folder / "export")
    assert not {name for name in seen.names if "gather" in name or "coalesced" in name}
    share = next(value for value in training.joint.parameters() if isinstance(value, DTensor))
    with Collectives() as heard:
        share.full_tensor()
    assert any("gather" in name for name in heard.names)  # the listener hears one where there is


def test_no_collective_is_used_whose_name_gloo_frees_twice(tiny_base: Path, tmp_path: Path) -> None:
    """The long-named ones crash a gloo group now and then; see `full_weights`."""
    run_ranks(_life, tmp_path, tiny_base)
