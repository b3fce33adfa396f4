"""Search against brute force, under filters, groups and ties, and what it refuses."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rematch_ray.errors import UserError
from rematch_ray.index.build import build_index
from rematch_ray.index.grouping import Grouping
from rematch_ray.index.payload import document_key
from rematch_ray.index.plan import Plan
from rematch_ray.index.quantisation import quantise
from rematch_ray.index.search import SearchIndex
from rematch_ray.scoring.budget import Budget
from rematch_ray.scoring.maxsim import fused_scores, maxsim
from tests.index.made import GROUPS, LADDER, Vectors, queries, unit, write_embeddings

RUNGS = ["fused", *LADDER]


def half(vectors: np.ndarray) -> np.ndarray:
    return vectors.astype(np.float16)


def reference_scores(
    query: Vectors, vectors: np.ndarray, fused: np.ndarray
) -> dict[str, np.ndarray]:
    """Scores by the plainest loops over float16 documents, every dot product in long double."""
    scores = {"fused": (half(fused).astype(np.longdouble) @ query.fused.T.astype(np.longdouble)).T}
    for text in LADDER:
        budget = Budget.parse(text)
        documents = half(vectors)[:, : budget.r_d].astype(np.longdouble)
        rows = []
        for one in query.vectors[:, : budget.r_q].astype(np.longdouble):
            similarity = np.einsum("qd,ckd->cqk", one, documents)
            rows.append(similarity.max(axis=2).mean(axis=1))
        scores[text] = np.stack(rows)
    return {name: matrix.astype(np.float64) for name, matrix in scores.items()}


@pytest.mark.parametrize("rung", RUNGS)
def test_all_candidates_rank_as_brute_force_does(index: SearchIndex, rung: str) -> None:
    query = queries(7)
    expected = reference_scores(query, unit((300, 8, 16), 1), unit((300, 24), 2))[rung]
    found = index.search(query, budget=rung, candidates="all", top_k=300)
    for row, result in enumerate(found):
        assert result.exact
        assert result.scored == 300
        order = np.argsort(-expected[row], kind="stable")
        assert [hit.id for hit in result.hits] == [f"doc-{column:04d}" for column in order]
        scores = [hit.score for hit in result.hits]
        np.testing.assert_allclose(scores, expected[row][order], atol=2e-7)


@pytest.mark.parametrize("rung", RUNGS)
def test_a_score_is_explained_by_its_matrix(index: SearchIndex, rung: str) -> None:
    query = queries(1)
    shape = (1, 1) if rung == "fused" else tuple(int(n) for n in rung.split("x"))
    for hit in index.search(query, budget=rung)[0].hits:
        matrix = index.explain(query, hit.id, budget=rung)
        assert matrix.shape == shape
        assert matrix.max(axis=1).mean() == pytest.approx(hit.score, abs=1e-6)
    with pytest.raises(UserError, match="document 'nobody' is not in the index"):
        index.explain(query, "nobody")
    with pytest.raises(UserError, match="one query, not 2"):
        index.explain(queries(2), "doc-0001")


@pytest.mark.parametrize("rung", RUNGS)
def test_scores_agree_with_the_training_side_maxsim(index: SearchIndex, rung: str) -> None:
    query = queries(5)
    documents = torch.tensor(half(unit((300, 8, 16), 1)))
    if rung == "fused":
        expected = fused_scores(torch.tensor(query.fused), torch.tensor(half(unit((300, 24), 2))))
    else:
        expected = maxsim(torch.tensor(query.vectors), documents, Budget.parse(rung))
    found = index.score_all(query)[rung]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("rung", RUNGS)
def test_search_and_score_all_agree_bit_for_bit(index: SearchIndex, rung: str) -> None:
    query = queries(5)
    scores = index.score_all(query)[rung]
    column = {name: position for position, name in enumerate(index.ids())}
    for row in range(5):
        [alone] = index.search(query[row : row + 1], budget=rung, candidates="all", top_k=300)
        [cascade] = index.search(query[row : row + 1], budget=rung, candidates=150, top_k=150)
        for hit in [*alone.hits, *cascade.hits]:
            assert np.float32(hit.score) == scores[row, column[hit.id]]


def test_a_batch_of_queries_returns_what_each_returns_alone(index: SearchIndex) -> None:
    query = queries(40)
    for candidates in ("all", 30, "auto"):
        together = index.search(query, candidates=candidates)
        alone = [index.search(query[row : row + 1], candidates=candidates)[0] for row in range(40)]
        assert [result.hits for result in together] == [result.hits for result in alone]


def test_candidates_are_the_best_of_the_coarse_stage(index: SearchIndex) -> None:
    query = queries(1)
    lists = {
        "fused": (unit((300, 24), 2), query.fused[0]),
        "first": (unit((300, 8, 16), 1)[:, 0], query.vectors[0, 0]),
    }
    ids = np.array(index.ids())
    for coarse, (documents, wanted) in lists.items():
        [found] = index.search(query, budget="4x8", candidates=25, top_k=25, coarse=coarse)
        scores = decoded(documents.astype(np.float16)) @ decoded(wanted[None])[0]
        expected = ids[np.argsort(-scores, kind="stable")[:25]]
        assert {hit.id for hit in found.hits} == set(expected)
        assert (found.candidates, found.scored, found.exact) == (25, 25, False)
        assert [stage["name"] for stage in found.stages] == [
            "filter",
            f"coarse:{coarse}",
            "4x8",
            "exact",
        ]


def decoded(vectors: np.ndarray) -> np.ndarray:
    """What 8 bits keep of vectors, (N, D) float64."""
    codes, scales = quantise(vectors[:, None])
    return (codes[:, 0] * scales.astype(np.float64)).astype(np.float64)


def test_both_coarse_lists_are_merged_by_rank(index: SearchIndex) -> None:
    query = queries(1)
    lists = {
        name: [hit.id for hit in index.search(query, budget=rung, candidates="all")[0].hits]
        for name, rung in (("fused", "fused"), ("first", "1x1"))
    }
    [found] = index.search(query, candidates=10, top_k=10, coarse="both")
    both = {hit.id for hit in found.hits}
    assert len(both) == 10
    assert {*lists["fused"][:5], *lists["first"][:5]} <= both | {lists["first"][4]}
    assert both <= {*lists["fused"], *lists["first"]}


def test_as_many_candidates_as_documents_is_exact(index: SearchIndex) -> None:
    query = queries(3)
    everything = index.search(query, candidates="all")
    assert [r.hits for r in index.search(query, candidates=300)] == [r.hits for r in everything]
    assert index.search(query, candidates=300)[0].exact


def test_filters_keep_exactly_the_documents_that_match(index: SearchIndex) -> None:
    query = queries(1)
    cases = [
        ({"group": "animals"}, lambda row: row % 3 == 0),
        ({"group": ["animals", "food"]}, lambda row: row % 3 in (0, 1)),
        ({"group": "food", "number": 2}, lambda row: row % 3 == 1 and row % 5 == 2),
        ({"tags": "t1"}, lambda row: row % 2 == 1),
        ({"tags": "all"}, lambda row: True),
        ({"inner.half": True}, lambda row: row % 2 == 0),
        ({"source": "source-1"}, lambda row: row % 2 == 0),
        ({"id": ["doc-0003", "doc-0299", "nobody"]}, lambda row: row in (3, 299)),
        ({"group": []}, lambda row: False),
        ({"group": "'; DROP TABLE documents; --"}, lambda row: False),
    ]
    for condition, passes in cases:
        expected = {f"doc-{row:04d}" for row in range(300) if passes_row(condition, passes, row)}
        [found] = index.search(query, candidates="all", top_k=300, filter=condition)
        assert {hit.id for hit in found.hits} == expected, condition
        assert found.exact
        assert found.scored == len(expected)
        assert found.live == 300


def passes_row(condition: dict, passes: Callable[[int], bool], row: int) -> bool:
    # the embedding directory has two shards and counts sources within each
    return passes(row % 150 + 1) if "source" in condition else passes(row)


def test_a_filter_reaches_the_coarse_stage(index: SearchIndex) -> None:
    [found] = index.search(queries(1), candidates=20, top_k=20, filter={"group": "travel"})
    assert len(found.hits) == 20
    assert {hit.payload["group"] for hit in found.hits} == {"travel"}
    assert found.stages[0]["out"] == 100
    assert not found.exact


def test_few_survivors_of_a_filter_are_all_scored(index: SearchIndex) -> None:
    [found] = index.search(queries(1), candidates=150, filter={"group": "travel"})
    assert found.exact
    assert found.scored == 100


def test_scores_of_a_filtered_corpus_are_columns_of_the_whole(index: SearchIndex) -> None:
    condition = {"group": ["animals", "travel"], "tags": "t1"}
    names, chosen = index.ids(), index.ids(condition)
    assert 0 < len(chosen) < len(names)
    columns = [names.index(name) for name in chosen]
    whole = index.score_all(queries(4))
    for rung, matrix in index.score_all(queries(4), filter=condition).items():
        np.testing.assert_array_equal(matrix, whole[rung][:, columns])
    assert list(index.score_all(queries(1), ["2x4"])) == ["2x4"]


def test_many_threads_get_what_one_gets(index: SearchIndex, tmp_path: Path) -> None:
    query = queries(30)

    def search(row: int) -> list:
        found = fresh.search(query[row : row + 1], candidates=50, filter={"tags": "t1"})
        return found[0].hits

    expected = [
        index.search(query[row : row + 1], candidates=50, filter={"tags": "t1"})[0].hits
        for row in range(30)
    ]
    fresh = SearchIndex.open(tmp_path / "index")
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(search, range(30))) == expected


def test_an_open_index_survives_a_change_of_directory_and_odd_names(
    embeddings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd ?#%41 é").mkdir()
    monkeypatch.chdir(tmp_path / "odd ?#%41 é")
    build_index(embeddings, "index")
    index = SearchIndex.open("index")
    monkeypatch.chdir(tmp_path)
    assert len(index.search(queries(1), filter={"group": "food"})[0].hits) == 10


def test_a_group_gives_only_its_best_hit(index: SearchIndex) -> None:
    [ranked] = index.search(queries(1), candidates="all", top_k=300)
    [grouped] = index.search(queries(1), candidates="all", top_k=10, group_by="group")
    expected = {
        group: next(h for h in ranked.hits if h.payload["group"] == group) for group in GROUPS
    }
    assert sorted(hit.id for hit in grouped.hits) == sorted(hit.id for hit in expected.values())
    assert [h.score for h in grouped.hits] == sorted((h.score for h in grouped.hits), reverse=True)


@pytest.mark.parametrize("candidates", ["all", 299])
def test_a_source_is_a_group_as_it_is_a_field_of_filters(
    index: SearchIndex, candidates: Any
) -> None:
    asked: dict[str, Any] = {"candidates": candidates, "top_k": 10}
    expected = [
        index.search(queries(1), **asked, filter={"source": source})[0].hits[0]
        for source in ("source-0", "source-1")
    ]
    [grouped] = index.search(queries(1), **asked, group_by="source")
    assert grouped.hits == sorted(expected, key=lambda hit: -hit.score)
    best = grouped.hits[0].id
    [apart] = index.search(queries(1), **asked, group_by=Grouping("source", apart=best))
    assert len(apart.hits) == 3


def test_equal_scores_go_by_id_whatever_the_row_order(
    make_index: Callable[..., SearchIndex],
) -> None:
    vectors = np.repeat(unit((1, 8, 16), 5), 50, axis=0)
    fused = np.repeat(unit((1, 24), 6), 50, axis=0)
    ids = [f"twin-{row}" for row in range(50)]
    expected = sorted(ids, key=document_key)
    for name, order in (("up", ids), ("down", ids[::-1])):
        twins = make_index(vectors, fused, name=name, ids=order)
        for candidates in ("all", 20):
            [found] = twins.search(queries(1), candidates=candidates, top_k=10)
            assert [hit.id for hit in found.hits] == expected[:10]


@settings(max_examples=6, deadline=None)
@given(order=st.permutations(range(12)), batch_rows=st.integers(1, 13))
def test_row_order_and_batches_change_no_score(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], batch_rows: int
) -> None:
    path = tmp_path_factory.mktemp("order")
    found = []
    for name, rows in (("straight", list(range(12))), ("shuffled", order)):
        source = write_embeddings(
            path / f"{name}-embeddings",
            unit((12, 8, 16), 1)[rows],
            unit((12, 24), 2)[rows],
            ids=[f"doc-{row}" for row in rows],
        )
        build_index(source, path / name, batch_rows=batch_rows)
        index = SearchIndex.open(path / name)
        scores = index.score_all(queries(3))
        found.append({rung: dict(zip(index.ids(), m.T.tolist())) for rung, m in scores.items()})
    assert found[0] == found[1]


def test_an_index_without_fused_vectors_has_no_fused_rung(
    make_index: Callable[..., SearchIndex],
) -> None:
    index = make_index(unit((40, 8, 16), 1), None)
    query = Vectors(queries(2).vectors, None)
    assert [str(budget) for budget in index.budgets] == LADDER
    assert index.search(query, candidates=20)[0].stages[1]["name"] == "coarse:first"
    with pytest.raises(UserError, match="budget 'fused' does not exist here"):
        index.search(query, budget="fused")
    with pytest.raises(UserError, match="coarse 'both' does not exist here; allowed: first"):
        index.search(query, coarse="both")


def test_inverted_lists_choose_candidates_and_never_claim_to_be_exact(
    make_index: Callable[..., SearchIndex],
) -> None:
    index = make_index(unit((900, 8, 16), 1), unit((900, 24), 2), coarse_kind="ivf")
    assert index.info()["coarse"] == {"first": "ivf", "fused": "ivf"}
    results = index.search(queries(5), candidates=100, filter={"group": ["food", "travel"]})
    best = index.search(queries(5), candidates="all", filter={"group": ["food", "travel"]})
    for found, exact in zip(results, best):
        assert (found.scored, found.exact, exact.exact) == (100, False, True)
        known = {hit.id: hit.score for hit in exact.hits}
        assert all(hit.score <= exact.hits[0].score for hit in found.hits)
        assert all(known.get(hit.id, hit.score) == hit.score for hit in found.hits)


def test_no_budget_and_auto_mean_the_top_rung(index: SearchIndex) -> None:
    for budget in (None, "auto", "full", "4x8", Budget(4, 8)):
        assert index.search(queries(1), budget=budget)[0].budget == "4x8"


def test_a_large_corpus_is_narrowed_through_a_smaller_budget(
    make_index: Callable[..., SearchIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rematch_ray.index.planner.EXHAUSTIVE_COST", 100)
    monkeypatch.setattr("rematch_ray.index.planner.AUTO_CANDIDATES", 400)
    index = make_index(unit((900, 8, 16), 1), unit((900, 24), 2))
    [found] = index.search(queries(1), candidates="auto", top_k=5)
    assert [(s["name"], s["in"], s["out"]) for s in found.stages] == [
        ("filter", 900, 900),
        ("coarse:fused", 900, 400),
        ("2x4", 400, 100),
        ("4x8", 100, found.stages[-1]["in"]),
        ("exact", found.stages[-1]["in"], 5),
    ]
    assert 5 <= found.stages[-1]["in"] < 100
    assert (found.candidates, found.scored, found.exact) == (400, 100, False)


def test_few_survivors_of_a_filter_go_into_the_first_rung_without_a_coarse_stage(
    make_index: Callable[..., SearchIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rematch_ray.index.planner.EXHAUSTIVE_COST", 100)
    monkeypatch.setattr("rematch_ray.index.planner.AUTO_CANDIDATES", 200)
    index = make_index(unit((900, 8, 16), 1), unit((900, 24), 2))
    [found] = index.search(queries(1), top_k=5, filter={"group": "travel"})
    assert [(s["name"], s["in"], s["out"]) for s in found.stages] == [
        ("filter", 900, 300),
        ("2x4", 300, 100),
        ("4x8", 100, found.stages[-1]["in"]),
        ("exact", found.stages[-1]["in"], 5),
    ]
    assert (found.candidates, found.scored, found.exact) == (300, 100, False)
    assert {hit.payload["group"] for hit in found.hits} == {"travel"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": "3x3"}, "budget '3x3' does not exist here; allowed: fused, 1x1, 2x4, 4x8"),
        ({"budget": "many"}, "budget 'many' does not exist"),
        ({"top_k": 0}, "top_k 0 is not possible"),
        ({"top_k": 2.5}, "top_k 2.5 is not possible"),
        ({"candidates": 0}, "candidates 0 is not possible"),
        ({"candidates": "some"}, "candidates 'some' is not possible"),
        ({"candidates": 5, "top_k": 10}, "candidates 5 is below top_k 10"),
        ({"filter": {"grupo": "x"}}, "filter field 'grupo' is not there; did you mean group"),
        ({"filter": {"group": None}}, "filter value None of 'group' is not possible"),
        ({"filter": {"group": {"a": 1}}}, "filter value {'a': 1} of 'group' is not possible"),
        ({"filter": {"number": float("inf")}}, "filter value inf of 'number' is not possible"),
        ({"filter": {"number": [1, float("-inf")]}}, "filter value -inf of 'number'"),
        ({"filter": {"number": float("nan")}}, "filter value nan of 'number' is not possible"),
        ({"filter": {"group": "\ud800"}}, "of 'group' is not possible: give a text"),
        ({"group_by": "nam"}, "group_by 'nam' is not there; did you mean name"),
        ({"coarse": "last"}, "coarse 'last' does not exist here"),
    ],
)
def test_what_cannot_be_searched_is_refused_by_name(
    index: SearchIndex, arguments: dict, message: str
) -> None:
    with pytest.raises(UserError) as refused:
        index.search(queries(1), **arguments)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_query_vectors_that_do_not_fit_are_refused(index: SearchIndex) -> None:
    good = queries(2)
    broken = good.vectors.copy()
    broken[1, 2, 3] = np.nan
    for query, message in [
        (queries(1, dim=8), "do not fit this index"),
        (queries(1, num_vectors=3), "at least 4"),
        (queries(1, fused_dim=8), "fused query vectors of shape"),
        (Vectors(broken, good.fused), "vector 2 of query 1 has norm nan"),
        (Vectors(good.vectors * 2, good.fused), "of unit norm"),
    ]:
        with pytest.raises(UserError, match=message):
            index.search(query)
    with pytest.raises(UserError, match="budget 'fused' needs fused query vectors"):
        index.search(Vectors(good.vectors, None), budget="fused")
    with pytest.raises(UserError, match="coarse 'fused' needs fused query vectors"):
        index.search(Vectors(good.vectors, None), candidates=20)


def test_more_hits_than_documents_gives_all_documents(index: SearchIndex) -> None:
    plan = Plan(Budget(4, 8), 100, ((Budget(2, 4), 2**63),))
    for top_k in (10_000, 2**62, 2**63, 10**30):
        for how in ({}, {"group_by": "name"}, {"budget": "1x1"}):
            assert len(index.search(queries(1), top_k=top_k, **how)[0].hits) == 300
    assert len(index.search(queries(1), plan=plan, top_k=100)[0].hits) == 100


def test_only_the_model_that_made_the_index_is_accepted(index: SearchIndex) -> None:
    index.check_model({"digest": "d1" * 32, "name": "stub"})
    with pytest.raises(
        UserError, match=r"model other \(eeee.* does not fit this index.*stub \(d1d1"
    ):
        index.check_model({"digest": "ee" * 32, "name": "other"})


def test_payloads_are_found_by_id(index: SearchIndex) -> None:
    found = index.payload(["doc-0004", "nobody", "doc-0000"])
    assert found[1] is None
    assert found[0]["name"] == "name 4"
    assert found[2]["group"] == "animals"


def test_stored_fused_vectors_come_back_by_id(index: SearchIndex) -> None:
    expected = half(unit((300, 24), 2))[[7, 3]].astype(np.float32)
    np.testing.assert_array_equal(index.fused_vectors(["doc-0007", "doc-0003"]), expected)
    with pytest.raises(UserError, match="'nobody' is not in the index"):
        index.fused_vectors(["nobody"])


def test_info_is_plain_json_and_prices_every_rung(index: SearchIndex, tmp_path: Path) -> None:
    info = json.loads(json.dumps(index.info()))
    assert info["documents"] == info["live"] == len(index) == 300
    assert info["bytes_per_document"] == {"fused": 28, "1x1": 20, "2x4": 80, "4x8": 160}
    assert info["path"] == str(tmp_path / "index")
    assert info["instruction"] == "find it"
