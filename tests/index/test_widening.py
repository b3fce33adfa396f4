"""A grouped search goes on until the groups are there, says where it did not, and counts it all."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rematch_ray.index.build import build_index
from rematch_ray.index.choice import Choice
from rematch_ray.index.grouping import Grouping
from rematch_ray.index.hits import Hit, SearchResult
from rematch_ray.index.plan import Plan
from rematch_ray.index.search import SearchIndex
from rematch_ray.index.sharding.build import build_sharded
from rematch_ray.index.widening import GroupPasses
from rematch_ray.scoring.budget import Budget
from tests.index.made import crowded, narrow_small_indexes, queries

BY_FILE: dict[str, Any] = {"group_by": "file", "top_k": 10, "budget": "4x8"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crowded")
    source = crowded(folder / "embeddings")
    build_index(source, folder / "one")
    build_sharded(source, folder / "split", 3)
    return folder


@pytest.fixture(params=["one", "split"])
def index(
    request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SearchIndex]:
    narrow_small_indexes(monkeypatch, 30)
    return SearchIndex.open(folder / request.param)


def names(result: SearchResult) -> list[str]:
    return [stage["name"] for stage in result.stages]


def test_an_automatic_plan_finds_as_many_groups_as_there_are(index: SearchIndex) -> None:
    for budget in ("4x8", "fused", "auto"):
        asked = {**BY_FILE, "budget": budget}
        expected = index.search(queries(4), **asked, candidates="all")
        found = index.search(queries(4), **asked)
        for wide, whole in zip(found, expected, strict=True):
            assert len(wide.hits) == 10
            assert len({hit.payload["file"] for hit in wide.hits}) == 10
            assert "groups_short" not in wide.plan
            assert wide.plan["chosen_by"] == "counts; widened for groups"
            if wide.exact:
                assert wide.hits == whole.hits


def test_every_pass_is_told(index: SearchIndex) -> None:
    [found] = index.search(queries(1), **BY_FILE)
    assert names(found)[:3] == ["filter", "coarse:fused", "2x4"]
    assert names(found).count("exact") > 1
    assert names(found).count("filter") == 1
    assert found.plan["name"] == "all > 4x8"
    assert (found.scored, found.candidates, found.exact) == (300, 300, True)


def test_what_the_caller_named_is_never_widened_and_says_that_groups_may_be_missing(
    index: SearchIndex,
) -> None:
    named: list[dict[str, Any]] = [
        {**BY_FILE, "candidates": 40},
        {"group_by": "file", "plan": Plan(Budget(4, 8), 40, ((Budget(2, 4), 20),))},
    ]
    for asked in named:
        [found] = index.search(queries(1), **asked)
        assert len(found.hits) < 10
        assert found.plan["groups_short"] is True
        assert names(found).count("exact") == 1
        assert not found.exact
    [found] = index.search(queries(1), **{**BY_FILE, "top_k": 20}, candidates="all")
    assert len(found.hits) == 15
    assert "groups_short" not in found.plan


def test_nothing_is_looked_for_where_no_other_group_is_left(index: SearchIndex) -> None:
    for asked in (
        {"group_by": "source"},
        {"group_by": Grouping("source", apart="doc-0000")},
        {"group_by": "file", "filter": {"file": ["file-1", "file-2"], "source": "source-1"}},
    ):
        found = index.search(queries(2), **{**BY_FILE, **asked, "top_k": 5})
        for result in found:
            assert "groups_short" not in result.plan
            assert len({hit.payload["file"] for hit in result.hits}) <= 3
    [found, *_] = index.search(queries(1), **{**BY_FILE, "group_by": "source"})
    assert names(found).count("exact") == 1
    assert len(found.hits) == 2


def test_a_pass_that_would_not_end_in_time_is_not_begun(index: SearchIndex) -> None:
    [found] = index.search(queries(1), **BY_FILE, groups_within_s=0.0)
    assert names(found).count("exact") == 1
    assert found.plan["groups_short"] is True
    [found] = index.search(queries(1), **BY_FILE, groups_within_s=600.0)
    assert len(found.hits) == 10


def test_without_groups_nothing_is_widened(index: SearchIndex) -> None:
    [found] = index.search(queries(1), top_k=10)
    assert "groups_short" not in found.plan
    assert names(found).count("exact") == 1


def test_words_and_vectors_say_that_groups_may_be_missing(index: SearchIndex) -> None:
    asked = {"text": "1", "group_by": "file", "top_k": 10, "candidates": 40}
    [found] = index.search(queries(1), **asked)
    assert len(found.hits) < 10
    assert found.plan["groups_short"] is True


def test_the_time_for_a_pass_is_foreseen_from_the_one_before() -> None:
    plan = Plan(Budget(4, 8), 100, (), "first")
    choice = Choice(plan, None, "counts", is_automatic=True)
    stages = [{"name": "filter", "in": 10_000, "out": 10_000, "ms": 0.0}]
    hits = [Hit("a", 0.5, {"file": "x"})]
    result = SearchResult(hits, "4x8", 100, stages, 100, 10_000, "float", False, "generation")
    asked: dict[str, Any] = {"top_k": 10, "num_allowed": 10_000, "group_by": "file"}
    for until, is_begun in ((None, True), (8.1, True), (7.9, False)):
        # four times the documents, and as much to spare
        passes = GroupPasses(choice, result, 1.0, **asked, until=until, clock=lambda: 0.0)
        assert (passes.next_plan() is not None) == is_begun
