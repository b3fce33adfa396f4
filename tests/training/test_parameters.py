"""Weights with bounds stay between them, and leave a bound again when their gradient turns."""

import math

import pytest
import torch
from torch import nn

from rematch_ray.training.parameters import kept_in_bounds, parameter_groups
from rematch_ray.training.settings import OptimisationSettings

LEAST, MOST = math.log(0.01), math.log(0.2)


class Learned(nn.Module):
    """What is left of a joint model whose temperatures are learned."""

    def __init__(self) -> None:
        super().__init__()
        self.log_temperatures = nn.Parameter(torch.tensor([math.log(0.19), math.log(0.011)]))
        self.bank = nn.Parameter(torch.tensor([9.0]))


def test_a_temperature_at_its_bound_comes_back_when_its_gradient_turns() -> None:
    model = Learned()
    settings = OptimisationSettings(learning_rate=1e-2)
    optimizer = kept_in_bounds(torch.optim.AdamW(parameter_groups(model, settings)))

    def step(direction: float) -> list[float]:
        model.log_temperatures.grad = torch.tensor([-direction, direction])
        model.bank.grad = torch.tensor([-1.0])
        optimizer.step()
        return model.log_temperatures.tolist()

    for _ in range(200):
        assert all(LEAST - 1e-6 <= value <= MOST + 1e-6 for value in step(1.0))
    assert step(1.0) == pytest.approx([MOST, LEAST])
    for _ in range(20):
        after = step(-1.0)
    assert after[0] < MOST - 0.1
    assert after[1] > LEAST + 0.1
    # nothing else has bounds
    assert float(model.bank) > 10
