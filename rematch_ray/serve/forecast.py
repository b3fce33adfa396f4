"""How long a plan will take: moving averages of what was seen, dot products where nothing was.

One forecast lives in each router. Pure: fed with milliseconds, asked for milliseconds. Knows no
clocks, no index and no requests.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

# weight of a new observation
_STEP = 0.1
# a 95th percentile lies about so many mean deviations above the mean
_DEVIATIONS = 2.5
# before the first search: dot products of 128 dimensions on one thread, and a search's fixed cost
_NS_PER_DOT_PRODUCT = 10.0
_FIXED_MS = 0.5
# plans that are remembered: their names hold numbers that callers choose
_KEPT_PLANS = 512
# ways after which the quickest is looked for anew
_HOPS = 1000


@dataclass
class _Average:
    mean: float
    deviation: float

    def take(self, value: float) -> None:
        error = value - self.mean
        self.mean += _STEP * error
        self.deviation += _STEP * (abs(error) - self.deviation)

    @property
    def p95(self) -> float:
        return self.mean + _DEVIATIONS * self.deviation


class Forecast:
    """Predicts the milliseconds of a plan, by its name.

    >>> forecast = Forecast()
    >>> round(forecast.p95_ms("4x8", 1_000_000), 1)
    15.8
    >>> for _ in range(50):
    ...     forecast.take("4x8", 1_000_000, 4.0)
    >>> round(forecast.p95_ms("4x8", 1_000_000), 1)
    4.0
    """

    def __init__(self) -> None:
        self._plans: OrderedDict[str, _Average] = OrderedDict()
        self._ns = _NS_PER_DOT_PRODUCT
        self._delay = _Average(0.0, 0.0)
        self._hop = _Average(5.0, 0.0)
        self._least_hops = (math.inf, math.inf)
        self._hops = 0

    def take(self, plan: str, dot_products: int, ms: float) -> None:
        """Learn from one search.

        Args:
            plan: its name.
            dot_products: expected of it.
            ms: that it took.
        """
        seen = self._plans.get(plan)
        if seen is None:
            self._plans[plan] = _Average(ms, ms / 4)
        else:
            seen.take(ms)
        self._plans.move_to_end(plan)
        if len(self._plans) > _KEPT_PLANS:
            self._plans.popitem(last=False)
        if dot_products:
            ns = max(0.0, ms - _FIXED_MS) * 1e6 / dot_products
            self._ns += _STEP * (ns - self._ns)

    def take_delay(self, ms: float, queue_ms: float) -> None:
        """Learn how long a request waited and travelled, all but the search; and waited alone."""
        self._delay.take(ms)
        self._hop.take(ms - queue_ms)
        if self._hops % _HOPS == 0:
            self._least_hops = (math.inf, self._least_hops[0])
        self._hops += 1
        self._least_hops = (min(self._least_hops[0], ms - queue_ms), self._least_hops[1])

    def lag_ms(self, ms: float) -> float:
        """What of a request's way, all but the search, is waiting: for event loops, too.

        The quickest of the last thousand or two did not wait.
        """
        return max(0.0, ms - min(self._least_hops)) if self._hops else 0.0

    @property
    def hop_ms(self) -> float:
        """95th percentile of the way to a shard and back."""
        return self._hop.p95

    @property
    def delay_ms(self) -> float:
        """95th percentile of what comes on top of a search."""
        return self._delay.p95

    def mean_ms(self, plan: str, dot_products: int, measured_ms: float | None = None) -> float:
        """What a plan takes on average; arguments as of `p95_ms`."""
        seen = self._plans.get(plan)
        if seen is not None:
            return seen.mean
        return self._first(dot_products) if measured_ms is None else measured_ms

    def p95_ms(self, plan: str, dot_products: int, measured_ms: float | None = None) -> float:
        """What a plan takes at the 95th percentile.

        Args:
            plan: its name.
            dot_products: expected of it, for the first time.
            measured_ms: what the calibration measured; None where it did not.
        """
        seen = self._plans.get(plan)
        if seen is not None:
            return seen.p95
        # nothing is known of the spread yet: half as much again
        return 1.5 * self._first(dot_products) if measured_ms is None else measured_ms

    def _first(self, dot_products: int) -> float:
        return _FIXED_MS + dot_products * self._ns / 1e6
