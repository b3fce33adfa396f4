"""Searching an index that is split over several deployments, from the router.

Every shard runs ahead (`ahead`), the cuts over all of them are replayed here by
`index/sharding/scatter.py`; what a shard did not foresee is asked for in one more call. Knows
shards by a protocol, and no Ray.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from rematch_ray.errors import UserError
from rematch_ray.index.cascade import stage
from rematch_ray.index.choice import Choice
from rematch_ray.index.exact import Float32, Rows
from rematch_ray.index.generation import check_filter
from rematch_ray.index.queries import Queries
from rematch_ray.index.sharding import phases
from rematch_ray.index.sharding.hashing import route
from rematch_ray.index.sharding.phases import Filter
from rematch_ray.index.sharding.scatter import ShardedRequest, ShardGroup, search_shards
from rematch_ray.index.stages import require_fused
from rematch_ray.scoring.budget import Budget
from rematch_ray.serve.ahead import Ahead, AheadAsked, first_of, scores_of
from rematch_ray.serve.facts import IndexFacts
from rematch_ray.serve.follower import Admitted, ShardClient
from rematch_ray.serve.searching import cut_hits, spent_on
from rematch_ray.serve.wire import Asked, Found

Answer = TypeVar("Answer")
_KEPT_COUNTS = 256
_THREADS = 16


class SplitIndex:
    """All shards of an index, searched as one.

    Args:
        shards: in order.
    """

    def __init__(self, shards: Sequence[ShardClient]) -> None:
        self._shards = list(shards)
        # replaying holds a thread only while it computes, or waits for what was not foreseen
        self._replaying = ThreadPoolExecutor(_THREADS, thread_name_prefix="replay")
        self._missing = ThreadPoolExecutor(_THREADS, thread_name_prefix="missing")
        self._counts: OrderedDict[tuple[str, str], list[int]] = OrderedDict()

    async def search(self, admitted: Admitted, asked: Asked) -> Found:
        """The hits of one query over all shards; arguments and errors as of `Shard.search`."""
        began = time.perf_counter()
        facts = admitted.planner.facts
        queries = _checked(asked, facts)
        counts = await self._count(admitted, asked.how.get("filter"))
        top_k = asked.offset + asked.limit + (asked.exclude is not None)
        choice, request = _request(asked, facts, sum(counts), top_k, admitted.state.name)
        if choice.plan.budget.is_fused:
            require_fused(queries, "budget 'fused'")
        aheads = await asyncio.gather(
            *(
                shard.ask(
                    "ahead",
                    AheadAsked(
                        generation=generation,
                        query=queries,
                        plan=request.plan,
                        coarse=request.coarse,
                        filter=request.filter,
                        group_by=request.group_by,
                        top_k=top_k,
                        num_shards=len(self._shards),
                        work=asked.work // len(self._shards),
                        as_asked=asked.as_asked,
                        left_s=asked.left_s,
                    ),
                )
                for shard, generation in zip(self._shards, admitted.state.generations, strict=True)
            )
        )
        loop = asyncio.get_running_loop()
        remotes = [
            _Remote(shard, generation, loop)
            for shard, generation in zip(self._shards, admitted.state.generations, strict=True)
        ]
        group = _Replay([_Foreseen(ahead) for ahead in aheads], remotes, self._missing)
        [result] = await loop.run_in_executor(
            self._replaying, search_shards, group, queries, request
        )
        result = choice.mark(result, facts.rungs.top)
        queue_ms = max(ahead.queue_ms for ahead in aheads)
        hits = cut_hits(
            result.hits,
            offset=asked.offset,
            limit=asked.limit,
            min_score=asked.min_score,
            exclude=asked.exclude,
        )
        result = replace(result, hits=hits)
        fused = await self._fused(admitted, [hit.id for hit in hits]) if asked.with_fused else None
        total_ms = (time.perf_counter() - began) * 1e3
        spent = spent_on(result, facts.coarse_dot_products)
        return Found(result, spent, queue_ms, max(0.0, total_ms - queue_ms), fused)

    async def _count(self, admitted: Admitted, filter: Filter) -> list[int]:
        """Documents of each shard that pass a filter; the last few filters are remembered."""
        if not filter:
            return [admitted.planner.facts.live]
        conditions = check_filter(filter, admitted.planner.facts.fields)
        key = (admitted.state.name, json.dumps(conditions))
        if (known := self._counts.get(key)) is not None:
            return known
        counted = await asyncio.gather(
            *(
                shard.ask("count", generation, filter)
                for shard, generation in zip(self._shards, admitted.state.generations, strict=True)
            )
        )
        self._counts[key] = list(counted)
        if len(self._counts) > _KEPT_COUNTS:
            self._counts.popitem(last=False)
        return list(counted)

    async def _fused(self, admitted: Admitted, ids: Sequence[str]) -> Float32:
        """(ids, F) fused vectors, each from the shard that holds it."""
        width = admitted.planner.facts.fused_dim or 0
        vectors = np.zeros((len(ids), width), np.float32)
        routed = route(ids, len(self._shards))
        parts = await asyncio.gather(
            *(
                self._shards[number].ask("fused", admitted.state.generations[number], some)
                for number, some in routed.items()
            )
        )
        places = {name: place for place, name in enumerate(ids)}
        for some, part in zip(routed.values(), parts, strict=True):
            vectors[[places[name] for name in some]] = part
        return vectors


class _UnforeseenError(Exception):
    """A shard did not run ahead so far."""


class _Foreseen:
    """A shard as far as it ran ahead."""

    def __init__(self, ahead: Ahead) -> None:
        self._ahead = ahead

    def passing(self, filter: Filter) -> phases.Found:
        if self._ahead.passing is None:
            raise _UnforeseenError
        return self._ahead.passing

    def coarse(
        self, query: Queries, choice: str, limit: int, filter: Filter, *, nprobe: int | None
    ) -> list[phases.Found]:
        return list(self._ahead.coarse)

    def score(self, query: Queries, rows: Rows, budget: Budget) -> Float32:
        found = scores_of(self._ahead.scored, budget, rows)
        if found is None:
            raise _UnforeseenError
        return found

    def best(
        self,
        queries: Queries,
        budget: Budget,
        limit: int,
        *,
        rows: Rows | None,
        filter: Filter,
        group_by: str | None,
    ) -> list[phases.Found]:
        best, pool = self._ahead.best, self._ahead.pool
        if rows is None or pool is None:
            if rows is pool:
                return [first_of(best, np.arange(min(limit, len(best.rows))))]
            raise _UnforeseenError
        if not np.isin(rows, pool).all():
            raise _UnforeseenError
        # the best of a larger pool, as far as they lie in the smaller one, are the best of that
        inside = np.flatnonzero(np.isin(best.rows, rows))
        is_complete = len(best.rows) == len(pool)
        if group_by is not None and len(inside) < len(best.rows):
            raise _UnforeseenError  # another document may stand for its group
        if group_by is None and len(inside) < limit and not is_complete:
            raise _UnforeseenError
        return [first_of(best, inside[:limit])]

    def documents(self, rows: Rows) -> list[tuple[str, dict[str, Any]]]:
        places = {int(row): place for place, row in enumerate(self._ahead.best.rows)}
        if not all(int(row) in places for row in rows):
            raise _UnforeseenError
        return [self._ahead.documents[places[int(row)]] for row in rows]


class _Remote:
    """A shard that is asked for a single phase, from a thread."""

    def __init__(
        self, shard: ShardClient, generation: str, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._shard = shard
        self._generation = generation
        self._loop = loop

    def __getattr__(self, phase: str) -> Callable[..., Any]:
        def ask(*values: Any, **named: Any) -> Any:
            answer = self._shard.ask("phase", self._generation, phase, values, named)
            return asyncio.run_coroutine_threadsafe(answer, self._loop).result()

        return ask


class _Replay(ShardGroup):
    """Shards that were asked ahead; those that did not foresee a phase are asked for it."""

    def __init__(
        self, foreseen: Sequence[Any], remotes: Sequence[Any], threads: ThreadPoolExecutor
    ) -> None:
        super().__init__(foreseen)
        self._remotes = list(remotes)
        self._asking = threads

    def each(self, ask: Callable[[int, Any], Answer]) -> list[Answer]:
        """See `ShardGroup.each`; what is asked of a shard may be asked twice."""
        answers: dict[int, Any] = {}
        missing = []
        for number, shard in enumerate(self.shards):
            try:
                answers[number] = ask(number, shard)
            except _UnforeseenError:
                missing.append(number)
        some = [self._remotes[number] for number in missing]
        answers.update(zip(missing, self._asking.map(ask, missing, some), strict=True))
        return [answers[number] for number in range(len(self))]


def _checked(asked: Asked, facts: IndexFacts) -> Queries:
    if asked.how.get("text") is not None:
        raise UserError("hybrid search over an index that is split is not possible: leave it out")
    group_by = asked.how.get("group_by")
    if group_by is not None:
        check_filter({group_by: ""}, facts.fields)
    return Queries.check(
        asked.query,
        num_vectors=facts.rungs.num_query_vectors,
        dim=facts.dim,
        fused_dim=facts.fused_dim,
    )


def _request(
    asked: Asked, facts: IndexFacts, num_allowed: int, top_k: int, state: str
) -> tuple[Choice, ShardedRequest]:
    how = dict(asked.how)
    filter, group_by = how.pop("filter", None), how.pop("group_by", None)
    choice = facts.choose(
        top_k=top_k, filter=filter, group_by=group_by, num_allowed=num_allowed, **how
    )
    request = ShardedRequest(
        plan=choice.plan,
        coarse=choice.plan.coarse or facts.default_coarse,
        filter=filter or None,
        nprobe=None,
        top_k=top_k,
        group_by=group_by,
        filter_stage=stage("filter", facts.live, num_allowed, 0.0),
        live=facts.live,
        is_float=choice.plan.budget.is_fused or facts.has_originals,
        generation=state,
    )
    return choice, request
