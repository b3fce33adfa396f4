"""The deployment that holds an index and searches it.

Searches run in threads, so that a long one does not keep short ones or health checks waiting. An
adapter: opens the index, calls it, knows no HTTP and no model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from rematch_ray.serve.backend import EncodedQuery, SearchPlan

if TYPE_CHECKING:
    from rematch_ray.index.search import SearchIndex, SearchResult


class Shard:
    """Replica that holds one index.

    Args:
        index: index directory.
        num_threads: searches that run at a time.
    """

    def __init__(self, index: str, num_threads: int) -> None:
        from rematch_ray.index.search import SearchIndex

        self._index = SearchIndex.open(index)
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="search")

    async def search(self, query: EncodedQuery, plan: SearchPlan) -> SearchResult:
        """The hits of one query.

        Raises:
            UserError: the plan or the vectors do not fit the index.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, search_one, self._index, query, plan)

    async def payload(self, document_id: str) -> Mapping[str, Any] | None:
        """The payload of a document, or None."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, payload_of, self._index, document_id)

    def info(self) -> Mapping[str, Any]:
        """What the index holds."""
        return self._index.info()


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
