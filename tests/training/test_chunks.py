"""Chunks hold every row once, stay within their tokens, and keep sub-batches whole."""

from collections.abc import Sequence

import pytest

from rematch_ray.data.schema import Item, Positive, Sample
from rematch_ray.data.train_batch import TrainBatch
from rematch_ray.model.embedder import Embedder
from rematch_ray.training.chunks import plan_chunks, plan_sides
from tests.tiny import text_sample, train_batch


@pytest.fixture
def batch(embedder: Embedder) -> TrainBatch:
    """Three sub-batches of four, some with pictures, some with hard negatives."""
    groups = [
        [text_sample(4 * g + n, negatives=(g + n) % 3, image=g == 1) for n in range(4)]
        for g in range(3)
    ]
    return train_batch(embedder, groups)


def tokens(batch: TrainBatch, queries: tuple[int, ...], documents: Sequence[int]) -> int:
    layout = batch.layout
    wide = max(len(batch.query_rows[row].input_ids) for row in queries) + layout.num_query_meta
    size = len(queries) * wide
    if documents:
        longest = max(len(batch.document_rows[row].input_ids) for row in documents)
        size += len(documents) * (longest + layout.num_document_meta)
    return size


@pytest.mark.parametrize("limit", [1, 60, 150, 400, 900, 10**6])
def test_every_row_is_in_one_chunk_and_chunks_keep_their_limit(
    batch: TrainBatch, limit: int
) -> None:
    chunks = plan_chunks(batch, limit)
    queries = [row for chunk in chunks for row in chunk.queries]
    documents = [row for chunk in chunks if chunk.counts_documents for row in chunk.documents]
    assert sorted(queries) == list(range(batch.num_queries))
    assert sorted(documents) == list(range(batch.num_documents))
    for chunk in chunks:
        kept = chunk.documents if chunk.counts_documents else ()
        assert len(chunk.queries) == 1 or tokens(batch, chunk.queries, kept) <= limit
    if limit == 1:
        assert len(chunks) == batch.num_queries
    if limit == 10**6:
        assert len(chunks) == 1


@pytest.mark.parametrize("limit", [150, 300, 500, 900])
def test_documents_that_matching_may_draw_from_other_chunks_are_within_the_limit(
    embedder: Embedder, limit: int
) -> None:
    long = Item.of("a red circle left of a blue square " * 4, id="long")
    longest = Sample(Item.of("which", id="q"), (Positive(long),), source="notes")
    shared = text_sample(0, negatives=1)
    groups = [
        [shared, *(text_sample(n, negatives=n % 2) for n in range(1, 8)), longest],
        [shared, *(text_sample(n, negatives=1) for n in range(8, 11))],
    ]
    batch = train_batch(embedder, groups)
    cut = False
    for chunk in plan_chunks(batch, limit):
        kept = set(chunk.documents) if chunk.counts_documents else set()
        numbers = batch.sub_batch[list(chunk.queries)].tolist()
        readable = {
            slot
            for number in set(numbers)
            for slots in (batch.positive_slot[:, None], batch.negative_slot)
            for slot in slots[batch.sub_batch == number].flatten().tolist()
            if slot >= 0
        }
        positives = batch.positive_slot[list(chunk.queries)].tolist()
        drawn = sum(1 if slot in kept else 2 for slot in positives)
        layout = batch.layout
        elsewhere = sorted(
            (
                len(batch.document_rows[slot].input_ids) + layout.num_document_meta
                for slot in readable - kept
            ),
            reverse=True,
        )
        extra = elsewhere[:drawn]
        cut = cut or bool(extra)
        size = tokens(batch, chunk.queries, sorted(kept)) + sum(extra[:1]) * len(extra)
        assert len(chunk.queries) == 1 or size <= limit
    assert cut


def test_a_sub_batch_that_fits_is_not_cut(batch: TrainBatch) -> None:
    for limit in range(300, 1500, 50):
        chunks = plan_chunks(batch, limit)
        for number in range(3):
            rows = set(range(4 * number, 4 * number + 4))
            holders = [chunk for chunk in chunks if rows & set(chunk.queries)]
            alone = plan_chunks(batch.part(batch.sub_batch == number), limit)
            assert len(holders) == 1 or len(alone) > 1


def test_a_document_is_in_the_chunk_of_the_first_query_that_reads_it(embedder: Embedder) -> None:
    first, second = text_sample(0), text_sample(1)
    shared = [[first], [second, text_sample(0)]]
    batch = train_batch(embedder, shared)
    chunks = plan_chunks(batch, 1)
    assert [chunk.counts_documents for chunk in chunks] == [True, True, False]


@pytest.mark.parametrize("limit", [1, 60, 150, 10**6])
def test_chunks_of_one_side_hold_every_row_once(batch: TrainBatch, limit: int) -> None:
    chunks = plan_sides(batch, limit)
    assert all(bool(chunk.queries) != bool(chunk.documents) for chunk in chunks)
    queries = [row for chunk in chunks for row in chunk.queries]
    documents = [row for chunk in chunks for row in chunk.documents]
    assert queries == list(range(batch.num_queries))
    assert documents == list(range(batch.num_documents))
    for chunk in chunks:
        rows = len(chunk.queries) + len(chunk.documents)
        assert rows == 1 or one_side(batch, chunk.queries, chunk.documents) <= limit
    if limit == 10**6:
        assert len(chunks) == 2


def one_side(batch: TrainBatch, queries: tuple[int, ...], documents: tuple[int, ...]) -> int:
    if queries:
        return tokens(batch, queries, ())
    longest = max(len(batch.document_rows[row].input_ids) for row in documents)
    return len(documents) * (longest + batch.layout.num_document_meta)
