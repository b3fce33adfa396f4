"""A `Backend` that sends each HTTP request to one set, from its first call to its last.

Vectors of one model mean nothing to the index of another, so a request stays on the set that served
when it came, whatever happens meanwhile. Follows the manager of the sets like a router follows its
coordinator. Knows sets by a function that reaches them; no Ray.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from rematch_ray.data.item import Item
from rematch_ray.errors import UserError
from rematch_ray.serve.backend import (
    Answer,
    Backend,
    Caller,
    EncodedQuery,
    NewDocument,
    NotReadyError,
    OverloadedError,
    SearchPlan,
    ServedIndex,
    Side,
    WriteResult,
)
from rematch_ray.serve.swap import SetOrders, SetReport, SetSpec

EXCHANGE_S = 0.2
# a router that is new waits so long to be told which set serves
TOLD_S = 5.0
_RETRY_S = 0.5
# what fails in another way than our errors tell may pass, or not
_TRIES = 3
_EVERYONE = Caller()
_pinned: ContextVar[SetSpec | None] = ContextVar("pinned", default=None)
logger = logging.getLogger(__name__)


class SetBackendPart(Backend, Protocol):
    """The backend of one set."""

    def close(self) -> None:
        """Ends what it does in the background."""
        ...


class SetsClient(Protocol):
    """See `Sets`."""

    async def exchange(self, report: SetReport) -> SetOrders:
        """Reports what is served; gives orders."""
        ...


class SetBackend:
    """The set that serves, and the one that is to come.

    Args:
        first: what the application was started with.
        reach: makes the backend of a set.
        sets: the manager; None serves the first set for ever.
    """

    def __init__(
        self,
        first: SetSpec,
        reach: Callable[[SetSpec], Awaitable[SetBackendPart]],
        sets: SetsClient | None,
    ) -> None:
        self._first = first
        self._reach = reach
        self._sets = sets
        self._serving: SetSpec | None = None if sets else first
        self._parts: dict[str, SetBackendPart] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._warm: set[str] = set()
        self._failed: dict[str, str] = {}
        self._in_flight: dict[str, int] = {}
        self._name = uuid.uuid4().hex
        self._told = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @contextmanager
    def pinned(self, spec: SetSpec) -> Iterator[None]:
        """Everything in this context goes to one set, which is not removed meanwhile."""
        self._in_flight[spec.name] = self._in_flight.get(spec.name, 0) + 1
        token = _pinned.set(spec)
        try:
            yield
        finally:
            _pinned.reset(token)
            self._in_flight[spec.name] -= 1

    async def admitted(self) -> SetSpec:
        """The set of a request that comes now: the first one where nobody tells another."""
        self.start()
        if self._serving is None:
            try:
                await asyncio.wait_for(self._told.wait(), TOLD_S)
            except TimeoutError:
                # nobody to ask: as good as an application without a manager
                logger.warning("the manager of the sets is silent, serving the first")
                self._serving = self._serving or self._first
        assert self._serving is not None
        return self._serving

    def start(self) -> None:
        """Begin to follow, in the running event loop; does nothing the second time."""
        if self._sets is not None and "follow" not in self._tasks:
            self._tasks["follow"] = asyncio.create_task(self._follow())

    async def exchange(self) -> None:
        """Report once and do as told; raises what keeps it from the set that serves."""
        assert self._sets is not None
        report = SetReport(
            router=self._name,
            serving=self._serving,
            reached=frozenset(self._warm),
            failed=dict(self._failed),
            in_flight=dict(self._in_flight),
        )
        try:
            orders = await self._sets.exchange(report)
        except (NotReadyError, OverloadedError) as silent:
            logger.debug("the manager of the sets does not answer: %s", silent)
            return
        if (coming := orders.coming) is not None and coming.name not in self._tasks:
            self._tasks[coming.name] = asyncio.create_task(self._warm_up(coming))
        if orders.serving is not None:
            if not self._told.is_set():
                # reached or not: another set has the wrong documents, and no error that says so
                self._serving = orders.serving
                self._told.set()
            await self._part(orders.serving)
            if self._serving is None or orders.serving.name != self._serving.name:
                logger.info("serving %s", orders.serving.index)
            self._serving = orders.serving
            self._forget(orders)

    async def _follow(self) -> None:
        while True:
            try:
                await self.exchange()
            except Exception:
                # nobody awaits this task: without it the router would stay on its set for ever
                logger.exception("the exchange with the manager of the sets failed")
            await asyncio.sleep(EXCHANGE_S)

    async def _warm_up(self, spec: SetSpec) -> None:
        """Until it is ready; what cannot be mended by waiting is reported."""
        failures = 0
        while True:
            try:
                part = await self._part(spec)
                await part.ready()
                await part.served()
            except (NotReadyError, OverloadedError) as waiting:
                logger.debug("%s: %s", spec.name, waiting)
                await asyncio.sleep(_RETRY_S)
            except UserError as error:
                self._failed[spec.name] = str(error)
                return
            except Exception as error:
                # nobody awaits this task either: a change would wait for it until it is given up
                logger.exception("%s cannot be reached", spec.index)
                failures += 1
                if failures == _TRIES:
                    self._failed[spec.name] = f"it cannot be reached: {error!r}"
                    return
                await asyncio.sleep(_RETRY_S)
            else:
                self._warm.add(spec.name)
                return

    def _forget(self, orders: SetOrders) -> None:
        """Sets that neither serve nor come, once no request runs there."""
        needed = {spec.name for spec in (orders.serving, orders.coming) if spec is not None}
        for name in [name for name in self._parts if name not in needed]:
            if not self._in_flight.get(name):
                self._parts.pop(name).close()
                self._in_flight.pop(name, None)
                self._warm.discard(name)
        for name in [name for name in self._tasks if name not in {*needed, "follow"}]:
            self._tasks.pop(name).cancel()
            self._failed.pop(name, None)

    async def _part(self, spec: SetSpec) -> SetBackendPart:
        async with self._locks.setdefault(spec.name, asyncio.Lock()):
            if spec.name not in self._parts:
                self._parts[spec.name] = await self._reach(spec)
        return self._parts[spec.name]

    async def _backend(self) -> SetBackendPart:
        return await self._part(_pinned.get() or await self.admitted())

    async def encode(
        self, query: Item, instruction: str | None, side: Side = "query"
    ) -> EncodedQuery:
        """See `Backend.encode`."""
        return await (await self._backend()).encode(query, instruction, side)

    async def begin_search(self, plan: SearchPlan, caller: Caller) -> None:
        """See `Backend.begin_search`."""
        await (await self._backend()).begin_search(plan, caller)

    async def search(
        self, query: EncodedQuery, plan: SearchPlan, caller: Caller = _EVERYONE
    ) -> Answer:
        """See `Backend.search`."""
        return await (await self._backend()).search(query, plan, caller)

    def admit_search(self) -> None:
        """See `Backend.admit_search`."""
        if (part := self._known()) is not None:
            part.admit_search()

    def charge(self, caller: Caller) -> None:
        """See `Backend.charge`."""
        if (part := self._known()) is not None:
            part.charge(caller)

    def allowance(self, caller: Caller) -> Mapping[str, str]:
        """See `Backend.allowance`."""
        part = self._known()
        return {} if part is None else part.allowance(caller)

    def _known(self) -> SetBackendPart | None:
        """The backend of this request, where it has been made."""
        spec = _pinned.get() or self._serving
        return None if spec is None else self._parts.get(spec.name)

    async def like(self, document_id: str) -> EncodedQuery | None:
        """See `Backend.like`."""
        return await (await self._backend()).like(document_id)

    async def match(self, query: EncodedQuery, documents: Sequence[EncodedQuery]) -> list[float]:
        """See `Backend.match`."""
        return await (await self._backend()).match(query, documents)

    async def payload(self, document_id: str) -> Mapping[str, Any] | None:
        """See `Backend.payload`."""
        return await (await self._backend()).payload(document_id)

    async def upsert(self, documents: Sequence[NewDocument], caller: Caller) -> WriteResult:
        """See `Backend.upsert`."""
        return await (await self._backend()).upsert(documents, caller)

    async def delete(
        self, ids: Sequence[str], filter: Mapping[str, Any] | None, caller: Caller
    ) -> WriteResult:
        """See `Backend.delete`."""
        return await (await self._backend()).delete(ids, filter, caller)

    async def served(self) -> ServedIndex:
        """See `Backend.served`."""
        return await (await self._backend()).served()

    async def ready(self) -> None:
        """See `Backend.ready`."""
        await (await self._backend()).ready()

    async def metrics(self) -> str:
        """See `Backend.metrics`."""
        return await (await self._backend()).metrics()


class PinToSet:
    """ASGI layer that keeps each request on the set that served when it came.

    Args:
        app: what is called.
        backend: of the application.
    """

    def __init__(self, app: ASGIApp, backend: SetBackend) -> None:
        self._app = app
        self._backend = backend

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Calls the application inside a set."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with self._backend.pinned(await self._backend.admitted()):
            await self._app(scope, receive, send)
