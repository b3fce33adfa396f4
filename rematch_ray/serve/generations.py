"""Which state of an index requests are admitted to: the newest that every live replica has open.

Fed by the reports of the shards' replicas, read by the coordinator. Pure: time comes from a clock.
Knows no Ray and no files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rematch_ray.serve.wire import State

# a replica that has said nothing for so long takes no requests any more
LIVE_S = 5.0


@dataclass(frozen=True)
class _Reported:
    at: float
    states: Mapping[str, str]


class GenerationBoard:
    """Reports of all replicas, and the state they agree on.

    Args:
        num_shards: N; a state is complete once a replica of each has it.
        clock: seconds, monotonic.
    """

    def __init__(self, num_shards: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._reports: list[dict[str, _Reported]] = [{} for _ in range(num_shards)]
        self._clock = clock
        self._current: State | None = None

    def report(self, shard: int, replica: str, states: Mapping[str, str]) -> None:
        """Take down what a replica has open.

        Args:
            shard: number.
            replica: name of the process.
            states: name of a state -> generation of this shard, the published one last.
        """
        self._reports[shard][replica] = _Reported(self._clock(), dict(states))
        self._move_on()

    @property
    def current(self) -> State | None:
        """The state for new requests; None until every shard has reported one."""
        self._move_on()
        return self._current

    def replicas(self) -> list[int]:
        """Live replicas of each shard."""
        return [len(self._living(reports)) for reports in self._reports]

    def _move_on(self) -> None:
        """Take the newest state that all live replicas of all shards have.

        Where no state is common to all (a replica just came up with another), the current one
        stays: a replica opens a generation that a request names.
        """
        living = [self._living(reports) for reports in self._reports]
        if not all(living):
            return
        everyone = [report for reports in living for report in reports]
        # a replica lists what it has in the order in which it was published
        newest = max(everyone, key=lambda report: report.at).states
        for name in reversed(list(newest)):
            if all(name in report.states for report in everyone):
                if not any(self._precedes(name, report.states) for report in everyone):
                    self._current = State(
                        name, tuple(reports[0].states[name] for reports in living)
                    )
                return

    def _precedes(self, name: str, states: Mapping[str, str]) -> bool:
        """Whether a state was published before the current one: a replica with an old view of the
        disk does not turn the others back.
        """
        order = list(states)
        current = None if self._current is None else self._current.name
        return current in order and order.index(name) < order.index(current)

    def _living(self, reports: dict[str, _Reported]) -> list[_Reported]:
        oldest = self._clock() - LIVE_S
        for replica in [name for name, report in reports.items() if report.at < oldest]:
            del reports[replica]
        return list(reports.values())
