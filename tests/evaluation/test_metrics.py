"""Metrics against naive references; ties share their positions; constant scores are chance."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rematch_ray.evaluation.metrics import (
    Relevance,
    family_accuracy,
    hit_at,
    ndcg_at,
    rank_relevant,
    recall_at,
    reciprocal_rank,
    win_rate,
)


def naive(order: tuple[int, ...], gains: dict[int, float], k: int) -> dict[str, float]:
    """Metrics of one strict order, written as in a textbook."""
    ranks = {column: order.index(column) + 1 for column in gains}
    dcg = sum(gain / math.log2(ranks[c] + 1) for c, gain in gains.items() if ranks[c] <= k)
    best = sorted(gains.values(), reverse=True)[:k]
    ideal = sum(gain / math.log2(place + 2) for place, gain in enumerate(best))
    return {
        "recall": sum(rank <= k for rank in ranks.values()) / len(ranks),
        "hit": float(min(ranks.values()) <= k),
        "reciprocal": 1 / min(ranks.values()),
        "ndcg": dcg / ideal,
    }


def ours(scores: list[float], gains: dict[int, float], k: int) -> dict[str, float]:
    ranking = rank_relevant(np.array([scores]), Relevance.of([gains], len(scores)))
    return {
        "recall": recall_at(ranking, k).item(),
        "hit": hit_at(ranking, k).item(),
        "reciprocal": reciprocal_rank(ranking).item(),
        "ndcg": ndcg_at(ranking, k).item(),
    }


cases = st.integers(2, 6).flatmap(
    lambda size: st.tuples(
        st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=size, max_size=size),
        st.dictionaries(
            st.integers(0, size - 1), st.sampled_from([1.0, 2.0, 5.0]), min_size=1, max_size=size
        ),
        st.integers(1, size + 2),
    )
)


@settings(max_examples=150, deadline=None)
@given(case=cases)
def test_ties_are_the_mean_over_all_orders_of_the_tied(
    case: tuple[list[float], dict[int, float], int],
) -> None:
    scores, gains, k = case
    orders = [
        order
        for order in itertools.permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    metrics = [naive(order, gains, k) for order in orders]
    expected = {name: sum(m[name] for m in metrics) / len(metrics) for name in metrics[0]}
    assert ours(scores, gains, k) == pytest.approx(expected)


def test_a_rank_is_the_mean_rank_of_its_tied_group() -> None:
    scores = np.array([[0.9, 0.5, 0.5, 0.5, 0.1]])
    ranking = rank_relevant(scores, Relevance.of([[0, 2, 4]], 5))
    assert ranking.rank.tolist() == [1.0, 3.0, 5.0]


@pytest.mark.parametrize("k", [1, 10, 100])
def test_a_constant_embedding_scores_chance(k: int) -> None:
    num_documents = 60
    relevance = Relevance.of([[3], [5, 6], [1, 2, 30]], num_documents)
    ranking = rank_relevant(np.full((3, num_documents), 0.25), relevance)
    inside = min(k, num_documents)
    np.testing.assert_allclose(recall_at(ranking, k), inside / num_documents)
    missed = [
        math.comb(num_documents - r, inside) / math.comb(num_documents, inside) for r in (1, 2, 3)
    ]
    np.testing.assert_allclose(hit_at(ranking, k), 1 - np.array(missed), atol=1e-12)
    assert ranking.rank.tolist() == [(num_documents + 1) / 2] * 6


def test_a_constant_embedding_has_chance_accuracy_in_the_family_and_against_swaps() -> None:
    family = np.repeat([0, 1], [8, 4])
    relevance = Relevance.of([[2], [9], [8, 9]], 12)
    accuracy = family_accuracy(np.zeros((3, 12)), relevance, family)
    np.testing.assert_allclose(accuracy, [1 / 8, 1 / 4, 2 / 4])
    assert win_rate(np.zeros(5), np.zeros(5)).tolist() == [0.5] * 5


def test_other_families_do_not_compete() -> None:
    scores = np.array([[0.9, 0.2, 0.3, 0.1]])
    assert family_accuracy(scores, Relevance.of([[2]], 4), np.array([0, 1, 1, 1])).item() == 1.0
    assert family_accuracy(scores, Relevance.of([[1]], 4), np.array([0, 1, 1, 1])).item() == 0.0


def test_a_family_with_nothing_to_decide_does_not_count() -> None:
    relevance = Relevance.of([[0], [1, 2], [3]], 4)
    accuracy = family_accuracy(np.eye(3, 4), relevance, np.array([0, 1, 1, -1]))
    assert np.isnan(accuracy).all()


def test_a_query_whose_answers_lie_in_two_families_is_refused() -> None:
    with pytest.raises(ValueError, match="of query 0 lie in several families"):
        family_accuracy(np.eye(1, 3), Relevance.of([[0, 1]], 3), np.array([0, 1, 1]))


def test_documents_never_scored_rank_below_all_others() -> None:
    scores = np.array([[0.1, -np.inf, -np.inf]])
    ranking = rank_relevant(scores, Relevance.of([[1]], 3))
    assert recall_at(ranking, 1).item() == 0.0
    assert ranking.rank.item() == 2.5


def test_scores_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="not a number"):
        rank_relevant(np.array([[np.nan, 1.0]]), Relevance.of([[0]], 2))
    with pytest.raises(ValueError, match=r"shape \(1, 3\)"):
        rank_relevant(np.zeros((1, 3)), Relevance.of([[0]], 2))
    with pytest.raises(ValueError, match="not finite"):
        win_rate(np.array([np.nan]), np.array([0.0]))


@pytest.mark.parametrize(
    ("relevant", "message"),
    [
        ([[0], []], "query 1 has no relevant document"),
        ([[7]], "outside 1 queries x 3 documents"),
        ([[1, 1]], "given twice"),
        ([{0: 0.0}], "not above 0"),
    ],
)
def test_relevance_that_makes_no_sense_is_refused(relevant: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Relevance.of(relevant, 3)
