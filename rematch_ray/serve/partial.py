"""Answers of several shards, or which of them are lost where a request does without.

Knows no Ray and no searches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import TypeVar

from rematch_ray.serve.backend import NotReadyError
from rematch_ray.serve.wire import Asked

# a shard whose last replica died is back later than this, or not at all
PATIENCE_S = 2.0
Answer = TypeVar("Answer")


class ShardsLostError(RuntimeError):
    """Shards that did not answer, where the request does without.

    Args:
        numbers: of the shards.
    """

    def __init__(self, numbers: Sequence[int]) -> None:
        super().__init__(f"no answer from index shard {', '.join(map(str, numbers))}")
        self.numbers = tuple(numbers)


async def answers_of(calls: Mapping[int, Awaitable[Answer]], asked: Asked) -> list[Answer]:
    """What each shard says; ShardsLostError where some do not and the request does without."""
    if not asked.allow_partial:
        return await asyncio.gather(*calls.values())
    patience_s = PATIENCE_S if asked.left_s is None else min(PATIENCE_S, asked.left_s / 2)
    tasks = {number: asyncio.ensure_future(call) for number, call in calls.items()}
    late: set[asyncio.Future[Answer]] = set(tasks.values())
    try:
        _, late = await asyncio.wait(tasks.values(), timeout=patience_s)
    finally:
        for task in late:
            task.cancel()
    lost = [
        number
        for number, task in tasks.items()
        if task in late or isinstance(task.exception(), NotReadyError)
    ]
    if lost:
        raise ShardsLostError(lost)
    return [task.result() for task in tasks.values()]
