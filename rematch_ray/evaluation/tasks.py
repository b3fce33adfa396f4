"""Our own retrieval tasks: queries, what is right for them, families and swaps, as columns of a
score matrix.

A task is read from the plain tables that the corpora ship (qrels, families, swaps) and knows
nothing of where scores come from. Middle floor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.evaluation.metrics import (
    Float64,
    Positions,
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

DEFAULT_KS = (1, 10)
_NAMED_IDS = 3


@dataclass(frozen=True)
class Swaps:
    """Pairs of a right document and one that differs from it in a single way.

    Args:
        query: (P,) row of the query.
        right: (P,) column of its relevant document.
        wrong: (P,) column of the swap.
        kind: (P,) in what they differ.
    """

    query: Positions
    right: Positions
    wrong: Positions
    kind: NDArray[np.str_]


@dataclass(frozen=True)
class RetrievalTask:
    """One set of queries over one corpus.

    Args:
        name: for tables.
        relevance: relevant columns of every query.
        family: (C,) family of each document, below 0 = none; None when the corpus has none.
        swaps: labelled swaps, or None.
        slices: named subsets of the queries, (B,) True where a query belongs.
        candidates: (B, C) True where a document takes part in a query's ranking; None = all do.
    """

    name: str
    relevance: Relevance
    family: NDArray[np.int64] | None = None
    swaps: Swaps | None = None
    slices: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    candidates: NDArray[np.bool_] | None = None

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

        Raises:
            UserError: a column is missing, an id is not in the index or among the queries, or a
                query has no relevant document.
        """
        rows = {query_id: row for row, query_id in enumerate(query_ids)}
        columns = {document_id: column for column, document_id in enumerate(document_ids)}
        relevance = _read_relevance(name, rows, columns, qrels)
        return cls(
            name=name,
            relevance=relevance,
            family=None if families is None else _read_families(name, columns, families),
            swaps=None if swaps is None else _read_swaps(name, rows, columns, swaps, relevance),
            slices={
                part: np.isin(np.array(query_ids), np.array(list(members)))
                for part, members in (slices or {}).items()
            },
            candidates=_read_candidates(name, rows, columns, qrels) if listed_only else None,
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
        return ((own[:, None] == self.family[None, :]) & (own[:, None] >= 0)).astype(np.float64)


def measure_queries(
    task: RetrievalTask, scores_BC: Scores, ks: Sequence[int] = DEFAULT_KS
) -> dict[str, Float64]:
    """Every metric of every query.

    Args:
        task: the task.
        scores_BC: (B, C).
        ks: cut-offs.

    Returns:
        Metric -> (B,): `recall@k`, `hit@k`, `ndcg@k`, `reciprocal_rank`, and where the task has
        them `family_accuracy` and `swap` (mean over the query's swaps); NaN = does not count.
    """
    if task.candidates is not None:
        scores_BC = np.where(task.candidates, scores_BC, -np.inf)
    ranking = rank_relevant(scores_BC, task.relevance)
    measured: dict[str, Float64] = {}
    for k in ks:
        measured[f"recall@{k}"] = recall_at(ranking, k)
        measured[f"hit@{k}"] = hit_at(ranking, k)
        measured[f"ndcg@{k}"] = ndcg_at(ranking, k)
    measured["reciprocal_rank"] = reciprocal_rank(ranking)
    if task.family is not None:
        measured["family_accuracy"] = family_accuracy(scores_BC, task.relevance, task.family)
    if task.swaps is not None:
        won = _wins(task.swaps, scores_BC)
        counts = np.bincount(task.swaps.query, minlength=task.num_queries)
        total = np.bincount(task.swaps.query, won, task.num_queries)
        measured["swap"] = np.divide(
            total, counts, out=np.full(task.num_queries, np.nan), where=counts > 0
        )
    return measured


def measure(
    task: RetrievalTask, scores_BC: Scores, ks: Sequence[int] = DEFAULT_KS
) -> dict[str, Any]:
    """Means over the queries, as plain JSON types.

    Returns:
        Metric -> mean; `swaps`: kind -> win rate, and `worst_swap`, the lowest of them, where the
        task has swaps; `slices`: name -> metrics of its queries, where the task has slices.
    """
    measured = measure_queries(task, scores_BC, ks)
    summary: dict[str, Any] = {name: _mean(values) for name, values in measured.items()}
    if task.swaps is not None:
        won = _wins(task.swaps, scores_BC)
        kinds = np.unique(task.swaps.kind)
        rates = {str(kind): float(won[task.swaps.kind == kind].mean()) for kind in kinds}
        summary |= {"swaps": rates, "worst_swap": min(rates.values())}
    if task.slices:
        summary["slices"] = {
            part: {
                "queries": int(members.sum()),
                **{name: _mean(values[members]) for name, values in measured.items()},
            }
            for part, members in task.slices.items()
        }
    return summary


def measure_chance(task: RetrievalTask, ks: Sequence[int] = DEFAULT_KS) -> dict[str, Any]:
    """What a constant embedding scores: every order of the documents equally likely."""
    return measure(task, np.zeros((task.num_queries, task.num_documents)), ks)


def _wins(swaps: Swaps, scores_BC: Scores) -> Float64:
    return win_rate(scores_BC[swaps.query, swaps.right], scores_BC[swaps.query, swaps.wrong])


def _mean(values: Float64) -> float | None:
    counted = values[~np.isnan(values)]
    return float(counted.mean()) if len(counted) else None


def _read_relevance(
    name: str, rows: Mapping[str, int], columns: Mapping[str, int], qrels: pa.Table
) -> Relevance:
    _need_columns(name, "qrels", qrels, ("query_id", "document_id", "score"))
    relevant: list[dict[int, float]] = [{} for _ in rows]
    unknown = []
    for line in qrels.to_pylist():
        if line["query_id"] not in rows or line["score"] <= 0:
            continue
        if line["document_id"] not in columns:
            unknown.append(line["document_id"])
            continue
        relevant[rows[line["query_id"]]][columns[line["document_id"]]] = float(line["score"])
    _refuse(name, "relevant documents", unknown, "are not in the index; embed the whole corpus")
    lonely = [query_id for query_id, row in rows.items() if not relevant[row]]
    _refuse(name, "queries", lonely, "have no relevant document in the qrels")
    return Relevance.of(relevant, len(columns))


def _read_candidates(
    name: str, rows: Mapping[str, int], columns: Mapping[str, int], qrels: pa.Table
) -> NDArray[np.bool_]:
    candidates = np.zeros((len(rows), len(columns)), np.bool_)
    lines = [
        (query_id, document_id)
        for query_id, document_id in zip(
            qrels["query_id"].to_pylist(), qrels["document_id"].to_pylist()
        )
        if query_id in rows
    ]
    unknown = [document_id for _, document_id in lines if document_id not in columns]
    _refuse(name, "candidates", unknown, "are not in the index; embed the whole corpus")
    for query_id, document_id in lines:
        candidates[rows[query_id], columns[document_id]] = True
    return candidates


def _read_families(name: str, columns: Mapping[str, int], families: pa.Table) -> NDArray[np.int64]:
    _need_columns(name, "families", families, ("document_id", "family"))
    family = np.full(len(columns), -1, np.int64)
    numbers: dict[str, int] = {}
    for line in families.to_pylist():
        if line["document_id"] in columns:
            number = numbers.setdefault(line["family"], len(numbers))
            family[columns[line["document_id"]]] = number
    return family


def _read_swaps(
    name: str,
    rows: Mapping[str, int],
    columns: Mapping[str, int],
    swaps: pa.Table,
    relevance: Relevance,
) -> Swaps:
    _need_columns(name, "swaps", swaps, ("query_id", "document_id", "kind"))
    lines = [line for line in swaps.to_pylist() if line["query_id"] in rows]
    unknown = [line["document_id"] for line in lines if line["document_id"] not in columns]
    _refuse(name, "swaps", unknown, "are not in the index; embed the whole corpus")
    right_of = dict(zip(relevance.query.tolist(), relevance.document.tolist()))
    query = np.array([rows[line["query_id"]] for line in lines], np.int64)
    return Swaps(
        query=query,
        right=np.array([right_of[row] for row in query.tolist()], np.int64),
        wrong=np.array([columns[line["document_id"]] for line in lines], np.int64),
        kind=np.array([line["kind"] for line in lines], dtype=np.str_),
    )


def _need_columns(name: str, what: str, table: pa.Table, wanted: Sequence[str]) -> None:
    missing = [column for column in wanted if column not in table.column_names]
    if missing:
        raise UserError(
            f"the {what} of task '{name}' lack {', '.join(missing)}; "
            f"they have {', '.join(table.column_names)}"
        )


def _refuse(name: str, what: str, ids: Sequence[str], problem: str) -> None:
    if ids:
        shown = ", ".join(repr(wrong) for wrong in ids[:_NAMED_IDS])
        more = f" and {len(ids) - _NAMED_IDS} more" if len(ids) > _NAMED_IDS else ""
        raise UserError(f"task '{name}': {len(ids)} {what} {problem}: {shown}{more}")
