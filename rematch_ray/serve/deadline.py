"""Waiting for an answer until its deadline. Knows no searches."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from rematch_ray.serve.backend import DeadlineError

# what was begun is seen through for so long after its caller has gone: forecasts learn from what is
# late, and would promise it for ever if they heard of the quick ones only
GRACE_S = 2.0
Answer = TypeVar("Answer")


def seconds_left(deadline: float | None, clock: Callable[[], float]) -> float | None:
    """Until a deadline; None where there is none."""
    return None if deadline is None else deadline - clock()


async def within(left_s: float | None, answer: Awaitable[Answer]) -> Answer:
    """What is answered in time.

    Args:
        left_s: seconds; None waits for as long as it takes.
        answer: that is waited for; cancelled with its caller, or `GRACE_S` after it was late.

    Raises:
        DeadlineError: it is late.
    """
    if left_s is None:
        return await answer
    task = asyncio.ensure_future(answer)
    try:
        await asyncio.wait({task}, timeout=max(0.0, left_s))
    except asyncio.CancelledError:
        task.cancel()
        raise
    if task.done():
        return task.result()
    task.add_done_callback(_forget)
    asyncio.get_running_loop().call_later(GRACE_S, task.cancel)
    raise DeadlineError(
        "the deadline passed before the answer was there: allow more time, or a smaller budget"
    )


def _forget(task: asyncio.Future[Answer]) -> None:
    """Take the outcome that nobody waits for: asyncio would complain of a lost error."""
    if not task.cancelled():
        task.exception()
