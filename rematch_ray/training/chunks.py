"""A rank's rows cut into chunks of a bounded number of tokens. Pure arithmetic, middle floor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from rematch_ray.data.train_batch import TrainBatch


@dataclass(frozen=True)
class Chunk:
    """Rows that are encoded in one forward pass.

    Every query and every document of a batch is in exactly one chunk. Chunks of both sides hold a
    document beside the first query that reads it; where one has none, row 0 keeps the shape.

    Attributes:
        queries: query rows; none in a chunk of documents.
        documents: document rows; none in a chunk of queries.
        counts_queries: False = the query only keeps the shape.
        counts_documents: False = the document only keeps the shape.
    """

    queries: tuple[int, ...]
    documents: tuple[int, ...]
    counts_queries: bool = True
    counts_documents: bool = True


MASKED = Chunk((0,), (0,), counts_queries=False, counts_documents=False)
MASKED_SIDE = Chunk((0,), (), counts_queries=False)


@dataclass
class _Filling:
    """A chunk that is being filled: rows, and the longest of each side."""

    queries: list[int]
    documents: list[int]
    widths: tuple[int, int] = (0, 0)

    def with_rows(self, rows: Sequence[_Row]) -> _Filling:
        queries = [*self.queries, *(row.query for row in rows)]
        documents = [*self.documents, *(slot for row in rows for slot in row.documents)]
        widths = (
            max([self.widths[0], *(row.query_width for row in rows)]),
            max([self.widths[1], *(row.document_width for row in rows)]),
        )
        return _Filling(queries, documents, widths)

    @property
    def tokens(self) -> int:
        """Padded size of both sides."""
        return len(self.queries) * self.widths[0] + len(self.documents) * self.widths[1]


@dataclass(frozen=True)
class _Row:
    query: int
    documents: tuple[int, ...]
    query_width: int
    document_width: int


def plan_chunks(batch: TrainBatch, chunk_tokens: int) -> list[Chunk]:
    """Cuts a batch into chunks.

    Sub-batches stay whole where they fit, as the matching stage draws its negatives inside them:
    what it reads is then encoded in the same chunk.

    Args:
        batch: the rank's rows.
        chunk_tokens: most tokens of a chunk, queries and documents, padding included; a single row
            that is larger has a chunk to itself. The matching stage's own tokens, and documents
            that it reads from other chunks (at most two for each query), come on top.

    Returns:
        At least one chunk.
    """
    chunks: list[_Filling] = []
    current = _Filling([], [])
    for group in _by_sub_batch(_rows(batch), batch.sub_batch.tolist()):
        together = current.with_rows(group)
        if together.tokens <= chunk_tokens:
            current = together
            continue
        if current.queries:
            chunks.append(current)
        current = _Filling([], [])
        for row in group:  # one at a time; a sub-batch that fits a chunk is not cut by this
            grown = current.with_rows([row])
            if current.queries and grown.tokens > chunk_tokens:
                chunks.append(current)
                grown = _Filling([], []).with_rows([row])
            current = grown
    chunks.append(current)
    return [
        Chunk(tuple(c.queries), tuple(c.documents) or (0,), counts_documents=bool(c.documents))
        for c in chunks
    ]


def plan_sides(batch: TrainBatch, chunk_tokens: int) -> list[Chunk]:
    """Cuts a batch into chunks of one side each, for objectives whose terms never need both.

    Arguments as in `plan_chunks`. A chunk then holds the activations of one side only.
    """
    layout = batch.layout
    queries = [len(row.input_ids) + layout.num_query_meta for row in batch.query_rows]
    documents = [len(row.input_ids) + layout.num_document_meta for row in batch.document_rows]
    return [
        *(Chunk(rows, ()) for rows in _filled(queries, chunk_tokens)),
        *(Chunk((), rows) for rows in _filled(documents, chunk_tokens)),
    ]


def _filled(widths: Sequence[int], chunk_tokens: int) -> Iterator[tuple[int, ...]]:
    """Neighbouring rows, as many as fit; at least one."""
    rows: list[int] = []
    widest = 0
    for row, width in enumerate(widths):
        if rows and (len(rows) + 1) * max(widest, width) > chunk_tokens:
            yield tuple(rows)
            rows, widest = [], 0
        rows.append(row)
        widest = max(widest, width)
    yield tuple(rows)


def _rows(batch: TrainBatch) -> list[_Row]:
    slots = torch.cat([batch.positive_slot[:, None], batch.negative_slot], dim=1).tolist()
    taken: set[int] = set()
    rows = []
    for query, read in enumerate(slots):
        fresh = tuple(dict.fromkeys(slot for slot in read if slot >= 0 and slot not in taken))
        taken.update(fresh)
        widths = [len(batch.document_rows[slot].input_ids) for slot in fresh]
        rows.append(
            _Row(
                query,
                fresh,
                len(batch.query_rows[query].input_ids) + batch.layout.num_query_meta,
                max(widths) + batch.layout.num_document_meta if fresh else 0,
            )
        )
    return rows


def _by_sub_batch(rows: Sequence[_Row], sub_batches: Sequence[int]) -> Iterator[list[_Row]]:
    """Neighbouring rows of one sub-batch."""
    start = 0
    for stop in range(1, len(rows) + 1):
        if stop == len(rows) or sub_batches[stop] != sub_batches[start]:
            yield list(rows[start:stop])
            start = stop
