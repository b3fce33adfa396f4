"""The HTTP application: routes, and what each answers.

`make_api` takes any `Backend`, so everything a caller can see is testable without Ray. Knows no
models, no index files and no cluster.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from fastapi import Depends, FastAPI, Request
from fastapi.responses import FileResponse, PlainTextResponse, Response

from rematch_ray import __version__
from rematch_ray.errors import UserError
from rematch_ray.serve.api import (
    DocumentBody,
    ErrorBody,
    HitBody,
    SearchRequest,
    SearchResponse,
    StageBody,
    TimingBody,
    check_vectors,
    item_of,
    plan_of,
)
from rematch_ray.serve.backend import (
    Backend,
    EncodedQuery,
    NotReadyError,
    OverloadedError,
    ServedIndex,
)
from rematch_ray.serve.failures import RequestError, install_handlers
from rematch_ray.serve.limits import BodyLimit, KeyRing
from rematch_ray.serve.media import MediaRoots
from rematch_ray.serve.observation import Observed, RequestRecord
from rematch_ray.serve.pages import add_pages
from rematch_ray.serve.settings import Limits

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 404, 413, 422, 500, 503)
}


def make_api(
    backend: Backend,
    *,
    keys: KeyRing,
    limits: Limits,
    media: MediaRoots,
    record: Callable[[RequestRecord], None] | None = None,
) -> FastAPI:
    """Build the application.

    Args:
        backend: encodes, searches and knows the documents.
        keys: who may call ``/v1`` and ``/metrics``.
        limits: what one request may ask for.
        media: directories that images may be returned from.
        record: called once per answered request, for metrics.

    Returns:
        The application, ready for any ASGI server.
    """
    api = FastAPI(
        title="rematch_ray",
        version=__version__,
        description="Multimodal search at a budget that each request chooses.",
        docs_url=None,
        redoc_url=None,
    )
    install_handlers(api)
    api.add_middleware(BodyLimit, max_bytes=limits.max_body_bytes)
    api.add_middleware(Observed, record=record)

    async def admitted(request: Request) -> str:
        return keys.admit(request.headers)

    guard = [Depends(admitted)]
    _add_health(api, backend, guard)
    _add_search(api, backend, limits, guard)
    _add_documents(api, backend, media, guard)

    _add_info(api, backend, limits, guard)
    add_pages(api)
    return api


def _add_info(api: FastAPI, backend: Backend, limits: Limits, guard: list[Any]) -> None:
    @api.get("/v1/info", tags=["search"], dependencies=guard, responses=_ERRORS)
    async def info() -> dict[str, Any]:
        """What is served: the index, the model, every budget and every limit."""
        async with _failures_named():
            served = await backend.served()
        return {
            "name": "rematch_ray",
            "version": __version__,
            "index": dict(served.index),
            "model": dict(served.model),
            "budgets": dict(served.budgets),
            "default_budget": "auto",
            "instruction": served.instruction,
            "limits": limits.model_dump(),
        }


def _add_health(api: FastAPI, backend: Backend, guard: list[Any]) -> None:
    @api.get("/healthz", tags=["health"])
    async def healthz() -> dict[str, str]:
        """Whether this process is alive."""
        return {"status": "alive"}

    @api.get("/readyz", tags=["health"], responses={503: {"model": ErrorBody}})
    async def readyz() -> dict[str, str]:
        """Whether the encoder and the index answer; 503 until they do."""
        async with _failures_named():
            await backend.ready()
        return {"status": "ready"}

    @api.get("/metrics", tags=["health"], dependencies=guard, response_class=PlainTextResponse)
    async def metrics() -> str:
        """Metrics of the whole service in Prometheus text format."""
        return await backend.metrics()


def _add_search(api: FastAPI, backend: Backend, limits: Limits, guard: list[Any]) -> None:
    @api.post("/v1/search", tags=["search"], dependencies=guard, responses=_ERRORS)
    async def search(request: SearchRequest) -> SearchResponse:
        """Search by text, image, both, or ready query vectors, at a budget."""
        started = time.perf_counter()
        async with _failures_named():
            served = await backend.served()
            plan = plan_of(request, limits, served.budgets)
            encoded = await _encode(request, plan.budget or "", backend, limits, served)
            ready = time.perf_counter()
            found = (await backend.search(encoded, plan)).result
        ended = time.perf_counter()
        return SearchResponse(
            results=[
                HitBody(id=hit.id, score=hit.score, payload=dict(hit.payload)) for hit in found.hits
            ],
            budget=found.budget,
            candidates=found.candidates,
            instruction=None if request.vectors else encoded.instruction,
            stages=[StageBody.model_validate(stage) for stage in found.stages],
            scored=found.scored,
            live=found.live,
            scores=found.scores,
            exact=found.exact,
            generation=found.generation,
            timing=TimingBody(
                encode_ms=round(1e3 * (ready - started), 3),
                search_ms=round(1e3 * (ended - ready), 3),
                total_ms=round(1e3 * (ended - started), 3),
            ),
        )


async def _encode(
    request: SearchRequest, budget: str, backend: Backend, limits: Limits, served: ServedIndex
) -> EncodedQuery:
    if request.query is not None:
        query = item_of(request.query, limits)
        try:
            return await backend.encode(query, request.instruction)
        except UserError as mistake:
            raise RequestError(400, "invalid_query", str(mistake), param="query") from mistake
    check_vectors(request, served.model, budget)
    return given_vectors(request.vectors or [], request.fused)


def given_vectors(vectors: list[list[float]], fused: list[float] | None) -> EncodedQuery:
    """Query vectors (R, D), and perhaps a fused one (F), that a caller computed itself."""
    return EncodedQuery(
        vectors=np.array([vectors], dtype=np.float32),
        fused=None if fused is None else np.array([fused], dtype=np.float32),
    )


def _add_documents(api: FastAPI, backend: Backend, media: MediaRoots, guard: list[Any]) -> None:
    async def payload_of(document_id: str) -> dict[str, Any]:
        async with _failures_named():
            payload = await backend.payload(document_id)
        if payload is None:
            raise RequestError(
                404, "unknown_document", f"no document {document_id!r} in this index", param="id"
            )
        return dict(payload)

    # before the route of the document itself: ids may contain slashes
    @api.get(
        "/v1/documents/{document_id:path}/image",
        tags=["documents"],
        dependencies=guard,
        responses=_ERRORS,
        response_class=FileResponse,
    )
    async def image(document_id: str) -> Response:
        """The image of a document, if it lies inside a configured media root."""
        found = media.find(await payload_of(document_id))
        if found is None:
            raise RequestError(
                404, "no_image", f"document {document_id!r} has no image that may be returned here"
            )
        path, media_type = found
        headers = {"cache-control": "private, max-age=3600", "x-content-type-options": "nosniff"}
        return FileResponse(path, media_type=media_type, headers=headers)

    @api.get(
        "/v1/documents/{document_id:path}",
        tags=["documents"],
        dependencies=guard,
        responses=_ERRORS,
    )
    async def document(document_id: str) -> DocumentBody:
        """A stored document's payload."""
        return DocumentBody(id=document_id, payload=await payload_of(document_id))


@asynccontextmanager
async def _failures_named() -> AsyncIterator[None]:
    """Give what a backend may raise its HTTP status."""
    try:
        yield
    except NotReadyError as waiting:
        raise RequestError(503, "not_ready", str(waiting), retry_after_s=1) from waiting
    except OverloadedError as full:
        raise RequestError(503, "overloaded", str(full), retry_after_s=1) from full
    except UserError as mistake:
        raise RequestError(400, "invalid_value", str(mistake)) from mistake
