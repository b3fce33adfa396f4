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

from rematch_ray.index.cascade import stage
from rematch_ray.index.choice import Choice
from rematch_ray.index.exact import Float32
from rematch_ray.index.filters import check_filter
from rematch_ray.index.grouping import field_of, needs_source
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
from rematch_ray.serve.facts import IndexFacts
from rematch_ray.serve.follower import Admitted, ShardClient
from rematch_ray.serve.partial import ShardsLostError, answers_of
from rematch_ray.serve.replay import Foreseen, RemotePhases, Replay
from rematch_ray.serve.searching import cut_hits, spent_on
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
        queries = _checked(asked, facts)
        hybrid = _hybrid(asked)
        counts = await self._count(admitted, asked, living)
        top_k = asked.offset + asked.limit + (asked.exclude is not None)
        choice, request = _request(asked, facts, sum(counts), top_k, admitted.state.name)
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


def _checked(asked: Asked, facts: IndexFacts) -> Queries:
    group_by = asked.how.get("group_by")
    if group_by is not None:
        check_filter({field_of(group_by): ""}, facts.fields)
    return Queries.check(
        asked.query,
        num_vectors=facts.rungs.num_query_vectors,
        dim=facts.dim,
        fused_dim=facts.fused_dim,
    )


def _hybrid(asked: Asked) -> Hybrid | None:
    how = {"text": None, "fusion": None, "lexical_weight": 0.5, **asked.how}
    return Hybrid.check(how["text"], how["fusion"], how["lexical_weight"], 1)


def _request(
    asked: Asked, facts: IndexFacts, num_allowed: int, top_k: int, state: str
) -> tuple[Choice, ShardedRequest]:
    how = {"text": None, **asked.how}
    is_hybrid = how["text"] is not None
    filter, group_by = how.pop("filter", None), how.pop("group_by", None)
    for name in ("text", "fusion", "lexical_weight"):  # of the fusion, which no plan knows
        how.pop(name, None)
    choice = facts.choose(
        top_k=top_k,
        filter=filter,
        group_by=group_by,
        num_allowed=num_allowed,
        is_hybrid=is_hybrid,
        **how,
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
