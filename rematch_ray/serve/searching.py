"""What a shard does for a request, on an open generation: search, explain, read vectors.

Plain functions without threads or deployments. Knows no Ray, no HTTP and no other shard.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rematch_ray.errors import UserError
from rematch_ray.index.coarse.keys import CHOICE_KEYS
from rematch_ray.scoring.budget import Budget
from rematch_ray.serve.backend import EncodedQuery, Float32
from rematch_ray.serve.pair import refuse_other_model
from rematch_ray.serve.wire import Asked, Found

if TYPE_CHECKING:
    from rematch_ray.index.hits import Hit
    from rematch_ray.index.search import SearchResult
    from rematch_ray.serve.held import Opened


def search_opened(opened: Opened, asked: Asked, queue_ms: float) -> Found:
    """Run one search over a whole index.

    Args:
        opened: what is searched.
        asked: the request.
        queue_ms: that it has waited.

    Raises:
        UserError: the request does not fit the index.
        NotReadyError: the query was encoded by another model than the documents.
    """
    refuse_other_model(asked.query.model, opened.index.identity)
    started = time.perf_counter()
    wanted = asked.offset + asked.limit + (asked.exclude is not None)
    left_s = None if asked.left_s is None else asked.left_s - queue_ms / 1e3
    [result] = opened.index.search(
        asked.query,
        top_k=wanted,
        groups_within_s=left_s if asked.may_widen else 0.0,
        groups_among=asked.widen_to,
        **asked.how,
    )
    search_ms = (time.perf_counter() - started) * 1e3
    spent = spent_on(result, opened.coarse_dot_products)
    hits = cut_hits(
        result.hits,
        offset=asked.offset,
        limit=asked.limit,
        min_score=asked.min_score,
        exclude=asked.exclude,
    )
    fused = None
    if asked.with_fused:
        fused = opened.index.fused_vectors([hit.id for hit in hits])
    return Found(replace(result, hits=hits), spent, queue_ms, search_ms, fused)


def warm_up(opened: Opened) -> None:
    """Searches at every rung and by every coarse choice, for what their first use makes.

    Args:
        opened: an index, or one shard of several.
    """
    index, manifest = opened.index, opened.generation.manifest
    vectors = np.zeros((1, index.ladder.num_query_vectors, manifest.dim), np.float32)
    vectors[..., 0] = 1.0
    fused = None
    if manifest.fused_dim is not None:
        fused = np.eye(1, manifest.fused_dim, dtype=np.float32)
    query = EncodedQuery(vectors, fused)
    for rung in index.ladder.rungs:
        index.search(query, budget=rung)
    for coarse in index.coarse_choices:
        index.search(query, budget=index.ladder.rungs[0], coarse=coarse)


def cut_hits(
    hits: Sequence[Hit],
    *,
    offset: int,
    limit: int,
    min_score: float | None = None,
    exclude: str | None = None,
) -> list[Hit]:
    """The hits that are shown, of all that were found, best first."""
    kept = [
        hit for hit in hits if hit.id != exclude and (min_score is None or hit.score >= min_score)
    ]
    return kept[offset : offset + limit]


def spent_on(result: SearchResult, coarse_dot_products: Mapping[str, int]) -> int:
    """Dot products of a search, as `Plan.dot_products` counts them, from what its stages did.

    The few that exact scores of the last documents take are not counted, as the doctor does not.

    Args:
        result: with its stages.
        coarse_dot_products: of one query, by coarse list.
    """
    total, carried = 0, 0
    for stage in result.stages:
        name = stage["name"]
        if name.startswith("coarse:"):
            lists = CHOICE_KEYS[name.removeprefix("coarse:")]
            total += sum(coarse_dot_products.get(key, 0) for key in lists)
        elif name == "fused" or name[:1].isdigit():
            rung = Budget.parse(name).dot_products
            total += stage["in"] * max(0, rung - carried)
            carried = max(rung, carried)
        elif name == "exact":
            carried = 0  # another pass begins, where groups were missing
    return total


def explain_hits(
    opened: Opened, query: EncodedQuery, ids: Sequence[str], budget: str
) -> dict[str, Float32]:
    """Similarities (r_q, r_d) of a query with some documents, by id; NotReadyError as above."""
    refuse_other_model(query.model, opened.index.identity)
    return {name: opened.index.explain(query, name, budget=budget) for name in ids}


def stored_query(opened: Opened, document_id: str) -> EncodedQuery | None:
    """A document's own vectors as a query, or None where it is not here."""
    generation = opened.generation
    row = generation.rows_of([document_id]).get(document_id)
    if row is None:
        return None
    if not generation.has_originals:
        raise UserError(
            "this index keeps no float16 vectors (it was built without originals), so none can be "
            "searched with: ask with a query of your own"
        )
    rows = np.array([row])
    wanted = opened.index.ladder.num_query_vectors
    planes = [k for k, (start, _) in enumerate(generation.planes) if start < wanted]
    vectors = np.concatenate([generation.read_plane(k, rows)[0] for k in planes])[:wanted]
    fused = opened.index.fused_vectors([document_id]) if opened.index.has_fused else None
    if fused is not None:
        fused = _unit(fused)
    digest = str(opened.index.identity.get("digest") or "")
    return EncodedQuery(_unit(vectors.astype(np.float32))[None], fused, model=digest)


def _unit(vectors: Any) -> Float32:
    """Vectors as stored, rounded, made unit again."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: Float32 = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
    return scaled
