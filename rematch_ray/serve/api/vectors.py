"""Vectors that a caller computed itself, checked against the served model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np

from rematch_ray.serve.api.bounds import Bounded
from rematch_ray.serve.backend import EncodedQuery, Side
from rematch_ray.serve.failures import refuse

# beyond those of any model: how many there must be is told where the model is known
Numbers = Annotated[list[float], Bounded("numbers", 65_536)]
Vectors = Annotated[list[Numbers], Bounded("vectors", 4096)]

_NORM_TOLERANCE = 0.01
_COUNT_KEYS = {"query": "num_query_vectors", "document": "num_document_vectors"}


def given_vectors(
    vectors: Sequence[Sequence[float]],
    fused: Sequence[float] | None,
    model: Mapping[str, Any],
    *,
    side: Side = "query",
    param: str = "",
) -> EncodedQuery:
    """Vectors (R, D), and perhaps a fused one (F), as an encoder would have made them.

    Args:
        vectors: of one item.
        fused: of the same item, or None.
        model: identity of the served model.
        side: of the item.
        param: what the fields' names start with in messages.

    Raises:
        RequestError: a wrong count, width or norm.
    """
    width, count = int(model["embedding_dim"]), num_vectors(model, side)
    if len(vectors) != count or any(len(vector) != width for vector in vectors):
        raise refuse(f"{param}vectors", f"expected {count} vectors of {width} numbers each")
    fused_dim = model["fused_dim"] or 0
    if fused is not None and len(fused) != fused_dim:
        raise refuse(f"{param}fused", f"expected {fused_dim} numbers, {len(fused)} given")
    _check_unit(vectors, f"{param}vectors")
    _check_unit([] if fused is None else [fused], f"{param}fused")
    return EncodedQuery(
        vectors=np.array([vectors], dtype=np.float32),
        fused=None if fused is None else np.array([fused], dtype=np.float32),
    )


def num_vectors(model: Mapping[str, Any], side: Side) -> int:
    """Vectors of an item of one side."""
    return int(model[_COUNT_KEYS[side]])


def _check_unit(vectors: Sequence[Sequence[float]], param: str) -> None:
    for vector in vectors:
        norm = math.hypot(*vector)
        if not abs(norm - 1) <= _NORM_TOLERANCE:
            raise refuse(param, f"a vector has norm {norm:.3g}: normalise each to 1")
