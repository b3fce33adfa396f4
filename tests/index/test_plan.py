"""A plan is a value: it is written, read, widened and counted."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rematch_ray.errors import UserError
from rematch_ray.index.plan import Plan
from rematch_ray.index.planner import plan_search
from rematch_ray.index.trials import plans_to_try
from rematch_ray.scoring.budget import DEFAULT_LADDER, Budget

RUNGS = [Budget.FUSED, *DEFAULT_LADDER.rungs]


@given(
    budget=st.sampled_from(RUNGS),
    candidates=st.one_of(st.just("auto"), st.just("all"), st.integers(500, 10_000)),
    num_allowed=st.integers(0, 10**7),
)
def test_what_is_written_is_read_again(budget: Budget, candidates: Any, num_allowed: int) -> None:
    plan = plan_search(
        budget, DEFAULT_LADDER, candidates=candidates, num_allowed=num_allowed, top_k=10
    )
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"budget": "4x8", "coarse": None, "candidates": "many", "narrowing": []},
        {"budget": "big", "coarse": None, "candidates": 5, "narrowing": []},
        {"budget": "4x8", "coarse": None, "candidates": 5, "narrowing": [["2x4"]]},
        {"budget": 3, "coarse": None, "candidates": 5, "narrowing": []},
        {"budget": "4x8", "coarse": None, "candidates": 0, "narrowing": []},
    ],
)
def test_what_is_no_plan_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="is no plan"):
        Plan.from_json(fields)


@pytest.mark.parametrize(
    ("candidates", "keeps"), [(0, []), (-1, []), (100, [0]), (None, [5, -3]), (0, [10])]
)
def test_a_stage_that_keeps_nothing_is_refused(candidates: int | None, keeps: list[int]) -> None:
    narrowing = tuple(zip(DEFAULT_LADDER.rungs, keeps))
    with pytest.raises(UserError, match="a stage of a plan that keeps"):
        Plan(DEFAULT_LADDER.top, candidates, narrowing)


def test_no_more_documents_reach_the_end_than_the_smallest_stage_keeps() -> None:
    narrowing = ((Budget(1, 1), 40), (Budget(2, 4), 60))
    assert Plan(DEFAULT_LADDER.top, 100, narrowing).kept == 40
    assert Plan(DEFAULT_LADDER.top, 30, narrowing).kept == 30
    assert Plan(DEFAULT_LADDER.top, 30).kept == 30
    assert Plan(DEFAULT_LADDER.top, None).kept is None


def test_dot_products_are_those_of_maxima_carried_from_stage_to_stage() -> None:
    plan = Plan(Budget(16, 64), 1000, ((Budget(2, 4), 400), (Budget(8, 16), 50)), "first")
    # every document pays for the largest budget that it reached, once
    paid = 600 * 2 * 4 + 350 * 8 * 16 + 50 * 16 * 64
    assert plan.dot_products(5000, coarse=5000) == 5000 + paid
    assert Plan(Budget(16, 64), None).dot_products(5000, coarse=5000) == 5000 * 16 * 64


def test_plans_that_are_tried_differ_and_can_give_the_hits() -> None:
    plans = plans_to_try(
        DEFAULT_LADDER, coarse_choices=["first", "fused"], has_fused=True, live=3000, top_k=60
    )
    assert len({str(plan) for plan in plans}) == len(plans)
    assert {plan.coarse_candidates for plan in plans} == {None, 100, 200, 500, 1000, 2000}
    assert all(plan.kept is None or plan.kept >= 60 for plan in plans)
    assert {plan.budget for plan in plans} == set(RUNGS)
