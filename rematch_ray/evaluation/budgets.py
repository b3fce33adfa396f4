"""Quality against cost: a task measured at every rung of an index's ladder.

Composes scores of a `SearchIndex`, the metrics and the bootstrap. Scores come and go by blocks of
queries: what stays is a number per query and metric. Middle floor.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rematch_ray.evaluation.bootstrap import bootstrap, paired_bootstrap
from rematch_ray.evaluation.coarse import CANDIDATES, coarse_recall, report_coarse
from rematch_ray.evaluation.metrics import Float64, Scores
from rematch_ray.evaluation.tasks import (
    DEFAULT_KS,
    Measured,
    RetrievalTask,
    chance_scores,
    summarise,
)
from rematch_ray.index.queries import QueryVectors
from rematch_ray.index.score_blocks import query_blocks, rows_of, score_blocks
from rematch_ray.index.search import SearchIndex

COMPARED_METRICS = ("hit@1", "recall@10", "ndcg@10", "family_accuracy")
TIMED_QUERIES = 20
# scores held at once, all rungs together: 2**27 float32 are 512 MiB. Every block reads all vectors
# of the corpus, so a small one costs time
HELD_SCORES = 1 << 27
_NAMED_IDS = 3


def evaluate_index(
    task: RetrievalTask,
    index: SearchIndex,
    query: QueryVectors,
    *,
    filter: Mapping[str, Any] | None = None,
    ks: Sequence[int] = DEFAULT_KS,
    timed_queries: int = TIMED_QUERIES,
    seed: int = 0,
    held_scores: int = HELD_SCORES,
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
        held_scores: scores in memory at most, all rungs together; at least those of one query.

    Returns:
        The report of `evaluate_scores`, each rung with `bytes_per_document` (vectors read by a
        score), `ms_per_query` (median, all documents scored) and `dot_products`.
    """
    meter = _Meter(task, ks)
    for block, scores in score_blocks(
        index, query, task.num_documents, filter=filter, held_scores=held_scores
    ):
        meter.see(block, scores)
    report = meter.report(seed)
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
        (of `report_coarse`, against the last of the scores; None for a corpus too small to ask),
        `missing` (what -> `number` and some `ids` that the task names and the corpus lacks).

    Raises:
        ValueError: scores of another shape, or one that is not a number.
    """
    for name, matrix in scores.items():
        if len(matrix) != task.num_queries:
            raise ValueError(f"'{name}' scores {len(matrix)} queries, not {task.num_queries}")
    meter = _Meter(task, ks)
    for block in query_blocks(task.num_queries, len(scores) * task.num_documents, HELD_SCORES):
        meter.see(block, {name: matrix[block] for name, matrix in scores.items()})
    return meter.report(seed)


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
        single = rows_of(query, slice(row, row + 1))
        started = time.perf_counter()
        index.search(single, budget=rung, candidates="all", top_k=10, filter=filter)
        spent.append((time.perf_counter() - started) * 1000)
    return round(statistics.median(spent[1:]), 3)


class _Meter:
    """A task's numbers per query and system, filled by blocks of queries in their order."""

    def __init__(self, task: RetrievalTask, ks: Sequence[int]) -> None:
        self._task = task
        self._ks = ks
        self._parts: dict[str, list[Measured]] = defaultdict(list)
        self._chance: list[Measured] = []
        self._blind: list[Measured] = []
        self._recall: dict[str, list[Float64]] = defaultdict(list)

    def see(self, block: slice, scores: Mapping[str, Scores]) -> None:
        """Takes the scores of a block: rung or system -> (b, C)."""
        part = self._task.part(block)
        for name, score_bC in scores.items():
            self._parts[name].append(Measured.of(part, score_bC, self._ks))
        self._chance.append(Measured.of(part, chance_scores(part), self._ks))
        if part.family is not None:
            self._blind.append(Measured.of(part, part.blind_scores(), self._ks))
        if part.num_documents > CANDIDATES:
            for name, values in coarse_recall(scores, truth=list(scores)[-1]).items():
                self._recall[name].append(values)

    def report(self, seed: int) -> dict[str, Any]:
        """What was measured; see `evaluate_scores`."""
        task, systems = self._task, list(self._parts)
        measured = {name: Measured.concatenate(parts) for name, parts in self._parts.items()}
        base = next((name for name in systems if name != "fused"), None)
        recall = {name: np.concatenate(values) for name, values in self._recall.items()}
        return {
            "task": task.name,
            "queries": task.num_queries,
            "documents": task.num_documents,
            "missing": {
                what: {"number": len(ids), "ids": list(ids[:_NAMED_IDS])}
                for what, ids in task.missing.items()
            },
            "rungs": {name: summarise(task, of) for name, of in measured.items()},
            "intervals": {name: _intervals(of.queries, seed) for name, of in measured.items()},
            "chance": summarise(task, Measured.concatenate(self._chance)),
            "blind": summarise(task, Measured.concatenate(self._blind)) if self._blind else None,
            "differences": {
                f"{name} - {base}": _compare(measured[name].queries, measured[base].queries, seed)
                for name in systems
                if base is not None and name != base
            },
            "coarse": report_coarse(recall, truth=systems[-1], seed=seed) if recall else None,
        }


def _intervals(queries: Mapping[str, Float64], seed: int) -> dict[str, Any]:
    return {
        metric: bootstrap(values, seed=seed).to_json()
        for metric, values in queries.items()
        if metric in COMPARED_METRICS and not np.isnan(values).all()
    }


def _compare(
    ours: Mapping[str, Float64], theirs: Mapping[str, Float64], seed: int
) -> dict[str, Any]:
    return {
        metric: paired_bootstrap(ours[metric], theirs[metric], seed=seed).to_json()
        for metric in COMPARED_METRICS
        if metric in ours and not np.isnan(ours[metric]).all()
    }
