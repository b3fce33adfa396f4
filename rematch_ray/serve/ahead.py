"""One call to a shard of a split index instead of one per phase: it runs ahead of the cuts.

Candidates are cut over all shards (`index/sharding/scatter.py`), which takes an answer of every
shard at each cut. Documents are spread by a hash, so a shard can tell how many of its own will
survive a cut, give or take a few, and they are its best: it takes somewhat more of them through all
stages at once and hands over what each stage gave. The router replays the cuts from that; only what
a shard guessed too small is asked for again, so hits are the same, bit for bit. Knows no Ray.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rematch_ray.index.exact import Float32, Rows, order_best
from rematch_ray.index.grouping import GroupBy, needs_source
from rematch_ray.index.lexical.bm25 import LexicalIndex, LexicalStatistics
from rematch_ray.index.maxima import CarriedMaxima
from rematch_ray.index.plan import Plan
from rematch_ray.index.queries import Queries
from rematch_ray.index.sharding.phases import Filter, Found, LocalShard
from rematch_ray.scoring.budget import Budget
from rematch_ray.serve.held import Opened
from rematch_ray.serve.pair import refuse_other_model

Scored = tuple[str, Rows, Float32]
_SPARE = 8


@dataclass(frozen=True)
class AheadAsked:
    """One query's plan, to be run on one shard of several.

    Attributes:
        generation: of the shard.
        query: one query, coded.
        plan: over all shards.
        coarse: coarse choice.
        filter: as asked; its fields exist in some shard.
        group_by: as asked.
        top_k: hits over all shards.
        num_shards: N.
        work: dot products that this shard's part would have cost unloaded.
        as_asked: whether it runs as it would have unloaded.
        left_s: seconds until the deadline.
        text: words of a hybrid search, or None.
        model: digest of the model that encoded the query here, or "".
    """

    generation: str
    query: Queries
    plan: Plan
    coarse: str
    filter: Filter
    group_by: GroupBy | None
    top_k: int
    num_shards: int
    work: int = 0
    as_asked: bool = True
    left_s: float | None = None
    text: str | None = None
    model: str = ""


@dataclass(frozen=True)
class Ahead:
    """What a shard found on its way.

    Attributes:
        passing: all documents that pass the filter, where the plan begins with them.
        coarse: its best of each coarse list, where the plan begins with those.
        scored: rung, rows and 8-bit scores of each stage but the last.
        best: the best at the last rung, of `pool` (None: of all that pass).
        pool: rows that `best` was chosen from.
        documents: ids and payloads of `best`.
        sources: of `best`, where hits are grouped by them; else none.
        queue_ms: from the arrival of the request to its start.
        statistics: what this shard counts of the words, where there are some.
    """

    passing: Found | None
    coarse: tuple[Found, ...]
    scored: tuple[Scored, ...]
    best: Found
    pool: Rows | None
    documents: tuple[tuple[str, dict[str, Any]], ...]
    sources: tuple[str, ...] = ()
    queue_ms: float = 0.0
    statistics: LexicalStatistics | None = None


def share(kept: int, num_shards: int) -> int:
    """How many of its own documents a shard takes along where so many survive over all shards.

    The number of survivors on a shard is binomial: four standard deviations above the mean.

    >>> share(1000, 1), share(1000, 2), share(1000, 10)
    (1000, 568, 142)
    """
    if num_shards == 1:
        return kept
    part = 1 / num_shards
    deviation = math.sqrt(kept * part * (1 - part))
    return min(kept, math.ceil(kept * part + 4 * deviation) + 4)


def run_ahead(opened: Opened, asked: AheadAsked) -> Ahead:
    """Take a shard's own candidates through a plan.

    Args:
        opened: the shard.
        asked: the plan.

    Raises:
        NotReadyError: the query was encoded by another model than the documents.
        UserError: words are asked for, and there is no lexical index.
    """
    refuse_other_model(asked.model, opened.index.identity)
    shard, plan = opened.shard, asked.plan
    # first: without a lexical index nothing else needs to be done
    counted = None if asked.text is None else LexicalIndex(opened.generation).statistics(asked.text)
    passing: Found | None = None
    coarse: tuple[Found, ...] = ()
    scored: tuple[Scored, ...] = ()
    pool: Rows | None = None
    if not plan.is_exhaustive:
        if plan.coarse_candidates is None:
            passing = shard.passing(asked.filter)
            pool = passing.rows
        else:
            coarse = _coarse(shard, asked, plan.coarse_candidates)
            pool = _likely(coarse, share(plan.coarse_candidates, asked.num_shards))
        pool, scored = _narrow(opened, asked, pool)
    [best] = shard.best(
        asked.query,
        plan.budget,
        asked.top_k if asked.group_by else _ready_hits(asked),
        rows=pool,
        filter=asked.filter,
        group_by=asked.group_by,
    )
    documents = tuple(shard.documents(best.rows)) if len(best.rows) else ()
    sources = tuple(shard.sources(best.rows)) if needs_source(asked.group_by) else ()
    return Ahead(passing, coarse, scored, best, pool, documents, sources, statistics=counted)


def _ready_hits(asked: AheadAsked) -> int:
    """Hits of the shard that the router may take: some fall to the cuts over all shards.

    The shards together hold more than the last cut keeps, so that part of each one's best falls.
    """
    kept, ready = asked.plan.kept, asked.top_k + _SPARE
    if not kept:
        return ready
    return math.ceil(ready * asked.num_shards * share(kept, asked.num_shards) / kept)


def _coarse(shard: LocalShard, asked: AheadAsked, limit: int) -> tuple[Found, ...]:
    """The best of each list; no more than any cut over all shards can take."""
    lists = shard.coarse(asked.query, asked.coarse, limit, asked.filter, nprobe=None)
    return tuple(first_of(found, order_best(found.scores, found.keys, limit)) for found in lists)


def first_of(found: Found, places: NDArray[np.intp]) -> Found:
    """Some of the documents, by position."""
    return replace(
        found, rows=found.rows[places], scores=found.scores[places], keys=found.keys[places]
    )


def _likely(lists: Sequence[Found], count: int) -> Rows:
    """The rows that a merge by rank may take, ascending: passes over rows in order are quicker."""
    return np.unique(np.concatenate([found.rows[:count] for found in lists]))


def _narrow(opened: Opened, asked: AheadAsked, rows: Rows) -> tuple[Rows, tuple[Scored, ...]]:
    """The shard's part of every cut on the way, and the scores that led to it."""
    generation = opened.generation
    carried = CarriedMaxima(generation, asked.query, rows, max(1, asked.plan.budget.r_q))
    scored: list[Scored] = []
    for rung, keep in asked.plan.narrowing:
        scores = carried.advance(rung)
        scored.append((str(rung), carried.rows, scores))
        limit = share(keep, asked.num_shards)
        carried.keep(np.sort(order_best(scores, generation.keys[carried.rows], limit)))
    return carried.rows, tuple(scored)


def scores_of(scored: Sequence[Scored], rung: Budget, rows: Rows) -> Float32 | None:
    """8-bit scores of some rows at a rung, where all of them were scored on the way.

    >>> ahead = [("1x1", np.array([3, 5, 9]), np.float32([0.3, 0.5, 0.9]))]
    >>> scores_of(ahead, Budget(1, 1), np.array([9, 3])).tolist() == [
    ...     np.float32(0.9),
    ...     np.float32(0.3),
    ... ]
    True
    >>> scores_of(ahead, Budget(1, 1), np.array([4])) is None
    True
    """
    for name, known, scores in scored:
        if name == str(rung) and len(known):
            places = np.minimum(np.searchsorted(known, rows), len(known) - 1)
            if (known[places] == rows).all():
                return scores[places]
    return None
