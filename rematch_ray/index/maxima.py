"""Scores from 8-bit planes, and maxima that are carried from budget to budget.

One number per document and query vector is kept: the best similarity so far. A larger budget then
costs only the vectors that are new to it, so that a cascade costs each survivor no more than its
last budget alone. Knows nothing of candidates, cuts or hits. Middle floor.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rematch_ray.index.exact import Float32, Rows
from rematch_ray.index.generation import Generation
from rematch_ray.index.maxsim_int8 import carry_maxima, mean_of_maxima, new_maxima
from rematch_ray.index.queries import Codes, Queries
from rematch_ray.scoring.budget import Budget

# maxima of one pass: 2**18 float32 are 1 MiB, which stays in a core's cache; a pass over fewer
# documents than the second number costs more to call than to do
_BLOCK_MAXIMA, _LEAST_DOCUMENTS = 1 << 18, 4096
# below this it is not worth asking whether documents lie side by side
_FEW_ROWS = 256


def coded_scores(generation: Generation, queries: Queries, rows: Rows, rung: Budget) -> Float32:
    """8-bit scores of every query against some documents at one rung.

    Args:
        generation: where the documents lie.
        queries: B queries, with fused vectors for the fused rung.
        rows: (C,) documents, ascending.
        rung: a rung of the index's ladder, or the fused one.

    Returns:
        (B, C) float32, the same whatever the queries beside them.
    """
    codes = queries.codes_at(rung)
    num_queries, r_q, dim = codes.codes.shape
    flat_codes = np.ascontiguousarray(codes.codes).reshape(num_queries * r_q, dim)
    scores = np.empty((num_queries, len(rows)), np.float32)
    step = max(_LEAST_DOCUMENTS, _BLOCK_MAXIMA // (num_queries * r_q))
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        best = new_maxima(len(rows[block]), num_queries * r_q)
        for position in generation.positions(rung):
            carry(generation, best, flat_codes, position, rows[block])
        for query in range(num_queries):
            mine = best[:, query * r_q : (query + 1) * r_q]
            scores[query, block] = mean_of_maxima(mine, codes.scales[query], r_q)
    return scores


class CarriedMaxima:
    """One query's candidates, and what the budgets so far have found of them.

    Args:
        generation: where the documents lie.
        query: one query.
        rows: (C,) documents.
        r_q: the most query vectors that will take part.
    """

    def __init__(self, generation: Generation, query: Queries, rows: Rows, r_q: int) -> None:
        assert len(query) == 1
        self.rows = rows
        self._generation = generation
        self._codes: Codes = query.codes
        self._best = new_maxima(len(rows), r_q)
        self._read = Budget.FUSED

    def advance(self, rung: Budget) -> Float32:
        """Scores the candidates at a rung that contains those before it, (C,) float32.

        Old query vectors meet the planes that are new, new ones all of them.
        """
        assert rung.contains(self._read), (rung, self._read)
        old, codes = self._read, self._codes.codes[0]
        for position in self._generation.positions(rung):
            is_new = self._generation.planes[position][1] > old.r_d
            first = 0 if is_new else old.r_q
            if first < rung.r_q:
                best = self._best[:, first : rung.r_q]
                part = np.ascontiguousarray(codes[first : rung.r_q])
                carry(self._generation, best, part, position, self.rows)
        self._read = rung
        return mean_of_maxima(
            self._best[:, : rung.r_q], self._codes.scales[0, : rung.r_q], rung.r_q
        )

    def keep(self, chosen: NDArray[np.intp]) -> None:
        """Goes on with some of the candidates, by position."""
        self.rows = self.rows[chosen]
        self._best = self._best[chosen]


def carry(
    generation: Generation,
    best_CR: Float32,
    codes_RD: NDArray[np.int8],
    position: int,
    rows: Rows,
) -> None:
    """Raises maxima by one plane of a generation, in place.

    Args:
        generation: where the documents lie.
        best_CR: (C, R) float32 maxima; rows may be strided.
        codes_RD: (R, D) query codes.
        position: plane, or `FUSED_POSITION`.
        rows: (C,) documents.
    """
    for segment, mine, local in generation.split(rows):
        plane = segment.vectors_at(position)
        part = best_CR if mine is None else best_CR[mine]
        if _are_neighbours(local):
            run = slice(int(local[0]), int(local[-1]) + 1)
            carry_maxima(part, codes_RD, plane.codes[run], plane.scales[run])
        else:
            carry_maxima(part, codes_RD, plane.codes, plane.scales, local)
        if mine is not None:
            best_CR[mine] = part


def _are_neighbours(rows: Rows) -> bool:
    """Whether documents lie side by side, in order: they are read faster without a list of them."""
    if len(rows) < _FEW_ROWS or rows[-1] - rows[0] != len(rows) - 1:
        return False
    return bool((np.diff(rows) == 1).all())
