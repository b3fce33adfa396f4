"""Whether live searches still find what the calibration promised.

A share of them is run again, exhaustively at the full budget, and what they found of it is kept in
a rolling window. Knows nothing of servers or time: whoever serves decides where the second search
runs. Middle floor.
"""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from rematch_ray.errors import UserError
from rematch_ray.index.hits import SearchResult
from rematch_ray.index.queries import QueryVectors
from rematch_ray.scoring.budget import Ladder

WINDOW = 500
_Z_95 = 1.959964


@dataclass(frozen=True)
class DriftEstimate:
    """What was observed of late.

    Args:
        queries: observed searches in the window.
        recall: their mean recall; None before the first.
        low: lower end of its 95 % interval.
        high: upper end.
        promised: mean of what the searches were expected to find at least.
    """

    queries: int
    recall: float | None
    low: float
    high: float
    promised: float | None

    @property
    def alarm(self) -> bool:
        """Whether even the upper end lies below the promise."""
        return self.promised is not None and self.high < self.promised


class Searched(Protocol):
    """What answered a search, and can be asked for all of it."""

    @property
    def generation(self) -> str:
        """Name of the state that is searched."""
        ...

    @property
    def ladder(self) -> Ladder:
        """Budgets."""
        ...

    def search(
        self, query: Any, *, budget: str, candidates: Literal["all"], top_k: int
    ) -> list[SearchResult]:
        """See `SearchIndex.search`; the query is of the kind that was searched with."""
        ...


class DriftCheck:
    """Runs a share of searches again and keeps what they found; one thread at a time.

    Args:
        index: that answered the searches.
        share: of the searches that promised something, 0..1.
        seed: of the draws.
        window: observations that are kept.

    Raises:
        UserError: a share outside 0..1, or a window below 1.
    """

    def __init__(
        self, index: Searched, share: float, seed: int = 0, *, window: int = WINDOW
    ) -> None:
        if not 0.0 <= share <= 1.0:
            raise UserError(f"share {share} is not possible: give a number from 0 to 1")
        if window < 1:
            raise UserError(f"window {window} is not possible: give a number of at least 1")
        self.index = index
        self._share = share
        self._random = random.Random(seed)
        self._seen: deque[tuple[float, float]] = deque(maxlen=window)

    def observe(self, query: QueryVectors, result: SearchResult) -> float | None:
        """Perhaps runs a search again.

        Args:
            query: one query, as it was searched.
            result: what was found. Without an expected recall (no calibration, a filter), with one
                that cannot fail (all was scored at the full budget), or of another generation than
                the index's there is nothing to compare.

        Returns:
            The recall observed, or None where the search was not run again.
        """
        top = str(self.index.ladder.top)
        if result.expected_recall is None or not result.hits:
            return None
        # an exact result may have been filtered, and the search below is not
        if result.exact and result.budget == top:
            return None
        if result.generation != self.index.generation or self._random.random() >= self._share:
            return None
        [right] = self.index.search(query, budget=top, candidates="all", top_k=len(result.hits))
        wanted = {hit.id for hit in right.hits}
        recall = len(wanted & {hit.id for hit in result.hits}) / len(wanted)
        self._seen.append((recall, result.expected_recall))
        return recall

    def estimate(self) -> DriftEstimate:
        """What the window says."""
        count = len(self._seen)
        if not count:
            return DriftEstimate(0, None, 0.0, 1.0, None)
        recall = sum(found for found, _ in self._seen) / count
        promised = sum(expected for _, expected in self._seen) / count
        low, high = wilson(recall, count)
        return DriftEstimate(count, recall, low, high, promised)

    def to_json(self) -> dict[str, Any]:
        """The estimate as plain JSON types, for metrics."""
        estimate = self.estimate()
        return {**estimate.__dict__, "alarm": estimate.alarm}


def wilson(mean: float, count: int, z: float = _Z_95) -> tuple[float, float]:
    """Wilson's interval of a mean of numbers in 0..1; wide enough for any such, not only 0 and 1.

    Numbers in 0..1 vary no more than coins of the same mean, so the interval errs on the wide side
    and does not collapse while all observations agree.

    >>> [round(end, 3) for end in wilson(1.0, 100)], [round(end, 3) for end in wilson(0.5, 4)]
    ([0.963, 1.0], [0.15, 0.85])
    """
    denominator = 1 + z * z / count
    centre = (mean + z * z / (2 * count)) / denominator
    half = z / denominator * math.sqrt(mean * (1 - mean) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)
