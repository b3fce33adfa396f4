"""Batches hold every row once, stay within their limits and waste little."""

import numpy as np
import pytest

from rematch_ray.data.batching import BatchLimits, cut_batches, padding_share


@pytest.mark.parametrize("seed", range(5))
def test_every_row_is_in_one_batch_and_no_batch_passes_a_limit(seed: int) -> None:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 300, 97).tolist()
    patches = (draw.integers(0, 2, 97) * draw.integers(0, 400, 97)).tolist()
    limits = BatchLimits(rows=12, tokens=1024, patches=1500)
    batches = cut_batches(lengths, patches, limits)
    assert sorted(row for batch in batches for row in batch) == list(range(97))
    for batch in batches:
        assert len(batch) <= limits.rows
        assert len(batch) * max(lengths[row] for row in batch) <= limits.tokens
        assert sum(patches[row] for row in batch) <= limits.patches


def test_a_row_above_every_limit_is_a_batch_of_its_own() -> None:
    limits = BatchLimits(rows=8, tokens=10, patches=10)
    assert cut_batches([5, 99, 5], [0, 0, 0], limits) == [[1], [0, 2]]
    assert cut_batches([5, 5, 5], [0, 99, 0], limits) == [[1], [0, 2]]


def test_the_longest_rows_come_first() -> None:
    limits = BatchLimits(rows=2, tokens=1000, patches=1000)
    batches = cut_batches([1, 50, 3, 40], [0] * 4, limits)
    assert batches == [[1, 3], [2, 0]]


def test_grouping_by_length_wastes_less_than_the_given_order() -> None:
    lengths = np.random.default_rng(0).lognormal(4, 1, 512).astype(int).clip(4, 2000).tolist()
    given = [list(range(start, start + 32)) for start in range(0, 512, 32)]
    grouped = cut_batches(lengths, [0] * 512, BatchLimits(32, 8192, 1))
    assert padding_share(lengths, grouped) < 0.25 * padding_share(lengths, given)


def test_nothing_to_cut_is_no_batch() -> None:
    assert cut_batches([], [], BatchLimits(1, 1, 1)) == []
    assert padding_share([], []) == 0
