"""Our own retrieval tasks: queries, what is right for them, families and swaps, as columns of a
score matrix.

A task can be measured some queries at a time. It knows nothing of where scores come from. Middle
floor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.evaluation.metrics import (
    Float64,
    Relevance,
    Scores,
    family_accuracy,
    hit_at,
    ndcg_at,
    rank_relevant,
    recall_at,
    reciprocal_rank,
    win_rate,
)
from rematch_ray.evaluation.task_tables import Candidates, Swaps, TaskTables

__all__ = [
    "DEFAULT_KS",
    "Measured",
    "RetrievalTask",
    "Swaps",
    "chance_scores",
    "measure",
    "measure_chance",
    "measure_queries",
    "summarise",
]

DEFAULT_KS = (1, 10)


@dataclass(frozen=True)
class RetrievalTask:
    """One set of queries over one corpus.

    Args:
        name: for tables.
        relevance: relevant columns of every query.
        family: (C + L,) family of each document, below 0 = none; None when the corpus has none.
        swaps: labelled swaps, or None.
        slices: named subsets of the queries, (B,) True where a query belongs.
        candidates: which documents take part in a query's ranking; None = all do.
        missing: what -> ids that the tables name and the documents lack.
    """

    name: str
    relevance: Relevance
    family: NDArray[np.int64] | None = None
    swaps: Swaps | None = None
    slices: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    candidates: Candidates | None = None
    missing: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def num_queries(self) -> int:
        """B."""
        return self.relevance.num_queries

    @property
    def num_documents(self) -> int:
        """C."""
        return self.relevance.num_documents

    @classmethod
    def from_tables(
        cls,
        name: str,
        query_ids: Sequence[str],
        document_ids: Sequence[str],
        qrels: pa.Table,
        *,
        families: pa.Table | None = None,
        swaps: pa.Table | None = None,
        slices: Mapping[str, Sequence[str]] | None = None,
        listed_only: bool = False,
    ) -> RetrievalTask:
        """Reads a task from the tables that a corpus ships.

        Args:
            name: for tables and messages.
            query_ids: ids of the queries, in the order of the score matrix's rows.
            document_ids: ids of the documents, in the order of its columns.
            qrels: query_id, document_id, score (the grade; 0 = not relevant).
            families: document_id, family.
            swaps: query_id, document_id (of the swap), kind.
            slices: name -> ids of the queries that belong.
            listed_only: a query's ranking holds only the documents that the qrels list for it,
                whatever their score (MMEB's local candidates).

        A relevant document that is not among the documents counts as never found, and a swap or
        candidate is left out: `missing` has them.

        Raises:
            UserError: a column is missing, more than a few documents are, or a query has no
                relevant document.
        """
        tables = TaskTables(name, query_ids, document_ids)
        relevance = tables.relevance(qrels)
        return cls(
            name=name,
            relevance=relevance,
            family=None if families is None else tables.families(families),
            swaps=None if swaps is None else tables.swaps(swaps, relevance),
            slices={
                part: np.isin(np.array(query_ids), np.array(list(members)))
                for part, members in (slices or {}).items()
            },
            candidates=tables.candidates(qrels) if listed_only else None,
            missing=tables.missing,
        )

    def part(self, block: slice) -> RetrievalTask:
        """The task of the queries from `block.start` to `block.stop`, without slices."""
        return replace(
            self,
            relevance=self.relevance.part(block),
            swaps=None if self.swaps is None else self.swaps.part(block),
            slices={},
            candidates=None if self.candidates is None else self.candidates.part(block),
        )

    def blind_scores(self) -> Float64:
        """(B, C) scores of a model that knows a query's family and nothing else.

        Raises:
            UserError: the task has no families.
        """
        if self.family is None:
            raise UserError(f"task '{self.name}' has no families, so no ceiling of a blind model")
        own = np.full(self.num_queries, -1, np.int64)
        own[self.relevance.query] = self.family[self.relevance.document]
        family = self.family[: self.num_documents]
        return ((own[:, None] == family[None, :]) & (own[:, None] >= 0)).astype(np.float64)


@dataclass(frozen=True)
class Measured:
    """What one system reached.

    Args:
        queries: metric -> (B,), NaN = does not count.
        won: (P,) of each swap whether it lost, 0.5 for a tie; None without swaps.
        kind: (P,) kinds of these swaps.
    """

    queries: Mapping[str, Float64]
    won: Float64 | None = None
    kind: NDArray[np.str_] | None = None

    @classmethod
    def of(cls, task: RetrievalTask, scores_BC: Scores, ks: Sequence[int] = DEFAULT_KS) -> Measured:
        """Measure scores; arguments as of `measure_queries`."""
        if task.candidates is not None:
            listed = task.candidates.mask(task.num_queries, task.num_documents)
            scores_BC = np.where(listed, scores_BC, -np.inf)
        ranking = rank_relevant(scores_BC, task.relevance)
        queries: dict[str, Float64] = {}
        for k in ks:
            queries[f"recall@{k}"] = recall_at(ranking, k)
            queries[f"hit@{k}"] = hit_at(ranking, k)
            queries[f"ndcg@{k}"] = ndcg_at(ranking, k)
        queries["reciprocal_rank"] = reciprocal_rank(ranking)
        if task.family is not None:
            queries["family_accuracy"] = family_accuracy(scores_BC, task.relevance, task.family)
        if task.swaps is None:
            return cls(queries)
        won = _wins(task.swaps, scores_BC)
        counts = np.bincount(task.swaps.query, minlength=task.num_queries)
        total = np.bincount(task.swaps.query, won, task.num_queries)
        queries["swap"] = np.divide(
            total, counts, out=np.full(task.num_queries, np.nan), where=counts > 0
        )
        return cls(queries, won, task.swaps.kind)

    @classmethod
    def concatenate(cls, parts: Sequence[Measured]) -> Measured:
        """Blocks of queries as one."""
        queries = {
            name: np.concatenate([part.queries[name] for part in parts])
            for name in parts[0].queries
        }
        won = [part.won for part in parts if part.won is not None]
        kind = [part.kind for part in parts if part.kind is not None]
        if not won:
            return cls(queries)
        return cls(queries, np.concatenate(won), np.concatenate(kind))


def measure_queries(
    task: RetrievalTask, scores_BC: Scores, ks: Sequence[int] = DEFAULT_KS
) -> Mapping[str, Float64]:
    """Every metric of every query.

    Args:
        task: the task.
        scores_BC: (B, C).
        ks: cut-offs.

    Returns:
        Metric -> (B,): `recall@k`, `hit@k`, `ndcg@k`, `reciprocal_rank`, and where the task has
        them `family_accuracy` and `swap` (mean over the query's swaps); NaN = does not count.
    """
    return Measured.of(task, scores_BC, ks).queries


def measure(
    task: RetrievalTask, scores_BC: Scores, ks: Sequence[int] = DEFAULT_KS
) -> dict[str, Any]:
    """Means over the queries, as plain JSON types; see `summarise`."""
    return summarise(task, Measured.of(task, scores_BC, ks))


def summarise(task: RetrievalTask, measured: Measured) -> dict[str, Any]:
    """Means over the queries, as plain JSON types.

    Args:
        task: the task.
        measured: all of its queries.

    Returns:
        Metric -> mean; `swaps`: kind -> win rate, and `worst_swap`, the lowest of them, where the
        task has swaps; `slices`: name -> metrics of its queries, where the task has slices.
    """
    queries = measured.queries
    summary: dict[str, Any] = {name: _mean(values) for name, values in queries.items()}
    if measured.won is not None and measured.kind is not None:
        kinds = np.unique(measured.kind)
        rates = {str(kind): float(measured.won[measured.kind == kind].mean()) for kind in kinds}
        summary |= {"swaps": rates, "worst_swap": min(rates.values())}
    if task.slices:
        summary["slices"] = {
            part: {
                "queries": int(members.sum()),
                **{name: _mean(values[members]) for name, values in queries.items()},
            }
            for part, members in task.slices.items()
        }
    return summary


def chance_scores(task: RetrievalTask) -> Scores:
    """(B, C) scores of a constant embedding, which take no memory."""
    return np.broadcast_to(np.zeros((1, 1)), (task.num_queries, task.num_documents))


def measure_chance(task: RetrievalTask, ks: Sequence[int] = DEFAULT_KS) -> dict[str, Any]:
    """What a constant embedding scores: every order of the documents equally likely."""
    return measure(task, chance_scores(task), ks)


def _wins(swaps: Swaps, scores_BC: Scores) -> Float64:
    """(P,) of each swap; a right document that is lost loses."""
    won = np.zeros(len(swaps.query))
    held = swaps.right < scores_BC.shape[1]
    query = swaps.query[held]
    right, wrong = scores_BC[query, swaps.right[held]], scores_BC[query, swaps.wrong[held]]
    won[held] = win_rate(right, wrong)
    return won


def _mean(values: Float64) -> float | None:
    counted = values[~np.isnan(values)]
    return float(counted.mean()) if len(counted) else None
