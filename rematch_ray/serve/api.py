"""Requests and responses of the HTTP API, and a request as an Item or as vectors.

Unknown fields are refused. Knows neither routes nor backends; sizes are checked against `Limits`.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rematch_ray.data.item import Item, Part
from rematch_ray.serve.backend import SearchPlan
from rematch_ray.serve.failures import RequestError
from rematch_ray.serve.settings import Limits


class ApiModel(BaseModel):
    """Base of everything that crosses HTTP."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class TextPart(ApiModel):
    """A text part of a query."""

    type: Literal["text"]
    text: str


class ImageUrl(ApiModel):
    """Where an image is: a data URI."""

    url: str = Field(description="data:image/png;base64,... (other schemes are not fetched)")


class ImagePart(ApiModel):
    """An image part of a query, in the form that OpenAI clients send."""

    type: Literal["image_url"]
    image_url: ImageUrl


class QueryFields(ApiModel):
    """A query of at most one image and one text."""

    text: str | None = None
    image: str | None = Field(None, description="data:image/...;base64,... or bare base64")


QueryPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class SearchRequest(ApiModel):
    """What to search for, how carefully, and how much to return."""

    query: str | QueryFields | list[QueryPart] | None = Field(
        None, description="a text, {text, image}, or parts in reading order", examples=["an otter"]
    )
    vectors: list[list[float]] | None = Field(
        None, description="query vectors (R, D) of unit norm, instead of a query"
    )
    fused: list[float] | None = Field(None, description="fused vector (F), beside vectors")
    budget: str | None = Field(
        None,
        description="auto, fused, fast, balanced, full or a rung such as 8x16; /v1/info lists them",
        examples=["balanced"],
    )
    top_k: int = Field(10, ge=1, description="hits to return")
    candidates: int | Literal["auto", "all"] = Field(
        "auto", description="documents scored at the final budget; all = exact"
    )
    filter: dict[str, Any] | None = Field(None, description="payload fields that hits must match")
    instruction: str | None = Field(None, description="default: the model's; '' for none")
    group_by: str | None = Field(None, description="at most one hit per value of this field")

    @model_validator(mode="after")
    def _asks_for_one_thing(self) -> SearchRequest:
        if (self.query is None) == (self.vectors is None):
            raise ValueError("give either 'query' or 'vectors'")
        if self.fused is not None and self.vectors is None:
            raise ValueError("'fused' accompanies 'vectors'")
        if self.vectors is not None and self.instruction is not None:
            raise ValueError("'instruction' has no effect on 'vectors': it is part of encoding")
        return self


class HitBody(ApiModel):
    """One document of the answer."""

    id: str
    score: float = Field(description="mean over the query vectors, -1..1, within one budget")
    payload: dict[str, Any]


class StageBody(ApiModel):
    """One stage of the search: how many documents came in and went out, and how long it took."""

    model_config = ConfigDict(extra="allow")
    name: str


class TimingBody(ApiModel):
    """Where the time went, in milliseconds."""

    encode_ms: float
    search_ms: float
    total_ms: float


class SearchResponse(ApiModel):
    """Hits, and what was used to find them."""

    results: list[HitBody]
    budget: str = Field(description="the rung that scored the hits")
    reduce: Literal["mean"] = "mean"
    candidates: int
    instruction: str | None = Field(description="null when vectors were given")
    stages: list[StageBody]
    scored: int = Field(description="documents scored at the final budget")
    live: int = Field(description="documents that could have been")
    scores: Literal["float", "int8"]
    exact: bool
    generation: str
    timing: TimingBody


class DocumentBody(ApiModel):
    """A stored document."""

    id: str
    payload: dict[str, Any]


class ErrorDetail(ApiModel):
    """What went wrong."""

    message: str
    type: str
    code: str
    param: str | None


class ErrorBody(ApiModel):
    """The one shape of every failure."""

    error: ErrorDetail


def plan_of(request: SearchRequest, limits: Limits, budgets: Mapping[str, str]) -> SearchPlan:
    """How to search, as asked for and inside the limits.

    Raises:
        RequestError: a limit is exceeded or the budget is unknown; param names the field.
    """
    if request.top_k > limits.max_top_k:
        raise _refuse("top_k", f"{request.top_k} hits asked for, at most {limits.max_top_k}")
    if request.candidates == "all" and not limits.allow_all_candidates:
        raise _refuse("candidates", "'all' is switched off here; give a number, or 'auto'")
    least, most = request.top_k, limits.max_candidates
    if isinstance(request.candidates, int) and not least <= request.candidates <= most:
        allowed = f"{least} (top_k) to {most}, 'auto' or 'all'"
        raise _refuse("candidates", f"{request.candidates} is not allowed: {allowed}")
    budget = request.budget if request.budget is not None else "auto"
    if budget not in budgets:
        raise RequestError(
            400,
            "unknown_budget",
            f"budget {budget!r} is not offered here; allowed: {', '.join(budgets)}",
            param="budget",
        )
    return SearchPlan(
        budget=budgets[budget],
        candidates=request.candidates,
        top_k=request.top_k,
        filter=request.filter,
        group_by=request.group_by,
    )


def item_of(query: str | QueryFields | list[TextPart | ImagePart], limits: Limits) -> Item:
    """The query as an Item; images stay encoded and are decoded where they are encoded.

    Raises:
        RequestError: it is empty, has too many or too long parts, or an image is no base64.
    """
    parts = _parts(query)
    if not parts:
        raise _refuse("query", "it is empty: give a text, an image or both")
    if len(parts) > limits.max_parts:
        raise _refuse("query", f"{len(parts)} parts, at most {limits.max_parts}")
    for part in parts:
        if part.text is not None and len(part.text) > limits.max_text_chars:
            raise _refuse(
                "query", f"a text of {len(part.text)} characters, at most {limits.max_text_chars}"
            )
    return Item.of(*parts, id="query")


def check_vectors(request: SearchRequest, model: Mapping[str, Any], budget: str) -> None:
    """Whether given query vectors fit the served model.

    Raises:
        RequestError: a wrong count, width or norm, or no fused vector where one is needed.
    """
    vectors = request.vectors or []
    width, count = int(model["embedding_dim"]), int(model["num_query_vectors"])
    if len(vectors) != count or any(len(vector) != width for vector in vectors):
        raise _refuse("vectors", f"expected {count} vectors of {width} numbers each")
    fused_dim = model["fused_dim"] or 0
    if request.fused is not None and len(request.fused) != fused_dim:
        raise _refuse("fused", f"expected {fused_dim} numbers, {len(request.fused)} given")
    if budget == "fused" and request.fused is None:
        raise _refuse("fused", "budget 'fused' needs the fused vector: give it beside 'vectors'")
    for field, rows in (("vectors", vectors), ("fused", [request.fused or []])):
        for row in rows:
            norm = math.sqrt(sum(x * x for x in row))
            if row and abs(norm - 1) > 0.01:
                raise _refuse(field, f"a vector has norm {norm:.3g}: normalise each to 1")


def _parts(query: str | QueryFields | list[TextPart | ImagePart]) -> list[Part]:
    if isinstance(query, str):
        return [Part.of_text(query)] if query.strip() else []
    if isinstance(query, QueryFields):
        image = [_image(query.image, "query.image")] if query.image else []
        text = [Part.of_text(query.text)] if query.text and query.text.strip() else []
        return image + text
    return [
        Part.of_text(part.text)
        if isinstance(part, TextPart)
        else _image(part.image_url.url, f"query.{position}.image_url.url")
        for position, part in enumerate(query)
    ]


def _image(source: str, param: str) -> Part:
    if "://" in source[:16]:
        raise _refuse(param, "images are not fetched: send a data URI, data:image/png;base64,...")
    encoded = source
    if source.startswith("data:"):
        head, comma, encoded = source.partition(",")
        if not comma or not head.endswith(";base64"):
            raise _refuse(param, "a data URI must read data:image/png;base64,...")
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as bad:
        raise _refuse(param, f"not base64: {bad}") from bad
    if not content:
        raise _refuse(param, "the image has no bytes")
    return Part.of_image(content)


def _refuse(param: str, message: str) -> RequestError:
    return RequestError(400, "invalid_value", f"{param}: {message}", param=param)
