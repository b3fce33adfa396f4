"""``POST /v1/search``: one search, or several at once."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

from fastapi import FastAPI, Request, Response

from rematch_ray.data.item import Item
from rematch_ray.serve.api.answers import SearchBatchResponse, SearchResponse, search_response
from rematch_ray.serve.api.base import ErrorBody
from rematch_ray.serve.api.content import item_of
from rematch_ray.serve.api.search import Malformed, SearchBatch, SearchBody, SearchRequest, plan_of
from rematch_ray.serve.api.vectors import given_vectors
from rematch_ray.serve.backend import (
    Caller,
    DeadlineError,
    EncodedQuery,
    SearchPlan,
    ServedIndex,
)
from rematch_ray.serve.failures import (
    INTERNAL,
    RequestError,
    error_body,
    failures_named,
    refuse,
)
from rematch_ray.serve.observation import Facts, FailedSearch, Searched, facts_of
from rematch_ray.serve.routes.service import Service, arrived_at, errors, request_id_of

logger = logging.getLogger(__name__)


def add_search(api: FastAPI, service: Service) -> None:
    """Add the route."""
    reader = service.admitted("read")

    @api.post(
        "/v1/search",
        tags=["search"],
        response_model=SearchResponse | SearchBatchResponse,
        responses=errors(400, 404, 413, 422, 429, 504),
    )
    async def search(request: Request, body: SearchBody, caller: Caller = reader) -> Response:
        """Search by text, image, both, ready vectors or a stored document, at a budget.

        With `searches`, several at once: each has its own answer or error, and the status is 200.
        """
        arrived, request_id = arrived_at(request), request_id_of(request)
        with failures_named():
            served = await service.backend.served()
        asked = Asked(service, served, caller, arrived, request_id, facts_of(request.scope))
        if isinstance(body, SearchBatch):
            answer = await _answer_each(asked, body)
            return _json(answer)
        return _json(await asked.answer(body))


def _json(body: SearchResponse | SearchBatchResponse) -> Response:
    # written once, by pydantic: as a return value it would be validated and converted again
    return Response(body.model_dump_json(), media_type="application/json")


async def _answer_each(asked: Asked, batch: SearchBatch) -> SearchBatchResponse:
    outcomes = await asyncio.gather(
        *(asked.answer(search) for search in batch.searches), return_exceptions=True
    )
    return SearchBatchResponse(
        answers=[_in_place(outcome, asked.facts) for outcome in outcomes],
        request_id=asked.request_id,
    )


def _in_place(outcome: SearchResponse | BaseException, facts: Facts) -> SearchResponse | ErrorBody:
    if isinstance(outcome, SearchResponse):
        return outcome
    if not isinstance(outcome, Exception):
        raise outcome
    if not isinstance(outcome, RequestError):
        logger.error("a search of a batch failed", exc_info=outcome)
        outcome = INTERNAL
    facts.failed.append(FailedSearch(outcome.status, outcome.code))
    return ErrorBody.model_validate(error_body(outcome))


@dataclass(frozen=True)
class Asked:
    """What the searches of one request have in common.

    Attributes:
        service: backend and limits.
        served: the model and the index.
        caller: who asks.
        arrived: `time.monotonic()` when the request came in.
        request_id: of the request.
        facts: what is noted of the request, for metrics and the access log.
    """

    service: Service
    served: ServedIndex
    caller: Caller
    arrived: float
    request_id: str | None
    facts: Facts

    async def answer(self, search: SearchRequest | Malformed) -> SearchResponse:
        """Answer one search.

        Raises:
            RequestError: it cannot be answered.
        """
        if isinstance(search, Malformed):
            raise search.error
        limits = self.service.limits
        item = None
        if search.query is not None:
            item = item_of(search.query, limits, param="query")
        plan = plan_of(search, limits, self.served.budgets, arrived=self.arrived, item=item)
        with failures_named():
            await self.service.backend.begin_search(plan, self.caller)
        started = time.monotonic()
        query = await self._query(search, plan, item)
        encoded = time.monotonic()
        if item is not None:
            self.facts.encode_s = (self.facts.encode_s or 0.0) + encoded - started
            self.facts.query = " ".join(part.text for part in item.parts if part.text)
        with failures_named():
            found = await self.service.backend.search(query, plan, self.caller)
        self.facts.searches.append(Searched.of(plan, found))
        # the vectors of a stored document are not what users ask
        if search.like is None and self.service.query_log is not None:
            self.service.query_log.offer(query, self.served.model)
        return search_response(
            found,
            query,
            instruction=query.instruction if item else None,
            with_payload=search.with_payload,
            encode_ms=1e3 * (encoded - started),
            total_ms=1e3 * (time.monotonic() - self.arrived),
            request_id=self.request_id,
        )

    async def _query(
        self, search: SearchRequest, plan: SearchPlan, item: Item | None
    ) -> EncodedQuery:
        if item is not None:
            return await self._encode(item, search.instruction, plan.deadline)
        if search.like is not None:
            with failures_named("like"):
                stored = await self.service.backend.like(search.like)
            if stored is None:
                message = f"like: no document {search.like!r} in this index"
                raise RequestError(404, "unknown_document", message, param="like")
            return stored
        given = given_vectors(search.vectors or [], search.fused, self.served.model)
        if plan.budget == "fused" and given.fused is None:
            raise refuse("fused", "budget 'fused' needs the fused vector: give it beside 'vectors'")
        return given

    async def _encode(
        self, item: Item, instruction: str | None, deadline: float | None
    ) -> EncodedQuery:
        left = None if deadline is None else deadline - time.monotonic()
        with failures_named("query", "invalid_query"):
            try:
                return await asyncio.wait_for(
                    self.service.backend.encode(item, instruction, "query"), left
                )
            except TimeoutError as late:
                raise DeadlineError(
                    "the deadline passed before the query was encoded: allow more time, or send "
                    "'vectors'"
                ) from late
