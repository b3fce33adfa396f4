"""The doctor's whole visit to small indexes, and what it says of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rematch_ray.data.schema import QRELS_SCHEMA
from rematch_ray.errors import UserError
from rematch_ray.evaluation.diagnosis import diagnose
from rematch_ray.evaluation.doctor_report import advice, calibration_rows, plot_calibration
from rematch_ray.evaluation.fitting import fitted_half
from rematch_ray.evaluation.metrics import Relevance, ndcg_at, rank_relevant
from rematch_ray.index.build import build_index
from rematch_ray.index.calibration import Calibration, Share
from rematch_ray.index.changes import delete_documents
from rematch_ray.index.query_vectors import NamedQueries
from rematch_ray.index.search import SearchIndex
from rematch_ray.scoring.budget import Ladder
from tests.index.made import LADDER, unit, write_embeddings
from tests.index.tables import row, table

COUNT, NUM_QUERIES = 150, 40
IDS = [f"q{number}" for number in range(NUM_QUERIES)]
RIGHT = np.random.default_rng(5).integers(0, COUNT, NUM_QUERIES)


def near(vectors: np.ndarray, seed: int, noise: float) -> np.ndarray:
    moved = vectors + noise * unit(vectors.shape, seed)
    return moved / np.linalg.norm(moved, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index whose documents are found by queries that were made of them."""
    folder = tmp_path_factory.mktemp("doctor")
    source = write_embeddings(folder / "documents", *_documents())
    build_index(source, folder / "index")
    return folder / "index"


def _documents() -> tuple[np.ndarray, np.ndarray]:
    return unit((COUNT, 8, 16), 1), unit((COUNT, 24), 2)


@pytest.fixture
def queries() -> NamedQueries:
    vectors, fused = _documents()
    return NamedQueries(IDS, near(vectors[RIGHT, :4], 3, 1.0), near(fused[RIGHT], 4, 1.0))


def qrels(ids: list[str] = IDS) -> pa.Table:
    rows = {
        "query_id": ids,
        "document_id": [f"doc-{place:04d}" for place in RIGHT[: len(ids)]],
        "score": [1.0] * len(ids),
    }
    return pa.table(rows, schema=QRELS_SCHEMA)


def visit(path: Path, queries: NamedQueries, **options: Any) -> Calibration:
    fields = {"counts": [20, 60], "timed_queries": 1} | options
    return diagnose(SearchIndex.open(path), queries, **fields).calibration


def test_the_table_reports_the_mean_over_the_half_that_was_not_fitted(
    corpus: Path, queries: NamedQueries
) -> None:
    index = SearchIndex.open(corpus)
    calibration = visit(corpus, queries)
    reported = ~fitted_half(IDS)
    truth = index.search(queries, candidates="all", budget="4x8", top_k=10)
    for measured in calibration.rows:
        found = index.search(queries, plan=measured.plan, top_k=10)
        shares = [
            len({hit.id for hit in right.hits} & {hit.id for hit in ours.hits}) / 10
            for right, ours in zip(truth, found, strict=True)
        ]
        assert measured.recall[10].mean == pytest.approx(np.mean(np.array(shares)[reported]))
        assert measured.recall[10].low <= measured.recall[10].mean
    assert {row.plan.coarse for row in calibration.rows} == {
        *(None, "first", "fused", "both", "prefix", "fused+prefix")
    }
    assert calibration.queries["count"] == NUM_QUERIES
    assert calibration.queries["reported"] == reported.sum()
    assert calibration.standing == index.standing
    json.dumps(calibration.to_json())


def test_repeats_of_a_query_are_worth_no_more_than_one(corpus: Path, queries: NamedQueries) -> None:
    again = np.tile(np.arange(NUM_QUERIES), 5)
    names = [f"{IDS[row]}-{place}" for place, row in enumerate(again)]
    assert queries.fused is not None
    many = NamedQueries(names, queries.vectors[again], queries.fused[again])
    kept = NamedQueries(names[:NUM_QUERIES], queries.vectors, queries.fused)
    index = SearchIndex.open(corpus)
    found = diagnose(index, many, counts=[20], timed_queries=1)
    alone = diagnose(index, kept, counts=[20], timed_queries=1)
    assert [row.recall for row in found.calibration.rows] == [
        row.recall for row in alone.calibration.rows
    ]
    assert found.calibration.queries == alone.calibration.queries
    assert f"{4 * NUM_QUERIES} of {5 * NUM_QUERIES} queries repeat others" in found.notes[0]
    # so ten of them, asked a hundred times, are too few still
    few = NamedQueries(names[:200], many.vectors[np.tile(np.arange(10), 20)], None)
    with pytest.raises(UserError, match="too few"):
        diagnose(index, few)


def test_without_originals_no_plan_is_promised_to_find_all(
    queries: NamedQueries, tmp_path: Path
) -> None:
    build_index(
        write_embeddings(tmp_path / "documents", *_documents()), tmp_path / "coded", originals=False
    )
    index = SearchIndex.open(tmp_path / "coded")
    rows = visit(tmp_path / "coded", queries).rows
    exhaustive = [measured for measured in rows if measured.plan.is_exhaustive]
    assert len(exhaustive) == len(index.budgets)
    reported = ~fitted_half(IDS)
    for measured in exhaustive:
        assert measured.own.low < 1
        truth = np.argsort(-index.score_all(queries)[str(measured.plan.budget)], axis=1)[:, :10]
        ids = index.ids()
        found = index.search(queries, plan=measured.plan, top_k=10)
        shares = [
            len({ids[place] for place in right} & {hit.id for hit in ours.hits}) / 10
            for right, ours in zip(truth, found, strict=True)
        ]
        assert measured.own.mean == pytest.approx(np.mean(np.array(shares)[reported]))


def test_ndcg_of_every_budget_is_that_of_its_scores(corpus: Path, queries: NamedQueries) -> None:
    calibration = visit(corpus, queries, qrels=qrels())
    assert calibration.ndcg is not None
    scores = SearchIndex.open(corpus).score_all(queries)
    relevance = Relevance.of([[place] for place in RIGHT.tolist()], COUNT)
    for rung, matrix in scores.items():
        naive = ndcg_at(rank_relevant(matrix, relevance), 10).mean()
        assert calibration.ndcg["rungs"][rung]["mean"] == pytest.approx(naive)
    top = calibration.ndcg["rungs"]["4x8"]
    assert (top["loss"]["low"], top["loss"]["high"]) == (0, 0)
    assert calibration.ndcg["rungs"]["1x1"]["loss"]["low"] > 0


def test_the_head_is_asked_of_the_best_documents_by_stored_vectors(
    corpus: Path, queries: NamedQueries
) -> None:
    fused = _documents()[1]
    asked: list[tuple[int, ...]] = []

    def knows(query_BF: np.ndarray, document_BNF: np.ndarray) -> np.ndarray:
        asked.append(document_BNF.shape)
        row = next(r for r, q in enumerate(queries.fused) if np.allclose(q, query_BF[0]))
        return 20 * (document_BNF @ fused[RIGHT[row]])

    far = replace(queries, vectors=near(queries.vectors, 9, 3.0))
    calibration = visit(corpus, far, qrels=qrels(), match=knows)
    assert calibration.matching is not None
    assert calibration.matching["lambda"] > 0
    assert calibration.matching["gain"]["low"] > 0
    assert asked == [(1, 100, 24)] * NUM_QUERIES
    noise = np.random.default_rng(1)
    silent = visit(
        corpus, far, qrels=qrels(), match=lambda q, d: noise.standard_normal(d.shape[:2])
    )
    assert silent.matching is not None
    assert silent.matching["lambda"] == 0


def test_judged_queries_alone_are_measured_and_lost_documents_named(
    corpus: Path, queries: NamedQueries, tmp_path: Path
) -> None:
    build_index(write_embeddings(tmp_path / "e", *_documents()), tmp_path / "index")
    gone = f"doc-{RIGHT[0]:04d}"
    delete_documents(tmp_path / "index", [gone])
    found = diagnose(
        SearchIndex.open(tmp_path / "index"),
        queries,
        qrels=qrels(IDS[:25]),
        counts=[20],
        timed_queries=1,
    )
    assert found.calibration.ndcg is not None
    assert found.calibration.ndcg["queries"] == 25 - int((RIGHT[:25] == RIGHT[0]).sum())
    assert any("1 relevant documents" in note for note in found.notes)


def test_without_fused_vectors_the_head_is_not_measured_and_said_so(
    corpus: Path, queries: NamedQueries
) -> None:
    found = diagnose(
        SearchIndex.open(corpus),
        replace(queries, fused=None),
        qrels=qrels(),
        match=lambda query, document: document[..., 0],
        counts=[20],
        timed_queries=1,
    )
    assert found.calibration.matching is None
    assert {row.plan.coarse for row in found.calibration.rows} == {None, "first", "prefix"}
    assert any("matching head was not measured" in note for note in found.notes)
    assert any("coarse 'fused' is left out" in note for note in found.notes)


def test_what_cannot_be_examined_is_refused(corpus: Path, queries: NamedQueries) -> None:
    few = NamedQueries(IDS[:19], queries.vectors[:19], None)
    with pytest.raises(UserError, match=r"19 queries.*too few"):
        visit(corpus, few)
    with pytest.raises(UserError, match="do not fit this index"):
        visit(corpus, replace(queries, vectors=queries.vectors[..., :8]))
    with pytest.raises(UserError, match=r"name no relevant document.*'other'.*'q0'"):
        visit(corpus, queries, qrels=qrels(["other"]))
    broken = queries.vectors.copy()
    broken[-1, 0, 0] = np.nan
    with pytest.raises(UserError, match="finite"):
        visit(corpus, replace(queries, vectors=broken))


def test_progress_is_told(corpus: Path, queries: NamedQueries) -> None:
    lines: list[str] = []
    visit(corpus, queries, progress=lines.append)
    assert lines[0] == f"truth: {NUM_QUERIES} of {NUM_QUERIES} queries"
    assert lines[1].startswith("plan 1 of")


LADDER_OF_TABLE = Ladder.parse(LADDER)


def rung(mean: float, low: float, high: float) -> dict[str, Any]:
    loss = {"mean": low + (high - low) / 2, "low": low, "high": high}
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "loss": loss}


def made(**changes: Any) -> Calibration:
    rows = (
        row("4x8", 1000, 0.92, 2.0, coarse="fused"),
        row("4x8", 1000, 0.994, 3.0, coarse="first"),
        row("4x8", 500, 0.95, 1.0, coarse="first", front=False),
        row("4x8", None, 1.0, 50.0),
    )
    return table(*rows, **changes)


def test_advice_names_the_better_coarse_choice_and_what_auto_runs() -> None:
    lines = advice(made(), LADDER_OF_TABLE)
    assert lines[0].startswith(
        "by this table 'auto' runs first:1000 > 4x8: recall@10 100.0 %, at least 99.4"
    )
    assert "scoring everything takes 50.0 ms" in lines[0]
    assert any("'fused' misses 7.0 %" in line and "use 'first'" in line for line in lines)
    assert not any("matching" in line or "nDCG" in line for line in lines)


def test_advice_on_budgets_says_loss_only_where_it_was_measured() -> None:
    rungs = {
        "fused": rung(0.5, 0.2, 0.3),
        "1x1": rung(0.7, -0.3, -0.2),
        "2x4": rung(0.8, -0.1, 0.1),
        "4x8": rung(0.8, 0.0, 0.0),
    }
    lines = advice(made(ndcg={"queries": 100, "lost": 0, "k": 10, "rungs": rungs}), LADDER_OF_TABLE)
    told = {line.split()[0]: line for line in lines if "nDCG" in line}
    assert "loses 25.0 points" in told["fused"]
    assert "gains 25.0 points" in told["1x1"]
    assert "loses nothing measurable" in told["2x4"]
    assert "25.0 % of the dot products" in told["2x4"]
    assert "4x8" not in told


@pytest.mark.parametrize(
    ("weight", "low", "says"),
    [(0.0, 0.0, "leave it off"), (0.1, -0.01, "leave it off"), (0.1, 0.02, "+3.0 points")],
)
def test_advice_on_the_head_wants_a_gain_above_chance(weight: float, low: float, says: str) -> None:
    gain = {"mean": 0.03, "low": low, "high": 0.05}
    measured = {"lambda": weight, "k": 10, "candidates": 100, "gain": gain}
    assert says in advice(made(matching=measured), LADDER_OF_TABLE)[-1]


def test_advice_says_when_no_plan_is_sure_enough() -> None:
    unsure = [replace(r, recall={k: Share(0.9, 0.85) for k in (1, 10, 100)}) for r in made().rows]
    lines = advice(made(rows=tuple(unsure[:3])), LADDER_OF_TABLE)
    assert any("no plan short of scoring everything" in line for line in lines)
    assert any("the best coarse choice misses 10.0 %" in line for line in lines)


def test_the_table_for_people_holds_the_front_and_marks_auto() -> None:
    rows = calibration_rows(made(), LADDER_OF_TABLE)
    assert rows[0][:2] == ["plan", "R@1"]
    assert [line[0] for line in rows[1:]] == ["fused:1000 > 4x8", "first:1000 > 4x8", "all > 4x8"]
    assert [line[-1] for line in rows[1:]] == ["", "auto", ""]


@pytest.mark.parametrize("judged", [False, True])
def test_the_plot_is_drawn(tmp_path: Path, judged: bool) -> None:
    pytest.importorskip("matplotlib")
    rungs = {name: rung(0.5, 0.0, 0.1) for name in ("fused", "1x1", "2x4", "4x8")}
    ndcg = {"queries": 100, "lost": 0, "k": 10, "rungs": rungs} if judged else None
    out = plot_calibration(made(ndcg=ndcg), LADDER_OF_TABLE, tmp_path / "new" / "out.png")
    assert out.read_bytes()[:4] == b"\x89PNG"
