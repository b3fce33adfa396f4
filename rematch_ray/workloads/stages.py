"""Ray Data's building blocks: readers as a Datasource, and the stage that holds the model.

Adapters: they call the middle floor and pass Arrow tables on. All tables are plain Arrow
(`batch_format="pyarrow"`): with Ray's default format nested columns would be written as pickles.
Top floor.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask


@dataclass(frozen=True)
class ReadCall:
    """One read task: what to call on a worker, and how many rows it will yield."""

    read: Callable[[], Iterable[pa.Table]]
    num_rows: int


class ReaderSource(Datasource):
    """A Ray Datasource over any reader: one read task per call, in the order given."""

    def __init__(self, calls: Sequence[ReadCall]) -> None:
        super().__init__()
        self._calls = calls

    def get_name(self) -> str:
        """Name shown in Ray's dashboard."""
        return "Reader"

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown: Ray then keeps to the number of calls."""
        return None

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: ray.data.DataContext | None = None,
    ) -> list[ReadTask]:
        """Return one task per call, whatever parallelism Ray proposes."""
        return [
            ReadTask(
                call.read,
                BlockMetadata(
                    num_rows=call.num_rows, size_bytes=None, input_files=None, exec_stats=None
                ),
            )
            for call in self._calls
        ]


def read_calls(calls: Sequence[ReadCall], *, num_cpus: float) -> ray.data.Dataset:
    """Return the dataset of what the calls yield; call `i` comes before call `i + 1`."""
    return ray.data.read_datasource(
        ReaderSource(calls), override_num_blocks=len(calls), num_cpus=num_cpus
    )


def plain_context() -> None:
    """Set this process's Data context for our pipelines; a dataset captures it when it is made."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True


def reason_of(error: BaseException) -> str:
    """Return an error's message on one line, for a column or a log."""
    return " ".join(str(error).split()) or type(error).__name__


def constant_column(table: pa.Table, value: Any, kind: pa.DataType) -> pa.Array:
    """Return a column as long as the table that repeats one value."""
    return pa.repeat(pa.scalar(value, kind), table.num_rows)
