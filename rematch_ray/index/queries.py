"""Query vectors checked against an index, rounded for exact scoring and coded for 8-bit scoring.

Takes anything that has `vectors` and `fused`, tensors or arrays. Knows nothing of models, budgets
or candidates. Middle floor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.index import maxsim_library, maxsim_native
from rematch_ray.index.exact import Float32, Float64, to_grid
from rematch_ray.index.quantisation import norms, quantise, residual_norms
from rematch_ray.scoring.budget import Budget

_NORM_TOLERANCE = 1e-2
# up to here float32 adds squares of codes without rounding, in any order: 1040 * 127**2 < 2**24
_EXACT_DIM = 1040


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
    """Query vectors on the grid and as 8-bit codes, and how far those are from the vectors.

    Args:
        vectors: (B, R, D) float64 on the grid of `to_grid`.
        codes: (B, R, D) int8.
        scales: (B, R) float32: vector = scale * codes, nearly.
        errors: (B, R) float32 distance of each vector from that, never too small.
        norms: (B, R) float32 length of each vector, never too small.
    """

    vectors: Float64
    codes: NDArray[np.int8]
    scales: Float32
    errors: Float32
    norms: Float32

    @classmethod
    def of(cls, vectors_BRD: NDArray[np.float32]) -> Codes:
        """Rounds and codes vectors; of one that is not finite only the norm is of use."""
        if maxsim_library.is_built() and vectors_BRD.shape[2] <= _EXACT_DIM:
            return cls(*maxsim_native.code(vectors_BRD))
        with np.errstate(invalid="ignore"):
            grid = to_grid(vectors_BRD)
            codes, scales = quantise(grid)
            errors = residual_norms(grid, codes, scales)
            return cls(grid, codes, scales, errors, norms(grid))

    def part(self, rows: slice, vectors: slice) -> Codes:
        """Some queries' first vectors."""
        some = (rows, vectors)
        return Codes(
            self.vectors[some],
            self.codes[some],
            self.scales[some],
            self.errors[some],
            self.norms[some],
        )


@dataclass(frozen=True)
class Queries:
    """Checked queries.

    Args:
        codes: of their vectors, (B, R, D).
        fused_codes: of their fused vectors, as one vector each (B, 1, F), or None.
    """

    codes: Codes
    fused_codes: Codes | None

    @property
    def vectors(self) -> Float64:
        """(B, R, D) float64 on the grid of `to_grid`."""
        return self.codes.vectors

    @property
    def fused(self) -> Float64 | None:
        """(B, F) float64 likewise, or None."""
        return None if self.fused_codes is None else self.fused_codes.vectors[:, 0]

    def __len__(self) -> int:
        return len(self.codes.codes)

    def __getitem__(self, rows: slice) -> Queries:
        every = slice(None)
        return Queries(
            self.codes.part(rows, every),
            None if self.fused_codes is None else self.fused_codes.part(rows, every),
        )

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
        codes = Codes.of(vectors[:, :num_vectors])
        _check_unit(codes)
        if query.fused is None or fused_dim is None:
            return cls(codes, None)
        fused = _as_array(query.fused)
        if fused.shape != (len(vectors), fused_dim):
            raise UserError(
                f"fused query vectors of shape {fused.shape} do not fit this index: it needs "
                f"({len(vectors)}, {fused_dim}); use the model that embedded the documents"
            )
        fused_codes = Codes.of(fused[:, None])
        _check_unit(fused_codes)
        return cls(codes, fused_codes)


def _as_array(vectors: Any) -> NDArray[np.float32]:
    if hasattr(vectors, "detach"):
        vectors = vectors.detach().cpu().float().numpy()
    return np.asarray(vectors, dtype=np.float32)


def _check_unit(codes: Codes) -> None:
    right = np.abs(codes.norms - 1.0) <= _NORM_TOLERANCE  # not a number is not right
    if not right.all():
        query, vector = np.argwhere(~right)[0]
        raise UserError(
            f"vector {vector} of query {query} has norm {codes.norms[query, vector]:.4g}: "
            "query vectors must be finite and of unit norm"
        )
