"""The router: admission, orders, refusals, the matching head and failures, over local shards."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rematch_ray.errors import UserError
from rematch_ray.index.build import build_index
from rematch_ray.index.changes import add_documents
from rematch_ray.index.search import SearchIndex
from rematch_ray.serve import deadline, follower
from rematch_ray.serve.backend import (
    Caller,
    DeadlineError,
    NotReadyError,
    OverloadedError,
    Rerank,
    SearchPlan,
    WriteResult,
)
from rematch_ray.serve.follower import OBEYED_S
from rematch_ray.serve.leases import LeasedQuota
from rematch_ray.serve.quotas import Lease, Quota
from rematch_ray.serve.router import Router
from rematch_ray.serve.wire import GenerationGoneError, Orders
from tests.index.tables import row, table
from tests.serve.local import (
    Clock,
    LocalShard,
    Mute,
    StubCoordinator,
    StubEncoder,
    embeddings,
    moved_to,
    query,
    router_over,
    shards_of,
    state,
)

FULL = SearchPlan(budget="4x8")
EVERYONE = Caller()


@pytest.fixture
def index(tmp_path: Path) -> Path:
    build_index(embeddings(tmp_path / "first", 60, 1), tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture
def shard(index: Path) -> LocalShard:
    [shard] = shards_of(index, 1)
    return shard


def obeying(shard: LocalShard, orders: Orders, **options: Any) -> tuple[Router, StubCoordinator]:
    coordinator = StubCoordinator(orders)
    return router_over([shard], coordinator=coordinator, **options), coordinator


async def test_a_search_is_one_call_and_says_what_it_took(index: Path, shard: LocalShard) -> None:
    router = router_over([shard])
    [expected] = SearchIndex.open(index).search(query(), budget="4x8")
    await router.search(query(), FULL)
    shard.calls.clear()
    answer = await router.search(query(), FULL)
    assert shard.calls == ["search"]
    assert answer.result.hits == expected.hits
    assert answer.dot_products == 60 * 32
    assert answer.search_ms > 0


async def test_a_request_stays_on_the_generation_it_was_admitted_to(
    index: Path, shard: LocalShard, tmp_path: Path
) -> None:
    router, coordinator = obeying(shard, Orders())
    await router.search(query(), FULL)
    add_documents(index, embeddings(tmp_path / "more", 1, 5, ids=["new"]))
    shard.shard._held.look()
    assert (await router.search(query(), FULL)).result.generation == "generation-000001"
    coordinator.orders = Orders(state=state(2))
    await moved_to(router.follower, 2)
    answer = await router.search(query(), FULL)
    assert (answer.result.generation, answer.result.live) == ("generation-000002", 61)


async def test_a_generation_that_is_gone_is_answered_from_the_current_one(
    index: Path, shard: LocalShard, tmp_path: Path
) -> None:
    router = router_over([shard])
    await router.search(query(), FULL)
    for number in range(3):
        add_documents(index, embeddings(tmp_path / f"{number}", 1, 5, ids=[f"n{number}"]))
        shard.shard._held.look()
    shard.calls.clear()
    answer = await router.search(query(), FULL)
    assert answer.result.live == 63
    assert shard.calls == ["search", "states", "facts", "search"]


async def test_an_index_that_changes_too_fast_is_not_retried_for_ever(shard: LocalShard) -> None:
    router = router_over([shard])
    await router.search(query(), FULL)
    gone = GenerationGoneError("gone")
    shard.failures = [gone]
    assert (await router.search(query(), FULL)).result.hits

    async def always_gone(asked: Any) -> Any:
        raise gone

    shard.search = always_gone  # type: ignore[method-assign]
    with pytest.raises(NotReadyError, match="changes faster"):
        await router.search(query(), FULL)


async def test_the_ceiling_lowers_auto_and_leaves_explicit_budgets(shard: LocalShard) -> None:
    router, _ = obeying(shard, Orders(level=2))
    await router.follower.exchange()
    lowered = await router.search(query(), SearchPlan())
    assert (lowered.result.budget, lowered.degraded) == ("1x1", ("load",))
    assert lowered.result.plan["chosen_by"].startswith("load")
    [asked] = shard.asked[-1]
    assert (asked.work, asked.as_asked) == (60 * 32, False)
    explicit = await router.search(query(), FULL)
    assert (explicit.result.budget, explicit.degraded) == ("4x8", ())


async def outcome(router: Router, plan: SearchPlan, caller: Caller = EVERYONE) -> str:
    """Code of the refusal; empty for an answer."""
    try:
        await router.begin_search(plan, caller)
        await router.search(query(), plan, caller)
    except OverloadedError as refused:
        return refused.code
    return ""


async def test_at_the_floor_no_more_is_begun_than_is_answered_in_time(shard: LocalShard) -> None:
    clock = Clock()
    router, coordinator = obeying(shard, Orders(level=2, bearable_s=0.05), clock=clock)
    await router.follower.exchange()
    for _ in range(5):
        # 200 a second
        for _ in range(200):
            number = router.follower.waits.begin(0.0)
            router.follower.waits.end(number, 0.0)
        clock.now += 1
        await router.follower.exchange()
    for _ in range(10):
        router.admit_search()
        router.follower.waits.begin(10.0)
    with pytest.raises(OverloadedError, match="no budget is small enough"):
        router.admit_search()
    assert await outcome(router, SearchPlan()) == "overloaded"
    await router.follower.exchange()
    assert sum(report.refused for report in coordinator.reports) == 2
    coordinator.orders = Orders(level=2)
    await router.follower.exchange()
    router.admit_search()
    assert await outcome(router, SearchPlan()) == ""


@pytest.mark.parametrize(("lag_s", "reported"), [(0.4, True), (0.0001, False)])
async def test_an_event_loop_that_does_not_keep_up_counts_as_waiting(
    shard: LocalShard, lag_s: float, reported: bool
) -> None:
    clock = Clock()
    router, coordinator = obeying(shard, Orders(), clock=clock)
    await router.search(query(), FULL)
    await router.follower.exchange()
    real = shard.search

    async def late(asked: Any) -> Any:
        found = await real(asked)
        clock.now += found.search_ms / 1e3 + lag_s
        return found

    shard.search = late  # type: ignore[method-assign]
    await router.search(query(), FULL)
    await router.follower.exchange()
    assert (coordinator.reports[-1].delay_s > 0.1) == reported


async def test_explicit_requests_above_the_ceiling_are_refused_before_auto(
    shard: LocalShard,
) -> None:
    router, _ = obeying(shard, Orders(level=1, refuses_explicit=True))
    await router.follower.exchange()
    for late in (router.search(query(), FULL), router.begin_search(FULL, EVERYONE)):
        with pytest.raises(OverloadedError, match="2x4") as full:
            await late
        assert full.value.code == "budget_unavailable"
    await router.search(query(), SearchPlan(budget="1x1"))
    await router.search(query(), SearchPlan())


async def test_a_silent_coordinator_is_obeyed_for_a_while_then_served_without(
    shard: LocalShard, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    router, coordinator = obeying(shard, Orders(level=2), clock=clock)
    await router.follower.exchange()
    coordinator.is_silent = True
    await router.follower.exchange()
    assert (await router.search(query(), SearchPlan())).degraded == ("load",)
    clock.now += OBEYED_S + 1
    await router.follower.exchange()
    assert (await router.search(query(), SearchPlan())).degraded == ()
    assert (await router.served()).load["coordinated"] is False
    assert caplog.text.count("without a ceiling") == 1
    coordinator.is_silent = False
    await router.follower.exchange()
    assert (await router.search(query(), SearchPlan())).degraded == ("load",)
    assert "answers again" in caplog.text


async def test_reports_go_out_by_themselves(shard: LocalShard) -> None:
    router, coordinator = obeying(shard, Orders(level=1))
    await router.search(query(), SearchPlan())
    for _ in range(100):
        if coordinator.reports:
            break
        await asyncio.sleep(0.02)
    assert coordinator.reports


async def test_deadlines_lower_auto_and_end_what_is_late(shard: LocalShard) -> None:
    clock = Clock()
    router = router_over([shard], clock=clock)
    await router.search(query(), SearchPlan())
    with pytest.raises(DeadlineError):
        await router.search(query(), SearchPlan(deadline=clock.now))
    calm = await router.search(query(), SearchPlan(deadline=clock.now + 60))
    assert (calm.result.budget, calm.degraded) == ("4x8", ())
    for _ in range(100):
        router.forecast.take("all > 4x8", 0, 5000.0)
    hurried = await router.search(query(), SearchPlan(deadline=clock.now + 4))
    assert (hurried.result.budget, hurried.degraded) == ("2x4", ("deadline",))
    explicit = await router.search(query(), replace(FULL, deadline=clock.now + 60))
    assert explicit.result.budget == "4x8"


def soon(router: Router, **asked: Any) -> SearchPlan:
    return SearchPlan(**asked, deadline=router.follower._clock() + 0.2)


async def test_a_shard_that_does_not_answer_is_waited_for_until_the_deadline(
    shard: LocalShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadline, "GRACE_S", 0.05)
    router = router_over([shard])
    await router.search(query(), FULL)
    shard.search = mute = Mute(shard.search)  # type: ignore[method-assign,assignment]
    for budget in ("auto", "4x8"):
        with pytest.raises(DeadlineError, match="allow more time"):
            await asyncio.wait_for(router.search(query(), soon(router, budget=budget)), 30)
    await asyncio.sleep(0.2)
    assert (mute.given_up, router.follower.waits.running) == (2, 0)


async def test_a_caller_that_goes_takes_its_search_along(shard: LocalShard) -> None:
    router = router_over([shard])
    await router.search(query(), FULL)
    shard.search = mute = Mute(shard.search)  # type: ignore[method-assign,assignment]
    plan = SearchPlan(deadline=router.follower._clock() + 60)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(router.search(query(), plan), 0.05)
    await asyncio.sleep(0)
    assert (mute.given_up, router.follower.waits.running) == (1, 0)


async def test_what_is_late_is_learnt_from(shard: LocalShard) -> None:
    router = router_over([shard])
    await router.search(query(), FULL)
    expected_ms = router.forecast.delay_ms
    shard.search = mute = Mute(shard.search)  # type: ignore[method-assign,assignment]
    with pytest.raises(DeadlineError):
        await router.search(query(), soon(router))
    assert router.follower.waits.running == 1
    mute.may_answer.set()
    while router.follower.waits.running:
        await asyncio.sleep(0.01)
    assert router.forecast.delay_ms > expected_ms + 5


async def test_states_that_no_shard_tells_are_waited_for_until_the_deadline(
    shard: LocalShard,
) -> None:
    router = router_over([shard])
    shard.ask = Mute(shard.ask)  # type: ignore[method-assign,assignment]
    with pytest.raises(DeadlineError):
        await asyncio.wait_for(router.search(query(), soon(router)), 30)


async def test_a_head_that_does_not_answer_is_left_out_unless_it_is_forced(index: Path) -> None:
    [shard] = shards_of(index, 1)
    with_gain(shard, 0.01, 0.5)
    encoder = StubEncoder()
    router = router_over([shard], encoder=encoder)
    assert (await router.search(query(), SearchPlan(top_k=3))).rerank is not None
    for _ in range(100):
        router.forecast.take("match", 0, 0.1)
    encoder.match = Mute(encoder.match)  # type: ignore[method-assign]
    plan = SearchPlan(top_k=3, deadline=router.follower._clock() + 0.3)
    answer = await asyncio.wait_for(router.search(query(), plan), 30)
    assert (answer.rerank, answer.degraded) == (None, ("deadline",))
    assert len(answer.result.hits) == 3
    forced = replace(plan, rerank=Rerank(), deadline=router.follower._clock() + 0.3)
    with pytest.raises(DeadlineError):
        await asyncio.wait_for(router.search(query(), forced), 30)


async def test_quotas_are_taken_per_caller_and_settled(shard: LocalShard) -> None:
    clock = Clock()
    quotas = {"small": Quota.of(1.0, None, burst_s=2)}
    router = router_over([shard], quota=LeasedQuota(quotas, clock), clock=clock)
    small, other = Caller("small"), Caller("other")
    assert "quota_exceeded" in [await outcome(router, FULL, small) for _ in range(10)]
    assert [await outcome(router, FULL, other) for _ in range(10)] == [""] * 10


async def test_a_search_counts_once_and_pays_for_what_it_found(shard: LocalShard) -> None:
    clock = Clock()
    quotas = {"small": Quota.of(10, 100_000, burst_s=1)}
    router = router_over([shard], quota=LeasedQuota(quotas, clock), clock=clock)
    small = Caller("small")

    def left() -> tuple[float | None, float | None]:
        state = router.quota.state("small")
        return state.remaining_requests, state.remaining_dot_products

    left()
    router.quota.grant("small", Lease(10, 100_000, 60.0, 0.0, 0.0, 0.0))
    assert await outcome(router, FULL, small) == ""
    assert left() == (9, 100_000 - 60 * 32)
    for failure in (NotReadyError("lost"), UserError("the filter"), DeadlineError("late")):
        before = left()
        shard.failures = [failure]
        await router.begin_search(FULL, small)
        with pytest.raises(type(failure)):
            await router.search(query(), FULL, small)
        assert left() == (before[0] - 1, before[1])  # type: ignore[operator]
    shard.failures = [GenerationGoneError("gone")]
    assert await outcome(router, FULL, small) == ""
    assert left() == (5, 100_000 - 2 * 60 * 32)


@pytest.mark.parametrize("deadline_s", [None, 0.05])
async def test_a_caller_that_goes_pays_for_the_search_it_began(
    shard: LocalShard, monkeypatch: pytest.MonkeyPatch, deadline_s: float | None
) -> None:
    monkeypatch.setattr(deadline, "GRACE_S", 0.05)
    clock = Clock()
    quotas = {"small": Quota.of(None, 100_000, burst_s=1)}
    router = router_over([shard], quota=LeasedQuota(quotas, clock), clock=clock)
    router.quota.state("small")
    router.quota.grant("small", Lease(0, 100_000, 60.0, 0.0, 0.0, 0.0))
    shard.search = Mute(shard.search)  # type: ignore[method-assign,assignment]
    plan = replace(FULL, deadline=deadline_s and clock.now + deadline_s)
    with pytest.raises((TimeoutError, DeadlineError)):
        await asyncio.wait_for(router.search(query(), plan, Caller("small")), 0.2)
    await asyncio.sleep(0.1)
    assert router.quota.state("small").remaining_dot_products == 100_000 - 60 * 32


async def test_a_search_that_its_quota_cannot_pay_is_refused_before_it_has_vectors(
    shard: LocalShard,
) -> None:
    clock = Clock()
    quotas = {"small": Quota.of(None, 60 * 32, burst_s=1)}
    router = router_over([shard], quota=LeasedQuota(quotas, clock), clock=clock)
    assert await outcome(router, FULL, Caller("small")) == ""
    with pytest.raises(OverloadedError, match="used up"):
        await router.begin_search(FULL, Caller("small"))


def with_gain(shard: LocalShard, low: float, weight: float, *, rung: str = "4x8") -> None:
    """Pretend that the doctor measured the head."""
    held = shard.shard._held
    index = held.newest.index
    measured = table(
        row(rung, 50, 0.995, 1.0),
        standing=index.standing,
        matching={"lambda": weight, "gain": {"mean": low + 0.01, "low": low, "high": 1.0}},
    )
    state = next(iter(held.states))
    held._calibrations = {state: measured.to_json()}


async def test_auto_uses_the_head_only_where_its_gain_is_sure(index: Path) -> None:
    for low, weight, runs in ((0.01, 0.5, True), (-0.01, 0.5, False), (0.01, 0.0, False)):
        [shard] = shards_of(index, 1)
        with_gain(shard, low, weight)
        router = router_over([shard])
        answer = await router.search(query(), SearchPlan(top_k=3))
        assert (answer.rerank is not None) == runs
        assert (await router.search(query(), FULL)).rerank is None
        assert (await router.search(query(), SearchPlan(with_rerank=False))).rerank is None
    assert (await router.search(query(), SearchPlan(top_k=3, rerank=Rerank()))).rerank is not None


async def test_a_head_that_only_the_ceiling_leaves_out_is_told(shard: LocalShard) -> None:
    with_gain(shard, 0.01, 0.5, rung="2x4")
    router, coordinator = obeying(shard, Orders(level=1))
    await router.follower.exchange()
    answer = await router.search(query(), SearchPlan(top_k=3))
    assert (answer.rerank, answer.degraded) == (None, ("load",))
    forced = await router.search(query(), SearchPlan(top_k=3, rerank=Rerank(top_n=10)))
    assert (forced.rerank is not None, forced.degraded) == (True, ())
    without = await router.search(query(), SearchPlan(top_k=3, with_rerank=False))
    assert without.degraded == ()
    coordinator.orders = Orders()
    await router.follower.exchange()
    answer = await router.search(query(), SearchPlan(top_k=3))
    assert (answer.rerank is not None, answer.degraded) == (True, ())


async def test_the_head_reorders_by_its_weight(index: Path) -> None:
    [shard] = shards_of(index, 1)
    with_gain(shard, 0.01, 0.5)
    encoder = StubEncoder(lambda place: 1.0 if place == 30 else 0.0)
    router = router_over([shard], encoder=encoder)
    plain = (await router.search(query(), SearchPlan(budget="4x8", top_k=60))).result.hits
    plan = SearchPlan(budget="4x8", top_k=5, offset=0, rerank=Rerank(top_n=40))
    answer = await router.search(query(), plan)
    assert encoder.matched == 40
    assert answer.rerank == {
        "top_n": 40, "lambda": 0.5, "raw": False, "ms": answer.rerank["ms"],
    }  # fmt: skip
    promoted = replace(plain[30], score=plain[30].score + 0.5)
    assert answer.result.hits == [promoted, *plain[:4]]
    second = await router.search(query(), replace(plan, offset=1, top_k=2))
    assert second.result.hits == plain[:2]


async def test_the_head_is_left_out_where_time_is_short(index: Path) -> None:
    [shard] = shards_of(index, 1)
    with_gain(shard, 0.01, 0.5)
    clock = Clock()
    router = router_over([shard], clock=clock)
    for _ in range(50):
        router.forecast.take("match", 0, 500.0)
    answer = await router.search(query(), SearchPlan(deadline=clock.now + 0.2))
    assert (answer.rerank, answer.degraded) == (None, ("deadline",))
    assert len(answer.result.hits) == 10


async def test_what_is_not_possible_is_said(shard: LocalShard) -> None:
    router = router_over([shard])
    bare = replace(query(), fused=None)
    for vectors, plan, says in (
        (bare, SearchPlan(rerank=Rerank()), "fused"),
        (query(), SearchPlan(rerank=Rerank(raw=True)), "raw"),
        (query(), SearchPlan(rerank=Rerank(), text="words"), "hybrid"),
        (query(), SearchPlan(budget="9x9"), "9x9"),
        # where the index lies is nothing to tell a client
        (query(), SearchPlan(target_recall=0.9), "doctor --index DIR"),
    ):
        with pytest.raises(UserError, match=says):
            await router.search(vectors, plan)
    with pytest.raises(UserError, match="writes are off"):
        await router.upsert([], Caller())
    with pytest.raises(UserError, match="writes are off"):
        await router.delete(["a"], None, Caller())


async def test_writes_go_to_the_writer(shard: LocalShard) -> None:
    class Writer:
        async def upsert(self, documents: Any) -> WriteResult:
            return WriteResult(added=len(documents))

        async def delete(self, ids: Any, filter: Any) -> WriteResult:
            return WriteResult(deleted=len(ids))

    router = router_over([shard], writer=Writer())
    assert (await router.delete(["a", "b"], None, Caller())).deleted == 2


async def test_a_failed_search_leaves_nothing_under_way(shard: LocalShard) -> None:
    router = router_over([shard])
    await router.search(query(), FULL)
    shard.failures = [NotReadyError("lost")]
    with pytest.raises(NotReadyError):
        await router.search(query(), FULL)
    assert router.follower.waits.running == 0


async def test_odds_of_documents_are_matched_by_their_fused_vectors(shard: LocalShard) -> None:
    router = router_over([shard])
    assert await router.match(query(), [query(1), query(2)]) == [0.0, 1.0]
    with pytest.raises(UserError, match="fused"):
        await router.match(query(), [replace(query(), fused=None)])


async def test_it_is_ready_when_every_part_answers(shard: LocalShard) -> None:
    router = router_over([shard])
    await router.ready()
    served = await router.served()
    assert served.budgets == {
        "auto": "auto", "fused": "fused", "fast": "2x4", "balanced": "4x8", "full": "4x8",
        "1x1": "1x1", "2x4": "2x4", "4x8": "4x8",
    }  # fmt: skip
    assert served.load == {"ceiling": "4x8", "level": 0, "refusing": False, "coordinated": True}
    assert served.index["live"] == 60
    shard.failures = [NotReadyError("the index shard 0 does not answer")]
    with pytest.raises(NotReadyError, match="shard 0"):
        await router.ready()


async def test_a_router_goes_on_after_an_exchange_that_failed(
    shard: LocalShard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(follower, "EXCHANGE_S", 0.01)
    router, coordinator = obeying(shard, Orders(level=1))
    honest = coordinator.exchange

    async def broken(report: Any) -> Orders:
        coordinator.exchange = honest  # type: ignore[method-assign]
        raise ValueError("a bug")

    coordinator.exchange = broken  # type: ignore[method-assign]
    await router.search(query(), SearchPlan())
    for _ in range(200):
        if coordinator.reports:
            break
        await asyncio.sleep(0.01)
    assert coordinator.reports
    assert "a bug" in caplog.text
