"""The line of progress: what is done, how fast, what is left, how busy; and how often it comes."""

import io
import json
import sys
from pathlib import Path

import pytest

from rematch_ray.workloads.embed_progress import ActorCounters, Done, Progress, every


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_line_says_rate_time_left_quarantined_and_how_busy_the_actors_are(
    tmp_path: Path,
) -> None:
    clock = Clock()
    progress = Progress(tmp_path, 1000, 200, clock)
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
    line = Progress(tmp_path, None, 0, Clock()).line()
    assert line.startswith("embedded 5/? rows")
    assert "? left" in line


def test_more_than_there_is_is_never_said(tmp_path: Path) -> None:
    counters = ActorCounters(tmp_path)
    counters.count(rows=50)
    counters.write()
    assert Progress(tmp_path, 60, 40, Clock()).line().startswith("embedded 60/60 rows")


def test_the_counters_of_all_processes_are_summed(tmp_path: Path) -> None:
    for tokens, padded in ((60, 80.0), (30, 40.0)):
        counters = ActorCounters(tmp_path)
        counters.count(rows=2, tokens=tokens, padded=padded)
        counters.write()
    done = Done.read(tmp_path)
    assert (done.rows, done.processes, done.padding) == (4, 2, 0.25)
    assert Done.read(tmp_path / "none").utilisation == 0


def test_a_terminal_has_a_line_every_five_seconds_and_a_log_every_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert (every(None), every(2.0)) == (60, 2)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert every(None) == 5
