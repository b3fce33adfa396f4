"""Live searches are checked now and then, off the request path."""

import threading
from dataclasses import replace
from pathlib import Path

from rematch_ray.index.search import SearchIndex
from rematch_ray.serve.drifting import DriftWatch
from tests.serve.local import build, query


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
