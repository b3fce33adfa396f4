"""A run's checkpoints: one written at a time, reported to Ray only when all of it is on the disk.

All ranks call every method at the same step. A checkpoint that cannot be written is deleted, named
in the run's log and followed by the next one: the last good one stands. Knows where a state goes
and what is told of it, not what is in it. Top floor.
"""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from rematch_ray.collectives import rank, world_size
from rematch_ray.config import RunConfig
from rematch_ray.data.order import Plan
from rematch_ray.training.state import first_failure
from rematch_ray.training.step import Training
from rematch_ray.workloads import validation
from rematch_ray.workloads.bad_rows import BadRows
from rematch_ray.workloads.run_directory import RunDirectory
from rematch_ray.workloads.stages import reason_of

STATE, TRAINER = "state", "trainer.json"


@dataclass(frozen=True)
class _Writing:
    """A checkpoint that is being written: after how many steps, metrics and bad rows."""

    done: int
    metrics: dict[str, float]
    bad_rows: dict[str, int]
    written: Future[Any]


class Checkpoints:
    """Writes and reports the checkpoints of one run.

    Args:
        training: whose state is written.
        run: settings.
        plan: of the data; its digest says what the position in it means.
        directory: where checkpoints go.
        accepted: bad rows of the steps that are done whenever a checkpoint begins.
        start: steps that are done; above 0 they are those of a checkpoint.
    """

    def __init__(
        self,
        training: Training,
        run: RunConfig,
        plan: Plan,
        directory: RunDirectory,
        accepted: BadRows,
        *,
        start: int,
    ) -> None:
        self._training = training
        self._run = run
        self._plan = plan
        self._directory = directory
        self._accepted = accepted
        self._writing: _Writing | None = None
        self._failed = 0
        self.last_good = start
        """Steps done at the last checkpoint that is whole; 0 when there is none."""
        self.failure = ""
        """Why the last checkpoint could not be written; "" when it could."""

    @property
    def landed(self) -> bool:
        """Whether this rank's part of the checkpoint that is being written has come to its end."""
        return self._writing is not None and self._writing.written.done()

    @property
    def given_up(self) -> bool:
        """Whether too many checkpoints in a row could not be written."""
        return self._failed >= self._run.train.max_failed_checkpoints

    def begin(self, done: int, metrics: dict[str, float]) -> None:
        """Start a checkpoint after `done` steps; one that is still being written is awaited."""
        self.close()
        if self.given_up:
            return
        state = self._folder(done) / STATE
        wanted = self._run.train.async_checkpoints
        if self._run.strategy.saves_in_background if wanted is None else wanted:
            written = self._training.save_async(state)
        else:
            written = _at_once(lambda: self._training.save(state))
        self._writing = _Writing(done, metrics, self._accepted.counted, written)

    def close(self) -> None:
        """Await what is being written, if anything, and report it, or delete what there is of it.

        Every rank hears of a failure of any rank.
        """
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        error = _why(writing.written.exception())
        if rank() == 0 and not error:
            error = self._write_position(writing)
        errors = [error]
        if world_size() > 1:
            errors = [""] * world_size()
            dist.all_gather_object(errors, error)
        self.failure = next((found for found in errors if found), "")
        if self.failure:
            self._failed += 1
            self._discard(writing.done)
        else:
            self._failed, self.last_good = 0, writing.done
            self._report(writing)

    def save_now(self, done: int, metrics: dict[str, float]) -> bool:
        """Write a checkpoint after `done` steps unless there is one; return whether there is."""
        self.close()
        if not (done and self.last_good == done):
            self.begin(done, metrics)
            self.close()
        return not self.failure

    def _report(self, writing: _Writing) -> None:
        folder = self._folder(writing.done)
        ray.train.report(
            {"step": writing.done, **writing.metrics},
            checkpoint=ray.train.Checkpoint(str(folder)),
            checkpoint_dir_name=folder.name,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
            # Ray asks rank 0
            validation=rank() == 0 and validation.asks(self._run, self._directory, writing.done),
        )
        if rank() == 0:
            self._directory.log({"event": "checkpoint", "at": writing.done, "name": folder.name})

    def _discard(self, done: int) -> None:
        if rank() != 0:
            return
        folder = self._folder(done)
        shutil.rmtree(folder, ignore_errors=True)  # what stays is never read: it is not reported
        stands = self._folder(self.last_good).name if self.last_good else "none before it"
        self._directory.note(
            f"checkpoint {folder.name} could not be written ({self.failure}); the last good one "
            f"stands: {stands}",
            at=done,
        )

    def _write_position(self, writing: _Writing) -> str:
        epoch, step = divmod(writing.done, self._plan.steps_per_epoch)
        position = {
            "index": writing.done,
            "epoch": epoch,
            "step": step,
            "plan": self._plan.digest,
            "seed": self._run.seed,
            "strategy": self._run.strategy.name,
            "world_size": world_size(),
            "bad_rows": writing.bad_rows,
        }
        try:
            (self._folder(writing.done) / TRAINER).write_text(json.dumps(position, indent=1) + "\n")
        except OSError as error:
            return reason_of(error)
        return ""

    def _folder(self, done: int) -> Path:
        return self._run.directory / f"checkpoint_{done:07d}"


def _at_once(call: Callable[[], None]) -> Future[Any]:
    """Do it now; what goes wrong is told where the outcome is asked for."""
    made: Future[Any] = Future()
    try:
        call()
        made.set_result(None)
    # whatever it is, it belongs to whoever asks for the result
    except (Exception, CheckpointException) as error:  # noqa: BLE001
        made.set_exception(error)
    return made


def _why(error: BaseException | None) -> str:
    """One line of what went wrong on the first rank where something did."""
    return "" if error is None else reason_of(first_failure(error))
