"""A request stays on the set that served when it came; a set is kept while requests run on it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from rematch_ray.errors import UserError
from rematch_ray.serve.backend import NotReadyError
from rematch_ray.serve.set_backend import PinToSet, SetBackend
from rematch_ray.serve.swap import SetOrders, SetReport, SetSpec

OLD = SetSpec("", "/a", "/model-a")
NEW = SetSpec("app-set-1", "/b", "/model-b", 2)


class Part:
    """A set's backend that says which set it is."""

    def __init__(self, spec: SetSpec) -> None:
        self.spec = spec
        self.is_closed = False
        self.readiness: Exception | None = None

    async def payload(self, document_id: str) -> Any:
        assert not self.is_closed
        return {"set": self.spec.name}

    async def ready(self) -> None:
        if self.readiness is not None:
            raise self.readiness

    async def served(self) -> Any:
        return None

    def close(self) -> None:
        self.is_closed = True


class Manager:
    """Orders as told; keeps the reports."""

    def __init__(self) -> None:
        self.orders = SetOrders(OLD)
        self.reports: list[SetReport] = []
        self.is_silent = False

    async def exchange(self, report: SetReport) -> SetOrders:
        if self.is_silent:
            raise NotReadyError("the manager does not answer")
        self.reports.append(report)
        return self.orders


class Made:
    """A backend over such sets."""

    def __init__(self, manager: Manager | None) -> None:
        self.parts: dict[str, Part] = {}
        self.reached = 0
        self.failures: list[Exception] = []
        self.backend = SetBackend(OLD, self.reach, manager)

    async def reach(self, spec: SetSpec) -> Any:
        self.reached += 1
        await asyncio.sleep(0)
        if self.failures:
            raise self.failures.pop(0)
        return self.parts.setdefault(spec.name, Part(spec))

    async def asks(self) -> str:
        payload: Any = await self.backend.payload("x")
        return str(payload["set"])


Run = Callable[[Manager, Made], Awaitable[None]]


def run(test: Run, manager: Manager | None = None) -> None:
    manager = manager or Manager()

    async def inside() -> None:
        made = Made(manager)
        made.backend.start = lambda: None  # type: ignore[method-assign]
        await made.backend.exchange()
        await test(manager, made)

    asyncio.run(inside())


def test_a_request_stays_on_its_set_and_the_next_one_goes_to_the_new() -> None:
    async def test(manager: Manager, made: Made) -> None:
        with made.backend.pinned(await made.backend.admitted()):
            assert await made.asks() == OLD.name
            manager.orders = SetOrders(NEW)
            await made.backend.exchange()
            assert await made.asks() == OLD.name
            assert await asyncio.gather(made.asks(), made.asks()) == [OLD.name] * 2
            assert not made.parts[OLD.name].is_closed
            await made.backend.exchange()
            assert manager.reports[-1].in_flight[OLD.name] == 1
        assert await made.asks() == NEW.name
        await made.backend.exchange()
        assert made.parts[OLD.name].is_closed
        await made.backend.exchange()
        assert OLD.name not in manager.reports[-1].in_flight
        assert manager.reports[-1].serving == NEW

    run(test)


def test_concurrent_requests_are_pinned_apart() -> None:
    async def test(manager: Manager, made: Made) -> None:
        is_flipped = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            seen = [await made.asks()]
            if scope["waits"]:
                await is_flipped.wait()
            seen.append(await made.asks())
            scope["seen"] = seen

        layer = PinToSet(app, made.backend)
        early: dict[str, Any] = {"type": "http", "waits": True}
        late: dict[str, Any] = {"type": "http", "waits": False}
        none: Any = None
        running = asyncio.create_task(layer(early, none, none))
        await asyncio.sleep(0.01)
        manager.orders = SetOrders(NEW)
        await made.backend.exchange()
        await layer(late, none, none)
        is_flipped.set()
        await running
        assert (early["seen"], late["seen"]) == ([OLD.name] * 2, [NEW.name] * 2)

    run(test)


def test_a_set_that_comes_is_reached_once_and_told_when_it_is_ready() -> None:
    async def test(manager: Manager, made: Made) -> None:
        await made.asks()
        made.parts[NEW.name] = Part(NEW)
        made.parts[NEW.name].readiness = NotReadyError("the encoder does not answer yet")
        manager.orders = SetOrders(OLD, coming=NEW)
        for _ in range(3):
            await made.backend.exchange()
            await asyncio.sleep(0.01)
        assert manager.reports[-1].reached == frozenset()
        made.parts[NEW.name].readiness = None
        await asyncio.sleep(0.6)
        await made.backend.exchange()
        assert manager.reports[-1].reached == {NEW.name}
        assert await made.asks() == OLD.name
        assert made.reached == 2

    run(test)


def test_a_set_that_cannot_be_is_told_and_forgotten() -> None:
    async def test(manager: Manager, made: Made) -> None:
        made.parts[NEW.name] = Part(NEW)
        made.parts[NEW.name].readiness = UserError("the index is damaged")
        manager.orders = SetOrders(OLD, coming=NEW)
        await made.backend.exchange()
        await asyncio.sleep(0.01)
        await made.backend.exchange()
        assert manager.reports[-1].failed == {NEW.name: "the index is damaged"}
        manager.orders = SetOrders(OLD)
        await made.backend.exchange()
        await made.backend.exchange()
        assert manager.reports[-1].failed == {}
        assert made.parts[NEW.name].is_closed

    run(test)


def test_without_a_manager_the_first_set_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        assert await Made(None).asks() == OLD.name
        monkeypatch.setattr("rematch_ray.serve.set_backend.TOLD_S", 0.05)
        silent = Manager()
        silent.is_silent = True
        assert await Made(silent).asks() == OLD.name

    asyncio.run(test())


def test_a_router_that_is_new_waits_until_it_is_told() -> None:
    async def test() -> None:
        manager = Manager()
        manager.orders = SetOrders()
        made = Made(manager)
        asked = asyncio.create_task(made.asks())
        await asyncio.sleep(0.3)
        assert not asked.done()
        assert manager.reports[-1].serving is None
        manager.orders = SetOrders(NEW)
        assert await asked == NEW.name

    asyncio.run(test())


def test_a_router_goes_on_following_after_an_exchange_that_failed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("rematch_ray.serve.set_backend.EXCHANGE_S", 0.01)

    async def test() -> None:
        manager = Manager()
        made = Made(manager)
        assert await made.asks() == OLD.name
        made.failures = [OSError("the controller is away")]
        manager.orders = SetOrders(NEW)
        for _ in range(200):
            if manager.reports[-1].serving == NEW:
                break
            await asyncio.sleep(0.01)
        assert await made.asks() == NEW.name
        assert "the controller is away" in caplog.text

    asyncio.run(test())


def test_a_new_router_never_serves_another_set_than_it_was_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rematch_ray.serve.set_backend.TOLD_S", 0.05)

    async def test() -> None:
        manager = Manager()
        manager.orders = SetOrders(NEW)
        made = Made(manager)
        made.failures = [NotReadyError("not there yet") for _ in range(3)]
        for _ in range(2):
            with pytest.raises(NotReadyError, match="not there yet"):
                await made.asks()
        for _ in range(200):
            if not made.failures:
                break
            await asyncio.sleep(0.01)
        assert await made.asks() == NEW.name

    asyncio.run(test())


def test_a_manager_that_speaks_late_is_followed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rematch_ray.serve.set_backend.TOLD_S", 0.05)

    async def test() -> None:
        manager = Manager()
        manager.is_silent = True
        made = Made(manager)
        assert await made.asks() == OLD.name
        manager.is_silent, manager.orders = False, SetOrders(NEW)
        made.failures = [NotReadyError("not there yet")]
        with pytest.raises(NotReadyError):
            await made.backend.exchange()
        assert await made.asks() == NEW.name

    asyncio.run(test())


def test_a_set_that_fails_to_be_reached_is_tried_again_and_then_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("rematch_ray.serve.set_backend._RETRY_S", 0.01)

    async def warmed(manager: Manager, made: Made, failures: int) -> SetReport:
        made.failures = [OSError("no such device") for _ in range(failures)]
        manager.orders = SetOrders(OLD, coming=NEW)
        for _ in range(200):
            await made.backend.exchange()
            if manager.reports[-1].reached or manager.reports[-1].failed:
                break
            await asyncio.sleep(0.01)
        return manager.reports[-1]

    async def passes(manager: Manager, made: Made) -> None:
        assert (await warmed(manager, made, 2)).reached == {NEW.name}

    async def lasts(manager: Manager, made: Made) -> None:
        assert "no such device" in (await warmed(manager, made, 3)).failed[NEW.name]
        assert "no such device" in caplog.text

    run(passes)
    run(lasts)
