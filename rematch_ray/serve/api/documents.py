"""Documents to write, to delete and as they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Body
from pydantic import AfterValidator, Field, model_validator

from rematch_ray.serve.api.base import ApiModel, Filter, PlainJson, RequestModel, Text, encodable
from rematch_ray.serve.api.bounds import Bounded
from rematch_ray.serve.api.content import DATA_URI, ContentParts, TextAndImage, item_of
from rematch_ray.serve.api.vectors import Numbers, Vectors, given_vectors
from rematch_ray.serve.backend import NewDocument, WriteResult
from rematch_ray.serve.failures import refuse
from rematch_ray.serve.settings import Limits


def _printable(name: str) -> str:
    if not name.strip() or any(letter < " " for letter in name):
        raise ValueError("an id must be printable text")
    return encodable(name)


DocumentId = Annotated[
    str, Field(min_length=1, max_length=512, examples=["doc-1"]), AfterValidator(_printable)
]


class DocumentToWrite(RequestModel):
    """A document: something to encode, or its vectors."""

    id: DocumentId = Field(description="replaces a document of this id")
    text: Text | None = Field(None, examples=["an otter on a rock"])
    image: Text | None = Field(None, description="data:image/...;base64,... or bare base64")
    content: ContentParts | None = Field(
        None, description="parts in reading order, instead of text and image"
    )
    vectors: Vectors | None = Field(
        None, description="document vectors (R, D) of unit norm, instead of something to encode"
    )
    fused: Numbers | None = Field(None, description="fused vector (F), beside vectors")
    payload: PlainJson = Field({}, description="stored beside it", examples=[{"lang": "en"}])
    source: Text = Field("api", min_length=1, max_length=256, description="where it comes from")

    @model_validator(mode="after")
    def _is_one_thing(self) -> DocumentToWrite:
        shown = {
            "text and image": self.text is not None or self.image is not None,
            "content": self.content is not None,
            "vectors": self.vectors is not None,
        }
        given = [name for name, is_given in shown.items() if is_given]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(shown)}, not {' and '.join(given) or 'none'}")
        if self.fused is not None and self.vectors is None:
            raise ValueError("'fused' accompanies 'vectors'")
        return self


class UpsertRequest(RequestModel):
    """Documents to write."""

    documents: Annotated[
        list[DocumentToWrite], Bounded("documents", "max_write_documents", least=1)
    ]


UpsertBody = Annotated[
    UpsertRequest,
    Body(
        openapi_examples={
            "text and image": {
                "value": {
                    "documents": [
                        {"id": "doc-1", "text": "an otter", "payload": {"lang": "en"}},
                        {"id": "doc-2", "text": "in snow", "image": DATA_URI, "source": "photos"},
                    ]
                }
            }
        }
    ),
]


class DeleteRequest(RequestModel):
    """Which documents to delete."""

    ids: Annotated[list[Text], Bounded("ids", "max_write_documents", least=1)] | None = Field(
        None, examples=[["doc-1"]]
    )
    filter: Filter | None = Field(
        None, description="all documents that match", examples=[{"source": "api"}]
    )

    @model_validator(mode="after")
    def _names_some(self) -> DeleteRequest:
        if (self.ids is None) == (self.filter is None):
            raise ValueError("give either 'ids' or 'filter'")
        if self.filter is not None and not self.filter:
            raise ValueError("an empty filter would match every document: name a field")
        return self


DeleteBody = Annotated[
    DeleteRequest,
    Body(
        openapi_examples={
            "by id": {"value": {"ids": ["doc-1"]}},
            "by filter": {"value": {"filter": {"source": "photos"}}},
        }
    ),
]


class WriteBody(ApiModel):
    """What a write did; it is on disk."""

    added: int
    replaced: int
    deleted: int
    unknown: int = Field(description="ids to delete that were not there")
    generation: str = Field(description="the state that holds it")
    visible_within_s: float = Field(description="seconds until searches find it")


class DocumentBody(ApiModel):
    """A stored document."""

    id: str
    payload: dict[str, Any]


def new_documents(
    request: UpsertRequest, limits: Limits, model: Mapping[str, Any]
) -> list[NewDocument]:
    """The documents of a request, checked.

    Raises:
        RequestError: an id twice, or a document that cannot be; param names it.
    """
    documents = request.documents
    places: dict[str, int] = {}
    for place, document in enumerate(documents):
        if places.setdefault(document.id, place) != place:
            raise refuse(
                f"documents.{place}.id",
                f"{document.id!r} is also the id of documents.{places[document.id]}",
            )
    return [
        _new(document, limits, model, f"documents.{place}")
        for place, document in enumerate(documents)
    ]


def _new(
    document: DocumentToWrite, limits: Limits, model: Mapping[str, Any], param: str
) -> NewDocument:
    if document.vectors is not None:
        vectors = given_vectors(
            document.vectors, document.fused, model, side="document", param=f"{param}."
        )
        if vectors.fused is None and model["fused_dim"]:
            raise refuse(f"{param}.fused", "this index holds fused vectors: give it as well")
        return NewDocument(
            document.id, vectors=vectors, payload=document.payload, source=document.source
        )
    shown = document.content or TextAndImage(text=document.text, image=document.image)
    item = item_of(shown, limits, param=param, id=document.id)
    return NewDocument(document.id, item=item, payload=document.payload, source=document.source)


def write_body(written: WriteResult) -> WriteBody:
    """The body of an answer to a write."""
    return WriteBody(
        added=written.added,
        replaced=written.replaced,
        deleted=written.deleted,
        unknown=written.unknown,
        generation=written.generation,
        visible_within_s=float(written.visible_within_s),
    )
