"""One way to be interrupted: Ctrl-C and SIGTERM both raise KeyboardInterrupt, and it is not lost.

A signal that arrives while a process is forked is handled in a fork hook, where Python reports and
then ignores exceptions; starting Ray forks a lot. Such an interrupt is raised again. Knows nothing
of verbs or Ray.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

_AGAIN_AFTER_S = 0.05


def install() -> None:
    """Let SIGTERM interrupt like Ctrl-C, and raise again what was ignored on the way.

    Off the main thread nothing is done: whoever runs us there owns the signals.
    """
    try:
        for number in (signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, interrupt)
    except ValueError:
        return
    sys.unraisablehook = _raise_again


def ignore() -> None:
    """Ignore further signals: what is being closed must not be torn apart."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        try:
            signal.signal(number, signal.SIG_IGN)
        except ValueError:
            return


def interrupt(signum: int, frame: FrameType | None) -> None:
    """Signal handler."""
    raise KeyboardInterrupt


def _raise_again(ignored: UnraisableHookArgs) -> None:
    # Ray's own handlers leave with SystemExit
    if issubclass(ignored.exc_type, (KeyboardInterrupt, SystemExit)):
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_AFTER_S)
    else:
        sys.__unraisablehook__(ignored)
