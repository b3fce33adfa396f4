"""From trials to a table: plans fitted on one half of the queries, reported on the other.

A query belongs to a half by its id alone, so more queries later never move one across. Middle
floor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.evaluation.bootstrap import bootstrap
from rematch_ray.index.calibration import Row, Share
from rematch_ray.index.doctor import Trial
from rematch_ray.index.drift import wilson
from rematch_ray.scoring.budget import Budget

LEAST_QUERIES = 20
ENOUGH_QUERIES = 200
# draws of an interval: there are some hundred of them, and only their lower end counts
RESAMPLES = 2000

Mask = NDArray[np.bool_]


def fitted_half(ids: Sequence[str]) -> Mask:
    """(B,) True where a query belongs to the half that plans are fitted on.

    >>> both = fitted_half(["a", "b", "c", "d"])
    >>> both.tolist() == [*fitted_half(["a", "b"]), *fitted_half(["c", "d"])]
    True
    """
    return np.array([hashlib.sha256(name.encode()).digest()[0] % 2 == 0 for name in ids], np.bool_)


def check_queries(ids: Sequence[str]) -> str | None:
    """Whether there are enough queries.

    Returns:
        A warning, or None.

    Raises:
        UserError: too few to say anything.
    """
    count, fitted = len(ids), int(fitted_half(ids).sum()) if len(ids) else 0
    if count < LEAST_QUERIES or min(fitted, count - fitted) < LEAST_QUERIES // 4:
        raise UserError(
            f"{count} queries, {fitted} of them to fit on, are too few to calibrate by: give at "
            f"least {LEAST_QUERIES}, better {ENOUGH_QUERIES} or more, with ids of their own; "
            "queries that users asked are best"
        )
    if count < ENOUGH_QUERIES:
        return (
            f"{count} queries give wide intervals, so that little can be promised: "
            f"give {ENOUGH_QUERIES} or more"
        )
    return None


def make_rows(trials: Sequence[Trial], fitted_B: Mask, *, k: int, seed: int = 0) -> tuple[Row, ...]:
    """The table of some trials.

    Args:
        trials: of the same queries.
        fitted_B: (B,) the half that says which plans are worth having; the other one says what
            they are worth.
        k: cut-off that plans are compared at.
        seed: of the bootstrap.
    """
    cost = np.array([trial.ms.median for trial in trials])
    full = np.array([trial.recall[k][fitted_B].mean() for trial in trials])
    own = np.array([trial.own[fitted_B].mean() for trial in trials])
    front = best_for_cost(cost, full)
    own_front = np.array([trial.plan.coarse_candidates is None for trial in trials])
    for family in {(trial.plan.budget, trial.plan.coarse) for trial in trials}:
        members = np.array([(t.plan.budget, t.plan.coarse) == family for t in trials])
        own_front[members] |= best_for_cost(cost[members], own[members])
    top = max((trial.plan.budget for trial in trials), key=lambda budget: budget.dot_products)
    reported = ~fitted_B
    return tuple(
        Row(
            plan=trial.plan,
            recall={
                at: _share(found[reported], at, seed, is_truth=_is_full_truth(trial, top))
                for at, found in trial.recall.items()
            },
            own=_share(trial.own[reported], k, seed, is_truth=trial.is_truth),
            dot_products=trial.dot_products,
            ms=trial.ms,
            stages=trial.stages,
            front=bool(is_front),
            own_front=bool(is_own),
        )
        for trial, is_front, is_own in zip(trials, front, own_front, strict=True)
    )


def _is_full_truth(trial: Trial, top: Budget) -> bool:
    """Whether it is what recall is measured against."""
    return trial.is_truth and trial.plan.budget == top


def best_for_cost(cost: NDArray[np.floating], quality: NDArray[np.floating]) -> Mask:
    """Whether nothing cheaper is better; what equals the best so far stays, since on other queries
    it may be the better one.

    >>> best_for_cost(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.5, 0.4, 0.9, 0.9])).tolist()
    [True, False, True, True]
    """
    kept = np.zeros(len(cost), np.bool_)
    best = -np.inf
    for place in np.lexsort((-quality, cost)):
        kept[place] = quality[place] >= best
        best = max(best, quality[place])
    return kept


def _share(values_B: NDArray[np.float64], k: int, seed: int, *, is_truth: bool) -> Share:
    """Mean recall at a cut-off, and what it is at least.

    A bootstrap draws only from what was seen: where no query missed anything it says 1, however few
    they were. So the lower end is not above Wilson's either, over all documents that were looked
    for. Only what the recall is measured against finds all of it for certain.
    """
    if is_truth:
        return Share(1.0, 1.0)
    interval = bootstrap(values_B, seed=seed, resamples=RESAMPLES)
    low = min(interval.low, wilson(interval.mean, k * len(values_B))[0])
    return Share(round(interval.mean, 6), round(low, 6))
