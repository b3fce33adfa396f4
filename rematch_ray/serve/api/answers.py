"""What a search answers: hits, what was used to find them, what it cost and what was held back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field

from rematch_ray.index.hits import Hit
from rematch_ray.serve.api.base import ApiModel, ErrorBody
from rematch_ray.serve.backend import Answer, EncodedQuery, Float32

_DECIMALS = 6


class HitBody(ApiModel):
    """One document of the answer."""

    id: str
    score: float = Field(
        description="mean over the query vectors, -1..1, comparable within one budget; of a hybrid "
        "search the fused score, after the matching head the sum with its weighted log-odds"
    )
    payload: dict[str, Any] | None = Field(None, description="null when not asked for")
    parts: dict[str, float] | None = Field(
        None, description="of a hybrid search: the vector and the lexical score"
    )
    explain: list[list[float]] | None = Field(
        None, description="similarity of each query vector to each document vector, (r_q, r_d)"
    )


class StageBody(ApiModel):
    """One stage of the search: how many documents came in and went out, and how long it took."""

    model_config = ConfigDict(extra="allow")
    name: str


class DegradedBody(ApiModel):
    """Whether less was used than would have been without a deadline or load."""

    is_degraded: bool
    reasons: list[str] = Field(description="deadline, load or shard_missing")


class UsageBody(ApiModel):
    """What the answer cost."""

    dot_products: int
    tokens: int = Field(description="read by the encoder; 0 when vectors were given")


class TimingBody(ApiModel):
    """Where the time went, in milliseconds."""

    queue_ms: float = Field(description="waited before the search began")
    encode_ms: float = Field(description="the query into vectors, waiting for it included")
    search_ms: float
    rerank_ms: float
    total_ms: float = Field(description="from the arrival of the request")


class SearchResponse(ApiModel):
    """Hits, and what was used to find them."""

    results: list[HitBody]
    budget: str = Field(description="the rung that scored the hits")
    reduce: Literal["mean"] = "mean"
    candidates: int
    instruction: str | None = Field(description="null when nothing was encoded")
    stages: list[StageBody]
    scored: int = Field(description="documents scored at the final budget")
    live: int = Field(description="documents that could have been")
    scores: Literal["float", "int8"]
    exact: bool
    expected_recall: float | None = Field(description="least recall that calibration promises")
    plan: dict[str, Any] = Field(description="the stages, and why these: chosen_by")
    degraded: DegradedBody
    rerank: dict[str, Any] | None = Field(
        description="what the matching head did, if it ran; not_found: ids without a raw document, "
        "which kept place and score"
    )
    usage: UsageBody
    generation: str
    timing: TimingBody
    request_id: str | None


class SearchBatchResponse(ApiModel):
    """One answer or error per search, in the order asked."""

    answers: list[SearchResponse | ErrorBody]
    request_id: str | None


def search_response(
    answer: Answer,
    query: EncodedQuery,
    *,
    instruction: str | None,
    with_payload: bool,
    encode_ms: float,
    total_ms: float,
    request_id: str | None,
) -> SearchResponse:
    """The body of an answer.

    Args:
        answer: what the backend found.
        query: what it searched with.
        instruction: that was used; None when nothing was encoded.
        with_payload: whether hits show theirs.
        encode_ms: spent until there were vectors.
        total_ms: spent in all.
        request_id: of the request.
    """
    found, rerank = answer.result, answer.rerank
    return SearchResponse(
        results=[_hit(hit, answer.explained, with_payload) for hit in found.hits],
        budget=found.budget,
        reduce="mean",
        candidates=found.candidates,
        instruction=instruction,
        stages=[StageBody(**stage) for stage in found.stages],
        scored=found.scored,
        live=found.live,
        scores="int8" if found.scores == "int8" else "float",
        exact=found.exact,
        expected_recall=found.expected_recall,
        plan=dict(found.plan),
        degraded=DegradedBody(is_degraded=bool(answer.degraded), reasons=list(answer.degraded)),
        rerank=None if rerank is None else dict(rerank),
        usage=UsageBody(dot_products=answer.dot_products, tokens=query.tokens),
        generation=found.generation,
        timing=TimingBody(
            queue_ms=round(answer.queue_ms, 3),
            encode_ms=round(encode_ms, 3),
            search_ms=round(answer.search_ms, 3),
            rerank_ms=round(float((rerank or {}).get("ms", 0.0)), 3),
            total_ms=round(total_ms, 3),
        ),
        request_id=request_id,
    )


def _hit(hit: Hit, explained: Mapping[str, Float32], with_payload: bool) -> HitBody:
    matrix = explained.get(hit.id)
    return HitBody(
        id=hit.id,
        score=hit.score,
        payload=dict(hit.payload) if with_payload else None,
        parts=None if hit.parts is None else dict(hit.parts),
        # float32 as float64 would print digits that mean nothing
        explain=None if matrix is None else matrix.astype(float).round(_DECIMALS).tolist(),
    )
