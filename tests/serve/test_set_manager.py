"""The manager of the sets goes on after what nobody expected, and tells what failed."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve

from rematch_ray.serve import set_manager
from rematch_ray.serve.set_manager import Sets
from rematch_ray.serve.settings import ServeArgs
from rematch_ray.serve.swap import SetReport, SetSpec

OLD = SetSpec("", "/a", "/model-a")
NEW = SetSpec("app-set-1", "/b", "/model-b")


@pytest.fixture
def sets(monkeypatch: pytest.MonkeyPatch) -> Sets:
    monkeypatch.setattr(set_manager, "TICK_S", 0.01)
    monkeypatch.setattr("rematch_ray.serve.swap.LISTEN_S", 0.0)
    monkeypatch.setattr(serve, "get_replica_context", lambda: SimpleNamespace(app_name="app"))
    # no test is to start a set, nor Ray for it
    monkeypatch.setattr(set_manager, "build_set", lambda *values: None)
    monkeypatch.setattr(serve, "run", lambda *values, **options: None)
    monkeypatch.setattr(serve, "delete", lambda name: None)
    sets = Sets(ServeArgs(index=Path("/a"), allow_anonymous=True), OLD, "deployed")
    sets._has_swept = True
    return sets


async def until(is_so: Callable[[dict[str, Any]], bool], sets: Sets) -> dict[str, Any]:
    for _ in range(300):
        await sets.exchange(SetReport("router", OLD), "deployed")
        if is_so(status := await sets.status()):
            return status
        await asyncio.sleep(0.01)
    raise AssertionError(status)


async def test_it_goes_on_after_a_look_that_failed(
    sets: Sets, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [OSError("the file system is away")]

    def check(*pair: Any) -> SetSpec:
        if failures:
            raise failures.pop()
        return NEW

    monkeypatch.setattr(set_manager, "check_pair", check)
    await sets.reconfigure({"index": "/b"})
    await until(lambda status: not failures, sets)
    await sets.reconfigure({"index": "/b"})
    await until(lambda status: status["phase"] == "warming", sets)
    assert "the file system is away" in caplog.text


async def test_a_manager_that_starts_anew_keeps_what_came_after_its_configuration(
    sets: Sets, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[Path] = []

    def check(index: Path, *rest: Any) -> SetSpec:
        asked.append(index)
        return replace(NEW, index=str(index))

    async def looked_at(serving: SetSpec) -> None:
        for _ in range(10):
            await sets.exchange(SetReport("router", serving), "deployed")
            await asyncio.sleep(0.01)

    monkeypatch.setattr(set_manager, "check_pair", check)
    later = SetSpec("app-set-2", "/c", "/model-c")
    await sets.reconfigure({"index": "/b", "model": "/model-b"})
    await looked_at(later)
    assert ((await sets.status())["phase"], asked) == ("serving", [Path("/b")])
    assert (await sets.status())["serving"]["index"] == "/c"
    assert "/c serves on, although user_config of 'sets' names /b" in caplog.text
    # a change of the configuration is not a start
    await sets.reconfigure({"index": "/d"})
    await looked_at(later)
    assert asked == [Path("/b"), Path("/d")]
    assert (await sets.status())["phase"] == "warming"


async def test_a_manager_that_starts_takes_its_configuration_where_the_first_pair_serves(
    sets: Sets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(set_manager, "check_pair", lambda *pair: NEW)
    await sets.reconfigure({"index": "/b"})
    await until(lambda status: status["phase"] == "warming", sets)


async def test_a_manager_that_starts_anew_says_nothing_of_a_configuration_that_is_served(
    sets: Sets, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # what is named may be a link, or leave the model to the index
    monkeypatch.setattr(set_manager, "check_pair", lambda *pair: NEW)
    await sets.reconfigure({"index": "/link"})
    for _ in range(10):
        await sets.exchange(SetReport("router", NEW), "deployed")
        await asyncio.sleep(0.01)
    assert (await sets.status())["serving"]["index"] == NEW.index
    assert caplog.text == ""


async def test_a_set_that_does_not_come_up_ends_the_change_whatever_went_wrong(
    sets: Sets, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*values: Any) -> None:
        raise KeyError("rungs")

    monkeypatch.setattr(set_manager, "check_pair", lambda *pair: NEW)
    monkeypatch.setattr(set_manager, "build_set", broken)
    await until(lambda status: status["phase"] == "serving", sets)
    await sets.swap("/b", None)
    status = await until(lambda status: status["last"] is not None, sets)
    assert (status["phase"], status["last"]["done"]) == ("serving", False)
    assert "rungs" in status["last"]["error"]
