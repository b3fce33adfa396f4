"""What the HTTP routes need from whatever encodes, searches and writes, as a protocol.

`serve.router` implements it over Ray Serve handles; tests implement it with a few lines. Knows no
HTTP and no Ray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rematch_ray.data.item import Item
    from rematch_ray.index.search import SearchResult

Side = Literal["query", "document"]
Float32 = NDArray[np.float32]


class NotReadyError(RuntimeError):
    """The encoder or the index does not answer yet; the message says which."""


class SilentError(NotReadyError):
    """A part was asked and has said nothing so far: it is gone, or busy."""


class OverloadedError(RuntimeError):
    """No room for this request now; it may be sent again after a moment.

    Args:
        message: what is full.
        retry_after_s: when to come back.
        code: `overloaded` (the service, 503), `budget_unavailable` (an explicit budget under load,
            429) or `quota_exceeded` (this key, 429).
    """

    def __init__(
        self, message: str, *, retry_after_s: float = 1.0, code: str = "overloaded"
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.code = code


class DeadlineError(RuntimeError):
    """The deadline passed before anything could be found."""


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        name: of the API key, or `anonymous`.
        scopes: of `read`, `write`, `admin`, `metrics`.
    """

    name: str = "anonymous"
    scopes: frozenset[str] = frozenset({"read", "write", "admin"})


@dataclass(frozen=True)
class EncodedQuery:
    """One query (or document) as vectors: what `SearchIndex.search` takes.

    Arrays, not tensors: whoever unpacks one needs no torch.

    Attributes:
        vectors: (1, R, D) float32, unit norm.
        fused: (1, F) float32, unit norm; None when the model has none.
        instruction: the instruction that was used; "" for none.
        tokens: that the model read, for usage; 0 when vectors were given.
        model: digest of the model that made them here; "" when vectors were given.
    """

    vectors: Float32
    fused: Float32 | None
    instruction: str = ""
    tokens: int = 0
    model: str = ""


@dataclass(frozen=True)
class Rerank:
    """The matching head as the last rung.

    Attributes:
        top_n: hits that are scored again.
        raw: over raw documents by their stored reference and `SearchPlan.item`, not embeddings.
    """

    top_n: int = 100
    raw: bool = False


@dataclass(frozen=True)
class SearchPlan:
    """What a request asks of a search, checked against the limits, not yet planned.

    Attributes:
        budget: `auto`, `fused` or a rung; None is `auto`.
        candidates: documents scored at the final budget.
        top_k: hits wanted after `offset`.
        filter: payload fields that hits must match.
        group_by: at most one hit per value of this payload field.
        offset: best hits that are left out.
        min_score: hits below are left out.
        target_recall: recall that the calibration must promise; chooses the plan.
        coarse: what the coarse stage goes by; None leaves it open.
        deadline: `time.monotonic()` by which the answer should stand; None for none.
        text: words for hybrid search, or None.
        fusion: `rrf` or `weighted`, of a hybrid search.
        lexical_weight: of the lexical list when fused by weight, 0..1.
        rerank: the matching head; None leaves it to what the calibration has measured.
        with_rerank: False switches the head off.
        with_explain: whether each hit comes with its matrix of similarities.
        exclude: an id that is left out: the document a `like` search started from.
        item: the query itself, where the matching head is to read it.
        allow_partial: whether shards that do not answer are left out.
        widen_to: most candidates that may be looked through for missing groups; None: no limit.
    """

    budget: str | None = None
    candidates: int | Literal["auto", "all"] = "auto"
    top_k: int = 10
    filter: Mapping[str, Any] | None = None
    group_by: str | None = None
    offset: int = 0
    min_score: float | None = None
    target_recall: float | None = None
    coarse: str | None = None
    deadline: float | None = None
    text: str | None = None
    fusion: str | None = None
    lexical_weight: float = 0.5
    rerank: Rerank | None = None
    with_rerank: bool = True
    with_explain: bool = False
    exclude: str | None = None
    item: Item | None = None
    allow_partial: bool = False
    widen_to: int | None = None

    @property
    def is_auto(self) -> bool:
        """Whether the service chooses the budget, and may lower it."""
        return self.budget in (None, "auto") and self.target_recall is None


@dataclass(frozen=True)
class Answer:
    """The hits of one query, and what they cost.

    Attributes:
        result: hits (after offset and least score) and what was used to find them.
        degraded: why less was used than would have been without: `deadline`, `load`,
            `shard_missing`; empty when nothing was lowered.
        dot_products: spent on this query.
        queue_ms: waited before the search began.
        search_ms: the search itself.
        rerank: what the matching head did: `top_n`, `lambda`, `ms`, `raw`, and `not_found`, the ids
            that have no raw document and kept their place; None where it did not run.
        explained: id of a hit -> (r_q, r_d) similarities, when asked for.
    """

    result: SearchResult
    degraded: tuple[str, ...] = ()
    dot_products: int = 0
    queue_ms: float = 0.0
    search_ms: float = 0.0
    rerank: Mapping[str, Any] | None = None
    explained: Mapping[str, Float32] = field(default_factory=dict)


@dataclass(frozen=True)
class NewDocument:
    """A document to be written: an item that is encoded here, or vectors computed elsewhere.

    Attributes:
        id: the caller's id; replaces a document of that id.
        item: what to encode, or None where vectors are given.
        vectors: (1, R, D) and fused (1, F) of the document side, or None.
        payload: stored beside it.
        source: where it comes from, for filters.
    """

    id: str
    item: Item | None = None
    vectors: EncodedQuery | None = None
    payload: Mapping[str, Any] = field(default_factory=dict)
    source: str = "api"


@dataclass(frozen=True)
class WriteResult:
    """What a write did; it is on disk.

    Attributes:
        added: documents whose ids were new.
        replaced: documents whose ids were there before.
        deleted: documents that are gone.
        unknown: ids to delete that were not there.
        generation: the state that holds it; searches find it within `visible_within_s`.
        visible_within_s: seconds.
    """

    added: int = 0
    replaced: int = 0
    deleted: int = 0
    unknown: int = 0
    generation: str = ""
    visible_within_s: float = 0.0


@dataclass(frozen=True)
class ServedIndex:
    """Facts of the served pair of model and index, as of one generation.

    Attributes:
        index: what `SearchIndex.info` says: documents, generation, bytes, ...
        model: `ModelIdentity` as JSON: name, digest, ladder, numbers and widths of vectors.
        budgets: every budget a request may name -> the rung it stands for (`auto` -> `auto`).
        instruction: the default instruction of queries.
        load: of the moment: `ceiling` (rung), `level`, `refusing`.
    """

    index: Mapping[str, Any]
    model: Mapping[str, Any]
    budgets: Mapping[str, str]
    instruction: str
    load: Mapping[str, Any] = field(default_factory=dict)


class Backend(Protocol):
    """An encoder, an index and a writer, however they are placed."""

    async def encode(
        self, query: Item, instruction: str | None, side: Side = "query"
    ) -> EncodedQuery:
        """Turn one item into vectors; UserError when it cannot be encoded."""
        ...

    async def begin_search(self, plan: SearchPlan, caller: Caller) -> None:
        """Count one search as a request of the caller's, before anything is spent on its query.

        Raises:
            UserError: the plan does not fit the index.
            OverloadedError: refused under load, or the caller's quota is used up; nothing was
                counted.
            DeadlineError: the deadline has passed already.
        """
        ...

    async def search(
        self, query: EncodedQuery, plan: SearchPlan, caller: Caller = Caller()
    ) -> Answer:
        """Search with one query, which `begin_search` has counted; its dot products are paid here.

        Raises:
            UserError: the plan does not fit the index.
            OverloadedError: refused under load, or the caller's quota is used up.
            DeadlineError: the deadline passed before there was an answer.
        """
        ...

    def admit_search(self) -> None:
        """Nothing, where a search that comes now is answered in time; asked before it is read.

        Raises:
            OverloadedError: it would only wait: no budget is small enough, and many wait already.
        """
        ...

    def charge(self, caller: Caller) -> None:
        """Count a request that is no search against the caller's quota.

        Raises:
            OverloadedError: the quota is used up.
        """
        ...

    def allowance(self, caller: Caller) -> Mapping[str, str]:
        """``RateLimit-*`` headers: what is left to a caller; none where nothing limits it."""
        ...

    async def like(self, document_id: str) -> EncodedQuery | None:
        """A stored document's vectors as a query, or None when there is no such document."""
        ...

    async def match(self, query: EncodedQuery, documents: Sequence[EncodedQuery]) -> list[float]:
        """log p(Yes) - log p(No) of a query with each document, from fused vectors alone.

        Raises:
            UserError: the model has no matching head.
        """
        ...

    async def payload(self, document_id: str) -> Mapping[str, Any] | None:
        """The payload of a document, or None when there is no such document."""
        ...

    async def upsert(self, documents: Sequence[NewDocument], caller: Caller) -> WriteResult:
        """Write documents; UserError names the first that cannot be, and none is written."""
        ...

    async def delete(
        self, ids: Sequence[str], filter: Mapping[str, Any] | None, caller: Caller
    ) -> WriteResult:
        """Delete documents by id, or all that match a filter."""
        ...

    async def served(self) -> ServedIndex:
        """Facts of the model and the index; NotReadyError until both answer."""
        ...

    async def ready(self) -> None:
        """Return when encoder and every shard answer; NotReadyError names the one that does not."""
        ...

    async def metrics(self) -> str:
        """Metrics of the whole service in Prometheus text format."""
        ...
