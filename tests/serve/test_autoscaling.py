"""Replicas follow the work that is asked for, whatever is done of it."""

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rematch_ray.serve.autoscaling import ASKED, CAPACITY, WorkMeter, WorkPolicy
from tests.serve.local import Clock

policy = WorkPolicy([0.6, 0.6, 0.6, 0.8])


def context(asked: list[float], capacity: list[float], current: int = 1) -> Any:
    return SimpleNamespace(
        aggregated_metrics={
            ASKED: dict(enumerate(asked)),
            CAPACITY: dict(enumerate(capacity)),
        },
        target_num_replicas=current,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=4,
    )


def test_replicas_are_added_before_the_capacity_is_used_up() -> None:
    assert policy(context([50.0], [100.0]))[0] == 1
    assert policy(context([75.0], [100.0]))[0] == 2
    assert policy(context([200.0, 100.0], [100.0, 100.0], current=2))[0] == 4


def test_replicas_are_taken_away_when_little_is_asked() -> None:
    assert policy(context([5.0, 5.0, 5.0], [100.0] * 3, current=3))[0] == 1


def test_while_nothing_is_known_nothing_changes() -> None:
    assert policy(context([500.0], [0.0], current=2))[0] == 2
    silent = SimpleNamespace(**{**vars(context([], [], current=3)), "aggregated_metrics": None})
    assert policy(silent)[0] == 3


def test_a_lowered_budget_hides_no_work() -> None:
    clock = Clock()
    meter = WorkMeter(2, clock)
    meter.ask(1000)
    meter.done(1000, 0.01, as_asked=True)
    for _ in range(99):
        meter.ask(1000)
        meter.done(10, 0.01, as_asked=False)
    stats = meter.stats()
    assert stats[ASKED] == pytest.approx(10_000)
    assert stats[CAPACITY] == pytest.approx(200_000)
    clock.now += 60
    assert meter.stats()[ASKED] == 0


def test_what_was_asked_is_counted_for_ten_seconds() -> None:
    clock = Clock()
    meter = WorkMeter(1, clock)
    for _ in range(200):
        meter.ask(50)
        clock.now += 0.1
    assert meter.stats()[ASKED] == pytest.approx(500, rel=0.03)
    clock.now += 5
    assert meter.stats()[ASKED] == pytest.approx(250, rel=0.06)


def test_a_meter_that_nobody_reads_does_not_grow() -> None:
    clock = Clock()
    meter = WorkMeter(1, clock)
    meter.ask(1000)
    before = len(pickle.dumps(meter))
    for _ in range(20_000):
        meter.ask(1000)
        clock.now += 0.001
    assert len(pickle.dumps(meter)) < before + 1000


def test_serve_takes_the_policy_by_name() -> None:
    from ray import serve

    from rematch_ray.serve.sets import _by_work, _scaling
    from rematch_ray.serve.settings import ServeArgs, ShardSettings
    from rematch_ray.serve.shard import Shard

    settings = ShardSettings(num_replicas=2, max_replicas=6)
    args = ServeArgs(index=Path("/an/index"), shard=settings)
    config = serve.deployment(**_scaling(settings, **_by_work(args)))(Shard)
    scaling = config._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (2, 6)
    shares = scaling.policy.policy_kwargs["shares"]
    assert shares == sorted(shares)
    assert all(0 < share < 0.9 for share in shares)
    by_value = scaling.policy.get_policy()(**scaling.policy.policy_kwargs)
    most = context([75.0], [100.0])
    most.capacity_adjusted_max_replicas = 6
    assert by_value(most)[0] > 1
    fixed = serve.deployment(**_scaling(ShardSettings(num_replicas=3)))(Shard)
    assert fixed.num_replicas == 3
