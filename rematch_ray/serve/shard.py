"""The deployment that holds one shard of an index and searches it.

Searches run in threads, so that a long one does not keep short ones or health checks waiting. What
is published while it runs is found within a second and told to the coordinator; a search runs on
the generation that it was admitted with. An adapter: opens generations, calls them, knows no HTTP
and no model.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from rematch_ray.errors import UserError
from rematch_ray.serve.ahead import Ahead, AheadAsked, run_ahead
from rematch_ray.serve.autoscaling import WorkMeter
from rematch_ray.serve.backend import DeadlineError, EncodedQuery, Float32
from rematch_ray.serve.drifting import DriftWatch
from rematch_ray.serve.held import HeldGenerations
from rematch_ray.serve.searching import explain_hits, search_opened, stored_query, warm_up
from rematch_ray.serve.wire import Asked, Found, ShardReport
from rematch_ray.serve.words import WordsAsked, WordsFound, find_words

if TYPE_CHECKING:
    from rematch_ray.index.sharding.phases import Filter
    from rematch_ray.serve.facts import IndexFacts


Answer = TypeVar("Answer")
Tell = Callable[[ShardReport], None]
LOOK_S = 1.0
_PHASES = ("passing", "coarse", "score", "best", "documents", "sources")
logger = logging.getLogger(__name__)


class ShardRecorder(Protocol):
    """What a shard tells of itself; see `metrics.Recorder`."""

    def index(self, shard: int, info: Mapping[str, Any]) -> None:
        """The state of the shard."""
        ...

    def checked(self, rung: str, recall: float) -> None:
        """What the drift check found."""
        ...


class Shard:
    """Replica that holds one shard of an index, or a whole one.

    Args:
        index: index directory.
        num_threads: searches that run at a time.
        number: of the shard, where the index is split.
        coordinator: handle of `Coordinator`; None tells nobody.
        tell: takes reports instead, from a thread of the shard's own.
        record: makes what takes metrics; None takes none.
        drift_share: of the searches that promised a recall; so many are checked.
        device: of torch, where vectors are held and scored; None: the CPU.
        preload: read what is published into memory before it is searched.
    """

    def __init__(
        self,
        index: str,
        num_threads: int,
        number: int = 0,
        coordinator: Any = None,
        *,
        tell: Tell | None = None,
        record: Callable[[], ShardRecorder] | None = None,
        drift_share: float = 0.0,
        device: str | None = None,
        preload: bool = True,
    ) -> None:
        self._number = number
        # before anything is logged: see `replica_log`
        self._recorder = None if record is None else record()
        self._held = HeldGenerations(Path(index), number, device=device, preload=preload)
        warm_up(self._held.newest)
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="search")
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="facts")
        self._meter = WorkMeter(num_threads)
        self._tell = tell if coordinator is None else _teller(coordinator)
        self._replica = uuid.uuid4().hex
        checked = self._recorder.checked if self._recorder else lambda rung, recall: None
        self._drift = DriftWatch(drift_share, checked)
        self._ended, self._news = threading.Event(), threading.Event()
        # two threads: while one reads a large state into memory the other says that we live
        for name, chore in (("look", self._look), ("tell", self._report)):
            threading.Thread(target=self._again, args=(chore,), name=name, daemon=True).start()

    async def search(self, asked: Asked) -> Found:
        """The hits of one query, where this shard is the whole index.

        Raises:
            UserError: the request does not fit the index.
            GenerationGoneError: its generation is not on disk any more.
            DeadlineError: it waited until after its deadline.
        """
        arrived = time.perf_counter()
        self._meter.ask(asked.work)
        return await self._in_thread(self._search, asked, arrived)

    def _search(self, asked: Asked, arrived: float) -> Found:
        waited = _waited(arrived, asked.left_s)
        opened = self._held.opened(asked.generation)
        found = search_opened(opened, asked, 1e3 * waited)
        if asked.is_whole:
            self._drift.offer(opened.index, asked.query, found.result)
        self._meter.done(found.dot_products, found.search_ms / 1e3, as_asked=asked.as_asked)
        return found

    async def ahead(self, asked: AheadAsked) -> Ahead:
        """This shard's part of one query, where the index is split; errors as of `search`."""
        arrived = time.perf_counter()
        self._meter.ask(asked.work)
        return await self._in_thread(self._run_ahead, asked, arrived)

    def _run_ahead(self, asked: AheadAsked, arrived: float) -> Ahead:
        waited = _waited(arrived, asked.left_s)
        started = time.perf_counter()
        found = run_ahead(self._held.opened(asked.generation), asked)
        self._meter.done(asked.work, time.perf_counter() - started, as_asked=asked.as_asked)
        return replace(found, queue_ms=1e3 * waited)

    async def words(self, asked: WordsAsked) -> WordsFound:
        """This shard's part of both lists of a hybrid search, where the index is split."""
        return await self._in_thread(lambda: find_words(self._held.opened(asked.generation), asked))

    async def count(self, generation: str | None, filter: Filter) -> int:
        """Live documents of this shard that pass a filter."""
        return await self._in_thread(
            lambda: int(np.count_nonzero(self._held.opened(generation).shard.allowed(filter)))
        )

    async def phase(
        self,
        generation: str | None,
        name: str,
        values: Sequence[Any],
        named: Mapping[str, Any],
    ) -> Any:
        """One phase of a search over several shards: see `index.sharding.phases.Shard`."""
        if name not in _PHASES:
            raise UserError(f"phase {name!r} does not exist; allowed: {', '.join(_PHASES)}")
        return await self._in_thread(
            lambda: getattr(self._held.opened(generation).shard, name)(*values, **named)
        )

    async def facts(self, state: str, generation: str) -> IndexFacts:
        """What a router needs to know of a state of the index; GenerationGoneError.

        Not behind searches: a router that waits for it stays on the state before.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._aside, self._held.facts, state, generation)

    async def states(self) -> Mapping[str, str]:
        """What is open: name of a state -> generation of this shard, the published one last."""
        return self._held.states

    async def payload(self, generation: str | None, document_id: str) -> Mapping[str, Any] | None:
        """The payload of a document, or None."""
        return await self._in_thread(
            lambda: self._held.opened(generation).index.payload([document_id])[0]
        )

    async def like(self, generation: str | None, document_id: str) -> EncodedQuery | None:
        """A document's own vectors as a query, or None."""
        return await self._in_thread(
            lambda: stored_query(self._held.opened(generation), document_id)
        )

    async def fused(self, generation: str | None, ids: Sequence[str]) -> Float32:
        """(ids, F) fused vectors of documents of this shard."""
        return await self._in_thread(lambda: self._held.opened(generation).index.fused_vectors(ids))

    async def sources(self, generation: str | None, ids: Sequence[str]) -> list[str]:
        """Sources of documents of this shard."""
        return await self._in_thread(
            lambda: self._held.opened(generation).generation.sources_of(ids)
        )

    async def explain(
        self, generation: str | None, query: EncodedQuery, ids: Sequence[str], budget: str
    ) -> dict[str, Float32]:
        """Similarities of a query with documents of this shard, by id."""
        return await self._in_thread(
            lambda: explain_hits(self._held.opened(generation), query, ids, budget)
        )

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Work asked for and possible, for Serve's autoscaler."""
        return self._meter.stats()

    async def _in_thread(self, run: Callable[..., Answer], *values: Any) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._pool, run, *values)

    def _look(self) -> None:
        """Take what is published by now, and have it told at once; then a second's rest."""
        if self._held.look():
            self._news.set()
        self._ended.wait(LOOK_S)

    def _report(self) -> None:
        """Tell what is open; then wait for news, at most a second."""
        self._news.clear()
        if self._recorder is not None:
            self._recorder.index(self._number, self._held.newest.index.info())
        if self._tell is not None:
            self._tell(ShardReport(self._number, self._replica, self._held.states))
        self._news.wait(LOOK_S)

    def _again(self, chore: Callable[[], None]) -> None:
        """Do a chore until the process ends."""
        while not self._ended.is_set():
            try:
                chore()
            except Exception:
                # nobody waits for this thread: a replica that stops looking would not be noticed
                name = threading.current_thread().name
                logger.exception("shard %d: %s failed, tried again", self._number, name)
                self._ended.wait(LOOK_S)

    def close(self) -> None:
        """Stop looking at the disk."""
        self._ended.set()
        self._news.set()


def _waited(arrived: float, left_s: float | None) -> float:
    """Seconds since the arrival; DeadlineError where that was too long."""
    waited = time.perf_counter() - arrived
    if left_s is not None and waited >= left_s:
        raise DeadlineError(f"the deadline passed after {1e3 * waited:.0f} ms in the queue")
    return waited


def _teller(coordinator: Any) -> Tell:
    """How a replica reports; a coordinator that does not answer is tried again a second later."""
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    method = coordinator.report

    def tell(report: ShardReport) -> None:
        try:
            method.remote(report).result(timeout_s=LOOK_S)
        except (TimeoutError, RayError, RayServeException) as silent:
            logger.warning("the coordinator did not take a report: %r", silent)

    return tell
