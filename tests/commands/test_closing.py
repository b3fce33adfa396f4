"""What an interrupted verb started ends with it, children of dead children included."""

import ctypes
import os
import subprocess
import sys
import time

import pytest

from rematch_ray.commands import closing

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
PARENT = f"""
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", {STUBBORN!r}]).pid, flush=True)
time.sleep(60)
"""


def start_family() -> tuple[subprocess.Popen[str], int]:
    """A process and the pid of its child, which ignores SIGTERM."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.5)  # until it ignores the signal
    return parent, child


def test_descendants_are_found_through_their_parents() -> None:
    parent, child = start_family()
    pids = {pid for pid, _ in closing.descendants()}
    assert {parent.pid, child} <= pids
    assert os.getpid() not in pids
    closing.end_descendants(lambda: None)


def test_an_orphan_and_one_that_ignores_sigterm_end_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "PATIENCE_S", 0.5)
    parent, child = start_family()

    def close() -> None:
        parent.kill()
        parent.wait()

    closing.end_descendants(close)
    time.sleep(0.2)
    assert closing._read(child) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux adopts orphans")
def test_one_that_was_started_while_its_parent_was_being_ended_ends_too() -> None:
    """As Ray's agents are: the first look does not see them, and then they are orphans."""
    parent = subprocess.Popen(
        [sys.executable, "-c", f"input()\n{PARENT}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdin is not None and parent.stdout is not None
    late = []

    def close() -> None:
        assert parent.stdin is not None and parent.stdout is not None
        parent.stdin.write("\n")
        parent.stdin.flush()
        late.append(int(parent.stdout.readline()))
        parent.kill()
        parent.wait()

    closing.end_descendants(close)
    assert closing._read(late[0]) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux adopts orphans")
def test_orphans_are_adopted_only_while_others_are_ended() -> None:
    def adopts() -> bool:
        found = ctypes.c_int()
        ctypes.CDLL(None).prctl(closing._PR_GET_CHILD_SUBREAPER, ctypes.byref(found), 0, 0, 0)
        return bool(found.value)

    seen = []
    closing.end_descendants(lambda: seen.append(adopts()))
    assert seen == [True]
    assert not adopts()


def test_a_pid_that_is_another_process_by_now_is_left_alone() -> None:
    assert closing.alive({(os.getpid(), 1)}) == set()
