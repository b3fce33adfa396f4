"""The examination of an index: exhaustive truth, and what every plan finds of it in which time.

Searches as anybody would, by an explicit plan, so that what is measured is what will run. Gives
numbers per query; knows nothing of intervals, judgements or what is made of the numbers. Middle
floor.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.index.calibration import Timing
from rematch_ray.index.coarse.keys import CHOICE_KEYS
from rematch_ray.index.exact import Float32, order_best
from rematch_ray.index.payload import document_key
from rematch_ray.index.plan import Plan
from rematch_ray.index.queries import QueryVectors
from rematch_ray.index.score_blocks import HELD_SCORES, rows_of, score_blocks
from rematch_ray.index.search import SearchIndex, SearchResult

TIMED_QUERIES = 50
# a plan is timed no longer than this once it was timed three times
TIMED_S = 5.0
_LEAST_TIMED = 3
_SEARCHED_AT_ONCE = 64

Float64 = NDArray[np.float64]
Seen = Callable[[slice, Mapping[str, Float32]], None]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Truth:
    """The best documents of every query by exhaustive search.

    Args:
        best: rung -> ids of each query's best documents, best first, all equally many.
        scores: (B, depth) float32 scores of the best at the full budget.
    """

    best: Mapping[str, list[list[str]]]
    scores: Float32


@dataclass(frozen=True)
class Trial:
    """What one plan found.

    Args:
        plan: the plan, its coarse choice named.
        recall: cut-off -> (B,) share of the full budget's best that was found.
        own: (B,) share of its own budget's best at the first cut-off asked.
        dot_products: of one query.
        ms: of a whole search.
        stages: time of each stage, by name.
        is_truth: whether it is what the truth of its own budget was found by.
    """

    plan: Plan
    recall: Mapping[int, Float64]
    own: Float64
    dot_products: int
    ms: Timing
    stages: Mapping[str, Timing]
    is_truth: bool = False


def find_truth(
    index: SearchIndex,
    query: QueryVectors,
    *,
    depth: int,
    seen: Seen | None = None,
    progress: Progress = lambda line: None,
    held_scores: int = HELD_SCORES,
) -> Truth:
    """Scores every document for every query at every rung, a block of queries at a time.

    Args:
        index: what is examined.
        query: B queries.
        depth: best documents kept of each; at most all.
        seen: is given every block and its scores, rung -> (b, documents).
        progress: told how far it is.
        held_scores: scores of a block at most; at least one query is a block.
    """
    ids = index.ids()
    keys = np.array([document_key(name) for name in ids], np.uint64)
    depth, count = min(depth, len(ids)), len(query.vectors)
    best: dict[str, list[list[str]]] = defaultdict(list)
    top_scores: list[Float32] = []
    for block, scores in score_blocks(index, query, len(ids), held_scores=held_scores):
        for rung, score_bC in scores.items():
            for score in score_bC:
                order = order_best(score, keys, depth)
                best[rung].append([ids[place] for place in order])
                if rung == str(index.ladder.top):
                    top_scores.append(score[order])
        if seen is not None:
            seen(block, scores)
        progress(f"truth: {block.stop} of {count} queries")
    return Truth(dict(best), np.stack(top_scores))


def try_plan(
    index: SearchIndex,
    query: QueryVectors,
    truth: Truth,
    plan: Plan,
    *,
    ks: Sequence[int],
    coarse_dot_products: Mapping[str, int],
    timed_queries: int = TIMED_QUERIES,
) -> Trial:
    """Measures what one plan finds and how long it takes.

    Args:
        index: what is examined.
        query: B queries.
        truth: of these queries.
        plan: the stages.
        ks: cut-offs; the first one is what hits are asked for and what `own` is measured at.
        coarse_dot_products: of each coarse list, as `SearchIndex.info` gives them.
        timed_queries: queries searched one by one for the time.
    """
    depth = len(truth.scores[0])
    # without originals hits are ranked by 8-bit scores, and the truth is not
    is_truth = plan.is_exhaustive and index.keeps_originals
    if is_truth:
        found = truth.best[str(plan.budget)]
    else:
        # a plan gives no more hits than it keeps, hence fewer for the largest cut-offs
        found = _found(index, query, plan, min(depth, plan.kept or depth))
    full = truth.best[str(index.ladder.top)]
    own = truth.best[str(plan.budget)]
    ms, stages = time_plan(index, query, plan, top_k=ks[0], limit=timed_queries)
    # a choice that is no list's key asks them all
    read = CHOICE_KEYS.get(plan.coarse or "", ())
    coarse = sum(coarse_dot_products[key] for key in read)
    return Trial(
        plan=plan,
        recall={k: recall_of(found, full, k) for k in ks},
        own=recall_of(found, own, ks[0]),
        dot_products=plan.dot_products(len(index), coarse=coarse),
        ms=ms,
        stages=stages,
        is_truth=is_truth,
    )


def recall_of(found: Sequence[Sequence[str]], right: Sequence[Sequence[str]], k: int) -> Float64:
    """Share of each query's first k right documents among its first k found ones, (B,).

    >>> recall_of([["a", "b", "c"]], [["a", "c", "d"]], 2).tolist()
    [0.5]
    """
    shares = [len(set(f[:k]) & set(r[:k])) / len(r[:k]) for f, r in zip(found, right, strict=True)]
    return np.array(shares, np.float64)


def time_plan(
    index: SearchIndex, query: QueryVectors, plan: Plan, *, top_k: int, limit: int
) -> tuple[Timing, dict[str, Timing]]:
    """Wall clock of single searches and of each of their stages, after one that warms up."""
    spent: list[float] = []
    stages: dict[str, list[float]] = defaultdict(list)
    began = time.perf_counter()
    for row in [0, *range(min(limit, len(query.vectors)))]:
        single = rows_of(query, slice(row, row + 1))
        started = time.perf_counter()
        [result] = index.search(single, plan=plan, top_k=top_k)
        spent.append((time.perf_counter() - started) * 1000)
        _note(result, stages)
        if len(spent) > _LEAST_TIMED and time.perf_counter() - began > TIMED_S:
            break
    return timing(spent[1:]), {name: timing(part[1:]) for name, part in stages.items()}


def timing(spent_ms: Sequence[float]) -> Timing:
    """Median and 95th percentile, to the microsecond.

    >>> timing([1.0, 2.0, 9.0])
    Timing(median=2.0, p95=8.3)
    """
    p95 = float(np.quantile(spent_ms, 0.95))
    return Timing(round(statistics.median(spent_ms), 3), round(p95, 3))


def usable_choices(index: SearchIndex, query: QueryVectors) -> tuple[list[str], list[str]]:
    """Coarse choices that these queries can be searched by, and why others cannot.

    Raises:
        UserError: no choice is left.
    """
    usable, reasons = [], []
    for choice in index.coarse_choices:
        try:
            plan = Plan(index.ladder.rungs[0], 1, (), choice)
            index.search(rows_of(query, slice(0, 1)), plan=plan, top_k=1)
        except UserError as refused:
            reasons.append(f"coarse '{choice}' is left out: {refused}")
        else:
            usable.append(choice)
    if not usable:
        raise UserError(f"these queries cannot be searched: {'; '.join(reasons)}")
    return usable, reasons


def _found(index: SearchIndex, query: QueryVectors, plan: Plan, top_k: int) -> list[list[str]]:
    """Ids that a plan finds, a block of queries at a time: hits carry payloads."""
    found = []
    for start in range(0, len(query.vectors), _SEARCHED_AT_ONCE):
        block = rows_of(query, slice(start, start + _SEARCHED_AT_ONCE))
        results = index.search(block, plan=plan, top_k=top_k)
        found += [[hit.id for hit in result.hits] for result in results]
    return found


def _note(result: SearchResult, stages: dict[str, list[float]]) -> None:
    for stage in result.stages:
        stages[stage["name"]].append(stage["ms"])
