"""Who may ask: the key ring, that finds the caller of a sent key and reads its file again.

Knows HTTP headers and keys; nothing of queries, quotas in use or Ray.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from rematch_ray.errors import UserError
from rematch_ray.serve.api_key import SCOPES, ApiKey, all_keys
from rematch_ray.serve.backend import Caller
from rematch_ray.serve.failures import RequestError
from rematch_ray.serve.quotas import Quota
from rematch_ray.serve.settings import QuotaSettings, ServeArgs

LOOK_AGAIN_S = 1.0

_log = logging.getLogger("rematch_ray.serve.keys")
_Stamp = tuple[int, int, int]


class KeyRing:
    """The keys that open the service, by their hashes.

    Args:
        keys: allowed keys.
        file: more keys. Read again within a second of a change; a file that cannot be read, or
            would leave no key at all, changes nothing and is logged.
        allow_anonymous: without keys and without a file, let every caller in as "anonymous", with
            every scope. Where there are keys, one is asked for all the same.
        quotas: what keys may use that name no quota, and how much at once.
        clock: seconds, monotonic.

    Raises:
        UserError: see `all_keys`. Every replica checks for itself: what was in the file when the
            application was built may be gone when a replica starts.
    """

    def __init__(
        self,
        keys: Iterable[ApiKey],
        *,
        file: Path | None = None,
        allow_anonymous: bool = False,
        quotas: QuotaSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._given = tuple(keys)
        self._file = file
        self._allow_anonymous = allow_anonymous
        self._settings = quotas or QuotaSettings()
        self._clock = clock
        self._callers: dict[bytes, Caller] = {}
        self._quotas: dict[str, Quota] = {}
        self._looked_at = clock()
        self._stamp = _stamp(file) if file else None
        self._adopt(self._read())

    @classmethod
    def of(cls, args: ServeArgs) -> KeyRing:
        """The key ring that the settings of an application ask for."""
        return cls(
            args.api_keys,
            file=args.api_keys_file,
            allow_anonymous=args.allow_anonymous,
            quotas=args.quotas,
        )

    @property
    def is_open(self) -> bool:
        """Whether callers need no key."""
        return self._allow_anonymous and not self._callers

    @property
    def quotas(self) -> Mapping[str, Quota]:
        """Name -> quota, of the names that have one of their own; follows the file."""
        return MappingProxyType(self._quotas)

    def admit(self, headers: Mapping[str, str]) -> Caller:
        """The caller.

        Every stored digest is compared, each in constant time, so that the time taken tells
        nothing of how near a guess was.

        Args:
            headers: of the request, names in lower case or compared without case.

        Raises:
            RequestError: 401, no key was sent or none of ours.
        """
        self.refresh()
        if self.is_open:
            return Caller()
        key = _sent_key(headers)
        if key is None:
            raise RequestError(
                401,
                "missing_api_key",
                "no API key: send 'Authorization: Bearer KEY' or 'x-api-key: KEY'",
            )
        digest = hashlib.sha256(key.encode()).digest()
        found = [c for d, c in self._callers.items() if hmac.compare_digest(d, digest)]
        if not found:
            raise RequestError(401, "invalid_api_key", "this API key is not known here")
        return found[0]

    def refresh(self) -> None:
        """Read the file again if it has changed; looks at most once a second."""
        now = self._clock()
        if self._file is None or now - self._looked_at < LOOK_AGAIN_S:
            return
        self._looked_at = now
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._adopt(self._read())
        except UserError as broken:
            _log.error("the API keys stay as they were: %s", broken)
        else:
            _log.info("read %d API keys of %d names", len(self._callers), len({*self._names()}))

    def _read(self) -> tuple[ApiKey, ...]:
        return all_keys(self._given, self._file, allow_anonymous=self._allow_anonymous)

    def _adopt(self, keys: tuple[ApiKey, ...]) -> None:
        self._callers = {
            bytes.fromhex(key.sha256): Caller(key.name, frozenset(key.scopes)) for key in keys
        }
        quotas = {
            key.name: self._quota(key)
            for key in keys
            if key.requests_per_s is not None or key.dot_products_per_s is not None
        }
        # in place: who was given the mapping sees the change
        self._quotas.clear()
        self._quotas.update(quotas)

    def _quota(self, key: ApiKey) -> Quota:
        settings = self._settings
        return Quota.of(
            settings.requests_per_s if key.requests_per_s is None else key.requests_per_s,
            settings.dot_products_per_s
            if key.dot_products_per_s is None
            else key.dot_products_per_s,
            burst_s=settings.burst_s,
        )

    def _names(self) -> Iterable[str]:
        return (caller.name for caller in self._callers.values())


def require(caller: Caller, *scopes: str) -> None:
    """Refuse a caller whose key has none of these scopes.

    Raises:
        RequestError: 403, which scope it takes and which the key has.
    """
    if caller.scopes.isdisjoint(scopes):
        wanted = " or ".join(f"'{scope}'" for scope in scopes)
        held = ", ".join(name for name in SCOPES if name in caller.scopes) or "none"
        raise RequestError(
            403,
            "missing_scope",
            f"this needs the scope {wanted}; the key of '{caller.name}' has: {held}",
        )


def _sent_key(headers: Mapping[str, str]) -> str | None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key") or headers.get("api-key") or None


def _stamp(file: Path) -> _Stamp | None:
    """What changes when a file does, replaced ones and swapped links included; None: not there."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
