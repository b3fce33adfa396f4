"""What `auto` gets under a ceiling and a deadline; explicit budgets are never lowered."""

from dataclasses import replace
from typing import Any

import pytest

from rematch_ray.index.calibration import Calibration, Standing
from rematch_ray.index.planner import plan_search
from rematch_ray.scoring.budget import Ladder
from rematch_ray.serve.backend import SearchPlan
from rematch_ray.serve.facts import IndexFacts
from rematch_ray.serve.forecast import Forecast
from rematch_ray.serve.planning import Decision, Planner
from tests.index.tables import STANDING, row, table

LADDER = ("1x1", "2x4", "4x8", "8x16", "16x64")


def facts(live: int = 1_000_000, calibration: Calibration | None = None) -> IndexFacts:
    return IndexFacts(
        path="/an/index",
        ladder=LADDER,
        live=live,
        fused_dim=None,
        dim=128,
        default_coarse="first",
        coarse_choices=("first",),
        coarse_dot_products={"first": live},
        fields={"id": "string", "group": "string"},
        has_originals=True,
        standing=replace(STANDING, live=live),
        calibration=calibration,
        void=None,
        info={},
    )


def decide(planner: Planner, plan: SearchPlan, **options: Any) -> Decision:
    return planner.decide(plan, top_k=10, **{"forecast": Forecast(), **options})


def budget(decision: Decision) -> str:
    return str(decision.option.plan.budget)


def test_unloaded_it_is_what_the_index_itself_would_choose() -> None:
    planner = Planner(facts())
    ladder = Ladder.parse(LADDER)
    expected = plan_search(ladder.top, ladder, candidates="auto", num_allowed=10**6, top_k=10)
    decision = decide(planner, SearchPlan())
    assert decision.option.plan == replace(expected, coarse="first")
    assert decision.option is decision.unloaded
    assert decision.degraded == ()


@pytest.mark.parametrize("live", [1000, 10_000, 100_000, 1_000_000])
def test_each_step_of_the_ceiling_costs_less_and_stays_below_its_rung(live: int) -> None:
    planner, forecast = Planner(facts(live)), Forecast()
    costs = []
    for level in range(5):
        decision = decide(planner, SearchPlan(), level=level, forecast=forecast)
        costs.append(decision.option.mean_ms(forecast))
        assert decision.option.plan.budget.dot_products <= planner.ceiling(level).dot_products
        assert decision.degraded == (("load",) if level else ())
    assert costs == sorted(costs, reverse=True)
    assert budget(decision) == "1x1"


@pytest.mark.parametrize(
    "fields",
    [
        {"budget": "16x64"},
        {"budget": "1x1", "candidates": "all"},
        {"budget": "4x8", "candidates": 500},
    ],
)
def test_an_explicit_budget_is_never_lowered(fields: dict[str, Any]) -> None:
    decision = decide(Planner(facts()), SearchPlan(**fields), level=4, left_ms=0.001)
    assert budget(decision) == fields["budget"]
    assert decision.degraded == ()


def test_a_deadline_takes_the_largest_budget_that_fits() -> None:
    planner, forecast = Planner(facts()), Forecast()
    full = decide(planner, SearchPlan(), forecast=forecast)
    needed = full.option.p95_ms(forecast)
    kept = decide(planner, SearchPlan(), forecast=forecast, left_ms=needed + 1)
    assert (budget(kept), kept.degraded) == ("16x64", ())
    [below] = [each for each in planner._options(SearchPlan(), 10) if "> 8x16" in each.name[-7:]]
    for _ in range(100):  # the full budget turns out slow, the one below it quick
        forecast.take(full.option.name, full.option.dot_products, 80.0)
        forecast.take(below.name, below.dot_products, 10.0)
    lower = decide(planner, SearchPlan(), forecast=forecast, left_ms=40.0)
    assert lower.degraded == ("deadline",)
    assert budget(lower) == "8x16"
    hopeless = decide(planner, SearchPlan(), left_ms=0.01)
    assert (budget(hopeless), hopeless.degraded) == ("1x1", ("deadline",))


def calibrated() -> Calibration:
    return table(
        row("1x1", 1000, 0.60, 2.0),
        row("4x8", 2000, 0.80, 4.0),
        row("4x8", 8000, 0.90, 9.0),
        row("16x64", 2000, 0.95, 12.0),
        row("16x64", 9000, 0.995, 30.0),
        standing=Standing(built=1, live=10_000, changes=0, coarse=("first:flat",)),
    )


def test_with_a_calibration_a_deadline_goes_by_what_was_measured() -> None:
    planner = Planner(replace(facts(10_000, calibrated()), standing=calibrated().standing))
    assert planner.facts.table.holds
    unloaded = decide(planner, SearchPlan())
    assert unloaded.option.recall == 0.995
    within = decide(planner, SearchPlan(), left_ms=20.0)  # twice the median at the 95th percentile
    assert str(within.option.plan) == "first:8000 > 4x8"
    assert (within.option.recall, within.degraded) == (0.90, ("deadline",))
    tight = decide(planner, SearchPlan(), left_ms=5.0)
    assert str(tight.option.plan) == "first:1000 > 1x1"


def test_a_hybrid_search_is_planned_for_the_list_that_is_fused() -> None:
    calibration = table(
        row("1x1", 50, 0.60, 1.0),
        row("1x1", 200, 0.60, 2.0),
        row("16x64", 50, 0.999, 3.0),
        row("16x64", 200, 0.995, 9.0),
        standing=replace(STANDING, live=10_000),
    )
    planner = Planner(facts(10_000, calibration))
    for fields in ({}, {"target_recall": 0.99}):
        for text, kept in ((None, 50), ("red", 200), (None, 50)):
            decision = decide(planner, SearchPlan(text=text, **fields))
            assert decision.option.plan.kept == kept
    for text, kept in ((None, 50), ("red", 200)):
        below = decide(planner, SearchPlan(text=text), left_ms=5.0).option.plan
        assert (below.kept, str(below.budget)) == (kept, "1x1")
    assert decide(planner, SearchPlan(text="red", candidates=20)).option.plan.kept == 20


def test_a_ceiling_and_a_deadline_may_both_lower() -> None:
    planner, forecast = Planner(facts()), Forecast()
    decision = decide(planner, SearchPlan(), forecast=forecast, level=1, left_ms=0.01)
    assert decision.degraded == ("load", "deadline")
    assert budget(decision) == "1x1"


def test_with_a_filter_budgets_are_lowered_by_rung_and_the_shard_plans() -> None:
    plan = SearchPlan(filter={"group": "a"})
    decision = decide(Planner(facts()), plan, level=2)
    assert decision.option.how == {"candidates": "auto", "coarse": None, "budget": "4x8"}


def test_candidates_that_are_named_are_kept_when_the_budget_falls() -> None:
    decision = decide(Planner(facts()), SearchPlan(candidates=700), level=1)
    assert (budget(decision), decision.option.plan.coarse_candidates) == ("8x16", 700)


def test_a_forecast_forgets_the_plans_that_were_not_run_for_longest() -> None:
    forecast = Forecast()
    for number in range(5000):
        forecast.take("first:100 > 4x8", 1000, 3.0)
        forecast.take(f"first:{number} > 1x1", 1000, 7.0)
    assert forecast.mean_ms("first:100 > 4x8", 1000) == pytest.approx(3.0)
    assert forecast.mean_ms("first:4999 > 1x1", 1000) == 7.0
    assert forecast.mean_ms("first:0 > 1x1", 0, measured_ms=1.0) == 1.0


def test_a_forecast_follows_what_it_sees() -> None:
    forecast = Forecast()
    first = forecast.p95_ms("plan", 1_000_000)
    for _ in range(200):
        forecast.take("plan", 1_000_000, 3.0)
    assert forecast.p95_ms("plan", 1_000_000) == pytest.approx(3.0, abs=0.1)
    # what was never run is judged by the speed of what was
    assert forecast.mean_ms("other", 2_000_000) < first
    assert forecast.p95_ms("measured", 2_000_000, 7.0) == 7.0
