"""Documents of a segment in the order of their likeness: what a search reads lies together.

The candidates of a query are like each other. Where they lie side by side, fewer pages of the
mapped files are touched: less to wait for in memory, and far less where pages come from a disk.
Scores do not depend on the order of documents; candidates of the coarse kind `scan1` do, whose
groups are 64 that lie side by side (one_bit.py). Only windows of a stream are ordered, so that
memory is bounded. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import faiss
import numpy as np
from numpy.typing import NDArray

from rematch_ray.index.shards import EmbeddingBatch

# vectors of one window, of which there are two copies for a moment; documents below which a window
# keeps its order, of a group of like ones, and of one batch that goes on
WINDOW_BYTES = 128 * 2**20
LEAST_DOCUMENTS = 4096
_GROUP_DOCUMENTS = 64
_BATCH_ROWS = 1024
# rounds of k-means, and the documents of each group that it learns from
_ROUNDS, _SAMPLED = 5, 32
SEED = 1234


def by_likeness(
    batches: Iterable[EmbeddingBatch], *, window_bytes: int = WINDOW_BYTES
) -> Iterator[EmbeddingBatch]:
    """The same documents, those of each window ordered by the likeness of their fused vectors.

    Args:
        batches: of documents; without fused vectors their first ones are compared.
        window_bytes: of float16 vectors that are held at a time, about.
    """
    held: list[EmbeddingBatch] = []
    held_bytes = 0
    for batch in batches:
        held.append(batch)
        held_bytes += batch.vectors.nbytes
        if held_bytes >= window_bytes:
            yield from _let_go(held)
            held_bytes = 0
    yield from _let_go(held)


def likeness_order(vectors_ND: NDArray[np.float32]) -> NDArray[np.intp]:
    """An order in which vectors that are like each other follow each other, (N,).

    Args:
        vectors_ND: unit norm.
    """
    num_groups = max(1, len(vectors_ND) // _GROUP_DOCUMENTS)
    means = faiss.Kmeans(
        vectors_ND.shape[1],
        num_groups,
        niter=_ROUNDS,
        seed=SEED,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=_SAMPLED,
    )
    means.train(vectors_ND)
    _, group_N1 = means.index.search(vectors_ND, 1)
    place = np.empty(num_groups, np.int64)
    place[_chain(np.asarray(means.centroids))] = np.arange(num_groups)
    return np.argsort(place[group_N1[:, 0]], kind="stable")


def _chain(points_ND: NDArray[np.float32]) -> list[int]:
    """Points one after the other: halved where they differ most, then each half likewise."""
    order: list[int] = []
    left = [np.arange(len(points_ND))]
    while left:
        some = left.pop()
        if len(some) <= 2:
            order += some.tolist()
            continue
        spread = points_ND[some] - points_ND[some].mean(axis=0)
        _, _, directions = np.linalg.svd(spread, full_matrices=False)
        halves = np.array_split(some[np.argsort(spread @ directions[0], kind="stable")], 2)
        left += halves[::-1]
    return order


def _let_go(held: list[EmbeddingBatch]) -> Iterator[EmbeddingBatch]:
    """The documents of some batches in order; the list is empty from the first of them on."""
    if sum(len(batch.ids) for batch in held) < LEAST_DOCUMENTS:
        yield from held
        held.clear()
        return
    whole = EmbeddingBatch.joined(held)
    held.clear()
    keys = whole.vectors[:, 0] if whole.fused is None else whole.fused
    order = likeness_order(keys.astype(np.float32))
    for start in range(0, len(order), _BATCH_ROWS):
        rows = order[start : start + _BATCH_ROWS]
        places = rows.tolist()
        yield EmbeddingBatch(
            ids=[whole.ids[row] for row in places],
            vectors=whole.vectors[rows],
            fused=None if whole.fused is None else whole.fused[rows],
            sources=[whole.sources[row] for row in places],
            payloads=[whole.payloads[row] for row in places],
        )
