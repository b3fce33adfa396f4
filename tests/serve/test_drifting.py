"""Live searches are checked now and then, off the request path."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rematch_ray.index.search import SearchIndex
from rematch_ray.serve.backend import SearchPlan
from rematch_ray.serve.drifting import DriftWatch
from rematch_ray.serve.split import SplitIndex
from rematch_ray.serve.wire import Asked
from tests.serve.local import build, query, router_over, shards_of


def test_a_share_of_searches_is_checked_and_told(tmp_path: Path) -> None:
    index = SearchIndex.open(build(tmp_path, 1))
    told: list[tuple[str, float]] = []
    done = threading.Event()

    def tell(rung: str, recall: float) -> None:
        told.append((rung, recall))
        done.set()

    watch = DriftWatch(1.0, tell)
    [result] = index.search(query(), budget="2x4", candidates=20)
    assert not watch.offer(index, query(), result)  # nothing was promised
    promised = replace(result, expected_recall=0.99)
    assert watch.offer(index, query(), promised)
    assert done.wait(10)
    [right] = index.search(query(), budget="4x8", candidates="all")
    shared = {hit.id for hit in right.hits} & {hit.id for hit in result.hits}
    assert told == [("2x4", len(shared) / 10)]
    assert not DriftWatch(0.0, tell).offer(index, query(), promised)


def test_it_rests_after_each_check(tmp_path: Path) -> None:
    index = SearchIndex.open(build(tmp_path, 1))
    [result] = index.search(query(), budget="2x4", candidates=20)
    promised = replace(result, expected_recall=0.99)
    done = threading.Event()
    watch = DriftWatch(1.0, lambda rung, recall: done.set())
    assert watch.offer(index, query(), promised)
    assert done.wait(10)
    watch._thread.shutdown(wait=True)
    assert not watch.offer(index, query(), promised)


async def test_searches_of_a_split_index_are_checked_over_all_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, float]] = []
    watch = DriftWatch(1.0, lambda rung, recall: told.append((rung, recall)))
    router = router_over(shards_of(build(tmp_path, 3), 3), drift=watch)
    build(tmp_path, 1)
    honest = SplitIndex.search

    async def promising(self: SplitIndex, admitted: Any, asked: Asked) -> Any:
        found = await honest(self, admitted, asked)
        return replace(found, result=replace(found.result, expected_recall=0.99))

    monkeypatch.setattr(SplitIndex, "search", promising)
    # what is cut off or left out says nothing of recall
    await router.search(query(), SearchPlan(budget="2x4", candidates=20, offset=2))
    answer = await router.search(query(), SearchPlan(budget="2x4", candidates=20))
    for _ in range(200):
        if told:
            break
        await asyncio.sleep(0.05)
    [right] = SearchIndex.open(tmp_path / "index-1").search(query(), budget="4x8", candidates="all")
    shared = {hit.id for hit in right.hits} & {hit.id for hit in answer.result.hits}
    assert told == [("2x4", len(shared) / 10)]
    watch._thread.shutdown(wait=True)
