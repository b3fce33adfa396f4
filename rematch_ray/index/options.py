"""How to search, as one value: every option of a search call, before it is planned.

Knows nothing of vectors or files. Middle floor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rematch_ray.index.grouping import GroupBy
from rematch_ray.index.plan import Plan
from rematch_ray.index.planner import Candidates
from rematch_ray.index.wish import Wish
from rematch_ray.scoring.budget import Budget, Ladder


@dataclass(frozen=True)
class SearchOptions:
    """The options of `SearchIndex.search`, which describes each."""

    budget: str | Budget | None = None
    candidates: Candidates = "auto"
    top_k: int = 10
    filter: Mapping[str, Any] | None = None
    group_by: GroupBy | None = None
    coarse: str | None = None
    nprobe: int | None = None
    text: str | Sequence[str] | None = None
    fusion: str | None = None
    lexical_weight: float = 0.5
    target_recall: float | None = None
    cost_limit: int | None = None
    max_ms: float | None = None
    plan: Plan | None = None

    def wish(self, ladder: Ladder, has_fused: bool, coarse_choices: Sequence[str]) -> Wish:
        """What they ask of the plan.

        Args:
            ladder: the index's.
            has_fused: whether it has the fused rung.
            coarse_choices: what its coarse stage can go by.

        Raises:
            UserError: see `Wish.of`.
        """
        return Wish.of(
            ladder,
            has_fused,
            coarse_choices,
            budget=self.budget,
            candidates=self.candidates,
            coarse=self.coarse,
            top_k=self.top_k,
            target_recall=self.target_recall,
            cost_limit=self.cost_limit,
            max_ms=self.max_ms,
            plan=self.plan,
        )
