"""What every route shares: the backend, the limits, who is let in, and when a request came in."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import Depends, Request
from starlette.requests import HTTPConnection

from rematch_ray.serve.api.base import ErrorBody
from rematch_ray.serve.backend import Backend, Caller
from rematch_ray.serve.failures import failures_named
from rematch_ray.serve.key_check import caller_of
from rematch_ray.serve.keys import require
from rematch_ray.serve.media import MediaRoots
from rematch_ray.serve.observation import add_headers, facts_of
from rematch_ray.serve.settings import Limits

if TYPE_CHECKING:
    from rematch_ray.serve.query_log import QueryLog

_REASONS = {
    400: "a value that cannot be; `param` names its field",
    401: "no API key, or one that is not known here",
    403: "the API key lacks the scope",
    404: "no such document or model",
    409: "a change is under way already",
    413: "the body is too large",
    422: "an unknown field, or one of another type",
    429: "this key's quota is used up, or an explicit budget under load; see Retry-After",
    500: "the server failed",
    503: "not ready, or no room now; see Retry-After",
    504: "the deadline passed before there was anything to return",
}


@dataclass(frozen=True)
class Service:
    """What routes are made of.

    Attributes:
        backend: encodes, searches, writes.
        limits: what one request may ask for.
        media: directories that images may be returned from.
        query_log: notes the vectors of queries; None notes none.
    """

    backend: Backend
    limits: Limits
    media: MediaRoots
    query_log: QueryLog | None = None

    def admitted(self, *scopes: str, is_charged: bool = False) -> Any:
        """A dependency that gives the `Caller` of a request, or refuses it.

        Args:
            scopes: `read`, `write`, `admin` or `metrics`; one of them is enough.
            is_charged: whether the request itself counts against the quota; searches are charged
                one by one, for what they cost.
        """
        return Depends(self._admission(scopes, is_charged))

    def _admission(
        self, scopes: tuple[str, ...], is_charged: bool
    ) -> Callable[[Request], Awaitable[Caller]]:
        async def admit(request: Request) -> Caller:
            caller = caller_of(request.scope)
            facts_of(request.scope).caller = caller.name
            # read when the answer begins, so that it counts what the request took
            add_headers(request.scope, partial(self.backend.allowance, caller))
            require(caller, *scopes)
            if is_charged:
                with failures_named():
                    self.backend.charge(caller)
            return caller

        return admit


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """How a route documents its failures; those that any route may have are added."""
    every = sorted({401, 403, 500, 503, *statuses})
    return {status: {"model": ErrorBody, "description": _REASONS[status]} for status in every}


def arrived_at(connection: HTTPConnection) -> float:
    """`time.monotonic()` when the request came in, as the outermost layer noted it."""
    noted = connection.scope.get("state", {}).get("arrived")
    return time.monotonic() if noted is None else float(noted)


def request_id_of(connection: HTTPConnection) -> str | None:
    """The id that the answer carries as ``x-request-id``."""
    return connection.scope.get("state", {}).get("request_id")
