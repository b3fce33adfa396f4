"""The line of progress: what is done, how fast, what is left, how busy; and how often it comes."""

import io
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rematch_ray.data.readers.units import Unit
from rematch_ray.errors import UserError
from rematch_ray.workloads.embed_progress import (
    ActorCounters,
    Done,
    InputRows,
    Progress,
    every,
    refuse_if_stopped,
    stop_when_hopeless,
)


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def jsonl(num_bytes: int) -> Unit:
    return Unit(format="jsonl", path="rows.jsonl", rows="items", num_rows=None, num_bytes=num_bytes)


def parquet(num_rows: int) -> Unit:
    return Unit(
        format="parquet", path="rows.parquet", rows="items", num_rows=num_rows, num_bytes=10
    )


def counted(num_rows: int) -> InputRows:
    return InputRows([parquet(num_rows)])


def test_the_line_says_rate_time_left_quarantined_and_how_busy_the_actors_are(
    tmp_path: Path,
) -> None:
    clock = Clock()
    progress = Progress(tmp_path, counted(1000), 200, clock)
    clock.now = 7.0
    assert progress.line() == "embedding 1000 rows: starting (7 s)"
    counters = ActorCounters(tmp_path)
    counters.count(rows=100, bad=1)
    counters.write()
    progress.line()
    clock.now = 17.0
    counters.count(rows=300, bad=2, busy_s=1.0)
    counters.write()
    file = next(tmp_path.glob("*.json"))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"alive_s": 4.0}))
    # the rate counts from the first rows on: loading the model is not embedding
    assert progress.line() == (
        "embedded 600/1000 rows  30 rows/s  0:13 left  3 quarantined  actors 25% busy"
    )


def test_what_is_not_counted_yet_is_a_question_mark(tmp_path: Path) -> None:
    counters = ActorCounters(tmp_path)
    counters.count(rows=5)
    counters.write()
    line = Progress(tmp_path, InputRows([jsonl(100)]), 0, Clock()).line()
    assert line.startswith("embedded 5/? rows")
    assert "? left" in line


def test_rows_that_only_reading_tells_are_estimated_from_the_units_that_were_read(
    tmp_path: Path,
) -> None:
    read: dict[int, Path] = {}
    units = [jsonl(1000), jsonl(3000), parquet(50), jsonl(500)]
    rows_in = InputRows(units, lambda: read)
    assert (rows_in.exact, rows_in.estimate()) == (None, None)
    for number, num_rows in ((0, 20), (2, 50), (3, 10)):
        read[number] = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"row": range(num_rows)}), read[number])
    assert rows_in.estimate() == 50 + 30 * 3  # 20 rows of 1000 bytes and 10 of 500, in 4500
    clock, folder = Clock(), tmp_path / "actors"
    folder.mkdir()
    progress, counters = Progress(folder, rows_in, 0, clock), ActorCounters(folder)
    for clock.now in (1.0, 2.0):
        counters.count(rows=20)
        counters.write()
        line = progress.line()
    assert line.startswith("embedded 40/about 140 rows  20 rows/s  0:05 left")
    read[1] = tmp_path / "1.parquet"
    pq.write_table(pa.table({"row": range(5)}), read[1])
    assert (rows_in.estimate(), rows_in.exact) == (85, 85)  # all are read
    assert progress.line().startswith("embedded 40/85 rows")


def test_more_than_there_is_is_never_said(tmp_path: Path) -> None:
    counters = ActorCounters(tmp_path)
    counters.count(rows=50)
    counters.write()
    assert Progress(tmp_path, counted(60), 40, Clock()).line().startswith("embedded 60/60 rows")


def test_the_counters_of_all_processes_are_summed(tmp_path: Path) -> None:
    for tokens, padded in ((60, 80.0), (30, 40.0)):
        counters = ActorCounters(tmp_path)
        counters.count(rows=2, tokens=tokens, padded=padded)
        counters.write()
    done = Done.read(tmp_path)
    assert (done.rows, done.processes, done.padding) == (4, 2, 0.25)
    assert Done.read(tmp_path / "none").utilisation == 0


def bad_rows(folder: Path, count: int) -> None:
    """A process that saw so many of them, and nothing else."""
    counters = ActorCounters(folder)
    counters.count(rows=count, bad=count)
    counters.note(f"row {number} is bad" for number in range(count))
    counters.write()


def test_a_run_with_more_bad_rows_than_it_may_have_ends_with_their_reasons(tmp_path: Path) -> None:
    bad_rows(tmp_path, 10)
    stop_when_hopeless(tmp_path, 1000, max_bad_share=0.01, max_processes=1)
    refuse_if_stopped(tmp_path)  # ten of a thousand are accepted
    stop_when_hopeless(tmp_path, None, max_bad_share=0.0, max_processes=1)
    refuse_if_stopped(tmp_path)  # nobody knows yet of how many
    stop_when_hopeless(tmp_path, 999, max_bad_share=0.01, max_processes=1)
    with pytest.raises(UserError, match=r"10 of 999 .*0\.01 .*row 0 .*row 1 .*row 2 is bad\)"):
        refuse_if_stopped(tmp_path)


def test_rows_that_a_killed_process_counted_too_stop_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        bad_rows(tmp_path, 10)
    stop_when_hopeless(tmp_path, 1000, max_bad_share=0.01, max_processes=1)
    refuse_if_stopped(tmp_path)
    stop_when_hopeless(tmp_path, 1000, max_bad_share=0.01, max_processes=2)
    with pytest.raises(UserError, match="20 of 1000"):
        refuse_if_stopped(tmp_path)


def test_a_terminal_has_a_line_every_five_seconds_and_a_log_every_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert (every(None), every(2.0)) == (60, 2)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert every(None) == 5
