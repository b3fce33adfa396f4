"""Retrieval metrics as pure functions of a score matrix and its relevant pairs.

Ties: documents of equal score share their positions evenly, so every metric is the mean over all
orders of the tied group (and a rank is the group's mean rank). A constant embedding therefore
scores chance, neither less nor more. A lost document (right, and not among the scores) is never
found, while the ideal order has it. Knows nothing of indexes, models or files. Middle floor.

Source: McSherry and Najork, Computing information retrieval performance measures efficiently in the
presence of tied scores (ECIR 2008).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Scores = NDArray[np.floating]
Positions = NDArray[np.int64]

# documents before one that is never found: more than there can be, and room to count on
NEVER = 1 << 62


@dataclass(frozen=True)
class Relevance:
    """Which documents are right for which queries.

    Args:
        query: (P,) row of each relevant pair.
        document: (P,) column of each relevant pair; from C on the lost ones.
        gain: (P,) its grade, above 0.
        num_queries: B; every query needs a pair.
        num_documents: C.
        num_lost: relevant documents that have no scores, L.

    Raises:
        ValueError: a pair outside the matrix or repeated, a gain not above 0, a query without one.
    """

    query: Positions
    document: Positions
    gain: Float64
    num_queries: int
    num_documents: int
    num_lost: int = 0

    def __post_init__(self) -> None:
        if not len(self.query) == len(self.document) == len(self.gain):
            raise ValueError("query, document and gain must be equally long")
        inside = (
            (self.query >= 0)
            & (self.query < self.num_queries)
            & (self.document >= 0)
            & (self.document < self.num_columns)
        )
        if not inside.all():
            raise ValueError(
                f"a relevant pair lies outside {self.num_queries} queries x "
                f"{self.num_documents} documents"
            )
        if len(np.unique(self.query * self.num_columns + self.document)) < len(self.query):
            raise ValueError("a relevant pair is given twice: give every pair once")
        if not (self.gain > 0).all():
            raise ValueError("a gain is not above 0: leave out documents that are not relevant")
        if (self.per_query() == 0).any():
            lonely = int(np.flatnonzero(self.per_query() == 0)[0])
            raise ValueError(f"query {lonely} has no relevant document: leave it out")

    @classmethod
    def of(
        cls,
        relevant: Sequence[Mapping[int, float] | Sequence[int]],
        num_documents: int,
        num_lost: int = 0,
    ) -> Relevance:
        """Builds it from one collection of relevant columns per query (gain 1), or column -> gain.

        >>> Relevance.of([[2], {0: 3.0, 1: 1.0}], 3).gain.tolist()
        [1.0, 3.0, 1.0]
        """
        pairs = [
            (row, column, gain)
            for row, columns in enumerate(relevant)
            for column, gain in (
                columns.items()
                if isinstance(columns, Mapping)
                else ((column, 1.0) for column in columns)
            )
        ]
        return cls(
            query=np.array([pair[0] for pair in pairs], np.int64),
            document=np.array([pair[1] for pair in pairs], np.int64),
            gain=np.array([pair[2] for pair in pairs], np.float64),
            num_queries=len(relevant),
            num_documents=num_documents,
            num_lost=num_lost,
        )

    @property
    def num_columns(self) -> int:
        """C + L."""
        return self.num_documents + self.num_lost

    @property
    def is_held(self) -> NDArray[np.bool_]:
        """(P,) whether the pair's document has scores."""
        return self.document < self.num_documents

    def part(self, block: slice) -> Relevance:
        """That of the queries from `block.start` to `block.stop`."""
        chosen = (self.query >= block.start) & (self.query < block.stop)
        return replace(
            self,
            query=self.query[chosen] - block.start,
            document=self.document[chosen],
            gain=self.gain[chosen],
            num_queries=block.stop - block.start,
        )

    def per_query(self) -> Positions:
        """(B,) relevant documents of each query."""
        return np.bincount(self.query, minlength=self.num_queries)

    def mean_over_pairs(self, values_P: Float64) -> Float64:
        """(B,) mean of a value over each query's relevant documents."""
        return np.bincount(self.query, values_P, self.num_queries) / self.per_query()


@dataclass(frozen=True)
class Ranking:
    """Where the relevant documents stand, ties included.

    Args:
        better: (P,) documents that score higher than the pair's document; `NEVER` of a lost one.
        equal: (P,) documents of the same score, itself included.
        relevance: the pairs.
    """

    better: Positions
    equal: Positions
    relevance: Relevance

    @property
    def rank(self) -> Float64:
        """(P,) mean rank of the tied group, from 1; infinite for a lost document."""
        rank: Float64 = self.better + (self.equal + 1) / 2
        return np.where(self.better < NEVER, rank, np.inf)


def rank_relevant(scores_BC: Scores, relevance: Relevance) -> Ranking:
    """Ranks the relevant documents of every query among all documents.

    Args:
        scores_BC: (B, C), larger is better; minus infinity for documents never scored.
        relevance: relevant pairs.

    Raises:
        ValueError: another shape, or a score that is not a number.

    >>> scores = np.array([[0.9, 0.5, 0.5, 0.1]])
    >>> rank_relevant(scores, Relevance.of([[1]], 4)).rank.tolist()
    [2.5]
    """
    shape = (relevance.num_queries, relevance.num_documents)
    if scores_BC.shape != shape:
        raise ValueError(f"scores have shape {scores_BC.shape}, the relevant pairs need {shape}")
    if np.isnan(scores_BC).any():
        raise ValueError("a score is not a number")
    better = np.full(len(relevance.query), NEVER, np.int64)
    equal = np.ones(len(relevance.query), np.int64)
    for pair in np.flatnonzero(relevance.is_held):
        row, column = relevance.query[pair], relevance.document[pair]
        scores = scores_BC[row]
        better[pair] = np.count_nonzero(scores > scores[column])
        equal[pair] = np.count_nonzero(scores == scores[column])
    return Ranking(better, equal, relevance)


def recall_at(ranking: Ranking, k: int) -> Float64:
    """Share of each query's relevant documents among the first k, (B,).

    >>> ranking = rank_relevant(np.array([[0.9, 0.5, 0.5, 0.1]]), Relevance.of([[1]], 4))
    >>> recall_at(ranking, 1).item(), recall_at(ranking, 2).item(), recall_at(ranking, 3).item()
    (0.0, 0.5, 1.0)
    """
    inside = np.clip((k - ranking.better) / ranking.equal, 0.0, 1.0)
    return ranking.relevance.mean_over_pairs(inside)


def hit_at(ranking: Ranking, k: int) -> Float64:
    """Whether any relevant document is among the first k, (B,); a probability under ties.

    >>> ranking = rank_relevant(np.zeros((1, 4)), Relevance.of([[1, 2]], 4))
    >>> round(hit_at(ranking, 2).item(), 4)  # 1 - (2/4 * 1/3)
    0.8333
    """
    missed = np.ones(ranking.relevance.num_queries)
    for row, better, equal, relevant in _first_groups(ranking):
        for drawn in range(min(max(0, k - better), equal)):
            missed[row] *= max(0, equal - relevant - drawn) / (equal - drawn)
    return 1.0 - missed


def reciprocal_rank(ranking: Ranking) -> Float64:
    """One over the rank of the first relevant document, (B,).

    >>> ranking = rank_relevant(np.array([[0.9, 0.5, 0.5]]), Relevance.of([[2]], 3))
    >>> round(reciprocal_rank(ranking).item(), 4)  # (1/2 + 1/3) / 2
    0.4167
    """
    expected = np.zeros(ranking.relevance.num_queries)
    for row, better, equal, relevant in _first_groups(ranking):
        waiting = 1.0
        for drawn in range(equal - relevant + 1):
            here = waiting * relevant / (equal - drawn)
            expected[row] += here / (better + drawn + 1)
            waiting -= here
    return expected


def ndcg_at(ranking: Ranking, k: int) -> Float64:
    """Normalised discounted cumulative gain of the first k with linear gains, (B,).

    >>> ranking = rank_relevant(np.array([[0.9, 0.5, 0.1]]), Relevance.of([[1]], 3))
    >>> round(ndcg_at(ranking, 10).item(), 4)  # 1 / log2(3)
    0.6309
    """
    relevance = ranking.relevance
    discounts = 1.0 / np.log2(np.arange(2, k + 2))
    until = np.concatenate([[0.0], np.cumsum(discounts)])
    first = np.minimum(ranking.better, k)
    last = np.minimum(ranking.better + ranking.equal, k)
    found = relevance.gain * (until[last] - until[first]) / ranking.equal
    ideal = np.zeros(relevance.num_queries)
    order = np.lexsort((-relevance.gain, relevance.query))
    query = relevance.query[order]
    place = np.arange(len(query)) - np.searchsorted(query, query)
    inside = place < k
    np.add.at(ideal, query[inside], relevance.gain[order][inside] * discounts[place[inside]])
    return np.bincount(relevance.query, found, relevance.num_queries) / ideal


def family_accuracy(
    scores_BC: Scores, relevance: Relevance, family: NDArray[np.integer]
) -> Float64:
    """Whether the first of a query's own family is relevant, (B,).

    The family of a query is that of its relevant documents; documents of other families do not
    compete. A query whose family holds nothing but relevant documents has nothing to decide: NaN.
    Where all that is relevant is lost, another one comes first: 0.

    Args:
        scores_BC: (B, C).
        relevance: relevant pairs; all of one query lie in one family.
        family: (C + L,) family of each document; below 0 = none.

    Raises:
        ValueError: relevant documents of one query lie in several families.

    >>> scores = np.array([[0.1, 0.9, 0.8]])
    >>> family_accuracy(scores, Relevance.of([[2]], 3), np.array([0, 1, 1])).item()
    0.0
    """
    accuracy = np.full(relevance.num_queries, np.nan)
    for row in range(relevance.num_queries):
        relevant = relevance.document[relevance.query == row]
        families = np.unique(family[relevant])
        if len(families) > 1:
            raise ValueError(f"the relevant documents of query {row} lie in several families")
        members = np.flatnonzero(family[: relevance.num_documents] == families[0])
        held = relevant[relevant < relevance.num_documents]
        if families[0] < 0 or len(members) == len(held):
            continue
        if not len(held):
            accuracy[row] = 0.0
            continue
        own = Relevance.of([np.searchsorted(members, held).tolist()], len(members))
        accuracy[row] = hit_at(rank_relevant(scores_BC[row : row + 1, members], own), 1)[0]
    return accuracy


def win_rate(right: Scores, wrong: Scores) -> Float64:
    """How often the right document scores above the wrong one, (P,): 1, 0, or 0.5 for a tie.

    >>> win_rate(np.array([0.9, 0.5, 0.1]), np.array([0.5, 0.5, 0.5])).tolist()
    [1.0, 0.5, 0.0]
    """
    if not (np.isfinite(right).all() and np.isfinite(wrong).all()):
        raise ValueError("a score is not finite")
    return (right > wrong) + 0.5 * (right == wrong)


def _first_groups(ranking: Ranking) -> list[tuple[int, int, int, int]]:
    """Of each query: (row, better, equal, relevant) of the first tied group with a relevant one."""
    groups: dict[int, tuple[int, int, int]] = {}
    for row, better, equal in zip(ranking.relevance.query, ranking.better, ranking.equal):
        if better == NEVER:
            continue
        known = groups.get(int(row))
        if known is None or better < known[0]:
            groups[int(row)] = (int(better), int(equal), 1)
        elif better == known[0]:
            groups[int(row)] = (known[0], known[1], known[2] + 1)
    return [(row, *group) for row, group in groups.items()]
