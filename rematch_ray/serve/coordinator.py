"""The one small actor of an application: which state is served, how high budgets go, who has quota.

An adapter around three state machines that know nothing of each other. Routers call `exchange` a
few times a second, shards `report` once; no request passes through it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from rematch_ray.serve.generations import GenerationBoard
from rematch_ray.serve.keys import KeyRing
from rematch_ray.serve.load import LoadController
from rematch_ray.serve.quotas import QuotaLedger
from rematch_ray.serve.settings import ServeArgs
from rematch_ray.serve.wire import Orders, RouterReport, ShardReport

RECORD_S = 1.0
logger = logging.getLogger(__name__)


class LoadRecorder(Protocol):
    """What the coordinator tells; see `metrics.Recorder`."""

    def load(self, level: int, refusing: bool, queue_delay_s: float, target_s: float) -> None:
        """The state of the load controller."""
        ...


class Coordinator:
    """Replica, the only one, that keeps what all routers share.

    A new one knows nothing: it learns the state from the next reports of the shards, starts without
    a ceiling and with full quotas.

    Args:
        num_shards: of the index.
        num_levels: rungs of the ladder.
        args: settings of the load controller, keys and their quotas.
        record: makes what takes metrics; None takes none.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        num_shards: int,
        num_levels: int,
        args: ServeArgs,
        *,
        record: Callable[[], LoadRecorder] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._board = GenerationBoard(num_shards, clock)
        self._load = LoadController(num_levels, args.load, clock)
        self._keys = KeyRing.of(args)
        self._ledger = QuotaLedger(self._keys.quotas, clock, args.quotas)
        self._recorder = None if record is None else record()
        self._clock = clock
        self._recorded_at = clock()
        self._delay_s = 0.0
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
        self._keys.refresh()
        self._tell(report.delay_s)
        return Orders(
            state=self._board.current,
            level=self._load.level,
            refuses_explicit=self._load.refuses_explicit,
            bearable_s=self._load.bearable_s,
            leases={
                key: self._ledger.lease(key, wanted.requests, wanted.dot_products)
                for key, wanted in report.demand.items()
            },
        )

    def _tell(self, delay_s: float) -> None:
        self._delay_s = max(self._delay_s, delay_s)
        if self._recorder is not None and self._clock() - self._recorded_at >= RECORD_S:
            load = self._load
            self._recorder.load(load.level, load.refusing, self._delay_s, load.target_s)
            self._recorded_at, self._delay_s = self._clock(), 0.0
        now = (self._load.level, self._load.refusing)
        if now != self._told:
            logger.info("ceiling %d rungs below the top, refusing: %s", *now)
            self._told = now
