"""A service without keys is for who sits at its machine, not for the pages in their browser.

Any site can have its own name point at 127.0.0.1 (DNS rebinding), or send a form there. What such a
page cannot make up is the name that the browser asked for, and where it says that the page is from.
Knows addresses and headers; nothing of keys.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping

from rematch_ray.serve.failures import RequestError

# they change nothing, and their answers are kept from pages of other sites by the browser itself
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_HOST = r"(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<name>[^\[\]:/@?#\s]+))(?::[0-9]*)?"
_SENT_HOST = re.compile(_HOST, re.IGNORECASE)
_SENT_ORIGIN = re.compile(f"https?://{_HOST}", re.IGNORECASE)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address.

    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "example.org")]
    [True, True, True, False, False]
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_local(method: str, headers: Mapping[str, str]) -> None:
    """Refuse what a page of another site may have sent.

    Args:
        method: of the request.
        headers: of the request, names in lower case or compared without case.

    Raises:
        RequestError: 403, `Host` is not this machine, or the request may write and `Origin` is
            another site.
    """
    host, origin = headers.get("host", ""), headers.get("origin")
    if not _is_local(_SENT_HOST, host):
        raise RequestError(
            403,
            "foreign_host",
            f"without API keys this service answers as localhost alone, and {host!r} was asked "
            "for: ask http://localhost at this port, or start it with --api-keys-file",
        )
    if origin is not None and method not in SAFE_METHODS and not _is_local(_SENT_ORIGIN, origin):
        raise RequestError(
            403,
            "foreign_origin",
            f"without API keys this service takes {method} from pages of localhost alone, and this "
            f"one is from {origin!r}: start it with --api-keys-file, and send a key",
        )


def _is_local(shape: re.Pattern[str], sent: str) -> bool:
    found = shape.fullmatch(sent)
    return found is not None and is_loopback((found["v6"] or found["name"]).lower())
