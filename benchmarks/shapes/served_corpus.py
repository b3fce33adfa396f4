"""What the benchmark `serving` serves: an index, its model, queries and their right answers.

`pages`: `tiny-full`'s own vectors of generated pages and scenes, queries as text too. `heavy`:
synthetic vectors of 128 dimensions whose fused vector says little, so that the calibration of the
index asks for thousands of candidates, with a model of random weights that gives vectors of the
same sizes. `larger`: few of those, with a larger model. Made once under a folder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from rematch_ray.evaluation.diagnosis import describe_machine
from rematch_ray.evaluation.fitting import fitted_half, make_rows
from rematch_ray.index.build import build_index
from rematch_ray.index.calibration import Calibration
from rematch_ray.index.calibration_writer import publish_calibration
from rematch_ray.index.doctor import find_truth, try_plan
from rematch_ray.index.plan import Plan
from rematch_ray.index.query_vectors import NamedQueries
from rematch_ray.index.search import SearchIndex
from rematch_ray.index.shards import EmbeddingShards
from rematch_ray.index.store import now
from rematch_ray.model.embedder import Embedder
from rematch_ray.model.settings import ModelSettings
from shapes.fitted_vectors import Key, NestedShards, Shape, make_queries
from shapes.pages_and_scenes import MODEL, write_pages_and_scenes
from shapes.random_rows import write_base
from shapes.search_task import Query, SearchTask, pages_and_scenes

ASSETS = MODEL.parent
HEAVY = Shape(
    40_000, spread=1.0, first=Key(share=0.5, poor=0.2), fused=Key(share=0.7, poor=0.25), seed=6
)
HEAVY_QUICK_DOCUMENTS = 8_000
LARGER_DOCUMENTS = 8_000
HEAVY_COUNTS = (500, 2000, 6000, 16_000, 24_000)
CALIBRATED_BY, TOP_K = 64, 10


@dataclass(frozen=True)
class Served:
    """An index on disk and what it is asked.

    Attributes:
        task: queries, their answers, and the exact ones.
        index: directory.
        model: export whose identity is the index's.
        texts: the queries as text; empty where there is none.
    """

    task: SearchTask
    index: Path
    model: Path
    texts: list[str]

    @property
    def queries(self) -> Query:
        """The query vectors."""
        return self.task.queries

    def open(self) -> SearchIndex:
        """The index in this process."""
        return SearchIndex.open(self.index)


def pages(folder: Path, rows: int, *, queries: int = 100) -> Served:
    """`tiny-full`'s vectors; the folder may be that of the benchmark `search`."""
    made = write_pages_and_scenes(folder / f"pages-and-scenes-{rows}", rows)
    task = pages_and_scenes(made, most=queries)
    index = made / f"index-{task.name}"
    if not (index / "CURRENT").exists():
        build_index(task.documents, index)
    return Served(task, index, MODEL, _texts(made / "queries-test", queries))


def heavy(folder: Path, documents: int = HEAVY.num_documents, *, queries: int = 100) -> Served:
    """Synthetic vectors and a calibrated index of them."""
    served = _synthetic("heavy", folder, documents, ASSETS / "tiny-base", queries)
    if served.open().info()["calibration"] is None:
        shape = _shape(documents)
        calibrate(served.index, make_queries(shape, CALIBRATED_BY, seed=2))
    return served


def larger(folder: Path, *, queries: int = 100) -> Served:
    """Synthetic vectors, with a model of hidden size 512 and 8 layers, and texts for it."""
    base = folder / "larger-base"
    if not base.exists():
        unfinished = base.with_suffix(".unfinished")
        write_base(unfinished)
        os.replace(unfinished, base)
    served = _synthetic("larger", folder, LARGER_DOCUMENTS, base, queries)
    texts = [f"a red circle left of {number} blue bars" for number in range(queries)]
    return replace(served, texts=texts)


def _shape(documents: int) -> Shape:
    return replace(HEAVY, num_documents=documents)


def _synthetic(name: str, folder: Path, documents: int, base: Path, queries: int) -> Served:
    """Vectors that have nothing to do with the model but their sizes."""
    made = folder / f"{name}-{documents}"
    shape = _shape(documents)
    model = made / "model"
    if not model.exists():
        settings = ModelSettings(base=str(base), embedding_dim=shape.dim, fused_dim=shape.dim)
        unfinished = made / "model.unfinished"
        Embedder.build(settings, name="random").eval().save_pretrained(unfinished)
        os.replace(unfinished, model)
    identity = Embedder.from_pretrained(model, device="cpu").identity
    assert identity is not None
    vectors = NestedShards.of(shape)
    documents_of = NestedShards(vectors.path, {**vectors.manifest, "identity": identity.to_json()})
    asked = make_queries(shape, queries, seed=1)
    relevant = [{f"document-{row}": 1.0} for row in asked.answers.tolist()]
    task = SearchTask(name, documents_of, Query(asked.vectors, asked.fused), list(relevant), made)
    index = made / "index"
    if not (index / "CURRENT").exists():
        build_index(documents_of, index)
    return Served(task, index, model, [])


def calibrate(path: Path, asked: Query) -> None:
    """Measures straight plans of several candidate counts, as the doctor does, and keeps them.

    The doctor tries no more than 4,000 candidates, and narrowing; here more are needed.

    Args:
        path: of the index.
        asked: queries other than those that the service will be asked.
    """
    index = SearchIndex.open(path)
    names = [f"query-{row}" for row in range(len(asked.vectors))]
    queries = NamedQueries(names, asked.vectors, asked.fused)
    truth = find_truth(index, queries, depth=100)
    lists = index.info()["coarse_dot_products"]
    counts = [count for count in HEAVY_COUNTS if count < len(index)]
    plans = [Plan(rung, count, (), "fused") for rung in index.ladder.rungs for count in counts]
    plans += [Plan(rung, None) for rung in index.ladder.rungs]
    trials = [
        try_plan(index, queries, truth, plan, ks=(TOP_K, 100), coarse_dot_products=lists)
        for plan in plans
    ]
    fitted = fitted_half(names)
    half = int(fitted.sum())
    counted = {"count": len(names), "fitted": half, "reported": len(names) - half}
    table = Calibration(
        generation=index.generation,
        standing=index.standing,
        created=now(),
        k=TOP_K,
        queries={**counted, "digest": queries.digest()},
        machine=describe_machine(),
        rows=make_rows(trials, fitted, k=TOP_K),
        ndcg=None,
        matching=None,
    )
    publish_calibration(path, table)


def _texts(folder: Path, count: int) -> list[str]:
    """The names in the payload, of the same rows that `pages_and_scenes` takes."""
    names: list[str] = []
    for file in sorted(folder.glob("part-*.parquet")):
        names += [payload["name"] for payload in pq.read_table(file)["payload"].to_pylist()]
    assert EmbeddingShards.open(folder).num_rows == len(names)
    rows = np.linspace(0, len(names) - 1, min(count, len(names))).astype(int)
    return [names[row] for row in rows.tolist()]
