"""Hits: the best of some scored documents with their ids and payloads, one per group if asked.

Knows nothing of how the scores came about. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rematch_ray.index.exact import Float32, Rows, order_best
from rematch_ray.index.grouping import GroupBy, group_of, needs_source


@dataclass(frozen=True)
class Hit:
    """A document that a search returns.

    Args:
        id: the user's id.
        score: mean over the r_q query vectors, -1..1; comparable within one budget only.
        payload: as stored.
        parts: of a hybrid search, the `vector` and the `lexical` score that `score` is fused of.
    """

    id: str
    score: float
    payload: Mapping[str, Any]
    parts: Mapping[str, float] | None = None


@dataclass(frozen=True)
class SearchResult:
    """The hits of one query, and what was used to find them.

    Args:
        hits: best first; equal scores in the order of the ids' keys.
        budget: rung at which they were scored, `RxR` or `fused`.
        candidates: documents that reached scoring: what the coarse stage kept, or all allowed.
        stages: {name, in, out, ms} of each stage; ms is this query's share of its batch.
        scored: documents scored at `budget`.
        live: live documents of the index, before any filter.
        scores: `float`: the hits are those of exact scores among the scored documents; `int8`: of
            8-bit scores, where the index keeps no originals.
        exact: whether every live document that passes the filter was scored at `budget`, in the
            order of float scores.
        generation: the index's state that was searched.
        expected_recall: least recall to be expected against an exhaustive search at the full
            budget: 1 where all was scored at it and there alone, else the lower end of what was
            calibrated; None where nothing was.
        plan: the stages as `Plan.to_json` gives them, and `chosen_by`: why these; `groups_short`,
            True, where there may be groups that were asked for and not looked for.
    """

    hits: list[Hit]
    budget: str
    candidates: int
    stages: list[dict[str, Any]]
    scored: int
    live: int
    scores: str
    exact: bool
    generation: str
    expected_recall: float | None = None
    plan: Mapping[str, Any] = field(default_factory=dict)


def note_short(result: SearchResult) -> SearchResult:
    """A result that says that it may lack groups."""
    return replace(result, plan={**result.plan, "groups_short": True})


class Documents(Protocol):
    """Where documents lie: an open generation, or the candidates of several shards."""

    @property
    def keys(self) -> NDArray[np.uint64]:
        """Tie-breaker of each row."""

    def documents(self, rows: Rows) -> list[tuple[str, dict[str, Any]]]:
        """Id and payload of each row, in the order asked."""

    def sources(self, rows: Rows) -> list[str]:
        """Source of each row, in the order asked."""


def best_hits(
    held: Documents, rows: Rows, scores: Float32, top_k: int, group_by: GroupBy | None = None
) -> list[Hit]:
    """The best documents, best first.

    Args:
        held: where the documents lie.
        rows: (C,) scored documents.
        scores: (C,) their scores.
        top_k: most hits.
        group_by: payload field, or `source`, of which each value gives one hit, its best; a
            document without is a group of its own.
    """
    return [
        _hit(name, float(scores[position]), payload)
        for position, name, payload in _best(held, rows, scores, top_k, group_by)
    ]


def hits_of(held: Documents, rows: Rows, scores: Float32) -> list[Hit]:
    """Documents that were chosen as hits, in the order given."""
    documents = held.documents(rows)
    return [
        _hit(name, score, payload) for score, (name, payload) in zip(scores.tolist(), documents)
    ]


def _hit(name: str, score: float, payload: Mapping[str, Any]) -> Hit:
    # float16 norms may exceed 1 by 5e-4; the order was decided before this
    return Hit(id=name, score=min(1.0, max(-1.0, score)), payload=payload)


def best_positions(
    held: Documents, rows: Rows, scores: Float32, top_k: int, group_by: GroupBy | None = None
) -> NDArray[np.intp]:
    """Positions in `rows` of what `best_hits` gives; payloads are read for groups only."""
    if group_by is None:
        return order_best(scores, held.keys[rows], top_k)
    found = _best(held, rows, scores, top_k, group_by)
    return np.array([position for position, _, _ in found], np.intp)


def _best(
    held: Documents, rows: Rows, scores: Float32, top_k: int, group_by: GroupBy | None
) -> Iterator[tuple[int, str, dict[str, Any]]]:
    keys = held.keys[rows]
    if group_by is None:
        yield from _read(held, rows, order_best(scores, keys, top_k))
        return
    order = order_best(scores, keys, len(rows))
    seen: set[str] = set()
    for start in range(0, len(order), 4 * top_k):
        some = order[start : start + 4 * top_k]
        sources = held.sources(rows[some]) if needs_source(group_by) else [""] * len(some)
        for found, source in zip(_read(held, rows, some), sources, strict=True):
            group = group_of(found[1], found[2], group_by, source=source)
            if group not in seen:
                seen.add(group)
                yield found
            if len(seen) == top_k:
                return


def _read(
    held: Documents, rows: Rows, order: NDArray[np.intp]
) -> list[tuple[int, str, dict[str, Any]]]:
    documents = held.documents(rows[order])
    return [(int(place), name, payload) for place, (name, payload) in zip(order, documents)]
