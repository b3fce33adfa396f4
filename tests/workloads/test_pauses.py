"""How long Ray Data's scheduling loop rests: never long beside what it waits for."""

from types import SimpleNamespace

import pytest
import ray.data

from rematch_ray.workloads.pauses import LongPauseBetweenSteps, PauseBetweenSteps, count_events
from rematch_ray.workloads.stages import plain_context


def begun(pause: PauseBetweenSteps, at: float) -> PauseBetweenSteps:
    pause._began = pause._changed = at
    pause._events = 0
    return pause


def test_a_rest_is_a_share_of_the_time_since_something_happened() -> None:
    pause = begun(PauseBetweenSteps(), 100.0)
    assert pause.rest(1, 120.0) == pause.shortest
    assert pause.rest(1, 124.0) == pytest.approx(pause.share * 4.0)
    assert pause.rest(1, 500.0) == pause.longest
    assert pause.rest(2, 500.0) == pause.shortest


@pytest.mark.parametrize("kind", [PauseBetweenSteps, LongPauseBetweenSteps])
def test_a_run_that_has_just_begun_rests_shortly(kind: type[PauseBetweenSteps]) -> None:
    pause = begun(kind(), 100.0)
    assert pause.rest(0, 109.0) == pause.shortest
    assert pause.rest(0, 111.0) >= pause.shortest


def test_what_the_operators_of_this_ray_count(ray_cluster: None) -> None:
    seen: list[int] = []

    class Watching(PauseBetweenSteps):
        def on_execution_step(self, executor: object) -> None:
            seen.append(count_events(executor))

    context = ray.data.DataContext.get_current().copy()
    with ray.data.DataContext.current(context):
        plain_context(Watching)
        ray.data.range(4, override_num_blocks=4).map_batches(lambda batch: batch).materialize()
    assert seen == sorted(seen)
    # four tasks at the least: each started, made a block and ended
    assert seen[-1] - seen[0] >= 12


def test_events_are_summed_over_operators_and_counters() -> None:
    names = (
        "num_tasks_submitted",
        "num_task_outputs_generated",
        "num_tasks_finished",
        "num_outputs_taken",
    )
    operators = [
        SimpleNamespace(metrics=SimpleNamespace(**dict.fromkeys(names, n))) for n in (1, 2)
    ]
    assert count_events(SimpleNamespace(_topology=operators)) == 12
