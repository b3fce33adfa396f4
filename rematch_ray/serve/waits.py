"""How long searches wait before they begin, as one router sees it. Knows no Ray and no index."""

from __future__ import annotations

import itertools
from collections.abc import Callable

_SMOOTHED_S = 1.0  # over which ended searches are counted
_LEAST_RUNNING = 4  # so that threads have work whatever was counted


class Waits:
    """Searches under way, and those that ended since the last look.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._numbers = itertools.count()
        self._running: dict[int, tuple[float, float]] = {}
        self._waited_s = 0.0
        self._ended = 0
        self._taken_at = clock()
        self._per_s = 0.0

    def begin(self, expected_s: float) -> int:
        """Take down a search.

        Args:
            expected_s: from now to its answer if it does not wait.

        Returns:
            A number to end it with.
        """
        number = next(self._numbers)
        self._running[number] = (self._clock(), expected_s)
        return number

    def end(self, number: int, waited_s: float | None) -> None:
        """A search has ended; `waited_s` is None where it failed."""
        self._running.pop(number, None)
        if waited_s is not None:
            self._waited_s += waited_s
            self._ended += 1

    @property
    def running(self) -> int:
        """Searches under way."""
        return len(self._running)

    def has_room(self, bearable_s: float) -> bool:
        """Whether one more search would be answered within a time: Little's law.

        Args:
            bearable_s: mean time that a search may take, seconds.
        """
        return self.running < max(_LEAST_RUNNING, self._per_s * bearable_s)

    def take(self) -> tuple[float, int]:
        """Mean wait of those that ended and those that wait still, and how many ended.

        What is late by now has waited at least so long.
        """
        now = self._clock()
        late = [now - began - expected for began, expected in self._running.values()]
        late = [seconds for seconds in late if seconds > 0]
        ended, waited = self._ended, self._waited_s + sum(late)
        self._ended, self._waited_s = 0, 0.0
        elapsed, self._taken_at = now - self._taken_at, now
        if elapsed > 0:
            self._per_s += (ended / elapsed - self._per_s) * min(1.0, elapsed / _SMOOTHED_S)
        return (waited / (ended + len(late)) if ended + len(late) else 0.0), ended
