"""A shard in the process of its router: no hop, no pickle.

Knows shards and no Ray.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from rematch_ray.serve.backend import NotReadyError, OverloadedError
from rematch_ray.serve.wire import Asked, Found

if TYPE_CHECKING:
    from rematch_ray.serve.shard import Shard

logger = logging.getLogger(__name__)


def tell_from_thread(loop: asyncio.AbstractEventLoop, told: Coroutine[Any, Any, Any]) -> None:
    """Lets a loop tell something, and waits; who does not listen is told again a second later.

    Args:
        loop: runs, in another thread.
        told: the call.
    """
    try:
        asyncio.run_coroutine_threadsafe(told, loop).result()
    except (NotReadyError, OverloadedError) as silent:
        logger.warning("the coordinator did not take a report: %s", silent)


class HeldShard:
    """See `follower.ShardClient`.

    Args:
        shard: that is called.
        most: searches that run or wait at a time; one more is refused.
    """

    def __init__(self, shard: Shard, most: int) -> None:
        self._shard = shard
        self._most = most
        self._under_way = 0

    async def search(self, asked: Asked) -> Found:
        """The hits of one query; OverloadedError where the queue is full."""
        if self._under_way >= self._most:
            raise OverloadedError("the queue of the index is full; try again in a moment")
        self._under_way += 1
        try:
            return await self._shard.search(asked)
        finally:
            self._under_way -= 1

    async def ask(self, method: str, *values: Any) -> Any:
        """Any other method of the shard."""
        return await getattr(self._shard, method)(*values)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """See `Shard.record_autoscaling_stats`."""
        return self._shard.record_autoscaling_stats()

    def close(self) -> None:
        """No search will come."""
        self._shard.close()
