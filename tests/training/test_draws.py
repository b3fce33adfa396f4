"""Uniform numbers per (row, step): the same for everybody, spread evenly, apart from each other."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rematch_ray.data.rows import stable_id
from rematch_ray.training.draws import row_uniforms

IDS = torch.tensor([stable_id(f"q{number}") for number in range(4000)])


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(8)), st.integers(0, 10**6))
def test_a_rows_numbers_do_not_depend_on_its_neighbours(order: list[int], step: int) -> None:
    ids = IDS[:8]
    want = row_uniforms(ids, step, 4)
    assert torch.equal(row_uniforms(ids[order], step, 4), want[order])
    assert torch.equal(row_uniforms(ids[3:4], step, 2)[0], want[3, :2])


def test_numbers_are_uniform_and_below_one() -> None:
    numbers = row_uniforms(IDS, 7, 4)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    for lane in range(4):
        share = torch.histc(numbers[:, lane], bins=10, min=0, max=1) / len(IDS)
        assert (share - 0.1).abs().max() < 0.02


def test_lanes_steps_and_rows_are_independent() -> None:
    now, then = row_uniforms(IDS, 7, 4), row_uniforms(IDS, 8, 4)
    columns = torch.cat([now, then], dim=1)
    correlation = torch.corrcoef(columns.T).fill_diagonal_(0)
    assert correlation.abs().max() < 0.07
    neighbours = torch.corrcoef(torch.stack([now[:-1, 0], now[1:, 0]]))[0, 1]
    assert abs(neighbours) < 0.07
    # one row over many steps
    steps = torch.cat([row_uniforms(IDS[:1], step, 1) for step in range(1000)])
    assert abs(steps.mean().item() - 0.5) < 0.04


def test_small_consecutive_ids_are_mixed_as_well() -> None:
    numbers = row_uniforms(torch.arange(2000), 0, 1)[:, 0]
    assert abs(numbers.mean().item() - 0.5) < 0.03
    assert len(numbers.unique()) > 1990
