"""What a search asks of one shard: the phases between which candidates are cut over all shards.

    passing     every document that passes a filter
    coarse      the best documents of each coarse list, with scores and keys
    score       8-bit scores of chosen documents at a rung, for a cut on the way
    best        the best of chosen documents, or of all, by exact scores at the last rung
    documents   ids and payloads of hits
    sources     their sources, where hits are grouped by them

Each takes and gives arrays and plain values and keeps nothing between calls, so a shard may as well
live in another process. Knows nothing of other shards, plans or cuts. Middle floor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rematch_ray.index.certified import best_documents, score_coded
from rematch_ray.index.exact import Float32, Rows
from rematch_ray.index.filters import check_filter
from rematch_ray.index.generation import Generation
from rematch_ray.index.grouping import GroupBy
from rematch_ray.index.maxima import coded_scores
from rematch_ray.index.queries import Queries
from rematch_ray.index.stages import coarse_lists
from rematch_ray.scoring.budget import Budget

Filter = Mapping[str, Any] | None
_KEPT_FILTERS = 4


@dataclass(frozen=True)
class Found:
    """Some documents of a shard, in any order.

    Args:
        rows: (n,) rows of the shard.
        scores: (n,) float32.
        keys: (n,) tie-breakers.
        read: documents whose float16 originals were read to find these.
    """

    rows: Rows
    scores: Float32
    keys: NDArray[np.uint64]
    read: int = 0


class Shard(Protocol):
    """One shard of an index, here or elsewhere, at one generation."""

    def passing(self, filter: Filter) -> Found:
        """All documents that pass a filter, their scores 0."""

    def coarse(
        self, query: Queries, choice: str, limit: int, filter: Filter, *, nprobe: int | None
    ) -> list[Found]:
        """The best documents of each list of a coarse choice.

        Args:
            query: one query.
            choice: of `COARSE_CHOICES`.
            limit: of each list the so many best are among what comes back, with all that equal the
                last.
            filter: as in `SearchIndex.search`; a field that this shard lacks passes nothing.
            nprobe: inverted lists to look through; None the stored number.
        """

    def score(self, query: Queries, rows: Rows, budget: Budget) -> Float32:
        """8-bit scores of one query for some documents at a rung, (len(rows),) float32."""

    def best(
        self,
        queries: Queries,
        budget: Budget,
        limit: int,
        *,
        rows: Rows | None,
        filter: Filter,
        group_by: GroupBy | None,
    ) -> list[Found]:
        """The best documents of each query by exact scores (8-bit ones without originals).

        Args:
            queries: B queries.
            budget: a rung of the ladder or the fused one.
            limit: most documents per query.
            rows: documents to choose from; None takes all that pass the filter.
            filter: as of `coarse`.
            group_by: payload field of which each value gives one document, or None.
        """

    def documents(self, rows: Rows) -> list[tuple[str, dict[str, Any]]]:
        """Id and payload of each row, in the order asked."""

    def sources(self, rows: Rows) -> list[str]:
        """Source of each row, in the order asked."""


class LocalShard:
    """A shard whose generation is open in this process; safe to ask from several threads.

    Args:
        generation: what to search.
    """

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._passing = lru_cache(maxsize=_KEPT_FILTERS)(self._read_passing)

    def allowed(self, filter: Filter) -> NDArray[np.bool_]:
        """(rows,) True where a document is live and passes; the last few filters are remembered."""
        if not filter:
            return self._generation.live
        # whether the field exists at all was checked against all shards
        return self._passing(json.dumps(check_filter(filter, dict.fromkeys(filter, ""))))

    def passing(self, filter: Filter) -> Found:
        """See `Shard.passing`."""
        rows = np.flatnonzero(self.allowed(filter))
        return Found(rows, np.zeros(len(rows), np.float32), self._generation.keys[rows])

    def coarse(
        self, query: Queries, choice: str, limit: int, filter: Filter, *, nprobe: int | None
    ) -> list[Found]:
        """See `Shard.coarse`."""
        allowed = self.allowed(filter)
        lists = coarse_lists(self._generation, query, choice, limit, allowed, nprobe=nprobe)
        return [Found(rows, scores, self._generation.keys[rows]) for rows, scores in lists]

    def score(self, query: Queries, rows: Rows, budget: Budget) -> Float32:
        """See `Shard.score`."""
        return coded_scores(self._generation, query, rows, budget)[0]

    def best(
        self,
        queries: Queries,
        budget: Budget,
        limit: int,
        *,
        rows: Rows | None,
        filter: Filter,
        group_by: GroupBy | None,
    ) -> list[Found]:
        """See `Shard.best`."""
        generation = self._generation
        allowed = self.allowed(filter) if rows is None else None
        if not (np.any(allowed) if rows is None else len(rows)):
            nothing = Found(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.uint64))
            return [nothing] * len(queries)
        found: list[Found] = []
        for coded in score_coded(
            generation, queries, budget, limit, rows=rows, allowed=allowed, group_by=group_by
        ):
            for one in coded:
                query = queries[len(found) : len(found) + 1]
                best = best_documents(generation, query, one, budget, limit, group_by)
                keys = generation.keys[best.rows]
                found.append(Found(best.rows, best.scores, keys, best.read))
        return found

    def documents(self, rows: Rows) -> list[tuple[str, dict[str, Any]]]:
        """See `Shard.documents`."""
        return self._generation.documents(rows)

    def sources(self, rows: Rows) -> list[str]:
        """See `Shard.sources`."""
        return self._generation.sources(rows)

    def _read_passing(self, conditions: str) -> NDArray[np.bool_]:
        return self._generation.passing(json.loads(conditions))
