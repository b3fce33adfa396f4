"""The matching head as the last rung: whether it runs, with which weight, and the new order.

Pure; the head itself is a function of the encoder. Knows no Ray and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rematch_ray.errors import UserError
from rematch_ray.serve.backend import EncodedQuery, SearchPlan
from rematch_ray.serve.facts import IndexFacts

if TYPE_CHECKING:
    from rematch_ray.index.hits import Hit

TOP_N = 100


@dataclass(frozen=True)
class Head:
    """How the matching head is used on one request.

    Attributes:
        top_n: hits that it scores again.
        weight: final score = mean MaxSim + weight * (log p(Yes) - log p(No)).
        is_forced: asked for by the caller; else it is left out where time is short.
    """

    top_n: int
    weight: float
    is_forced: bool


def head_for(
    plan: SearchPlan, query: EncodedQuery, facts: IndexFacts, *, level: int, default_weight: float
) -> Head | None:
    """Whether the head runs.

    On its own it does so for `auto` requests, where the doctor measured a gain whose interval lies
    above 0 and no ceiling is down.

    Args:
        plan: the request.
        query: its vectors.
        facts: of the index.
        level: of the ceiling.
        default_weight: where the caller forces it and nothing was measured.

    Raises:
        UserError: it is asked for and cannot run.
    """
    asked = plan.rerank
    matching = _measured(facts)
    if asked is None:
        wanted = plan.with_rerank and plan.is_auto and plan.text is None and level == 0
        has_gain = matching.get("lambda", 0) > 0 and (matching.get("gain") or {}).get("low", 0) > 0
        if not (wanted and has_gain and query.fused is not None and facts.fused_dim is not None):
            return None
        return Head(_within(plan, TOP_N), matching["lambda"], is_forced=False)
    if asked.raw:
        raise UserError("rerank over raw documents is not possible here: leave 'raw' out")
    if query.fused is None or facts.fused_dim is None:
        raise UserError("rerank needs fused vectors, and there are none here: leave it out")
    if plan.text is not None:
        raise UserError("rerank and hybrid search cannot be combined: leave one of them out")
    return Head(_within(plan, asked.top_n), matching.get("lambda") or default_weight, True)


def reordered(hits: Sequence[Hit], odds: Sequence[float], weight: float) -> list[Hit]:
    """The hits by their final scores, equal ones in the order they had.

    Args:
        hits: best first.
        odds: log p(Yes) - log p(No) of each.
        weight: of the odds.
    """
    scored = [
        replace(hit, score=hit.score + weight * float(odd))
        for hit, odd in zip(hits, odds, strict=True)
    ]
    return sorted(scored, key=lambda hit: -hit.score)


def _measured(facts: IndexFacts) -> dict[str, Any]:
    calibration = facts.table.calibration
    if calibration is None or facts.table.void is not None or calibration.matching is None:
        return {}
    return dict(calibration.matching)


def _within(plan: SearchPlan, top_n: int) -> int:
    """No fewer than are shown, no more than there are candidates."""
    least = plan.offset + plan.top_k
    most = plan.candidates if isinstance(plan.candidates, int) else max(top_n, least)
    return min(max(top_n, least), most)
