"""Rerank in the shape of Cohere's and Jina's interfaces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import Body
from pydantic import Field

from rematch_ray.data.item import Item
from rematch_ray.serve.api.base import ApiModel, RequestModel, Text
from rematch_ray.serve.api.bounds import Bounded
from rematch_ray.serve.api.content import (
    DATA_URI,
    Content,
    TextAndImage,
    check_instruction,
    item_of,
)
from rematch_ray.serve.failures import refuse
from rematch_ray.serve.settings import Limits

MAXSIM, HEAD = "rematch-maxsim", "rematch-match-head"


class RerankRequest(RequestModel):
    """A query and the documents to order by it."""

    model: Text = Field(
        description=f"{MAXSIM} (or the served model's name): similarity; {HEAD}: the model's own "
        "answer whether a document matches",
        examples=[MAXSIM],
    )
    query: Content = Field(description="what the documents are ordered by")
    documents: Annotated[list[Content], Bounded("documents", "max_rerank_documents", least=1)] = (
        Field(
            description="texts, {text}, {image} or both",
            examples=[["an otter", {"text": "a red bar"}]],
        )
    )
    top_n: int | None = Field(None, ge=1, description="documents returned; default: all")
    return_documents: bool = Field(False, description="whether results repeat their document")
    max_tokens_per_doc: int | None = Field(
        None, ge=1, description="accepted where no document can be longer: nothing is cut here"
    )
    instruction: Text | None = Field(
        None, description="of the query; default: the model's; '' for none"
    )
    priority: int | None = Field(None, description="of Cohere's clients; has no effect here")


RerankBody = Annotated[
    RerankRequest,
    Body(
        openapi_examples={
            "texts": {
                "value": {
                    "model": MAXSIM,
                    "query": "an otter",
                    "documents": ["otters", "a bar"],
                    "top_n": 1,
                }
            },
            "by the matching head": {
                "value": {
                    "model": HEAD,
                    "query": "an otter",
                    "documents": [{"text": "otters"}, {"image": DATA_URI}],
                    "return_documents": True,
                }
            },
        }
    ),
]


class RerankedBody(ApiModel):
    """One document of the answer."""

    index: int = Field(description="its place among the documents sent")
    relevance_score: float = Field(ge=0, le=1)
    document: TextAndImage | None = None


class ApiVersion(ApiModel):
    """What Cohere's clients look for."""

    version: str


class BilledUnits(ApiModel):
    """What Cohere's clients look for."""

    search_units: int


class RerankMeta(ApiModel):
    """What Cohere's clients look for."""

    api_version: ApiVersion
    billed_units: BilledUnits


class RerankUsage(ApiModel):
    """What Jina's clients look for."""

    prompt_tokens: int
    total_tokens: int


class RerankResponse(ApiModel):
    """The documents, most relevant first."""

    id: str
    model: str
    results: list[RerankedBody]
    meta: RerankMeta
    usage: RerankUsage


def items_to_rerank(request: RerankRequest, limits: Limits) -> tuple[Item, list[Item]]:
    """The query and the documents, checked.

    Raises:
        RequestError: one is empty or too long, or would have to be cut; or the instruction is too
            long.
    """
    check_instruction(request.instruction, limits)
    query = item_of(request.query, limits, param="query")
    documents = [
        item_of(document, limits, param=f"documents.{place}", id=f"document {place}")
        for place, document in enumerate(request.documents)
    ]
    if request.max_tokens_per_doc is not None:
        _check_uncut(documents, request.max_tokens_per_doc)
    return query, documents


def _check_uncut(documents: Sequence[Item], max_tokens: int) -> None:
    # a token is at least one byte: within so many bytes there is nothing to cut
    longest = max(len(document.text.encode()) for document in documents)
    if longest > max_tokens:
        raise refuse(
            "max_tokens_per_doc",
            f"documents are not cut here, and one of {longest} bytes may exceed {max_tokens} "
            "tokens: leave it out, or cut the documents yourself",
        )


def repeated(content: Content) -> TextAndImage:
    """A document as the answer repeats it: texts joined, the first image."""
    if isinstance(content, str):
        return TextAndImage(text=content)
    if isinstance(content, TextAndImage):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = [part.text for part in parts if part.type == "text"]
    images = [part.image_url.url for part in parts if part.type == "image_url"]
    return TextAndImage(
        text=" ".join(texts) if texts else None, image=images[0] if images else None
    )
