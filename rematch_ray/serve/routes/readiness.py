"""Whether the parts of the service answer, found out once a second however many ask.

``/readyz`` takes no key, and finding out takes calls of the encoder and of every shard: what anyone
may ask must not cost more the more it is asked. Knows no route.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from rematch_ray.serve.backend import SilentError
from rematch_ray.serve.failures import RequestError, failures_named

KEPT_S = 1.0
BUSY_S = 30.0
"""How long a part that answered before may say nothing: an encoder's longest pass, with room."""


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
        self._answered_at: float | None = None
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
        try:
            with failures_named():
                await self._find_out()
        except RequestError as failure:
            return None if self._is_only_busy(failure) else failure
        self._answered_at = self._clock()
        return None

    def _is_only_busy(self, failure: RequestError) -> bool:
        """Whether a part that answered before has too much to do to answer now.

        Taken out for that, this replica would leave its share to others that wait for the same.
        """
        if self._answered_at is None or self._failure is not None:
            return False
        is_silent = isinstance(failure.__cause__, SilentError)
        since = self._clock() - self._answered_at
        return failure.code == "overloaded" or (is_silent and since < BUSY_S)
