"""`ray job submit -- python jobs/embed.py`: stopped, submitted again, every row there once."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
from ray.job_submission import JobStatus, JobSubmissionClient

from rematch_ray.data.schema import Item, items_to_table, write_parquet
from tests.conftest import REPOSITORY
from tests.workloads.slow_reads import first_files

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("ray_cluster"),
]

FILES, ROWS_PER_FILE = 12, 100
PATIENCE_S = 300


def wait_until(happens: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_job_that_is_stopped_goes_on_when_it_is_submitted_again(
    tiny_export: Path, tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    ids = []
    for file in range(FILES):
        items = [Item.of(f"text {file} {row}", id=f"d{file}-{row}") for row in range(ROWS_PER_FILE)]
        write_parquet(items_to_table(items), data / f"{file:02d}.parquet")
        ids += [item.id for item in items]
    client = JobSubmissionClient(ray.get_runtime_context().gcs_address)
    arguments = ["--model", tiny_export, "--data", data, "--out", out, "rows_per_write=64"]
    arguments += ["window_rows=16", "batch_rows=1", "progress_seconds=1"]
    program = " ".join(map(str, [sys.executable, REPOSITORY / "jobs" / "embed.py", *arguments]))

    first = client.submit_job(entrypoint=program)
    wait_until(lambda: first_files(out) or client.get_job_status(first).is_terminal())
    client.stop_job(first)
    wait_until(lambda: client.get_job_status(first).is_terminal())
    assert client.get_job_status(first) == JobStatus.STOPPED, client.get_job_logs(first)
    assert not (out / "manifest.json").exists()

    again = client.submit_job(entrypoint=program)
    wait_until(lambda: client.get_job_status(again).is_terminal())
    said = client.get_job_logs(again)
    assert client.get_job_status(again) == JobStatus.SUCCEEDED, said
    assert "Traceback" not in said
    assert "rows/s" in said  # a line now and then where a bar would be
    result = json.loads(said.splitlines()[-1])
    assert 0 < result["embedded_now"] < len(ids)
    manifest = json.loads((out / "manifest.json").read_text())
    shards = [pq.read_table(out / shard["file"], columns=["id"]) for shard in manifest["shards"]]
    assert sorted(id for shard in shards for id in shard["id"].to_pylist()) == sorted(ids)
