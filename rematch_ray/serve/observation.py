"""One record per answered request: its id, route, status and time, and what the route noted.

Never looks into a body; what a route notes of a query is written only where settings say so. Knows
no metrics library and no log.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rematch_ray.serve.backend import Answer, SearchPlan

_REQUEST_ID = re.compile(r"^[A-Za-z0-9._-]{1,64}$")


@dataclass(frozen=True)
class Searched:
    """One search of a request.

    Attributes:
        rung: the budget that scored the hits.
        reason: why this one: `explicit`, `recall`, `auto`, or what lowered it: `load`, `deadline`.
        candidates: documents scored at that budget.
        exact: whether every document was.
        dot_products: spent.
        degraded: why less was used than without load or deadline.
        generation: of the index.
        seconds: stage -> seconds: `queue`, `search`, `rerank` and the stages of the cascade.
    """

    rung: str
    reason: str
    candidates: int
    exact: bool
    dot_products: int
    degraded: tuple[str, ...]
    generation: str
    seconds: Mapping[str, float]

    @classmethod
    def of(cls, plan: SearchPlan, answer: Answer) -> Searched:
        """What an answer says of its search."""
        result = answer.result
        seconds = {"queue": answer.queue_ms / 1e3, "search": answer.search_ms / 1e3}
        for stage in result.stages:
            name = str(stage["name"])
            # a stage comes again where groups were missing
            seconds[name] = seconds.get(name, 0.0) + float(stage.get("ms", 0.0)) / 1e3
        if answer.rerank is not None:
            seconds["rerank"] = float(answer.rerank.get("ms", 0.0)) / 1e3
        return cls(
            rung=result.budget,
            reason=_reason(plan, answer),
            candidates=result.candidates,
            exact=result.exact,
            dot_products=answer.dot_products,
            degraded=answer.degraded,
            generation=result.generation,
            seconds=seconds,
        )


@dataclass(frozen=True)
class FailedSearch:
    """One search of a batch that has no answer, though the batch has.

    Attributes:
        status: HTTP status that it would have had alone.
        code: of its error.
    """

    status: int
    code: str


@dataclass
class Facts:
    """What routes note of a request while they answer it; see `facts_of`.

    Attributes:
        caller: name of the API key.
        code: of the error, where it failed.
        encode_s: seconds from the query to its vectors.
        searches: its searches that were answered.
        failed: those of a batch that were not; a request that failed as a whole has none.
        query: the words of the query: logged only where the settings say so.
        documents: ids that it wrote, deleted or read; likewise.
    """

    caller: str = ""
    code: str = ""
    encode_s: float | None = None
    searches: list[Searched] = field(default_factory=list)
    failed: list[FailedSearch] = field(default_factory=list)
    query: str | None = None
    documents: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RequestRecord:
    """What is known of a request once it is answered.

    Attributes:
        route: the route's template, never the path itself (ids would make a series each).
        status: HTTP status.
        seconds: from the first byte of the request to the last of the answer.
        request_id: the caller's ``x-request-id``, or one made here; also in the answer.
        method: HTTP method.
        facts: what the route noted.
    """

    route: str
    status: int
    seconds: float
    request_id: str
    method: str = ""
    facts: Facts = field(default_factory=Facts)


Record = Callable[[RequestRecord], None]


def facts_of(scope: Mapping[str, Any]) -> Facts:
    """The facts of a request, to be added to.

    Args:
        scope: the request's ASGI scope (``request.scope``); without an `Observed` around, facts
            are noted nowhere.
    """
    noted = scope.get("state", {}).get("facts")
    return noted if isinstance(noted, Facts) else Facts()


def add_headers(scope: Mapping[str, Any], headers: Callable[[], Mapping[str, str]]) -> None:
    """Have headers added to the answer of a request, as they are when it begins."""
    scope.get("state", {})["headers"] = headers


class Observed:
    """ASGI layer that names every request and records its answer.

    It leaves in the scope's ``state``: ``request_id``, ``arrived`` (``time.monotonic()``) and
    ``facts``.

    Args:
        app: what answers.
        record: called with each record, one after the other; None records nothing.
    """

    def __init__(self, app: ASGIApp, record: Record | tuple[Record, ...] | None) -> None:
        self._app = app
        self._records = record if isinstance(record, tuple) else (record,) if record else ()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, adding ``x-request-id``."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        sent = Headers(scope=scope).get("x-request-id", "")
        request_id = sent if _REQUEST_ID.match(sent) else uuid.uuid4().hex
        facts = Facts()
        # a copy: what the server keeps there may be every request's
        noted = {"request_id": request_id, "arrived": time.monotonic(), "facts": facts}
        scope["state"] = {**scope.get("state", {}), **noted}
        status = 500

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                told = MutableHeaders(scope=message)
                told["x-request-id"] = request_id
                if more := scope["state"].get("headers"):
                    told.update(more())
            await send(message)

        try:
            await self._app(scope, receive, named)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "unknown")
            done = RequestRecord(route, status, seconds, request_id, scope["method"], facts)
            for record in self._records:
                record(done)


def _reason(plan: SearchPlan, answer: Answer) -> str:
    if plan.target_recall is not None:
        return "recall"
    if not plan.is_auto:
        return "explicit"
    lowered = [reason for reason in ("load", "deadline") if reason in answer.degraded]
    return lowered[0] if lowered else "auto"
