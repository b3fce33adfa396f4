"""How far an embedding job is: counters that model processes keep, and lines made of them.

The counters are for people: a process that was killed had counted rows that are done again. What is
in the manifest is counted by the finishing step. Knows files and numbers only. Top floor.
"""

import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rematch_ray.data.readers.units import Unit
from rematch_ray.errors import UserError

TERMINAL_SECONDS, LOG_SECONDS = 5.0, 60.0
REASONS_KEPT = 3
STOP = "stop"


class ActorCounters:
    """A file with what a model process has done since it was ready; there from the first time on.

    Args:
        folder: of the files; each process has one, named by its pid.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.json"
        self._lock = threading.Lock()
        self._began = time.time()
        self._reasons: list[str] = []
        self._sums = {"rows": 0.0, "bad": 0.0, "tokens": 0.0, "padded": 0.0, "busy_s": 0.0}

    def count(self, **more: float) -> None:
        """Add to the sums."""
        with self._lock:
            for name, value in more.items():
                self._sums[name] += value

    def note(self, reasons: Iterable[str]) -> None:
        """Keep the first few reasons of bad rows."""
        with self._lock:
            missing = REASONS_KEPT - len(self._reasons)
            self._reasons += islice(reasons, missing)

    def write(self) -> None:
        """Write the file anew."""
        with self._lock:
            alive_s = time.time() - self._began
            record = {**self._sums, "alive_s": alive_s, "reasons": self._reasons}
            partial = self._path.with_suffix(".unfinished")
            partial.write_text(json.dumps(record))
            partial.replace(self._path)


@dataclass(frozen=True)
class Done:
    """What the model processes of a run have done together.

    Attributes:
        rows: rows that left them, bad ones included.
        bad: rows that will be quarantined.
        tokens: real tokens, meta tokens included.
        padded: tokens with padding.
        busy_s: seconds that a forward pass ran, summed over processes.
        alive_s: seconds since each was ready, summed.
        processes: how many there have been.
        reasons: of some bad rows.
    """

    rows: int = 0
    bad: int = 0
    tokens: int = 0
    padded: int = 0
    busy_s: float = 0.0
    alive_s: float = 0.0
    processes: int = 0
    reasons: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> "Done":
        """Sum the files of a run."""
        records = [json.loads(file.read_text()) for file in folder.glob("*.json")]
        sums = {name: sum(record[name] for record in records) for name in (*_WHOLE, *_SECONDS)}
        whole = {name: round(sums[name]) for name in _WHOLE}
        reasons = tuple(islice(chain.from_iterable(r["reasons"] for r in records), REASONS_KEPT))
        seconds = {name: sums[name] for name in _SECONDS}
        return cls(**whole, **seconds, processes=len(records), reasons=reasons)

    @property
    def utilisation(self) -> float:
        """Share of the processes' time that a forward pass ran."""
        return self.busy_s / self.alive_s if self.alive_s else 0.0

    @property
    def padding(self) -> float:
        """Share of all tokens that were padding."""
        return 1 - self.tokens / self.padded if self.padded else 0.0

    def summary(self) -> dict[str, float]:
        """For the job's result."""
        return {
            "model_processes": self.processes,
            "actor_utilisation": round(self.utilisation, 3),
            "tokens": self.tokens,
            "padding_share": round(self.padding, 4),
        }


_WHOLE, _SECONDS = ("rows", "bad", "tokens", "padded"), ("busy_s", "alive_s")


class InputRows:
    """How many rows the input has: counted, or told by the units that were read to their end.

    Attributes:
        exact: the number; None while units are left of which only reading tells.

    Args:
        units: all of the input.
        read: finds the files of those that this run has read so far, by number; their footers say
            how many rows they had.
    """

    def __init__(
        self, units: Sequence[Unit], read: Callable[[], Mapping[int, Path]] = dict
    ) -> None:
        self._units = units
        self._read = read
        self._found: dict[int, int] = {}
        self._untold = {number for number, unit in enumerate(units) if unit.num_rows is None}
        self._counted = sum(unit.num_rows or 0 for unit in units)
        self.exact = None if self._untold else self._counted

    def estimate(self) -> int | None:
        """Rows of the input if the rest has as many a byte; None before a unit was read."""
        if self.exact is not None:
            return self.exact
        for number, file in self._read().items():
            if number in self._untold and number not in self._found:
                self._found[number] = pq.read_metadata(file).num_rows
        found = sum(self._found.values())
        if len(self._found) == len(self._untold):
            self.exact = self._counted + found
            return self.exact
        read = sum(self._units[number].num_bytes for number in self._found)
        whole = sum(self._units[number].num_bytes for number in self._untold)
        return self._counted + round(found * whole / read) if read else None


class Progress:
    """The line of progress of one run.

    Args:
        folder: the model processes' files.
        rows_in: rows of the input.
        before: rows that earlier runs have done.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        folder: Path,
        rows_in: InputRows,
        before: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._rows_in = rows_in
        self._before = before
        self._clock = clock
        self._began = clock()
        self._first: tuple[float, int] | None = None

    def line(self) -> str:
        """Rows done, rows a second, time left, rows quarantined, how busy the processes are."""
        now, done = self._clock(), Done.read(self._folder)
        likely, exact = self._rows_in.estimate(), self._rows_in.exact
        total = "?" if likely is None else str(likely) if exact is not None else f"about {likely}"
        if not done.rows:
            return f"embedding {total} rows: starting ({now - self._began:.0f} s)"
        # the rate counts from the first rows on: loading the model is not embedding
        began, rows = self._first or (self._began, 0)
        self._first = self._first or (now, done.rows)
        rate = (done.rows - rows) / max(now - began, 1e-9)
        # of earlier runs some may have left the data since, and killed processes counted too much
        finished = min(self._before + done.rows, exact or sys.maxsize)
        left = "?"
        if likely is not None and rate > 0:
            left = duration(max(likely - finished, 0) / rate)
        return (
            f"embedded {finished}/{total} rows  {rate:.0f} rows/s  {left} left  "
            f"{done.bad} quarantined  actors {done.utilisation:.0%} busy"
        )


def stop_when_hopeless(
    folder: Path, rows_in: int | None, *, max_bad_share: float, max_processes: int
) -> None:
    """Tell the model processes to end when more rows are bad already than a whole run may have.

    A process that was killed had counted rows that another one counts again: with more processes
    than there are places for, nothing is said before the finishing step counts the rows themselves.

    Args:
        folder: the model processes' files.
        rows_in: rows of the input; None where only reading tells.
        max_bad_share: share of them that may be bad.
        max_processes: processes that run at the same time.
    """
    done = Done.read(folder)
    if rows_in is None or done.processes > max_processes or done.bad <= max_bad_share * rows_in:
        return
    partial = folder / f".{STOP}"
    partial.write_text(
        f"stopped: {done.bad} of {rows_in} rows cannot be embedded so far, more than max_bad_share "
        f"{max_bad_share:g} allows ({'; '.join(done.reasons)}); mend them or raise max_bad_share, "
        "and run the same command again: what was written is kept"
    )
    partial.replace(folder / STOP)


def refuse_if_stopped(folder: Path) -> None:
    """End a model process that was told to.

    Raises:
        UserError: the reason.
    """
    try:
        reason = (folder / STOP).read_text()
    except FileNotFoundError:
        return
    raise UserError(reason)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> duration(75), duration(3 * 3600 + 62)
    ('1:15', '3:01:02')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def every(given: float | None) -> float:
    """Seconds between two lines: as given, else often in a terminal and rarely in a log."""
    if given is not None:
        return given
    return TERMINAL_SECONDS if sys.stderr.isatty() else LOG_SECONDS


def write_summary(target: Path, result: Mapping[str, Any]) -> None:
    """Write the job's result beside the manifest, whole or not at all."""
    partial = target / ".summary.json.unfinished"
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(target / "summary.json")


def say(line: str) -> None:
    """Tell the user, on stderr."""
    print(line, file=sys.stderr, flush=True)
