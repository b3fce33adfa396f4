"""Quotas hold for the sum of all replicas, and refuse nobody who stays below."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rematch_ray.serve.backend import OverloadedError
from rematch_ray.serve.leases import CREDIT_SHARE, LeasedQuota
from rematch_ray.serve.quotas import Lease, Quota, QuotaLedger
from rematch_ray.serve.settings import QuotaSettings
from tests.serve.simulation import EXCHANGE_S, Clock

KEY = "shop"


class Replicas:
    """A ledger and R replicas of one clock."""

    def __init__(self, num: int, quotas: Mapping[str, Quota], **settings: float) -> None:
        self.clock = Clock()
        chosen = QuotaSettings(**settings)
        self.ledger = QuotaLedger(quotas, self.clock, chosen)
        self.replicas = [LeasedQuota(quotas, self.clock, chosen) for _ in range(num)]

    def exchange(self, replica: int) -> None:
        quota = self.replicas[replica]
        for key, demand in quota.wanted().items():
            quota.grant(key, self.ledger.lease(key, demand.requests, demand.dot_products))

    def admits(self, replica: int, dot_products: float = 0.0, key: str = KEY) -> bool:
        try:
            self.replicas[replica].take(key, dot_products)
        except OverloadedError:
            return False
        return True


Step = tuple[int, float, float, bool]
steps = st.lists(
    st.tuples(st.integers(0, 3), st.floats(0, 0.7), st.floats(0, 60), st.booleans()), max_size=300
)


@given(steps)
def test_replicas_together_never_exceed_the_quota(actions: list[Step]) -> None:
    """However they interleave: burst + rate * time, and one credit of each replica."""
    quota = Quota.of(5, 100, burst_s=2)
    assert quota.requests and quota.dot_products
    service = Replicas(4, {KEY: quota})
    admitted, spent, dearest = 0, 0.0, 0.0
    for replica, elapsed, dot_products, exchanges in actions:
        service.clock.now += elapsed
        if exchanges:
            service.exchange(replica)
        elif service.admits(replica, dot_products):
            admitted += 1
            spent += dot_products
            dearest = max(dearest, dot_products)
        for limit, used, largest in (
            (quota.requests, admitted, 1.0),
            (quota.dot_products, spent, dearest),
        ):
            credit = 4 * max(CREDIT_SHARE * limit.burst, largest)
            assert used <= limit.burst + limit.per_s * service.clock.now + credit + 1e-6


def offer(
    service: Replicas, per_s: float, *, seconds: float, dot_products: float = 0.0
) -> tuple[int, int]:
    """Poisson requests to replicas at random, which exchange in turn; offered and admitted."""
    rng = np.random.default_rng(0)
    num = len(service.replicas)
    next_exchange = [EXCHANGE_S * (1 + n / num) for n in range(num)]
    offered = admitted = 0
    arrival = rng.exponential(1 / per_s)
    while arrival < seconds:
        soonest = min(next_exchange)
        if soonest < arrival:
            replica = next_exchange.index(soonest)
            service.clock.now = soonest
            service.exchange(replica)
            next_exchange[replica] += EXCHANGE_S
            continue
        service.clock.now = arrival
        offered += 1
        admitted += service.admits(int(rng.integers(num)), dot_products)
        arrival += rng.exponential(1 / per_s)
    return offered, admitted


@pytest.mark.parametrize("num", [1, 2, 8])
@pytest.mark.parametrize("per_s", [20.0, 400.0])
def test_a_caller_below_its_quota_is_not_refused(num: int, per_s: float) -> None:
    service = Replicas(num, {KEY: Quota.of(per_s, None, burst_s=2)})
    offered, admitted = offer(service, 0.7 * per_s, seconds=60)
    assert admitted >= 0.995 * offered  # leases follow the demand, not each burst of it


@pytest.mark.parametrize("num", [1, 2, 8])
def test_a_caller_above_its_quota_gets_what_it_pays_for(num: int) -> None:
    service = Replicas(num, {KEY: Quota.of(50, None, burst_s=2)})
    _, admitted = offer(service, 200.0, seconds=60)
    assert 0.95 * 50 * 60 <= admitted <= 50 * 60 + 100 + num * CREDIT_SHARE * 100 + num


@pytest.mark.parametrize("num", [1, 4])
def test_work_is_limited_like_requests(num: int) -> None:
    service = Replicas(num, {KEY: Quota.of(None, 1e6, burst_s=2)})
    _, admitted = offer(service, 100.0, seconds=60, dot_products=5e4)
    assert 0.9 * 1e6 * 60 <= admitted * 5e4 <= 1e6 * 62 + num * 1e5


def test_the_first_request_at_any_replica_is_admitted_at_once() -> None:
    service = Replicas(8, {KEY: Quota.of(1, 1000, burst_s=2)})
    assert service.admits(0, 2000)


def test_a_dear_request_takes_nothing_when_it_is_refused() -> None:
    service = Replicas(1, {KEY: Quota.of(10, 100, burst_s=1)})
    assert service.admits(0, 90)
    before = service.replicas[0].state(KEY)
    assert not service.admits(0, 90)
    assert service.replicas[0].state(KEY) == before


def test_dot_products_are_looked_at_when_a_request_comes_and_taken_when_it_runs() -> None:
    service = Replicas(1, {KEY: Quota.of(10, 100, burst_s=1)})
    replica = service.replicas[0]
    replica.state(KEY)
    replica.grant(KEY, Lease(10, 100, 60.0, 0.0, 0.0, 0.0))
    for _ in range(2):
        replica.admit(KEY, 90)
    assert replica.state(KEY).remaining_requests == 8
    assert replica.state(KEY).remaining_dot_products == 100
    replica.spend(KEY, 90)
    replica.spend(KEY, 90)  # the credit
    for late in (replica.admit, replica.spend):
        with pytest.raises(OverloadedError, match="used up"):
            late(KEY, 90)
    assert replica.state(KEY).remaining_requests == 8


def test_a_request_dearer_than_the_burst_is_told_so() -> None:
    service = Replicas(1, {KEY: Quota.of(None, 100, burst_s=2)})
    with pytest.raises(OverloadedError, match="smaller budget"):
        service.replicas[0].take(KEY, 201)


def test_a_lease_lapses() -> None:
    service = Replicas(1, {KEY: Quota.of(10, None, burst_s=1)}, lease_s=1.0)
    for _ in range(4):
        service.admits(0)
    service.exchange(0)
    held = service.replicas[0].state(KEY).remaining_requests
    service.clock.now += 1.01
    assert held is not None
    lapsed = service.replicas[0].state(KEY).remaining_requests
    assert lapsed is not None and lapsed < held


def test_what_was_lent_is_paid_once() -> None:
    service = Replicas(1, {KEY: Quota.of(10, None, burst_s=1)})
    assert service.admits(0)
    service.exchange(0)
    for _ in range(50):  # idle: what it asks for ahead of demand fades
        service.clock.now += EXCHANGE_S
        service.exchange(0)
    assert service.replicas[0].wanted()[KEY].requests < 0.01


def test_what_a_search_really_cost_is_settled() -> None:
    service = Replicas(1, {KEY: Quota.of(None, 100, burst_s=1)})
    service.replicas[0].take(KEY, 10)
    service.replicas[0].settle(KEY, 10, 80)
    assert service.replicas[0].wanted()[KEY].dot_products >= 80
    service.replicas[0].settle(KEY, 80, 0)
    assert service.replicas[0].wanted()[KEY].dot_products < 80


def test_names_without_a_quota_have_the_default() -> None:
    free = Replicas(1, {})
    assert all(free.admits(0, 1e12, key="anyone") for _ in range(1000))
    assert free.replicas[0].wanted() == {}
    limited = Replicas(1, {}, requests_per_s=1.0, burst_s=1.0)
    assert sum(limited.admits(0, key="anyone") for _ in range(10)) == 1
    costly = Replicas(1, {}, dot_products_per_s=100.0, burst_s=1.0)
    assert sum(costly.admits(0, 60.0, key="anyone") for _ in range(10)) == 1


def test_names_do_not_share() -> None:
    service = Replicas(1, {"a": Quota.of(1, None, burst_s=1), "b": Quota.of(1, None, burst_s=1)})
    assert service.admits(0, key="a")
    assert not service.admits(0, key="a")
    assert service.admits(0, key="b")


def test_a_changed_quota_holds_from_the_next_lease_on() -> None:
    quotas = {KEY: Quota.of(100, None, burst_s=1)}
    service = Replicas(1, quotas)
    assert service.ledger.lease(KEY, 50, 0).requests == 50
    quotas[KEY] = Quota.of(10, None, burst_s=1)
    assert service.ledger.lease(KEY, 50, 0).requests == 10
    quotas[KEY] = Quota()
    assert math.isinf(service.ledger.lease(KEY, 50, 0).requests)


def test_a_quota_that_the_ledger_has_not_read_of_yet_holds_all_the_same() -> None:
    quotas: dict[str, Quota] = {}
    service = Replicas(1, quotas)
    replica = LeasedQuota({KEY: Quota.of(10, 1000, burst_s=2)}, service.clock)
    service.replicas = [replica]
    assert service.admits(0, 100)
    service.exchange(0)
    headers = replica.state(KEY).headers()
    assert (headers["ratelimit-remaining"], headers["ratelimit-limit"]) == ("20", "20")
    assert (headers["ratelimit-dot-products-remaining"], headers["ratelimit-reset"]) == (
        "2000",
        "0",
    )
    quotas[KEY] = Quota.of(10, 1000, burst_s=2)
    # the burst that was leased blindly, the bucket's own, and the credit
    assert sum(service.admits(0) for _ in range(1000)) <= 21
    service.exchange(0)
    assert sum(service.admits(0) for _ in range(1000)) <= 21


def test_a_rate_without_end_is_no_limit() -> None:
    assert Quota.of(math.inf, 1e308, burst_s=2).is_unlimited


def test_headers_say_what_is_left_and_when_it_is_full() -> None:
    service = Replicas(1, {KEY: Quota.of(10, None, burst_s=2)})
    service.admits(0)
    headers = service.replicas[0].state(KEY).headers()
    assert headers == {
        "ratelimit-limit": "20",
        "ratelimit-remaining": "19",
        "ratelimit-reset": "1",
        "ratelimit-policy": "20;w=2",
    }
    assert service.replicas[0].state("unlimited").headers() == {}
