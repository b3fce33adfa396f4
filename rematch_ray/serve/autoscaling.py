"""Replicas for the work that is asked for, not for what is done of it.

Under a ceiling the service does less work, so scaling on work done would hide the load that the
ceiling answers. Each replica tells how many dot products a second its requests would have cost
unloaded, and how many it can do; the policy turns both into replicas, before the ceiling comes
down. Serve ships this module to its controller by value: it imports nothing of ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

ASKED, CAPACITY = "rematch_asked_dot_products", "rematch_capacity_dot_products"
_WINDOW_S = 10.0
_BUCKET_S = 0.25
_NUM_BUCKETS = round(_WINDOW_S / _BUCKET_S)
_STEP = 0.05


class WorkMeter:
    """Work asked of one replica, and what it can do.

    Takes the same room whatever is asked: without autoscaling, nobody reads it.

    Args:
        num_threads: searches that run at a time.
        clock: seconds, monotonic.
    """

    def __init__(self, num_threads: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._num_threads = num_threads
        self._clock = clock
        # work by the time of its arrival: the bucket of each place, and what was asked in it
        self._buckets = [-_NUM_BUCKETS] * _NUM_BUCKETS
        self._asked = [0] * _NUM_BUCKETS
        self._per_s = 0.0

    def ask(self, dot_products: int) -> None:
        """Count a request as it arrives, by what it would cost unloaded."""
        bucket = self._bucket()
        place = bucket % _NUM_BUCKETS
        if self._buckets[place] != bucket:
            self._buckets[place], self._asked[place] = bucket, 0
        self._asked[place] += dot_products

    def done(self, dot_products: int, seconds: float, *, as_asked: bool) -> None:
        """Learn from a search how fast this replica is.

        Args:
            dot_products: spent.
            seconds: that it took on one thread.
            as_asked: whether it ran as it would have unloaded: other plans have another speed.
        """
        if not as_asked or seconds <= 0 or dot_products <= 0:
            return
        speed = dot_products / seconds
        self._per_s += (speed - self._per_s) * (_STEP if self._per_s else 1.0)

    def stats(self) -> dict[str, float]:
        """Dot products a second: asked for of late, and possible (0 while unknown)."""
        oldest = self._bucket() - _NUM_BUCKETS
        total = sum(
            asked
            for bucket, asked in zip(self._buckets, self._asked, strict=True)
            if bucket > oldest
        )
        return {ASKED: total / _WINDOW_S, CAPACITY: self._per_s * self._num_threads}

    def _bucket(self) -> int:
        return int(self._clock() / _BUCKET_S)


def replicas_for(asked: float, capacity: float, shares: Sequence[float], *, current: int) -> int:
    """How many replicas some work needs.

    Args:
        asked: dot products a second, of all replicas together.
        capacity: of one replica; 0 while it is unknown.
        shares: of the capacity of 1, 2, ... replicas together that may be used.
        current: replicas now; kept while the capacity is unknown.

    >>> shares = [0.2, 0.5, 0.6, 0.7]
    >>> [replicas_for(asked, 50.0, shares, current=1) for asked in (0.0, 10.0, 11.0, 90.0, 999.0)]
    [1, 1, 2, 3, 4]
    >>> replicas_for(9.0, 0.0, shares, current=2)
    2
    """
    if capacity <= 0:
        return current
    for number, share in enumerate(shares, start=1):
        if asked <= number * capacity * share:
            return number
    return len(shares)


class WorkPolicy:
    """Serve's custom autoscaling policy: see `replicas_for`.

    Args:
        shares: of the capacity of 1, 2, ... replicas that may be used; below what makes the load
            controller act.
    """

    def __init__(self, shares: Sequence[float]) -> None:
        self._shares = list(shares)

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Replicas for Serve's `AutoscalingContext`, and the state of the policy: it has none."""
        metrics: Mapping[str, Mapping[Any, float]] = context.aggregated_metrics or {}
        asked = sum(metrics.get(ASKED, {}).values())
        known = [value for value in metrics.get(CAPACITY, {}).values() if value > 0]
        capacity = sum(known) / len(known) if known else 0.0
        least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        wanted = replicas_for(asked, capacity, self._shares, current=context.target_num_replicas)
        return min(max(wanted, least), most), {}
