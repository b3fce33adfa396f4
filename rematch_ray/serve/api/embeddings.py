"""Embeddings in the shape of OpenAI's interface, with what it has no words for beside it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import Body
from pydantic import Discriminator, Field, Tag

from rematch_ray.data.item import Item
from rematch_ray.serve.api.base import ApiModel, RequestModel, Text
from rematch_ray.serve.api.bounds import Bounded
from rematch_ray.serve.api.content import DATA_URI, Content, check_instruction, item_of
from rematch_ray.serve.api.vectors import num_vectors
from rematch_ray.serve.backend import EncodedQuery, Float32, Side
from rematch_ray.serve.failures import refuse
from rematch_ray.serve.settings import Limits


def _one_or_several(value: Any) -> str:
    return "<several>" if isinstance(value, list) else "<one>"


Inputs = Annotated[
    Annotated[Text, Tag("<one>")]
    | Annotated[list[Content], Bounded("inputs", "max_inputs", least=1), Tag("<several>")],
    Discriminator(_one_or_several),
]


class EmbeddingsRequest(RequestModel):
    """What to turn into vectors."""

    model: Text = Field(description="name or digest of the served model, or 'rematch'")
    input: Inputs = Field(
        description="one text, or a list: each member is a text, a part (text or image_url with a "
        "data URI), {text, image}, or a list of parts that make one input",
        examples=[["an otter", "a red bar"]],
    )
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="base64: little-endian float32"
    )
    dimensions: int | None = Field(
        None, description="refused unless it is the width: vectors cannot be cut here"
    )
    user: Text | None = Field(None, description="of OpenAI's clients; has no effect here")
    input_type: Literal["query", "document"] = Field(
        "query", description="which side of a search the inputs are"
    )
    num_vectors: int | None = Field(
        None, ge=1, description="also return the first so many multi-vectors of each input"
    )
    instruction: Text | None = Field(None, description="default: the model's; '' for none")


EmbeddingsBody = Annotated[
    EmbeddingsRequest,
    Body(
        openapi_examples={
            "one text": {"value": {"model": "rematch", "input": "an otter"}},
            "documents": {
                "value": {
                    "model": "rematch",
                    "input": ["an otter", {"text": "in snow", "image": DATA_URI}],
                    "input_type": "document",
                }
            },
            "an image": {
                "value": {
                    "model": "rematch",
                    "input": [{"type": "image_url", "image_url": {"url": DATA_URI}}],
                    "encoding_format": "base64",
                }
            },
            "multi-vectors": {"value": {"model": "rematch", "input": "an otter", "num_vectors": 4}},
        }
    ),
]


Vector = list[float] | str


class EmbeddingBody(ApiModel):
    """The vectors of one input."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: Vector = Field(description="the fused vector; vector 1 where the model has none")
    vectors: list[Vector] | None = Field(None, description="with num_vectors: the first so many")


class EmbeddingsUsage(ApiModel):
    """Tokens that the model read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(ApiModel):
    """One embedding per input, in their order."""

    object: Literal["list"] = "list"
    data: list[EmbeddingBody]
    model: str
    usage: EmbeddingsUsage


def inputs_of(request: EmbeddingsRequest, limits: Limits, model: Mapping[str, Any]) -> list[Item]:
    """The inputs as items, checked.

    Raises:
        RequestError: an empty or too long one, too long an instruction, or a width or count that
            there is not.
    """
    check_instruction(request.instruction, limits)
    inputs = [request.input] if isinstance(request.input, str) else request.input
    width = int(model["fused_dim"] or model["embedding_dim"])
    if request.dimensions not in (None, width):
        raise refuse("dimensions", f"vectors have {width} here: give that, or leave it out")
    side: Side = request.input_type
    most = num_vectors(model, side)
    if request.num_vectors is not None and request.num_vectors > most:
        raise refuse("num_vectors", f"a {side} has {most} vectors, {request.num_vectors} asked for")
    return [
        item_of(content, limits, param=_named(request, place), id=f"input {place}")
        for place, content in enumerate(inputs)
    ]


def _named(request: EmbeddingsRequest, place: int) -> str:
    return "input" if isinstance(request.input, str) else f"input.{place}"


def embeddings_response(
    request: EmbeddingsRequest, encoded: Sequence[EncodedQuery]
) -> EmbeddingsResponse:
    """The body of an answer."""
    as_base64 = request.encoding_format == "base64"
    tokens = sum(one.tokens for one in encoded)
    return EmbeddingsResponse(
        data=[
            EmbeddingBody(
                index=place,
                embedding=_written(
                    one.vectors[0, 0] if one.fused is None else one.fused[0], as_base64
                ),
                vectors=(
                    [_written(row, as_base64) for row in one.vectors[0, : request.num_vectors]]
                    if request.num_vectors
                    else None
                ),
            )
            for place, one in enumerate(encoded)
        ],
        model=request.model,
        usage=EmbeddingsUsage(prompt_tokens=tokens, total_tokens=tokens),
    )


def _written(vector: Float32, as_base64: bool) -> Vector:
    if as_base64:
        return base64.b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode()
    return [float(number) for number in vector]
