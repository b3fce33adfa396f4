"""A served index, split or not, looks for missing groups as one in process does, in time."""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rematch_ray.index.build import build_index
from rematch_ray.index.search import SearchIndex
from rematch_ray.index.sharding.build import build_sharded
from rematch_ray.serve.backend import (
    DeadlineError,
    NotReadyError,
    OverloadedError,
    SearchPlan,
)
from rematch_ray.serve.router import Router
from rematch_ray.serve.searching import spent_on
from rematch_ray.serve.wire import Orders
from tests.index.made import crowded, narrow_small_indexes
from tests.serve.local import LocalShard, StubCoordinator, query, router_over, shards_of

COUNTS = [1, 2, 5]
BY_FILE = SearchPlan(group_by="file", top_k=10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("groups")
    source = crowded(folder / "embeddings")
    for count in COUNTS:
        out = folder / f"index-{count}"
        build_index(source, out) if count == 1 else build_sharded(source, out, count)
    return folder


@pytest.fixture(autouse=True)
def _small_indexes_are_narrowed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow_small_indexes(monkeypatch, 30)


def served(folder: Path, count: int, **options: Any) -> Router:
    return router_over(shards_of(folder / f"index-{count}", count), **options)


@pytest.mark.parametrize("count", COUNTS)
async def test_hits_and_passes_are_those_of_the_search_in_process(folder: Path, count: int) -> None:
    whole, router = SearchIndex.open(folder / "index-1"), served(folder, count)
    asked: list[Mapping[str, Any]] = [
        {},
        {"budget": "2x4", "coarse": "first"},
        {"budget": "4x8", "candidates": 40},
        {"group_by": "source"},
        {"group_by": "file", "filter": {"file": ["file-3", "file-4", "file-5"]}},
        {"text": "1", "candidates": 40},
    ]
    short = []
    for number in range(3):
        for fields in asked:
            plan = replace(BY_FILE, **fields)
            how = {"group_by": "file", **fields}
            [expected] = whole.search(query(number), top_k=10, **how)
            answer = await router.search(query(number), plan)
            found = answer.result
            assert found.hits == expected.hits, fields
            assert found.plan == expected.plan, fields
            assert (found.scored, found.candidates, found.exact) == (
                expected.scored, expected.candidates, expected.exact,
            ), fields  # fmt: skip
            assert [s["name"] for s in found.stages] == [s["name"] for s in expected.stages]
            assert answer.dot_products == spent_on(expected, {"fused": 300, "first": 300})
            short.append("groups_short" in found.plan)
    assert short == [False, False, True, False, False, True] * 3


@pytest.mark.parametrize("count", COUNTS)
async def test_every_pass_is_paid_for(folder: Path, count: int) -> None:
    router = served(folder, count)
    found = await router.search(query(), BY_FILE)
    [*passes] = [stage for stage in found.result.stages if stage["name"] == "4x8"]
    assert passes[-1]["in"] == 300
    # the first pass and the last, which scores all of them
    assert found.dot_products > 300 * 32 + passes[0]["in"] * 32 - 1


@pytest.mark.parametrize("count", COUNTS)
async def test_a_deadline_ends_with_fewer_groups_and_not_without_an_answer(
    folder: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = served(folder, count)
    calm = await router.search(query(), replace(BY_FILE, deadline=time.monotonic() + 600))
    assert len(calm.result.hits) == 10
    # a pass that is expected to take longer than any deadline allows
    monkeypatch.setattr("rematch_ray.index.widening._MARGIN", 10**9)
    hurried = await router.search(query(), replace(BY_FILE, deadline=time.monotonic() + 60))
    assert 0 < len(hurried.result.hits) < 10
    assert hurried.result.plan["groups_short"] is True
    assert hurried.degraded == ()
    patient = await router.search(query(), BY_FILE)
    assert len(patient.result.hits) == 10


@pytest.mark.parametrize("count", COUNTS)
async def test_who_gets_less_under_load_gets_no_second_pass(folder: Path, count: int) -> None:
    router = served(folder, count, coordinator=StubCoordinator(Orders(level=1)))
    await router.follower.exchange()
    found = await router.search(query(), BY_FILE)
    assert found.degraded == ("load",)
    assert found.result.plan["groups_short"] is True
    assert found.result.plan["chosen_by"].startswith("load")


@pytest.mark.parametrize("count", COUNTS)
async def test_an_explicit_budget_gets_no_second_pass_while_others_get_less(
    folder: Path, count: int
) -> None:
    for orders, is_short in ((Orders(level=1, refuses_explicit=True), True), (Orders(), False)):
        router = served(folder, count, coordinator=StubCoordinator(orders))
        await router.follower.exchange()
        found = await router.search(query(), replace(BY_FILE, budget="2x4"))
        assert found.degraded == ()
        assert ("groups_short" in found.result.plan) == is_short


@pytest.mark.parametrize("count", COUNTS)
async def test_no_pass_scores_more_than_the_limits_allow(folder: Path, count: int) -> None:
    router = served(folder, count)
    found = await router.search(query(), replace(BY_FILE, widen_to=150))
    scored = [stage["in"] for stage in found.result.stages if stage["name"] == "4x8"]
    assert max(scored) <= 150
    assert found.result.plan["groups_short"] is True
    whole = await router.search(query(), replace(BY_FILE, widen_to=300))
    assert "groups_short" not in whole.result.plan


@pytest.mark.parametrize("count", COUNTS[1:])
@pytest.mark.parametrize("error", [OverloadedError, NotReadyError, DeadlineError])
async def test_a_later_pass_that_fails_leaves_what_was_found(
    folder: Path, count: int, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    router, ask = served(folder, count), LocalShard.ask
    passes: list[str] = []

    async def failing(self: LocalShard, method: str, *values: Any) -> Any:
        passes.append(method)
        if method == "ahead" and passes.count("ahead") > count:
            raise error("in the second pass")
        return await ask(self, method, *values)

    monkeypatch.setattr(LocalShard, "ask", failing)
    found = await router.search(query(), BY_FILE)
    assert passes.count("ahead") > count
    assert 0 < len(found.result.hits) < 10
    assert found.result.plan["groups_short"] is True


async def test_a_grouped_search_of_one_pass_teaches_what_its_plan_takes(folder: Path) -> None:
    router = served(folder, 1)
    found = await router.search(query(), replace(BY_FILE, top_k=1))
    assert "widened" not in found.result.plan["chosen_by"]
    assert any(not name.endswith("by groups") for name in router.forecast._plans)


async def test_what_groups_take_is_not_expected_of_other_searches(folder: Path) -> None:
    router = served(folder, 1)
    await router.search(query(), SearchPlan(top_k=10))
    before = dict(router.forecast._plans)
    await router.search(query(), BY_FILE)
    [new] = set(router.forecast._plans) - set(before)
    assert new.endswith("by groups")
