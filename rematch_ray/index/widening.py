"""Looking further down where candidates hold fewer groups than a search asked for.

Documents of a few groups may fill all candidates of a plan. One that was chosen for the caller runs
again with more of them, until the groups are there, or every document was scored, or none is left
that belongs to another group. What the caller named is run as named, and the result says that
groups may be missing. Knows nothing of how a plan is run. Middle floor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rematch_ray.index.choice import Choice
from rematch_ray.index.grouping import GroupBy, Grouping, field_of, value_of
from rematch_ray.index.hits import SearchResult, note_short
from rematch_ray.index.plan import Plan
from rematch_ray.scoring.budget import Budget

FACTOR = 4
# ends what a choice says of itself
_WHY = "widened for groups"
# a pass is begun where so many times what it is expected to take is left
_MARGIN = 2


def wider(plan: Plan, num_allowed: int) -> Plan | None:
    """The same stages, each keeping more; None where every allowed document is scored already.

    >>> plan = Plan(Budget(16, 64), 2000, ((Budget(4, 8), 500),), "first")
    >>> str(wider(plan, 10**6)), str(wider(plan, 5000)), wider(Plan(Budget(4, 8), None), 5000)
    ('first:8000 > 4x8:2000 > 16x64', 'all > 16x64', None)
    """
    if plan.is_exhaustive:
        return None
    narrowing = tuple((rung, FACTOR * keep) for rung, keep in plan.narrowing)
    coarse = None if plan.coarse_candidates is None else FACTOR * plan.coarse_candidates
    grown = replace(plan, coarse_candidates=coarse, narrowing=narrowing).within(num_allowed)
    kept = grown.kept
    return Plan(plan.budget, None) if kept is None or kept >= num_allowed else grown


def is_widened(result: SearchResult) -> bool:
    """Whether it took more than one pass to find the groups."""
    return str(result.plan["chosen_by"]).endswith(_WHY)


class GroupPasses:
    """The passes of one grouped query; whoever runs them asks for the plan of the next.

    Args:
        choice: of the first pass.
        result: of the first pass.
        seconds: that it took.
        top_k: groups that are wanted.
        num_allowed: documents that pass the filter.
        group_by: as asked.
        until: reading of the clock by which all must end; None for no limit.
        most: documents that a further pass may score at the final budget; None for no limit.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        choice: Choice,
        result: SearchResult,
        seconds: float,
        *,
        top_k: int,
        num_allowed: int,
        group_by: GroupBy,
        until: float | None = None,
        most: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._first = choice
        self._plan = choice.plan
        self._result = result
        self._seconds = seconds
        self._top_k = min(top_k, num_allowed)
        self._num_allowed = num_allowed
        self._group_by = group_by
        self._clock = clock
        self._until = until
        self._most = most
        self._knows_all = False

    def next_plan(self) -> Plan | None:
        """The plan of the next pass; None where there is to be none."""
        if not self._is_short or not self._first.is_automatic:
            return None
        plan = wider(self._plan, self._num_allowed)
        if plan is None or self._is_too_wide(plan):
            return None
        if self._until is None:
            return plan
        before, after = (p.dot_products(self._num_allowed, coarse=0) for p in (self._plan, plan))
        expected = self._seconds * after / max(1, before)
        return plan if _MARGIN * expected <= self._until - self._clock() else None

    def conditions(
        self, filter: Mapping[str, Any] | None, sources: Sequence[str]
    ) -> dict[str, Any] | None:
        """A filter that the documents of the groups found pass; None where none can say so.

        Args:
            filter: of the search.
            sources: of the hits, where they are grouped by source.
        """
        values = [value for _, value in self._values(sources) if value is not None]
        if not all(isinstance(value, str | int | float) for value in values):
            return None
        return {**(filter or {}), field_of(self._group_by): list(dict.fromkeys(values))}

    def saw(self, covered: int, sources: Sequence[str]) -> None:
        """Take down how many documents pass `conditions`: where the rest are hits, all is known."""
        found = self._values(sources)
        values = [value for _, value in found if value is not None]
        alone = sum(value is None and whole not in values for whole, value in found)
        self._knows_all = covered + alone >= self._num_allowed

    def take(self, plan: Plan, result: SearchResult, seconds: float) -> None:
        """Take down another pass."""
        # the filter, which comes first, is that of the first pass
        stages = [*self._result.stages, *result.stages[1:]]
        self._result = replace(result, stages=stages)
        self._plan, self._seconds = plan, seconds

    def marked(self, top: Budget) -> SearchResult:
        """What was found, by which plan, and whether groups may be missing."""
        choice = self._first
        if self._plan != choice.plan:
            why = f"{choice.chosen_by}; {_WHY}"
            choice = Choice(self._plan, None, why, is_automatic=True)
        return choice.mark(note_short(self._result) if self._is_short else self._result, top)

    @property
    def hits(self) -> list[str]:
        """Ids of what was found so far."""
        return [hit.id for hit in self._result.hits]

    @property
    def _is_short(self) -> bool:
        is_whole = self._knows_all or self._result.scored >= self._num_allowed
        return len(self._result.hits) < self._top_k and not is_whole

    def _is_too_wide(self, plan: Plan) -> bool:
        scored = self._num_allowed if plan.kept is None else plan.kept
        return self._most is not None and scored > self._most

    def _values(self, sources: Sequence[str]) -> list[tuple[Any, Any]]:
        """Of each hit the field's value, and that of its group: None where it stands alone."""
        apart = self._group_by.apart if isinstance(self._group_by, Grouping) else None
        known = sources or [""] * len(self._result.hits)
        found = [
            (hit.id, value_of(hit.payload, self._group_by, source=source))
            for hit, source in zip(self._result.hits, known, strict=True)
        ]
        return [(value, None if name == apart else value) for name, value in found]
