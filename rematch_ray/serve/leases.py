"""What a replica admits from the slices of quotas that the ledger leased to it.

Pure, with the clock passed in. Knows names of callers and prices of requests, nothing of HTTP, Ray
or keys.

Bound: in any T seconds, R replicas together admit at most burst + rate * T of a name, and on top
one credit each. A credit is what a replica lends a caller whom it holds no slice for, and pays from
the next one: `CREDIT_SHARE` of the burst, or one request, whatever it costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rematch_ray.serve.backend import OverloadedError
from rematch_ray.serve.quotas import Clock, Lease, Limit, Quota, default_quota
from rematch_ray.serve.settings import QuotaSettings

CREDIT_SHARE = 0.05
_AHEAD_S = 0.5  # what a slice is to last for: two exchanges and some
_EXCHANGE_S = 0.2  # how often slices are leased
_FORGOTTEN_AFTER_S = 60.0


@dataclass(frozen=True)
class Demand:
    """What a replica wants of one name's buckets until the next exchange."""

    requests: float
    dot_products: float


@dataclass(frozen=True)
class QuotaState:
    """Where a caller stands, as far as this replica knows.

    Attributes:
        quota: its limits.
        remaining_requests: left of the burst; None where nothing limits.
        remaining_dot_products: likewise.
    """

    quota: Quota
    remaining_requests: float | None
    remaining_dot_products: float | None

    def headers(self) -> dict[str, str]:
        """`RateLimit-*` headers; those without a unit speak of requests."""
        headers: dict[str, str] = {}
        for suffix, limit, remaining in (
            ("", self.quota.requests, self.remaining_requests),
            ("-dot-products", self.quota.dot_products, self.remaining_dot_products),
        ):
            if limit is None or remaining is None:
                continue
            missing_s = max(limit.burst - remaining, 0.0) / limit.per_s
            window_s = max(1, math.ceil(limit.burst / limit.per_s))
            headers[f"ratelimit{suffix}-limit"] = f"{math.floor(limit.burst)}"
            headers[f"ratelimit{suffix}-remaining"] = f"{max(math.floor(remaining), 0)}"
            headers[f"ratelimit{suffix}-reset"] = f"{math.ceil(missing_s)}"
            headers[f"ratelimit{suffix}-policy"] = f"{math.floor(limit.burst)};w={window_s}"
        return headers


class LeasedQuota:
    """Admits requests against leased slices; one per replica.

    Args:
        quotas: name -> quota, looked up at every request, so that it may change.
        clock: seconds, monotonic.
        settings: the default quota.
    """

    def __init__(
        self, quotas: Mapping[str, Quota], clock: Clock, settings: QuotaSettings | None = None
    ) -> None:
        self._quotas = quotas
        self._clock = clock
        self._default = default_quota(settings or QuotaSettings())
        self._purses: dict[str, _Purse] = {}

    def take(self, key: str, dot_products: float) -> None:
        """Admit one request and what it costs, or refuse it.

        Args:
            key: name of the caller.
            dot_products: that it is expected to cost.

        Raises:
            OverloadedError: code `quota_exceeded`; nothing was taken.
        """
        self._take(key, 1.0, dot_products)

    def admit(self, key: str, dot_products: float) -> None:
        """Admit one request that pays its dot products later, by `spend`; else as `take`.

        It is refused where they are not there now.
        """
        self._take(key, 1.0, dot_products, spends=False)

    def spend(self, key: str, dot_products: float) -> None:
        """Pay for a request that was admitted; errors as of `take`."""
        self._take(key, 0.0, dot_products)

    def _take(self, key: str, requests: float, dot_products: float, *, spends: bool = True) -> None:
        quota = self._quotas.get(key, self._default)
        if quota.is_unlimited:
            return
        limit = quota.dot_products
        if limit is not None and dot_products > limit.burst:
            raise OverloadedError(
                f"{dot_products:.0f} dot products in one request; the quota of {key!r} is "
                f"{limit.per_s:.0f} a second, {limit.burst:.0f} at once: ask for a smaller budget "
                "or fewer candidates",
                retry_after_s=limit.burst / limit.per_s,
                code="quota_exceeded",
            )
        now = self._clock()
        purse = self._purse(key, quota, now)
        if not purse.take(requests, dot_products, now, spends=spends):
            raise OverloadedError(
                f"the quota of {key!r} is used up ({_spelled(quota)})",
                retry_after_s=max(purse.retry_at - now, _EXCHANGE_S),
                code="quota_exceeded",
            )

    def settle(self, key: str, expected: float, spent: float) -> None:
        """Correct an admitted request's cost once it is known.

        Args:
            key: name of the caller.
            expected: dot products that `take` or `spend` was told.
            spent: dot products that the search took; 0 where it failed.
        """
        if (purse := self._purses.get(key)) and purse.dot_products:
            purse.dot_products.correct(spent - expected, self._clock())

    def wanted(self) -> dict[str, Demand]:
        """What to ask the ledger for, by name; call it once per exchange.

        Names that nobody used for a while are forgotten.
        """
        now = self._clock()
        for key, purse in list(self._purses.items()):
            if now - purse.used_at > _FORGOTTEN_AFTER_S and not purse.owes():
                del self._purses[key]
        return {key: purse.wanted(now) for key, purse in self._purses.items()}

    def grant(self, key: str, lease: Lease) -> None:
        """Put a lease to use; what was lent is paid from it first."""
        if purse := self._purses.get(key):
            purse.grant(lease, self._clock())

    def state(self, key: str) -> QuotaState:
        """Where a caller stands, for the headers of its answer."""
        purse = self._purse(key, self._quotas.get(key, self._default), self._clock())
        now = self._clock()
        return QuotaState(
            purse.quota,
            purse.requests.remaining(now) if purse.requests else None,
            purse.dot_products.remaining(now) if purse.dot_products else None,
        )

    def _purse(self, key: str, quota: Quota, now: float) -> _Purse:
        purse = self._purses.get(key)
        if purse is None or purse.quota != quota:
            # a changed quota starts anew: what was lent under the old one is forgiven
            purse = self._purses[key] = _Purse(quota, now)
        return purse


def _spelled(quota: Quota) -> str:
    limits = ((quota.requests, "requests"), (quota.dot_products, "dot products"))
    return " and ".join(f"{limit.per_s:g} {unit}/s" for limit, unit in limits if limit)


class _Purse:
    """A name's two slices in one replica."""

    def __init__(self, quota: Quota, now: float) -> None:
        self.quota = quota
        self.requests = None if quota.requests is None else _Slice(quota.requests, now)
        self.dot_products = None if quota.dot_products is None else _Slice(quota.dot_products, now)
        self.retry_at = now
        self.used_at = now

    def take(self, requests: float, dot_products: float, now: float, *, spends: bool) -> bool:
        """Take requests and, if it spends them, dot products; nothing where either is short."""
        self.used_at = now
        costs = [(self.requests, requests), (self.dot_products, dot_products)]
        slices = [(held, cost) for held, cost in costs if held is not None]
        is_there = all(held.can_take(cost, now) for held, cost in slices)
        for held, cost in slices:
            if is_there and not spends and held is self.dot_products:
                continue  # asked for when they are spent
            held.ask(cost)
            if is_there:
                held.take(cost, now)
        return is_there

    def owes(self) -> bool:
        return any(held and held.owed for held in (self.requests, self.dot_products))

    def wanted(self, now: float) -> Demand:
        return Demand(
            self.requests.wanted(now) if self.requests else 0.0,
            self.dot_products.wanted(now) if self.dot_products else 0.0,
        )

    def grant(self, lease: Lease, now: float) -> None:
        self.retry_at = now + lease.retry_after_s
        until = now + lease.valid_s
        if self.requests:
            self.requests.grant(lease.requests, now, until, lease.remaining_requests)
        if self.dot_products:
            self.dot_products.grant(lease.dot_products, now, until, lease.remaining_dot_products)


class _Slice:
    """What a replica holds of one bucket, and what it owes to it."""

    def __init__(self, limit: Limit, now: float) -> None:
        self._burst = limit.burst
        self._credit = CREDIT_SHARE * limit.burst
        self._held = 0.0
        self._valid_until = now
        self.owed = 0.0
        self._asked = 0.0
        self._per_s = 0.0
        self._counted_at = now
        self._bucket_holds = limit.burst

    def held(self, now: float) -> float:
        if now >= self._valid_until:
            self._held = 0.0
        return self._held

    def ask(self, cost: float) -> None:
        """Count demand, whether it is admitted or not."""
        self._asked += cost

    def can_take(self, cost: float, now: float) -> bool:
        beyond = cost - self.held(now)
        return beyond <= 0 or self.owed == 0 or self.owed + beyond <= self._credit

    def take(self, cost: float, now: float) -> None:
        from_slice = min(cost, self.held(now))
        self._held -= from_slice
        self.owed += cost - from_slice

    def correct(self, more: float, now: float) -> None:
        """Take more after the fact, or, below 0, put some back."""
        if more > 0:
            self.take(more, now)
            return
        returned = -more
        paid = min(returned, self.owed)
        self.owed -= paid
        self._held += returned - paid

    def wanted(self, now: float) -> float:
        """Debts, and what the present demand takes until the exchange after the next."""
        elapsed = max(now - self._counted_at, _EXCHANGE_S)
        # up at once, down over a second
        self._per_s = max(self._asked / elapsed, self._per_s * math.exp(-elapsed))
        self._asked, self._counted_at = 0.0, now
        return self.owed + max(self._per_s * _AHEAD_S - self.held(now), 0.0)

    def grant(self, tokens: float, now: float, valid_until: float, bucket_holds: float) -> None:
        # a ledger that has not read of the quota yet leases without end, and would go on to be
        # obeyed for as long as the slice is renewed
        tokens = min(tokens, self._burst)
        paid = min(tokens, self.owed)
        self.owed -= paid
        self._held = min(self.held(now) + tokens - paid, self._burst)
        self._valid_until = valid_until
        self._bucket_holds = min(bucket_holds, self._burst)

    def remaining(self, now: float) -> float:
        left = self.held(now) + self._bucket_holds - self.owed
        return min(max(left, 0.0), self._burst)
