"""``POST /v1/embeddings``: one vector per input, as OpenAI's clients expect it."""

from __future__ import annotations

from fastapi import FastAPI

from rematch_ray.serve.api.embeddings import (
    EmbeddingsBody,
    EmbeddingsResponse,
    embeddings_response,
    inputs_of,
)
from rematch_ray.serve.failures import failures_named
from rematch_ray.serve.routes.encoding import check_model, encode_all, instruction_for
from rematch_ray.serve.routes.service import Service, errors

ALIAS = "rematch"


def add_embeddings(api: FastAPI, service: Service) -> None:
    """Add the route."""

    @api.post(
        "/v1/embeddings",
        tags=["embeddings"],
        dependencies=[service.admitted("read", is_charged=True)],
        responses=errors(400, 404, 413, 422, 429, 504),
        response_model_exclude_none=True,
    )
    async def embeddings(
        body: EmbeddingsBody,
    ) -> EmbeddingsResponse:
        """Turn texts and images into vectors, of the query side unless `input_type` says else."""
        with failures_named():
            served = await service.backend.served()
        check_model(body.model, served, also=(ALIAS,))
        items = inputs_of(body, service.limits, served.model)
        instruction = instruction_for(body.instruction, body.input_type, served)
        encoded = await encode_all(
            service.backend, items, instruction, body.input_type, param="input"
        )
        return embeddings_response(body, encoded)
