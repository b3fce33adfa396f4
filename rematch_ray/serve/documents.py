"""New documents as rows of an index, checked one by one: a bad one is named and fails alone.

Knows what the documents of an index are like, nothing of requests, locks or Ray.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.index.payload import plain_payload
from rematch_ray.index.payload_types import field_types, join_types
from rematch_ray.index.shard_columns import check_unit_vectors
from rematch_ray.index.sharding.opened import open_generation
from rematch_ray.index.shards import EmbeddingBatch
from rematch_ray.index.sources import GivenRows
from rematch_ray.scoring.budget import Ladder
from rematch_ray.serve.backend import EncodedQuery, NewDocument
from rematch_ray.serve.pair import refuse_other_model

MOST_ID_CHARACTERS = 512


@dataclass(frozen=True)
class DocumentForm:
    """What the documents of an index are like.

    Attributes:
        generation: the state that this was read from.
        segments: that the state is made of.
        identity: of the model that embedded the documents.
        instruction: that they were embedded with.
        num_vectors: R that the index stores.
        dim: D.
        fused_dim: F, or None.
        fields: payload fields and their types.
    """

    generation: str
    segments: int
    identity: Mapping[str, Any]
    instruction: str | None
    num_vectors: int
    dim: int
    fused_dim: int | None
    fields: Mapping[str, str]

    @classmethod
    def of(cls, index: Path) -> DocumentForm:
        """Reads the published state of an index.

        Raises:
            UserError: not an index, or a damaged one.
        """
        generation = open_generation(index)
        manifest = generation.manifest
        return cls(
            generation=generation.name,
            segments=len(manifest.segments),
            identity=manifest.identity,
            instruction=manifest.instruction,
            num_vectors=Ladder.parse(manifest.ladder).num_document_vectors,
            dim=manifest.dim,
            fused_dim=manifest.fused_dim,
            fields=generation.fields(),
        )


@dataclass(frozen=True)
class ReadyDocument:
    """A document that can be stored.

    Attributes:
        id: of the document.
        vectors: (R, D) float16, unit norm.
        fused: (F,) float16, unit norm, or None.
        payload: in JSON's types.
        source: where it comes from.
        fields: types of the payload's fields.
    """

    id: str
    vectors: NDArray[np.float16]
    fused: NDArray[np.float16] | None
    payload: Mapping[str, Any]
    source: str
    fields: Mapping[str, str]


def check_ids(ids: Iterable[str]) -> None:
    """Refuses ids that cannot be stored, or occur twice in one request.

    Raises:
        UserError: names the first such id.
    """
    seen = set()
    for name in ids:
        if not name:
            raise UserError("a document has an empty id: give each document an id of its own")
        if len(name) > MOST_ID_CHARACTERS or not _is_text(name):
            raise UserError(
                f"document id {name[:40]!a} cannot be stored: an id is a text of at most "
                f"{MOST_ID_CHARACTERS} characters, without halves of surrogate pairs"
            )
        if name in seen:
            raise UserError(f"id '{name}' occurs twice in one request: give each document once")
        seen.add(name)


def check_documents(documents: Sequence[NewDocument], form: DocumentForm) -> None:
    """Refuses what can be told before anything is encoded.

    Raises:
        UserError: names the first document that cannot be written.
    """
    check_ids(document.id for document in documents)
    for document in documents:
        if (document.item is None) == (document.vectors is None):
            raise UserError(f"document '{document.id}': give either its content or its vectors")
        field_types(plain_payload(document.payload, document.id), document.id)
        if not _is_text(document.source):
            raise UserError(f"document '{document.id}': its source is no text")
        if document.vectors is not None:
            _check_vectors(document.id, document.vectors, form)


def make_ready(document: NewDocument, encoded: EncodedQuery, form: DocumentForm) -> ReadyDocument:
    """A document with its vectors, as it is stored.

    Args:
        document: has passed `check_documents`.
        encoded: its vectors, given or computed.
        form: of the index.

    Raises:
        UserError: vectors of another shape, or not of unit norm; names the document.
        NotReadyError: they were encoded here by another model than that of the index.
    """
    refuse_other_model(encoded.model, form.identity)
    _check_vectors(document.id, encoded, form)
    payload = plain_payload(document.payload, document.id)
    fused = None
    if form.fused_dim is not None and encoded.fused is not None:
        fused = encoded.fused[0].astype(np.float16)
    return ReadyDocument(
        id=document.id,
        vectors=encoded.vectors[0, : form.num_vectors].astype(np.float16),
        fused=fused,
        payload=payload,
        source=document.source,
        fields=field_types(payload, document.id),
    )


def rows_of(documents: Sequence[ReadyDocument], form: DocumentForm) -> GivenRows:
    """Documents as rows of an index.

    Args:
        documents: at least one, each id once.
        form: of the index; its identity must be that of the model that made the vectors.
    """
    fused = [document.fused for document in documents if document.fused is not None]
    fields = join_types(document.fields for document in documents)
    batch = EmbeddingBatch(
        ids=[document.id for document in documents],
        vectors=np.stack([document.vectors for document in documents]),
        fused=np.stack(fused) if fused else None,
        sources=[document.source for document in documents],
        payloads=[dict(document.payload) for document in documents],
    )
    return GivenRows(batch, form.identity, form.instruction, fields)


def _check_vectors(name: str, encoded: EncodedQuery, form: DocumentForm) -> None:
    shape = encoded.vectors.shape
    if len(shape) != 3 or shape[0] != 1 or shape[1] < form.num_vectors or shape[2] != form.dim:
        raise UserError(
            f"document '{name}': its vectors are {_shape(shape[1:])}, the index takes "
            f"{_shape((form.num_vectors, form.dim))}"
        )
    check_unit_vectors(encoded.vectors, [name], "the documents given")
    if form.fused_dim is None:
        return
    given = None if encoded.fused is None else encoded.fused.shape
    if given != (1, form.fused_dim):
        held = "it has none" if given is None else f"it has {_shape(given[1:])}"
        raise UserError(
            f"document '{name}': the index takes a fused vector of {form.fused_dim} numbers, {held}"
        )
    assert encoded.fused is not None
    check_unit_vectors(encoded.fused[:, None], [name], "the documents given (fused)")


def _shape(sizes: Iterable[int]) -> str:
    return " x ".join(map(str, sizes))


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
