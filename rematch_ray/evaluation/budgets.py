"""Quality against cost: a task measured at every rung of an index's ladder.

Composes scores of a `SearchIndex`, the metrics and the bootstrap. Middle floor.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rematch_ray.evaluation.bootstrap import bootstrap, paired_bootstrap
from rematch_ray.evaluation.coarse import CANDIDATES, report_coarse
from rematch_ray.evaluation.metrics import Float64, Scores
from rematch_ray.evaluation.tasks import (
    DEFAULT_KS,
    RetrievalTask,
    measure,
    measure_chance,
    measure_queries,
)
from rematch_ray.index.queries import QueryVectors
from rematch_ray.index.search import SearchIndex

COMPARED_METRICS = ("hit@1", "recall@10", "ndcg@10", "family_accuracy")
TIMED_QUERIES = 20


def evaluate_index(
    task: RetrievalTask,
    index: SearchIndex,
    query: QueryVectors,
    *,
    filter: Mapping[str, Any] | None = None,
    ks: Sequence[int] = DEFAULT_KS,
    timed_queries: int = TIMED_QUERIES,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures a task at every rung, exhaustively, with what a rung costs.

    Args:
        task: the task; its columns are the documents of `index.ids(filter)`.
        index: the corpus.
        query: (B, R, D) vectors and (B, F) fused, in the order of the task's rows.
        filter: which documents are the corpus; None = all of the index.
        ks: cut-offs.
        timed_queries: queries searched one by one for the latency of a rung; 0 = no latency.
        seed: of the bootstrap.

    Returns:
        The report of `evaluate_scores`, each rung with `bytes_per_document` (vectors read by a
        score), `ms_per_query` (median, all documents scored) and `dot_products`.
    """
    scores = index.score_all(query, filter=filter)
    report = evaluate_scores(task, scores, ks=ks, seed=seed)
    sizes = index.bytes_per_document()
    dot_products = {str(budget): budget.dot_products for budget in index.budgets}
    for rung, measured in report["rungs"].items():
        measured["bytes_per_document"] = sizes[rung]
        measured["dot_products"] = dot_products[rung]
        if timed_queries:
            measured["ms_per_query"] = time_queries(
                index, query, rung, timed_queries, filter=filter
            )
    return report


def evaluate_scores(
    task: RetrievalTask,
    scores: Mapping[str, Scores],
    *,
    ks: Sequence[int] = DEFAULT_KS,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures a task on given scores.

    Args:
        task: the task.
        scores: rung or system -> (B, C); the first one that is not `fused` is what the others are
            compared with.
        ks: cut-offs.
        seed: of the bootstrap.

    Returns:
        Plain JSON types: `task`, `queries`, `documents`, `rungs` (name -> metrics), `intervals`
        (name -> metric -> interval of the mean), `chance`, `blind` (a model that knows the family
        only; None without families), `differences` ("a - b" -> metric -> paired interval), `coarse`
        (of `report_coarse`, against the last of the scores; None for a corpus too small to ask).
    """
    per_query = {name: measure_queries(task, matrix, ks) for name, matrix in scores.items()}
    base = next((name for name in scores if name != "fused"), None)
    differences = {
        f"{name} - {base}": _compare(per_query[name], per_query[base], seed)
        for name in scores
        if base is not None and name != base
    }
    return {
        "task": task.name,
        "queries": task.num_queries,
        "documents": task.num_documents,
        "rungs": {name: measure(task, matrix, ks) for name, matrix in scores.items()},
        "intervals": {
            name: {
                metric: bootstrap(values, seed=seed).to_json()
                for metric, values in measured.items()
                if metric in COMPARED_METRICS and not np.isnan(values).all()
            }
            for name, measured in per_query.items()
        },
        "chance": measure_chance(task, ks),
        "blind": None if task.family is None else measure(task, task.blind_scores(), ks),
        "differences": differences,
        "coarse": None if task.num_documents <= CANDIDATES else report_coarse(scores, seed=seed),
    }


def time_queries(
    index: SearchIndex,
    query: QueryVectors,
    rung: str,
    limit: int,
    *,
    filter: Mapping[str, Any] | None = None,
) -> float:
    """Median milliseconds of an exhaustive search, queries one by one after a warm-up."""
    spent = []
    count = min(limit, len(query.vectors))
    for row in [0, *range(count)]:
        single = _OneQuery(query, row)
        started = time.perf_counter()
        index.search(single, budget=rung, candidates="all", top_k=10, filter=filter)
        spent.append((time.perf_counter() - started) * 1000)
    return round(statistics.median(spent[1:]), 3)


class _OneQuery:
    """One row of some queries."""

    def __init__(self, query: QueryVectors, row: int) -> None:
        self.vectors = query.vectors[row : row + 1]
        self.fused = None if query.fused is None else query.fused[row : row + 1]


def _compare(
    ours: Mapping[str, Float64], theirs: Mapping[str, Float64], seed: int
) -> dict[str, Any]:
    return {
        metric: paired_bootstrap(ours[metric], theirs[metric], seed=seed).to_json()
        for metric in COMPARED_METRICS
        if metric in ours and not np.isnan(ours[metric]).all()
    }
