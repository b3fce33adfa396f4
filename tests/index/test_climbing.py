"""Candidates through growing budgets: one call of the kernel gives what carried maxima give."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rematch_ray.errors import UserError
from rematch_ray.index import climbing, maxsim_library
from rematch_ray.index.changes import add_documents
from rematch_ray.index.climbing import climb
from rematch_ray.index.maxima import coded_scores
from rematch_ray.index.plan import Plan
from rematch_ray.index.search import SearchIndex
from rematch_ray.scoring.budget import Budget
from tests.index.made import queries, unit, write_embeddings

PATHS = maxsim_library.compiled_paths()
RUNGS = ["1x1", "2x4", "4x8"]


def repeated(count: int, kinds: int, seed: int) -> np.ndarray:
    """Documents of which many are equal: their scores tie."""
    kind = np.random.default_rng(seed).integers(0, kinds, count)
    return unit((kinds, 8, 16), seed + 1)[kind]


def budgets(names: list[str]) -> list[Budget]:
    return [Budget.parse(name) for name in names]


@pytest.fixture(scope="module")
def ties(tmp_path_factory: pytest.TempPathFactory) -> SearchIndex:
    from rematch_ray.index.build import build_index

    folder = tmp_path_factory.mktemp("ties")
    write_embeddings(folder / "embeddings", repeated(300, 40, 1), None)
    build_index(folder / "embeddings", folder / "index")
    return SearchIndex.open(folder / "index")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_one_call_is_carrying_to_the_last_bit(ties: SearchIndex, data: st.DataObject) -> None:
    generation = ties._generation
    draw = data.draw
    seed = draw(st.integers(0, 1000))
    names = draw(st.lists(st.sampled_from(RUNGS), min_size=1, max_size=3, unique=True).map(sorted))
    *narrowing, last = budgets(names)
    keeps = draw(st.lists(st.integers(1, 350), min_size=len(narrowing), max_size=len(narrowing)))
    count = draw(st.integers(1, 300))
    rows = np.random.default_rng(seed).permutation(300)[:count]
    query = ties._check_queries(queries(8)[seed % 8 : seed % 8 + 1])
    arguments = (generation, query, rows, list(zip(narrowing, keeps)), last)
    expected = climbing._by_carrying(*arguments)
    before = rows.copy()
    for path in PATHS:
        found = climbing._in_one_call(path, *arguments)
        np.testing.assert_array_equal(found.rows, expected.rows)
        np.testing.assert_array_equal(found.scores, expected.scores)
        assert list(found.entered) == list(expected.entered)
        assert len(found.ms) == len(names) and min(found.ms) >= 0
    np.testing.assert_array_equal(rows, before)
    np.testing.assert_array_equal(
        expected.scores, coded_scores(generation, query, expected.rows, last)[0]
    )


def test_what_goes_on_is_the_best_and_of_equal_ones_the_smallest_keys(ties: SearchIndex) -> None:
    generation = ties._generation
    query = ties._check_queries(queries(1))
    rows, first = np.arange(300), Budget.parse("2x4")
    scores = coded_scores(generation, query, rows, first)[0]
    best = np.lexsort((generation.keys, -scores))
    assert len(set(scores[best[:60]].tolist())) < 60
    for keep in (1, 7, 60, 299):
        found = climb(generation, query, rows, [(first, keep)], Budget.parse("4x8"))
        assert found.rows.tolist() == sorted(best[:keep].tolist())
        assert list(found.entered) == [300, keep]


@pytest.mark.parametrize("path", PATHS)
def test_keeping_none_never_reaches_the_kernel_and_more_than_all_is_all(
    ties: SearchIndex, path: str
) -> None:
    query, rows = ties._check_queries(queries(1)), np.arange(300)
    first, last = budgets(["2x4", "4x8"])
    for keep in (0, -1):
        with pytest.raises(AssertionError):
            climbing._in_one_call(path, ties._generation, query, rows, [(first, keep)], last)
    found = climbing._in_one_call(path, ties._generation, query, rows, [(first, 2**63)], last)
    assert found.rows.tolist() == rows.tolist()


def test_no_candidate_is_no_hit(ties: SearchIndex) -> None:
    query = ties._check_queries(queries(1))
    narrowing = [(Budget.parse("1x1"), 5)]
    found = climb(ties._generation, query, np.empty(0, np.int64), narrowing, Budget.parse("4x8"))
    assert len(found.rows) == len(found.scores) == 0


def test_hits_are_the_same_with_one_segment_with_several_and_without_a_compiler(
    make_index: Callable[..., SearchIndex], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rematch_ray.index.build import build_index

    vectors, plan = repeated(300, 60, 4), Plan(
        Budget.parse("4x8"), None, ((Budget.parse("1x1"), 90), (Budget.parse("2x4"), 40))
    )  # fmt: skip
    whole = make_index(vectors, None)
    ids = whole.ids()
    write_embeddings(tmp_path / "first", vectors[:120], None, ids=ids[:120])
    write_embeddings(tmp_path / "rest", vectors[120:], None, ids=ids[120:])
    build_index(tmp_path / "first", tmp_path / "index")
    add_documents(tmp_path / "index", tmp_path / "rest")
    parts = SearchIndex.open(tmp_path / "index")
    assert len(parts._generation.segments) == 2

    def found(index: SearchIndex) -> list[list[tuple[str, float]]]:
        results = index.search(queries(5), plan=plan, top_k=10)
        assert [s["name"] for s in results[0].stages] == ["filter", *RUNGS, "exact"]
        assert [s["in"] for s in results[0].stages[1:4]] == [300, 90, 40]
        return [[(hit.id, hit.score) for hit in result.hits] for result in results]

    expected = found(whole)
    assert found(parts) == expected
    monkeypatch.setattr(climbing, "path_in_use", lambda: "numpy")
    assert found(whole) == expected


@pytest.mark.parametrize("names", [["4x8", "2x4"], ["2x4", "fused"], ["fused", "2x4"]])
def test_a_plan_whose_budgets_do_not_grow_is_refused(names: list[str]) -> None:
    first, last = budgets(names)
    with pytest.raises(UserError, match="growing budgets"):
        Plan(last, 100, ((first, 10),))
