"""The HTTP application: routes, and what each answers.

`make_api` takes any `Backend`, so everything a caller can see is testable without Ray. Knows no
models, no index files and no cluster.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI

from rematch_ray import __version__
from rematch_ray.serve.backend import Backend
from rematch_ray.serve.failures import FailureAnswer, install_handlers
from rematch_ray.serve.key_check import KeyCheck
from rematch_ray.serve.keys import KeyRing
from rematch_ray.serve.limits import BodyLimit
from rematch_ray.serve.media import MediaRoots
from rematch_ray.serve.observation import Observed, Record
from rematch_ray.serve.pages import add_pages
from rematch_ray.serve.routes.admin import SwapClient, add_admin
from rematch_ray.serve.routes.described import DescribedApi
from rematch_ray.serve.routes.documents import add_documents
from rematch_ray.serve.routes.embeddings import add_embeddings
from rematch_ray.serve.routes.health import add_health
from rematch_ray.serve.routes.lean import LeanRoute
from rematch_ray.serve.routes.rerank import add_rerank
from rematch_ray.serve.routes.search import add_search
from rematch_ray.serve.routes.service import Service
from rematch_ray.serve.search_gate import SearchGate
from rematch_ray.serve.settings import Limits

if TYPE_CHECKING:
    from rematch_ray.serve.query_log import QueryLog


def make_api(
    backend: Backend,
    *,
    keys: KeyRing,
    limits: Limits,
    media: MediaRoots,
    record: Record | tuple[Record, ...] | None = None,
    query_log: QueryLog | None = None,
    sets: SwapClient | None = None,
) -> FastAPI:
    """Build the application.

    Args:
        backend: encodes, searches, writes and knows the documents.
        keys: who may call what is not open to all: see `key_check`.
        limits: what one request may ask for.
        media: directories that images may be returned from.
        record: called once per answered request, for metrics and the access log; several, in turn.
        query_log: notes the vectors of queries; closed when the application ends.
        sets: changes the pair of model and index; None offers no such route.

    Returns:
        The application, ready for any ASGI server.
    """

    @asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncIterator[None]:
        yield
        if query_log is not None:
            await asyncio.to_thread(query_log.close)

    api = DescribedApi(
        lifespan=lifespan,
        takes_keys=not keys.is_open,
        title="rematch_ray",
        version=__version__,
        description="Multimodal search at a budget that each request chooses.",
        docs_url=None,
        redoc_url=None,
    )
    api.state.limits = limits
    api.router.route_class = LeanRoute
    install_handlers(api)
    # the last that is added is the first that is asked: refusals are recorded, bodies not read
    api.add_middleware(BodyLimit, max_bytes=limits.max_body_bytes)
    api.add_middleware(SearchGate, backend=backend)
    api.add_middleware(KeyCheck, keys=keys)
    api.add_middleware(FailureAnswer)
    api.add_middleware(Observed, record=record)
    service = Service(backend, limits, media, query_log)
    add_health(api, service)
    add_search(api, service)
    add_embeddings(api, service)
    add_rerank(api, service)
    add_documents(api, service)
    if sets is not None:
        add_admin(api, service, sets)
    add_pages(api)
    return api
