"""Keeps data tasks from running far ahead of training.

Left alone, Ray Data fills its share of the object store: hundreds of steps of a small model,
encoded for nothing when the workers are restarted, on cores that training could use. Knows Ray
Data's operators and queues, nothing of what is in them. Top floor.
"""

from typing import Any

import ray.data
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    BackpressurePolicy,
)

LIMIT_KEY = "rematch_ray.blocks_ahead"


def stay_within(blocks: int) -> None:
    """Bound the blocks that a stage makes ahead of its readers, in this process's Data context."""
    context = ray.data.DataContext.get_current()
    policies = [*ENABLED_BACKPRESSURE_POLICIES, BlocksAhead]
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, policies)
    context.set_config(LIMIT_KEY, blocks)


class BlocksAhead(BackpressurePolicy):
    """Starts no task, and takes no block from a running one, while enough blocks wait behind it."""

    def __init__(self, data_context: Any, topology: Any, resource_manager: Any) -> None:
        super().__init__(data_context, topology, resource_manager)
        self._limit: int = data_context.get_config(LIMIT_KEY)

    def can_add_input(self, op: Any) -> bool:
        """Whether another task may start: those that run count, and whatever nobody has taken.

        Tasks start in order, so the one that everybody waits for is always among those that run.
        """
        return op.num_active_tasks() + self._waiting(op) < self._limit

    def max_task_output_bytes_to_read(self, op: Any) -> int | None:
        """No more from a reader while enough of its blocks could be taken at once.

        Blocks that wait for an earlier one do not count: the earlier one must come through.
        """
        is_reader = not any(self._reads(source) for source in op.input_dependencies)
        enough = self._topology[op].output_queue.num_blocks >= self._limit
        return 0 if is_reader and enough else None

    def _waiting(self, op: Any) -> int:
        """Blocks between this operator and whoever reads the stream."""
        waiting = self._topology[op].total_enqueued_output_blocks()
        for reader in op.output_dependencies:
            if not self._reads(reader):
                waiting += getattr(reader, "internal_input_queue_num_blocks", int)()
                waiting += self._waiting(reader)
        return int(waiting)

    @staticmethod
    def _reads(op: Any) -> bool:
        """Whether an operator runs tasks over its inputs: blocks that wait for it are its own."""
        return bool(op.input_dependencies) and not op.throttling_disabled()
