"""A change of model and index: nothing flips before every router has reached the new set, nothing
is removed while requests run on it, and what fails leaves the old set serving."""

import math
import random
from typing import Any

import pytest

from rematch_ray.serve.swap import (
    LISTEN_S,
    LIVE_S,
    PAUSE_S,
    Chores,
    Phase,
    SetOrders,
    SetReport,
    SetSpec,
    SwapBusyError,
    SwapManager,
)

OLD = SetSpec("app", "/index-a", "/model-a", 1, "a" * 64)
NEW = SetSpec("app-set-1", "/index-b", "/model-b", 2, "b" * 64)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Router:
    """What a router does with its orders."""

    def __init__(self, name: str, manager: SwapManager, serving: SetSpec | None = OLD) -> None:
        self.name, self.manager, self.serving = name, manager, serving
        self.in_flight: dict[str, int] = {}
        self.reaches, self.fails = True, ""
        self.reached: set[str] = set()

    def report(self) -> SetOrders:
        orders = self.manager.report(
            SetReport(
                self.name,
                self.serving,
                frozenset(self.reached),
                {NEW.name: self.fails} if self.fails and not self.reaches else {},
                dict(self.in_flight),
            )
        )
        if orders.serving is not None:
            self.serving = orders.serving
        if orders.coming is not None and self.reaches:
            self.reached.add(orders.coming.name)
        return orders


def listened(manager: SwapManager, clock: Clock) -> None:
    """As long as a new manager listens, in the steps of one that runs."""
    for _ in range(math.ceil(LISTEN_S / PAUSE_S)):
        clock.now += PAUSE_S
        manager.tick()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def manager(clock: Clock) -> SwapManager:
    """One that serves OLD and has listened long enough."""
    made = SwapManager(OLD, clock=clock, warm_timeout_s=100, drain_timeout_s=30)
    listened(made, clock)
    return made


def test_a_set_is_started_once_reached_flipped_to_drained_and_removed(
    manager: SwapManager, clock: Clock
) -> None:
    routers = [Router("r1", manager), Router("r2", manager)]
    for router in routers:
        router.report()
    manager.begin(NEW)
    assert manager.tick() == Chores(start=NEW)
    assert manager.tick() == Chores()
    assert routers[0].report() == SetOrders(OLD), "not before it is up"
    manager.started(NEW)
    routers[0].in_flight = {OLD.name: 2}
    for router in (*routers, routers[0]):
        assert router.report().serving == OLD, "not before all have reached it"
    assert routers[1].report().serving == NEW
    assert manager.phase == Phase.FLIPPING
    assert routers[0].report().serving == NEW
    routers[0].report()
    routers[1].report()
    assert manager.phase == Phase.DRAINING
    assert manager.tick() == Chores(), "two requests run there"
    assert manager.status()["draining"]["requests"] == 2
    routers[0].in_flight = {OLD.name: 0, NEW.name: 5}
    routers[0].report()
    assert manager.tick() == Chores(remove=(OLD,))
    assert manager.tick() == Chores()
    status = manager.status()
    assert (status["phase"], status["serving"]["index"]) == ("serving", "/index-b")
    assert status["last"] == {**NEW.to_json(), "done": True, "error": None, "cut_off": 0}


def test_a_set_that_does_not_come_up_is_removed_and_the_old_one_serves(
    manager: SwapManager, clock: Clock
) -> None:
    router = Router("r", manager)
    manager.begin(NEW)
    manager.tick()
    manager.failed(NEW, "no such GPU")
    assert router.report() == SetOrders(OLD)
    assert manager.tick() == Chores(remove=(NEW,))
    assert manager.status()["last"]["error"] == "no such GPU"
    manager.begin(NEW)
    assert manager.tick() == Chores(start=NEW), "it may be tried again"


@pytest.mark.parametrize("how", ["refuses", "silent", "no router"])
def test_a_set_that_a_router_cannot_reach_is_not_flipped_to(
    manager: SwapManager, clock: Clock, how: str
) -> None:
    routers = [] if how == "no router" else [Router("r1", manager), Router("r2", manager)]
    for router in routers[1:]:
        router.reaches, router.fails = False, "the encoder died" if how == "refuses" else ""
    for router in routers:
        router.report()
    manager.begin(NEW)
    removed: list[Any] = [*manager.tick().remove]
    manager.started(NEW)
    for _ in range(110):
        clock.now += 1
        assert all(router.report().serving == OLD for router in routers)
        removed += manager.tick().remove
    assert removed == [NEW]
    assert not manager.status()["last"]["done"]


def test_one_change_at_a_time(manager: SwapManager) -> None:
    manager.begin(NEW)
    with pytest.raises(SwapBusyError, match="under way"):
        manager.begin(OLD)


def flipped(manager: SwapManager, *routers: Router) -> None:
    """All routers serve NEW, and the manager has been told so."""
    for router in routers:
        router.report()
    manager.begin(NEW)
    manager.tick()
    manager.started(NEW)
    for _ in range(4):
        for router in routers:
            router.report()
    assert manager.phase == Phase.DRAINING


def test_a_router_that_died_is_not_waited_for(manager: SwapManager, clock: Clock) -> None:
    alive, dead = Router("alive", manager), Router("dead", manager)
    dead.in_flight = {OLD.name: 7}
    flipped(manager, alive, dead)
    for half_seconds in range(int(3 * LIVE_S)):
        clock.now += 0.5
        alive.report()
        if OLD in manager.tick().remove:
            assert half_seconds >= 2 * LIVE_S - 1
            break
    else:
        raise AssertionError("the dead one is waited for")


def test_a_manager_that_was_held_up_does_not_take_its_routers_for_dead(
    manager: SwapManager, clock: Clock
) -> None:
    first, second = Router("first", manager), Router("second", manager)
    first.in_flight = second.in_flight = {OLD.name: 1}
    flipped(manager, first, second)
    clock.now += LIVE_S + 5  # nobody was heard, since nobody listened
    assert manager.tick() == Chores()
    first.in_flight = {}
    first.report()
    assert manager.tick() == Chores()
    assert manager.status()["draining"]["requests"] == 1


def test_requests_that_never_end_do_not_keep_the_old_set_for_ever(
    manager: SwapManager, clock: Clock
) -> None:
    router = Router("r", manager)
    router.in_flight = {OLD.name: 1}
    router.report()
    manager.begin(NEW)
    manager.tick()
    manager.started(NEW)
    removed: tuple[SetSpec, ...] = ()
    for _ in range(64):
        clock.now += 0.5
        router.report()
        removed += manager.tick().remove
    assert removed == (OLD,)
    assert manager.status()["last"]["cut_off"] == 1


def test_a_manager_that_starts_anew_goes_by_what_routers_serve(clock: Clock) -> None:
    manager = SwapManager(OLD, clock=clock)
    fresh = Router("fresh", manager, serving=None)
    assert fresh.report() == SetOrders(), "it waits to be told"
    serving = Router("serving", manager, serving=NEW)
    assert serving.report() == SetOrders(), "and stays where it is"
    with pytest.raises(SwapBusyError):
        manager.begin(OLD)
    listened(manager, clock)
    assert fresh.report() == SetOrders(NEW)
    assert serving.report() == SetOrders(NEW)


def test_a_new_manager_that_was_held_up_has_not_listened(clock: Clock) -> None:
    manager = SwapManager(OLD, clock=clock)
    clock.now += 10 * LISTEN_S  # the machine was busy: nobody could be heard
    manager.tick()
    serving = Router("serving", manager, serving=NEW)
    assert serving.report() == SetOrders(), "OLD is not put back"
    listened(manager, clock)
    assert serving.report() == SetOrders(NEW)


def test_a_manager_that_starts_with_its_application_serves_the_first_set(clock: Clock) -> None:
    manager = SwapManager(OLD, clock=clock)
    router = Router("r", manager, serving=None)
    router.report()
    listened(manager, clock)
    assert router.report() == SetOrders(OLD)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_no_set_is_removed_under_a_request_that_could_end(
    seed: int, manager: SwapManager, clock: Clock
) -> None:
    draw = random.Random(seed)
    routers = [Router(f"r{n}", manager) for n in range(3)]
    specs = iter(SetSpec(f"app-set-{n}", f"/{n}", "/m") for n in range(1000))
    alive = {OLD.name}
    for _ in range(600):
        clock.now += draw.random() * 0.3
        if manager.phase == Phase.SERVING and draw.random() < 0.1:
            manager.begin(next(specs))
        chores = manager.tick()
        if chores.start is not None:
            if draw.random() < 0.3:
                manager.failed(chores.start, "no luck")
            else:
                alive.add(chores.start.name)
                manager.started(chores.start)
        for gone in chores.remove:
            alive.discard(gone.name)
        router = draw.choice(routers)
        assert router.serving is not None
        if draw.random() < 0.5:
            router.in_flight[router.serving.name] = router.in_flight.get(router.serving.name, 0) + 1
        else:  # requests end quickly
            router.in_flight = {}
        router.report()
        for each in routers:
            each.report()
            assert each.serving is not None
            assert each.serving.name in alive
            assert all(name in alive for name, running in each.in_flight.items() if running)
