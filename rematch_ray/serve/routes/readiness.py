"""Whether the parts of the service answer, found out once a second however many ask.

``/readyz`` takes no key, and finding out takes calls of the encoder and of every shard: what anyone
may ask must not cost more the more it is asked. Knows no route.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from rematch_ray.serve.failures import RequestError, failures_named

KEPT_S = 1.0


class Readiness:
    """The last verdict, kept for a second.

    Args:
        find_out: returns when every part answers; see `Backend.ready`.
        clock: seconds, monotonic.
    """

    def __init__(
        self, find_out: Callable[[], Awaitable[None]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._find_out = find_out
        self._clock = clock
        self._finding_out = asyncio.Lock()
        self._known_at: float | None = None
        self._failure: RequestError | None = None

    async def check(self) -> None:
        """Return when every part answers, or did within the last second.

        Raises:
            RequestError: 503, one does not.
        """
        async with self._finding_out:
            if self._known_at is None or self._clock() - self._known_at >= KEPT_S:
                self._failure = await self._verdict()
                self._known_at = self._clock()
        if self._failure is not None:
            raise self._failure.with_traceback(None)  # or it would grow with every raise

    async def _verdict(self) -> RequestError | None:
        was_ready = self._known_at is not None and self._failure is None
        try:
            with failures_named():
                await self._find_out()
        except RequestError as failure:
            # full queues are those of parts that answer: taken out, this replica would leave its
            # share to others that are as full
            return None if was_ready and failure.code == "overloaded" else failure
        return None
