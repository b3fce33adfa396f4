"""Intervals: seeded, paired, honest about constants, and of the coverage they claim."""

import numpy as np
import pytest

from rematch_ray.evaluation.bootstrap import bootstrap, paired_bootstrap


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(0).random(50)
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)
    assert bootstrap(values, seed=3) != bootstrap(values, seed=4)


def test_pairing_sees_a_small_steady_gain_that_separate_intervals_miss() -> None:
    base = np.random.default_rng(0).random(200)
    better = base + 0.02
    paired = paired_bootstrap(better, base)
    assert paired.low > 0.019
    assert bootstrap(better).low < bootstrap(base).high


def test_equal_systems_differ_by_nothing() -> None:
    values = np.random.default_rng(0).random(30)
    interval = paired_bootstrap(values, values)
    assert (interval.mean, interval.low, interval.high) == (0.0, 0.0, 0.0)


def test_queries_that_do_not_count_are_left_out() -> None:
    interval = bootstrap(np.array([1.0, np.nan, 1.0]))
    assert (interval.mean, interval.queries) == (1.0, 2)
    with pytest.raises(ValueError, match="no query counts"):
        bootstrap(np.array([np.nan]))


def test_blocks_of_draws_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(40)
    whole = bootstrap(values, resamples=500)
    monkeypatch.setattr("rematch_ray.evaluation.bootstrap._DRAWN_AT_ONCE", 40 * 7)
    assert bootstrap(values, resamples=500) == whole


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        interval = bootstrap(generator.random(60), resamples=400)
        covered += interval.low <= 0.5 <= interval.high
    assert 180 <= covered <= 200


def test_unequal_lengths_and_impossible_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 2 queries cannot be paired"):
        paired_bootstrap(np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="level 95 is not possible"):
        bootstrap(np.zeros(3), level=95)
