"""Halves of queries, fronts of plans, and the table that comes of both."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rematch_ray.errors import UserError
from rematch_ray.evaluation.bootstrap import bootstrap
from rematch_ray.evaluation.fitting import (
    RESAMPLES,
    best_for_cost,
    check_queries,
    fitted_half,
    make_rows,
)
from rematch_ray.index.calibration import Timing
from rematch_ray.index.doctor import Trial
from rematch_ray.index.plan import Plan
from rematch_ray.scoring.budget import Budget

IDS = [f"q{number}" for number in range(200)]


def trial(candidates: int | None, recall: np.ndarray, ms: float, budget: str = "4x8") -> Trial:
    coarse = None if candidates is None else "first"
    return Trial(
        plan=Plan(Budget.parse(budget), candidates, (), coarse),
        recall={10: recall, 1: recall, 100: recall / 2},
        own=recall,
        dot_products=int(ms * 100),
        ms=Timing(ms, 2 * ms),
        stages={},
        is_truth=candidates is None,
    )


def test_halves_are_disjoint_deterministic_and_about_equal() -> None:
    half = fitted_half(IDS)
    assert 70 < half.sum() < 130
    np.testing.assert_array_equal(half, fitted_half(IDS))
    # by the id alone: neither the order nor the other queries move one across
    np.testing.assert_array_equal(fitted_half(IDS[::-1]), half[::-1])
    np.testing.assert_array_equal(fitted_half(IDS[50:60]), half[50:60])


def test_the_reported_half_alone_makes_the_numbers_and_the_fitted_one_the_front() -> None:
    fitted = fitted_half(IDS)
    generator = np.random.default_rng(0)
    good = generator.choice([0.5, 0.9, 1.0], 200)
    # looks better than `good` on the fitted half only, and the other way round
    lucky = np.where(fitted, 1.0, 0.5)
    unlucky = np.where(fitted, 0.5, 1.0)
    trials = [trial(100, good, 1.0), trial(200, lucky, 2.0), trial(500, unlucky, 3.0)]
    rows = make_rows(trials, fitted, k=10)
    assert [row.front for row in rows] == [True, True, False]
    assert [row.recall[10].mean for row in rows[1:]] == [0.5, 1.0]
    naive = bootstrap(good[~fitted], resamples=RESAMPLES)
    assert rows[0].recall[10].low == pytest.approx(naive.low, abs=1e-6)
    assert rows[0].recall[10].low < rows[0].recall[10].mean == pytest.approx(naive.mean, abs=1e-6)


@pytest.mark.parametrize("count", [40, 200, 1000])
def test_only_the_truth_itself_is_promised_to_miss_nothing(count: int) -> None:
    ids, none_missed = [f"q{number}" for number in range(count)], np.ones(count)
    fitted = fitted_half(ids)
    trials = [
        trial(50, none_missed, 1.0),
        trial(None, none_missed, 2.0, "1x1"),
        trial(None, none_missed, 9.0),
    ]
    few, small, whole = make_rows(trials, fitted, k=10)
    for row in (few, small):
        assert [row.recall[k].mean for k in (1, 10)] == [1.0, 1.0]
        lows = [row.recall[k].low for k in (1, 10)]
        # what Wilson's interval of so many documents, all of them found, leaves open
        looked_for = int((~fitted).sum()) * np.array([1, 10])
        assert lows == pytest.approx(looked_for / (looked_for + 1.96**2), abs=1e-5)
        assert max(lows) < 1.0
    assert few.own.low < 1.0
    assert small.own.low == whole.own.low == 1.0
    assert [share.low for share in whole.recall.values()] == [1.0, 1.0, 1.0]


def test_each_budget_has_a_front_of_its_own() -> None:
    high, low = np.full(200, 0.9), np.full(200, 0.4)
    rows = make_rows(
        [
            trial(100, high, 1.0),
            trial(100, low, 2.0, "1x1"),
            trial(200, low - 0.1, 3.0, "1x1"),
            trial(None, low, 9.0, "1x1"),
        ],
        fitted_half(IDS),
        k=10,
    )
    assert [row.front for row in rows] == [True, False, False, False]
    assert [row.own_front for row in rows] == [True, True, False, True]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=20))
def test_nothing_on_the_front_is_beaten_by_something_cheaper(pairs: list[tuple[int, int]]) -> None:
    cost, quality = np.array(pairs, float).T
    kept = best_for_cost(cost, quality)
    for place in range(len(pairs)):
        cheaper = quality[cost < cost[place]].max(initial=-1)
        equal = quality[cost == cost[place]].max()
        assert kept[place] == (quality[place] >= max(cheaper, equal))


def test_few_queries_are_warned_of_and_too_few_refused() -> None:
    assert check_queries(IDS) is None
    assert "wide intervals" in str(check_queries(IDS[:199]))
    assert check_queries(IDS[:20])
    for ids in ([], IDS[:19], ["one"] * 500):
        with pytest.raises(UserError, match="too few"):
            check_queries(ids)
