"""Where a training process goes on: its run's last checkpoint, or another run's to begin with.

Reads what `Checkpoints` wrote. Knows where a state lies and what is told of it, not what is in it.
Top floor.
"""

import json
from pathlib import Path
from typing import Any

import ray.train
from torch.distributed.checkpoint.api import CheckpointException

from rematch_ray.config import RunConfig
from rematch_ray.errors import UserError
from rematch_ray.training.state import first_failure
from rematch_ray.training.step import Training
from rematch_ray.workloads.bad_rows import BadRows
from rematch_ray.workloads.checkpoints import STATE, TRAINER
from rematch_ray.workloads.stages import reason_of
from rematch_ray.workloads.stream import TrainingData


def check_start(run: RunConfig) -> None:
    """Refuse a `train.start_from` that is no checkpoint, or that leaves no step to take.

    Raises:
        UserError: saying where there are checkpoints.
    """
    if run.train.start_from is None:
        return
    folder = run.train.start_from.expanduser()
    if not (folder / TRAINER).is_file():
        there = [
            str(found.parent)
            for place in (folder, folder.parent)
            for found in sorted(place.glob(f"checkpoint_*/{TRAINER}"))
        ]
        raise UserError(
            f"train.start_from {folder} is no checkpoint of a run; "
            + (f"there are {', '.join(there)}" if there else "give RUN/checkpoint_0000100")
        )
    done = _position(folder)["index"]
    if done >= run.train.steps:
        raise UserError(
            f"train.start_from {folder} has done {done} steps and train.steps is "
            f"{run.train.steps}: raise train.steps, which counts them, or give an earlier one"
        )


def restore(training: Training, run: RunConfig, data: TrainingData, accepted: BadRows) -> int:
    """Load the last checkpoint, if any, and return the step to go on with.

    Bad rows are counted on from there.

    Raises:
        UserError: it was made on other data, or the strategy cannot read it.
    """
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return _begin_elsewhere(training, run, data, accepted)
    folder = Path(checkpoint.path)
    saved = _position(folder)
    if saved["plan"] != data.plan.digest:
        raise UserError(
            f"{folder} was made on other data or another order of it (plan {saved['plan'][:12]}, "
            f"now {data.plan.digest[:12]}); put the data back, or train on under another `name` "
            f"with train.start_from={folder}"
        )
    training.load(folder / STATE)
    accepted.go_on(saved.get("bad_rows", {}))  # an earlier release did not keep them
    return int(saved["index"])


def _begin_elsewhere(
    training: Training, run: RunConfig, data: TrainingData, accepted: BadRows
) -> int:
    """Take over another run's checkpoint, if one is given, and return the step to begin with.

    Its bad rows count where its data are this run's.

    Raises:
        UserError: it holds another model, or the strategy cannot read it.
    """
    folder = run.train.start_from
    if folder is None:
        return 0
    check_start(run)
    saved = _position(folder)
    try:
        training.load(folder / STATE)
    except UserError:
        raise
    except (ValueError, RuntimeError, CheckpointException) as error:  # a weight of another size
        raise UserError(
            f"train.start_from {folder} does not fit this model ({reason_of(first_failure(error))})"
            ": give the settings under model that it was trained with, and the same terms of the "
            "objective"
        ) from error
    if saved["plan"] == data.plan.digest:
        accepted.go_on(saved.get("bad_rows", {}))
    return int(saved["index"])


def _position(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself: steps done, plan, bad rows and more."""
    found: dict[str, Any] = json.loads((folder / TRAINER).read_text())
    return found
