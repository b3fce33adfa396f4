"""Searching an index that is split over several deployments, from the router.

Every shard runs ahead (`ahead`), the cuts over all of them are replayed (`replay`); what a shard
did not foresee is asked for in one more call, and so are the words of a hybrid search (`words`),
once all shards have counted them. A shard that is lost is left out where the request allows it.
Knows shards by a protocol, and no Ray.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from rematch_ray.index.choice import Choice
from rematch_ray.index.exact import Float32
from rematch_ray.index.filters import check_filter
from rematch_ray.index.grouping import needs_source
from rematch_ray.index.hits import SearchResult
from rematch_ray.index.lexical.bm25 import LexicalStatistics
from rematch_ray.index.lexical.fusion import list_depth
from rematch_ray.index.lexical.hybrid import Hybrid
from rematch_ray.index.queries import Queries
from rematch_ray.index.sharding.hashing import route
from rematch_ray.index.sharding.phases import Filter
from rematch_ray.index.sharding.scatter import ShardedRequest, search_shards
from rematch_ray.index.stages import require_fused
from rematch_ray.serve.ahead import Ahead, AheadAsked
from rematch_ray.serve.backend import NotReadyError
from rematch_ray.serve.follower import Admitted, ShardClient
from rematch_ray.serve.groups import Asking, find_groups
from rematch_ray.serve.partial import ShardsLostError, answers_of
from rematch_ray.serve.replay import Foreseen, RemotePhases, Replay
from rematch_ray.serve.searching import cut_hits, spent_on
from rematch_ray.serve.split_request import check_queries, read_hybrid, read_request
from rematch_ray.serve.wire import Asked, Found
from rematch_ray.serve.words import WordsAsked, fuse_shards

_KEPT_COUNTS = 256
_THREADS = 16
logger = logging.getLogger(__name__)


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
        self._counts: OrderedDict[tuple[str, bytes], list[int]] = OrderedDict()

    async def search(self, admitted: Admitted, asked: Asked) -> Found:
        """The hits of one query over all shards; arguments and errors as of `Shard.search`.

        Raises:
            NotReadyError: a shard does not answer, or none where the request does without some.
        """
        everyone = range(len(self._shards))
        try:
            return await self._search(admitted, asked, everyone)
        except ShardsLostError as error:
            lost = error
        living = [number for number in everyone if number not in lost.numbers]
        if not living:
            raise NotReadyError("no shard of the index answers; ask again")
        logger.warning("searched without some: %s", lost)
        try:
            found = await self._search(admitted, asked, living)
        except ShardsLostError as more:
            raise NotReadyError(f"{lost}, then {more}; ask again") from more
        result = replace(found.result, exact=False, expected_recall=None)
        return replace(found, result=result, missing=lost.numbers)

    async def _search(self, admitted: Admitted, asked: Asked, living: Sequence[int]) -> Found:
        """Over some shards; ShardsLostError where one of them is lost and the request allows it."""
        began = time.perf_counter()
        facts = admitted.planner.facts
        queries = check_queries(asked, facts)
        hybrid = read_hybrid(asked)
        counts = await self._count(admitted, asked, living)
        top_k = asked.offset + asked.limit + (asked.exclude is not None)
        choice, request = read_request(asked, facts, sum(counts), top_k, admitted.state.name)
        deep = request
        if hybrid is not None:
            deep = replace(request, top_k=list_depth(top_k), group_by=None)
        if choice.plan.budget.is_fused:
            require_fused(queries, "budget 'fused'")
        aheads = await self._run_ahead(admitted, asked, living, queries, deep, hybrid)
        result = await self._replay(admitted, living, aheads, queries, deep)
        if hybrid is not None:
            statistics = [ahead.statistics for ahead in aheads if ahead.statistics is not None]
            result = await self._add_words(
                admitted,
                living,
                queries,
                hybrid,
                LexicalStatistics.total(statistics),
                request,
                result,
            )
        if hybrid is None and request.group_by is not None:
            first = (choice, request, result)
            result = await self._with_groups(admitted, asked, living, queries, *first, began=began)
        else:
            result = choice.mark(result, facts.rungs.top, is_hybrid=hybrid is not None)
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

    async def _with_groups(
        self,
        admitted: Admitted,
        asked: Asked,
        living: Sequence[int],
        queries: Queries,
        choice: Choice,
        request: ShardedRequest,
        result: SearchResult,
        *,
        began: float,
    ) -> SearchResult:
        """What one pass found, and others where groups are missing."""
        facts = admitted.planner.facts
        until = None if asked.left_s is None else began + asked.left_s

        async def run(wide: ShardedRequest) -> SearchResult:
            left_s = None if until is None else until - time.perf_counter()
            work = facts.dot_products(wide.plan, int(wide.filter_stage["out"]))
            again = replace(asked, left_s=left_s, work=work)
            aheads = await self._run_ahead(admitted, again, living, queries, wide, None)
            return await self._replay(admitted, living, aheads, queries, wide)

        async def count(filter: Filter) -> int:
            return sum(await self._count(admitted, replace(asked, how={"filter": filter}), living))

        passes = await find_groups(
            Asking(run, count, lambda ids: self._sources(admitted, ids)),
            request,
            choice,
            result,
            began=began,
            until=until if asked.may_widen else began,
            most=asked.widen_to,
        )
        return passes.marked(facts.rungs.top)

    async def _run_ahead(
        self,
        admitted: Admitted,
        asked: Asked,
        living: Sequence[int],
        queries: Queries,
        request: ShardedRequest,
        hybrid: Hybrid | None,
    ) -> list[Ahead]:
        """Every shard's part of the vector search."""
        one = AheadAsked(
            generation="",
            query=queries,
            plan=request.plan,
            coarse=request.coarse,
            filter=request.filter,
            group_by=request.group_by,
            top_k=request.top_k,
            num_shards=len(self._shards),
            work=asked.work // len(self._shards),
            as_asked=asked.as_asked,
            left_s=asked.left_s,
            text=None if hybrid is None else hybrid.texts[0],
            model=asked.query.model,
        )
        generations = admitted.state.generations
        calls = {
            n: self._shards[n].ask("ahead", replace(one, generation=generations[n])) for n in living
        }
        return await answers_of(calls, asked)

    async def _replay(
        self,
        admitted: Admitted,
        living: Sequence[int],
        aheads: Sequence[Ahead],
        queries: Queries,
        request: ShardedRequest,
    ) -> SearchResult:
        """The cuts over all shards."""
        loop = asyncio.get_running_loop()
        remotes = [
            RemotePhases(self._shards[n], admitted.state.generations[n], loop) for n in living
        ]
        group = Replay([Foreseen(ahead) for ahead in aheads], remotes, self._missing)
        [result] = await loop.run_in_executor(
            self._replaying, search_shards, group, queries, request
        )
        return result

    async def _add_words(
        self,
        admitted: Admitted,
        living: Sequence[int],
        queries: Queries,
        hybrid: Hybrid,
        statistics: LexicalStatistics,
        request: ShardedRequest,
        found: SearchResult,
    ) -> SearchResult:
        """What the vectors found, and what the words find, as one ranking."""
        hits = {hit.id: hit for hit in found.hits}
        routed = route(list(hits), len(self._shards))
        mine = [[hits[name] for name in routed.get(n, ())] for n in living]
        one = WordsAsked(
            generation="",
            query=queries,
            text=hybrid.texts[0],
            statistics=statistics,
            plan=request.plan,
            filter=request.filter,
            depth=list_depth(request.top_k),
            hits=(),
            with_sources=needs_source(request.group_by),
        )
        parts = await asyncio.gather(
            *(
                self._shards[n].ask(
                    "words",
                    replace(
                        one,
                        generation=admitted.state.generations[n],
                        hits=tuple((hit.id, hit.score) for hit in some),
                    ),
                )
                for n, some in zip(living, mine, strict=True)
            )
        )
        return fuse_shards(
            found,
            parts,
            [[(hit.id, dict(hit.payload)) for hit in some] for some in mine],
            hybrid,
            top_k=request.top_k,
            group_by=request.group_by,
            num_allowed=request.filter_stage["out"],
        )

    async def _count(self, admitted: Admitted, asked: Asked, living: Sequence[int]) -> list[int]:
        """Documents of some shards that pass the filter; the last few filters are remembered."""
        filter: Filter = asked.how.get("filter")
        if not filter:
            return [admitted.live[n] for n in living]
        conditions = check_filter(filter, admitted.planner.facts.fields)
        # a filter may be as large as a body
        digest = hashlib.blake2b(json.dumps(conditions).encode(), digest_size=16).digest()
        key = (admitted.state.name, digest)
        if (known := self._counts.get(key)) is not None:
            return [known[n] for n in living]
        generations = admitted.state.generations
        calls = {n: self._shards[n].ask("count", generations[n], filter) for n in living}
        counted = await answers_of(calls, asked)
        if len(living) == len(self._shards):
            self._counts[key] = counted
            if len(self._counts) > _KEPT_COUNTS:
                self._counts.popitem(last=False)
        return counted

    async def _sources(self, admitted: Admitted, ids: Sequence[str]) -> list[str]:
        """Source of each document, from the shard that holds it."""
        routed = route(ids, len(self._shards))
        generations = admitted.state.generations
        parts = await asyncio.gather(
            *(self._shards[n].ask("sources", generations[n], some) for n, some in routed.items())
        )
        known = {
            name: source
            for some, part in zip(routed.values(), parts, strict=True)
            for name, source in zip(some, part, strict=True)
        }
        return [known[name] for name in ids]

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
