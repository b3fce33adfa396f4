"""The plan is a function of counts: what is scored, and at which budgets on the way."""

from hypothesis import given
from hypothesis import strategies as st

from rematch_ray.index.planner import AUTO_CANDIDATES, Plan, plan_search
from rematch_ray.scoring.budget import DEFAULT_LADDER, Budget

RUNGS = [Budget.FUSED, *DEFAULT_LADDER.rungs]


def test_small_work_is_done_exhaustively() -> None:
    plan = plan_search(
        Budget(16, 64), DEFAULT_LADDER, candidates="auto", num_allowed=4096, top_k=10
    )
    assert plan.coarse_candidates is None
    plan = plan_search(
        Budget(16, 64), DEFAULT_LADDER, candidates="auto", num_allowed=4097, top_k=10
    )
    assert plan.coarse_candidates == AUTO_CANDIDATES


def test_a_cheaper_budget_scans_more_documents() -> None:
    for budget, scanned in (
        (Budget(16, 64), 4_096),
        (Budget(4, 8), 52_000),
        (Budget(1, 1), 493_000),
    ):
        for num_allowed, exhaustive in ((scanned, True), (scanned + 500, False)):
            plan = plan_search(
                budget, DEFAULT_LADDER, candidates="auto", num_allowed=num_allowed, top_k=10
            )
            assert (plan.coarse_candidates is None) == exhaustive


def test_a_number_of_candidates_is_scored_without_narrowing() -> None:
    plan = plan_search(Budget(16, 64), DEFAULT_LADDER, candidates=700, num_allowed=10**6, top_k=10)
    assert (plan.coarse_candidates, plan.narrowing) == (700, ())


def test_few_survivors_of_a_filter_need_no_coarse_stage() -> None:
    def plan(num_allowed: int, candidates: object = "auto") -> Plan:
        return plan_search(
            Budget(16, 64),
            DEFAULT_LADDER,
            candidates=candidates,
            num_allowed=num_allowed,
            num_live=10**6,
            top_k=10,
        )

    few, many = plan(15_000), plan(25_000)
    assert (few.coarse_candidates, few.is_exhaustive) == (None, False)
    assert many.coarse_candidates == AUTO_CANDIDATES
    assert few.narrowing == many.narrowing
    assert few.narrowing == ((Budget(4, 8), AUTO_CANDIDATES // 4),)
    assert plan(3000).is_exhaustive
    # a number says how many the coarse stage keeps
    assert plan(15_000, 700).coarse_candidates == 700


@given(
    budget=st.sampled_from(RUNGS),
    candidates=st.one_of(st.just("auto"), st.just("all"), st.integers(500, 10_000)),
    num_allowed=st.integers(0, 10**7),
    top_k=st.integers(1, 500),
)
def test_stages_shrink_through_growing_budgets_and_keep_enough(
    budget: Budget, candidates: object, num_allowed: int, top_k: int
) -> None:
    plan = plan_search(
        budget, DEFAULT_LADDER, candidates=candidates, num_allowed=num_allowed, top_k=top_k
    )
    assert plan.budget == budget
    if plan.coarse_candidates is None:
        assert plan.narrowing == ()
        return
    assert top_k <= plan.coarse_candidates < num_allowed
    kept = [plan.coarse_candidates, *(keep for _, keep in plan.narrowing)]
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] >= top_k
    costs = [rung.dot_products for rung, _ in plan.narrowing] + [budget.dot_products]
    assert costs == sorted(set(costs))
