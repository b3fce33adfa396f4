"""``/v1/admin/swap``: change to another pair of model and index, and see where the change stands.

Knows the manager of the sets by a protocol, no Ray.
"""

from __future__ import annotations

from typing import Annotated, Any, Protocol

from fastapi import FastAPI
from pydantic import AfterValidator, Field

from rematch_ray.serve.api.base import RequestModel, Text
from rematch_ray.serve.failures import RequestError, failures_named
from rematch_ray.serve.routes.service import Service, errors
from rematch_ray.serve.swap import SwapBusyError


class SwapClient(Protocol):
    """See `Sets`."""

    async def swap(self, index: str, model: str | None) -> dict[str, Any]:
        """Begins a change."""
        ...

    async def status(self) -> dict[str, Any]:
        """Where a change stands."""
        ...


def path_text(text: str) -> str:
    """Refuse text that no file system takes for a path.

    Raises:
        ValueError: it holds a NUL.
    """
    if "\0" in text:
        raise ValueError("a path holds no NUL: send the path of a directory")
    return text


ServerPath = Annotated[Text, AfterValidator(path_text)]


class SwapBody(RequestModel):
    """What to serve from now on."""

    index: ServerPath = Field(min_length=1, description="index directory, as the service sees it")
    model: ServerPath | None = Field(
        None, description="export or run directory; default: the one the index names"
    )


def add_admin(api: FastAPI, service: Service, sets: SwapClient) -> None:
    """Add the routes."""
    admin = service.admitted("admin")

    @api.post(
        "/v1/admin/swap",
        tags=["admin"],
        status_code=202,
        dependencies=[admin],
        responses=errors(400, 409, 413, 422),
    )
    async def swap(body: SwapBody) -> dict[str, Any]:
        """Bring up another pair of model and index beside this one, and change to it when it is
        warm; requests that run end on the old one. GET tells when it is done.
        """
        with failures_named():
            try:
                return await sets.swap(body.index, body.model)
            except SwapBusyError as busy:
                raise RequestError(409, "swap_under_way", str(busy)) from busy

    @api.get("/v1/admin/swap", tags=["admin"], dependencies=[admin], responses=errors())
    async def status() -> dict[str, Any]:
        """What is served, and where a change stands: `serving`, `warming`, `flipping`,
        `draining`; `last` tells how the last one ended.
        """
        with failures_named():
            return await sets.status()
