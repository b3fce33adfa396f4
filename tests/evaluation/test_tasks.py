"""Tasks read from plain tables; what they measure; what they refuse."""

import numpy as np
import pyarrow as pa
import pytest

from rematch_ray.errors import UserError
from rematch_ray.evaluation.tasks import RetrievalTask, measure, measure_chance, measure_queries
from tests.evaluation.made_task import (
    DOCUMENT_IDS,
    FAMILIES,
    QRELS,
    QUERY_IDS,
    SWAPS,
    make_task,
)


def perfect_scores() -> np.ndarray:
    scores = np.random.default_rng(0).random((12, 40))
    scores[np.arange(12), np.arange(12) * 3] = 2.0
    return scores


def test_perfect_scores_are_perfect_everywhere() -> None:
    measured = measure(make_task(), perfect_scores())
    for metric in ("recall@1", "hit@1", "ndcg@10", "reciprocal_rank", "family_accuracy", "swap"):
        assert measured[metric] == 1.0
    assert measured["swaps"] == {"swap:colour": 1.0, "swap:position": 1.0}
    assert measured["worst_swap"] == 1.0
    assert measured["slices"]["even"]["queries"] == 6


def test_the_worst_kind_of_swap_is_told_apart() -> None:
    scores = perfect_scores()
    scores[np.arange(6), np.arange(6) * 3 + 2] = 3.0
    measured = measure(make_task(), scores)
    assert measured["swaps"] == {"swap:colour": 1.0, "swap:position": 0.5}
    assert measured["worst_swap"] == 0.5
    assert measure_queries(make_task(), scores)["swap"].tolist() == [0.5] * 6 + [1.0] * 6


def test_only_listed_candidates_are_ranked_where_that_is_asked() -> None:
    qrels = pa.table(
        {
            "query_id": ["q", "q", "p"],
            "document_id": ["right", "listed", "listed"],
            "score": [1.0, 0.0, 1.0],
        }
    )
    ids = ["right", "listed", "far better"]
    scores = np.array([[0.5, 0.4, 0.9], [0.1, 0.2, 0.9]])
    everything = RetrievalTask.from_tables("t", ["q", "p"], ids, qrels)
    local = RetrievalTask.from_tables("t", ["q", "p"], ids, qrels, listed_only=True)
    assert measure_queries(everything, scores)["hit@1"].tolist() == [0.0, 0.0]
    assert measure_queries(local, scores)["hit@1"].tolist() == [1.0, 1.0]
    assert measure_chance(local)["hit@1"] == pytest.approx((1 / 2 + 1) / 2)
    with pytest.raises(UserError, match=r"1 candidates are not in the index.*'listed'"):
        RetrievalTask.from_tables("t", ["q"], ["right"], qrels, listed_only=True)


def test_chance_is_what_a_constant_embedding_scores() -> None:
    chance = measure_chance(make_task())
    assert chance["recall@1"] == pytest.approx(1 / 40)
    assert chance["recall@10"] == pytest.approx(10 / 40)
    assert chance["family_accuracy"] == pytest.approx(1 / 4)
    assert chance["worst_swap"] == 0.5
    constant = measure(make_task(), np.full((12, 40), 0.7))
    assert constant == chance


def test_a_model_that_knows_only_the_family_reaches_the_blind_ceiling() -> None:
    blind = measure(make_task(), make_task().blind_scores())
    assert blind["recall@1"] == pytest.approx(1 / 4)
    assert blind["recall@10"] == 1.0
    assert blind["family_accuracy"] == pytest.approx(1 / 4)


def test_a_task_without_families_has_no_blind_ceiling() -> None:
    task = RetrievalTask.from_tables("bare", QUERY_IDS, DOCUMENT_IDS, QRELS)
    assert "family_accuracy" not in measure(task, perfect_scores())
    with pytest.raises(UserError, match="task 'bare' has no families"):
        task.blind_scores()


def test_documents_of_grade_zero_are_not_relevant() -> None:
    more = pa.table({"query_id": ["q00"], "document_id": ["d39"], "score": [0.0]})
    task = RetrievalTask.from_tables(
        "graded", QUERY_IDS, DOCUMENT_IDS, pa.concat_tables([QRELS, more])
    )
    assert task.relevance.per_query().tolist() == [1] * 12


def test_ids_that_are_not_there_are_named() -> None:
    with pytest.raises(
        UserError, match=r"12 relevant documents are not in the index.*'d00', 'd03'"
    ):
        RetrievalTask.from_tables("t", QUERY_IDS, ["d01", "other"], QRELS)
    with pytest.raises(UserError, match="1 queries have no relevant document in the qrels: 'q99'"):
        RetrievalTask.from_tables("t", [*QUERY_IDS, "q99"], DOCUMENT_IDS, QRELS)
    swapped = SWAPS["document_id"].to_pylist()[:12]
    some = [name for name in DOCUMENT_IDS if name not in swapped]
    with pytest.raises(UserError, match="12 swaps are not in the index"):
        RetrievalTask.from_tables("t", QUERY_IDS, some, QRELS, swaps=SWAPS)


def test_a_missing_column_is_named() -> None:
    with pytest.raises(UserError, match="the families of task 't' lack family; they have document"):
        RetrievalTask.from_tables(
            "t", QUERY_IDS, DOCUMENT_IDS, QRELS, families=FAMILIES.drop_columns(["family"])
        )


def test_a_lost_document_is_never_found_and_the_ideal_order_knows_of_it() -> None:
    ids = ["a", "b", "c"]
    qrels = pa.table(
        {"query_id": ["q", "q", "p"], "document_id": ["a", "lost", "b"], "score": [1.0, 1.0, 1.0]}
    )
    task = RetrievalTask.from_tables("t", ["q", "p"], ids, qrels)
    assert task.missing == {"relevant documents": ("lost",)}
    assert (task.num_documents, task.relevance.num_lost) == (3, 1)
    measured = measure_queries(task, np.array([[0.9, 0.5, 0.1], [0.1, 0.9, 0.5]]))
    assert measured["recall@10"].tolist() == [0.5, 1.0]
    assert measured["hit@1"].tolist() == [1.0, 1.0]
    assert measured["ndcg@10"].tolist() == [pytest.approx(1 / (1 + 1 / np.log2(3))), 1.0]
    assert measured["reciprocal_rank"].tolist() == [1.0, 1.0]


def test_a_query_whose_only_document_is_lost_scores_nothing_whatever_the_cut() -> None:
    held = [name for name in DOCUMENT_IDS if name != "d03"]
    task = RetrievalTask.from_tables(
        "t", QUERY_IDS, held, QRELS, families=FAMILIES, swaps=SWAPS, slices={"it": ["q01"]}
    )
    scores = np.random.default_rng(0).random((12, 39))
    measured = measure_queries(task, scores, ks=(1, 1000))
    for metric in ("recall@1000", "hit@1000", "ndcg@1000", "reciprocal_rank", "swap"):
        assert measured[metric][1] == 0
        assert (measured[metric][[0, *range(2, 12)]] > 0).any()
    # three others of its family stand before it
    assert measured["family_accuracy"][1] == 0
    assert measure(task, scores)["slices"]["it"]["recall@10"] == 0
    assert measure_chance(task, (1000,))["recall@1000"] == pytest.approx(11 / 12)


def test_a_swap_or_candidate_that_is_lost_is_left_out_and_told() -> None:
    held = [name for name in DOCUMENT_IDS if name != "d01"]
    graded = pa.table({"query_id": ["q00"], "document_id": ["d01"], "score": [0.0]})
    qrels = pa.concat_tables([QRELS.cast(graded.schema), graded])
    task = RetrievalTask.from_tables("t", QUERY_IDS, held, qrels, swaps=SWAPS, listed_only=True)
    assert task.missing == {"swaps": ("d01",), "candidates": ("d01",)}
    assert task.swaps is not None
    assert len(task.swaps.kind) == 23


def test_more_than_a_few_lost_documents_are_another_corpus() -> None:
    ids = [f"d{place}" for place in range(200)]
    queries = [f"q{place}" for place in range(200)]
    qrels = pa.table({"query_id": queries, "document_id": ids, "score": [1.0] * 200})
    few = RetrievalTask.from_tables("t", queries, ids[10:], qrels)
    assert few.relevance.num_lost == 10
    with pytest.raises(UserError, match="11 relevant documents are not in the index, of 200: 'd0'"):
        RetrievalTask.from_tables("t", queries, ids[11:], qrels)


def test_a_part_of_a_task_measures_what_the_whole_does() -> None:
    task = make_task()
    scores = np.random.default_rng(1).random((12, 40)).round(1)
    whole = measure_queries(task, scores)
    for block in (slice(0, 5), slice(5, 12)):
        part = measure_queries(task.part(block), scores[block])
        for metric, values in part.items():
            np.testing.assert_array_equal(values, whole[metric][block])
