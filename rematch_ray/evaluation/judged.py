"""nDCG of an index at every budget, from judgements and the scores of one exhaustive pass.

Takes blocks of scores as they come and keeps a number per query. Middle floor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from rematch_ray.errors import UserError
from rematch_ray.evaluation.bootstrap import bootstrap, paired_bootstrap
from rematch_ray.evaluation.metrics import Float64, Relevance, Scores, ndcg_at, rank_relevant

NDCG_AT = 10


@dataclass(frozen=True)
class Judgements:
    """What is right for each query, by id.

    Args:
        right: of each query, document id -> gain above 0; empty where nothing is known.
        lost: relevant documents that the index does not hold.
    """

    right: tuple[Mapping[str, float], ...]
    lost: int

    @classmethod
    def of(
        cls, qrels: pa.Table, query_ids: Sequence[str], document_ids: Sequence[str]
    ) -> Judgements:
        """Reads a table of query_id, document_id and score against queries and an index.

        Raises:
            UserError: nothing of it concerns these queries and documents.
        """
        right: dict[str, dict[str, float]] = {name: {} for name in query_ids}
        held, lost = set(document_ids), set()
        for line in qrels.to_pylist():
            if line["query_id"] not in right or line["score"] <= 0:
                continue
            if line["document_id"] in held:
                right[line["query_id"]][line["document_id"]] = float(line["score"])
            else:
                lost.add(line["document_id"])
        if not any(right.values()):
            known = qrels["query_id"][0].as_py() if qrels.num_rows else "nothing"
            why = f", and {len(lost)} relevant documents are not in the index" if lost else ""
            raise UserError(
                f"the qrels name no relevant document for any of the {len(query_ids)} queries"
                f"{why}: they begin with {known!r}, the queries with {query_ids[0]!r}; give the "
                "qrels of these queries"
            )
        return cls(tuple(right[name] for name in query_ids), len(lost))

    @property
    def judged(self) -> list[int]:
        """Rows of the queries that something is right for."""
        return [row for row, documents in enumerate(self.right) if documents]


@dataclass
class NdcgMeter:
    """nDCG@10 of every query at every rung, filled block by block.

    Args:
        judgements: what is right.
        document_ids: columns of the scores.
    """

    judgements: Judgements
    document_ids: Sequence[str]
    values: dict[str, Float64] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._column = {name: place for place, name in enumerate(self.document_ids)}

    def see(self, block: slice, scores: Mapping[str, Scores]) -> None:
        """Takes the scores of a block of queries: rung -> (b, documents)."""
        rows = [row for row in self.judgements.judged if block.start <= row < block.stop]
        if not rows:
            return
        right = [
            {self._column[name]: gain for name, gain in self.judgements.right[row].items()}
            for row in rows
        ]
        relevance = Relevance.of(right, len(self.document_ids))
        for rung, score_bC in scores.items():
            empty = np.full(len(self.judgements.right), np.nan)
            values = self.values.setdefault(rung, empty)
            local = np.array(rows) - block.start
            values[rows] = ndcg_at(rank_relevant(score_bC[local], relevance), NDCG_AT)

    def report(self, top: str, *, seed: int = 0) -> dict[str, Any]:
        """What was measured, in plain JSON types.

        Args:
            top: rung that the others are compared with.
            seed: of the bootstrap.

        Returns:
            `queries`, `lost`, `k`, and `rungs`: name -> interval, with the paired `loss` against
            the top one.
        """
        rungs = {
            rung: {
                **bootstrap(values, seed=seed).to_json(),
                "loss": paired_bootstrap(self.values[top], values, seed=seed).to_json(),
            }
            for rung, values in self.values.items()
        }
        judged = len(self.judgements.judged)
        return {"queries": judged, "lost": self.judgements.lost, "k": NDCG_AT, "rungs": rungs}
