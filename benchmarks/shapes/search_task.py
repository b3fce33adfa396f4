"""What search is measured on: documents, held-out queries, the right answers and the exact ones.

Two tasks: a folder of `pages_and_scenes`, and any number of `fitted_vectors`. Exact answers are
float32 MaxSim of all vectors of all documents, made once and kept under the folder. Knows nothing
of indexes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from rematch_ray.index.shards import EmbeddingShards
from shapes.fitted_vectors import NestedShards, Shape, make_queries

DEEPEST = 100  # exact answers kept of each query
BLOCK_ROWS = 1000


@dataclass(frozen=True)
class Query:
    """One query, or some, as every arm takes it."""

    vectors: np.ndarray
    fused: np.ndarray

    def __getitem__(self, rows: slice) -> Query:
        return Query(self.vectors[rows], self.fused[rows])

    def __len__(self) -> int:
        return len(self.vectors)


@dataclass(frozen=True)
class Exact:
    """The `DEEPEST` best documents of each query by all vectors: ids and scores, best first."""

    ids: np.ndarray
    scores: np.ndarray

    def recall(self, found: list[list[str]], k: int = 10) -> float:
        """Share of the k best that was found; what equals the k-th within rounding counts."""
        shares = []
        for ids, scores, own in zip(self.ids, self.scores, found, strict=True):
            right = set(ids[scores >= scores[k - 1] - 1e-6].tolist())
            shares.append(min(k, len(right & set(own[:k]))) / k)
        return float(np.mean(shares))


@dataclass(frozen=True)
class SearchTask:
    """A corpus and its queries.

    Attributes:
        name: for tables.
        documents: embedding shards, or what stands in their place.
        queries: B queries.
        relevant: of each query, document id -> grade.
        folder: where exact answers are kept.
    """

    name: str
    documents: EmbeddingShards
    queries: Query
    relevant: list[Mapping[str, float]]
    folder: Path

    def exact(self) -> Exact:
        """The exact answers, computed once."""
        file = self.folder / f"exact-{self.name}-{len(self.queries)}.npz"
        if file.exists():
            kept = np.load(file)
            return Exact(kept["ids"], kept["scores"])
        made = _exact(self.documents, self.queries)
        unfinished = file.with_suffix(".unfinished.npz")
        np.savez(unfinished, ids=made.ids, scores=made.scores)
        unfinished.replace(file)
        return made


def pages_and_scenes(folder: Path, *, part: str = "test", most: int | None = None) -> SearchTask:
    """The task of a folder that `write_pages_and_scenes` made.

    Args:
        folder: of the vectors.
        part: whose queries.
        most: queries at most, taken evenly from all.
    """
    read = EmbeddingShards.open(folder / f"queries-{part}").read()
    table = pq.read_table(folder / f"qrels-{part}.parquet").to_pylist()
    relevant: dict[str, dict[str, float]] = defaultdict(dict)
    for row in table:
        relevant[row["query_id"]][row["document_id"]] = row["score"]
    count = min(most or len(read.ids), len(read.ids))
    rows = np.linspace(0, len(read.ids) - 1, count).astype(int)
    assert read.fused is not None
    queries = Query(_normal(read.vectors[rows]), _normal(read.fused[rows]))
    documents = EmbeddingShards.open(folder / "documents")
    name = f"pages-and-scenes-{documents.num_rows}-{part}"
    return SearchTask(name, documents, queries, [relevant[read.ids[r]] for r in rows], folder)


def nested(shape: Shape, folder: Path, *, most: int = 100) -> SearchTask:
    """The task of synthetic vectors; queries are other than those of the fit."""
    folder.mkdir(parents=True, exist_ok=True)
    made = make_queries(shape, most, seed=1)
    relevant = [{f"document-{row}": 1.0} for row in made.answers.tolist()]
    name = f"nested-{shape.num_documents}"
    queries = Query(made.vectors, made.fused)
    return SearchTask(name, NestedShards.of(shape), queries, list(relevant), folder)


def _exact(documents: EmbeddingShards, queries: Query) -> Exact:
    best_ids = np.empty((len(queries), 0), object)
    best = np.empty((len(queries), 0), np.float32)
    query = torch.from_numpy(queries.vectors.astype(np.float32)).flatten(0, 1)
    num_queries, num_vectors, _ = queries.vectors.shape
    for batch in documents.batches(BLOCK_ROWS):
        vectors = torch.from_numpy(batch.vectors.astype(np.float32))
        # vectors outermost: the maximum runs over whole rows
        flat = vectors.transpose(0, 1).reshape(-1, vectors.shape[-1])
        cells = (flat @ query.T).view(vectors.shape[1], len(batch.ids), -1).amax(dim=0)
        scores = cells.view(len(batch.ids), num_queries, num_vectors).mean(dim=2).T.numpy()
        ids = np.broadcast_to(np.array(batch.ids, object), scores.shape)
        best = np.concatenate([best, scores], axis=1)
        best_ids = np.concatenate([best_ids, ids], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :DEEPEST]
        best = np.take_along_axis(best, order, axis=1)
        best_ids = np.take_along_axis(best_ids, order, axis=1)
    return Exact(best_ids.astype(str), best)


def key_recalls(task: SearchTask, cuts: tuple[int, ...]) -> dict[str, list[float]]:
    """Recall@C of the 10 best by all vectors among the C best by the first or the fused vector."""
    exact = task.exact()
    wanted = {"first": task.queries.vectors[:, 0], "fused": task.queries.fused}
    scores: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    ids: list[str] = []
    for batch in task.documents.batches(BLOCK_ROWS):
        assert batch.fused is not None
        sides = {"first": batch.vectors[:, 0], "fused": batch.fused}
        for name, query in wanted.items():
            scores[name].append(query.astype(np.float32) @ sides[name].astype(np.float32).T)
        ids += batch.ids
    rows = {name: row for row, name in enumerate(ids)}
    best = np.array([[rows[name] for name in own[:10]] for own in exact.ids])
    recalls = {}
    for name, parts in scores.items():
        whole = np.concatenate(parts, axis=1)
        own = np.take_along_axis(whole, best, axis=1)
        whole.sort(axis=1)
        ranks = np.stack(
            [len(ids) - np.searchsorted(a, b, side="right") for a, b in zip(whole, own)]
        )
        recalls[name] = [float((ranks < cut).mean()) for cut in cuts]
    return recalls


def _normal(vectors: np.ndarray) -> np.ndarray:
    wide = vectors.astype(np.float32)
    return wide / np.linalg.norm(wide, axis=-1, keepdims=True)
