"""Live searches, run again exhaustively now and then, off the request path.

In the shard, or in the router where the index is split. Wraps the index's own check: draws, keeps
to a small part of one core, and tells what it found. Knows no Ray and no requests.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rematch_ray.index.drift import DriftCheck, Searched
from rematch_ray.serve.backend import (
    DeadlineError,
    EncodedQuery,
    NotReadyError,
    OverloadedError,
)
from rematch_ray.serve.wire import Asked, GenerationGoneError

if TYPE_CHECKING:
    from rematch_ray.index.hits import SearchResult
    from rematch_ray.scoring.budget import Ladder
    from rematch_ray.serve.follower import Admitted
    from rematch_ray.serve.split import SplitIndex

# after a check, rest so many times as long as it took: 2 % of a core at most
_REST = 50
logger = logging.getLogger(__name__)


class DriftWatch:
    """Checks a share of the searches of one replica.

    Args:
        share: of the searches that promised a recall, 0..1.
        tell: called with the rung and the mean recall of late, after each check.
        seed: of the draws.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        share: float,
        tell: Callable[[str, float], None],
        *,
        seed: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._share = share
        self._tell = tell
        self._random = random.Random(seed)
        self._clock = clock
        self._checks: dict[str, DriftCheck] = {}
        self._alarmed: set[str] = set()
        self._rest_until = 0.0
        self._is_busy = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="drift")

    def offer(self, index: Searched, query: EncodedQuery, result: SearchResult) -> bool:
        """Perhaps check a search that was just answered; returns at once, whether it is checked.

        Args:
            index: that answered.
            query: as it was searched.
            result: what was found, before anything was cut off.
        """
        if result.expected_recall is None or self._is_busy:
            return False
        if self._random.random() >= self._share or self._clock() < self._rest_until:
            return False
        self._is_busy = True
        self._thread.submit(self._check, index, query, result)
        return True

    def _check(self, index: Searched, query: EncodedQuery, result: SearchResult) -> None:
        started = self._clock()
        try:
            check = self._checks.setdefault(result.budget, DriftCheck(index, 1.0))
            check.index = index
            if check.observe(query, result) is None:
                return
            estimate = check.estimate()
            assert estimate.recall is not None
            self._tell(result.budget, estimate.recall)
            if estimate.alarm and result.budget not in self._alarmed:
                logger.warning(
                    "live searches at %s find %.3f of the best documents, %.3f was promised: "
                    "measure again with 'rematch-ray doctor'",
                    result.budget,
                    estimate.recall,
                    estimate.promised,
                )
                self._alarmed.add(result.budget)
        except (GenerationGoneError, NotReadyError, OverloadedError, DeadlineError) as passing:
            logger.debug("a search was not checked: %s", passing)
        except Exception:
            # nobody waits for this thread's result: what goes wrong would be lost
            logger.exception("the drift check failed")
        finally:
            now = self._clock()
            self._rest_until = now + _REST * (now - started)
            self._is_busy = False


@dataclass(frozen=True)
class AdmittedSearch:
    """One state of a split index, asked from a thread beside the event loop: see `index.drift`.

    Attributes:
        split: the index.
        admitted: its state.
        loop: that the shards are asked from.
    """

    split: SplitIndex
    admitted: Admitted
    loop: asyncio.AbstractEventLoop

    @property
    def generation(self) -> str:
        """Name of the state."""
        return self.admitted.state.name

    @property
    def ladder(self) -> Ladder:
        """Budgets."""
        return self.admitted.planner.facts.rungs

    def search(
        self, query: EncodedQuery, *, budget: str, candidates: Literal["all"], top_k: int
    ) -> list[SearchResult]:
        """One query; errors as of `Shard.search`."""
        asked = Asked(None, query, {"budget": budget, "candidates": candidates}, limit=top_k)
        search = self.split.search(self.admitted, asked)
        return [asyncio.run_coroutine_threadsafe(search, self.loop).result().result]
