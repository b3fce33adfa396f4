"""Slow proofs that an embedding job loses no row and doubles none, whatever is killed.

Each time something is killed after the first files are written; then the ids of all shards are
counted and compared with those of the input.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rematch_ray.data.schema import Item, items_to_table, write_parquet
from tests.conftest import REPOSITORY
from tests.workloads.slow_reads import first_files

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

FILES, ROWS_PER_FILE = 12, 100
PATIENCE_S = 400


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve files, so twelve read tasks, of a hundred rows each."""
    folder = tmp_path_factory.mktemp("faults")
    for file in range(FILES):
        items = [Item.of(f"text {file} {row}", id=f"d{file}-{row}") for row in range(ROWS_PER_FILE)]
        write_parquet(items_to_table(items), folder / f"{file:02d}.parquet")
    return folder


class Run:
    """The program under test, which tests/workloads/embed_program.py is."""

    def __init__(self, export: Path, data: Path, folder: Path, nodes: int = 1) -> None:
        self.data, self.out, self.readers = data, folder / "out", folder / "readers"
        self.readers.mkdir(exist_ok=True)
        arguments = map(str, (export, data, self.out, self.readers, nodes))
        self.program = subprocess.Popen(
            [sys.executable, "-m", "tests.workloads.embed_program", *arguments],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def until_first_files(self) -> None:
        self.until(lambda: first_files(self.out))

    def until(self, happens: Any) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while not (found := happens()):
            assert self.program.poll() is None, "the program ended before anything was killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return found

    def result(self) -> dict[str, Any]:
        printed, _ = self.program.communicate(timeout=PATIENCE_S)
        assert self.program.returncode == 0, printed
        result: dict[str, Any] = json.loads(printed.splitlines()[-1])
        return result


@pytest.fixture
def runs(tiny_export: Path, data: Path, tmp_path: Path) -> Iterator[Any]:
    started: list[Run] = []

    def run(nodes: int = 1) -> Run:
        started.append(Run(tiny_export, data, tmp_path, nodes))
        return started[-1]

    yield run
    for each in started:
        if each.program.poll() is None:
            each.program.kill()


def assert_every_row_is_there_once(run: Run) -> None:
    """Count the ids of the input and those of the shards that the manifest names."""
    wanted: Counter[str] = Counter()
    for file in run.data.glob("*.parquet"):
        wanted.update(pq.read_table(file, columns=["id"])["id"].to_pylist())
    manifest = json.loads((run.out / "manifest.json").read_text())
    found: Counter[str] = Counter()
    for shard in manifest["shards"]:
        found.update(pq.read_table(run.out / shard["file"], columns=["id"])["id"].to_pylist())
    assert found == wanted
    assert set(found.values()) == {1}
    assert manifest["embedded"] == manifest["rows_in"] == FILES * ROWS_PER_FILE


def test_a_killed_model_process(runs: Any) -> None:
    run = runs()
    run.until_first_files()
    (file, *_) = (run.out / ".progress").glob("run-*/actors/*.json")
    os.kill(int(file.name.split("-")[0]), signal.SIGKILL)
    assert run.result()["model_processes"] > 1
    assert_every_row_is_there_once(run)


def test_a_killed_read_task(runs: Any) -> None:
    run = runs()
    run.until_first_files()
    reader = run.until(lambda: next(run.readers.iterdir(), None))
    os.kill(int(reader.name), signal.SIGKILL)
    run.result()
    assert reader.exists(), "the read task had ended before it was killed"
    assert_every_row_is_there_once(run)


def test_a_killed_driver_whose_second_run_goes_on(runs: Any) -> None:
    run = runs()
    run.until_first_files()
    run.program.kill()
    run.program.communicate()
    assert not (run.out / "manifest.json").exists()
    again = runs()
    result = again.result()
    assert 0 < result["embedded_now"] < FILES * ROWS_PER_FILE
    assert_every_row_is_there_once(again)


def test_a_node_that_is_taken_away(runs: Any) -> None:
    run = runs(nodes=2)
    # two at first, and one that took the place of the lost one
    assert run.result()["model_processes"] > 2
    assert_every_row_is_there_once(run)


def test_an_interrupted_run_leaves_without_a_stack_trace_and_goes_on(
    tiny_export: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["--model", tiny_export, "--data", data, "--out", out, "rows_per_write=64"]
    arguments += ["window_rows=16", "batch_rows=1"]
    command = [sys.executable, "-m", "rematch_ray", "embed", *map(str, arguments)]
    program = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE_S
    while not first_files(out):
        assert program.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    program.send_signal(signal.SIGINT)
    _, told = program.communicate(timeout=PATIENCE_S)
    assert program.returncode == 130
    assert "Traceback" not in told
    done = subprocess.run([*command, "--json"], cwd=REPOSITORY, stdout=subprocess.PIPE, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["embedded"] == FILES * ROWS_PER_FILE
    assert result["embedded_now"] < FILES * ROWS_PER_FILE
