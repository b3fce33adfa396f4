"""Callers without a key are turned away before anything of their request is read.

An ASGI layer outside of body limit and parsing. Which scope a route takes is the route's business.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from rematch_ray.serve.backend import Caller
from rematch_ray.serve.failures import RequestError, turn_away
from rematch_ray.serve.keys import KeyRing
from rematch_ray.serve.loopback import check_local

# all else takes a key, paths that do not exist too: nobody finds out which those are
OPEN_PATHS = frozenset(
    {"/", "/docs", "/openapi.json", "/favicon.ico", "/healthz", "/livez", "/readyz"}
)
OPEN_FOLDER = "/assets/"
_NOTED = "caller"


class KeyCheck:
    """ASGI layer that answers 401 to who has no key, and notes who the caller is.

    Where no keys are asked for, it answers 403 to pages of other sites: see `loopback`.

    Args:
        app: what is called for callers that are known, and for what is open to all.
        keys: who may call.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Looks at path and headers only."""
        if scope["type"] == "http" and not is_open(scope):
            headers = Headers(scope=scope)
            try:
                caller = self._keys.admit(headers)
                if self._keys.is_open:
                    check_local(scope["method"], headers)
            except RequestError as refused:
                await turn_away(refused, scope, receive, send)
                return
            scope.setdefault("state", {})[_NOTED] = caller
        await self._app(scope, receive, send)


def is_open(scope: Scope) -> bool:
    """Whether a request needs no key."""
    path = path_of(scope)
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDER)


def path_of(scope: Scope) -> str:
    """The path as routes name it, below the prefix that the application is mounted at."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path.removeprefix(root) if root and path.startswith(f"{root}/") else path


def caller_of(scope: Scope) -> Caller:
    """Who sent a request that has passed `KeyCheck`."""
    caller = scope["state"][_NOTED]
    assert isinstance(caller, Caller)
    return caller
