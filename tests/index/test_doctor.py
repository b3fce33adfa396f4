"""The examination measures what a naive computation finds."""

import numpy as np
import pytest

from rematch_ray.errors import UserError
from rematch_ray.index.doctor import find_truth, recall_of, try_plan, usable_choices
from rematch_ray.index.maxima import coded_scores
from rematch_ray.index.plan import Plan
from rematch_ray.index.score_blocks import rows_of
from rematch_ray.index.search import SearchIndex
from rematch_ray.index.trials import plans_to_try
from rematch_ray.scoring.budget import Budget
from tests.index.made import Vectors, queries, unit

NUM_QUERIES = 7


def naive_best(index: SearchIndex, query: Vectors, rung: str, k: int) -> list[list[str]]:
    """The best documents by scores in plain numpy, in float64."""
    generation = index._generation
    rows = np.arange(len(index))
    if rung == "fused":
        assert query.fused is not None
        scores = query.fused.astype(np.float64) @ generation.read_fused(rows).astype(np.float64).T
    else:
        budget = Budget.parse(rung)
        stored = [generation.read_plane(k, rows) for k in range(len(generation.planes))]
        document = np.concatenate(stored, axis=1)[:, : budget.r_d].astype(np.float64)
        vectors = query.vectors[:, : budget.r_q].astype(np.float64)
        scores = np.einsum("bqd,nrd->bnqr", vectors, document).max(axis=3).mean(axis=2)
    ids = index.ids()
    return [[ids[place] for place in np.argsort(-score)[:k]] for score in scores]


def coded_order(index: SearchIndex, query: Vectors, rung: str) -> list[list[str]]:
    """All documents by 8-bit scores, as a cascade cuts them."""
    checked = index._check_queries(query)
    scores = coded_scores(index._generation, checked, np.arange(len(index)), Budget.parse(rung))
    ids = index.ids()
    return [[ids[place] for place in np.argsort(-score)] for score in scores]


def test_truth_is_that_of_plain_numpy_at_every_rung(index: SearchIndex) -> None:
    truth = find_truth(index, queries(NUM_QUERIES), depth=20)
    assert list(truth.best) == [str(budget) for budget in index.budgets]
    for rung, best in truth.best.items():
        assert best == naive_best(index, queries(NUM_QUERIES), rung, 20)
    assert truth.scores.shape == (NUM_QUERIES, 20)
    assert (np.diff(truth.scores, axis=1) <= 0).all()


def test_blocks_of_queries_change_nothing_and_are_all_seen(index: SearchIndex) -> None:
    whole = find_truth(index, queries(NUM_QUERIES), depth=5)
    seen: list[int] = []
    lines: list[str] = []
    small = find_truth(
        index,
        queries(NUM_QUERIES),
        depth=5,
        seen=lambda block, scores: seen.extend(range(block.start, block.stop)),
        progress=lines.append,
        held_scores=len(index) * len(index.budgets) * 2,
    )
    assert seen == list(range(NUM_QUERIES))
    assert lines[-1] == "truth: 7 of 7 queries"
    assert len(lines) == 4
    assert small.best == whole.best
    np.testing.assert_array_equal(small.scores, whole.scores)


def test_recall_of_every_plan_is_that_of_a_naive_cascade(index: SearchIndex) -> None:
    query = queries(NUM_QUERIES)
    truth = find_truth(index, query, depth=30)
    ranked = {rung: naive_best(index, query, rung, 300) for rung in truth.best}
    coded = {rung: coded_order(index, query, rung) for rung in truth.best}
    lists = index.info()["coarse_dot_products"]
    plans = plans_to_try(
        index.ladder,
        coarse_choices=["first", "fused"],
        has_fused=True,
        live=300,
        top_k=10,
        counts=[40, 150, 250],
    )
    assert any(plan.narrowing for plan in plans)
    for plan in plans:
        trial = try_plan(
            index, query, truth, plan, ks=[10, 1, 30], coarse_dot_products=lists, timed_queries=2
        )
        stages = [(rung, keep) for rung, keep in plan.narrowing]
        first = {"first": "1x1", "fused": "fused"}.get(str(plan.coarse), "1x1")
        for row in range(NUM_QUERIES):
            left = coded[first][row][: plan.coarse_candidates or 300]
            for rung, keep in stages:
                left = [name for name in coded[str(rung)][row] if name in set(left)][:keep]
            found = [name for name in ranked[str(plan.budget)][row] if name in set(left)]
            for k in (10, 1, 30):
                right = set(ranked["4x8"][row][:k])
                assert trial.recall[k][row] == pytest.approx(len(right & set(found[:k])) / k)
            own = set(ranked[str(plan.budget)][row][:10])
            assert trial.own[row] == pytest.approx(len(own & set(found[:10])) / 10)
        names = [str(rung) for rung, _ in stages] + [str(plan.budget), "exact"]
        assert [name for name in trial.stages if not name.startswith(("coarse", "filter"))] == names
        assert 0 < trial.ms.median <= trial.ms.p95


def test_a_plan_that_scores_everything_misses_nothing_of_its_own_budget(index: SearchIndex) -> None:
    query = queries(NUM_QUERIES)
    truth = find_truth(index, query, depth=10)
    for budget in index.budgets:
        trial = try_plan(
            index,
            query,
            truth,
            Plan(budget, None),
            ks=[10],
            coarse_dot_products={},
            timed_queries=1,
        )
        assert (trial.own == 1).all()
        assert (trial.recall[10] == 1).all() == (budget == index.ladder.top)
        assert trial.dot_products == 300 * budget.dot_products


def test_dot_products_count_the_lists_that_a_choice_reads(index: SearchIndex) -> None:
    query = queries(2)
    truth = find_truth(index, query, depth=10)
    lists = index.info()["coarse_dot_products"]
    assert lists == {"first": 300, "fused": 300, "prefix": 300 * 2 * 4}
    for coarse, read in (("first", 300), ("both", 600)):
        plan = Plan(Budget(4, 8), 50, (), coarse)
        trial = try_plan(
            index, query, truth, plan, ks=[10], coarse_dot_products=lists, timed_queries=1
        )
        assert trial.dot_products == read + 50 * 32


def test_recall_of_a_corpus_smaller_than_the_cut_off_counts_what_there_is() -> None:
    assert recall_of([["a"]], [["a", "b"]], 10).tolist() == [0.5]


def test_queries_without_fused_vectors_are_asked_what_they_can_be(index: SearchIndex) -> None:
    plain = Vectors(queries(3).vectors, None)
    usable, reasons = usable_choices(index, plain)
    assert usable == ["first", "prefix"]
    assert len(reasons) == len(index.coarse_choices) - 2
    assert all("fused query vectors" in reason for reason in reasons)
    assert usable_choices(index, queries(3)) == (list(index.coarse_choices), [])


def test_queries_of_another_width_are_refused(index: SearchIndex) -> None:
    narrow = Vectors(unit((3, 4, 8), 1), None)
    with pytest.raises(UserError, match=r"\(1, 4, 8\) do not fit"):
        usable_choices(index, narrow)
    with pytest.raises(UserError, match="do not fit"):
        find_truth(index, rows_of(narrow, slice(0, 3)), depth=5)
