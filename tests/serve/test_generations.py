"""Requests move on to a state of the index when every live replica has it, and not back."""

from rematch_ray.serve.generations import LIVE_S, GenerationBoard
from rematch_ray.serve.wire import State
from tests.serve.local import Clock

OLD, NEW = "set-000001", "set-000002"


def board(num_shards: int) -> tuple[GenerationBoard, Clock]:
    clock = Clock()
    return GenerationBoard(num_shards, clock), clock


def test_nothing_is_served_until_every_shard_has_reported() -> None:
    one, _ = board(2)
    one.report(0, "a", {OLD: "g1"})
    assert one.current is None
    one.report(1, "b", {OLD: "g4"})
    assert one.current == State(OLD, ("g1", "g4"))


def test_it_moves_on_when_all_replicas_of_all_shards_have_the_new_state() -> None:
    one, _ = board(2)
    for shard, replica in ((0, "a"), (0, "b"), (1, "c")):
        one.report(shard, replica, {OLD: "g1"})
    one.report(0, "a", {OLD: "g1", NEW: "g2"})
    one.report(1, "c", {OLD: "g1", NEW: "g1"})
    assert one.current == State(OLD, ("g1", "g1"))
    one.report(0, "b", {OLD: "g1", NEW: "g2"})
    assert one.current == State(NEW, ("g2", "g1"))


def test_a_replica_that_is_silent_holds_nobody_back_for_long() -> None:
    one, clock = board(1)
    one.report(0, "dead", {OLD: "g1"})
    one.report(0, "alive", {OLD: "g1", NEW: "g2"})
    assert one.current == State(OLD, ("g1",))
    clock.now += LIVE_S / 2
    one.report(0, "alive", {OLD: "g1", NEW: "g2"})
    assert one.current == State(OLD, ("g1",))
    clock.now += LIVE_S / 2 + 0.1
    assert one.current == State(NEW, ("g2",))
    assert one.replicas() == [1]


def test_a_replica_with_an_old_view_of_the_disk_turns_nobody_back() -> None:
    one, _ = board(1)
    one.report(0, "a", {OLD: "g1", NEW: "g2"})
    assert one.current == State(NEW, ("g2",))
    one.report(0, "late", {"set-000000": "g0", OLD: "g1"})
    assert one.current == State(NEW, ("g2",))


def test_a_new_replica_that_has_only_the_newest_state_leaves_the_others_where_they_are() -> None:
    one, _ = board(1)
    one.report(0, "a", {OLD: "g1"})
    one.report(0, "fresh", {NEW: "g2"})
    assert one.current == State(OLD, ("g1",))
    one.report(0, "a", {OLD: "g1", NEW: "g2"})
    assert one.current == State(NEW, ("g2",))


def test_a_state_that_is_published_again_is_taken_again() -> None:
    one, _ = board(1)
    one.report(0, "a", {OLD: "g1", NEW: "g2"})
    one.report(0, "a", {NEW: "g2", OLD: "g1"})
    assert one.current == State(OLD, ("g1",))


def test_when_all_replicas_are_gone_the_state_stays() -> None:
    one, clock = board(1)
    one.report(0, "a", {OLD: "g1"})
    clock.now += 10 * LIVE_S
    assert one.current == State(OLD, ("g1",))
    assert one.replicas() == [0]
