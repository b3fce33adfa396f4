"""The deployment that holds an index and searches it.

Searches run in threads, so that a long one does not keep short ones or health checks waiting. What
is published while it runs is found within a second; a search ends on the generation that it began
with. An adapter: opens the index, calls it, knows no HTTP and no model.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from rematch_ray.errors import UserError
from rematch_ray.serve.backend import EncodedQuery, SearchPlan

if TYPE_CHECKING:
    from rematch_ray.index.search import SearchIndex, SearchResult

LOOK_S = 1.0
logger = logging.getLogger(__name__)


class Shard:
    """Replica that holds one index.

    Args:
        index: index directory.
        num_threads: searches that run at a time.
    """

    def __init__(self, index: str, num_threads: int) -> None:
        from rematch_ray.index.search import SearchIndex

        self._index = SearchIndex.open(index)
        self._looked = time.monotonic()
        self._told = ""
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="search")

    async def search(self, query: EncodedQuery, plan: SearchPlan) -> SearchResult:
        """The hits of one query.

        Raises:
            UserError: the plan or the vectors do not fit the index.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._pool, lambda: search_one(self._newest(), query, plan)
        )

    async def payload(self, document_id: str) -> Mapping[str, Any] | None:
        """The payload of a document, or None."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._pool, lambda: payload_of(self._newest(), document_id)
        )

    def info(self) -> Mapping[str, Any]:
        """What the index holds."""
        return self._newest().info()

    def _newest(self) -> SearchIndex:
        """The published generation, looked for once a second.

        An index of another model, or a damaged one, is not taken: the encoder beside this shard
        cannot ask it.
        """
        if time.monotonic() - self._looked >= LOOK_S:
            self._looked = time.monotonic()
            try:
                newest = self._index.latest()
                newest.check_model(self._index.identity)
                self._index = newest
            except UserError as error:
                if str(error) != self._told:
                    logger.error("still serving %s: %s", self._index.generation, error)
                self._told = str(error)
        return self._index


def search_one(index: SearchIndex, query: EncodedQuery, plan: SearchPlan) -> SearchResult:
    """Search an index as a plan says."""
    [found] = index.search(
        query,
        budget=plan.budget,
        candidates=plan.candidates,
        top_k=plan.top_k,
        filter=plan.filter,
        group_by=plan.group_by,
    )
    return found


def payload_of(index: SearchIndex, document_id: str) -> Mapping[str, Any] | None:
    """The payload of one document, or None when the index does not hold it."""
    [payload] = index.payload([document_id])
    return payload
