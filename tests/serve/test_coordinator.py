"""The coordinator: one exchange carries state, ceiling and leases."""

from pathlib import Path
from typing import Any

import pytest

from rematch_ray.serve.coordinator import Coordinator
from rematch_ray.serve.leases import Demand
from rematch_ray.serve.settings import ApiKey, LoadSettings, QuotaSettings, ServeArgs
from rematch_ray.serve.waits import Waits
from rematch_ray.serve.wire import RouterReport, ShardReport, State
from tests.serve.local import Clock


def coordinator(clock: Clock, **fields: Any) -> Coordinator:
    load = LoadSettings(target_delay_ms=5.0)
    args = ServeArgs(index=Path("/an/index"), load=load, allow_anonymous=True, **fields)
    return Coordinator(1, 3, args, clock=clock)


async def test_routers_learn_the_state_that_the_shards_reported() -> None:
    one = coordinator(Clock())
    assert (await one.exchange(RouterReport("r"))).state is None
    await one.report(ShardReport(0, "a", {"generation-000001": "generation-000001"}))
    orders = await one.exchange(RouterReport("r"))
    assert orders.state == State("generation-000001", ("generation-000001",))


async def test_long_waits_lower_the_ceiling_to_the_floor_and_calm_raises_it() -> None:
    clock = Clock()
    one = coordinator(clock)
    levels = []
    for _ in range(40):
        clock.now += 0.2
        orders = await one.exchange(RouterReport("r", delay_s=0.2, searches=20))
        levels.append(orders.level)
    assert levels[0] == 0
    assert sorted(set(levels)) == [0, 1, 2]
    assert orders.refuses_explicit
    for _ in range(2000):
        clock.now += 0.2
        orders = await one.exchange(RouterReport("r", delay_s=0.0, searches=1))
    assert (orders.level, orders.bearable_s, orders.refuses_explicit) == (0, None, False)


async def test_demand_is_answered_with_leases() -> None:
    keys = (ApiKey(name="small", sha256="0" * 64, requests_per_s=10.0),)
    one = coordinator(Clock(), api_keys=keys, quotas=QuotaSettings(burst_s=1.0))
    report = RouterReport("r", demand={"small": Demand(100.0, 5.0), "other": Demand(1.0, 1.0)})
    leases = (await one.exchange(report)).leases
    assert leases["small"].requests == pytest.approx(10.0)
    assert leases["other"].requests == float("inf")


def test_what_still_waits_counts_with_its_wait_so_far() -> None:
    clock = Clock()
    waits = Waits(clock)
    first, second = waits.begin(0.01), waits.begin(0.01)
    waits.end(first, 0.002)
    assert waits.take() == (pytest.approx(0.002), 1)
    clock.now += 1.01
    assert waits.take() == (pytest.approx(1.0), 0)
    waits.end(second, None)
    assert waits.take() == (0.0, 0)
    assert waits.running == 0
