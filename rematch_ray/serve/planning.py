"""Which budget a request gets: what it asks for, or less under a deadline or a ceiling.

Explicit budgets are never lowered; `auto` gets at most what it would get unloaded, and less only
for a reason that the answer names. Pure functions of facts, orders and a forecast. Knows no Ray and
no vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rematch_ray.index.lexical.fusion import list_depth
from rematch_ray.index.plan import Plan
from rematch_ray.index.planner import AUTO_CANDIDATES, narrow
from rematch_ray.scoring.budget import Budget
from rematch_ray.serve.backend import SearchPlan
from rematch_ray.serve.facts import IndexFacts
from rematch_ray.serve.forecast import Forecast

_CANDIDATES_PER_HIT = 10
_KEPT = 256


@dataclass(frozen=True)
class Option:
    """One way to run a request.

    Attributes:
        how: budget, candidates and the like, as `SearchIndex.search` takes them.
        plan: the stages that this is expected to give; a filter may change them.
        dot_products: expected.
        recall: that the calibration promises, or None.
        measured_ms: 95th percentile that the doctor saw, or None.
    """

    how: Mapping[str, Any]
    plan: Plan
    dot_products: int
    recall: float | None
    measured_ms: float | None

    @property
    def name(self) -> str:
        """By which a forecast knows it."""
        return str(self.plan)

    @property
    def grouped_name(self) -> str:
        """By which a forecast knows it where hits are grouped: missing groups may take longer."""
        return f"{self.plan} by groups"

    def mean_ms(self, forecast: Forecast, *, grouped: bool = False) -> float:
        """What it is expected to take."""
        name = self.grouped_name if grouped else self.name
        return forecast.mean_ms(name, self.dot_products, self.measured_ms)

    def p95_ms(self, forecast: Forecast) -> float:
        """What it takes at most, nearly always."""
        return forecast.p95_ms(self.name, self.dot_products, self.measured_ms)


@dataclass(frozen=True)
class Decision:
    """What a request gets.

    Attributes:
        option: how it is run.
        unloaded: how it would have been run without a deadline and a ceiling.
        degraded: why that is less: `deadline`, `load`.
    """

    option: Option
    unloaded: Option
    degraded: tuple[str, ...] = ()


class Planner:
    """Plans requests over one state of an index; remembers what requests of one kind may get.

    Args:
        facts: of the state.
    """

    def __init__(self, facts: IndexFacts) -> None:
        self.facts = facts
        self._known: dict[tuple[Any, ...], list[Option]] = {}

    def decide(
        self,
        plan: SearchPlan,
        *,
        top_k: int,
        forecast: Forecast,
        level: int = 0,
        left_ms: float | None = None,
    ) -> Decision:
        """Choose how a request is run.

        Args:
            plan: what is asked.
            top_k: hits that the search must give, those that are dropped later included.
            forecast: of milliseconds.
            level: rungs that the ceiling lies below the top of the ladder.
            left_ms: until the deadline, queueing taken off; None for no deadline.

        Raises:
            UserError: the request does not fit the index.
        """
        options = self._options(plan, top_k)
        unloaded = chosen = options[0]
        degraded: list[str] = []
        if plan.is_auto and level > 0:
            chosen = self._under_ceiling(options, level, forecast)
            if chosen is not unloaded:
                degraded.append("load")
        if plan.is_auto and left_ms is not None and chosen.p95_ms(forecast) > left_ms:
            below = [option for option in options if _budget(option) <= _budget(chosen)]
            quicker = _best_within(below, left_ms, forecast)
            if quicker is not chosen:
                degraded.append("deadline")
                chosen = quicker
        return Decision(chosen, unloaded, tuple(degraded))

    def ceiling_cost(self, level: int, top_k: int, forecast: Forecast) -> int:
        """Dot products of what a plain `auto` request gets under a ceiling."""
        options = self._options(SearchPlan(), top_k)
        return self._under_ceiling(options, level, forecast).dot_products

    def plain(self) -> Option:
        """What a plain `auto` request gets unloaded."""
        return self._options(SearchPlan(), 10)[0]

    def ceiling(self, level: int) -> Budget:
        """The largest budget of `auto` at a level."""
        rungs = self.facts.rungs.rungs
        return rungs[max(0, len(rungs) - 1 - level)]

    def _under_ceiling(self, options: list[Option], level: int, forecast: Forecast) -> Option:
        """The best option below the ceiling; each step down costs less than the one before.

        A smaller budget without a coarse stage may take longer than a larger one with it: then it
        would not relieve anybody.
        """
        chosen = options[0]
        for step in range(1, level + 1):
            most = self.ceiling(step).dot_products
            if _budget(chosen) <= most:
                continue
            below = [option for option in options if _budget(option) <= most]
            cost = chosen.mean_ms(forecast)
            cheaper = [option for option in below if option.mean_ms(forecast) <= cost]
            if below:
                chosen = (cheaper or [min(below, key=lambda each: each.mean_ms(forecast))])[0]
        return chosen

    def _options(self, plan: SearchPlan, top_k: int) -> list[Option]:
        """How the request would be run unloaded, then what it may get instead, best first."""
        narrowed = plan.filter is not None or plan.group_by is not None
        key = (plan.budget, plan.candidates, plan.coarse, plan.target_recall, top_k, narrowed,
               plan.is_auto, plan.text is not None)  # fmt: skip
        if (known := self._known.get(key)) is not None:
            return known
        asked = {"candidates": plan.candidates, "coarse": plan.coarse}
        first = {**asked, "budget": plan.budget, "target_recall": plan.target_recall}
        options = [self._option(first, plan, top_k)]
        if plan.is_auto:
            options += self._lower(options[0], asked, plan, top_k, narrowed=narrowed)
        if len(self._known) >= _KEPT:
            self._known.clear()
        self._known[key] = options
        return options

    def _lower(
        self,
        unloaded: Option,
        asked: Mapping[str, Any],
        plan: SearchPlan,
        top_k: int,
        *,
        narrowed: bool,
    ) -> list[Option]:
        found = []
        for rung in self.facts.lowered(unloaded.plan.budget):
            option = self._option({**asked, "budget": str(rung)}, plan, top_k)
            if not narrowed and plan.candidates == "auto":
                option = self._cheaper(option, rung, plan, top_k)
            found.append(option)
        if not narrowed and plan.candidates == "auto" and self.facts.table.holds:
            found += self._measured(unloaded, plan, top_k)
        return sorted(found, key=lambda option: (-(option.recall or 0.0), -_budget(option)))

    def _cheaper(self, option: Option, rung: Budget, plan: SearchPlan, top_k: int) -> Option:
        """The option, or the same rung behind a coarse stage where that costs less."""
        wanted = max(AUTO_CANDIDATES, _CANDIDATES_PER_HIT * top_k)
        if not option.plan.is_exhaustive or wanted >= self.facts.live:
            return option
        coarse = plan.coarse or self.facts.default_coarse
        stages = Plan(rung, wanted, narrow(rung, self.facts.rungs, wanted, top_k), coarse)
        with_coarse = self._option({"plan": stages}, plan, top_k)
        return with_coarse if with_coarse.dot_products < option.dot_products else option

    def _measured(self, unloaded: Option, plan: SearchPlan, top_k: int) -> list[Option]:
        """Calibrated plans of no larger budget: more choice for a deadline."""
        calibration = self.facts.table.calibration
        assert calibration is not None
        hits = top_k if plan.text is None else list_depth(top_k)
        return [
            self._option({"plan": row.plan}, plan, top_k)
            for row in calibration.rows
            if row.front
            and row.low_at(hits) is not None
            and row.plan.coarse is not None
            and plan.coarse in (None, row.plan.coarse)
            and row.plan.budget.dot_products < _budget(unloaded)
        ]

    def _option(self, how: Mapping[str, Any], plan: SearchPlan, top_k: int) -> Option:
        facts = self.facts
        choice = facts.choose(
            top_k=top_k,
            filter=plan.filter,
            group_by=plan.group_by,
            is_hybrid=plan.text is not None,
            **how,
        )
        return Option(
            how=how,
            plan=choice.plan,
            dot_products=facts.dot_products(choice.plan),
            recall=choice.expected_recall,
            measured_ms=facts.measured_ms(choice.plan),
        )


def _budget(option: Option) -> int:
    return option.plan.budget.dot_products


def _best_within(options: list[Option], left_ms: float, forecast: Forecast) -> Option:
    """The best that fits; the quickest where none does."""
    for option in options:
        if option.p95_ms(forecast) <= left_ms:
            return option
    return min(options, key=lambda option: option.mean_ms(forecast))
