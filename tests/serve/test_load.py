"""The load controller against a simulated service at half to three times its capacity.

Capacity is the rate at which p99 is twice the unloaded time, as in `benchmarks/serving.py`.
"""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rematch_ray.serve.load import LoadController, scale_up_utilisation
from rematch_ray.serve.settings import LoadSettings
from tests.serve.simulation import Clock, Run, Service

LADDER_S = (0.030, 0.012, 0.006, 0.004, 0.003)  # (16,64) to (1,1)
UNLOADED_S = 1.1 * LADDER_S[0]  # p99: service times vary by a tenth
NOISE = 1.1  # of the p99 of a few hundred requests
OFF = LoadSettings(enabled=False)
MINUTE = 60.0


def capacity(servers: int) -> float:
    """Requests per second at which p99 at the top rung is twice the unloaded time."""
    low, high = 0.0, servers / LADDER_S[0]
    for _ in range(8):
        rate = (low + high) / 2
        service = Service(LADDER_S[:1], servers, OFF)
        fits = service.run(lambda t, r=rate: r, 200.0, seed=1).p99() <= 2 * UNLOADED_S
        low, high = (rate, high) if fits else (low, rate)
    return low


@pytest.fixture(scope="module", params=[1, 2, 4], ids=lambda k: f"{k}-servers")
def servers(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def at_capacity(servers: int) -> float:
    return capacity(servers)


def overload(servers: int, rate: float, settings: LoadSettings | None = None) -> Run:
    service = Service(LADDER_S, servers, settings or LoadSettings())
    return service.run(lambda t: rate, MINUTE, seed=2)


@pytest.mark.parametrize("times", [0.5, 1.0, 1.5, 2.0, 3.0])
def test_p99_stays_within_twice_the_unloaded_time(
    servers: int, at_capacity: float, times: float
) -> None:
    run = overload(servers, times * at_capacity)
    assert run.p99(start=10.0) <= 2 * UNLOADED_S * NOISE
    assert not run.refused
    assert run.level_changes(start=10.0) <= 6


def test_without_the_controller_it_does_not(servers: int, at_capacity: float) -> None:
    assert overload(servers, 3 * at_capacity, OFF).p99() > 3 * UNLOADED_S


def test_below_half_of_its_capacity_nothing_is_lowered(servers: int, at_capacity: float) -> None:
    run = overload(servers, 0.5 * at_capacity)
    assert {level for _, level in run.levels} == {0}


def test_nothing_is_refused_below_the_capacity_of_the_floor(servers: int) -> None:
    service = Service(LADDER_S, servers)
    rate = 0.9 * servers / LADDER_S[-1]
    # from nothing to 90 % of what the floor can do, at once
    run = service.run(lambda t: rate if t > 5 else 1.0, MINUTE, seed=3)
    assert not run.refused
    assert run.p99(start=30.0) <= 2 * UNLOADED_S * NOISE


def test_beyond_the_floor_the_excess_is_refused_and_the_rest_is_answered(servers: int) -> None:
    floor = servers / LADDER_S[-1]
    run = Service(LADDER_S, servers).run(lambda t: 1.5 * floor, MINUTE, seed=4)
    answered = sum(at > 20 for at in run.arrived) / (MINUTE - 20)
    assert 0.95 * floor < answered < 1.02 * floor
    assert run.p99(start=5.0) <= 2 * UNLOADED_S
    levels = run.levels_between(5.0, MINUTE)
    assert min(levels) == len(LADDER_S) - 1
    first = run.refused[0]
    assert run.levels_between(first - 0.2, first)[-1] == len(LADDER_S) - 1


def test_the_ceiling_returns_after_a_rush(servers: int, at_capacity: float) -> None:
    rush = Service(LADDER_S, servers)
    run = rush.run(lambda t: (3.0 if 10 < t < 30 else 0.4) * at_capacity, 2 * MINUTE, seed=5)
    assert max(run.levels_between(10, 30)) >= 1
    assert max(run.levels_between(90, 120)) == 0
    upwards = [
        at
        for (at, level), (_, before) in zip(run.levels[1:], run.levels, strict=False)
        if level < before
    ]
    assert all(b - a >= LoadSettings().raise_after_s - 0.01 for a, b in itertools.pairwise(upwards))


@pytest.mark.parametrize("rate", [5.0, 20.0, 60.0])
def test_waits_that_no_budget_shortens_lower_none(servers: int, rate: float) -> None:
    # requests wait twice the target for something else, and searches of 3 ms for next to nothing
    rungs = (0.003, 0.002, 0.0015, 0.0012, 0.001)
    service = Service(rungs, servers, elsewhere_s=0.006)
    levels = [level for _, level in service.run(lambda t: rate, 4 * MINUTE, seed=8).levels]
    assert levels.count(0) > 0.9 * len(levels)
    assert max(levels) <= 2


def test_beside_such_waits_overload_is_still_answered(servers: int, at_capacity: float) -> None:
    service = Service(LADDER_S, servers, elsewhere_s=0.006)
    run = service.run(lambda t: (0.3 if t < MINUTE else 3.0) * at_capacity, 2 * MINUTE, seed=9)
    assert run.p99(start=MINUTE + 10) <= 2 * UNLOADED_S * NOISE
    assert max(run.levels_between(MINUTE + 10, 2 * MINUTE)) >= 1
    assert not run.refused


def test_explicit_requests_are_refused_before_auto_ones_leave_the_floor() -> None:
    service = Service(LADDER_S, 2, explicit_share=0.3)
    # within half a minute from nothing to 80 % of what the floor can do
    run = service.run(lambda t: min(1.0, (1 + t) / 30) * 0.8 * 2 / LADDER_S[-1], MINUTE, seed=6)
    assert len(run.refused_explicit) > 1000
    assert not run.refused


def test_a_pause_of_one_moment_lowers_nothing() -> None:
    clock, settings = Clock(), LoadSettings()
    load = LoadController(5, settings, clock, unloaded_s=0.02)
    for step in range(200):
        clock.now = 0.2 * step
        load.observe(0.05 if step == 100 else 0.0, 20, "router")
        load.tick()
        assert load.level == 0


def test_steps_down_come_one_per_interval() -> None:
    clock, settings = Clock(), LoadSettings(interval_s=0.5)
    load = LoadController(5, settings, clock, unloaded_s=0.02)
    levels = []
    for step in range(40):
        clock.now = 0.1 * step
        load.observe(0.1 + 0.1 * clock.now, 10, "router")
        load.tick()
        levels.append(load.level)
    assert levels[-1] == 4
    for earlier, later in zip(levels, levels[5:], strict=False):
        assert later - earlier <= 1


def test_a_service_that_stands_still_counts_as_waiting() -> None:
    clock = Clock()
    load = LoadController(3, LoadSettings(), clock, unloaded_s=0.02)
    for step in range(1, 20):
        clock.now = 0.2 * step
        load.observe(clock.now, 0, "router")
        load.tick()
    assert load.level == 2


def test_an_idle_router_does_not_hide_what_another_sees() -> None:
    clock = Clock()
    load = LoadController(3, LoadSettings(), clock, unloaded_s=0.02)
    for step in range(1, 50):
        clock.now = 0.1 * step
        busy = step % 2 == 0
        load.observe(0.1 + clock.now if busy else 0.0, 20 if busy else 0, f"router-{step % 2}")
        load.tick()
    assert load.level == 2


def test_one_rung_alone_is_floor_and_top() -> None:
    clock = Clock()
    load = LoadController(1, LoadSettings(), clock)
    for step in range(1, 50):
        clock.now = 0.2 * step
        load.observe(clock.now, 10, "router")
        load.tick()
    assert (load.level, load.refusing, load.refuses_explicit) == (0, True, True)


def drive(
    load: LoadController, clock: Clock, delay_s: float, seconds: float, requests: int = 20
) -> None:
    """So many seconds of so many requests each 0.2 s that wait so long."""
    for _ in range(round(seconds / 0.2)):
        clock.now += 0.2
        load.observe(delay_s, requests, "router")
        load.tick()


def held_for(load: LoadController, clock: Clock) -> list[float]:
    """How long the top rung is not tried again, each of three times that it fails."""
    held = []
    for _ in range(3):
        while load.level == 0:
            drive(load, clock, 0.02, 0.2)
        failed_at = clock.now
        while load.level == 1:
            drive(load, clock, 0.0, 0.2)
        held.append(clock.now - failed_at)
    return held


@pytest.mark.parametrize(
    ("settings", "target_s"),
    [
        (LoadSettings(), 0.003),
        (LoadSettings(target_share=0.5), 0.015),
        (LoadSettings(target_delay_ms=7), 0.007),
    ],
)
def test_the_target_is_a_share_of_a_search_or_as_given(
    settings: LoadSettings, target_s: float
) -> None:
    load = LoadController(5, settings, Clock(), unloaded_s=0.03)
    assert load.target_s == pytest.approx(target_s)


@pytest.mark.parametrize("first", [1, 2, 3, 9])
def test_explicit_requests_are_refused_from_the_level_that_is_set(first: int) -> None:
    clock = Clock()
    load = LoadController(5, LoadSettings(explicit_from_level=first), clock)
    while load.level < 4:
        assert load.refuses_explicit == (load.level >= first)
        drive(load, clock, 0.1 + clock.now, 0.2)
    assert load.refuses_explicit


def test_a_rung_that_was_too_dear_is_tried_again_later_each_time() -> None:
    clock = Clock()
    load = LoadController(2, LoadSettings(probe_after_s=20, raise_after_s=2), clock)
    assert held_for(load, clock) == [pytest.approx(at, abs=1.5) for at in (20, 40, 80)]


@pytest.mark.parametrize("seconds", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("seed", range(4))
def test_after_a_pause_a_rung_that_had_served_this_rate_is_not_held_for_too_dear(
    seconds: float, seed: int
) -> None:
    # for a moment everything takes ten times as long: a neighbour, a merge, a disk
    service = Service(
        (0.008, 0.005, 0.004, 0.003, 0.0025),
        explicit_share=1 / 3,
        slowdown=lambda t: 10.0 if 100 <= t < 100 + seconds else 1.0,
    )
    run = service.run(lambda t: 15.0, 4 * MINUTE, seed=seed)
    assert max(run.levels_between(100, 110)) >= 1
    assert max(run.levels_between(100 + seconds + 25, 4 * MINUTE)) == 0
    assert len(run.refused_explicit) < 100


def test_what_a_rung_has_served_is_believed_for_one_way_down() -> None:
    clock = Clock()
    load = LoadController(2, LoadSettings(probe_after_s=20, raise_after_s=2), clock)
    drive(load, clock, 0.0, 40)
    assert held_for(load, clock) == [pytest.approx(at, abs=1.5) for at in (2, 20, 40)]


def test_slow_first_searches_hold_no_rung_for_too_dear() -> None:
    # each of the first searches takes a second, whatever the budget
    service = Service(LADDER_S, 2, slowdown=lambda t: 40.0 if t < 4 else 1.0)
    run = service.run(lambda t: 2.0 if t < 4 else 12.0, 2 * MINUTE, seed=1)
    assert max(run.levels_between(0, 10)) >= 1
    assert max(run.levels_between(35, 2 * MINUTE)) == 0


def test_at_more_than_a_rung_has_served_it_may_be_too_dear() -> None:
    clock = Clock()
    load = LoadController(2, LoadSettings(probe_after_s=20, raise_after_s=2), clock)
    drive(load, clock, 0.0, 35)
    drive(load, clock, 0.0, 11, requests=80)  # calm, but not for long enough
    while load.level == 0:
        drive(load, clock, 0.02, 0.2, requests=80)
    failed_at = clock.now
    while load.level == 1:
        drive(load, clock, 0.0, 0.2, requests=80)
    assert clock.now - failed_at == pytest.approx(20, abs=1.5)


def test_a_step_in_vain_is_taken_back_and_tried_again_later_each_time() -> None:
    clock = Clock()
    load = LoadController(3, LoadSettings(probe_after_s=20), clock)
    lowered = []
    for _ in range(3):
        while load.level == 0:
            drive(load, clock, 0.01, 0.2)
        lowered.append(clock.now)
        drive(load, clock, 0.01, 2)
        assert load.level == 0
    pauses = [later - before for before, later in itertools.pairwise(lowered)]
    assert pauses == [pytest.approx(at, abs=1.5) for at in (20, 40)]


def test_a_step_is_kept_when_more_is_asked_than_before() -> None:
    clock = Clock()
    load = LoadController(3, LoadSettings(), clock)
    while load.level == 0:
        drive(load, clock, 0.01, 0.2)
    drive(load, clock, 0.0, 1)
    while load.level == 1:
        drive(load, clock, 0.01, 0.2, requests=80)
    assert load.level == 2


def test_new_replicas_or_longer_waits_end_the_pause_after_a_step_in_vain() -> None:
    for replicas in (True, False):
        clock = Clock()
        load = LoadController(3, LoadSettings(probe_after_s=600), clock)
        while load.level == 0:
            drive(load, clock, 0.01, 0.2)
        drive(load, clock, 0.01, 20)
        assert load.level == 0
        if replicas:
            load.capacity_changed()
        levels = []
        for _ in range(15):
            drive(load, clock, 0.011 if replicas else 0.018, 0.2)
            levels.append(load.level)
        assert max(levels) == 1


def test_fewer_requests_or_more_replicas_open_it_at_once() -> None:
    clock = Clock()
    load = LoadController(2, LoadSettings(probe_after_s=600), clock)
    while load.level == 0:
        drive(load, clock, 0.02, 0.2)
    drive(load, clock, 0.0, 20)
    assert load.level == 1
    load.capacity_changed()
    drive(load, clock, 0.0, 0.4)
    assert load.level == 0


@given(
    st.lists(
        st.tuples(st.floats(0.01, 2), st.floats(0, 1), st.integers(0, 200), st.integers(0, 50)),
        max_size=200,
    )
)
def test_it_refuses_at_the_floor_alone_and_explicit_requests_first(
    reports: list[tuple[float, float, int, int]],
) -> None:
    clock = Clock()
    load = LoadController(4, LoadSettings(), clock)
    before, changed = 0, -math.inf
    for elapsed, delay, count, refused in reports:
        clock.now += elapsed
        load.observe(delay, count, "router", refused=refused)
        load.tick()
        assert 0 <= load.level <= 3
        assert load.refusing == (load.bearable_s is not None)
        assert not load.refusing or (load.level == 3 and load.refuses_explicit)
        assert abs(load.level - before) <= 1
        if load.level != before:
            assert clock.now - changed >= LoadSettings().interval_s - 1e-9
            changed = clock.now
        before = load.level


@pytest.mark.parametrize("servers", [1, 2, 4, 8])
def test_replicas_are_added_before_budgets_are_lowered(servers: int) -> None:
    at_which = scale_up_utilisation(servers, LoadSettings().target_share)
    service = Service(LADDER_S, servers)
    # over five minutes from nothing to all that the servers can do at the top rung
    run = service.run(lambda t: (1 + t) / 300 * servers / LADDER_S[0], 300.0, seed=7)
    first = next(at for at, level in run.levels if level > 0)
    assert first / 300 > at_which
