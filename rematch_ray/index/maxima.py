"""Scores from 8-bit planes, and maxima that are carried from budget to budget.

One number per document and query vector is kept: the best similarity so far. A larger budget then
costs only the vectors that are new to it, so that a cascade costs each survivor no more than its
last budget alone. Knows nothing of candidates, cuts or hits. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from rematch_ray.index.exact import Float32, Rows
from rematch_ray.index.generation import Generation
from rematch_ray.index.maxsim_best import best_of_planes, choose_rows, cut_at
from rematch_ray.index.maxsim_int8 import carry_maxima, mean_of_maxima, new_maxima
from rematch_ray.index.queries import Codes, Queries
from rematch_ray.index.segment import Segment
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


def best_coded(
    generation: Generation,
    queries: Queries,
    rung: Budget,
    limit: int,
    *,
    rows: Rows | None = None,
    allowed: NDArray[np.bool_] | None = None,
    slack: NDArray[np.float64] | None = None,
) -> list[tuple[Rows, Float32]]:
    """The documents of the best 8-bit scores at one rung, found without writing all the scores.

    Args:
        generation: where the documents lie.
        queries: B queries, with fused vectors for the fused rung.
        rung: a rung of the index's ladder, or the fused one.
        limit: how many are wanted.
        rows: documents to score; None takes those that are allowed.
        allowed: (all rows,) True where a document may be found; None where `rows` is given.
        slack: (B,) how far below the `limit`-th best score a document is still kept.

    Returns:
        For each query rows, in no order, and scores: all within its slack of the `limit`-th best.
    """
    codes = queries.codes_at(rung)
    query_codes = np.ascontiguousarray(codes.codes)
    query_scales = np.ascontiguousarray(codes.scales)
    if slack is None:
        slack = np.zeros(len(queries))
    parts: list[list[tuple[Rows, Float32]]] = []
    for segment, offset, local, mask in _segments_of(generation, rows, allowed):
        planes = [segment.vectors_at(k).coded for k in generation.positions(rung)]
        found = best_of_planes(
            query_codes, query_scales, planes, limit, rows=local, allowed=mask, slack=slack
        )
        parts.append(
            [
                ((places if local is None else local[places]) + offset, scores)
                for places, scores in found
            ]
        )
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(queries)
    return [_joined(own, limit, float(width)) for own, width in zip(zip(*parts), slack)]


def _segments_of(
    generation: Generation, rows: Rows | None, allowed: NDArray[np.bool_] | None
) -> Iterator[tuple[Segment, int, Rows | None, NDArray[np.bool_] | None]]:
    """Segments with their first row, and what to score of each: rows, or what a mask allows."""
    if rows is not None:
        for segment, mine, local in generation.split(rows):
            offset = 0 if mine is None else int(rows[mine[0]] - local[0])
            yield segment, offset, local, None
        return
    assert allowed is not None
    for offset, segment in zip(generation.offsets.tolist(), generation.segments):
        mask = allowed[offset : offset + segment.rows]
        yield (segment, offset, *choose_rows(mask))


def _joined(
    parts: Sequence[tuple[Rows, Float32]], limit: int, slack: float
) -> tuple[Rows, Float32]:
    rows = np.concatenate([part[0] for part in parts])
    scores = np.concatenate([part[1] for part in parts])
    kept = cut_at(scores, limit, slack)
    return rows[kept], scores[kept]


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
        kind = _Maxima if generation.device is None else _OnDevice
        self._best = kind(generation, query.codes, len(rows), r_q)
        self._read = Budget.FUSED

    def advance(self, rung: Budget) -> Float32:
        """Scores the candidates at a rung that contains those before it, (C,) float32.

        Old query vectors meet the planes that are new, new ones all of them.
        """
        assert rung.contains(self._read), (rung, self._read)
        old = self._read
        for position in self._generation.positions(rung):
            is_new = self._generation.planes[position][1] > old.r_d
            first = 0 if is_new else old.r_q
            if first < rung.r_q:
                self._best.carry(first, rung.r_q, position, self.rows)
        self._read = rung
        return self._best.scores(rung.r_q)

    def keep(self, chosen: NDArray[np.intp] | slice) -> None:
        """Goes on with some of the candidates, by position."""
        self.rows = self.rows[chosen]
        self._best.keep(chosen)


class _Maxima:
    """Maxima of one query's candidates, in memory."""

    def __init__(self, generation: Generation, codes: Codes, count: int, r_q: int) -> None:
        self._generation, self._codes = generation, codes
        self._best = new_maxima(count, r_q)

    def carry(self, first: int, stop: int, position: int, rows: Rows) -> None:
        """Raises the maxima of query vectors first..stop by a plane."""
        codes = np.ascontiguousarray(self._codes.codes[0, first:stop])
        carry(self._generation, self._best[:, first:stop], codes, position, rows)

    def scores(self, r_q: int) -> Float32:
        """Means over the first query vectors."""
        return mean_of_maxima(self._best[:, :r_q], self._codes.scales[0, :r_q], r_q)

    def keep(self, chosen: NDArray[np.intp] | slice) -> None:
        """Goes on with some of the candidates."""
        self._best = self._best[chosen]


class _OnDevice(_Maxima):
    """The same where the generation's vectors are held."""

    def __init__(self, generation: Generation, codes: Codes, count: int, r_q: int) -> None:
        from rematch_ray.index.maxsim_device import DeviceMaxima

        assert generation.device is not None
        self._generation = generation
        self._held = DeviceMaxima(
            codes.codes[0, :r_q], codes.scales[0, :r_q], count, generation.device
        )

    def carry(self, first: int, stop: int, position: int, rows: Rows) -> None:
        """Raises the maxima of query vectors first..stop by a plane."""
        for segment, mine, local in self._generation.split(rows):
            plane = segment.vectors_at(position).coded.held
            self._held.carry(first, stop, plane, local, mine)

    def scores(self, r_q: int) -> Float32:
        """Means over the first query vectors."""
        return self._held.scores(r_q)

    def keep(self, chosen: NDArray[np.intp] | slice) -> None:
        """Goes on with some of the candidates."""
        self._held.keep(chosen)


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
