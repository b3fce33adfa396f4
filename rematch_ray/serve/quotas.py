"""Quotas of API keys: token buckets in requests and in dot products, shared out to replicas.

`QuotaLedger` holds the buckets, once per application, and leases slices of them. Pure, with the
clock passed in; what a replica does with its slices stands in `serve.leases`. Knows names of
callers, nothing of keys, requests or Ray.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rematch_ray.serve.settings import QuotaSettings

Clock = Callable[[], float]


@dataclass(frozen=True)
class Limit:
    """One token bucket's size.

    Attributes:
        per_s: tokens that flow in each second.
        burst: tokens it holds at most.
    """

    per_s: float
    burst: float


@dataclass(frozen=True)
class Quota:
    """What the keys of one name may use; None does not limit.

    Attributes:
        requests: requests.
        dot_products: dot products of searches.
    """

    requests: Limit | None = None
    dot_products: Limit | None = None

    @classmethod
    def of(
        cls, requests_per_s: float | None, dot_products_per_s: float | None, *, burst_s: float
    ) -> Quota:
        """A quota from settings.

        Args:
            requests_per_s: None, like an infinite one, does not limit.
            dot_products_per_s: likewise.
            burst_s: how many seconds' worth a bucket holds; one request at least.

        >>> Quota.of(0.1, None, burst_s=2)
        Quota(requests=Limit(per_s=0.1, burst=1.0), dot_products=None)
        """
        return cls(_limit(requests_per_s, burst_s, least=1.0), _limit(dot_products_per_s, burst_s))

    @property
    def is_unlimited(self) -> bool:
        """Whether nothing is limited."""
        return self.requests is None and self.dot_products is None


@dataclass(frozen=True)
class Lease:
    """A slice of a name's buckets; infinite where nothing limits.

    Attributes:
        requests: that the replica may admit.
        dot_products: that it may spend.
        valid_s: after which what is left of it lapses.
        retry_after_s: when the buckets will hold what was wanted and not granted; 0 when all was.
        remaining_requests: what the bucket still holds, for the caller's information.
        remaining_dot_products: likewise.
    """

    requests: float
    dot_products: float
    valid_s: float
    retry_after_s: float = 0.0
    remaining_requests: float = float("inf")
    remaining_dot_products: float = float("inf")


class TokenBucket:
    """Tokens that flow in at a rate, up to a burst; full at first.

    Args:
        limit: rate and burst.
        now: seconds.
    """

    def __init__(self, limit: Limit, now: float) -> None:
        self._limit = limit
        self._held = limit.burst
        self._filled_at = now

    def resize(self, limit: Limit, now: float) -> None:
        """Go on at another rate and burst; nothing is given for the change."""
        self.held(now)
        self._limit = limit
        self._held = min(self._held, limit.burst)

    def held(self, now: float) -> float:
        """Tokens in the bucket."""
        gained = max(now - self._filled_at, 0.0) * self._limit.per_s
        self._held = min(self._held + gained, self._limit.burst)
        self._filled_at = max(now, self._filled_at)
        return self._held

    def take(self, wanted: float, now: float) -> float:
        """Take as much as there is, at most what is wanted."""
        taken = min(max(wanted, 0.0), self.held(now))
        self._held -= taken
        return taken

    def seconds_until(self, tokens: float, now: float) -> float:
        """When the bucket will hold so many tokens, or be full."""
        missing = min(tokens, self._limit.burst) - self.held(now)
        return max(missing, 0.0) / self._limit.per_s

    def is_full(self, now: float) -> bool:
        """Whether it is as good as new."""
        return self.held(now) >= self._limit.burst


def _limit(per_s: float | None, burst_s: float, *, least: float = 0.0) -> Limit | None:
    if per_s is None or math.isinf(per_s * burst_s):
        return None
    return Limit(per_s, max(least, per_s * burst_s))


@dataclass
class _Account:
    quota: Quota
    requests: TokenBucket | None
    dot_products: TokenBucket | None


class QuotaLedger:
    """The buckets of all names; one per application.

    Args:
        quotas: name -> quota, looked up at every lease, so that it may change. A name that is not
            there has the default of the settings.
        clock: seconds, monotonic.
        settings: how long leases last, and the default.
    """

    def __init__(
        self, quotas: Mapping[str, Quota], clock: Clock, settings: QuotaSettings | None = None
    ) -> None:
        self._quotas = quotas
        self._clock = clock
        self._settings = settings or QuotaSettings()
        self._default = default_quota(self._settings)
        self._accounts: dict[str, _Account] = {}

    def lease(self, key: str, requests: float, dot_products: float) -> Lease:
        """Take a slice out of a name's buckets.

        Args:
            key: name of the caller.
            requests: wanted.
            dot_products: wanted.

        Returns:
            As much as the buckets hold, at most what was wanted; it is the replica's from now on,
            whether it is used or not.
        """
        now = self._clock()
        quota = self._quotas.get(key, self._default)
        valid_s = self._settings.lease_s
        if quota.is_unlimited:
            return Lease(float("inf"), float("inf"), valid_s)
        account = self._account(key, quota, now)
        first = _slice(account.requests, requests, now)
        second = _slice(account.dot_products, dot_products, now)
        return Lease(
            first.granted,
            second.granted,
            valid_s,
            retry_after_s=max(first.retry_after_s, second.retry_after_s),
            remaining_requests=first.remaining,
            remaining_dot_products=second.remaining,
        )

    def _account(self, key: str, quota: Quota, now: float) -> _Account:
        account = self._accounts.get(key)
        if account is None:
            self._forget_full(now)
            account = _Account(
                quota, _bucket(quota.requests, now), _bucket(quota.dot_products, now)
            )
            self._accounts[key] = account
        elif account.quota != quota:
            account.requests = _resized(account.requests, quota.requests, now)
            account.dot_products = _resized(account.dot_products, quota.dot_products, now)
            account.quota = quota
        return account

    def _forget_full(self, now: float) -> None:
        """Drop accounts that are as good as new."""
        for key, account in list(self._accounts.items()):
            buckets = (account.requests, account.dot_products)
            if all(bucket is None or bucket.is_full(now) for bucket in buckets):
                del self._accounts[key]


def default_quota(settings: QuotaSettings) -> Quota:
    """The quota of a name that has none of its own."""
    return Quota.of(settings.requests_per_s, settings.dot_products_per_s, burst_s=settings.burst_s)


@dataclass(frozen=True)
class _Slice:
    granted: float
    remaining: float
    retry_after_s: float


def _slice(bucket: TokenBucket | None, wanted: float, now: float) -> _Slice:
    if bucket is None:
        return _Slice(float("inf"), float("inf"), 0.0)
    granted = bucket.take(wanted, now)
    return _Slice(granted, bucket.held(now), bucket.seconds_until(wanted - granted, now))


def _bucket(limit: Limit | None, now: float) -> TokenBucket | None:
    return None if limit is None else TokenBucket(limit, now)


def _resized(bucket: TokenBucket | None, limit: Limit | None, now: float) -> TokenBucket | None:
    if bucket is None or limit is None:
        return _bucket(limit, now)
    bucket.resize(limit, now)
    return bucket
