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


@dataclass(frozen=True)
class _SubBatch:
    """Documents that the matching stage may read for any row of a sub-batch, and the widest."""

    documents: frozenset[int]
    widest: int


@dataclass(frozen=True)
class _Row:
    """A query and the documents that stand beside it, as no query before it reads them."""

    query: int
    documents: tuple[int, ...]
    has_positive: bool
    query_width: int
    document_width: int
    sub_batch: _SubBatch


@dataclass(frozen=True)
class _Filling:
    """A chunk that is being filled, and how many documents of other chunks it may have to read."""

    queries: tuple[int, ...] = ()
    documents: tuple[int, ...] = ()
    query_width: int = 0
    document_width: int = 0
    readable: frozenset[int] = frozenset()
    outside: int = 0
    drawn: int = 0
    widest: int = 0
    last: _SubBatch | None = None

    def with_rows(self, rows: Sequence[_Row]) -> _Filling:
        """The chunk with neighbouring rows of one sub-batch as well."""
        sub_batch = rows[0].sub_batch
        fresh = tuple(slot for row in rows for slot in row.documents)
        readable, outside = self.readable, self.outside - len(fresh)
        if not self.queries:
            readable, outside = sub_batch.documents, len(sub_batch.documents) - len(fresh)
        elif sub_batch is not self.last:
            readable = readable | sub_batch.documents
            outside = len(readable) - len(self.documents) - len(fresh)
        return _Filling(
            self.queries + tuple(row.query for row in rows),
            self.documents + fresh,
            max([self.query_width, *(row.query_width for row in rows)]),
            max([self.document_width, *(row.document_width for row in rows)]),
            readable,
            outside,
            self.drawn + sum(1 if row.has_positive else 2 for row in rows),
            max(self.widest, sub_batch.widest),
            sub_batch,
        )

    @property
    def tokens(self) -> int:
        """Padded size of both sides and of what the matching stage may read besides."""
        own = len(self.queries) * self.query_width + len(self.documents) * self.document_width
        return own + min(self.drawn, self.outside) * self.widest


def plan_chunks(batch: TrainBatch, chunk_tokens: int) -> list[Chunk]:
    """Cuts a batch into chunks.

    Sub-batches stay whole where they fit, as the matching stage draws its negatives inside them:
    what it reads is then encoded in the same chunk.

    Args:
        batch: the rank's rows.
        chunk_tokens: most tokens of a chunk, padding included: queries, documents, and the room
            that its queries need for documents of other chunks that the matching stage may draw
            (one for each query, two where its positive is elsewhere, none beyond the sub-batch's).
            A single row that is larger has a chunk to itself. The matching stage's own tokens come
            on top.

    Returns:
        At least one chunk.
    """
    chunks: list[_Filling] = []
    current = _Filling()
    for group in _by_sub_batch(_rows(batch), batch.sub_batch.tolist()):
        together = current.with_rows(group)
        if together.tokens <= chunk_tokens:
            current = together
            continue
        if current.queries:
            chunks.append(current)
        current = _Filling()
        for row in group:  # one at a time; a sub-batch that fits a chunk is not cut by this
            grown = current.with_rows([row])
            if current.queries and grown.tokens > chunk_tokens:
                chunks.append(current)
                grown = _Filling().with_rows([row])
            current = grown
    chunks.append(current)
    return [
        Chunk(c.queries, c.documents or (0,), counts_documents=bool(c.documents)) for c in chunks
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
    numbers = batch.sub_batch.tolist()
    layout = batch.layout
    widths = [len(row.input_ids) + layout.num_document_meta for row in batch.document_rows]
    read: dict[int, set[int]] = {}
    for number, some in zip(numbers, slots, strict=True):
        read.setdefault(number, set()).update(slot for slot in some if slot >= 0)
    sub_batches = {
        number: _SubBatch(frozenset(some), max(widths[slot] for slot in some))
        for number, some in read.items()
    }
    taken: set[int] = set()
    rows = []
    for query, some in enumerate(slots):
        fresh = tuple(dict.fromkeys(slot for slot in some if slot >= 0 and slot not in taken))
        taken.update(fresh)
        rows.append(
            _Row(
                query,
                fresh,
                some[0] in fresh,
                len(batch.query_rows[query].input_ids) + layout.num_query_meta,
                max([0, *(widths[slot] for slot in fresh)]),
                sub_batches[numbers[query]],
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
