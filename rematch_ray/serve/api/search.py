"""What a search asks: one request or several at once, and the `SearchPlan` each one means.

Sizes are checked against `Limits`, budgets against what is served. Knows neither routes nor
backends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import Body
from pydantic import Discriminator, Field, Tag, ValidationError, WrapValidator, model_validator

from rematch_ray.data.item import Item
from rematch_ray.serve.api.base import Filter, RequestModel, Text, flag_or_fields, number_or_word
from rematch_ray.serve.api.bounds import Bounded
from rematch_ray.serve.api.content import DATA_URI, Content, check_instruction
from rematch_ray.serve.api.vectors import Numbers, Vectors
from rematch_ray.serve.backend import Rerank, SearchPlan
from rematch_ray.serve.failures import RequestError, from_validation, refuse
from rematch_ray.serve.settings import Limits

RAW_TOP_N = 10


class HybridFields(RequestModel):
    """Words beside vectors: BM25 over the payload, fused with the vectors' list."""

    text: Text | None = Field(None, description="the words; default: the query's text")
    fusion: Literal["rrf", "weighted"] | None = Field(
        None, description="by ranks (rrf, the default) or by scores"
    )
    lexical_weight: float = Field(0.5, ge=0, le=1, description="of the words' list")


class RerankFields(RequestModel):
    """The matching head as the last rung."""

    top_n: int | None = Field(None, ge=1, description="hits scored again; default 100, raw: 10")
    raw: bool = Field(
        False,
        description="over the query and the documents themselves: the image that the payload names "
        "in 'media' or 'uri', inside the media roots, else its 'text'; needs 'query'",
    )


_Flag = Annotated[bool, Tag("<flag>")]
HybridSwitch = Annotated[
    _Flag | Annotated[HybridFields, Tag("<fields>")], Discriminator(flag_or_fields)
]
RerankSwitch = Annotated[
    _Flag | Annotated[RerankFields, Tag("<fields>")], Discriminator(flag_or_fields)
]
Candidates = Annotated[
    Annotated[int, Tag("<number>")] | Annotated[Literal["auto", "all"], Tag("<word>")],
    Discriminator(number_or_word),
]


class SearchRequest(RequestModel):
    """What to search for, how carefully, and how much to return."""

    query: Content | None = Field(None, description="what to look for")
    vectors: Vectors | None = Field(
        None, description="query vectors (R, D) of unit norm, instead of a query"
    )
    fused: Numbers | None = Field(None, description="fused vector (F), beside vectors")
    like: Text | None = Field(
        None, description="id of a stored document: others like it, without itself"
    )
    instruction: Text | None = Field(None, description="default: the model's; '' for none")
    budget: Text | None = Field(
        None,
        description="auto (the default), fused, fast, balanced, full or a rung such as 8x16; "
        "/v1/info lists them",
        examples=["balanced"],
    )
    candidates: Candidates = Field(
        "auto", description="documents scored at the final budget; all = exact"
    )
    coarse: Text | None = Field(
        None, description="what the coarse stage goes by; /v1/info lists the choices"
    )
    target_recall: float | None = Field(
        None, gt=0, le=1, description="recall that the calibration must promise; chooses the plan"
    )
    deadline_ms: float | None = Field(
        None, gt=0, le=600_000, description="from the arrival of the request; auto then does less"
    )
    top_k: int = Field(10, ge=1, description="hits to return")
    offset: int = Field(0, ge=0, description="best hits to leave out: the pages before")
    min_score: float | None = Field(None, description="hits below are left out")
    filter: Filter | None = Field(
        None,
        description="payload field -> value or list of allowed values; all must hold",
        examples=[{"source": "emoji"}],
    )
    group_by: Text | None = Field(None, description="at most one hit per value of this field")
    hybrid: HybridSwitch = Field(False, description="search by words as well")
    rerank: RerankSwitch | None = Field(
        None, description="matching head; default: where calibration measured that it helps"
    )
    allow_partial: bool = Field(
        False, description="answer without shards that cannot be reached, instead of 503"
    )
    with_payload: bool = Field(True, description="whether hits come with their payload")
    with_explain: bool = Field(
        False, description="whether hits come with their similarities, (r_q, r_d)"
    )

    @model_validator(mode="after")
    def _asks_for_one_thing(self) -> SearchRequest:
        given = [name for name in ("query", "vectors", "like") if getattr(self, name) is not None]
        if len(given) != 1:
            named = " and ".join(f"'{name}'" for name in given) or "none of them"
            raise ValueError(f"give either 'query', 'vectors' or 'like', not {named}")
        if self.fused is not None and self.vectors is None:
            raise ValueError("'fused' accompanies 'vectors'")
        if self.query is None and self.instruction is not None:
            raise ValueError(f"'instruction' has no effect on '{given[0]}': it is part of encoding")
        return self

    @model_validator(mode="after")
    def _plans_once(self) -> SearchRequest:
        named = {"budget": self.budget not in (None, "auto"), "coarse": self.coarse is not None}
        named["candidates"] = self.candidates != "auto"
        for name in [name for name, is_named in named.items() if is_named]:
            if self.target_recall is not None:
                raise ValueError(f"'target_recall' chooses the plan: leave '{name}' out")
        return self


class Malformed:
    """One search of several that has not the shape of a search.

    Args:
        error: what is wrong with it.
    """

    def __init__(self, error: RequestError) -> None:
        self.error = error


def _kept_apart(value: Any, parse: Any) -> Any:
    try:
        return parse(value)
    except ValidationError as misshapen:
        return Malformed(from_validation(misshapen))


class SearchBatch(RequestModel):
    """Several searches at once; each succeeds or fails on its own."""

    searches: Annotated[
        list[Annotated[SearchRequest, WrapValidator(_kept_apart)]],
        Bounded("searches", "max_searches", least=1),
    ]


def _is_batch(value: Any) -> str:
    several = isinstance(value, SearchBatch) or (isinstance(value, dict) and "searches" in value)
    return "<several>" if several else "<one>"


SearchBody = Annotated[
    Annotated[SearchRequest, Tag("<one>")] | Annotated[SearchBatch, Tag("<several>")],
    Discriminator(_is_batch),
    Body(
        openapi_examples={
            "text": {"value": {"query": "an otter", "budget": "balanced", "top_k": 5}},
            "text and image": {"value": {"query": {"text": "in snow", "image": DATA_URI}}},
            "parts": {"value": {"query": [{"type": "text", "text": "an otter"}]}},
            "by a deadline": {"value": {"query": "an otter", "budget": "auto", "deadline_ms": 500}},
            "exact": {"value": {"query": "an otter", "budget": "full", "candidates": "all"}},
            "words too": {
                "value": {
                    "query": "an otter",
                    "hybrid": {"text": "otter", "fusion": "weighted", "lexical_weight": 0.3},
                }
            },
            "filtered pages": {
                "value": {
                    "query": "an otter",
                    "filter": {"source": ["emoji", "scenes"]},
                    "group_by": "name",
                    "offset": 2,
                    "top_k": 2,
                }
            },
            "explained": {"value": {"query": "an otter", "with_explain": True, "rerank": True}},
            "several": {
                "value": {"searches": [{"query": "an otter"}, {"query": "x", "budget": "fast"}]}
            },
        }
    ),
]


def plan_of(
    request: SearchRequest,
    limits: Limits,
    budgets: Mapping[str, str],
    *,
    arrived: float = 0.0,
    item: Item | None = None,
) -> SearchPlan:
    """How to search, as asked for and inside the limits.

    Args:
        request: what was sent.
        limits: of the service.
        budgets: every name that may be asked for -> its rung.
        arrived: `time.monotonic()` when the request came in; the deadline counts from it.
        item: the query, if there is one; its words are the default of a hybrid search.

    Raises:
        RequestError: a limit is exceeded or the budget is unknown; param names the field.
    """
    check_instruction(request.instruction, limits)
    _check_sizes(request, limits)
    budget = request.budget if request.budget is not None else "auto"
    if budget not in budgets:
        raise RequestError(
            400,
            "unknown_budget",
            f"budget {budget!r} is not offered here; allowed: {', '.join(budgets)}",
            param="budget",
        )
    hybrid = HybridFields() if request.hybrid is True else request.hybrid or None
    rerank, deadline_ms = _rerank(request.rerank, limits), request.deadline_ms
    if rerank is not None and rerank.raw and item is None:
        sent = "like" if request.like is not None else "vectors"
        raise refuse(
            "rerank.raw", f"it reads the query itself, and {sent!r} has none: send 'query'"
        )
    return SearchPlan(
        # auto stays auto, whatever rung it may stand for: the service may then lower it
        budget="auto" if budget == "auto" else budgets[budget],
        candidates=request.candidates,
        top_k=request.top_k,
        filter=request.filter,
        group_by=request.group_by,
        offset=request.offset,
        min_score=request.min_score,
        target_recall=request.target_recall,
        coarse=request.coarse,
        deadline=None if deadline_ms is None else arrived + deadline_ms / 1e3,
        text=_words(hybrid, item, limits) if hybrid else None,
        fusion=hybrid.fusion if hybrid else None,
        lexical_weight=hybrid.lexical_weight if hybrid else 0.5,
        rerank=rerank,
        with_rerank=request.rerank is not False,
        with_explain=request.with_explain,
        exclude=request.like,
        allow_partial=request.allow_partial,
        widen_to=None if limits.allow_all_candidates else limits.max_candidates,
        item=item if rerank is not None and rerank.raw else None,
    )


def _check_sizes(request: SearchRequest, limits: Limits) -> None:
    if request.top_k > limits.max_top_k:
        raise refuse("top_k", f"{request.top_k} hits asked for, at most {limits.max_top_k}")
    if request.offset > limits.max_offset:
        raise refuse("offset", f"{request.offset} hits left out, at most {limits.max_offset}")
    if request.candidates == "all" and not limits.allow_all_candidates:
        raise refuse("candidates", "'all' is switched off here; give a number, or 'auto'")
    least, most = request.offset + request.top_k, limits.max_candidates
    if isinstance(request.candidates, int) and not least <= request.candidates <= most:
        allowed = f"{least} (offset + top_k) to {most}, 'auto' or 'all'"
        raise refuse("candidates", f"{request.candidates} is not allowed: {allowed}")


def _words(hybrid: HybridFields, item: Item | None, limits: Limits) -> str:
    words = hybrid.text if hybrid.text is not None else item.text if item else ""
    if not words.strip():
        raise refuse("hybrid", "there are no words to search by: give 'hybrid.text'")
    if len(words) > limits.max_text_chars * limits.max_parts:
        raise refuse("hybrid", f"a text of {len(words)} characters, too long to search by")
    return words


def _rerank(asked: bool | RerankFields | None, limits: Limits) -> Rerank | None:
    if asked is None or asked is False:
        return None
    fields = RerankFields() if asked is True else asked
    most = limits.max_rerank_documents
    if fields.top_n is not None and fields.top_n > most:
        raise refuse("rerank.top_n", f"{fields.top_n} hits, at most {most}")
    top_n = fields.top_n or (RAW_TOP_N if fields.raw else Rerank().top_n)
    return Rerank(top_n=min(top_n, most), raw=fields.raw)
