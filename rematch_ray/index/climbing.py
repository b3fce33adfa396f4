"""Candidates of one query through the growing budgets of a plan, the best of each going on.

Where the documents lie in one segment the compiled kernel does it in one call; else, and on a
device, maxima are carried plane by plane. Both give the same documents and scores, to the last bit.
Knows no coarse stage, no plans and no hits. Middle floor.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rematch_ray.index import maxsim_library, maxsim_native
from rematch_ray.index.exact import Float32, Rows
from rematch_ray.index.generation import Generation
from rematch_ray.index.maxima import CarriedMaxima
from rematch_ray.index.maxsim_int8 import path_in_use
from rematch_ray.index.queries import Queries
from rematch_ray.index.stages import keep_best
from rematch_ray.scoring.budget import Budget


@dataclass(frozen=True)
class Climbed:
    """What is left at the last budget.

    Attributes:
        rows: (C,) documents, in the order in which they were given.
        scores: (C,) float32 8-bit scores at the last budget.
        entered: documents that came to each budget.
        ms: milliseconds that each took.
    """

    rows: Rows
    scores: Float32
    entered: Sequence[int]
    ms: Sequence[float]


def climb(
    generation: Generation,
    query: Queries,
    rows: Rows,
    narrowing: Sequence[tuple[Budget, int]],
    last: Budget,
) -> Climbed:
    """Takes documents through growing budgets.

    Args:
        generation: where the documents lie.
        query: one query.
        rows: (C,) documents, none twice.
        narrowing: rungs below `last`, each containing the one before it, and how many documents go
            on; of equal scores those of the smaller keys.
        last: the final rung, not the fused one; all that reach it are scored.
    """
    assert len(query) == 1 and not last.is_fused
    path = path_in_use()
    is_one = len(generation.segments) == 1 and generation.device is None
    if is_one and path in maxsim_library.compiled_paths():
        return _in_one_call(path, generation, query, rows, narrowing, last)
    return _by_carrying(generation, query, rows, narrowing, last)


def _in_one_call(
    path: str,
    generation: Generation,
    query: Queries,
    rows: Rows,
    narrowing: Sequence[tuple[Budget, int]],
    last: Budget,
) -> Climbed:
    [segment] = generation.segments
    steps = [*narrowing, (last, 0)]
    codes = query.codes_at(last)
    return Climbed(
        *maxsim_native.climb(
            path,
            np.ascontiguousarray(codes.codes[0]),
            np.ascontiguousarray(codes.scales[0]),
            [segment.vectors_at(k).coded for k in generation.positions(last)],
            [(rung.r_q, len(generation.positions(rung)), keep) for rung, keep in steps],
            generation.keys,
            rows,
        )
    )


def _by_carrying(
    generation: Generation,
    query: Queries,
    rows: Rows,
    narrowing: Sequence[tuple[Budget, int]],
    last: Budget,
) -> Climbed:
    entered, ms = [], []
    carried = CarriedMaxima(generation, query, rows, last.r_q)
    for rung, keep in [*narrowing, (last, len(rows))]:
        started = time.perf_counter()
        entered.append(len(carried.rows))
        scores = carried.advance(rung)
        kept = keep_best(scores, carried.rows, generation.keys, keep)
        carried.keep(kept)
        ms.append((time.perf_counter() - started) * 1000)
    return Climbed(carried.rows, scores[kept], entered, ms)
