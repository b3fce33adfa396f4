"""What the HTTP routes need from whatever encodes and searches, as a protocol.

`serve.app` implements it with Ray Serve handles; tests implement it with a few lines. Knows no
HTTP and no Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rematch_ray.data.item import Item
    from rematch_ray.index.search import SearchResult


class NotReadyError(RuntimeError):
    """The encoder or the index does not answer yet; the message says which."""


class OverloadedError(RuntimeError):
    """A queue is full; the request may be sent again after a moment."""


@dataclass(frozen=True)
class EncodedQuery:
    """One query as vectors: what `SearchIndex.search` takes.

    Arrays, not tensors: whoever unpacks one needs no torch.

    Attributes:
        vectors: (1, R, D) float32, unit norm.
        fused: (1, F) float32, unit norm; None when the model has none.
        instruction: the instruction that was used; "" for none.
    """

    vectors: NDArray[np.float32]
    fused: NDArray[np.float32] | None
    instruction: str = ""


@dataclass(frozen=True)
class SearchPlan:
    """How documents are chosen and scored; the arguments of `SearchIndex.search`."""

    budget: str | None = None
    candidates: int | Literal["auto", "all"] = "auto"
    top_k: int = 10
    filter: Mapping[str, Any] | None = None
    group_by: str | None = None


@dataclass(frozen=True)
class ServedIndex:
    """Facts of the served pair of model and index, as of one generation.

    Attributes:
        index: what `SearchIndex.info` says: documents, generation, bytes, ...
        model: `ModelIdentity` as JSON: name, digest, ladder, numbers and widths of vectors.
        budgets: every budget a request may name -> the rung it stands for.
        instruction: the default instruction of queries.
    """

    index: Mapping[str, Any]
    model: Mapping[str, Any]
    budgets: Mapping[str, str]
    instruction: str


class Backend(Protocol):
    """An encoder and an index, however they are placed."""

    async def encode(self, query: Item, instruction: str | None) -> EncodedQuery:
        """Turn one query into vectors; UserError when the query cannot be encoded."""
        ...

    async def search(self, query: EncodedQuery, plan: SearchPlan) -> SearchResult:
        """Search with one query; UserError when the plan does not fit the index."""
        ...

    async def payload(self, document_id: str) -> Mapping[str, Any] | None:
        """The payload of a document, or None when there is no such document."""
        ...

    async def served(self) -> ServedIndex:
        """Facts of the model and the index; NotReadyError until both answer."""
        ...

    async def ready(self) -> None:
        """Return when encoder and index answer now; NotReadyError names the one that does not."""
        ...

    async def metrics(self) -> str:
        """Metrics of the whole service in Prometheus text format."""
        ...
