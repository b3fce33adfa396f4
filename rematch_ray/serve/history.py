"""What a load controller saw of late: requests, and how long they waited, look by look.

Plain sums over a window, with the clock passed in. Knows no levels and no thresholds.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

_WINDOW_S = 10.0


@dataclass(frozen=True)
class Look:
    """What one look saw.

    Attributes:
        at: when, seconds.
        offered: requests that came, refused ones included.
        judged: requests whose wait is known, or that wait still.
        delay_s: their mean wait.
    """

    at: float
    offered: int
    judged: int
    delay_s: float


class History:
    """The looks of the last ten seconds; empty until the first `add`."""

    def __init__(self) -> None:
        self._looks: deque[Look] = deque()

    @property
    def last(self) -> Look:
        """The newest look."""
        return self._looks[-1]

    def add(self, look: Look) -> None:
        """Take one, and forget those that are too old."""
        self._looks.append(look)
        while self._looks[0].at < look.at - _WINDOW_S:
            self._looks.popleft()

    def offered(self, since: float) -> int:
        """Requests that came after a time."""
        return sum(look.offered for look in self._looks if look.at > since)

    def rate(self, now: float, *, deviations: float = 0.0) -> float:
        """Requests a second over the window, or so many standard deviations above."""
        first = self._looks[0]
        offered = sum(look.offered for look in self._looks) - first.offered
        return (offered + deviations * math.sqrt(offered)) / max(now - first.at, 1e-9)

    def mean_delay_s(self, since: float) -> float:
        """Mean wait after a time; 0 where nothing was judged."""
        looks = [look for look in self._looks if look.at > since]
        judged = sum(look.judged for look in looks)
        return sum(look.judged * look.delay_s for look in looks) / judged if judged else 0.0

    def least_delay_s(self, since: float) -> float:
        """The shortest wait that a look after a time saw; infinite without one."""
        return min((look.delay_s for look in self._looks if look.at > since), default=math.inf)

    def growth(self, since: float, now: float, *, queue_s: float) -> float:
        """Seconds of wait gained per second since a time; 0 where there is no queue.

        A queue of which `a` a second come and `b` are done grows by 1 - b / a.

        Args:
            since: when to begin.
            now: when the newest look was.
            queue_s: shorter waits are of single requests that met, not of a queue.
        """
        before = next(look for look in self._looks if look.at >= since)
        if before.at >= now or max(before.delay_s, self.last.delay_s) < queue_s:
            return 0.0
        return (self.last.delay_s - before.delay_s) / (now - before.at)
