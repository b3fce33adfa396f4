"""Which plans the doctor tries: every coarse choice, candidate counts, narrowing and final budget.

A pure function of counts. Middle floor.
"""

from __future__ import annotations

from collections.abc import Sequence

from rematch_ray.index.plan import Plan
from rematch_ray.index.planner import narrow
from rematch_ray.scoring.budget import Budget, Ladder

CANDIDATE_COUNTS = (50, 100, 200, 500, 1000, 2000, 4000)
# one part in two, and one in four, as an uncalibrated search narrows
NARROWING_FACTORS = (2, 4)


def plans_to_try(
    ladder: Ladder,
    *,
    coarse_choices: Sequence[str],
    has_fused: bool,
    live: int,
    top_k: int,
    counts: Sequence[int] = CANDIDATE_COUNTS,
) -> list[Plan]:
    """Plans that are worth measuring, each once.

    Args:
        ladder: the index's.
        coarse_choices: what its coarse stage can go by.
        has_fused: whether the fused rung can be a final budget.
        live: documents; a coarse stage that keeps all of them is none.
        top_k: hits that a plan must be able to give.
        counts: documents that a coarse stage keeps.

    >>> ladder = Ladder.parse(["1x1", "2x4"])
    >>> tried = plans_to_try(
    ...     ladder, coarse_choices=["first"], has_fused=False, live=80, top_k=10, counts=[50, 100]
    ... )
    >>> [str(plan) for plan in tried]
    ['all > 1x1', 'first:50 > 1x1', 'all > 2x4', 'first:50 > 2x4']
    """
    usable = sorted({count for count in counts if top_k <= count < live})
    plans: list[Plan] = []
    for budget in ((Budget.FUSED,) if has_fused else ()) + ladder.rungs:
        plans.append(Plan(budget, None))
        for coarse in coarse_choices:
            for count in usable:
                stages = [narrow(budget, ladder, count, top_k, factor=f) for f in NARROWING_FACTORS]
                plans += [Plan(budget, count, stage, coarse) for stage in [(), *stages]]
    return list(dict.fromkeys(plans))
