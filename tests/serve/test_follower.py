"""How a router follows the states that its coordinator names, without losing touch with it."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest

from rematch_ray.index.build import build_index
from rematch_ray.index.changes import add_documents
from rematch_ray.serve.backend import NotReadyError, SearchPlan
from rematch_ray.serve.follower import Follower
from rematch_ray.serve.wire import Orders, State
from tests.serve.local import (
    LocalShard,
    Mute,
    StubCoordinator,
    embeddings,
    moved_to,
    query,
    router_over,
    shards_of,
    state,
)


@dataclass
class Following:
    """A follower on the first of three states.

    Attributes:
        facts: of the others come when they are let go.
    """

    follower: Follower
    coordinator: StubCoordinator
    shard: LocalShard
    facts: Mute

    @property
    def state(self) -> State | None:
        current = self.follower.current
        return None if current is None else current.state


@pytest.fixture
async def following(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Following:
    build_index(embeddings(tmp_path / "first", 60, 1), tmp_path / "index")
    [shard] = shards_of(tmp_path / "index", 1)
    coordinator = StubCoordinator()
    router = router_over([shard], coordinator=coordinator)
    await router.search(query(), SearchPlan(budget="4x8"))
    router.follower.stop()  # the tests exchange themselves
    for number in (2, 3):
        more = embeddings(tmp_path / f"{number}", 1, 5, ids=[f"n{number}"])
        add_documents(tmp_path / "index", more)
        shard.shard._held.look()
    facts = Mute(shard.shard.facts)
    monkeypatch.setattr(shard.shard, "facts", facts)
    shard.calls.clear()
    coordinator.reports.clear()
    return Following(router.follower, coordinator, shard, facts)


async def test_reports_go_on_while_a_state_is_being_fetched(following: Following) -> None:
    for number in (2, 3, 3):
        following.coordinator.orders = Orders(state=state(number), level=number)
        await asyncio.wait_for(following.follower.exchange(), 5)
        await asyncio.sleep(0)
    assert len(following.coordinator.reports) == 3
    assert following.follower.orders.level == 3
    assert following.shard.calls == ["facts"]  # no two at a time
    assert following.state == state(1)
    following.facts.may_answer.set()
    await moved_to(following.follower, 3)
    assert following.shard.calls == ["facts", "facts"]


async def test_a_request_that_moved_on_is_not_moved_back_by_facts_that_come_late(
    following: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    following.coordinator.orders = Orders(state=state(2))
    exchange = asyncio.ensure_future(following.follower.exchange())
    await asyncio.sleep(0.05)
    assert following.shard.calls == ["facts"]
    monkeypatch.setattr(following.shard.shard, "facts", following.facts.real)
    await following.follower.readmit(following.follower.current)
    following.facts.may_answer.set()
    await exchange
    await asyncio.sleep(0.1)
    assert following.state == state(3)


async def test_a_state_that_cannot_be_fetched_is_told_and_tried_again(
    following: Following, caplog: pytest.LogCaptureFixture
) -> None:
    following.facts.may_answer.set()
    following.shard.failures = [NotReadyError("the shard was lost"), ValueError("a bug")]
    following.coordinator.orders = Orders(state=state(2))
    await moved_to(following.follower, 2)
    assert "not moving on to generation-000002 yet: the shard was lost" in caplog.text
    assert "a bug" in caplog.text
