"""Scores do not depend on blocks, batches, threads or the order of documents."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rematch_ray.index.exact import order_best, score_fused, score_rows, to_grid
from rematch_ray.scoring.budget import Budget
from tests.index.made import unit

PLANES = ((0, 1), (1, 4), (4, 8), (8, 16), (16, 64))
RUNGS = [Budget(1, 1), Budget(2, 4), Budget(4, 8), Budget(8, 16), Budget(16, 64)]
DOCUMENTS = unit((37, 64, 24), 3).astype(np.float16)


def read_plane(position: int, rows: np.ndarray) -> np.ndarray:
    start, stop = PLANES[position]
    return DOCUMENTS[rows, start:stop]


def score(queries: np.ndarray, rows: np.ndarray, rungs: list[Budget], **options: int) -> np.ndarray:
    return score_rows(to_grid(queries), rows, read_plane, PLANES, rungs, **options)


@pytest.mark.parametrize("block_cells", [1, 1_000, 20_000, 1 << 24])
def test_blocks_change_no_bit(block_cells: int) -> None:
    queries, rows = unit((70, 16, 24), 4), np.arange(37)
    whole = score(queries, rows, RUNGS, block_cells=1 << 24)
    np.testing.assert_array_equal(score(queries, rows, RUNGS, block_cells=block_cells), whole)


def test_carried_maxima_equal_each_rung_alone() -> None:
    queries, rows = unit((5, 16, 24), 4), np.arange(37)
    together = score(queries, rows, RUNGS)
    for layer, rung in zip(together, RUNGS):
        np.testing.assert_array_equal(layer, score(queries, rows, [rung])[0])


def test_rungs_that_share_a_plane_are_scored_too() -> None:
    queries, rows = unit((5, 16, 24), 4), np.arange(37)
    rungs = [Budget(1, 4), Budget(2, 4), Budget(16, 4), Budget(16, 64)]
    for layer, rung in zip(score(queries, rows, rungs), rungs):
        np.testing.assert_array_equal(layer, score(queries, rows, [rung])[0])


def test_the_score_is_the_mean_over_query_vectors_of_their_best_match() -> None:
    queries, rows = unit((3, 16, 24), 4), np.arange(37)
    for layer, rung in zip(score(queries, rows, RUNGS), RUNGS):
        documents = DOCUMENTS[:, : rung.r_d].astype(np.float64)
        similarity = np.einsum("bqd,ckd->bcqk", queries[:, : rung.r_q], documents)
        np.testing.assert_allclose(layer, similarity.max(axis=3).mean(axis=2), atol=1e-7)


def test_negative_maxima_are_kept() -> None:
    document = np.zeros((1, 64, 24), np.float16)
    document[:, :, 0] = -1.0
    query = np.zeros((1, 16, 24), np.float32)
    query[:, :, 0] = 1.0
    found = score_rows(
        to_grid(query),
        np.arange(1),
        lambda position, rows: document[rows, PLANES[position][0] : PLANES[position][1]],
        PLANES,
        RUNGS,
    )
    np.testing.assert_array_equal(found, -1.0)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.integers(0, 36), min_size=1, max_size=20), count=st.integers(1, 6))
def test_a_score_depends_on_its_query_and_document_alone(rows: list[int], count: int) -> None:
    queries = unit((6, 16, 24), 4)
    whole = score(queries, np.arange(37), RUNGS)
    some = score(queries[:count], np.array(rows), RUNGS)
    np.testing.assert_array_equal(some, whole[:, :count][:, :, rows])


@settings(max_examples=40, deadline=None)
@given(order=st.permutations(range(24)))
def test_dot_products_are_exact_so_the_order_of_dimensions_changes_no_bit(order: list[int]) -> None:
    queries, rows = unit((4, 16, 24), 4), np.arange(37)
    shuffled = score_rows(
        to_grid(queries)[:, :, order],
        rows,
        lambda position, chosen: read_plane(position, chosen)[:, :, order],
        PLANES,
        RUNGS,
    )
    np.testing.assert_array_equal(shuffled, score(queries, rows, RUNGS))


def test_fused_scores_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, fused = to_grid(unit((9, 24), 4)), unit((37, 24), 5).astype(np.float16)
    whole = score_fused(queries, np.arange(37), lambda rows: fused[rows])
    monkeypatch.setattr("rematch_ray.index.exact.BLOCK_CELLS", 50)
    np.testing.assert_array_equal(
        score_fused(queries, np.arange(37), lambda rows: fused[rows]), whole
    )


def test_rounding_queries_moves_a_component_by_less_than_float32_does() -> None:
    values = unit((1000,), 8)
    assert np.abs(to_grid(values) - values).max() <= 2.0**-25


@settings(max_examples=200, deadline=None)
@given(
    scores=st.lists(st.sampled_from([0.0, 0.25, 0.5]), min_size=1, max_size=30),
    limit=st.integers(1, 35),
)
def test_the_best_are_ordered_by_score_then_key(scores: list[float], limit: int) -> None:
    keys = np.random.default_rng(0).permutation(len(scores)).astype(np.uint64)
    found = order_best(np.float32(scores), keys, limit).tolist()
    assert found == sorted(range(len(scores)), key=lambda row: (-scores[row], keys[row]))[:limit]
