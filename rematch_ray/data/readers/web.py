"""Fetching an image over https from a host that the user named; nothing else is ever fetched.

Every address is checked, those of redirects too. It does not know what it fetches. Middle floor.
"""

from __future__ import annotations

import http.client
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
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
    deadline = time.monotonic() + seconds
    try:
        with _opener(hosts).open(url, timeout=seconds) as answer:
            return _content(answer, url, limit_bytes, deadline)
    except UserError:
        raise
    # URLError and HTTPError are OSErrors; ValueError: an address that http.client will not send
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(f"{url[:200]}: cannot be fetched: {error}") from error


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


class _SameHosts(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to where the first request could have gone."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._hosts = hosts

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str):  # type: ignore[no-untyped-def]
        check_url(newurl, self._hosts)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(hosts: Sequence[str]) -> urllib.request.OpenerDirector:
    """An opener that knows https and nothing else: no file:, no ftp:, no http:."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _SameHosts(hosts),
    ):
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", "rematch-ray"), ("Accept", "image/*")]
    return opener


def _content(answer: Any, url: str, limit_bytes: int, deadline: float) -> bytes:
    content = bytearray()
    while chunk := answer.read1(CHUNK_BYTES):
        content += chunk
        if len(content) > limit_bytes:
            raise UserError(f"{url[:200]}: more than {limit_bytes} bytes (url_bytes)")
        if time.monotonic() > deadline:
            raise UserError(f"{url[:200]}: not here within url_seconds")
    return bytes(content)
