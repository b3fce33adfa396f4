"""The plain tables that a task's corpus ships, against the queries and documents of an evaluation.

Ids become rows and columns. A row that an embedding job put into quarantine is in no index: a few
judged documents may be lost, which is reported; many are the index of another corpus. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.evaluation.metrics import Positions, Relevance

# share of the documents of a table that an index may lack
LOST_SHARE = 0.05
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

    def part(self, block: slice) -> Swaps:
        """Those of the queries from `block.start` to `block.stop`."""
        chosen = (self.query >= block.start) & (self.query < block.stop)
        return Swaps(
            self.query[chosen] - block.start,
            self.right[chosen],
            self.wrong[chosen],
            self.kind[chosen],
        )


@dataclass(frozen=True)
class Candidates:
    """Which documents take part in which query's ranking.

    Args:
        query: (P,) row of each pair.
        document: (P,) its column.
    """

    query: Positions
    document: Positions

    def part(self, block: slice) -> Candidates:
        """Those of the queries from `block.start` to `block.stop`."""
        chosen = (self.query >= block.start) & (self.query < block.stop)
        return Candidates(self.query[chosen] - block.start, self.document[chosen])

    def mask(self, num_queries: int, num_documents: int) -> NDArray[np.bool_]:
        """(B, C) True where a document takes part."""
        mask = np.zeros((num_queries, num_documents), np.bool_)
        mask[self.query, self.document] = True
        return mask


class TaskTables:
    """Reads the tables of one task.

    Args:
        name: of the task, for messages.
        query_ids: ids of the queries, in the order of the score matrix's rows.
        document_ids: ids of the documents, in the order of its columns.

    Attributes:
        rows: id of a query -> row.
        columns: id of a document -> column.
        lost: id of a relevant document that is not in the index -> column behind all others.
        missing: what -> ids that are not in the index, of the tables read so far.
    """

    def __init__(self, name: str, query_ids: Sequence[str], document_ids: Sequence[str]) -> None:
        self.name = name
        self.rows = {query_id: row for row, query_id in enumerate(query_ids)}
        self.columns = {document_id: column for column, document_id in enumerate(document_ids)}
        self.lost: dict[str, int] = {}
        self.missing: dict[str, tuple[str, ...]] = {}

    def relevance(self, qrels: pa.Table) -> Relevance:
        """What is right for each query; comes first, since it finds out what is lost.

        Raises:
            UserError: a column is missing, too much is lost, or a query has nothing relevant.
        """
        self._need(qrels, "qrels", ("query_id", "document_id", "score"))
        lines = [
            line
            for line in qrels.to_pylist()
            if line["query_id"] in self.rows and line["score"] > 0
        ]
        self._held("relevant documents", [line["document_id"] for line in lines])
        lost = self.missing.get("relevant documents", ())
        self.lost = {name: len(self.columns) + place for place, name in enumerate(lost)}
        places = self.columns | self.lost
        relevant: list[dict[int, float]] = [{} for _ in self.rows]
        for line in lines:
            of_query = relevant[self.rows[line["query_id"]]]
            of_query[places[line["document_id"]]] = float(line["score"])
        lonely = [query_id for query_id, row in self.rows.items() if not relevant[row]]
        if lonely:
            raise UserError(
                f"task '{self.name}': {len(lonely)} queries have no relevant document in the "
                f"qrels: {_shown(lonely)}"
            )
        return Relevance.of(relevant, len(self.columns), len(self.lost))

    def candidates(self, qrels: pa.Table) -> Candidates:
        """The documents that the qrels list for each query, whatever their score.

        Raises:
            UserError: too many of them are not in the index.
        """
        given = zip(qrels["query_id"].to_pylist(), qrels["document_id"].to_pylist(), strict=True)
        lines = [(query_id, name) for query_id, name in given if query_id in self.rows]
        held = self._held("candidates", [name for _, name in lines])
        query = [self.rows[query_id] for query_id, name in lines if name in held]
        document = [self.columns[name] for _, name in lines if name in held]
        return Candidates(np.array(query, np.int64), np.array(document, np.int64))

    def families(self, families: pa.Table) -> NDArray[np.int64]:
        """(C + L,) family of each document, the lost ones too; below 0 = none."""
        self._need(families, "families", ("document_id", "family"))
        family = np.full(len(self.columns) + len(self.lost), -1, np.int64)
        places = self.columns | self.lost
        numbers: dict[str, int] = {}
        for line in families.to_pylist():
            if line["document_id"] in places:
                number = numbers.setdefault(line["family"], len(numbers))
                family[places[line["document_id"]]] = number
        return family

    def swaps(self, swaps: pa.Table, relevance: Relevance) -> Swaps | None:
        """The labelled swaps of the queries; None where there are none.

        One that is not in the index cannot be compared and is left out.

        Raises:
            UserError: too many of them are not in the index.
        """
        self._need(swaps, "swaps", ("query_id", "document_id", "kind"))
        lines = [line for line in swaps.to_pylist() if line["query_id"] in self.rows]
        held = self._held("swaps", [line["document_id"] for line in lines])
        lines = [line for line in lines if line["document_id"] in held]
        if not lines:
            return None
        # of several right documents the last; a lost one only where all are
        order = np.argsort(relevance.is_held, kind="stable")
        right_of = dict(zip(relevance.query[order].tolist(), relevance.document[order].tolist()))
        query = np.array([self.rows[line["query_id"]] for line in lines], np.int64)
        return Swaps(
            query=query,
            right=np.array([right_of[row] for row in query.tolist()], np.int64),
            wrong=np.array([self.columns[line["document_id"]] for line in lines], np.int64),
            kind=np.array([line["kind"] for line in lines], dtype=np.str_),
        )

    def _held(self, what: str, ids: Iterable[str]) -> set[str]:
        """Those in the index; the others are noted, or refused where they are many."""
        distinct = dict.fromkeys(ids)
        missing = tuple(name for name in distinct if name not in self.columns)
        if missing:
            self._refuse_many(what, missing, len(distinct))
            self.missing[what] = missing
        return distinct.keys() - set(missing)

    def _refuse_many(self, what: str, missing: Sequence[str], of: int) -> None:
        # one of a few is a bad row, half of them are another corpus
        if 2 * len(missing) < of and len(missing) <= max(1, LOST_SHARE * of):
            return
        raise UserError(
            f"task '{self.name}': {len(missing)} {what} are not in the index, of {of}: "
            f"{_shown(missing)}; more than {LOST_SHARE:.0%} is more than rows in quarantine: embed "
            "the whole corpus, or give the index of this one"
        )

    def _need(self, table: pa.Table, what: str, wanted: Sequence[str]) -> None:
        missing = [column for column in wanted if column not in table.column_names]
        if missing:
            raise UserError(
                f"the {what} of task '{self.name}' lack {', '.join(missing)}; "
                f"they have {', '.join(table.column_names)}"
            )


def _shown(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _NAMED_IDS} more" if len(ids) > _NAMED_IDS else ""
    return ", ".join(repr(name) for name in ids[:_NAMED_IDS]) + more
