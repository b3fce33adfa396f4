"""Hits: the best of some scored documents with their ids and payloads, one per group if asked.

Knows nothing of how the scores came about. Middle floor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rematch_ray.index.exact import Float32, Rows, order_best
from rematch_ray.index.generation import Generation


@dataclass(frozen=True)
class Hit:
    """A document that a search returns.

    Args:
        id: the user's id.
        score: mean over the r_q query vectors, -1..1; comparable within one budget only.
        payload: as stored.
    """

    id: str
    score: float
    payload: Mapping[str, Any]


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
        exact: whether every live document that passes the filter was scored at `budget`, in the
            order of float scores.
        generation: the index's state that was searched.
        expected_recall: least recall to be expected against an exhaustive search at the full
            budget: 1 where all was scored at it, else the lower end of what was calibrated; None
            where nothing was.
        plan: the stages as `Plan.to_json` gives them, and `chosen_by`: why these.
    """

    hits: list[Hit]
    budget: str
    candidates: int
    stages: list[dict[str, Any]]
    scored: int
    live: int
    exact: bool
    generation: str
    expected_recall: float | None = None
    plan: Mapping[str, Any] = field(default_factory=dict)


def best_hits(
    generation: Generation, rows: Rows, scores: Float32, top_k: int, group_by: str | None = None
) -> list[Hit]:
    """The best documents, best first.

    Args:
        generation: where the documents lie.
        rows: (C,) scored documents.
        scores: (C,) their scores.
        top_k: most hits.
        group_by: payload field of which each value gives one hit, its best; a document without
            the field is a group of its own.
    """
    keys = generation.keys[rows]
    if group_by is None:
        return _read_hits(generation, rows, scores, order_best(scores, keys, top_k))
    order = order_best(scores, keys, len(rows))
    hits: list[Hit] = []
    seen: set[str] = set()
    for start in range(0, len(order), 4 * top_k):
        for hit in _read_hits(generation, rows, scores, order[start : start + 4 * top_k]):
            group = _group_of(hit, group_by)
            if group not in seen:
                seen.add(group)
                hits.append(hit)
            if len(hits) == top_k:
                return hits
    return hits


def _read_hits(
    generation: Generation, rows: Rows, scores: Float32, order: NDArray[np.intp]
) -> list[Hit]:
    documents = generation.documents(rows[order])
    return [
        # float16 norms may exceed 1 by 5e-4; the order was decided before this
        Hit(id=name, score=float(np.clip(scores[position], -1.0, 1.0)), payload=payload)
        for position, (name, payload) in zip(order, documents)
    ]


def _group_of(hit: Hit, field: str) -> str:
    value: Any = hit.payload
    for name in field.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return f"id {hit.id}" if value is None else f"value {json.dumps(value, sort_keys=True)}"
