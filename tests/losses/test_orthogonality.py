"""The orthogonality term at its ends, against a loop, and per item."""

import pytest
import torch

from rematch_ray.losses.orthogonality import orthogonality
from tests.tiny import unit


def test_orthonormal_states_cost_nothing_and_equal_states_cost_one() -> None:
    assert orthogonality(torch.eye(4)[None] * 3).item() == pytest.approx(0, abs=1e-7)
    assert orthogonality(torch.ones(1, 4, 5)).item() == pytest.approx(1)
    # opposite states are as far from orthogonal as equal ones
    assert orthogonality(torch.tensor([[[1.0, 0.0], [-2.0, 0.0]]])).item() == pytest.approx(1)


def test_it_is_the_mean_squared_cosine_of_all_pairs() -> None:
    states = unit((2, 5, 7), 3) * 4.2
    for item, got in zip(states, orthogonality(states), strict=True):
        cosines = [
            torch.nn.functional.cosine_similarity(item[i], item[j], dim=0) ** 2
            for i in range(5)
            for j in range(i)
        ]
        torch.testing.assert_close(got, torch.stack(cosines).mean())


def test_one_state_alone_costs_nothing() -> None:
    assert orthogonality(torch.ones(3, 1, 5)).tolist() == [0, 0, 0]


def test_its_gradient_turns_states_apart() -> None:
    states = torch.tensor([[[1.0, 0.0], [0.8, 0.6]]], requires_grad=True)
    before = orthogonality(states)
    before.sum().backward()
    assert states.grad is not None
    after = orthogonality(states.detach() - 0.1 * states.grad)
    assert after.item() < before.item()
