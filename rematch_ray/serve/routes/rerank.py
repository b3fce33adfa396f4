"""``POST /v1/rerank`` and ``/v2/rerank``: the same, where either kind of client looks for it."""

from __future__ import annotations

import asyncio
import uuid

from fastapi import FastAPI, Request

from rematch_ray.serve.api.rerank import (
    HEAD,
    MAXSIM,
    ApiVersion,
    BilledUnits,
    RerankBody,
    RerankedBody,
    RerankMeta,
    RerankResponse,
    RerankUsage,
    items_to_rerank,
    repeated,
)
from rematch_ray.serve.failures import failures_named
from rematch_ray.serve.rerank import (
    maxsim_scores,
    order_of,
    relevance_of_cosines,
    relevance_of_log_odds,
)
from rematch_ray.serve.routes.encoding import check_model, encode_all, instruction_for
from rematch_ray.serve.routes.service import Service, errors, request_id_of


def add_rerank(api: FastAPI, service: Service) -> None:
    """Add the routes."""
    guard = [service.admitted("read", is_charged=True)]

    async def rerank(request: Request, body: RerankBody) -> RerankResponse:
        """Order documents by how well they fit a query; nothing of the index is read."""
        query_item, items = items_to_rerank(body, service.limits)
        backend = service.backend
        with failures_named():
            served = await backend.served()
            check_model(body.model, served, also=(MAXSIM, HEAD))
            stored = instruction_for(None, "document", served)
            query, documents = await asyncio.gather(
                backend.encode(query_item, body.instruction, "query"),
                encode_all(backend, items, stored, "document", param="documents"),
            )
            if body.model == HEAD:
                relevance = relevance_of_log_odds(await backend.match(query, documents))
            else:
                relevance = relevance_of_cosines(maxsim_scores(query, documents))
        tokens = query.tokens + sum(document.tokens for document in documents)
        best = order_of(relevance)[: body.top_n]
        return RerankResponse(
            id=request_id_of(request) or uuid.uuid4().hex,
            model=body.model,
            results=[
                RerankedBody(
                    index=int(place),
                    relevance_score=float(relevance[place]),
                    document=repeated(body.documents[place]) if body.return_documents else None,
                )
                for place in best
            ],
            meta=RerankMeta(
                api_version=ApiVersion(version=request.url.path.split("/")[-2].lstrip("v")),
                billed_units=BilledUnits(search_units=1),
            ),
            usage=RerankUsage(prompt_tokens=tokens, total_tokens=tokens),
        )

    for path in ("/v1/rerank", "/v2/rerank"):
        api.post(
            path,
            tags=["rerank"],
            dependencies=guard,
            responses=errors(400, 404, 413, 422, 429, 504),
            response_model_exclude_none=True,
        )(rerank)
