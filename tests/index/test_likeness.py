"""The order in which a segment's documents lie: every one there, likes together, hits the same."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rematch_ray.index import likeness
from rematch_ray.index.build import build_index
from rematch_ray.index.likeness import by_likeness, likeness_order
from rematch_ray.index.search import SearchIndex
from rematch_ray.index.shards import EmbeddingBatch
from tests.index.made import queries, unit, write_embeddings


def topics(count: int, kinds: int, dim: int, seed: int) -> np.ndarray:
    """Vectors near one of a few centres, mixed."""
    kind = np.random.default_rng(seed).integers(0, kinds, count)
    near = unit((kinds, dim), seed)[kind] + 0.2 * unit((count, dim), seed + 1)
    return near / np.linalg.norm(near, axis=1, keepdims=True)


def batches(count: int, rows: int, *, has_fused: bool = True) -> Iterator[EmbeddingBatch]:
    fused = topics(count, 50, 24, 1).astype(np.float16)
    vectors = np.repeat(fused[:, None, :16], 4, axis=1)
    for start in range(0, count, rows):
        some = slice(start, min(start + rows, count))
        numbers = list(range(some.start, some.stop))
        yield EmbeddingBatch(
            ids=[f"doc-{row}" for row in numbers],
            vectors=vectors[some],
            fused=fused[some] if has_fused else None,
            sources=[f"source-{row % 3}" for row in numbers],
            payloads=[{"number": row} for row in numbers],
        )


@pytest.mark.parametrize("has_fused", [True, False])
def test_every_document_stays_whole_and_none_leaves_its_window(has_fused: bool) -> None:
    given = list(batches(10_500, 500, has_fused=has_fused))
    # 5,000 documents of 64 numbers: two windows, and a last one too small to be worth it
    found = list(by_likeness(iter(given), window_bytes=5000 * 64 * 2))
    ids = [name for batch in found for name in batch.ids]
    order = np.array([int(name.removeprefix("doc-")) for name in ids])
    for start, stop in ((0, 5000), (5000, 10_000)):
        assert sorted(order[start:stop]) == list(range(start, stop))
        assert (np.diff(order[start:stop]) != 1).any()
    assert order[10_000:].tolist() == list(range(10_000, 10_500))
    whole = np.concatenate([batch.vectors for batch in given])
    np.testing.assert_array_equal(np.concatenate([b.vectors for b in found]), whole[order])
    assert [p["number"] for b in found for p in b.payloads] == order.tolist()
    assert [s for b in found for s in b.sources] == [f"source-{row % 3}" for row in order]
    if has_fused:
        fused = np.concatenate([b.fused for b in given if b.fused is not None])
        kept = np.concatenate([b.fused for b in found if b.fused is not None])
        np.testing.assert_array_equal(kept, fused[order])
    else:
        assert all(batch.fused is None for batch in found)


def test_documents_of_a_topic_lie_together() -> None:
    vectors = topics(6000, 20, 32, 3)
    order = likeness_order(vectors.astype(np.float32))
    assert sorted(order) == list(range(6000))

    def nearness(some: np.ndarray) -> float:
        return float((some[1:] * some[:-1]).sum(axis=1).mean())

    assert nearness(vectors) < 0.3
    assert nearness(vectors[order]) > 0.9
    # a second build writes the same files
    np.testing.assert_array_equal(order, likeness_order(vectors.astype(np.float32)))


def test_equal_vectors_have_an_order_too() -> None:
    order = likeness_order(np.ones((200, 8), np.float32) / np.sqrt(8, dtype=np.float32))
    assert sorted(order) == list(range(200))


def test_no_more_than_a_window_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likeness, "LEAST_DOCUMENTS", 10)
    taken: list[int] = []

    def counted() -> Iterator[EmbeddingBatch]:
        for batch in batches(4000, 100):
            taken.append(len(batch.ids))
            yield batch

    stream = by_likeness(counted(), window_bytes=1000 * 64 * 2)
    given = 0
    for batch in stream:
        given += len(batch.ids)
        assert sum(taken) <= given + 1100


@pytest.mark.parametrize(
    "asked",
    [
        {"candidates": "all"},
        {"candidates": 200, "coarse": "fused"},
        {"candidates": "all", "budget": "1x1", "filter": {"group": "food"}},
        {"candidates": "all", "group_by": "number"},
    ],
    ids=str,
)
def test_hits_do_not_depend_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    monkeypatch.setattr(likeness, "LEAST_DOCUMENTS", 100)
    write_embeddings(tmp_path / "some", unit((900, 8, 16), 1), unit((900, 24), 2))
    build_index(tmp_path / "some", tmp_path / "ordered")
    monkeypatch.setattr(likeness, "LEAST_DOCUMENTS", 10_000)
    build_index(tmp_path / "some", tmp_path / "as given")
    ordered, as_given = (SearchIndex.open(tmp_path / name) for name in ("ordered", "as given"))
    assert ordered.ids() != as_given.ids() == [f"doc-{row:04d}" for row in range(900)]
    assert sorted(ordered.ids()) == as_given.ids()
    for first, second in zip(
        ordered.search(queries(5), **asked), as_given.search(queries(5), **asked)
    ):
        assert first.hits == second.hits
