"""Gathering over ranks: values, order and gradients with two processes; one process is a world."""

from pathlib import Path

import torch

from rematch_ray.collectives import (
    gather,
    gather_with_gradient,
    largest_over_ranks,
    mean_over_ranks,
    rank,
    world_size,
)
from tests.ranks import run_ranks


def test_one_process_is_a_world_of_one() -> None:
    value = torch.tensor([1.0, 2.0], requires_grad=True)
    assert (world_size(), rank()) == (1, 0)
    assert gather_with_gradient(value) is value
    assert torch.equal(gather(value), value)
    assert torch.equal(mean_over_ranks(value), value)
    assert largest_over_ranks(3) == 3


def _collect(folder: Path) -> None:
    mine = torch.tensor([[1.0, 2.0]]) + 10 * rank()
    mine.requires_grad_()
    everyone = gather_with_gradient(mine)
    # each rank weighs the gathered rows with its own numbers
    weights = torch.tensor([[1.0, 2.0], [3.0, 4.0]]) * (1 + rank())
    (everyone * weights).sum().backward()
    result = {
        "gathered": everyone.detach(),
        "ids": gather(torch.tensor([rank(), 7])),
        "gradient": mine.grad,
        "mean": mean_over_ranks(torch.tensor(float(rank()))),
        "largest": torch.tensor(largest_over_ranks(5 - rank())),
        "world": torch.tensor([world_size(), rank()]),
    }
    torch.save(result, folder / f"{rank()}.pt")


def test_two_ranks_gather_in_rank_order_and_sum_each_others_gradients(tmp_path: Path) -> None:
    run_ranks(_collect, tmp_path)
    first, second = (torch.load(tmp_path / f"{index}.pt") for index in range(2))
    for got in (first, second):
        assert got["gathered"].tolist() == [[1, 2], [11, 12]]
        assert got["ids"].tolist() == [0, 7, 1, 7]
        assert got["mean"] == 0.5
        assert got["largest"] == 5
    assert first["world"].tolist() == [2, 0]
    assert second["world"].tolist() == [2, 1]
    # weights of rank 0 plus twice those weights on rank 1
    assert first["gradient"].tolist() == [[3, 6]]
    assert second["gradient"].tolist() == [[9, 12]]
