"""Group commit: writes wait a moment for each other, and one thread makes one change of them.

While a change is on its way to the disk the next writes gather, so the more arrive, the more share
a change. Knows when to write, not what: the change itself is a function. No Ray.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rematch_ray.errors import UserError
from rematch_ray.index.store import IndexBusyError
from rematch_ray.serve.backend import OverloadedError, WriteResult
from rematch_ray.serve.commits import Outcome, Write
from rematch_ray.serve.settings import WriterSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Waiting:
    write: Write
    arrived: float
    done: asyncio.Future[WriteResult]

    def settle(self, outcome: WriteResult | BaseException) -> None:
        if self.done.done():  # the caller has gone
            return
        if isinstance(outcome, BaseException):
            self.done.set_exception(outcome)
        else:
            self.done.set_result(outcome)


class CommitQueue:
    """Writes in the order of their arrival, several to a change.

    Args:
        commit: makes one change of several writes; may wait for the lock as long as it is told.
        settings: how long and how many.
        tidy: called between changes, told whether writes wait; None does nothing.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[Write], float], Sequence[Outcome]],
        settings: WriterSettings,
        *,
        tidy: Callable[[bool], None] | None = None,
    ) -> None:
        self._commit = commit
        self._settings = settings
        self._tidy = tidy
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")

    @property
    def rows(self) -> int:
        """Documents and deletions that wait for a change."""
        return sum(waiting.write.rows for waiting in self._waiting)

    async def write(self, write: Write) -> WriteResult:
        """What the write did, once it is on disk.

        Raises:
            UserError: it cannot be written.
            OverloadedError: too much waits already, or another process holds the index for too
                long; nothing was written.
        """
        if self._waiting and self.rows + write.rows > self._settings.max_waiting_rows:
            raise OverloadedError(
                f"{self.rows} documents wait to be written, at most "
                f"{self._settings.max_waiting_rows} may: send fewer at a time"
            )
        waiting = _Waiting(write, time.monotonic(), asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._arrived.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await waiting.done

    async def _run(self) -> None:
        while True:
            if not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            await self._gather()
            if batch := self._take():
                await self._change(batch)
                await self._tidy_up()

    async def _gather(self) -> None:
        """Waits for more to come: not longer than the first may wait, nor for more than fit."""
        while self._waiting and self.rows < self._settings.commit_rows:
            until = self._waiting[0].arrived + self._settings.commit_wait_s
            if (left := until - time.monotonic()) <= 0:
                return
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                return

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        rows = 0
        while self._waiting:
            first = self._waiting[0]
            is_full = batch and rows + first.write.rows > self._settings.commit_rows
            # what a filter finds depends on all that came before it
            is_alone = batch and any(w.write.matching is not None for w in (first, batch[0]))
            if is_full or is_alone:
                break
            self._waiting.popleft()
            if not first.done.done():
                batch.append(first)
                rows += first.write.rows
        return batch

    async def _change(self, batch: list[_Waiting]) -> None:
        writes = [waiting.write for waiting in batch]
        left = batch[0].arrived + self._settings.lock_patience_s - time.monotonic()
        change = asyncio.get_running_loop().run_in_executor(
            self._thread, self._commit, writes, max(0.0, left)
        )
        [made] = await asyncio.gather(change, return_exceptions=True)
        if isinstance(made, IndexBusyError):
            logger.warning("%s", made)
            self._put_back(batch)
            return
        # a failure is told to each caller; the writes after these may still succeed
        outcomes = [made] * len(batch) if isinstance(made, BaseException) else made
        for waiting, outcome in zip(batch, outcomes, strict=True):
            waiting.settle(outcome)

    def _put_back(self, batch: list[_Waiting]) -> None:
        """The first has waited long enough, and those whose time is up too; the rest goes on."""
        latest = time.monotonic() - self._settings.lock_patience_s
        kept = []
        for waiting in batch:
            if waiting is batch[0] or waiting.arrived <= latest:
                waiting.settle(
                    OverloadedError(
                        "the index is being written by another process (a build, 'rematch-ray "
                        "index add'): nothing was written, try again",
                        retry_after_s=self._settings.lock_patience_s,
                    )
                )
            else:
                kept.append(waiting)
        self._waiting.extendleft(reversed(kept))

    async def _tidy_up(self) -> None:
        if self._tidy is None:
            return
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._thread, self._tidy, bool(self._waiting))
        except UserError as error:
            # documents are safe without it, and the next change tries again
            logger.warning("segments were not merged: %s", error)
        except Exception:
            # raised here it would end the queue, and with it all writing
            logger.exception("segments were not merged")
