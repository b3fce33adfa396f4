"""The stages of one search, as a value: what runs, what it is called, how it is written down.

Chooses nothing and runs nothing; the planner and the calibration hand plans on. Middle floor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from rematch_ray.errors import UserError
from rematch_ray.scoring.budget import Budget


@dataclass(frozen=True)
class Plan:
    """The stages of one search.

    Args:
        budget: final budget, at which hits are ranked.
        coarse_candidates: documents that the coarse stage keeps, at least 1; None: no coarse stage,
            every allowed document is scored at the first of the budgets.
        narrowing: smaller budgets on the way, each with the number of documents that it keeps, at
            least 1.
        coarse: coarse choice; None takes the index's default.

    Raises:
        UserError: a stage that keeps no document, or a budget on the way that does not contain the
            one before it, or the final one it.

    >>> str(Plan(Budget(16, 64), 1000, ((Budget(2, 4), 250),), "first"))
    'first:1000 > 2x4:250 > 16x64'
    """

    budget: Budget
    coarse_candidates: int | None
    narrowing: tuple[tuple[Budget, int], ...] = ()
    coarse: str | None = None

    def __post_init__(self) -> None:
        for count in self._counts:
            if count < 1:
                raise UserError(
                    f"a stage of a plan that keeps {count} documents is not possible: give a whole "
                    "number of at least 1"
                )
        for smaller, larger in pairwise(self.rungs):
            if smaller.is_fused or not larger.contains(smaller):
                raise UserError(
                    f"a plan goes through growing budgets, but {larger} follows {smaller}: leave "
                    "one of them out"
                )

    @property
    def rungs(self) -> tuple[Budget, ...]:
        """The budgets that documents are scored at, the final one last."""
        return (*(rung for rung, _ in self.narrowing), self.budget)

    @property
    def is_exhaustive(self) -> bool:
        """Whether every allowed document is scored at the final budget."""
        return self.coarse_candidates is None and not self.narrowing

    @property
    def kept(self) -> int | None:
        """Documents that reach the final budget at most; None = all."""
        return min(self._counts, default=None)

    @property
    def _counts(self) -> list[int]:
        """Documents that each stage before the last keeps."""
        coarse = [] if self.coarse_candidates is None else [self.coarse_candidates]
        return [*coarse, *(keep for _, keep in self.narrowing)]

    def __str__(self) -> str:
        first = f"{self.coarse or 'coarse'}:{self.coarse_candidates}"
        stages = ["all" if self.coarse_candidates is None else first]
        stages += [f"{rung}:{keep}" for rung, keep in self.narrowing]
        return " > ".join([*stages, str(self.budget)])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, its name among them."""
        return {
            "name": str(self),
            "budget": str(self.budget),
            "coarse": self.coarse,
            "candidates": self.coarse_candidates,
            "narrowing": [[str(rung), keep] for rung, keep in self.narrowing],
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Plan:
        """Reads what `to_json` wrote.

        Raises:
            UserError: a key is missing, or a value is of another kind.

        >>> plan = Plan(Budget(4, 8), 100, (), "both")
        >>> Plan.from_json(plan.to_json()) == plan
        True
        """
        try:
            count = fields["candidates"]
            return cls(
                budget=Budget.parse(fields["budget"]),
                coarse_candidates=None if count is None else int(count),
                narrowing=tuple((Budget.parse(r), int(keep)) for r, keep in fields["narrowing"]),
                coarse=fields["coarse"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as broken:
            raise UserError(
                f"{dict(fields)} is no plan ({broken!r}): give budget, coarse, candidates and "
                'narrowing, such as [["2x4", 500]]'
            ) from broken

    def widened(self, factor: int) -> Plan:
        """The same stages, each keeping so many times the documents.

        >>> str(Plan(Budget(4, 8), 100, ((Budget(1, 1), 50),), "both").widened(2))
        'both:200 > 1x1:100 > 4x8'
        """
        if self.coarse_candidates is None:
            return self
        narrowing = tuple((rung, factor * keep) for rung, keep in self.narrowing)
        return replace(self, coarse_candidates=factor * self.coarse_candidates, narrowing=narrowing)

    def within(self, num_allowed: int) -> Plan:
        """This plan, or an exhaustive one where the coarse stage would keep every document.

        >>> str(Plan(Budget(4, 8), 100, (), "both").within(100))
        'all > 4x8'
        """
        if self.coarse_candidates is not None and self.coarse_candidates >= num_allowed:
            return Plan(self.budget, None)
        return self

    def dot_products(self, num_allowed: int, *, coarse: int) -> int:
        """Dot products of one query, maxima carried from one budget to the next.

        Args:
            num_allowed: documents that may be returned.
            coarse: dot products of the coarse stage; not counted where it does not run.

        >>> Plan(Budget(4, 8), 100, ((Budget(1, 1), 10),), "first").dot_products(1000, coarse=1000)
        1410
        """
        left = num_allowed if self.coarse_candidates is None else self.coarse_candidates
        total = 0 if self.coarse_candidates is None else coarse
        carried = 0
        for rung, keep in self.narrowing:
            total += left * (rung.dot_products - carried)
            left, carried = keep, rung.dot_products
        return total + left * (self.budget.dot_products - carried)
