"""Exact answers from 8-bit scores: the same as scoring every document from its originals."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rematch_ray.index import certified
from rematch_ray.index.build import build_index
from rematch_ray.index.changes import add_documents, delete_documents, merge_segments
from rematch_ray.index.maxima import CarriedMaxima, coded_scores
from rematch_ray.index.search import SearchIndex
from rematch_ray.scoring.budget import Budget
from tests.index.made import Vectors, queries, unit, write_embeddings

RUNGS = ("fused", "1x1", "2x4", "4x8")


def near_ties(count: int, width: float, seed: int) -> np.ndarray:
    """Documents that differ from one by little: 8 bits do not tell them apart."""
    noise = np.random.default_rng(seed).standard_normal((count, 8, 16))
    vectors = unit((1, 8, 16), seed + 1) + width * noise
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def best_of_all(index: SearchIndex, query: Vectors, rung: str, top_k: int) -> list[str]:
    scores = index.score_all(query, [rung])[rung][0]
    keys = index._generation.keys
    order = np.lexsort((keys, -scores))[:top_k]
    ids = index.ids()
    return [ids[row] for row in order]


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("width", [0.0, 0.001, 0.01, 0.1, 3.0])
def test_hits_are_those_of_exact_scores_however_close_documents_are(
    make_index: Callable[..., SearchIndex], rung: str, width: float
) -> None:
    vectors = near_ties(300, width, 5)
    fused = np.concatenate([vectors[:, 0], vectors[:, 1, :8]], axis=1)
    index = make_index(vectors, fused / np.linalg.norm(fused, axis=1, keepdims=True))
    for query in (queries(3)[row : row + 1] for row in range(3)):
        for top_k in (1, 7, 300):
            [found] = index.search(query, budget=rung, candidates="all", top_k=top_k)
            assert [hit.id for hit in found.hits] == best_of_all(index, query, rung, top_k)
            assert (found.exact, found.scores) == (True, "float")


@settings(max_examples=60, deadline=None)
@given(
    width=st.sampled_from([0.002, 0.02, 0.3, 2.0]),
    seed=st.integers(0, 10_000),
    limit=st.integers(1, 40),
    rung=st.sampled_from(["1x1", "2x4", "4x8"]),
)
def test_no_document_of_the_best_is_ever_left_out(
    tmp_path_factory: pytest.TempPathFactory, width: float, seed: int, limit: int, rung: str
) -> None:
    path = tmp_path_factory.mktemp("certified")
    build_index(write_embeddings(path / "shards", near_ties(60, width, seed), None), path / "index")
    index = SearchIndex.open(path / "index")
    query = Vectors(unit((1, 4, 16), seed + 7), None)
    [found] = index.search(query, budget=rung, candidates="all", top_k=limit)
    assert [hit.id for hit in found.hits] == best_of_all(index, query, rung, limit)


@settings(max_examples=80, deadline=None)
@given(
    width=st.sampled_from([0.0, 0.002, 0.02, 0.3, 2.0]),
    seed=st.integers(0, 10_000),
    limit=st.integers(1, 70),
    rung=st.sampled_from(RUNGS),
    is_whole=st.booleans(),
)
def test_the_kernel_certifies_what_numpy_does_and_reads_as_many(
    tmp_path_factory: pytest.TempPathFactory,
    width: float,
    seed: int,
    limit: int,
    rung: str,
    is_whole: bool,
) -> None:
    path = tmp_path_factory.mktemp("certified")
    vectors = near_ties(60, width, seed)
    build_index(write_embeddings(path / "shards", vectors, vectors[:, 0]), path / "index")
    index = SearchIndex.open(path / "index")
    budget, generation = Budget.parse(rung), index._generation
    asked = unit((1, 4, 16), seed + 7)
    query = index._check_queries(Vectors(asked, asked[:, 0]))
    rows = np.random.default_rng(seed).permutation(60)[: 1 + seed % 60]
    scores = coded_scores(generation, query, rows, budget)[0]
    coded = certified.Coded(rows, scores, is_whole=is_whole)
    found = certified.certify(generation, query, coded, budget, limit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certified, "EXACT_PATHS", ())
        expected = certified.certify(generation, query, coded, budget, limit)
    assert found.rows.tolist() == expected.rows.tolist()
    assert found.scores.tolist() == expected.scores.tolist()
    if width > 0:  # equal bounds stand in any order
        assert found.read == expected.read


def test_a_bound_that_is_too_small_would_show(
    make_index: Callable[..., SearchIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests above would fail without the bounds: 8 bits alone order near ties wrongly."""
    index = make_index(near_ties(300, 0.01, 5), None)
    monkeypatch.setattr(
        certified, "bound_terms", lambda norms, errors: (np.zeros(norms.shape[:-1]),) * 2
    )
    wrong = 0
    for row in range(20):
        query = queries(20)[row : row + 1]
        [found] = index.search(query, budget="4x8", candidates="all", top_k=5)
        wrong += [hit.id for hit in found.hits] != best_of_all(index, query, "4x8", 5)
    assert wrong > 5


def test_far_apart_documents_are_not_read_from_originals(
    make_index: Callable[..., SearchIndex],
) -> None:
    index = make_index(unit((300, 8, 16), 1), None)
    [found] = index.search(queries(1), budget="4x8", candidates="all", top_k=3)
    assert found.stages[-1]["name"] == "exact"
    assert 3 <= found.stages[-1]["in"] < 60


def test_groups_are_found_however_far_down_they_are(
    make_index: Callable[..., SearchIndex],
) -> None:
    payloads = [{"group": "rare" if row == 299 else "common"} for row in range(300)]
    vectors = near_ties(300, 0.05, 3)
    vectors[299] = -vectors[0]
    index = make_index(vectors, None, payloads=payloads)
    [found] = index.search(queries(1), budget="4x8", candidates="all", top_k=2, group_by="group")
    assert [hit.payload["group"] for hit in found.hits] in (["common", "rare"], ["rare", "common"])


@pytest.mark.parametrize("path", [["1x1", "2x4", "4x8"], ["2x4", "4x8"], ["1x1", "4x8"], ["4x8"]])
def test_carried_maxima_equal_scores_from_nothing(index: SearchIndex, path: list[str]) -> None:
    generation = index._generation
    query = index._check_queries(queries(1))
    rows = np.random.default_rng(3).permutation(300)[:90]
    carried = CarriedMaxima(generation, query, rows, 4)
    for name in path:
        rung = Budget.parse(name)
        expected = coded_scores(generation, query, carried.rows, rung)[0]
        np.testing.assert_array_equal(carried.advance(rung), expected)
        carried.keep(np.argsort(-expected, kind="stable")[: len(expected) // 2])


def test_without_originals_scores_are_those_of_8_bits_and_say_so(
    embeddings: Path, tmp_path: Path
) -> None:
    build_index(embeddings, tmp_path / "small", originals=False)
    build_index(embeddings, tmp_path / "large")
    small, large = (SearchIndex.open(tmp_path / name) for name in ("small", "large"))
    query = queries(1)
    for index, kept in ((small, False), (large, True)):
        [found] = index.search(query, budget="4x8", candidates="all")
        assert (found.scores, found.exact) == (("float", True) if kept else ("int8", False))
    assert small.info()["bytes"] < 0.7 * large.info()["bytes"]
    scores = small.search(query, budget="4x8", candidates="all", top_k=300)[0].hits
    exact = dict(zip(large.ids(), large.score_all(query, ["4x8"])["4x8"][0]))
    assert max(abs(hit.score - exact[hit.id]) for hit in scores) < 0.01
    assert small.search(query, budget="fused", candidates="all")[0].exact


def test_an_index_without_originals_is_merged_to_the_same_hits(
    embeddings: Path, tmp_path: Path
) -> None:
    path = tmp_path / "index"
    build_index(embeddings, path, originals=False)
    more = write_embeddings(
        tmp_path / "more", unit((40, 8, 16), 8), unit((40, 24), 9), ids=[f"n{i}" for i in range(40)]
    )
    add_documents(path, more)
    delete_documents(path, ["doc-0003", "n7"])
    before = SearchIndex.open(path).search(queries(5), budget="4x8", candidates="all", top_k=20)
    merge_segments(path)
    after = SearchIndex.open(path).search(queries(5), budget="4x8", candidates="all", top_k=20)
    assert [found.hits for found in before] == [found.hits for found in after]
    assert {found.scores for found in after} == {"int8"}
