"""One search of a router, from an admitted request to an answer.

Plans within ceiling and deadline, asks the shards, runs the matching head, counts and learns. Knows
its parts by protocols, no Ray and no HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rematch_ray.index.grouping import Grouping
from rematch_ray.index.sharding.hashing import route
from rematch_ray.index.widening import is_widened
from rematch_ray.serve.backend import (
    Answer,
    Caller,
    DeadlineError,
    EncodedQuery,
    OverloadedError,
    SearchPlan,
)
from rematch_ray.serve.deadline import seconds_left, within
from rematch_ray.serve.drifting import AdmittedSearch, DriftWatch
from rematch_ray.serve.follower import Admitted, Follower, ShardClient
from rematch_ray.serve.forecast import Forecast
from rematch_ray.serve.last_rung import LastRung, with_reason
from rematch_ray.serve.leases import LeasedQuota
from rematch_ray.serve.matching import Head, Matcher, head_for, limit_of
from rematch_ray.serve.media import MediaRoots
from rematch_ray.serve.planning import Decision
from rematch_ray.serve.split import SplitIndex
from rematch_ray.serve.wire import Asked, Found

if TYPE_CHECKING:
    from rematch_ray.index.hits import SearchResult


class Searcher:
    """Searches of one router.

    Args:
        shards: of the index, in order.
        matcher: runs the matching head.
        follower: tells orders and states.
        forecast: of milliseconds.
        quota: of the keys.
        head_weight: of the matching head where it is forced and was not measured.
        media: where raw documents may be read from.
        drift: checks searches of an index that is split; one shard does so itself.
        clock: seconds, monotonic; that of deadlines.
    """

    def __init__(
        self,
        shards: Sequence[ShardClient],
        matcher: Matcher,
        *,
        follower: Follower,
        forecast: Forecast,
        quota: LeasedQuota,
        head_weight: float,
        media: MediaRoots,
        drift: DriftWatch | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shards = list(shards)
        self._split = None if len(self._shards) == 1 else SplitIndex(self._shards)
        self._last_rung = LastRung(matcher, forecast, media, clock)
        self._follower = follower
        self._forecast = forecast
        self._quota = quota
        self._head_weight = head_weight
        self._drift = drift
        self._clock = clock

    def begin(self, admitted: Admitted, plan: SearchPlan, caller: Caller) -> None:
        """Count a search as one request, before it has vectors.

        Args:
            admitted: the state that is to be searched.
            plan: what is asked.
            caller: whose quota pays; what the search costs is taken when it runs.

        Raises:
            UserError: the plan does not fit the index.
            OverloadedError: refused under load, or the quota is used up.
        """
        limit = plan.offset + plan.top_k
        if plan.rerank is not None:
            limit = limit_of(plan, plan.rerank.top_n)
        top_k = limit + (plan.exclude is not None)
        decision = self._decide(admitted, plan, top_k)
        self._refuse_under_load(admitted, plan, decision, top_k)
        self._quota.admit(caller.name, decision.option.dot_products)

    async def search(
        self, admitted: Admitted, query: EncodedQuery, plan: SearchPlan, caller: Caller
    ) -> Answer:
        """Run one search.

        Args:
            admitted: the state that is searched.
            query: vectors.
            plan: what is asked.
            caller: whose quota pays.

        Raises:
            UserError: the request does not fit the index.
            OverloadedError: refused under load, or the quota is used up.
            DeadlineError: the deadline passed before there was an answer.
            GenerationGoneError: the state is not on disk any more.
        """
        facts, level = admitted.planner.facts, self._follower.orders.level
        head = head_for(plan, query, facts, default_weight=self._head_weight)
        has_dropped_head = head is not None and not head.is_forced and level > 0
        if has_dropped_head:
            head = None
        limit = plan.offset + plan.top_k if head is None else head.limit
        top_k = limit + (plan.exclude is not None)
        decision = self._decide(admitted, plan, top_k)
        self._refuse_under_load(admitted, plan, decision, top_k)
        paid = self._paid(
            caller,
            decision,
            lambda: self._ask_shards(admitted, query, plan, decision, head, limit),
        )
        found = await within(self.left_s(plan), paid)
        degraded = decision.degraded
        if has_dropped_head:
            degraded = with_reason(degraded, "load")
        answer = Answer(
            result=_explained_choice(found.result, decision),
            degraded=(*degraded, *(("shard_missing",) if found.missing else ())),
            dot_products=found.dot_products,
            queue_ms=found.queue_ms,
            search_ms=found.search_ms,
        )
        if head is not None:
            instruction = facts.info.get("instruction")
            run = self._last_rung.asking(head, query, found, instruction)
            answer = await self._last_rung.apply(answer, plan, head, run)
        if plan.with_explain:
            answer = await within(self.left_s(plan), self._explain(admitted, answer, query))
        return answer

    async def _paid(
        self, caller: Caller, decision: Decision, ask: Callable[[], Awaitable[Found]]
    ) -> Found:
        """What the shards say, out of the caller's quota.

        What fails costs no dot products. What its caller has left costs what was expected: nothing
        ends a search that a shard has begun.
        """
        expected = spent = decision.option.dot_products
        self._quota.spend(caller.name, expected)
        try:
            found = await ask()
            spent = found.dot_products
        except Exception:
            spent = 0
            raise
        finally:
            self._quota.settle(caller.name, expected, spent)
        return found

    async def _ask_shards(
        self,
        admitted: Admitted,
        query: EncodedQuery,
        plan: SearchPlan,
        decision: Decision,
        head: Head | None,
        limit: int,
    ) -> Found:
        """One search, timed and learnt from."""
        option = decision.option
        asked = Asked(
            generation=admitted.state.generations[0],
            query=query,
            how={**option.how, **_shared(plan)},
            work=decision.unloaded.dot_products,
            as_asked=decision.option is decision.unloaded,
            offset=0 if head else plan.offset,
            limit=limit if head else plan.top_k,
            min_score=None if head else plan.min_score,
            exclude=plan.exclude,
            with_fused=head is not None and head.item is None,
            left_s=self.left_s(plan),
            allow_partial=plan.allow_partial,
            # where somebody gets less than was asked for nobody gets more
            may_widen=not decision.degraded and self._follower.orders.is_calm,
            widen_to=plan.widen_to,
        )
        expected_ms = option.mean_ms(self._forecast, grouped=plan.group_by is not None)
        began = self._clock()
        number = self._follower.waits.begin((2 * expected_ms + self._forecast.hop_ms) / 1e3)
        try:
            if self._split is None:
                found = await self._shards[0].search(asked)
            else:
                found = await self._split.search(admitted, asked)
                self._check_drift(admitted, asked, found)
        except BaseException:
            self._follower.waits.end(number, None)
            raise
        way_ms = (self._clock() - began) * 1e3 - found.search_ms
        if plan.group_by is None or not is_widened(found.result):
            self._forecast.take(option.name, option.dot_products, found.search_ms)
        if plan.group_by is not None:
            spent = max(option.dot_products, found.dot_products)
            self._forecast.take(option.grouped_name, spent, found.search_ms)
        self._forecast.take_delay(way_ms, found.queue_ms)
        waited_ms = found.queue_ms
        if (lag_ms := self._forecast.lag_ms(way_ms)) >= expected_ms:
            # an event loop that does not keep up is told by lags as long as a search of the top
            # rung; shorter ones are cores that do other work
            whole_ms = admitted.planner.plain().mean_ms(self._forecast)
            waited_ms = lag_ms if lag_ms >= whole_ms else waited_ms
        self._follower.waits.end(number, waited_ms / 1e3)
        return found

    def _check_drift(self, admitted: Admitted, asked: Asked, found: Found) -> None:
        if self._drift is None or self._split is None or not asked.is_whole:
            return
        searched = AdmittedSearch(self._split, admitted, asyncio.get_running_loop())
        self._drift.offer(searched, asked.query, found.result)

    async def _explain(self, admitted: Admitted, answer: Answer, query: EncodedQuery) -> Answer:
        ids = [hit.id for hit in answer.result.hits]
        routed = route(ids, len(self._shards))
        parts = await asyncio.gather(
            *(
                self._shards[number].ask(
                    "explain",
                    admitted.state.generations[number],
                    query,
                    some,
                    answer.result.budget,
                )
                for number, some in routed.items()
            )
        )
        return replace(answer, explained={k: v for part in parts for k, v in part.items()})

    def _decide(self, admitted: Admitted, plan: SearchPlan, top_k: int) -> Decision:
        return admitted.planner.decide(
            plan,
            top_k=top_k,
            forecast=self._forecast,
            level=self._follower.orders.level,
            left_ms=self._left_ms(plan),
        )

    def _refuse_under_load(
        self, admitted: Admitted, plan: SearchPlan, decision: Decision, top_k: int
    ) -> None:
        orders = self._follower.orders
        if not plan.is_auto and orders.refuses_explicit:
            ceiling = admitted.planner.ceiling_cost(orders.level, top_k, self._forecast)
            if decision.option.dot_products > ceiling:
                self._follower.refused += 1
                raise OverloadedError(
                    f"no room for budget {decision.option.plan.budget} now: the service is down to "
                    f"{admitted.planner.ceiling(orders.level)}; ask for 'auto', or again in a "
                    "moment",
                    code="budget_unavailable",
                )
        # again: when it came, what was being encoded for others was not under way yet
        self._follower.admit()

    def check_deadline(self, plan: SearchPlan) -> None:
        """DeadlineError where it has passed already."""
        if plan.deadline is not None and self._clock() >= plan.deadline:
            raise DeadlineError("the deadline passed before the search began")

    def left_s(self, plan: SearchPlan) -> float | None:
        """Seconds until the deadline; None where there is none."""
        return seconds_left(plan.deadline, self._clock)

    def _left_ms(self, plan: SearchPlan) -> float | None:
        """Until the deadline, less what a request is expected to wait and travel."""
        left_s = self.left_s(plan)
        return None if left_s is None else 1e3 * left_s - self._forecast.delay_ms


def _shared(plan: SearchPlan) -> dict[str, Any]:
    """What a search takes of a request whatever its budget."""
    shared: dict[str, Any] = {"filter": plan.filter, "group_by": plan.group_by}
    if plan.group_by is not None and plan.exclude is not None:
        # it is left out afterwards: were it its group's hit, the group would have none
        shared["group_by"] = Grouping(plan.group_by, apart=plan.exclude)
    if plan.text is not None:
        shared |= {"text": plan.text, "fusion": plan.fusion, "lexical_weight": plan.lexical_weight}
    return shared


def _explained_choice(result: SearchResult, decision: Decision) -> SearchResult:
    """A result that says why it got less, where it did."""
    if not decision.degraded:
        return result
    why = " and ".join(decision.degraded)
    return replace(result, plan={**result.plan, "chosen_by": f"{why}: less than auto"})
