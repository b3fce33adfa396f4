"""What a level has shown that it serves: so many requests a second, while waits were short.

Waits that are too long at such a rate come of something else, a pause of the machine most likely.
Plain sums, with the times passed in. Knows no waits and no thresholds of them.
"""

from __future__ import annotations

from dataclasses import dataclass

_PROOF_S = 30.0  # calm for so long, a level has shown that it serves this rate of requests
_AS_MANY = 1.25  # times that rate, over some seconds, is the same rate


@dataclass
class _Shown:
    """The level, requests a second, and when waits first said otherwise."""

    level: int
    rate: float
    doubted_at: float | None = None


class Proof:
    """The latest of such proofs.

    Args:
        now: seconds.
        way_down_s: steps down that follow within it are of one way down.
    """

    def __init__(self, now: float, way_down_s: float) -> None:
        self._way_down_s = way_down_s
        self._shown: _Shown | None = None
        self._since, self._offered = now, 0

    def forget(self) -> None:
        """Take nothing for shown."""
        self._shown = None

    def see(self, now: float, level: int, offered: int, calm_since: float) -> None:
        """Take requests that came at a level, where waits are short since a time."""
        if calm_since > self._since:
            self._since, self._offered = calm_since, 0
        self._offered += offered
        if now - self._since >= _PROOF_S:
            self._shown = _Shown(level, self._offered / (now - self._since))
            self._since, self._offered = now, 0

    def speaks_against(self, now: float, level: int, rate: float) -> bool:
        """Whether this level had served such a rate, or a dearer one had: it is not to blame.

        Believed for one way down, however many steps it has; what fails again later is too dear.
        """
        shown = self._shown
        if shown is None or level < shown.level or rate > _AS_MANY * shown.rate:
            return False
        if shown.doubted_at is None:
            shown.doubted_at = now
        if now - shown.doubted_at < self._way_down_s:
            return True
        self._shown = None
        return False
