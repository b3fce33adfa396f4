"""The matching head on what was found: asked in time, or left out where the caller did not ask.

Knows no shards, and what runs the head by a protocol.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from rematch_ray.serve.backend import Answer, DeadlineError, EncodedQuery, SearchPlan
from rematch_ray.serve.deadline import seconds_left, within
from rematch_ray.serve.forecast import Forecast
from rematch_ray.serve.matching import Head, Matcher, reordered
from rematch_ray.serve.media import MediaRoots
from rematch_ray.serve.raw_documents import raw_documents
from rematch_ray.serve.searching import cut_hits
from rematch_ray.serve.wire import Found

_MATCH, _MATCH_RAW = "match", "match raw"
Odds = list[float | None]


class LastRung:
    """Runs the head.

    Args:
        matcher: that is asked.
        forecast: of milliseconds.
        media: where raw documents may be read from.
        clock: seconds, monotonic; that of deadlines.
    """

    def __init__(
        self, matcher: Matcher, forecast: Forecast, media: MediaRoots, clock: Callable[[], float]
    ) -> None:
        self._matcher = matcher
        self._forecast = forecast
        self._media = media
        self._clock = clock

    async def apply(
        self, answer: Answer, plan: SearchPlan, head: Head, run: Callable[[], Awaitable[Odds]]
    ) -> Answer:
        """The hits in their new order, and the cut that waited for it.

        Args:
            answer: of the search, with all hits that the head is for.
            plan: what is asked.
            head: how it is used.
            run: asks it; see `asking`.

        Raises:
            DeadlineError: it was asked for, and does not answer in time.
        """
        note: dict[str, Any] | None = None
        result, degraded = answer.result, answer.degraded
        left_s = seconds_left(plan.deadline, self._clock)
        is_raw = head.item is not None
        name = _MATCH_RAW if is_raw else _MATCH
        is_late = left_s is not None and self._forecast.p95_ms(name, 0) > 1e3 * left_s
        if is_late and not head.is_forced:
            degraded = with_reason(degraded, "deadline")
        elif result.hits:
            try:
                odds, ms = await within(left_s, self._timed(name, run))
            except DeadlineError:
                if head.is_forced:
                    raise
                degraded = with_reason(degraded, "deadline")
            else:
                note = {
                    "top_n": len(odds), "lambda": head.weight, "ms": round(ms, 3), "raw": is_raw,
                }  # fmt: skip
                matched, rest = result.hits[: len(odds)], result.hits[len(odds) :]
                if is_raw:
                    note["not_found"] = [
                        hit.id for hit, odd in zip(matched, odds, strict=True) if odd is None
                    ]
                result = replace(result, hits=[*reordered(matched, odds, head.weight), *rest])
        hits = cut_hits(result.hits, offset=plan.offset, limit=plan.top_k, min_score=plan.min_score)
        return replace(answer, result=replace(result, hits=hits), rerank=note, degraded=degraded)

    async def _timed(self, name: str, run: Callable[[], Awaitable[Odds]]) -> tuple[Odds, float]:
        """What the head says, and how many milliseconds it took; learnt from, late or not."""
        began = self._clock()
        odds = await run()
        ms = (self._clock() - began) * 1e3
        self._forecast.take(name, 0, ms)
        return odds, ms

    def asking(
        self, head: Head, query: EncodedQuery, found: Found, instruction: str | None
    ) -> Callable[[], Awaitable[Odds]]:
        """Asks the head about what was found."""

        async def by_vectors() -> Odds:
            assert query.fused is not None and found.fused is not None
            return [float(odd) for odd in await self._matcher.match(query.fused, found.fused)]

        async def by_reading() -> Odds:
            assert head.item is not None
            hits = found.result.hits[: head.top_n]
            items = await asyncio.to_thread(raw_documents, hits, self._media)
            known = [item for item in items if item is not None]
            answers = iter(
                await self._matcher.match_raw(head.item, query.instruction, known, instruction)
            )
            return [None if item is None else next(answers) for item in items]

        return by_vectors if head.item is None else by_reading


def with_reason(degraded: tuple[str, ...], reason: str) -> tuple[str, ...]:
    """Why an answer got less, with one reason more.

    >>> with_reason(("load",), "deadline"), with_reason(("load",), "load")
    (('load', 'deadline'), ('load',))
    """
    return degraded if reason in degraded else (*degraded, reason)
