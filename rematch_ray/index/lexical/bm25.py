"""Lexical search: BM25 over the texts of a generation's payloads.

Why not a search library's own index: an index here is immutable segments, bitmaps of deleted rows
and, split, shards on several machines, and must score as one that was built anew. bm25s stores
finished scores, which every added or deleted document would change; Tantivy and SQLite's FTS5 score
with what one index (FTS5), or one with its deleted documents still in it (Tantivy), counts, and
take no statistics from outside. So a segment stores integers (postings.py), and what is counted
over all documents joins them at the query:

    N          live documents that have a text       stored with the generation, per segment
    average    terms per such document               stored with the generation, per segment
    df(term)   live documents that hold the term     postings of the term minus the deleted ones

All are sums of integers over segments, and over shards; a score is computed from them in one fixed
order. Hence it is the same, bit for bit, after any adding, deleting and merging and in any split.
Knows nothing of vectors. Middle floor.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.index.exact import Float32, Float64, Rows, order_best
from rematch_ray.index.generation import Generation
from rematch_ray.index.lexical.postings import Postings
from rematch_ray.index.lexical.settings import read_lexical


@dataclass(frozen=True)
class LexicalStatistics:
    """What BM25 counts over all live documents; the sum over shards is that of the whole.

    Args:
        documents: those that have a text.
        tokens: terms of all of them together.
        frequencies: term -> documents that hold it; terms of the query only.
    """

    documents: int
    tokens: int
    frequencies: Mapping[str, int]

    @property
    def average_length(self) -> float:
        """Terms per document."""
        return self.tokens / self.documents if self.documents else 1.0

    @classmethod
    def total(cls, parts: Iterable[LexicalStatistics]) -> LexicalStatistics:
        """The statistics of several shards as those of one index.

        >>> one = LexicalStatistics(2, 10, {"a": 1})
        >>> LexicalStatistics.total([one, LexicalStatistics(3, 5, {"a": 2, "b": 1})])
        LexicalStatistics(documents=5, tokens=15, frequencies={'a': 3, 'b': 1})
        """
        held = list(parts)
        frequencies: Counter[str] = Counter()
        for part in held:
            frequencies.update(part.frequencies)
        return cls(
            sum(part.documents for part in held),
            sum(part.tokens for part in held),
            dict(sorted(frequencies.items())),
        )


def bm25(
    counts: NDArray[np.integer],
    lengths: NDArray[np.integer],
    *,
    frequency: int,
    documents: int,
    average_length: float,
    k1: float,
    b: float,
) -> Float64:
    """What one term of a query adds to the scores of the documents that hold it.

        log(1 + (N - df + 0.5) / (df + 0.5)) * tf / (tf + k1 * (1 - b + b * length / average))

    Args:
        counts: (P,) tf, how often the term occurs in each document, at least 1.
        lengths: (P,) terms of each document.
        frequency: df, documents that hold the term.
        documents: N.
        average_length: mean length of the N documents.
        k1: growth with tf.
        b: share of the length.

    Returns:
        (P,) float64, above 0.

    Source:
        Robertson and Zaragoza 2009, with Lucene's logarithm, which is never negative, and without
        the factor k1 + 1, which changes no order.

    >>> one = bm25(
    ...     np.array([1, 2]),
    ...     np.array([4, 4]),
    ...     frequency=2,
    ...     documents=9,
    ...     average_length=4,
    ...     k1=1,
    ...     b=0.5,
    ... )
    >>> one.round(4).tolist()
    [0.6931, 0.9242]
    """
    rarity = math.log1p((documents - frequency + 0.5) / (frequency + 0.5))
    size = k1 * (1.0 - b + b / average_length * lengths.astype(np.float64))
    return rarity * counts / (counts + size)


class LexicalIndex:
    """BM25 over an open generation; safe to use from several threads.

    Args:
        generation: whose payload texts are searched.

    Raises:
        UserError: it was built without a lexical index, or with terms that this software does not
            make.
    """

    def __init__(self, generation: Generation) -> None:
        settings = read_lexical(generation.manifest.lexical, generation.path)
        if settings is None:
            raise UserError(
                f"{generation.path} has no lexical index: build it with --lexical FIELD, a payload "
                "field that holds text"
            )
        self.settings = settings
        self._generation = generation

    def statistics(self, text: str) -> LexicalStatistics:
        """What a query's scores need to know of all live documents."""
        return self._count(self._terms(text))

    def search(
        self,
        text: str,
        limit: int,
        allowed: NDArray[np.bool_] | None = None,
        *,
        statistics: LexicalStatistics | None = None,
    ) -> tuple[Rows, Float32]:
        """Finds the documents that match a text best.

        Args:
            text: the query; documents match that hold at least one of its terms.
            limit: most documents.
            allowed: (rows,) True where a live document may be returned; None allows every one.
            statistics: of all shards; None takes this generation's.

        Returns:
            Rows, best first, and their scores; equal scores in the order of the documents' keys.
        """
        scores = self.scores(text, statistics=statistics)
        return self.best(scores, limit, self._generation.live if allowed is None else allowed)

    def best(self, scores: Float32, limit: int, allowed: NDArray[np.bool_]) -> tuple[Rows, Float32]:
        """The best of `scores`, as `search` gives them."""
        rows = np.flatnonzero((scores > 0) & allowed)
        order = order_best(scores[rows], self._generation.keys[rows], limit)
        return rows[order], scores[rows[order]]

    def scores(self, text: str, *, statistics: LexicalStatistics | None = None) -> Float32:
        """BM25 of every row, (rows,) float32: 0 where no term is common.

        Args:
            text: the query; a term that occurs twice counts twice.
            statistics: of all shards; None takes this generation's.
        """
        terms = self._terms(text)
        known = statistics or self._count(terms)
        total = np.zeros(self._generation.rows)
        for start, live, postings in self._segments():
            # rows of a term are distinct, so that the sum below adds to each once, term by term
            scores = total[start : start + len(live)]
            places = postings.find(list(terms))
            for term in filter(places.__contains__, terms):
                if not (frequency := known.frequencies.get(term, 0)):
                    continue  # only deleted documents hold it
                rows = postings.rows[places[term]]
                scores[rows] += terms[term] * bm25(
                    postings.counts[places[term]],
                    postings.lengths[rows],
                    frequency=frequency,
                    documents=known.documents,
                    average_length=known.average_length,
                    k1=self.settings.k1,
                    b=self.settings.b,
                )
        return total.astype(np.float32)

    def _terms(self, text: str) -> dict[str, int]:
        """The query's terms in the order in which they are added up, and how often each occurs."""
        found = self.settings.tokeniser().terms(text, is_query=True)
        return dict(sorted(Counter(found).items()))

    def _count(self, terms: Mapping[str, int]) -> LexicalStatistics:
        frequencies = dict.fromkeys(terms, 0)
        for _, live, postings in self._segments():
            all_live = bool(live.all())
            for term, place in postings.find(list(terms)).items():
                rows = postings.rows[place]
                frequencies[term] += len(rows) if all_live else int(np.count_nonzero(live[rows]))
        entries = self._generation.manifest.segments
        return LexicalStatistics(
            sum(entry.text_documents for entry in entries),
            sum(entry.text_tokens for entry in entries),
            frequencies,
        )

    def _segments(self) -> Iterator[tuple[int, NDArray[np.bool_], Postings]]:
        for offset, segment in zip(self._generation.offsets.tolist(), self._generation.segments):
            yield offset, segment.live, segment.postings
