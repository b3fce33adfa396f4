"""News of nodes that are about to be taken away, heard by all ranks at the same step. Top floor."""

import time

import ray.train

from rematch_ray.collectives import rank

LOOK_SECONDS = 5.0


class Preemption:
    """Asks Ray now and then whether a node with one of our ranks is about to go.

    Asking is a barrier of all ranks, so rank 0 says when: the others follow at the same step.
    """

    def __init__(self) -> None:
        self._asked = time.monotonic()
        self._known: set[str] = set()

    @property
    def due(self) -> bool:
        """Whether rank 0 wants to ask; False on the others."""
        return rank() == 0 and time.monotonic() - self._asked > LOOK_SECONDS

    def news(self) -> str:
        """Ask; return which nodes go that were not named before, "" for none. Collective."""
        self._asked = time.monotonic()
        info = ray.train.get_preemption_info()
        gone = set() if info is None else set(info.preempted_node_ids) - self._known
        self._known |= gone
        return ", ".join(f"{node[:8]} (ranks {_ranks(info, node)})" for node in sorted(gone))


def _ranks(info: ray.train.PreemptionInfo, node: str) -> str:
    return ", ".join(str(number) for number in info.preempted_node_to_ranks[node])
