"""One record per answered request: an id for the caller, route, status and time for the metrics.

Never looks into a body: queries are the caller's business. Knows no metrics library.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_REQUEST_ID = re.compile(r"^[A-Za-z0-9._-]{1,64}$")


@dataclass(frozen=True)
class RequestRecord:
    """What is known of a request once it is answered.

    Attributes:
        route: the route's template, never the path itself (ids would make a series each).
        status: HTTP status.
        seconds: from the first byte of the request to the last of the answer.
        request_id: the caller's ``x-request-id``, or one made here; also in the answer.
    """

    route: str
    status: int
    seconds: float
    request_id: str


class Observed:
    """ASGI layer that names every request and records its answer.

    Args:
        app: what answers.
        record: called with each record; None records nothing.
    """

    def __init__(self, app: ASGIApp, record: Callable[[RequestRecord], None] | None) -> None:
        self._app = app
        self._record = record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, adding ``x-request-id``."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        sent = Headers(scope=scope).get("x-request-id", "")
        request_id = sent if _REQUEST_ID.match(sent) else uuid.uuid4().hex
        # a deadline counts from here; and answers name the request in their body too
        noted = {"arrived": time.monotonic(), "request_id": request_id}
        scope["state"] = {**scope.get("state", {}), **noted}
        status = 500

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, named)
        finally:
            if self._record:
                route = getattr(scope.get("route"), "path", "unknown")
                seconds = time.perf_counter() - started
                self._record(RequestRecord(route, status, seconds, request_id))
