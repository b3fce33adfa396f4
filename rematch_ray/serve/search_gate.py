"""Searches that would only wait are turned away before their bodies are read.

An ASGI layer outside of body limit and parsing: refusing after those would cost a third of what
answering does, and so take room from those that are admitted. Whether there is room is for the
backend to say.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from rematch_ray.serve.backend import Backend, OverloadedError
from rematch_ray.serve.failures import RequestError, turn_away
from rematch_ray.serve.key_check import path_of

SEARCH_PATH = "/v1/search"


class SearchGate:
    """ASGI layer that answers 503 to searches that there is no room for.

    Args:
        app: what is called for all others.
        backend: says whether there is room.
    """

    def __init__(self, app: ASGIApp, backend: Backend) -> None:
        self._app = app
        self._backend = backend

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Looks at the path only."""
        if scope["type"] == "http" and path_of(scope) == SEARCH_PATH:
            try:
                self._backend.admit_search()
            except OverloadedError as full:
                refused = RequestError(503, full.code, str(full), retry_after_s=full.retry_after_s)
                await turn_away(refused, scope, receive, send)
                return
        await self._app(scope, receive, send)
