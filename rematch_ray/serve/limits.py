"""Bodies cut off at their limit, before anything reads them, and not read where none is taken.

Knows nothing of queries or of Ray; limits that need a parsed request stand in `serve.api`.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rematch_ray.serve.failures import RequestError, turn_away
from rematch_ray.serve.key_check import is_open

_WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS"})


class BodyLimit:
    """ASGI layer that answers 413 as soon as a body is, or says it is, too large.

    Args:
        app: what is called with bodies inside the limit.
        max_bytes: largest body.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reads the body up to the limit, then passes it on in one piece."""
        # what is open to all takes no body: nobody may have one kept without a key
        if scope["type"] != "http" or scope["method"] in _WITHOUT_BODY or is_open(scope):
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        body = None
        if not declared.isdecimal() or int(declared) <= self._max_bytes:
            body = await self._read(receive)
        if body is None:
            too_large = RequestError(
                413,
                "body_too_large",
                f"the body exceeds {self._max_bytes} bytes: send a smaller image or fewer parts",
            )
            await turn_away(too_large, scope, receive, send)
            return
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self._app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytes | None:
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":  # the caller hung up
                return b"".join(chunks)
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > self._max_bytes:
                return None
            if not message.get("more_body", False):
                return b"".join(chunks)
