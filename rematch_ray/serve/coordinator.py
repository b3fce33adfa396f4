"""The one small actor of an application: which state is served, how high budgets go, who has quota.

An adapter around three state machines that know nothing of each other. Routers call `exchange` a
few times a second, shards `report` once; no request passes through it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from rematch_ray.serve.generations import GenerationBoard
from rematch_ray.serve.load import LoadController
from rematch_ray.serve.quotas import Quota, QuotaLedger
from rematch_ray.serve.settings import LoadSettings, QuotaSettings
from rematch_ray.serve.wire import Orders, RouterReport, ShardReport

logger = logging.getLogger(__name__)


class Coordinator:
    """Replica, the only one, that keeps what all routers share.

    A new one knows nothing: it learns the state from the next reports of the shards, starts without
    a ceiling and with full quotas.

    Args:
        num_shards: of the index.
        num_levels: rungs of the ladder.
        load: settings of the load controller.
        quotas: key name -> quota.
        quota_settings: of names without one.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        num_shards: int,
        num_levels: int,
        load: LoadSettings,
        quotas: Mapping[str, Quota],
        quota_settings: QuotaSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._board = GenerationBoard(num_shards, clock)
        self._load = LoadController(num_levels, load, clock)
        self._ledger = QuotaLedger(quotas, clock, quota_settings)
        self._replicas: list[int] = []
        self._told = (0, False)

    # async, so that Serve runs both in one thread: the state machines have no locks
    async def report(self, report: ShardReport) -> None:
        """Take down what a replica of a shard has open."""
        before = self._board.current
        self._board.report(report.shard, report.replica, report.states)
        current = self._board.current
        if current is not None and current != before:
            logger.info("serving %s", current.name)
        replicas = self._board.replicas()
        if replicas != self._replicas:
            self._replicas = replicas
            self._load.capacity_changed()

    async def exchange(self, report: RouterReport) -> Orders:
        """Take a router's report, give it its orders."""
        if report.unloaded_s is not None:
            self._load.calibrate(report.unloaded_s)
        self._load.observe(report.delay_s, report.searches, report.router, refused=report.refused)
        self._load.tick()
        self._tell()
        return Orders(
            state=self._board.current,
            level=self._load.level,
            refused_share=self._load.refused_share,
            refuses_explicit=self._load.refuses_explicit,
            leases={
                key: self._ledger.lease(key, wanted.requests, wanted.dot_products)
                for key, wanted in report.demand.items()
            },
        )

    def _tell(self) -> None:
        now = (self._load.level, self._load.refusing)
        if now != self._told:
            logger.info("ceiling %d rungs below the top, refusing: %s", *now)
            self._told = now
