"""CPU-seconds of a whole job: a process and all below it, read from /proc. Linux only."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from meters.sampling import sampled

SAMPLE_S = 0.5
IDLE = "ray::IDLE"  # what Ray calls a process between two tasks

Process = tuple[int, int]  # pid and start time


class CpuMeter:
    """CPU-seconds of a process and all below it; those that ended keep what they were seen at.

    Between two reads a process that ends loses what it used since the first of them. What reading
    itself takes is left out.

    Args:
        root: the process; this one when None.
    """

    def __init__(self, root: int | None = None) -> None:
        self._root = os.getpid() if root is None else root
        self._seen: dict[Process, float] = {}
        self._names: dict[Process, str] = {}
        self._ticks = os.sysconf("SC_CLK_TCK")
        self._reading = threading.Lock()
        self._spent_reading = 0.0

    def read(self) -> float:
        """Returns the sum up to now."""
        return sum(self.by_process().values())

    def by_process(self) -> dict[Process, float]:
        """Returns what each process has used up to now."""
        with self._reading:
            began = time.thread_time()
            parents: dict[int, int] = {}
            used: dict[int, tuple[int, float]] = {}
            names: dict[int, str] = {}
            for entry in Path("/proc").glob("[0-9]*"):
                try:
                    head, _, tail = (entry / "stat").read_text().rpartition(")")
                except OSError:
                    continue
                pid, fields = int(entry.name), tail.split()
                names[pid] = head.partition("(")[2]
                parents[pid] = int(fields[1])
                used[pid] = int(fields[19]), (int(fields[11]) + int(fields[12])) / self._ticks
            for pid in _below(self._root, parents):
                start, seconds = used[pid]
                own = self._spent_reading if pid == os.getpid() else 0.0
                self._seen[(pid, start)] = seconds - own
                if names[pid] != IDLE or (pid, start) not in self._names:
                    self._names[(pid, start)] = names[pid]  # a data task's, when seen at work
            self._spent_reading += time.thread_time() - began
            return dict(self._seen)

    def by_name(self, seconds: Mapping[Process, float]) -> dict[str, float]:
        """Returns sums by the names of processes, largest first."""
        sums: dict[str, float] = {}
        for process, value in seconds.items():
            name = self._names[process]
            sums[name] = sums.get(name, 0.0) + value
        return dict(sorted(sums.items(), key=lambda entry: -entry[1]))

    def by_title(self, seconds: Mapping[Process, float]) -> dict[str, float]:
        """Returns sums by what processes call themselves in full, largest first."""
        sums: dict[str, float] = {}
        for (pid, start), value in seconds.items():
            name = title(pid) or self._names[(pid, start)]
            sums[name] = sums.get(name, 0.0) + value
        return dict(sorted(sums.items(), key=lambda entry: -entry[1]))

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Keeps an eye on processes that end between two reads, as long as the block lasts."""
        with sampled(self.by_process, SAMPLE_S):
            yield


def _below(root: int, parents: dict[int, int]) -> set[int]:
    below: set[int] = set()
    level = {root}
    while level:
        below |= level
        level = {pid for pid, parent in parents.items() if parent in level} - below
    return below & parents.keys()


def title(pid: int) -> str:
    """The first word of a command line: a process of Ray's says there what it does."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return ""
    if words[0].startswith("ray::"):
        return words[0].removeprefix("ray::")
    # a script of Python's by its own name, any other program by the one that the kernel knows
    return next((Path(word).name for word in words[1:] if word.endswith(".py")), "")
