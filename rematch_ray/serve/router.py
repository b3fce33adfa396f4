"""The router: a request from vectors to an answer, over encoder, shards, writer and coordinator.

Admits requests to a state of the index and passes them on: searches to `Searcher`, the rest to who
knows. Knows its parts by protocols; Ray stands in `handles`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from rematch_ray.data.item import Item
from rematch_ray.errors import UserError
from rematch_ray.index.sharding.hashing import shard_of
from rematch_ray.serve.backend import (
    Answer,
    Caller,
    EncodedQuery,
    NewDocument,
    NotReadyError,
    SearchPlan,
    ServedIndex,
    Side,
    SilentError,
    WriteResult,
)
from rematch_ray.serve.deadline import within
from rematch_ray.serve.drifting import DriftWatch
from rematch_ray.serve.follower import Admitted, CoordinatorClient, Follower, ShardClient
from rematch_ray.serve.forecast import Forecast
from rematch_ray.serve.gathering import EncoderClient
from rematch_ray.serve.leases import LeasedQuota
from rematch_ray.serve.media import MediaRoots
from rematch_ray.serve.searcher import Searcher
from rematch_ray.serve.settings import QuotaSettings
from rematch_ray.serve.wire import GenerationGoneError

READY_TIMEOUT_S = 3.0
HEAD_WEIGHT = 0.01
NO_MEDIA = MediaRoots(())
_EVERYONE = Caller()


class WriterClient(Protocol):
    """See `Writer`."""

    async def upsert(self, documents: Sequence[NewDocument]) -> WriteResult:
        """Writes documents."""
        ...

    async def delete(self, ids: Sequence[str], filter: Mapping[str, Any] | None) -> WriteResult:
        """Deletes documents."""
        ...


@dataclass(frozen=True)
class Parts:
    """What a router works with.

    Attributes:
        encoder: turns items into vectors.
        shards: of the index, in order.
        coordinator: None serves without ceiling, quotas and agreed generations.
        writer: None where writes are off.
        collect: metrics of the whole service.
        close: ends what the parts do in this process.
    """

    encoder: EncoderClient
    shards: Sequence[ShardClient]
    coordinator: CoordinatorClient | None = None
    writer: WriterClient | None = None
    collect: Callable[[], Awaitable[str]] | None = None
    close: Callable[[], None] | None = None


class Router:
    """A `Backend`; one lives in each ingress replica.

    Args:
        parts: what it works with.
        quota: of the keys; None limits nobody.
        head_weight: of the matching head where it is forced and was not measured.
        media: where raw documents may be read from.
        drift: checks searches of an index that is split.
        clock: seconds, monotonic; that of deadlines.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        quota: LeasedQuota | None = None,
        head_weight: float = HEAD_WEIGHT,
        media: MediaRoots = NO_MEDIA,
        drift: DriftWatch | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._encoder = parts.encoder
        self._shards = list(parts.shards)
        self._writer = parts.writer
        self._collect = parts.collect
        self._close = parts.close
        self.quota = quota or LeasedQuota({}, clock, QuotaSettings())
        self.forecast = Forecast()
        self.follower = Follower(
            self._shards,
            parts.coordinator,
            forecast=self.forecast,
            quota=self.quota,
            clock=clock,
        )
        self._searcher = Searcher(
            self._shards,
            parts.encoder,
            follower=self.follower,
            forecast=self.forecast,
            quota=self.quota,
            head_weight=head_weight,
            media=media,
            drift=drift,
            clock=clock,
        )
        self._model: tuple[Mapping[str, Any], str] | None = None

    async def encode(
        self, query: Item, instruction: str | None, side: Side = "query"
    ) -> EncodedQuery:
        """See `Backend.encode`."""
        return await self._encoder.encode(query, instruction, side)

    async def begin_search(self, plan: SearchPlan, caller: Caller) -> None:
        """See `Backend.begin_search`."""
        self.follower.start()
        self._searcher.check_deadline(plan)
        if (admitted := self.follower.current) is None:
            admitted = await within(self._searcher.left_s(plan), self.follower.admitted())
        self._searcher.begin(admitted, _with_room(plan), caller)

    async def search(
        self, query: EncodedQuery, plan: SearchPlan, caller: Caller = _EVERYONE
    ) -> Answer:
        """See `Backend.search`."""
        self.follower.start()
        self._searcher.check_deadline(plan)
        plan = _with_room(plan)
        return await self._with_state(
            lambda admitted: self._searcher.search(admitted, query, plan, caller),
            lambda admitting: within(self._searcher.left_s(plan), admitting),
        )

    def admit_search(self) -> None:
        """See `Backend.admit_search`."""
        self.follower.admit()

    def charge(self, caller: Caller) -> None:
        """See `Backend.charge`."""
        self.follower.start()
        self.quota.take(caller.name, 0.0)

    def allowance(self, caller: Caller) -> Mapping[str, str]:
        """See `Backend.allowance`."""
        return self.quota.state(caller.name).headers()

    async def like(self, document_id: str) -> EncodedQuery | None:
        """See `Backend.like`."""
        return await self._ask_owner("like", document_id)

    async def payload(self, document_id: str) -> Mapping[str, Any] | None:
        """See `Backend.payload`."""
        return await self._ask_owner("payload", document_id)

    async def match(self, query: EncodedQuery, documents: Sequence[EncodedQuery]) -> list[float]:
        """See `Backend.match`."""
        fused = [document.fused for document in documents]
        if query.fused is None or any(vector is None for vector in fused):
            raise UserError("matching needs fused vectors: this model was trained without")
        stacked = np.concatenate([vector for vector in fused if vector is not None])
        return [float(odd) for odd in await self._encoder.match(query.fused, stacked)]

    async def upsert(self, documents: Sequence[NewDocument], caller: Caller) -> WriteResult:
        """See `Backend.upsert`."""
        return await self._writing().upsert(list(documents))

    async def delete(
        self, ids: Sequence[str], filter: Mapping[str, Any] | None, caller: Caller
    ) -> WriteResult:
        """See `Backend.delete`."""
        return await self._writing().delete(list(ids), filter)

    async def served(self) -> ServedIndex:
        """See `Backend.served`."""
        self.follower.start()
        if self._model is None:
            await self.ready()
        assert self._model is not None
        identity, instruction = self._model
        planner = (await self.follower.admitted()).planner
        orders = self.follower.orders
        return ServedIndex(
            index=planner.facts.info,
            model=identity,
            budgets=planner.facts.budgets,
            instruction=instruction,
            load={
                "ceiling": str(planner.ceiling(orders.level)),
                "level": orders.level,
                "refusing": orders.bearable_s is not None,
                "coordinated": not self.follower.is_silent,
            },
        )

    async def ready(self) -> None:
        """See `Backend.ready`."""
        answers = await asyncio.gather(
            _promptly("encoder", self._encoder.identity()),
            _promptly("encoder", self._encoder.default_instruction()),
            *(
                _promptly(f"index shard {number}", shard.ask("states"))
                for number, shard in enumerate(self._shards)
            ),
        )
        self._model = (answers[0], answers[1])
        await _promptly("index", self.follower.admitted())

    async def metrics(self) -> str:
        """See `Backend.metrics`."""
        return "" if self._collect is None else await self._collect()

    def close(self) -> None:
        """End what runs in the background: no request will come."""
        self.follower.stop()
        if self._close is not None:
            self._close()

    async def _with_state(
        self,
        run: Callable[[Admitted], Awaitable[Any]],
        in_time: Callable[[Awaitable[Admitted]], Awaitable[Admitted]] = lambda admitting: admitting,
    ) -> Any:
        """Run on the current state, once more on the next one where that is gone."""
        admitted = self.follower.current or await in_time(self.follower.admitted())
        try:
            return await run(admitted)
        except GenerationGoneError:
            admitted = await in_time(self.follower.readmit(admitted))
        try:
            return await run(admitted)
        except GenerationGoneError as gone:
            raise NotReadyError("the index changes faster than it can be read; ask again") from gone

    async def _ask_owner(self, method: str, document_id: str) -> Any:
        """Ask the shard that holds a document, if any does."""
        number = shard_of(document_id, len(self._shards))
        return await self._with_state(
            lambda admitted: self._shards[number].ask(
                method, admitted.state.generations[number], document_id
            )
        )

    def _writing(self) -> WriterClient:
        if self._writer is None:
            raise UserError("writes are off here: start the service with writes on")
        return self._writer


def _with_room(plan: SearchPlan) -> SearchPlan:
    """A plan whose candidates do not count the document that is left out."""
    if plan.exclude is not None and isinstance(plan.candidates, int):
        return replace(plan, candidates=plan.candidates + 1)
    return plan


async def _promptly(name: str, answer: Awaitable[Any]) -> Any:
    try:
        return await asyncio.wait_for(answer, READY_TIMEOUT_S)
    except TimeoutError as silent:
        raise SilentError(f"the {name} does not answer yet") from silent
