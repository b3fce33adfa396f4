"""Ray Data's building blocks: readers as a Datasource, and the training stream's encode stage.

Adapters: they call the middle floor and pass Arrow tables on. All tables are plain Arrow
(`batch_format="pyarrow"`): with Ray's default format nested columns would be written as pickles.
Torch and transformers are imported where they are used: read tasks and Ray's coordinators load this
module too, and would spend seconds on them. The stages of embedding are in embed_stages.py and
embed_actor.py. Top floor.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import pyarrow as pa
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from rematch_ray.model.settings import ModelSettings
from rematch_ray.workloads.pauses import PauseBetweenSteps

if TYPE_CHECKING:
    from rematch_ray.data.samples import SampleEncoder


@dataclass(frozen=True)
class ReadCall:
    """One read task: what to call on a worker, and how many rows it will yield, if known."""

    read: Callable[[], Iterable[pa.Table]]
    num_rows: int | None


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


def read_calls(
    calls: Sequence[ReadCall], *, num_cpus: float, at_once: int | None = None
) -> ray.data.Dataset:
    """Return the dataset of what the calls yield; call `i` comes before call `i + 1`.

    Args:
        calls: one read task each.
        num_cpus: logical CPUs of a read task.
        at_once: read tasks that run at the same time; None = as many as there is room for.
    """
    return ray.data.read_datasource(
        ReaderSource(calls),
        override_num_blocks=len(calls),
        num_cpus=num_cpus,
        compute=ray.data.TaskPoolStrategy(size=at_once),
    )


def plain_context(pause: type[PauseBetweenSteps] = PauseBetweenSteps) -> None:
    """Set this process's Data context for our pipelines; a dataset captures it when it is made."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # it warns that there are no progress bars, which we asked for
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.custom_execution_callback_classes = [pause]


def reason_of(error: BaseException) -> str:
    """Return an error's message on one line, for a column or a log."""
    return " ".join(str(error).split()) or type(error).__name__


class EncodeSamples:
    """The stream's encode stage: a `SampleEncoder` that loads its processors once per process.

    Args:
        settings: of the model.
        max_negatives: hard negatives taken per row.
        seed: of the draws.
    """

    def __init__(self, settings: ModelSettings, *, max_negatives: int, seed: int) -> None:
        self._arguments = (settings.model_dump_json(), max_negatives, seed)

    def __call__(self, tables: list[pa.Table], index: int, masked_rows: int) -> pa.Table:
        """Encode the samples of all sub-batches of step `index`, in order, then masked rows."""
        return _sample_encoder(*self._arguments)(tables, index, masked_rows=masked_rows)


@lru_cache(maxsize=1)
def _sample_encoder(settings: str, max_negatives: int, seed: int) -> "SampleEncoder":
    from rematch_ray.data.samples import SampleEncoder
    from rematch_ray.model.starting import find_start

    model = ModelSettings.model_validate_json(settings)
    return SampleEncoder(
        find_start(model.base).row_encoder(model),
        max_negatives=max_negatives,
        seed=seed,
        instructions=model.instructions,
    )
