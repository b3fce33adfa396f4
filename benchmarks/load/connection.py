"""One keep-alive HTTP/1.1 connection that sends prepared bytes and hands back whole answers.

Knows no JSON and no clock: made to cost the machine that it shares with the service little.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

Answered = Callable[["Connection", int, bytes], None]
LOST = 0  # the status of a request whose connection ended


class Connection(asyncio.Protocol):
    """A connection with at most one request on its way.

    Args:
        answered: called with the connection, the status and the body of each answer.
    """

    def __init__(self, answered: Answered) -> None:
        self._answered = answered
        self._transport: asyncio.Transport | None = None
        self._got = bytearray()
        self._end = 0  # of the answer, once its head is here
        self._body_at = 0
        self.token = -1
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands."""
        self._transport, self.is_open = cast(asyncio.Transport, transport), True  # or uvloop's

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side closed; a request on its way is lost."""
        self.is_open = False
        if self.token >= 0:
            self._answered(self, LOST, b"")

    def send(self, request: bytes, token: int) -> None:
        """Sends a whole request; `token` says which when it is answered."""
        assert self._transport is not None
        self.token = token
        self._transport.write(request)

    def close(self) -> None:
        """Closes without waiting."""
        self.token = -1
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Collects an answer; the length of its body stands in its head."""
        self._got += data
        if not self._end:
            head_end = self._got.find(b"\r\n\r\n")
            if head_end < 0:
                return
            head = bytes(self._got[:head_end]).lower()
            at = head.find(b"content-length:")
            if at < 0:
                raise ValueError(f"an answer without content-length: {head!r}")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0])
            self._body_at = head_end + 4
            self._end = self._body_at + length
        if len(self._got) >= self._end:
            status, body = int(self._got[9:12]), bytes(self._got[self._body_at : self._end])
            del self._got[: self._end]
            self._end = 0
            self._answered(self, status, body)


def http_request(path: str, body: bytes) -> bytes:
    """The bytes of a POST of JSON."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
