"""The load controller: from how long requests wait to the ceiling of `auto` budgets.

A state machine on queue delays, with the clock passed in. After CoDel, it acts on waiting that
lasts, not on a burst. Steps down come one per interval; steps up are slow, and a rung that was too
dear at some rate of requests is not tried again at that rate for a while, unless it had served that
rate before: then something else made it slow. A step down that waits do not answer to is taken
back: what keeps requests waiting then is not searching. Where the floor does not keep up either, it
says how long an admitted request may take; routers refuse the rest. Knows no Ray and no budgets:
level 0 is no ceiling, the last level is the floor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from rematch_ray.serve.history import History, Look
from rematch_ray.serve.proof import Proof
from rematch_ray.serve.settings import LoadSettings
from rematch_ray.serve.steps import Steps, Verdict
from rematch_ray.serve.utilisation import scale_up_utilisation as scale_up_utilisation

_LEAST_TARGET_S = 0.003  # below this, clocks, threads and event loops are what is measured
_LOOK_S = 0.15  # so that every router, five times a second, has reported
_PATIENCE = 50  # a step needs this many requests' worth of the target beyond the target
_MOST_JUDGED_PER_S = 40  # so waits twice as long as the target have to last for over a second
_CALM = 10  # up to this many is what a quiet service shows now and then
_MOST_EXCESS = 100  # and no more than this is held against the present
_ROOM = 0.85  # a rung that failed at some rate is taken again below this share of it
_QUEUE = 10  # times the target: about a whole search
_BEARABLE = 15  # times the target, under a flood: a mean that leaves a 99th percentile of twice it
_WORKED_OFF = 0.2  # seconds of wait lost per second: the queue is on its way out
_FLOOD = 0.2  # seconds of wait gained per second: it is not, whatever chance does
_GROWTH_WINDOW_S = 2.0
_IDLE = 0.25  # of one search at a time: so few requests a second keep no service busy
_MOST_PROBE_DOUBLINGS = 3


@dataclass(frozen=True)
class _TooDear:
    """A level at which waits were too long: at how many requests a second, when, how often."""

    rate: float
    at: float
    failures: int


class LoadController:
    """Chooses the ceiling.

    Args:
        num_levels: rungs of the ladder; the last level is the floor.
        settings: thresholds.
        clock: seconds, monotonic.
        unloaded_s: what an unloaded search at the top rung takes; see `calibrate`.
    """

    def __init__(
        self,
        num_levels: int,
        settings: LoadSettings,
        clock: Callable[[], float],
        *,
        unloaded_s: float = 0.02,
    ) -> None:
        if num_levels < 1:
            raise ValueError(f"a ladder has at least one rung, {num_levels} given")
        self._floor = num_levels - 1
        self._settings = settings
        self._clock = clock
        self._level = 0
        self._refusing = False
        self._waits: list[tuple[float, int]] = []
        self._refused = 0
        self._history = History()
        self._excess_s = 0.0
        self._excess_since: float | None = None
        self._calm_since = self._changed_at = self._ticked_at = clock()
        self._too_dear: dict[int, _TooDear] = {}
        # nothing is raised sooner than that, so a way down has not ended before
        self._proof = Proof(clock(), settings.raise_after_s)
        self._steps = Steps(self._pause_s)
        self.calibrate(unloaded_s)

    @property
    def level(self) -> int:
        """Rungs that the ceiling lies below the top; 0 is no ceiling."""
        return self._level

    @property
    def target_s(self) -> float:
        """The mean wait that is borne."""
        return self._target_s

    @property
    def refusing(self) -> bool:
        """Whether requests are being refused: at the floor, and waits still too long."""
        return self._refusing

    @property
    def bearable_s(self) -> float | None:
        """Mean time that an admitted search may take while others are refused; None: none is."""
        return _BEARABLE * self._target_s if self._refusing else None

    @property
    def refuses_explicit(self) -> bool:
        """Whether requests that name a budget are refused; always before `refusing`."""
        first = min(self._settings.explicit_from_level, self._floor)
        return self.refusing or (first > 0 and self._level >= first)

    def calibrate(self, unloaded_s: float) -> None:
        """Set the time of an unloaded search at the top rung, that waits are measured by."""
        given = self._settings.target_delay_ms
        self._unloaded_s = unloaded_s
        relative = max(_LEAST_TARGET_S, self._settings.target_share * unloaded_s)
        self._target_s = relative if given is None else given / 1e3

    def capacity_changed(self) -> None:
        """Forget what was too dear and what was in vain: replicas have come or gone."""
        self._too_dear.clear()
        self._proof.forget()
        self._steps.capacity_changed()

    def observe(self, queue_delay_s: float, count: int, reporter: str, *, refused: int = 0) -> None:
        """Take one report of a router.

        Args:
            queue_delay_s: mean wait of the requests that began since its last report, seconds (of
                the slowest shard); where none began, of the one that waits longest.
            count: requests that began; 0 with a wait above 0 says that the service stands still.
            reporter: name of the router; reports of all are added up.
            refused: requests that it refused for load since its last report.
        """
        if count < 0 or refused < 0 or not queue_delay_s >= 0:
            raise ValueError(
                f"{reporter}: {count} requests, {refused} refused, waited {queue_delay_s} s"
            )
        if count or queue_delay_s > 0:
            self._waits.append((queue_delay_s, count))
        self._refused += refused

    def tick(self) -> None:
        """Judge what was observed of late; call it at every report, it looks when it is time.

        Reports of several routers are judged together: one that is idle says nothing of the rest.
        """
        now = self._clock()
        if now - self._ticked_at < _LOOK_S:
            return
        seen = self._gather(now)
        self._accumulate(seen)
        self._ticked_at = now
        calm_since = max(self._calm_since, self._changed_at)
        self._proof.see(now, self._level, seen.offered, calm_since)
        if not self._settings.enabled:
            return
        if self._lasted(now):
            self._tighten(now)
        else:
            self._loosen(now)

    def _gather(self, now: float) -> Look:
        judged = sum(max(count, 1) for _, count in self._waits)
        waited = sum(delay * max(count, 1) for delay, count in self._waits)
        offered = self._refused + sum(count for _, count in self._waits)
        seen = Look(now, offered, judged, waited / judged if judged else 0.0)
        self._waits, self._refused = [], 0
        self._history.add(seen)
        return seen

    def _accumulate(self, seen: Look) -> None:
        """Sum up waiting beyond the target, so that few and many requests are judged alike."""
        if seen.judged == 0:
            self._excess_s = 0.0  # nobody waits
        # with many requests a second, a moment is judged as a moment
        weight = min(float(seen.judged), _MOST_JUDGED_PER_S * (seen.at - self._ticked_at))
        more = weight * (seen.delay_s - self._target_s)
        # one tick alone, however long its waits, may have been a pause
        self._excess_s += min(more, 0.8 * _PATIENCE * self._target_s)
        self._excess_s = min(max(self._excess_s, 0.0), _MOST_EXCESS * self._target_s)
        if self._excess_s == 0.0:
            self._excess_since = None
        elif self._excess_since is None:
            self._excess_since = self._ticked_at
        if self._excess_s > _CALM * self._target_s:
            self._calm_since = seen.at

    def _lasted(self, now: float) -> bool:
        """Whether waits have been too long for an interval, by more than a burst explains."""
        since = self._excess_since
        return (
            since is not None
            and self._excess_s >= _PATIENCE * self._target_s
            and now - max(since, self._changed_at) >= self._settings.interval_s
        )

    def _tighten(self, now: float) -> None:
        growth = self._growth(now)
        if growth < 0 and self._wait_s + growth * self._settings.interval_s <= self._target_s:
            return  # over in another interval: the last step was enough
        assert self._excess_since is not None
        since = max(self._excess_since, now - _GROWTH_WINDOW_S)
        delay_s = self._history.mean_delay_s(since)
        has_queue = delay_s >= _QUEUE * self._target_s
        if not has_queue and not self._refusing:
            lately = self._rate_since(now - _GROWTH_WINDOW_S, now, deviations=1)
            verdict = self._steps.judge(now, delay_s, lately)
            if verdict is Verdict.TAKE_BACK:
                self._go_up(now)
                self._too_dear.pop(self._level, None)
            if verdict is not Verdict.GO_DOWN:
                return
        if self._level < self._floor:
            # a rung that works off what came before it, only too slowly, may still be cheap enough
            if growth > -_WORKED_OFF:
                self._remember_too_dear(now)
            self._level += 1
            self._begin(now)
            self._steps.go_down(delay_s, self._rate_since(since, now), had_queue=has_queue)
        elif not self._refusing and self._is_flooded(now, growth):
            self._refusing = True
            self._begin(now)

    def _is_flooded(self, now: float, growth: float) -> bool:
        """Whether the floor does not keep up: a queue that does not get shorter.

        Waits beyond the target are no reason: close below its capacity the floor has them, too.
        """
        long_s = 2 * _QUEUE * self._target_s
        judged_s = now - self._changed_at
        if growth >= _FLOOD:
            return self._wait_s >= long_s and judged_s >= 2 * self._settings.interval_s
        # all the time: a queue that came by chance grows, too, on its way up
        least_s = self._history.least_delay_s(now - _GROWTH_WINDOW_S)
        return judged_s >= _GROWTH_WINDOW_S and growth >= 0.0 and least_s >= long_s

    def _loosen(self, now: float) -> None:
        """Take back one step at a time, refusals first."""
        calm_s = now - max(self._calm_since, self._changed_at)
        if self.refusing:
            if calm_s >= self._settings.interval_s:
                self._refusing = False
                self._changed_at = now
            return
        if calm_s < self._settings.raise_after_s:
            return
        held = self._too_dear.get(self._level)
        if held and self._history.rate(now) >= held.rate:
            del self._too_dear[self._level]
        if self._level > 0 and self._may_raise(now):
            self._go_up(now)

    def _go_up(self, now: float) -> None:
        self._level -= 1
        self._steps.go_up()
        self._begin(now)

    def _may_raise(self, now: float) -> bool:
        """Whether the rung above fits this rate of requests, or is due for a trial."""
        failed = self._too_dear.get(self._level - 1)
        if failed is None or self._history.rate(now, deviations=2) < _ROOM * failed.rate:
            return True
        return now - failed.at >= self._pause_s(failed.failures)

    def _pause_s(self, failures: int) -> float:
        """Until what failed before, so often, is tried again."""
        return self._settings.probe_after_s * float(2 ** min(failures, _MOST_PROBE_DOUBLINGS))

    def _remember_too_dear(self, now: float) -> None:
        # requests since waits grew, too: after a sudden rise the window holds mostly the quiet past
        assert self._excess_since is not None
        rate = self._rate_since(self._excess_since, now, deviations=2)
        # few came, as while the first searches of a service take a second each; or a pause
        is_idle = rate * self._unloaded_s < _IDLE
        if is_idle or self._proof.speaks_against(now, self._level, rate):
            return
        before = self._too_dear.get(self._level)
        failures = before.failures + 1 if before else 0
        self._too_dear[self._level] = _TooDear(rate, now, failures)

    def _rate_since(self, since: float, now: float, *, deviations: float = 0.0) -> float:
        """Requests a second over the window or, where it is more, since a time.

        That less some standard deviations: waits grow when requests happen to come close together.
        """
        count = self._history.offered(since)
        risen = (count - deviations * math.sqrt(count)) / (now - since)
        return max(self._history.rate(now), risen)

    @property
    def _wait_s(self) -> float:
        return self._history.last.delay_s

    def _growth(self, now: float) -> float:
        """Seconds of wait gained per second since the last step; 0 where there is no queue."""
        since = max(self._changed_at, now - _GROWTH_WINDOW_S)
        return self._history.growth(since, now, queue_s=_QUEUE * self._target_s)

    def _begin(self, now: float) -> None:
        self._changed_at = now
        self._excess_s, self._excess_since = 0.0, None
        self._calm_since = now
