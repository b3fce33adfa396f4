"""Intervals over queries: how sure a mean, or a difference between two systems, is.

Knows nothing of metrics: it takes one number per query. Middle floor.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
_DRAWN_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Interval:
    """A mean and where it would lie for other queries of the same kind.

    Args:
        mean: over the queries.
        low: lower end of the interval.
        high: upper end of the interval.
        level: its coverage, 0..1.
        queries: how many.
    """

    mean: float
    low: float
    high: float
    level: float
    queries: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def bootstrap(
    values_B: NDArray[np.floating],
    *,
    seed: int = 0,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """Percentile bootstrap interval of a mean over queries.

    Args:
        values_B: (B,) one number per query; NaN = the query does not count.
        seed: of the resampling.
        level: coverage, above 0 and below 1.
        resamples: how many.

    Raises:
        ValueError: no query counts, or a level outside (0, 1).

    >>> bootstrap(np.ones(5)).low
    1.0
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"level {level} is not possible: give a number between 0 and 1")
    values = np.asarray(values_B, np.float64)
    values = values[~np.isnan(values)]
    if len(values) == 0:
        raise ValueError("no query counts: an interval needs at least one number")
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, _DRAWN_AT_ONCE // len(values))
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = generator.integers(0, len(values), (count, len(values)))
        means[start : start + count] = values[drawn].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high), level, len(values))


def paired_bootstrap(
    ours_B: NDArray[np.floating],
    theirs_B: NDArray[np.floating],
    *,
    seed: int = 0,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """Interval of the mean difference ours - theirs over the same queries.

    Args:
        ours_B: (B,) one number per query.
        theirs_B: (B,) the same queries in the same order.
        seed: of the resampling.
        level: coverage.
        resamples: how many.

    Raises:
        ValueError: the two are not equally long.

    >>> interval = paired_bootstrap(np.array([1.0, 1.0, 0.0]), np.array([0.0, 1.0, 0.0]))
    >>> round(interval.mean, 3), interval.low >= 0
    (0.333, True)
    """
    if len(ours_B) != len(theirs_B):
        raise ValueError(
            f"{len(ours_B)} and {len(theirs_B)} queries cannot be paired: "
            "give both systems' numbers for the same queries"
        )
    differences = np.asarray(ours_B, np.float64) - np.asarray(theirs_B, np.float64)
    return bootstrap(differences, seed=seed, level=level, resamples=resamples)
