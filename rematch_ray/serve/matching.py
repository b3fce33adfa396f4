"""The matching head as the last rung: whether it runs, with which weight, and the new order.

Pure; the head itself is a function of the encoder. Knows no Ray and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from rematch_ray.errors import UserError
from rematch_ray.serve.backend import EncodedQuery, Float32, SearchPlan
from rematch_ray.serve.facts import IndexFacts

if TYPE_CHECKING:
    from rematch_ray.data.item import Item
    from rematch_ray.index.hits import Hit

TOP_N = 100


class Matcher(Protocol):
    """What knows the matching head."""

    async def match(self, fused_query: Float32, fused_documents: Float32) -> Float32:
        """(1, F) and (N, F) -> (N,) log-odds of Yes."""
        ...

    async def match_raw(
        self,
        query: Item,
        instruction: str | None,
        documents: Sequence[Item],
        document_instruction: str | None,
    ) -> Sequence[float | None]:
        """Log-odds of Yes of a query with each document; None where one cannot be read."""
        ...


@dataclass(frozen=True)
class Head:
    """How the matching head is used on one request.

    Attributes:
        limit: hits that are asked for.
        top_n: of them, that it scores again.
        weight: final score = mean MaxSim + weight * (log p(Yes) - log p(No)).
        is_forced: asked for by the caller; else it is left out where time is short.
        item: the query, where it and the documents are read raw; None goes by fused vectors.
    """

    limit: int
    top_n: int
    weight: float
    is_forced: bool
    item: Item | None = None


def head_for(
    plan: SearchPlan, query: EncodedQuery, facts: IndexFacts, *, default_weight: float
) -> Head | None:
    """Whether the head runs where there is no ceiling.

    On its own it does so for `auto` requests, where the doctor measured a gain whose interval lies
    above 0.

    Args:
        plan: the request.
        query: its vectors.
        facts: of the index.
        default_weight: where the caller forces it and nothing was measured.

    Raises:
        UserError: it is asked for and cannot run.
    """
    asked = plan.rerank
    matching = _measured(facts)
    if asked is None:
        wanted = plan.with_rerank and plan.is_auto and plan.text is None
        has_gain = matching.get("lambda", 0) > 0 and (matching.get("gain") or {}).get("low", 0) > 0
        if not (wanted and has_gain and query.fused is not None and facts.fused_dim is not None):
            return None
        limit = limit_of(plan, TOP_N)
        return Head(limit, limit, matching["lambda"], is_forced=False)
    if plan.text is not None:
        raise UserError("rerank and hybrid search cannot be combined: leave one of them out")
    limit, weight = limit_of(plan, asked.top_n), matching.get("lambda") or default_weight
    if asked.raw:
        if plan.item is None:
            raise UserError(
                "rerank over raw documents needs a raw query: send 'query' instead of vectors or "
                "'like', or leave 'raw' out"
            )
        # reading documents is dear: what is shown beyond them stays as it is
        return Head(limit, min(asked.top_n, limit), weight, True, plan.item)
    if query.fused is None or facts.fused_dim is None:
        raise UserError("rerank needs fused vectors, and there are none here: leave it out")
    return Head(limit, limit, weight, True)


def reordered(hits: Sequence[Hit], odds: Sequence[float | None], weight: float) -> list[Hit]:
    """The hits by their final scores, equal ones in the order they had.

    Args:
        hits: best first.
        odds: log p(Yes) - log p(No) of each; a hit without keeps its place and its score.
        weight: of the odds.
    """
    scored = [
        replace(hit, score=hit.score + weight * float(odd))
        for hit, odd in zip(hits, odds, strict=True)
        if odd is not None
    ]
    moved = iter(sorted(scored, key=lambda hit: -hit.score))
    return [hit if odd is None else next(moved) for hit, odd in zip(hits, odds, strict=True)]


def _measured(facts: IndexFacts) -> dict[str, Any]:
    calibration = facts.table.calibration
    if calibration is None or facts.table.void is not None or calibration.matching is None:
        return {}
    return dict(calibration.matching)


def limit_of(plan: SearchPlan, top_n: int) -> int:
    """Hits for a head over `top_n`: no fewer than are shown, no more than there are candidates."""
    least = plan.offset + plan.top_k
    most = plan.candidates if isinstance(plan.candidates, int) else max(top_n, least)
    return min(max(top_n, least), most)
