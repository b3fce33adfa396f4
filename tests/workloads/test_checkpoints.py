"""A checkpoint is reported when all of it is written, and a bad one is never taken for good."""

import errno
import json
import threading
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import ray.train
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from rematch_ray.collectives import rank
from rematch_ray.config import RunConfig
from rematch_ray.training.step import Training
from rematch_ray.training.strategies import StrategySettings
from rematch_ray.workloads.bad_rows import BadRows
from rematch_ray.workloads.checkpoints import Checkpoints
from rematch_ray.workloads.run_directory import RunDirectory
from rematch_ray.workloads.stream import open_data
from tests.ranks import run_ranks
from tests.tiny import step_table, text_sample
from tests.workloads.runs import records, run_config

FULL = OSError(errno.ENOSPC, "No space left on device")


class Writer:
    """Stands in for `Training`: its states are whole when a test says so."""

    def __init__(self) -> None:
        self.pending: list[Future[Any]] = []
        self.saved: list[Path] = []

    def save_async(self, folder: Path) -> Future[Any]:
        folder.mkdir(parents=True)
        self.pending.append(Future())
        return self.pending[-1]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.saved.append(folder)
        raise CheckpointException("ranks 1", {1: (FULL, None)})  # type: ignore[dict-item]


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []

    def report(metrics: dict[str, float], *, checkpoint_dir_name: str, **rest: Any) -> None:
        folder = Path(rest["checkpoint"].path)
        assert json.loads((folder / "trainer.json").read_text())["index"] == metrics["step"]
        names.append(checkpoint_dir_name)

    monkeypatch.setattr(ray.train, "report", report)
    return names


def made(run: RunConfig, writer: Any, accepted: BadRows | None = None) -> Checkpoints:
    directory = RunDirectory(run.directory)
    directory.open(run)
    plan = open_data(run.data, 0).plan
    return Checkpoints(writer, run, plan, directory, accepted or BadRows(run.data, plan), start=0)


@pytest.fixture
def run(tiny_base: Path, samples: dict[str, Path], tmp_path: Path) -> RunConfig:
    return run_config(tiny_base, samples, tmp_path, max_failed_checkpoints=2)


def test_a_checkpoint_is_reported_when_it_is_whole(run: RunConfig, reported: list[str]) -> None:
    writer = Writer()
    checkpoints = made(run, writer)
    checkpoints.begin(4, {"loss": 1.0})
    assert not checkpoints.landed
    assert reported == []
    writer.pending[0].set_result(None)
    assert checkpoints.landed
    checkpoints.close()
    assert reported == ["checkpoint_0000004"]
    assert checkpoints.last_good == 4
    # it is there: nothing is written again
    assert checkpoints.save_now(4, {})
    assert len(writer.pending) == 1


def test_the_next_checkpoint_waits_for_the_one_in_flight(
    run: RunConfig, reported: list[str]
) -> None:
    writer = Writer()
    checkpoints = made(run, writer)
    checkpoints.begin(4, {})
    threading.Timer(0.2, lambda: writer.pending[0].set_result(None)).start()
    checkpoints.begin(8, {})
    assert reported == ["checkpoint_0000004"]
    assert len(writer.pending) == 2
    assert not checkpoints.landed


def test_a_checkpoint_that_fails_is_deleted_and_named_and_the_last_good_one_stands(
    run: RunConfig, reported: list[str]
) -> None:
    writer = Writer()
    checkpoints = made(run, writer)
    for done, error in ((4, None), (8, FULL), (12, None), (16, FULL), (20, FULL)):
        assert not checkpoints.given_up
        checkpoints.begin(done, {})
        if error is None:
            writer.pending[-1].set_result(None)
        else:
            writer.pending[-1].set_exception(error)
        checkpoints.close()
        assert (run.directory / f"checkpoint_{done:07d}").exists() == (error is None)
    assert reported == ["checkpoint_0000004", "checkpoint_0000012"]
    assert checkpoints.given_up
    assert checkpoints.last_good == 12
    assert checkpoints.failure == "[Errno 28] No space left on device"
    notes = [note["text"] for note in records(run, "note")]
    assert notes[0].endswith("the last good one stands: checkpoint_0000004")
    assert "checkpoint_0000020 could not be written" in notes[2]
    # nothing more is begun
    checkpoints.begin(24, {})
    assert len(writer.pending) == 5


def test_a_checkpoint_holds_the_bad_rows_of_the_steps_before_it(
    run: RunConfig, reported: list[str]
) -> None:
    lenient = run.model_copy(update={"data": run.data.model_copy(update={"max_bad_share": 0.1})})
    plan = open_data(run.data, 0).plan
    accepted, writer = BadRows(lenient.data, plan), Writer()
    checkpoints = made(lenient, writer, accepted)
    assert not accepted.refuses(0, 3, ["item 'x': truncated"])
    checkpoints.begin(4, {})
    assert not accepted.refuses(0, 2, ["item 'y': truncated"])  # while it is being written
    writer.pending[0].set_result(None)
    checkpoints.close()
    position = json.loads((run.directory / reported[0] / "trainer.json").read_text())
    assert position["bad_rows"] == {"epoch": 0, "in_epoch": 3, "total": 3}
    # 80 rows an epoch, of which 8 may be bad: those of before the restart count
    again = BadRows(lenient.data, plan)
    again.go_on(position["bad_rows"])
    assert not again.refuses(0, 5, ["item 'y': truncated"])
    assert "9 of the 80 training rows" in again.refuses(0, 1, ["item 'z': truncated"])
    assert again.total == 9
    fresh = BadRows(lenient.data, plan)
    fresh.go_on(position["bad_rows"])
    assert not fresh.refuses(1, 8, [])
    assert fresh.total == 11


def test_a_position_that_cannot_be_written_is_a_failed_checkpoint(
    run: RunConfig, reported: list[str]
) -> None:
    writer = Writer()
    checkpoints = made(run, writer)
    checkpoints.begin(4, {})
    (run.directory / "checkpoint_0000004" / "trainer.json").symlink_to("/dev/full")
    writer.pending[0].set_result(None)
    checkpoints.close()
    assert reported == []
    assert "No space left" in checkpoints.failure


def test_without_the_background_a_state_is_written_at_once(
    run: RunConfig, reported: list[str]
) -> None:
    train = run.train.model_copy(update={"async_checkpoints": False})
    writer = Writer()
    checkpoints = made(run.model_copy(update={"train": train}), writer)
    assert not checkpoints.save_now(4, {})
    assert writer.saved == [run.directory / "checkpoint_0000004" / "state"]
    assert writer.pending == []
    # the reason is the failing rank's own
    assert checkpoints.failure == "[Errno 28] No space left on device"


def _meet_a_full_disk(folder: Path, run: RunConfig) -> None:
    """On two ranks of DeepSpeed: the second checkpoint has no room, on the second rank alone."""
    training = Training.build(
        run.model,
        run.objective,
        run.optimisation,
        seed=0,
        total_steps=4,
        strategy=run.strategy,
    )
    encoder = training.joint.embedder.row_encoder
    names: list[str] = []
    ray.train.report = lambda *_, **rest: names.append(rest["checkpoint_dir_name"])  # type: ignore
    checkpoints = made(run, training) if rank() == 0 else None
    dist.barrier()
    checkpoints = checkpoints or made(run, training)
    for done in (1, 2, 3):
        rows = [text_sample(8 * done + 2 * rank() + n) for n in range(2)]
        training.step(training.collate(step_table(encoder, [rows], step=done), step=done))
        state = run.directory / f"checkpoint_{done:07d}" / "state"
        if done == 2 and rank() == 0:
            part = state / "deepspeed" / "state" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
            part.parent.mkdir(parents=True)
            part.symlink_to("/dev/full")
        dist.barrier()
        assert checkpoints.save_now(done, {}) == (done != 2)
        if done == 2:
            assert checkpoints.failure.startswith("rank 1: ")
            assert checkpoints.last_good == 1
        assert training.steps_done == done
    assert names == ["checkpoint_0000001", "checkpoint_0000003"]
    assert not (run.directory / "checkpoint_0000002").exists()


@pytest.mark.timeout(600)
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_a_disk_that_is_full_for_one_rank_of_deepspeed_costs_a_checkpoint_and_no_more(
    run: RunConfig, tmp_path: Path
) -> None:
    zero = StrategySettings(name="deepspeed", zero_stage=1)
    run_ranks(_meet_a_full_disk, tmp_path, run.model_copy(update={"strategy": zero}))
    [note] = records(run, "note")
    assert "the last good one stands: checkpoint_0000001" in note["text"]
