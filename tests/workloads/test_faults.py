"""Slow proofs that a run loses no row and repeats none: whatever ends it, however it goes on."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray.data
import yaml
from ray.job_submission import JobSubmissionClient

from rematch_ray.config import RunConfig
from rematch_ray.workloads.run_directory import CheckpointError, RunDirectory
from rematch_ray.workloads.stream import open_data
from rematch_ray.workloads.train import train
from tests.conftest import REPOSITORY
from tests.workloads.runs import STEPS, planned_rows, records, run_config, when
from tests.workloads.two_nodes import two_node_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture
def _restored_data_context() -> Iterator[None]:
    before = ray.data.DataContext.get_current().copy()
    yield
    ray.data.DataContext._set_current(before)


def assert_every_step_has_its_rows(run: RunConfig) -> None:
    data = open_data(run.data, run.seed)
    steps = records(run, "step")
    planned = range(run.train.steps)
    assert [record["step"] for record in steps] == list(planned)
    assert [record["rows"] for record in steps] == [planned_rows(data, n) for n in planned]


def stop_after(run: RunConfig, steps: int) -> threading.Thread:
    return when(lambda: len(records(run, "step")) > steps, RunDirectory(run.directory).ask_to_stop)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster", "_restored_data_context")
def test_a_weighted_mix_goes_on_with_one_and_with_three_workers(
    tiny_base: Path, samples: dict[str, Path], tmp_path: Path
) -> None:
    runs = []
    for workers in (2, 1, 3):
        run = run_config(tiny_base, samples, tmp_path, num_workers=workers)
        sources = tuple(
            source.model_copy(update={"weight": weight})
            for source, weight in zip(run.data.sources, (3.0, 1.0), strict=True)
        )
        data = run.data.model_copy(update={"sources": sources})
        runs.append(run.model_copy(update={"data": data}))
    with_two, with_one, with_three = runs
    stopper = stop_after(with_two, 5)
    assert train(with_two)["stopped"]
    stopper.join()
    stopper = stop_after(with_one, 14)
    assert train(with_one)["stopped"]
    stopper.join()
    assert train(with_three)["steps"] == STEPS
    assert [len(start["workers"]) for start in records(with_three, "start")] == [2, 1, 3]
    assert_every_step_has_its_rows(with_three)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster", "_restored_data_context")
def test_a_disk_that_stays_full_ends_the_run_which_goes_on_when_there_is_room(
    tiny_base: Path, samples: dict[str, Path], tmp_path: Path
) -> None:
    run = run_config(tiny_base, samples, tmp_path, num_workers=1, max_failed_checkpoints=2)
    full = [run.directory / f"checkpoint_{done:07d}" / "state" for done in (8, 12)]
    for state in full:
        state.mkdir(parents=True)
        (state / "__0_0.distcp").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"No space left on device.*step 4 is saved"):
        train(run)
    assert [note["at"] for note in records(run, "note")] == [8, 12]
    assert [record["at"] for record in records(run, "checkpoint")] == [4]
    assert train(run)["steps"] == STEPS
    assert records(run, "start")[-1]["from_step"] == 4
    assert_every_step_has_its_rows(run)


def write_config(run: RunConfig, folder: Path) -> Path:
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(run.model_dump(mode="json")))
    return file


def test_sigterm_saves_and_says_what_stands(
    tiny_base: Path, samples: dict[str, Path], tmp_path: Path
) -> None:
    run = run_config(tiny_base, samples, tmp_path, steps=100_000, checkpoint_every=1000)
    command = [sys.executable, "-m", "rematch_ray", "train"]
    program = subprocess.Popen(
        [*command, "--config", str(write_config(run, tmp_path))],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
    )
    sent = when(lambda: len(records(run, "step")) > 5, lambda: program.send_signal(signal.SIGTERM))
    _, said = program.communicate(timeout=600)
    sent.join()
    assert program.returncode == 130
    assert "stopping: saving after this step; nothing is saved until then" in said
    [checkpoint] = records(run, "checkpoint")
    assert checkpoint["at"] == records(run, "step")[-1]["step"] + 1


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster", "_restored_data_context")
def test_a_stopped_job_leaves_a_checkpoint_to_go_on_from(
    tiny_base: Path, samples: dict[str, Path], tmp_path: Path
) -> None:
    run = run_config(tiny_base, samples, tmp_path)
    context = ray.get_runtime_context()
    client = JobSubmissionClient(context.gcs_address)
    program = f"{sys.executable} {REPOSITORY / 'jobs' / 'train.py'}"
    job = client.submit_job(entrypoint=f"{program} --config {write_config(run, tmp_path)}")
    when(lambda: len(records(run, "step")) > 9, lambda: client.stop_job(job)).join()
    deadline = time.monotonic() + 60
    while not client.get_job_status(job).is_terminal() and time.monotonic() < deadline:
        time.sleep(0.5)
    said = client.get_job_logs(job)
    assert "stopping: saving after this step; until then checkpoint_" in said
    # the save may not have come through in the job's three seconds: what the log said stands
    stands = int(said.partition("until then checkpoint_")[2][:7])
    assert train(run)["steps"] == STEPS
    assert records(run, "start")[-1]["from_step"] >= stands
    assert_every_step_has_its_rows(run)


def on_two_nodes(what: str, tiny_base: Path, samples: dict[str, Path], storage: Path) -> RunConfig:
    """Runs the program of two nodes; every step of what it trained has its rows."""
    program = [sys.executable, "-m", "tests.workloads.two_nodes", what, str(tiny_base)]
    program += [str(samples["photos"]), str(samples["notes"]), str(storage)]
    done = subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    run = two_node_run(what, tiny_base, samples, storage)
    assert_every_step_has_its_rows(run)
    return run


def sizes(run: RunConfig) -> list[int]:
    return [len(start["workers"]) for start in records(run, "start")]


def test_a_node_that_goes_leaves_the_rest_to_the_other_one(
    tiny_base: Path, samples: dict[str, Path], tmp_path: Path
) -> None:
    run = on_two_nodes("lost", tiny_base, samples, tmp_path)
    assert sizes(run) == [2, 1]
    second = records(run, "start")[1]
    assert second["from_step"] > 0 or len(records(run, "checkpoint")) > 0


def test_a_node_that_is_drained_is_saved_from_before_it_goes(
    tiny_base: Path, samples: dict[str, Path], tmp_path: Path
) -> None:
    run = on_two_nodes("drained", tiny_base, samples, tmp_path)
    [note] = [note for note in records(run, "note") if "about to be taken away" in note["text"]]
    assert sizes(run) == [2, 1]
    # the checkpoint that the notice brought, or a later one
    assert records(run, "start")[1]["from_step"] >= note["at"] > 0


def test_a_node_that_joins_takes_part_in_the_rest(
    tiny_base: Path, samples: dict[str, Path], tmp_path: Path
) -> None:
    run = on_two_nodes("joined", tiny_base, samples, tmp_path)
    assert sizes(run) == [1, 2]
    assert records(run, "start")[1]["from_step"] > 0
