"""Running the tasks of a mining job that are still missing, with a line of progress. Top floor."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rematch_ray.workloads.runtime import Background
from rematch_ray.workloads.stages import ReadCall, plain_context, read_calls

PROGRESS_SECONDS = 5.0


def run_tasks(
    verb: str,
    tasks: Sequence[tuple[Callable[[], list[pa.Table]], Path]],
    num_cpus: float,
    *,
    what: str = "row groups",
) -> None:
    """Run as Ray Data tasks those whose last file is not there, and show how many are done."""
    missing = [(task, file) for task, file in tasks if not file.exists()]
    if not missing:
        return
    plain_context()
    dataset = read_calls([ReadCall(task, 1) for task, _ in missing], num_cpus=num_cpus)
    running = Background(lambda: _exhaust(dataset), verb)
    while not running.wait(PROGRESS_SECONDS):
        say(f"{verb} {sum(file.exists() for _, file in tasks)}/{len(tasks)} {what}")
    running.result()
    say(f"{verb} {len(tasks)}/{len(tasks)} {what}")


def _exhaust(dataset: Any) -> None:
    for _ in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        pass


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array so that its file is whole or absent."""
    partial = path.with_name(f".{path.name}")
    with partial.open("wb") as file:
        np.save(file, array)
    partial.replace(path)


def say(line: str) -> None:
    """Tell the user, on stderr."""
    print(line, file=sys.stderr, flush=True)
