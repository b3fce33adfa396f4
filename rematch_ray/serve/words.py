"""Hybrid search over shards: each adds its part of the words' list, one fusion ranks them all.

The two halves of one exchange: what a shard does for the words of a query, given what all shards
count of them, and how the router makes hits of the parts. Knows no Ray and no HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rematch_ray.index.cascade import Request, stage
from rematch_ray.index.exact import Float32, Rows, order_best
from rematch_ray.index.grouping import GroupBy
from rematch_ray.index.hits import Hit, SearchResult
from rematch_ray.index.lexical.bm25 import LexicalIndex, LexicalStatistics
from rematch_ray.index.lexical.fusion import list_depth
from rematch_ray.index.lexical.hybrid import Candidates, Hybrid, add_lexical, fuse_found
from rematch_ray.index.plan import Plan
from rematch_ray.index.queries import Queries
from rematch_ray.index.sharding.phases import Filter
from rematch_ray.serve.held import Opened

Document = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class WordsAsked:
    """The words of one query, to be looked for on one shard.

    Attributes:
        generation: of the shard.
        query: one query, coded: scores what only the words find.
        text: the words.
        statistics: what all shards together count of them.
        plan: of the vector search.
        filter: as asked; its fields exist in some shard.
        depth: length of the words' list.
        hits: ids and scores of the vector search's documents that this shard holds.
        with_sources: whether hits are grouped by source.
    """

    generation: str
    query: Queries
    text: str
    statistics: LexicalStatistics
    plan: Plan
    filter: Filter
    depth: int
    hits: tuple[tuple[str, float], ...]
    with_sources: bool = False


@dataclass(frozen=True)
class WordsFound:
    """The documents of both lists that a shard holds, those of the vector search first.

    Attributes:
        vector: (C,) scores at the final budget.
        lexical: (C,) BM25 scores.
        keys: (C,) tie-breakers.
        added: ids and payloads of those that only the words found.
        ms: of the words' list, and of scoring what only that holds.
        sources: of the C documents, where they were asked for.
    """

    vector: Float32
    lexical: Float32
    keys: NDArray[np.uint64]
    added: tuple[Document, ...]
    ms: tuple[float, float]
    sources: tuple[str, ...] = ()


def find_words(opened: Opened, asked: WordsAsked) -> WordsFound:
    """A shard's part of both lists.

    Args:
        opened: the shard.
        asked: the words, and what the vectors have found.

    Raises:
        UserError: the index has no lexical index.
    """
    generation, allowed = opened.generation, opened.shard.allowed(asked.filter)
    num_allowed = int(np.count_nonzero(allowed))
    request = Request(
        plan=asked.plan,
        coarse="",
        allowed=allowed,
        top_k=asked.depth,
        group_by=None,
        filter_stage=stage("filter", generation.manifest.live, num_allowed, 0.0),
    )
    found, (listed, scored) = add_lexical(
        generation,
        asked.query,
        asked.text,
        request,
        [Hit(name, score, {}) for name, score in asked.hits],
        LexicalIndex(generation),
        asked.statistics,
    )
    added = found.rows[len(asked.hits) :]
    return WordsFound(
        found.vector,
        found.lexical,
        generation.keys[found.rows],
        tuple(generation.documents(added)) if len(added) else (),
        (listed["ms"], scored["ms"]),
        tuple(generation.sources(found.rows)) if asked.with_sources else (),
    )


class Gathered:
    """The documents of both lists, of all shards; rows count through the shards.

    Args:
        parts: of the shards.
        known: per shard, id and payload of what the vector search found there.
    """

    def __init__(self, parts: Sequence[WordsFound], known: Sequence[Sequence[Document]]) -> None:
        self.keys = np.concatenate([part.keys for part in parts])
        self.vector = np.concatenate([part.vector for part in parts])
        self.lexical = np.concatenate([part.lexical for part in parts])
        self.by_vectors = np.concatenate(
            [np.arange(len(part.keys)) < len(some) for part, some in zip(parts, known, strict=True)]
        )
        self._documents = [
            document
            for part, some in zip(parts, known, strict=True)
            for document in (*some, *part.added)
        ]
        self._sources = [source for part in parts for source in part.sources]

    def documents(self, rows: Rows) -> list[Document]:
        """Id and payload of each row, in the order asked."""
        return [self._documents[row] for row in rows]

    def sources(self, rows: Rows) -> list[str]:
        """Source of each row, in the order asked, where they were asked for."""
        return [self._sources[row] for row in rows]


def fuse_shards(
    found: SearchResult,
    parts: Sequence[WordsFound],
    known: Sequence[Sequence[Document]],
    hybrid: Hybrid,
    *,
    top_k: int,
    group_by: GroupBy | None,
    num_allowed: int,
) -> SearchResult:
    """What a hybrid search of one index would have found.

    Every shard gives as many as the whole list is long; those that the list of all shards cuts off
    go first, so that the counts are those of one index as well.

    Args:
        found: what the vector search found over all shards.
        parts: of the shards, in order.
        known: per shard, id and payload of what the vector search found there, as it was asked.
        hybrid: how to fuse.
        top_k: most hits.
        group_by: payload field of which each value gives one hit, or None.
        num_allowed: documents that pass the filter.
    """
    held = Gathered(parts, known)
    matching = np.flatnonzero(held.lexical > 0)
    best = matching[order_best(held.lexical[matching], held.keys[matching], list_depth(top_k))]
    rows = np.union1d(np.flatnonzero(held.by_vectors), best)
    ms = [max(part.ms[step] for part in parts) for step in (0, 1)]
    stages = [
        stage("lexical", num_allowed, len(best), ms[0]),
        stage(f"lexical:{found.budget}", len(best), len(rows) - len(found.hits), ms[1]),
    ]
    return fuse_found(
        replace(found, stages=[*found.stages, *stages]),
        held,
        Candidates(rows, held.vector[rows], held.lexical[rows]),
        hybrid,
        top_k=top_k,
        group_by=group_by,
        num_allowed=num_allowed,
    )
