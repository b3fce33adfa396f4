"""Which plan a search runs: the caller's, one of the calibration table, or the planner's.

A pure function of what is asked, the table and counts. Knows nothing of vectors or files. Middle
floor.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from rematch_ray.errors import UserError
from rematch_ray.index.calibration import DOCTOR, Calibration, Row, judge_calibration
from rematch_ray.index.generation import Generation
from rematch_ray.index.hits import SearchResult
from rematch_ray.index.plan import Plan
from rematch_ray.index.planner import (
    EXHAUSTIVE_COST,
    document_cost,
    plan_search,
)
from rematch_ray.index.wish import Wish
from rematch_ray.scoring.budget import Budget, Ladder

# `auto` takes the cheapest plan whose recall has a lower end of at least this
AUTO_RECALL = 0.99
# how much wider a plan is made where its recall was not measured
WIDENING = 2


@dataclass(frozen=True)
class Table:
    """The calibration that a search may go by.

    Args:
        path: of the index, for messages; `DIR` where readers are not to know it.
        calibration: what was measured, or None.
        void: why it holds no longer, or None.
        full: whether documents are searched as they were measured: no filter, no grouping, the
            stored nprobe.
    """

    path: str
    calibration: Calibration | None
    void: str | None
    full: bool = True

    @classmethod
    def of(cls, generation: Generation) -> Table:
        """The calibration of an open generation, judged against it."""
        return cls(str(generation.path), *judge_calibration(generation))

    def partly(self) -> Table:
        """This table for searches that a filter, a grouping or an nprobe changes."""
        return replace(self, full=False)

    def possible(
        self, ladder: Ladder, coarse_choices: Collection[str], *, has_fused: bool
    ) -> Table:
        """This table without plans that an index cannot run: a void one may be of another build.

        Args:
            ladder: the index's.
            coarse_choices: what its coarse stage can go by.
            has_fused: whether it has the fused rung.
        """
        if self.calibration is None:
            return self
        rungs = {*ladder.rungs, Budget.FUSED} if has_fused else {*ladder.rungs}
        rows = tuple(
            row
            for row in self.calibration.rows
            if rungs.issuperset(row.plan.rungs) and row.plan.coarse in (None, *coarse_choices)
        )
        return replace(self, calibration=replace(self.calibration, rows=rows))

    @property
    def holds(self) -> bool:
        """Whether its recalls may be promised."""
        return self.calibration is not None and self.void is None and self.full


@dataclass(frozen=True)
class Choice:
    """A plan, what it promises, and why it was chosen.

    Args:
        plan: its coarse choice is named where it has one.
        expected_recall: lower end of the recall measured; None where none was.
        chosen_by: in a few words.
        is_automatic: whether neither the plan, nor a number of candidates, nor a limit was given:
            it may be widened where groups are missing.
    """

    plan: Plan
    expected_recall: float | None
    chosen_by: str
    is_automatic: bool = False

    def mark(self, result: SearchResult, top: Budget, *, is_hybrid: bool = False) -> SearchResult:
        """A result that says which plan gave it and what was to be expected.

        Nothing is known of the recall of a hybrid search: its order is not that of the vectors.
        """
        complete = result.exact and self.plan.budget == top
        expected = 1.0 if complete else self.expected_recall
        return replace(
            result,
            expected_recall=None if is_hybrid else expected,
            plan={**self._described, **result.plan},
        )

    @cached_property
    def _described(self) -> dict[str, Any]:
        return {**self.plan.to_json(), "chosen_by": self.chosen_by}


def choose_plan(
    wish: Wish,
    ladder: Ladder,
    table: Table,
    *,
    num_allowed: int,
    default_coarse: str,
    num_live: int | None = None,
) -> Choice:
    """Chooses the plan of a search.

    Args:
        wish: what is asked.
        ladder: the index's ladder.
        table: its calibration.
        num_allowed: live documents that pass the filter.
        default_coarse: coarse choice where nothing else decides.
        num_live: live documents, those that the filter removed too; None: nothing was removed.

    Returns:
        The choice; its plan scores every document where its coarse stage would keep all.

    Raises:
        UserError: something is to be reached and no valid table tells how, or nothing measured
            reaches it.
    """
    if wish.nprobe is not None:
        table = table.partly()
    if wish.goal is not None:
        chosen = _reach(wish, ladder, table)
    elif wish.plan is not None:
        chosen = Choice(wish.plan, None, "plan as given")
    elif wish.candidates == "auto" and (row := _auto_row(wish, ladder, table)) is not None:
        chosen = _from_row(row, wish, ladder, table, num_allowed)
    else:
        budget = ladder.top if wish.budget is None else wish.budget
        plan = plan_search(
            budget,
            ladder,
            candidates=wish.candidates,
            num_allowed=num_allowed,
            num_live=num_live,
            top_k=wish.hits,
        )
        chosen = Choice(replace(plan, coarse=wish.coarse), None, "counts")
    plan = chosen.plan.within(num_allowed)
    if plan.coarse_candidates is not None:
        plan = replace(plan, coarse=plan.coarse or default_coarse)
    expected = chosen.expected_recall
    if expected is None:
        expected = _measured(plan, ladder, wish.hits, table)
    is_automatic = wish.goal is None and wish.plan is None and wish.candidates == "auto"
    return replace(chosen, plan=plan, expected_recall=expected, is_automatic=is_automatic)


def _reach(wish: Wish, ladder: Ladder, table: Table) -> Choice:
    """The row for a recall, a cost or a time; an exhaustive search where no row has the recall."""
    assert wish.goal is not None
    limit = getattr(wish, wish.goal)
    rows = _rows_for(wish, _valid(wish.goal, table))
    if wish.goal == "target_recall":
        row = _cheapest(row for row in rows if _low(row, wish.hits) >= limit)
        if row is None or row.plan == Plan(ladder.top, None):
            why = f"all documents scored: no cheaper plan is known to reach target_recall {limit}"
            return Choice(Plan(ladder.top, None), None, why)
        return Choice(row.plan, row.low_at(wish.hits), f"calibration: target_recall {limit}")
    row = _best((row for row in rows if _cost(row, wish.goal) <= limit), wish.hits)
    if row is None:
        least = min((_cost(row, wish.goal) for row in rows), default=None)
        raise UserError(
            f"{wish.goal} {limit} is below every measured plan that finds {wish.hits} documents"
            + (f"; the least is {least:g}" if least is not None else "")
        )
    expected = row.low_at(wish.hits) if table.full else None
    return Choice(row.plan, expected, f"calibration: {wish.goal} {limit}")


def _cost(row: Row, goal: str) -> float:
    return row.dot_products if goal == "cost_limit" else row.ms.p95


def _valid(goal: str, table: Table) -> Calibration:
    """The table, refused with the command that makes a valid one."""
    if table.calibration is None or table.void is not None:
        void = f"that of this index is void: {table.void}"
        lack = "this index has none" if table.void is None else void
        raise UserError(
            f"{goal} needs a calibration, and {lack}; run '{DOCTOR.format(index=table.path)}'"
        )
    if goal == "target_recall" and not table.full:
        raise UserError(
            "target_recall cannot be kept with a filter or group_by, which no calibration covers: "
            "leave it out ('auto' then widens), or score all with candidates 'all'"
        )
    return table.calibration


def _rows_for(wish: Wish, calibration: Calibration) -> list[Row]:
    """Rows that a wish leaves open: those that the fitting kept, able to give so many hits."""
    is_open = wish.budget is None and wish.coarse is None
    return [
        row
        for row in calibration.rows
        if (row.front if is_open else row.own_front)
        and wish.budget in (None, row.plan.budget)
        and (row.plan.coarse is None or wish.coarse in (None, row.plan.coarse))
        and row.low_at(wish.hits) is not None
    ]


def _auto_row(wish: Wish, ladder: Ladder, table: Table) -> Row | None:
    """The cheapest row of enough recall, at the budget asked or any; else the one of the most.

    Recall at a smaller budget that was asked for is measured against that budget: below the full
    one nothing could reach the full one's. All documents are scored only where that is cheap.
    """
    if table.calibration is None:
        return None
    live = table.calibration.standing.live
    rows = [
        row
        for row in _rows_for(wish, table.calibration)
        if row.plan.coarse_candidates is not None
        or live * document_cost(row.plan.budget) <= EXHAUSTIVE_COST
    ]
    own = wish.budget not in (None, ladder.top)
    enough = _cheapest(
        row for row in rows if (row.own.low if own else _low(row, wish.hits)) >= AUTO_RECALL
    )
    return enough or _best(rows, wish.hits)


def _from_row(row: Row, wish: Wish, ladder: Ladder, table: Table, num_allowed: int) -> Choice:
    """A row's plan with its promise, or widened without one where the table does not hold."""
    why = f"calibration: recall@{wish.hits}, lower end {_low(row, wish.hits):.3f}"
    if table.holds:
        return Choice(row.plan, row.low_at(wish.hits), why)
    reason = table.void or "a filter, group_by or nprobe is not calibrated"
    budget = ladder.top if wish.budget is None else wish.budget
    if num_allowed * document_cost(budget) <= EXHAUSTIVE_COST:
        return Choice(Plan(budget, None), None, f"counts; {reason}")
    return Choice(row.plan.widened(WIDENING), None, f"calibration, widened: {reason}")


def _measured(plan: Plan, ladder: Ladder, top_k: int, table: Table) -> float | None:
    """What the table says of a plan that it did not choose."""
    if not table.holds or table.calibration is None:
        return None
    is_direct = plan.coarse_candidates is not None and not plan.narrowing
    lows = [
        row.low_at(top_k)
        for row in table.calibration.rows
        if row.plan == plan
        # at the full budget more candidates find no less
        or (is_direct and plan.budget == ladder.top and _is_part(row.plan, plan))
    ]
    return max((low for low in lows if low is not None), default=None)


def _is_part(fewer: Plan, more: Plan) -> bool:
    """Whether one plan without narrowing scores a part of what another one scores."""
    return (
        fewer.coarse_candidates is not None
        and more.coarse_candidates is not None
        and fewer == replace(more, coarse_candidates=fewer.coarse_candidates)
        and fewer.coarse_candidates <= more.coarse_candidates
    )


def _low(row: Row, top_k: int) -> float:
    return row.low_at(top_k) or 0.0


def _cheapest(rows: Iterable[Row]) -> Row | None:
    order = sorted(rows, key=lambda row: (row.ms.median, row.dot_products, str(row.plan)))
    return order[0] if order else None


def _best(rows: Iterable[Row], top_k: int) -> Row | None:
    """The row of the highest lower end, the cheapest of equal ones."""
    found = list(rows)
    most = max((_low(row, top_k) for row in found), default=0.0)
    return _cheapest(row for row in found if _low(row, top_k) == most)
