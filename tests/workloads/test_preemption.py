"""Nodes that are about to go are named once, and asked for only now and then."""

import pytest
import ray.train

from rematch_ray.workloads import preemption
from rematch_ray.workloads.preemption import Preemption


def test_a_node_that_is_about_to_go_is_named_once_with_its_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[ray.train.PreemptionInfo | None] = [None]
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: told[-1])
    watch = Preemption()
    assert watch.news() == ""
    told.append(ray.train.PreemptionInfo(None, {"a" * 56: [1, 3]}))
    assert watch.news() == "aaaaaaaa (ranks 1, 3)"
    assert watch.news() == ""
    told.append(ray.train.PreemptionInfo(None, {"a" * 56: [1, 3], "b" * 56: [0]}))
    assert watch.news() == "bbbbbbbb (ranks 0)"


def test_rank_0_wants_to_ask_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: None)
    watch = Preemption()
    assert not watch.due
    monkeypatch.setattr(preemption, "LOOK_SECONDS", 0.0)
    assert watch.due
    monkeypatch.setattr(preemption, "rank", lambda: 1)
    assert not watch.due
