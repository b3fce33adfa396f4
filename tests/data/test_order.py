"""The plan of an epoch: repeatable, complete, mixed as asked and blind to the world size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rematch_ray.data.order import OrderSettings, Plan, SourceRows, Step
from rematch_ray.errors import UserError


def plan(
    *row_groups: tuple[int, ...],
    seed: int = 0,
    weights: tuple[float | None, ...] | None = None,
    **order: object,
) -> Plan:
    chosen = weights or (None,) * len(row_groups)
    sources = tuple(
        SourceRows(f"s{i}", groups, weight)
        for i, (groups, weight) in enumerate(zip(row_groups, chosen, strict=True))
    )
    return Plan(sources, seed, OrderSettings(**{"global_batch": 8, "sub_batch": 4, **order}))


def addresses(step: Step) -> list[tuple[int, int, int]]:
    return [
        (batch.source, int(group), int(row))
        for batch in step.sub_batches
        for group, row in zip(batch.row_groups, batch.rows, strict=True)
    ]


def epoch(of: Plan, number: int = 0) -> list[tuple[int, int, int]]:
    first = number * of.steps_per_epoch
    return [a for step in of.steps(first, first + of.steps_per_epoch) for a in addresses(step)]


sizes = st.lists(st.integers(4, 40), min_size=1, max_size=7).map(tuple)


@settings(max_examples=60, deadline=None)
@given(st.lists(sizes, min_size=1, max_size=3), st.integers(1, 9), st.integers(0, 99))
def test_every_row_comes_at_most_once_an_epoch_and_exists(
    row_groups: list[tuple[int, ...]], window: int, seed: int
) -> None:
    made = plan(*row_groups, seed=seed, window=window, global_batch=4)
    seen = epoch(made, 3)
    assert len(seen) == made.steps_per_epoch * 4
    assert len(set(seen)) == len(seen)
    assert all(0 <= row < row_groups[source][group] for source, group, row in seen)


def test_one_source_sits_out_less_than_one_step_of_rows() -> None:
    made = plan((30, 17, 41), window=2)
    assert made.steps_per_epoch == 88 // 8
    assert len(epoch(made)) == 88


def test_two_passes_over_the_same_plan_are_equal() -> None:
    first, again = (plan((40, 40, 33), (25, 31), seed=5, window=2) for _ in range(2))
    assert first.digest == again.digest
    assert epoch(first, 1) == epoch(again, 1)


def test_a_step_asked_for_out_of_order_is_the_same_step() -> None:
    walked = list(plan((40, 40, 33), window=1).steps(0, 20))
    for index in (19, 3, 11, 0):
        assert addresses(plan((40, 40, 33), window=1).step(index)) == addresses(walked[index])


def test_epochs_and_seeds_change_the_order() -> None:
    made = plan((64, 64))
    assert epoch(made, 0) != epoch(made, 1)
    assert epoch(made) != epoch(plan((64, 64), seed=1))
    assert made.digest != plan((64, 64), seed=1).digest


def test_rows_are_shuffled_across_the_row_groups_of_a_window() -> None:
    made = plan((32,) * 6, window=3)
    windows = [{group for _, group, _ in addresses(made.step(i))} for i in range(12)]
    assert max(len(groups) for groups in windows) > 1
    # a window of 3 row groups is 96 rows, 12 steps: none of its groups comes back later
    early = set().union(*windows)
    late = {group for i in range(12, 24) for _, group, _ in addresses(made.step(i))}
    assert len(early) == 3
    assert not early & late


def test_sub_batches_hold_one_source_and_follow_the_weights() -> None:
    made = plan((400,), (400,), weights=(3.0, 1.0), global_batch=16)
    for step in made.steps(0, made.steps_per_epoch):
        assert sorted(batch.source for batch in step.sub_batches) == [0, 0, 0, 1]


def test_the_order_inside_a_step_is_drawn_so_ranks_see_every_source() -> None:
    made = plan((400,), (400,), weights=(1.0, 1.0))
    on_rank_0 = {step.for_rank(0, 2)[0].source for step in made.steps(0, 40)}
    assert on_rank_0 == {0, 1}


def test_end_epoch_stops_with_the_first_source_and_leave_out_goes_on() -> None:
    stops = plan((40,), (400,), weights=(1.0, 1.0))
    goes_on = plan((40,), (400,), weights=(1.0, 1.0), when_source_ends="leave_out")
    assert stops.steps_per_epoch == 10
    assert goes_on.steps_per_epoch == 55
    assert {source for source, _, _ in epoch(goes_on)[-80:]} == {1}


def test_without_weights_sources_end_together() -> None:
    made = plan((40,), (400,))
    assert made.steps_per_epoch == 55
    thirds = np.array_split([source for source, _, _ in epoch(made)], 3)
    assert [int((third == 0).sum()) > 0 for third in thirds] == [True, True, True]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5, 9])
def test_the_rows_of_a_step_do_not_depend_on_the_world_size(world_size: int) -> None:
    made = plan((100, 60), global_batch=16)
    step = made.step(7)
    dealt = [step.for_rank(rank, world_size) for rank in range(world_size)]
    assert sorted(id(batch) for batches in dealt for batch in batches) == sorted(
        id(batch) for batch in step.sub_batches
    )
    masked = [made.masked_rows(rank, world_size) for rank in range(world_size)]
    assert {4 * len(batches) + rows for batches, rows in zip(dealt, masked, strict=True)} == {
        4 * -(-4 // world_size)
    }


def test_window_steps_spans_the_longest_window() -> None:
    assert plan((32,) * 6, window=3).window_steps == 12
    assert plan((32,) * 6, window=99).window_steps == 24


@pytest.mark.parametrize(
    ("row_groups", "weights", "message"),
    [
        ([], None, "names no source"),
        ([(3,)], None, "less than one sub-batch of 4"),
        ([(5,)], None, "less than one global batch of 8"),
        ([(50,), (50,)], (1.0, None), "for every source, or for none"),
        ([(50,), (50,)], (1.0, 0.0), "above 0"),
    ],
)
def test_data_that_cannot_make_a_step_is_refused(
    row_groups: list[tuple[int, ...]], weights: tuple[float | None, ...] | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan(*row_groups, weights=weights)


def test_a_global_batch_that_is_no_whole_number_of_sub_batches_is_refused() -> None:
    with pytest.raises(ValidationError, match="not a whole number of sub-batches"):
        OrderSettings(global_batch=10, sub_batch=4)


def test_the_digest_sees_the_content_of_a_source() -> None:
    order = OrderSettings(global_batch=4, sub_batch=4)
    old, new = (Plan((SourceRows("s", (9,), None, mark),), 0, order) for mark in ("a", "b"))
    assert old.digest != new.digest
