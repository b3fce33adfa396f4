"""Rests of Ray Data's scheduling loop, as long as what it waits for allows.

While all that could be done is held back, because the consumer is slower than the stages, the loop
of Ray 2.60 never waits: beside a training run it took 80 % of a core, and 5 % with 20 steps a
second. A rest here is a share of the time since something last happened, so that no task and no
block waits longer than that share of what it took. Knows Ray Data's operators, nothing of what
flows between them. Top floor.
"""

import time
from typing import Any

# of an operator's metrics: each goes up when a task starts or ends, or a block is made or taken
_COUNTERS = (
    "num_tasks_submitted",
    "num_task_outputs_generated",
    "num_tasks_finished",
    "num_outputs_taken",
)


class PauseBetweenSteps:
    """Execution callback that lets the loop rest; in one step it still does all that is ready.

    A run that has just begun rests shortly: its first tasks end within no known time.
    """

    shortest, longest, share, settled_after = 0.05, 1.0, 0.1, 10.0

    def before_execution_starts(self, executor: Any) -> None:
        """Note when the run began."""
        self._began = self._changed = time.monotonic()
        self._events = 0

    def on_execution_step(self, executor: Any) -> None:
        """Rest."""
        time.sleep(self.rest(count_events(executor), time.monotonic()))

    def rest(self, events: int, now: float) -> float:
        """Return how many seconds to rest.

        Args:
            events: tasks and blocks that were counted since the run began.
            now: on the clock of `time.monotonic`.
        """
        if events != self._events:
            self._events, self._changed = events, now
        if now - self._began < self.settled_after:
            return self.shortest
        return min(max(self.shortest, self.share * (now - self._changed)), self.longest)

    def after_execution_succeeds(self, executor: Any) -> None:
        """Nothing to do."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Nothing to do."""


class LongPauseBetweenSteps(PauseBetweenSteps):
    """The same for a stream that is made many steps ahead of its consumer."""

    shortest = 0.2


def count_events(executor: Any) -> int:
    """Return how many tasks and blocks an executor's operators have counted."""
    metrics = (op.metrics for op in executor._topology)
    return sum(getattr(found, name) for found in metrics for name in _COUNTERS)
