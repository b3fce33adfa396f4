"""A task at every rung: quality, cost, intervals; and a model that learned nothing must fail."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from rematch_ray.evaluation.budgets import evaluate_index, evaluate_scores
from rematch_ray.evaluation.tasks import RetrievalTask
from rematch_ray.index.build import build_index
from rematch_ray.index.search import SearchIndex
from rematch_ray.scoring.budget import Budget
from tests.evaluation.made_task import (
    DOCUMENT_IDS,
    QRELS,
    QUERY_IDS,
    document_vectors,
    make_task,
    noisy_queries,
)
from tests.index.made import Vectors, write_embeddings


def make_index(path: Path, documents: Vectors) -> SearchIndex:
    write_embeddings(path / "embeddings", documents.vectors, documents.fused, ids=DOCUMENT_IDS)
    build_index(path / "embeddings", path / "index")
    return SearchIndex.open(path / "index")


class CountedScores:
    """An index of three rungs that notes how many scores it gave at once."""

    budgets = (Budget(1, 1), Budget(2, 4), Budget(4, 8))

    def __init__(self, documents: int) -> None:
        self._documents = documents
        self.most = 0

    def score_all(self, query: Any, *, filter: Any) -> dict[str, Any]:
        shape = (len(query.vectors), self._documents)
        self.most = max(self.most, len(self.budgets) * shape[0] * shape[1])
        return {str(rung): np.zeros(shape, np.float32) for rung in self.budgets}

    def bytes_per_document(self) -> dict[str, int]:
        return {str(rung): rung.dot_products for rung in self.budgets}


def test_every_rung_has_quality_and_cost(tmp_path: Path) -> None:
    index = make_index(tmp_path, document_vectors())
    report = evaluate_index(make_task(), index, noisy_queries(0.5))
    assert list(report["rungs"]) == ["fused", "1x1", "2x4", "4x8"]
    assert json.loads(json.dumps(report)) == report
    top = report["rungs"]["4x8"]
    assert top["hit@1"] > 0.9
    assert (top["bytes_per_document"], top["dot_products"]) == (160, 32)
    assert top["ms_per_query"] > 0
    assert list(report["differences"]) == ["fused - 1x1", "2x4 - 1x1", "4x8 - 1x1"]
    assert report["blind"]["family_accuracy"] == pytest.approx(0.25)


def test_a_constant_embedding_scores_chance_at_every_rung(tmp_path: Path) -> None:
    documents = document_vectors()
    constant = Vectors(
        np.repeat(np.repeat(documents.vectors[:1, :1], 40, axis=0), 8, axis=1),
        np.repeat(documents.fused[:1], 40, axis=0),
    )
    query = Vectors(constant.vectors[:12, :4], constant.fused[:12])
    report = evaluate_index(make_task(), make_index(tmp_path, constant), query, timed_queries=0)
    for measured in report["rungs"].values():
        quality = {name: measured[name] for name in report["chance"]}
        assert quality == report["chance"]
    for difference in report["differences"].values():
        assert difference["hit@1"]["low"] == difference["hit@1"]["high"] == 0.0


def test_a_better_rung_has_an_interval_above_zero() -> None:
    task = make_task()
    generator = np.random.default_rng(0)
    good = generator.random((12, 40))
    good[task.relevance.query, task.relevance.document] = 2.0
    bad = generator.random((12, 40))
    report = evaluate_scores(task, {"1x1": bad, "4x8": good})
    assert report["differences"]["4x8 - 1x1"]["hit@1"]["low"] > 0


def test_a_corpus_has_the_documents_that_pass_the_filter(tmp_path: Path) -> None:
    index = make_index(tmp_path, document_vectors())
    chosen = {"group": "animals"}
    ids = index.ids(chosen)
    qrels = QRELS.filter(pc.is_in(QRELS["document_id"], pa.array(ids)))
    asked = [name for name in QUERY_IDS if name in set(qrels["query_id"].to_pylist())]
    task = RetrievalTask.from_tables("animals", asked, ids, qrels)
    rows = np.array([QUERY_IDS.index(name) for name in asked])
    queries = noisy_queries(0.5)
    few = Vectors(queries.vectors[rows], queries.fused[rows])
    report = evaluate_index(task, index, few, filter=chosen, timed_queries=1)
    assert report["documents"] == len(ids) < 40
    assert report["rungs"]["4x8"]["hit@1"] > 0.9


def test_blocks_of_queries_give_the_report_of_all_at_once(tmp_path: Path) -> None:
    index = make_index(tmp_path, document_vectors())
    asked = {"task": make_task(), "index": index, "query": noisy_queries(1.5), "timed_queries": 0}
    whole = evaluate_index(**asked)
    assert evaluate_index(**asked, held_scores=40 * 4 * 5) == whole
    assert evaluate_index(**asked, held_scores=1) == whole


def test_scores_in_memory_do_not_grow_with_the_queries() -> None:
    documents, queries = 50_000, 40
    held = 2 * documents * 3
    ids = [f"d{place}" for place in range(documents)]
    asked = [f"q{place}" for place in range(queries)]
    qrels = pa.table({"query_id": asked, "document_id": ids[:queries], "score": [1.0] * queries})
    task = RetrievalTask.from_tables("t", asked, ids, qrels, listed_only=True)
    index: Any = CountedScores(documents)
    query = Vectors(np.zeros((queries, 1, 1)), np.zeros((queries, 1)))
    tracemalloc.start()
    try:
        report = evaluate_index(task, index, query, timed_queries=0, held_scores=held)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report["queries"] == queries
    assert index.most == held
    # all scores of all rungs are 24 MB; the bootstrap's draws are 6 MB
    assert peak_bytes < 12e6
