"""``/v1/documents``: write, delete and look at stored documents."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, Response
from starlette.routing import Match
from starlette.types import Scope

from rematch_ray.serve.api.documents import (
    DeleteBody,
    DocumentBody,
    UpsertBody,
    WriteBody,
    new_documents,
    write_body,
)
from rematch_ray.serve.backend import Caller
from rematch_ray.serve.failures import RequestError, failures_named
from rematch_ray.serve.observation import facts_of
from rematch_ray.serve.routes.lean import LeanRoute
from rematch_ray.serve.routes.service import Service, errors

_IN_ID = b"%2fimage"


class ImageRoute(LeanRoute):
    """The image of a document: not of one whose id ends in ``/image``, that slash encoded."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """By the path as it was sent: decoded, the two are one."""
        if scope.get("raw_path", b"").lower().endswith(_IN_ID):
            return Match.NONE, {}
        return super().matches(scope)


def add_documents(api: FastAPI, service: Service) -> None:
    """Add the routes."""
    _add_writes(api, service)
    _add_reads(api, service)


def _add_writes(api: FastAPI, service: Service) -> None:
    limits, backend = service.limits, service.backend
    writer = service.admitted("write", is_charged=True)

    @api.post("/v1/documents", tags=["documents"], responses=errors(400, 413, 422, 429, 504))
    async def upsert(
        request: Request,
        body: UpsertBody,
        caller: Caller = writer,
    ) -> WriteBody:
        """Write documents: new ids are added, known ones replaced. Answered once it is on disk."""
        facts_of(request.scope).documents += [document.id for document in body.documents]
        with failures_named():
            served = await backend.served()
            documents = new_documents(body, limits, served.model)
            return write_body(await backend.upsert(documents, caller))

    @api.delete("/v1/documents", tags=["documents"], responses=errors(400, 413, 422, 429, 504))
    async def delete(
        request: Request,
        body: DeleteBody,
        caller: Caller = writer,
    ) -> WriteBody:
        """Delete documents by id, or all that match a filter. Answered once it is on disk."""
        ids = body.ids or []
        facts_of(request.scope).documents += ids
        with failures_named():
            return write_body(await backend.delete(ids, body.filter, caller))


def _add_reads(api: FastAPI, service: Service) -> None:
    async def payload_of(document_id: str) -> dict[str, Any]:
        with failures_named():
            payload = await service.backend.payload(document_id)
        if payload is None:
            raise RequestError(
                404, "unknown_document", f"no document {document_id!r} in this index", param="id"
            )
        return dict(payload)

    async def image(document_id: str) -> Response:
        """The image of a document, if it lies inside a configured media root."""
        found = service.media.find(await payload_of(document_id))
        if found is None:
            raise RequestError(
                404, "no_image", f"document {document_id!r} has no image that may be returned here"
            )
        path, media_type = found
        headers = {"cache-control": "private, max-age=3600", "x-content-type-options": "nosniff"}
        return FileResponse(path, media_type=media_type, headers=headers)

    # before the route of the document itself: ids may contain slashes
    api.router.add_api_route(
        "/v1/documents/{document_id:path}/image",
        image,
        methods=["GET"],
        tags=["documents"],
        dependencies=[service.admitted("read", is_charged=True)],
        responses=errors(400, 404, 422, 429) | {200: {"content": {"image/*": {}}}},
        response_class=FileResponse,
        route_class_override=ImageRoute,
    )

    @api.get(
        "/v1/documents/{document_id:path}",
        tags=["documents"],
        dependencies=[service.admitted("read", is_charged=True)],
        responses=errors(400, 404, 422, 429),
    )
    async def document(document_id: str) -> DocumentBody:
        """A stored document's payload."""
        return DocumentBody(id=document_id, payload=await payload_of(document_id))
