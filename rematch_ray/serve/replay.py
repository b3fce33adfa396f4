"""The shards of a split index as far as they ran ahead, and as what is asked where they did not.

`index/sharding/scatter.py` cuts over them as over shards that are at hand. Knows shards by a
protocol, and no Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from rematch_ray.index.exact import Float32, Rows
from rematch_ray.index.grouping import GroupBy
from rematch_ray.index.queries import Queries
from rematch_ray.index.sharding import phases
from rematch_ray.index.sharding.phases import Filter
from rematch_ray.index.sharding.scatter import ShardGroup
from rematch_ray.scoring.budget import Budget
from rematch_ray.serve.ahead import Ahead, first_of, scores_of
from rematch_ray.serve.follower import ShardClient

Answer = TypeVar("Answer")


class UnforeseenError(Exception):
    """A shard did not run ahead so far."""


class Foreseen:
    """A shard as far as it ran ahead."""

    def __init__(self, ahead: Ahead) -> None:
        self._ahead = ahead

    def passing(self, filter: Filter) -> phases.Found:
        """See `phases.Shard.passing`; UnforeseenError."""
        if self._ahead.passing is None:
            raise UnforeseenError
        return self._ahead.passing

    def coarse(
        self, query: Queries, choice: str, limit: int, filter: Filter, *, nprobe: int | None
    ) -> list[phases.Found]:
        """See `phases.Shard.coarse`; UnforeseenError."""
        return list(self._ahead.coarse)

    def score(self, query: Queries, rows: Rows, budget: Budget) -> Float32:
        """See `phases.Shard.score`; UnforeseenError."""
        found = scores_of(self._ahead.scored, budget, rows)
        if found is None:
            raise UnforeseenError
        return found

    def best(
        self,
        queries: Queries,
        budget: Budget,
        limit: int,
        *,
        rows: Rows | None,
        filter: Filter,
        group_by: GroupBy | None,
    ) -> list[phases.Found]:
        """See `phases.Shard.best`; UnforeseenError."""
        best, pool = self._ahead.best, self._ahead.pool
        if rows is None or pool is None:
            if rows is pool:
                return [first_of(best, np.arange(min(limit, len(best.rows))))]
            raise UnforeseenError
        if not np.isin(rows, pool).all():
            raise UnforeseenError
        # the best of a larger pool, as far as they lie in the smaller one, are the best of that
        inside = np.flatnonzero(np.isin(best.rows, rows))
        is_complete = len(best.rows) == len(pool)
        if group_by is not None and len(inside) < len(best.rows):
            raise UnforeseenError  # another document may stand for its group
        if group_by is None and len(inside) < limit and not is_complete:
            raise UnforeseenError
        return [first_of(best, inside[:limit])]

    def documents(self, rows: Rows) -> list[tuple[str, dict[str, Any]]]:
        """See `phases.Shard.documents`; UnforeseenError."""
        return [self._ahead.documents[place] for place in self._places(rows)]

    def sources(self, rows: Rows) -> list[str]:
        """See `phases.Shard.sources`; UnforeseenError."""
        return [self._ahead.sources[place] for place in self._places(rows)]

    def _places(self, rows: Rows) -> list[int]:
        """Where rows stand among the best; UnforeseenError."""
        places = {int(row): place for place, row in enumerate(self._ahead.best.rows)}
        if not all(int(row) in places for row in rows):
            raise UnforeseenError
        return [places[int(row)] for row in rows]


class RemotePhases:
    """A shard that is asked for a single phase, from a thread."""

    def __init__(
        self, shard: ShardClient, generation: str, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._shard = shard
        self._generation = generation
        self._loop = loop

    def __getattr__(self, phase: str) -> Callable[..., Any]:
        def ask(*values: Any, **named: Any) -> Any:
            answer = self._shard.ask("phase", self._generation, phase, values, named)
            return asyncio.run_coroutine_threadsafe(answer, self._loop).result()

        return ask


class Replay(ShardGroup):
    """Shards that were asked ahead; those that did not foresee a phase are asked for it."""

    def __init__(
        self, foreseen: Sequence[Any], remotes: Sequence[Any], threads: ThreadPoolExecutor
    ) -> None:
        super().__init__(foreseen)
        self._remotes = list(remotes)
        self._asking = threads

    def each(self, ask: Callable[[int, Any], Answer]) -> list[Answer]:
        """See `ShardGroup.each`; what is asked of a shard may be asked twice."""
        answers: dict[int, Any] = {}
        missing = []
        for number, shard in enumerate(self.shards):
            try:
                answers[number] = ask(number, shard)
            except UnforeseenError:
                missing.append(number)
        some = [self._remotes[number] for number in missing]
        answers.update(zip(missing, self._asking.map(ask, missing, some), strict=True))
        return [answers[number] for number in range(len(self))]
