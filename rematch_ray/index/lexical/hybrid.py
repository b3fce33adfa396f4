"""Hybrid search: the vector search's best and the lexical search's best, fused once at the end.

Runs the vector search, whatever its stages; adds the lexical list, scores what only that holds at
the same budget, so that every candidate has both scores, and ranks by the fused one.
Middle floor.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rematch_ray.errors import UserError
from rematch_ray.index.cascade import Request, ms_since, stage
from rematch_ray.index.certified import keeps_originals
from rematch_ray.index.exact import Float32, Rows
from rematch_ray.index.execution import search_vectors
from rematch_ray.index.generation import Generation
from rematch_ray.index.grouping import GroupBy
from rematch_ray.index.hits import (
    Documents,
    Hit,
    SearchResult,
    best_positions,
    hits_of,
    note_short,
)
from rematch_ray.index.lexical.bm25 import LexicalIndex, LexicalStatistics
from rematch_ray.index.lexical.fusion import FUSIONS, Fusion, fuse_candidates, list_depth
from rematch_ray.index.maxima import coded_scores
from rematch_ray.index.queries import Queries
from rematch_ray.index.stages import score_documents
from rematch_ray.scoring.budget import Budget

_EVEN = 0.5


@dataclass(frozen=True)
class Hybrid:
    """The lexical half of a search call, checked.

    Args:
        texts: one per query.
        fusion: how the two lists become one.
        lexical_weight: of the lexical list, 0..1.
    """

    texts: tuple[str, ...]
    fusion: Fusion
    lexical_weight: float

    @classmethod
    def check(
        cls,
        text: str | Sequence[str] | None,
        fusion: str | None,
        lexical_weight: float,
        num_queries: int,
    ) -> Hybrid | None:
        """What a caller asks; None without a text, which is a search by vectors alone.

        Raises:
            UserError: fusion without a text or of another name, a weight outside 0..1, or not one
                text per query.
        """
        if text is None:
            if fusion is not None or lexical_weight != _EVEN:
                raise UserError(
                    f"fusion {fusion!r} with lexical_weight {lexical_weight} needs the text of the "
                    "query: give text as well"
                )
            return None
        chosen = next((name for name in FUSIONS if name == (fusion or "rrf")), None)
        if chosen is None:
            raise UserError(f"fusion '{fusion}' does not exist; allowed: {', '.join(FUSIONS)}")
        if not 0.0 <= lexical_weight <= 1.0:
            raise UserError(f"lexical_weight {lexical_weight} is not possible: give 0 to 1")
        texts = (text,) if isinstance(text, str) else tuple(text)
        if len(texts) != num_queries:
            raise UserError(f"{len(texts)} texts for {num_queries} queries: give one per query")
        return cls(texts, chosen, float(lexical_weight))


def search_hybrid(
    generation: Generation,
    queries: Queries,
    request: Request,
    hybrid: Hybrid,
) -> list[SearchResult]:
    """Runs both searches of each query and fuses them.

    Args:
        generation: what is searched.
        queries: B queries.
        request: what they share; its plan must be made for a hybrid search (`Wish`).
        hybrid: their texts, and how to fuse.

    Returns:
        One result per query. A hit's score is the fused one, and `parts` holds the two it is made
        of. `scored` counts the lexical candidates that were scored beside the vector search's.

    Raises:
        UserError: the index has no lexical index.
    """
    lexical = LexicalIndex(generation)
    deep = replace(request, top_k=list_depth(request.top_k), group_by=None)
    num_allowed = int(request.filter_stage["out"])
    results = []
    for row, found in enumerate(search_vectors(generation, queries, deep)):
        query, text = queries[row : row + 1], hybrid.texts[row]
        candidates, stages = add_lexical(generation, query, text, deep, found.hits, lexical)
        found = replace(found, stages=[*found.stages, *stages])
        results.append(
            fuse_found(
                found,
                generation,
                candidates,
                hybrid,
                top_k=request.top_k,
                group_by=request.group_by,
                num_allowed=num_allowed,
            )
        )
    return results


@dataclass(frozen=True)
class Candidates:
    """Documents with both scores: what segments or shards hand over before the one fusion.

    Args:
        rows: (C,) documents.
        vector: (C,) scores at the final budget.
        lexical: (C,) BM25 scores.
    """

    rows: Rows
    vector: Float32
    lexical: Float32


def add_lexical(
    generation: Generation,
    query: Queries,
    text: str,
    request: Request,
    found: Sequence[Hit],
    lexical: LexicalIndex,
    statistics: LexicalStatistics | None = None,
) -> tuple[Candidates, list[dict[str, Any]]]:
    """Adds the best documents of the lexical list to those of the vector search.

    Args:
        generation: what is searched.
        query: one query.
        text: its text.
        request: of the vector search; `top_k` is the length of the lists.
        found: what the vector search found in this generation.
        lexical: the lexical index of the generation.
        statistics: of all shards; None takes this generation's.

    Returns:
        The documents of both lists, each with both scores, those of `found` first and in their
        order; and the stages it took.
    """
    started = time.perf_counter()
    texts = lexical.scores(text, statistics=statistics)
    best, _ = lexical.best(texts, request.top_k, request.allowed)
    num_allowed = int(request.filter_stage["out"])
    stages = [stage("lexical", num_allowed, len(best), ms_since(started))]
    started = time.perf_counter()
    places = generation.rows_of([hit.id for hit in found])
    rows = np.array([places[hit.id] for hit in found], np.int64)
    vector = np.array([hit.score for hit in found], np.float32)
    only_lexical = np.setdiff1d(best, rows)
    if len(only_lexical):
        scores = _score(generation, query, only_lexical, request.plan.budget)
        # as hits are: float16 norms may exceed 1 by 5e-4
        vector = np.concatenate([vector, np.clip(scores, -1.0, 1.0)])
        rows = np.concatenate([rows, only_lexical])
    stages.append(
        stage(f"lexical:{request.plan.budget}", len(best), len(only_lexical), ms_since(started))
    )
    return Candidates(rows, vector, texts[rows]), stages


def _score(generation: Generation, query: Queries, rows: Rows, rung: Budget) -> Float32:
    """Scores of one query as the vector search gives them, (len(rows),)."""
    if keeps_originals(generation, rung):
        return score_documents(generation, query, rows, [rung])[str(rung)][0]
    return coded_scores(generation, query, rows, rung)[0]


def fuse_found(
    found: SearchResult,
    held: Documents,
    candidates: Candidates,
    hybrid: Hybrid,
    *,
    top_k: int,
    group_by: GroupBy | None,
    num_allowed: int,
) -> SearchResult:
    """The one fusion of a query: what both searches found, ranked by the fused scores.

    Args:
        found: what the vector search found; its hits are among the candidates.
        held: where the documents lie.
        candidates: the documents of both lists.
        hybrid: how to fuse.
        top_k: most hits.
        group_by: payload field of which each value gives one hit, or None.
        num_allowed: documents that pass the filter.
    """
    started = time.perf_counter()
    positions, fused = fuse_candidates(
        candidates.vector,
        candidates.lexical,
        held.keys[candidates.rows],
        depth=list_depth(top_k),
        fusion=hybrid.fusion,
        lexical_weight=hybrid.lexical_weight,
    )
    rows, scores = candidates.rows[positions], fused.astype(np.float32)
    best = best_positions(held, rows, scores, top_k, group_by)
    hits = [
        replace(
            hit,
            parts={
                "vector": float(candidates.vector[position]),
                "lexical": float(candidates.lexical[position]),
            },
        )
        for hit, position in zip(hits_of(held, rows[best], scores[best]), positions[best])
    ]
    last = stage(f"fusion:{hybrid.fusion}", len(candidates.rows), len(hits), ms_since(started))
    # all that the words add has been scored already where every allowed document was
    knows_all = found.scored == num_allowed
    added = 0 if knows_all else len(candidates.rows) - len(found.hits)
    is_cut = list_depth(top_k) < num_allowed
    if group_by is not None and is_cut and len(hits) < min(top_k, num_allowed):
        # not looked for: in longer lists documents have other ranks, and so another order
        found = note_short(found)
    return replace(
        found,
        hits=hits,
        stages=[*found.stages, last],
        candidates=found.candidates + added,
        scored=found.scored + added,
    )
