"""The error that a user can cause, and the nearest known name for a mistyped one.

Ground floor, standard library only. It knows nothing of commands, files or requests: whoever
raises says what was given, what is allowed and what to do, and the command line and the server
turn it into one line (exit code 2, or a 4xx answer).
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what a user, file or request gave; its message is shown as it stands.

    The message is one line: what was given, what is allowed, what to do.
    """


def nearest_name(given: str, known: Iterable[str]) -> str | None:
    """Return the known name that `given` most resembles, or None when none is close.

    Args:
        given: the name as the user wrote it.
        known: the names that would have been accepted.

    Returns:
        The nearest known name (case is ignored), or None.

    >>> nearest_name("steps_per_epok", ["seed", "steps_per_epoch"])
    'steps_per_epoch'
    >>> nearest_name("zzz", ["seed"]) is None
    True
    """
    by_lower = {name.lower(): name for name in sorted(known)}
    close = difflib.get_close_matches(given.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return the tail of an error message: the nearest known name and every allowed one.

    Args:
        given: the name as the user wrote it.
        known: the names that would have been accepted.

    Returns:
        Text to append to a message, without a closing full stop.

    >>> did_you_mean("sead", ["steps", "seed"])
    'did you mean seed? allowed: seed, steps'
    >>> did_you_mean("zzz", ["steps", "seed"])
    'allowed: seed, steps'
    """
    names = sorted(known)
    nearest = nearest_name(given, names)
    allowed = f"allowed: {', '.join(names) or 'nothing'}"
    return f"did you mean {nearest}? {allowed}" if nearest else allowed
