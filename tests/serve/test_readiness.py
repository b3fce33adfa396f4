"""Readiness: one question to the parts for all who ask, and what a full queue means for it."""

import asyncio

import pytest

from rematch_ray.serve.backend import NotReadyError, OverloadedError, SilentError
from rematch_ray.serve.failures import RequestError
from rematch_ray.serve.routes.readiness import BUSY_S, KEPT_S, Readiness
from tests.serve.simulation import Clock


class Parts:
    """Answer when they are let, or fail as they are told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.failure: Exception | None = None
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def ready(self) -> None:
        self.asked += 1
        await self.may_answer.wait()
        if self.failure:
            raise self.failure


@pytest.fixture
def parts() -> Parts:
    return Parts()


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def refused(readiness: Readiness) -> str:
    with pytest.raises(RequestError) as failure:
        await readiness.check()
    assert failure.value.status == 503
    return failure.value.code


async def test_those_who_ask_at_once_share_one_question(parts: Parts, clock: Clock) -> None:
    readiness = Readiness(parts.ready, clock)
    parts.may_answer.clear()
    waiting = [asyncio.ensure_future(readiness.check()) for _ in range(50)]
    await asyncio.sleep(0)
    waiting[0].cancel()  # the one that asked for all hangs up
    await asyncio.sleep(0)
    parts.may_answer.set()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert answers[1:] == [None] * 49
    assert parts.asked == 2


async def test_a_verdict_is_kept_for_a_second_and_no_longer(parts: Parts, clock: Clock) -> None:
    readiness = Readiness(parts.ready, clock)
    await readiness.check()
    parts.failure = NotReadyError("the encoder does not answer")
    clock.now += KEPT_S / 2
    await readiness.check()
    assert parts.asked == 1
    clock.now += KEPT_S
    for _ in range(3):
        assert await refused(readiness) == "not_ready"
    parts.failure = None
    assert await refused(readiness) == "not_ready"
    assert parts.asked == 2
    clock.now += KEPT_S
    await readiness.check()


async def test_full_queues_make_nobody_unready_who_was_ready(parts: Parts, clock: Clock) -> None:
    readiness = Readiness(parts.ready, clock)
    parts.failure = OverloadedError("every replica's queue is full")
    assert await refused(readiness) == "overloaded"
    parts.failure = None
    clock.now += KEPT_S
    await readiness.check()
    parts.failure = OverloadedError("every replica's queue is full")
    for _ in range(3):
        clock.now += KEPT_S
        await readiness.check()
    parts.failure = NotReadyError("index shard 0 does not answer")
    clock.now += KEPT_S
    assert await refused(readiness) == "not_ready"
    assert parts.asked == 6


async def test_a_part_in_a_long_pass_makes_nobody_unready_and_one_that_stays_silent_does(
    parts: Parts, clock: Clock
) -> None:
    readiness = Readiness(parts.ready, clock)
    parts.failure = SilentError("the encoder does not answer yet")
    assert await refused(readiness) == "not_ready"
    parts.failure = None
    clock.now += KEPT_S
    await readiness.check()
    parts.failure = SilentError("the encoder does not answer yet")
    while clock.now + KEPT_S < BUSY_S:
        clock.now += KEPT_S
        await readiness.check()
    clock.now += 2 * KEPT_S
    assert await refused(readiness) == "not_ready"
    clock.now += KEPT_S
    assert await refused(readiness) == "not_ready"
