"""Which plan a search runs follows from what is asked, the table and counts."""

from typing import Any

import pytest

from rematch_ray.errors import UserError
from rematch_ray.index.calibration import Calibration
from rematch_ray.index.choice import Choice, Table, choose_plan
from rematch_ray.index.plan import Plan
from rematch_ray.index.wish import Wish
from rematch_ray.scoring.budget import DEFAULT_LADDER, Budget
from tests.index.tables import row, table

LIVE = 10_000
TOP = DEFAULT_LADDER.top
NARROW = row("16x64", 500, 0.97, 3.0, narrowing=[("2x4", 100)])
ROWS = (
    row("1x1", 50, 0.60, 0.5),
    row("4x8", 200, 0.90, 1.0),
    row("8x16", 500, 0.95, 2.0),
    NARROW,
    row("16x64", 1000, 0.992, 6.0),
    row("16x64", 2000, 0.999, 9.0),
    row("16x64", 500, 0.999, 0.1, front=False, own_front=False),
    row("16x64", None, 1.0, 90.0),
)


def choose(
    calibration: Calibration | None = None,
    *,
    void: str | None = None,
    full: bool = True,
    num_allowed: int = LIVE,
    top_k: int = 10,
    **asked: Any,
) -> Choice:
    fields = {"budget": None, "candidates": "auto", "coarse": None, "top_k": top_k} | asked
    return choose_plan(
        Wish(**fields),
        DEFAULT_LADDER,
        Table("/an/index", calibration, void, full),
        num_allowed=num_allowed,
        default_coarse="fused",
    )


@pytest.mark.parametrize(
    ("target", "expected"),
    [(0.5, ROWS[0]), (0.9, ROWS[1]), (0.901, ROWS[2]), (0.96, NARROW), (0.9999, ROWS[-1])],
)
def test_a_recall_target_takes_the_cheapest_row_that_reaches_it(
    target: float, expected: Any
) -> None:
    chosen = choose(table(*ROWS), target_recall=target)
    assert chosen.plan == expected.plan
    assert chosen.expected_recall == expected.recall[10].low


def test_a_target_above_every_row_scores_everything_and_says_so() -> None:
    partial = table(*ROWS[:-1])
    for calibration in (partial, table(*ROWS)):
        chosen = choose(calibration, target_recall=1.0)
        assert chosen.plan == Plan(TOP, None)
        assert "all documents scored" in chosen.chosen_by


def test_auto_takes_the_cheapest_plan_of_ninety_nine_percent() -> None:
    chosen = choose(table(*ROWS))
    assert (chosen.plan, chosen.expected_recall) == (ROWS[4].plan, 0.992)


def test_auto_does_not_score_everything_where_that_is_dear() -> None:
    chosen = choose(table(*ROWS[:4], ROWS[-1]))
    assert (chosen.plan, chosen.expected_recall) == (NARROW.plan, 0.97)


def test_a_budget_that_is_asked_for_is_never_lowered() -> None:
    for rung in DEFAULT_LADDER.rungs:
        assert choose(table(*ROWS), budget=rung).plan.budget == rung
    # of a smaller budget the recall against its own exhaustive search decides
    own = table(
        row("4x8", 100, 0.80, 1.0),
        row("4x8", 200, 0.81, 2.0, own=ROWS[5].own),
        row("4x8", 500, 0.82, 3.0, own=ROWS[5].own),
    )
    chosen = choose(own, budget=Budget(4, 8))
    assert (chosen.plan.coarse_candidates, chosen.expected_recall) == (200, 0.81)


def test_a_coarse_choice_that_is_asked_for_is_taken() -> None:
    two = table(row("16x64", 1000, 0.995, 5.0), row("16x64", 2000, 0.995, 8.0, coarse="both"))
    assert choose(two).plan.coarse == "first"
    assert choose(two, coarse="both").plan == two.rows[1].plan


def test_a_filter_widens_auto_and_promises_nothing() -> None:
    chosen = choose(table(*ROWS), full=False)
    assert chosen.plan == ROWS[4].plan.widened(2)
    assert chosen.plan.coarse_candidates == 2000
    assert chosen.expected_recall is None


def test_a_filter_that_leaves_little_scores_all_of_it() -> None:
    chosen = choose(table(*ROWS), full=False, num_allowed=4000)
    assert (chosen.plan, chosen.expected_recall) == (Plan(TOP, None), None)


def test_a_void_table_widens_auto_and_promises_nothing() -> None:
    chosen = choose(table(*ROWS), void="much changed")
    assert chosen.plan == ROWS[4].plan.widened(2)
    assert chosen.expected_recall is None
    assert "much changed" in chosen.chosen_by


@pytest.mark.parametrize("goal", ["target_recall", "cost_limit", "max_ms"])
def test_a_goal_without_a_valid_table_names_the_command(goal: str) -> None:
    command = "rematch-ray doctor --index /an/index --queries"
    with pytest.raises(UserError, match=f"none.*{command}"):
        choose(None, **{goal: 0.9})
    with pytest.raises(UserError, match=f"void: much changed.*{command}"):
        choose(table(*ROWS), void="much changed", **{goal: 0.9})


def test_a_recall_target_is_refused_under_a_filter_and_a_cost_is_not() -> None:
    with pytest.raises(UserError, match="filter"):
        choose(table(*ROWS), full=False, target_recall=0.9)
    chosen = choose(table(*ROWS), full=False, max_ms=4.0)
    assert (chosen.plan, chosen.expected_recall) == (ROWS[2].plan, None)


def test_a_cost_or_time_takes_the_best_row_within_it() -> None:
    assert choose(table(*ROWS), cost_limit=3500).plan == NARROW.plan
    assert choose(table(*ROWS), max_ms=12.0).plan == ROWS[4].plan
    with pytest.raises(UserError, match=r"max_ms 0\.5 is below every .* the least is 1"):
        choose(table(*ROWS), max_ms=0.5)


def test_two_things_that_choose_the_plan_are_refused_together() -> None:
    for asked in (
        {"target_recall": 0.9, "max_ms": 5.0},
        {"target_recall": 0.9, "budget": TOP},
        {"cost_limit": 10, "candidates": 100},
        {"max_ms": 1.0, "coarse": "first"},
        {"plan": NARROW.plan, "target_recall": 0.9},
    ):
        with pytest.raises(UserError, match="cannot be given together"):
            choose(table(*ROWS), **asked)


@pytest.mark.parametrize(
    "asked",
    [
        {"target_recall": 0.0},
        {"target_recall": 1.1},
        {"target_recall": float("nan")},
        {"cost_limit": 0},
        {"max_ms": -1.0},
        {"plan": NARROW.plan, "top_k": 101},
        {"nprobe": 0},
        {"nprobe": True},
        {"nprobe": 2.5},
    ],
)
def test_impossible_goals_are_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        choose(table(*ROWS), **asked)


def test_what_is_expected_of_a_number_of_candidates_is_what_fewer_found() -> None:
    for candidates, expected in ((999, 0.999), (400, None), (1000, 0.999), (5000, 0.999)):
        chosen = choose(table(*ROWS), candidates=candidates, coarse="first")
        assert chosen.expected_recall == expected
    assert choose(table(*ROWS), candidates=1500, coarse="fused").expected_recall is None
    assert choose(table(*ROWS), candidates=1500, coarse="first", full=False).expected_recall is None


def test_between_two_cut_offs_the_lower_recall_is_promised_and_beyond_none() -> None:
    calibration = table(row("16x64", 2000, 0.995, 5.0, lows={100: 0.95}))
    assert choose(calibration, top_k=10).expected_recall == 0.995
    assert choose(calibration, top_k=50).expected_recall == 0.95
    beyond = choose(calibration, top_k=500)
    assert (beyond.expected_recall, beyond.plan.coarse_candidates) == (None, 5000)


def test_a_plan_that_keeps_too_few_for_the_hits_is_not_taken() -> None:
    calibration = table(row("16x64", 50, 0.999, 1.0), row("16x64", 500, 0.999, 5.0))
    assert choose(calibration, top_k=10).plan.coarse_candidates == 50
    assert choose(calibration, top_k=60).plan.coarse_candidates == 500


@pytest.mark.parametrize("goal", [{"target_recall": 0.9}, {"cost_limit": 10**6}, {"max_ms": 9.0}])
def test_nothing_is_promised_of_an_nprobe_that_was_not_measured(goal: dict[str, Any]) -> None:
    calibration = table(*ROWS)
    for asked in (
        {},
        {"budget": TOP},
        {"candidates": 1000, "coarse": "first"},
        {"plan": NARROW.plan},
    ):
        assert choose(calibration, **asked).expected_recall is not None
        assert choose(calibration, nprobe=1, **asked).expected_recall is None
    with pytest.raises(UserError, match="and nprobe cannot be given together"):
        choose(calibration, nprobe=1, **goal)


def test_without_a_table_counts_decide_as_before() -> None:
    chosen = choose(None)
    assert chosen.expected_recall is None
    assert str(chosen.plan) == "fused:2000 > 4x8:500 > 16x64"
    assert chosen.chosen_by == "counts"
