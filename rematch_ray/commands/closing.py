"""Ends what an interrupted verb started: no process outlives it.

Ray ends its own daemons once it is up; interrupted while it starts, some would live on, and one
that is being ended may just have started another. Reads /proc and sends signals to descendants of
this process only; knows nothing of Ray.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

Process = tuple[int, int]  # pid and start time: a pid alone may be another process by now
PATIENCE_S = 3.0
_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37  # linux/prctl.h


def end_descendants(close: Callable[[], None]) -> None:
    """Close in the orderly way, then end every descendant that is left.

    Args:
        close: the orderly way; what it ends is not signalled here.
    """
    with _adopting_orphans():
        _end(close)


def _end(close: Callable[[], None]) -> None:
    known = descendants()
    close()
    # where orphans are not adopted only the first look can name those whose parent is gone by now
    left = alive(known | descendants())
    _signal(left, signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE_S
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = alive(left | descendants())
    deadline = time.monotonic() + PATIENCE_S
    while left and time.monotonic() < deadline:  # again, for those being started meanwhile
        _signal(left, signal.SIGKILL)
        time.sleep(0.02)
        left = alive(left | descendants())


@contextlib.contextmanager
def _adopting_orphans() -> Iterator[None]:
    """Let descendants whose parent ends become children of this process, not of init."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux alone has it
    if prctl is None:
        yield
        return
    before = ctypes.c_int()
    prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, before.value, 0, 0, 0)


def descendants() -> set[Process]:
    """Every living process below this one; none where there is no /proc."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        if (found := _read(int(entry.name))) is not None:
            parents[(int(entry.name), found[1])] = found[0]
    below: set[Process] = set()
    level = {os.getpid()}
    while level:
        children = {process for process, parent in parents.items() if parent in level} - below
        below |= children
        level = {pid for pid, _ in children}
    return below


def alive(processes: set[Process]) -> set[Process]:
    """Those of the processes that still run."""
    return {
        (pid, start)
        for pid, start in processes
        if (found := _read(pid)) is not None and found[1] == start
    }


def _read(pid: int) -> tuple[int, int] | None:
    """Parent and start time of a running process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the command before it may hold spaces
    return None if fields[0] in "ZX" else (int(fields[1]), int(fields[19]))


def _signal(processes: set[Process], number: signal.Signals) -> None:
    for pid, _ in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
