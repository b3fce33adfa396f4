"""Steps down of a ceiling, and whether waits answered to them.

A smaller budget shortens the waits that searches cause, by far more than it is smaller. Where they
stay as they were, requests wait for something else (cores that encode), and quality is given away
for nothing. Knows no levels and no clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

_IN_VAIN = 0.7  # of the waits before: a step down that leaves more of them was for nothing
_MORE = 1.25  # times the requests: chance alone does not explain them
_WORSE = 1.5  # times the waits that such a step did not answer to: something else has come


class Verdict(Enum):
    """What to do while waits are too long, where there is no queue."""

    GO_DOWN = "another step"
    STAY = "none: one like it was in vain of late"
    TAKE_BACK = "take the last one back"


@dataclass(frozen=True)
class _Step:
    """The mean wait that led to a step, whether there was a queue, and requests a second then."""

    delay_s: float
    had_queue: bool
    rate: float


@dataclass(frozen=True)
class _InVain:
    """Waits that a step did not answer to, until when none is taken for such, and how often."""

    delay_s: float
    until: float
    failures: int


class Steps:
    """The steps between no ceiling and the present one.

    Args:
        pause_s: how long to wait after so many failures.
    """

    def __init__(self, pause_s: Callable[[int], float]) -> None:
        self._pause_s = pause_s
        self._steps: list[_Step] = []
        self._in_vain: _InVain | None = None

    def go_down(self, delay_s: float, rate: float, *, had_queue: bool) -> None:
        """Take down a step: the mean wait that led to it, and requests a second."""
        self._steps.append(_Step(delay_s, had_queue, rate))

    def go_up(self) -> None:
        """Forget the last step."""
        self._steps.pop()

    def capacity_changed(self) -> None:
        """Forget what was in vain: replicas have come or gone."""
        self._in_vain = None

    def judge(self, now: float, delay_s: float, rate: float) -> Verdict:
        """What to do about waits that are too long, without a queue.

        Args:
            now: seconds.
            delay_s: mean wait of late.
            rate: requests a second of late.
        """
        held = self._in_vain
        step = self._steps[-1] if self._steps else None
        if step is None or _has_helped(step, delay_s, rate):
            is_held = held and now < held.until and delay_s <= _WORSE * held.delay_s
            return Verdict.STAY if is_held else Verdict.GO_DOWN
        failures = 0 if held is None else held.failures + (now >= held.until)
        until = now + self._pause_s(failures)
        self._in_vain = _InVain(max(delay_s, step.delay_s), until, failures)
        return Verdict.TAKE_BACK


def _has_helped(step: _Step, delay_s: float, rate: float) -> bool:
    """Whether waits became shorter, or cannot be compared: a queue, or more requests now."""
    return step.had_queue or rate > _MORE * step.rate or delay_s < _IN_VAIN * step.delay_s
