"""A share of searches is run again; the alarm goes off when they find less than was promised."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rematch_ray.errors import UserError
from rematch_ray.index.calibration_writer import publish_calibration
from rematch_ray.index.drift import DriftCheck
from rematch_ray.index.search import SearchIndex
from tests.index.made import Vectors, queries
from tests.index.tables import row, table

COUNT = 60


@pytest.fixture
def promising(index: SearchIndex, tmp_path: Path) -> Callable[[float, int], SearchIndex]:
    """An index whose calibration promises a recall of a plan of so many candidates."""

    def make(low: float, candidates: int) -> SearchIndex:
        measured = table(row("4x8", candidates, low, 1.0), standing=index.standing)
        publish_calibration(tmp_path / "index", measured)
        return SearchIndex.open(tmp_path / "index")

    return make


def observe(check: DriftCheck, query: Vectors) -> list[float]:
    results = check.index.search(query)
    each = [check.observe(query[at : at + 1], result) for at, result in enumerate(results)]
    return [recall for recall in each if recall is not None]


def test_what_is_observed_is_the_recall_against_an_exhaustive_search(
    promising: Callable[[float, int], SearchIndex],
) -> None:
    check = DriftCheck(promising(0.3, 100), 1.0)
    seen = observe(check, queries(COUNT))
    right = check.index.search(queries(COUNT), candidates="all")
    found = check.index.search(queries(COUNT))
    pairs = zip(right, found, strict=True)
    naive = [len({h.id for h in r.hits} & {h.id for h in f.hits}) / 10 for r, f in pairs]
    assert seen == naive
    estimate = check.estimate()
    assert estimate.queries == COUNT
    assert estimate.recall == pytest.approx(sum(naive) / COUNT)
    assert estimate.low < sum(naive) / COUNT < estimate.high
    assert estimate.promised == pytest.approx(0.3)
    assert not estimate.alarm


def test_the_alarm_goes_off_when_the_promise_is_not_kept(
    promising: Callable[[float, int], SearchIndex],
) -> None:
    check = DriftCheck(promising(0.99, 20), 1.0)
    assert not check.estimate().alarm
    seen = observe(check, queries(COUNT))
    assert sum(seen) / COUNT < 0.8
    assert check.estimate().alarm
    assert check.to_json()["alarm"] is True


def test_a_share_is_drawn_by_the_seed(promising: Callable[[float, int], SearchIndex]) -> None:
    index = promising(0.9, 100)
    counts = []
    for seed in (1, 1, 2):
        check = DriftCheck(index, 0.4, seed)
        result = index.search(queries(1))[0]
        counts.append([check.observe(queries(1), result) is not None for _ in range(40)])
    assert counts[0] == counts[1] != counts[2]
    assert 5 < sum(counts[0]) < 30
    assert observe(DriftCheck(index, 0.0), queries(3)) == []


def test_a_search_that_promised_nothing_or_cannot_fail_is_not_run_again(
    promising: Callable[[float, int], SearchIndex],
) -> None:
    index = promising(0.9, 100)
    check = DriftCheck(index, 1.0)
    [filtered] = index.search(queries(1), filter={"inner.half": True})
    [everything] = index.search(queries(1), filter={"group": "food"}, candidates="all")
    [promised] = index.search(queries(1))
    assert everything.expected_recall == 1.0
    for result in (filtered, everything, replace(promised, generation="generation-000009")):
        assert check.observe(queries(1), result) is None
    assert check.observe(queries(1), promised) is not None


def test_the_window_forgets_what_is_old(promising: Callable[[float, int], SearchIndex]) -> None:
    check = DriftCheck(promising(0.9, 100), 1.0, window=5)
    seen = observe(check, queries(12))
    estimate = check.estimate()
    assert estimate.queries == 5
    assert estimate.recall == pytest.approx(sum(seen[-5:]) / 5)


@pytest.mark.parametrize(("share", "window"), [(-0.1, 5), (1.1, 5), (0.5, 0)])
def test_impossible_settings_are_refused(index: SearchIndex, share: float, window: int) -> None:
    with pytest.raises(UserError):
        DriftCheck(index, share, window=window)
