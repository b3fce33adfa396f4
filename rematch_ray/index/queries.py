"""Query vectors checked against an index, rounded for exact scoring and coded for 8-bit scoring.

Takes anything that has `vectors` and `fused`, tensors or arrays. Knows nothing of models, budgets
or candidates. Middle floor.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.index.exact import Float32, Float64, to_grid
from rematch_ray.index.quantisation import norms, quantise, residual_norms
from rematch_ray.scoring.budget import Budget

_NORM_TOLERANCE = 1e-2


class QueryVectors(Protocol):
    """What a search reads of its queries; `Embeddings` has it."""

    @property
    def vectors(self) -> Any:
        """(B, R, D), unit norm."""

    @property
    def fused(self) -> Any:
        """(B, F), unit norm, or None."""


@dataclass(frozen=True)
class Codes:
    """Query vectors as 8-bit codes, and how far those are from the vectors.

    Args:
        codes: (B, R, D) int8.
        scales: (B, R) float32: vector = scale * codes, nearly.
        errors: (B, R) float32 distance of each vector from that, never too small.
        norms: (B, R) float32 length of each vector, never too small.
    """

    codes: NDArray[np.int8]
    scales: Float32
    errors: Float32
    norms: Float32

    @classmethod
    def of(cls, vectors_BRD: Float64) -> Codes:
        """Codes of vectors on the grid."""
        codes, scales = quantise(vectors_BRD)
        errors = residual_norms(vectors_BRD, codes, scales)
        return cls(codes, scales, errors, norms(vectors_BRD))

    def part(self, rows: slice, vectors: slice) -> Codes:
        """Some queries' first vectors."""
        some = (rows, vectors)
        return Codes(self.codes[some], self.scales[some], self.errors[some], self.norms[some])


@dataclass(frozen=True)
class Queries:
    """Checked queries.

    Args:
        vectors: (B, R, D) float64 on the grid of `to_grid`.
        fused: (B, F) likewise, or None.
    """

    vectors: Float64
    fused: Float64 | None

    @cached_property
    def codes(self) -> Codes:
        """Of `vectors`, made when first asked for."""
        return Codes.of(self.vectors)

    @cached_property
    def fused_codes(self) -> Codes | None:
        """Of `fused`, as one vector each, or None."""
        return None if self.fused is None else Codes.of(self.fused[:, None])

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, rows: slice) -> Queries:
        some = Queries(self.vectors[rows], None if self.fused is None else self.fused[rows])
        for name in ("codes", "fused_codes"):
            # what a batch has coded is not coded again for each of its queries
            if (coded := self.__dict__.get(name)) is not None:
                some.__dict__[name] = coded.part(rows, slice(None))
        return some

    def codes_at(self, rung: Budget) -> Codes:
        """Codes of the vectors that take part at a rung, (B, r_q, D), or (B, 1, F) when fused.

        Raises:
            UserError: the fused rung, and the queries have no fused vectors.
        """
        if not rung.is_fused:
            return self.codes.part(slice(None), slice(rung.r_q))
        if self.fused_codes is None:
            raise UserError(
                "budget 'fused' needs fused query vectors, and there are none: name a rung such as "
                "1x1"
            )
        return self.fused_codes

    @classmethod
    def check(
        cls, query: QueryVectors, *, num_vectors: int, dim: int, fused_dim: int | None
    ) -> Queries:
        """Reads and checks query vectors.

        Args:
            query: B queries.
            num_vectors: vectors that the index's ladder needs.
            dim: D of the index.
            fused_dim: F of the index, or None.

        Raises:
            UserError: a dimension, count or norm does not fit, or a value is not a number.
        """
        vectors = _as_array(query.vectors)
        if vectors.ndim != 3 or vectors.shape[2] != dim or vectors.shape[1] < num_vectors:
            raise UserError(
                f"query vectors of shape {vectors.shape} do not fit this index: it needs (queries, "
                f"at least {num_vectors}, {dim}); use the model that embedded the documents"
            )
        _check_unit(vectors)
        if query.fused is None or fused_dim is None:
            fused_grid = None
        else:
            fused = _as_array(query.fused)
            if fused.shape != (len(vectors), fused_dim):
                raise UserError(
                    f"fused query vectors of shape {fused.shape} do not fit this index: it needs "
                    f"({len(vectors)}, {fused_dim}); use the model that embedded the documents"
                )
            _check_unit(fused[:, None])
            fused_grid = to_grid(fused)
        return cls(to_grid(vectors[:, :num_vectors]), fused_grid)


def _as_array(vectors: Any) -> NDArray[np.float32]:
    if hasattr(vectors, "detach"):
        vectors = vectors.detach().cpu().float().numpy()
    return np.asarray(vectors, dtype=np.float32)


def _check_unit(vectors_BRD: NDArray[np.float32]) -> None:
    norms = np.sqrt(np.einsum("brd,brd->br", vectors_BRD, vectors_BRD))
    wrong = ~(np.abs(norms - 1.0) <= _NORM_TOLERANCE)
    if wrong.any():
        query, vector = np.argwhere(wrong)[0]
        raise UserError(
            f"vector {vector} of query {query} has norm {norms[query, vector]:.4g}: "
            "query vectors must be finite and of unit norm"
        )
