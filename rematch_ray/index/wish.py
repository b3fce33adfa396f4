"""What a caller asks of a search, resolved against what the index offers, before it is planned.

Knows nothing of calibrations, vectors or files. Middle floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rematch_ray.errors import UserError
from rematch_ray.index.lexical.fusion import list_depth
from rematch_ray.index.plan import Plan
from rematch_ray.index.planner import Candidates, check_candidates
from rematch_ray.scoring.budget import Budget, Ladder

_GOALS = ("target_recall", "cost_limit", "max_ms")


@dataclass(frozen=True)
class Wish:
    """What a caller asks of a search, resolved but not yet planned.

    Args:
        budget: final budget; None leaves it open (`auto`).
        candidates: `auto`, `all` or a number.
        coarse: coarse choice; None leaves it open.
        top_k: hits.
        target_recall: least recall against an exhaustive search at the full budget.
        cost_limit: most dot products.
        max_ms: most milliseconds, at the 95th percentile measured.
        plan: the plan itself.
        nprobe: inverted lists that the coarse stage looks through; None: the stored number, which
            alone was calibrated.
        is_hybrid: whether what is found is one of two lists to be fused, longer than `top_k`.

    Raises:
        UserError: a number that is not possible, two things that decide the same, or a goal with an
            nprobe of which nothing was measured.
    """

    budget: Budget | None
    candidates: Candidates
    coarse: str | None
    top_k: int
    target_recall: float | None = None
    cost_limit: int | None = None
    max_ms: float | None = None
    plan: Plan | None = None
    nprobe: int | None = None
    is_hybrid: bool = False

    def __post_init__(self) -> None:
        check_candidates(self.candidates, self.top_k)
        names = [name for name in (*_GOALS, "plan") if getattr(self, name) is not None]
        if names and (self.budget is not None or self.candidates != "auto" or self.coarse):
            names.append("budget, candidates or coarse")
        if len(names) > 1:
            raise UserError(
                f"{' and '.join(names)} cannot be given together: each chooses the plan; give one"
            )
        self._check_nprobe()
        if self.target_recall is not None and not 0.0 < self.target_recall <= 1.0:
            raise UserError(
                f"target_recall {self.target_recall} is not possible: give a share above 0, up to 1"
            )
        for name in ("cost_limit", "max_ms"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name} {value} is not possible: give a number above 0")
        kept = None if self.plan is None else self.plan.kept
        if kept is not None and kept < self.top_k:
            raise UserError(f"plan {self.plan} keeps fewer documents than top_k {self.top_k}")

    def _check_nprobe(self) -> None:
        if self.nprobe is None:
            return
        if isinstance(self.nprobe, bool) or not isinstance(self.nprobe, int) or self.nprobe < 1:
            raise UserError(
                f"nprobe {self.nprobe!r} is not possible: give a whole number of at least 1"
            )
        if self.goal is not None:
            raise UserError(
                f"{self.goal} and nprobe cannot be given together: the calibration measured the "
                "stored nprobe alone; leave one of them out"
            )

    @property
    def hits(self) -> int:
        """Documents that a plan which is still to be chosen must be able to give.

        A hybrid search fuses longer lists. Who names a plan or a number of candidates has said how
        many documents the vectors find, and gets those.
        """
        is_said = self.plan is not None or self.candidates not in ("auto", "all")
        return list_depth(self.top_k) if self.is_hybrid and not is_said else self.top_k

    @property
    def goal(self) -> str | None:
        """Name of what is to be reached, if anything is."""
        return next((name for name in _GOALS if getattr(self, name) is not None), None)

    @classmethod
    def of(
        cls,
        ladder: Ladder,
        has_fused: bool,
        coarse_choices: Sequence[str],
        *,
        budget: str | Budget | None,
        coarse: str | None,
        plan: Plan | None,
        **rest: Any,
    ) -> Wish:
        """Reads what was asked as the index understands it.

        Args:
            ladder: the index's.
            has_fused: whether it has the fused rung.
            coarse_choices: what its coarse stage can go by.
            budget: a rung, its text or name; None and `auto` leave it open.
            coarse: a coarse choice, or None.
            plan: stages, or None.
            rest: the other fields.

        Raises:
            UserError: a rung or coarse choice that the index does not have, or as above.
        """
        for stage in () if plan is None else plan.rungs:
            ladder.resolve(stage, has_fused=has_fused)
        for choice in (coarse, None if plan is None else plan.coarse):
            if choice is not None and choice not in coarse_choices:
                raise UserError(
                    f"coarse '{choice}' does not exist here; allowed: {', '.join(coarse_choices)}"
                )
        rung = None if is_open(budget) else ladder.resolve(budget, has_fused=has_fused)
        return cls(budget=rung, coarse=coarse, plan=plan, **rest)


def is_open(budget: str | Budget | None) -> bool:
    """Whether a budget as written leaves the choice to the index.

    >>> is_open("auto"), is_open(None), is_open("4x8")
    (True, True, False)
    """
    return budget is None or (isinstance(budget, str) and budget.strip().lower() == "auto")
