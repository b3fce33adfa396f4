"""Whether the service lives, is ready, what it serves and how it fares."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from rematch_ray import __version__
from rematch_ray.index.coarse.keys import choices_of
from rematch_ray.serve.api.base import ErrorBody
from rematch_ray.serve.api.info import InfoBody, calibration_body
from rematch_ray.serve.failures import failures_named
from rematch_ray.serve.routes.readiness import Readiness
from rematch_ray.serve.routes.service import Service, errors

# where things lie on the servers is no caller's business
_PATHS = frozenset({"path", "model_path"})


def add_health(api: FastAPI, service: Service) -> None:
    """Add the routes."""
    readiness = Readiness(service.backend.ready)

    @api.get("/healthz", tags=["health"])
    @api.get("/livez", tags=["health"])
    async def alive() -> dict[str, str]:
        """Whether this process is alive."""
        return {"status": "alive"}

    @api.get("/readyz", tags=["health"], responses={503: {"model": ErrorBody}})
    async def readyz() -> dict[str, str]:
        """Whether the encoder and every shard answer, or did within the last second; 503 until
        they do.
        """
        await readiness.check()
        return {"status": "ready"}

    @api.get(
        "/metrics",
        tags=["health"],
        # they name every caller, with what each asked for
        dependencies=[service.admitted("metrics", "admin")],
        responses=errors(),
        response_class=PlainTextResponse,
    )
    async def metrics() -> str:
        """Metrics of the whole service in Prometheus text format."""
        return await service.backend.metrics()

    @api.get(
        "/v1/info",
        tags=["search"],
        dependencies=[service.admitted("read", is_charged=True)],
        responses=errors(429),
    )
    async def info() -> InfoBody:
        """What is served: the index, the model, every budget and every limit."""
        with failures_named():
            served = await service.backend.served()
        coarse: dict[str, Any] = dict(served.index.get("coarse") or {})
        return InfoBody(
            name="rematch_ray",
            version=__version__,
            index={name: of for name, of in served.index.items() if name not in _PATHS},
            model=dict(served.model),
            budgets=dict(served.budgets),
            default_budget="auto",
            coarse_choices=list(choices_of(coarse)),
            instruction=served.instruction,
            calibration=calibration_body(served.index.get("calibration")),
            load=dict(served.load),
            limits=service.limits.model_dump(),
        )
