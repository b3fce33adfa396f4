"""Signals interrupt once, wherever they land."""

import subprocess
import sys
import time

import pytest

IN_A_FORK_HOOK = """
import os, signal, sys, time
from rematch_ray.commands import interruption
interruption.install()
def hook():
    os.kill(os.getpid(), signal.{number})
    for _ in range(1000):  # the handler runs at one of these, inside the hook
        pass
os.register_at_fork(after_in_parent=hook)
try:
    if os.fork() == 0:
        os._exit(0)
    time.sleep(10)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_during_a_fork_still_interrupts(number: str) -> None:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", IN_A_FORK_HOOK.format(number=number)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("interrupted\n", "")
    assert time.monotonic() - started < 9


def test_signals_are_ignored_while_closing() -> None:
    program = (
        "import os, signal\nfrom rematch_ray.commands import interruption\n"
        "interruption.install(); interruption.ignore()\n"
        "[os.kill(os.getpid(), n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]\n"
        "print('closed')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "closed\n")


def test_what_is_ignored_elsewhere_is_still_reported() -> None:
    program = (
        "from rematch_ray.commands import interruption\ninterruption.install()\n"
        "class Broken:\n    def __del__(self): raise OSError('lost')\nBroken()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "OSError: lost" in done.stderr
