"""Small training runs: their settings, what they logged, and something done while they run."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rematch_ray.config import DataSettings, RunConfig, TrainSettings
from rematch_ray.data.order import OrderSettings
from rematch_ray.data.readers.parquet import read_unit
from rematch_ray.data.rows import stable_id
from rematch_ray.data.sources import SourceSettings
from rematch_ray.training.settings import OptimisationSettings
from rematch_ray.workloads.loop import mark_of_rows
from rematch_ray.workloads.run_directory import RunDirectory
from rematch_ray.workloads.stream import TrainingData
from tests.tiny import model_settings

STEPS = 32


def run_config(base: Path, samples: dict[str, Path], storage: Path, **train: Any) -> RunConfig:
    return RunConfig(
        name="run",
        storage=storage,
        model=model_settings(base),
        optimisation=OptimisationSettings(warmup_steps=2),
        data=DataSettings(
            sources=tuple(SourceSettings(name=n, path=path) for n, path in samples.items()),
            order=OrderSettings(global_batch=8, sub_batch=2),
        ),
        train=TrainSettings(
            **{"steps": STEPS, "checkpoint_every": 4, "progress_seconds": 0.2, **train}
        ),
    )


def records(run: RunConfig, event: str) -> list[dict[str, Any]]:
    return [r for r in RunDirectory(run.directory).records() if r["event"] == event]


def planned_rows(data: TrainingData, index: int) -> int:
    """The mark of the rows of a step, read off the plan and the files without the stream."""
    ids = []
    for batch in data.plan.step(index).sub_batches:
        source = data.plan.sources[batch.source].name
        for group, row in zip(batch.row_groups, batch.rows, strict=True):
            [unit] = read_unit(data.units[batch.source][group])
            ids.append(stable_id(f"{source}\0{unit['query'][int(row)].as_py()['id']}"))
    return mark_of_rows(ids)


def when(condition: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    """Do something in the background as soon as a condition holds."""

    def wait() -> None:
        deadline = time.monotonic() + 400
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread
