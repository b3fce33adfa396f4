"""Which documents a search scores, and at which budgets on the way: a pure function of counts.

Knows nothing of vectors, files or time; every choice can be read off the arguments. Middle floor.
"""

from __future__ import annotations

from typing import Literal

from rematch_ray.errors import UserError
from rematch_ray.index.plan import Plan
from rematch_ray.scoring.budget import Budget, Ladder

__all__ = ["Candidates", "Plan", "check_candidates", "document_cost", "narrow", "plan_search"]

Candidates = int | Literal["auto", "all"]

# Reading and widening a document vector costs about as much as this many dot products with it.
READ_COST = 16
# `auto` scores everything up to this cost, in dot products: 4,096 documents at 16x64.
EXHAUSTIVE_COST = 1 << 23
AUTO_CANDIDATES = 2000
# So few survivors of a filter are not worth a coarse stage: lists would look at all of them anyway,
# and approximate ones miss some.
_FEW_DOCUMENTS = 5000
_FEW_SHARE = 0.02
# Candidates are narrowed once, through the largest rung of at most this share of the final cost: of
# 2,000 of `tiny-full`, 4x8 to 500 keeps 0.992 of the ten best (results/search.md); the three rungs
# below 16x64 in turn, halving at each, kept 0.980.
_NARROW_SHARE = 1 / 8
_NARROW_FACTOR = 4
_NARROW_FLOOR = 100
_CANDIDATES_PER_HIT = 10


def few_survive(num_allowed: int, num_documents: int) -> bool:
    """Whether a filter leaves so few documents that looking at each is the better search.

    >>> few_survive(15_000, 10**6), few_survive(50_000, 10**6), few_survive(400, 400)
    (True, False, False)
    """
    few = max(_FEW_DOCUMENTS, _FEW_SHARE * num_documents)
    return num_allowed < min(num_documents, few)


def check_candidates(candidates: Candidates, top_k: int) -> None:
    """Refuses counts that cannot be searched.

    Raises:
        UserError: top_k below 1, or candidates not `auto`, `all` or a number of at least top_k.
    """
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise UserError(f"top_k {top_k!r} is not possible: give a whole number of at least 1")
    if candidates in ("auto", "all"):
        return
    if isinstance(candidates, bool) or not isinstance(candidates, int) or candidates < 1:
        raise UserError(
            f"candidates {candidates!r} is not possible: give 'auto', 'all' or a number from 1"
        )
    if candidates < top_k:
        raise UserError(
            f"candidates {candidates} is below top_k {top_k}: "
            "score at least as many documents as you want back"
        )


def document_cost(budget: Budget) -> int:
    """Cost of scoring one document, in dot products: its vectors are read, then compared.

    >>> document_cost(Budget(16, 64)), document_cost(Budget(1, 1))
    (2048, 17)
    """
    return max(1, budget.r_d) * (READ_COST + max(1, budget.r_q))


def plan_search(
    budget: Budget,
    ladder: Ladder,
    *,
    candidates: Candidates,
    num_allowed: int,
    top_k: int,
    num_live: int | None = None,
) -> Plan:
    """Chooses the stages of a search.

    `all` scores every allowed document at the final budget; a number lets the coarse stage choose
    so many, all scored at the final budget; `auto` scores everything where that is cheap, and
    otherwise narrows through a smaller budget. Where a filter leaves few documents, `auto` takes
    all of them into that budget and needs no coarse stage.

    Args:
        budget: final budget, a rung of the ladder or the fused rung.
        ladder: the index's ladder.
        candidates: see above.
        num_allowed: live documents that pass the filter.
        top_k: hits wanted.
        num_live: live documents, those that the filter removed too; None: nothing was removed.

    Returns:
        The plan.

    >>> ladder = Ladder.parse(["1x1", "2x4", "4x8", "8x16", "16x64"])
    >>> plan = plan_search(ladder.top, ladder, candidates="auto", num_allowed=10**5, top_k=10)
    >>> plan.coarse_candidates, [(str(rung), keep) for rung, keep in plan.narrowing]
    (2000, [('4x8', 500)])
    """
    if candidates == "all":
        return Plan(budget, None)
    if candidates == "auto":
        if num_allowed * document_cost(budget) <= EXHAUSTIVE_COST:
            return Plan(budget, None)
        wanted = max(AUTO_CANDIDATES, _CANDIDATES_PER_HIT * top_k)
    else:
        wanted = candidates
    if wanted >= num_allowed:
        return Plan(budget, None)
    if candidates != "auto":
        return Plan(budget, wanted)
    narrowing = narrow(budget, ladder, wanted, top_k)
    few = few_survive(num_allowed, num_allowed if num_live is None else num_live)
    return Plan(budget, None if few else wanted, narrowing)


def narrow(
    budget: Budget, ladder: Ladder, candidates: int, top_k: int, *, factor: int = _NARROW_FACTOR
) -> tuple[tuple[Budget, int], ...]:
    """The rung below a budget that narrows candidates, with what it keeps; none where none pays.

    Args:
        budget: final budget.
        ladder: the index's ladder.
        candidates: documents that the coarse stage keeps.
        top_k: hits wanted; at least twice as many are kept.
        factor: one part in how many is kept.

    >>> ladder = Ladder.parse(["1x1", "2x4", "4x8", "8x16", "16x64"])
    >>> [(str(rung), keep) for rung, keep in narrow(ladder.top, ladder, 1000, 10)]
    [('4x8', 250)]
    >>> narrow(Budget(2, 4), ladder, 1000, 10)
    ()
    """
    whole = document_cost(budget)
    # one dot product sees no more than the coarse stage saw
    smaller = [
        rung for rung in ladder.rungs if rung.dot_products > 1 and document_cost(rung) <= whole / 2
    ]
    cheap = [rung for rung in smaller if document_cost(rung) <= _NARROW_SHARE * whole]
    keep = max(_NARROW_FLOOR, 2 * top_k, candidates // factor)
    if not smaller or keep >= candidates:
        return ()
    return ((cheap[-1] if cheap else smaller[0], keep),)
