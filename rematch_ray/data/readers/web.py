"""Fetching an image over https from a host that the user named; nothing else is ever fetched.

Every address is checked, those of redirects too. It does not know what it fetches. Middle floor.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from rematch_ray.errors import UserError

CHUNK_BYTES = 2**16


def fetch(url: str, *, hosts: Sequence[str], limit_bytes: int, seconds: float) -> bytes:
    """The content at an https address.

    Args:
        url: the address.
        hosts: names that are allowed, `host` or `host:port`; the port is 443 unless given.
        limit_bytes: largest content.
        seconds: within which all of it has to be here.

    Raises:
        UserError: the host is not allowed, a redirect leads elsewhere, the answer is an error, too
            large, or too slow.
    """
    check_url(url, hosts)
    with _Deadline(seconds) as deadline:
        try:
            with _opener(hosts, deadline).open(url, timeout=seconds) as answer:
                content = _content(answer, url, limit_bytes)
        except UserError:
            raise
        # URLError and HTTPError are OSErrors; ValueError: an address that http.client will not send
        except (OSError, http.client.HTTPException, ValueError) as error:
            if not deadline.is_over:
                raise UserError(f"{url[:200]}: cannot be fetched: {error}") from error
    # a connection that was cut may look like one that ended
    if deadline.is_over:
        raise UserError(f"{url[:200]}: not here within url_seconds")
    return content


def check_url(url: str, hosts: Sequence[str]) -> None:
    """Refuse an address that is not https or not on an allowed host.

    >>> check_url("https://img.example.org/a.png", ["img.example.org"])
    """
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port or 443
    except ValueError as error:
        raise UserError(f"{url[:200]}: not an address: {error}") from error
    if parts.scheme != "https":
        raise UserError(f"{url[:200]}: images are fetched over https only")
    if "@" in parts.netloc:
        raise UserError(f"{url[:200]}: an address with a user name is not fetched")
    if f"{host}:{port}" not in {h.lower() if ":" in h else f"{h.lower()}:443" for h in hosts}:
        allowed = ", ".join(hosts) or "none"
        raise UserError(
            f"{url[:200]}: host {host}:{port} is not allowed (allowed: {allowed}); name it in "
            "url_hosts, or give the images as files"
        )


class _Deadline:
    """Cuts connections when the time is over, whatever they are at: a socket's own timeout begins
    anew with every byte, of headers, redirects and the TLS handshake too.
    """

    def __init__(self, seconds: float) -> None:
        self.is_over = False
        self._held: list[socket.socket] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._timer.cancel()
        with self._lock:
            for held in self._held:
                held.close()
            self._held = []

    def connect(self, *given: Any, **named: Any) -> socket.socket:
        """As `socket.create_connection`; the connection is cut when the time is over."""
        made = socket.create_connection(*given, **named)
        with self._lock:
            # another handle: TLS takes the first one over
            self._held.append(made.dup())
        if self.is_over:
            self._cut()
        return made

    def _cut(self) -> None:
        self.is_over = True
        with self._lock:
            for held in self._held:
                # the other side may have ended it
                with suppress(OSError):
                    held.shutdown(socket.SHUT_RDWR)


class _Https(urllib.request.HTTPSHandler):
    """Opens connections that keep a deadline."""

    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def https_open(self, req: Any) -> Any:
        return self.do_open(self._connection, req, context=ssl.create_default_context())

    def _connection(self, host: str, **named: Any) -> http.client.HTTPSConnection:
        made = http.client.HTTPSConnection(host, **named)
        # where http.client keeps how it connects, for a proxy's tunnel too
        made._create_connection = self._deadline.connect  # type: ignore[attr-defined]
        return made


class _SameHosts(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to where the first request could have gone."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._hosts = hosts

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str):  # type: ignore[no-untyped-def]
        check_url(newurl, self._hosts)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(hosts: Sequence[str], deadline: _Deadline) -> urllib.request.OpenerDirector:
    """An opener that knows https and nothing else: no file:, no ftp:, no http:."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _Https(deadline),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _SameHosts(hosts),
    ):
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", "rematch-ray"), ("Accept", "image/*")]
    return opener


def _content(answer: Any, url: str, limit_bytes: int) -> bytes:
    content = bytearray()
    while chunk := answer.read1(CHUNK_BYTES):
        content += chunk
        if len(content) > limit_bytes:
            raise UserError(f"{url[:200]}: more than {limit_bytes} bytes (url_bytes)")
    return bytes(content)
